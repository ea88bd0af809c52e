// Package adapters is the seam to the platforms: what one can do for the router and the
// control plane. Its sub-rooms implement it, one platform each, and never import each other.
package adapters

import (
	"cmp"
	"context"
	"errors"
	"io"

	"github.com/mobula-serve/mobula"
)

// Discoverer reports the endpoints of one platform.
type Discoverer interface {
	// Run sends the full state first and the full state again on every change, until ctx
	// ends; then it returns ctx's error. A value sent is not touched again by either side.
	// Equal states may be sent twice. When the platform itself can't be asked, Run keeps
	// quiet and goes on trying: a stale source never removes an endpoint. Run does not
	// close up, and returns another error only when it can never work.
	Run(ctx context.Context, up chan<- []mobula.Endpoint) error
}

// Key names a deployment: one revision of one model in one fleet.
type Key struct {
	Fleet, Model, Revision string
}

// Compare orders keys by fleet, then model, then revision.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Fleet, o.Fleet), cmp.Compare(k.Model, o.Model), cmp.Compare(k.Revision, o.Revision))
}

// Deployment is what one revision of a model should have on a platform.
type Deployment struct {
	Key
	// Model says how one engine is started and what it takes; its Replicas and LoRAs don't matter here.
	Model mobula.Model
	// Replicas that should exist, those in Drain included. 0 keeps the deployment without a replica.
	Replicas int
	// Drain holds IDs of replicas that should get no new requests: their endpoints are Draining.
	// A replica that is no longer named here takes requests again.
	Drain []string
}

// Placer makes engines exist on one platform and keeps as many of them as asked.
//
// A replica whose process dies is started again with a back-off, under the same ID; one whose
// host is gone for good gets a successor elsewhere with another ID, or is moved there by a platform that
// does so by itself (Ray). All methods are idempotent and
// may be called at once. When the platform can't be asked they fail with an error that wraps
// ErrUnavailable and change nothing.
type Placer interface {
	// Apply makes d so, replacing what was asked for under the same Key before. It returns when the
	// wish is durable, not when it has come true: Status tells. With fewer Replicas than exist,
	// those in Drain go first, in Drain's order, then Failed ones, then those not ready, then the youngest. An error wraps
	// ErrImpossible when no host of the platform, were it empty, could run one replica of d.
	Apply(ctx context.Context, d Deployment) error
	// Remove stops all replicas of the deployment and forgets it. One that is unknown is removed already.
	Remove(ctx context.Context, key Key) error
	// Deployments gives what is asked for in a fleet, sorted by Key. It is how a control plane that
	// has lost its memory finds what it has to look after.
	Deployments(ctx context.Context, fleet string) ([]Deployment, error)
	// Status gives all replicas of a fleet, sorted by ID, Gone ones left out. One that is named in Drain keeps
	// its state; one that Apply or Remove has taken away is Draining until its processes have ended, and no
	// longer counts as one of the Replicas.
	Status(ctx context.Context, fleet string) ([]mobula.Replica, error)
	// Logs reads what a replica's engine has printed: the last tail lines, and with follow what
	// comes until ctx ends. It fails with ErrUnknownReplica.
	Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error)
}

// Configurer is a Placer that takes its settings from the fleet file.
type Configurer interface {
	// Configure has it use the platform section of a fleet from now on; with dry it only tells whether it
	// could. It is called before anything else is asked of it for that fleet, and again when the section changes.
	// An error that wraps ErrUnavailable is a warning: the settings are in use, the platform did not answer yet.
	// After any other error the former settings stay.
	Configure(ctx context.Context, fleet string, p mobula.Platform, dry bool) error
}

// Teller is a Placer with problems to tell of that belong to no replica.
type Teller interface {
	// Problems gives those that there are now, a sentence each that says what to do.
	Problems() []string
}

// Watcher is a Placer that tells when Status may have changed.
type Watcher interface {
	// Changed gives a channel that is closed at the next change; ask again after it.
	Changed() <-chan struct{}
}

// Hosts is a platform whose machines can be looked at and kept free.
type Hosts interface {
	// Hosts lists them, sorted by name.
	Hosts(ctx context.Context) ([]mobula.Host, error)
	// Cordon has a host get no new replicas, or get them again. It fails with ErrUnknownHost.
	Cordon(ctx context.Context, host string, on bool) error
	// Forget removes a host that is gone for good; its replicas are placed elsewhere at once.
	Forget(ctx context.Context, host string) error
}

// Checker is a Placer that tells in advance what Apply would refuse.
type Checker interface {
	// Check fails as Apply of d would, with ErrImpossible or ErrUnavailable, and changes nothing.
	Check(ctx context.Context, d Deployment) error
}

// Fetcher is a platform that can bring files to where a replica runs.
type Fetcher interface {
	// Fetch has the replica's hosts hold source (a folder there, or an http, https or s3 URL) and gives its
	// path there, the same on each of them. It takes as long as the download does.
	Fetch(ctx context.Context, replica, source string) (path string, err error)
}

// Errors of platforms.
var (
	// ErrUnavailable: the platform can't be asked right now.
	ErrUnavailable = errors.New("platform unavailable")
	// ErrWithdrawn: nobody wants it any more, which its caller is about to hear.
	ErrWithdrawn = errors.New("nobody wants it any more")
	// ErrImpossible: no host of the platform could ever run it.
	ErrImpossible = errors.New("does not fit on any host")
	// ErrUnknownReplica: there is no such replica.
	ErrUnknownReplica = errors.New("no such replica")
	// ErrUnknownHost: there is no such host.
	ErrUnknownHost = errors.New("no such host")
	// ErrUnsupported: it is not for this platform to do.
	ErrUnsupported = errors.New("not on this platform")
)
