package control

import "errors"

// Errors of a control plane, beside those of package adapters. What comes back wraps one of them.
var (
	// ErrInvalid: what was asked makes no sense; asking again won't help.
	ErrInvalid = errors.New("invalid")
	// ErrConflict: it stands against what is there, and force may be allowed to do it.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: there is no such fleet, model, replica or host.
	ErrNotFound = errors.New("not found")
)
