// Package adapters is the seam to the platforms: what one can do for the router and the
// control plane. Its sub-rooms implement it, one platform each, and never import each other.
package adapters

import (
	"context"

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
