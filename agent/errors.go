package agent

import (
	"errors"
	"net/http"
)

// Errors of an agent, as the agent itself and as its Client return them.
var (
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrOtherControl: the agent has joined another control plane.
	ErrOtherControl = errors.New("agent has joined another control plane")
	// ErrUnknownTask: the host has no such task.
	ErrUnknownTask = errors.New("no such task")
	// ErrOldWish: the agent has seen a Wish with this Epoch or a later one.
	ErrOldWish = errors.New("wish is not newer than the last one")
	// ErrNoSpace: the host's disk is full.
	ErrNoSpace = errors.New("disk is full")
)

// statuses maps the errors to what HTTP says of them.
func statuses() map[error]int {
	return map[error]int{
		ErrInvalid:      http.StatusBadRequest,
		ErrOtherControl: http.StatusForbidden,
		ErrUnknownTask:  http.StatusNotFound,
		ErrOldWish:      http.StatusConflict,
		ErrNoSpace:      http.StatusInsufficientStorage,
	}
}

// StatusOf gives the HTTP status for an error of an agent, 500 for one that is not among those above.
func StatusOf(err error) int {
	for known, status := range statuses() {
		if errors.Is(err, known) {
			return status
		}
	}
	return http.StatusInternalServerError
}

// errorOf is the reverse of StatusOf, nil for other statuses.
func errorOf(status int) error {
	for known, s := range statuses() {
		if s == status {
			return known
		}
	}
	return nil
}
