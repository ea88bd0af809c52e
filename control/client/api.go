// Package client speaks to a control plane: for the mobula commands, for routers that take their
// endpoints from one, and for agents that join it.
package client

import (
	"context"
	"io"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// Plane is a control plane: *control.Control is one, and *Client over HTTP. Errors that the control plane
// answered with are *Error; View and Events that wait fail when ctx ends.
type Plane interface {
	// Apply makes the fleet file (YAML, as written) what is wanted. source says where it comes from, for
	// people ("fleet.yaml on host by user"). dry only tells what would change. force allows what would else be
	// refused with code "conflict": a fleet of another name, or models removed by a file from another source.
	Apply(ctx context.Context, file []byte, source string, dry, force bool) (*control.Change, error)
	// Fleet gives the fleet file as it was applied last.
	Fleet(ctx context.Context) ([]byte, error)
	// View gives all that is known. With after it waits until its Version is beyond that, at most as long as ctx.
	View(ctx context.Context, after int64) (*control.View, error)
	// Settings gives what routers need of the fleet. With after it waits until its Version is another one, at most as long as ctx.
	Settings(ctx context.Context, after int64) (*control.Settings, error)
	// Events gives the events with Seq beyond after, oldest first; with wait it waits for one.
	Events(ctx context.Context, after int64, wait bool) ([]control.Event, error)
	// Scale sets the wanted number of replicas until the next apply that changes replicas; a negative number gives
	// it back to the fleet file.
	Scale(ctx context.Context, model string, replicas int) error
	// Drain has a replica get no new requests, or get them again.
	Drain(ctx context.Context, replica string, on bool) error
	// Cordon has a host get no new replicas, or get them again; with drain its replicas are moved away too.
	Cordon(ctx context.Context, host string, on, drain bool) error
	// Forget removes a host that is gone for good.
	Forget(ctx context.Context, host string) error
	// Restart replaces all replicas of a model, or of all models for "", one after the other.
	Restart(ctx context.Context, model string) error
	// Rollback makes a model's last good revision the wanted one.
	Rollback(ctx context.Context, model string) error
	// Delete removes a model, or the whole fleet for "": its replicas are drained and stopped.
	Delete(ctx context.Context, model string) error
	// Logs reads what a replica's engine prints.
	Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error)
	// Report tells the control plane how a router fares.
	Report(ctx context.Context, r mobula.Report) error
}

// API is what a control plane offers to people: itself, and join tokens for agents.
type API interface {
	Plane
	// Token makes a join token for agents; it is shown once.
	Token(ctx context.Context) (string, error)
}

// Error is an error that the control plane answered with.
type Error struct {
	Status int // HTTP
	// Code is one word for programs: invalid, conflict, notfound, impossible, unavailable, unauthorized, internal.
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Message }
