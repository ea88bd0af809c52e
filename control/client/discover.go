package client

import (
	"context"
	"errors"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const (
	leastBackoff = 100 * time.Millisecond
	mostBackoff  = 5 * time.Second
)

// Discoverer gives the fleet's endpoints as the control plane knows them. While it is away nothing is
// sent: what was there stays.
func (c *Client) Discoverer() adapters.Discoverer { return &discovery{c} }

type discovery struct{ client *Client }

// Run implements adapters.Discoverer.
func (d *discovery) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	var version int64
	var failures int
	for ctx.Err() == nil {
		var list EndpointList
		if err := d.client.poll(ctx, "/v1/endpoints", version, true, &list); err != nil {
			if failures++; failures == 1 && !errors.Is(err, context.Canceled) {
				d.client.logger.Warn("control plane is away, keeping the endpoints that were there", "error", err)
			}
			pause(ctx, backoff(failures))
			continue
		}
		if failures > 0 {
			d.client.logger.Info("control plane is back")
			failures = 0
		}
		if list.Version == version {
			continue
		}
		endpoints := make([]mobula.Endpoint, len(list.Endpoints))
		for i := range list.Endpoints {
			endpoints[i] = list.Endpoints[i].Decode()
		}
		select {
		case up <- endpoints:
			version = list.Version
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// backoff gives the pause after so many failures in a row.
func backoff(failures int) time.Duration {
	return min(leastBackoff<<min(failures-1, 10), mostBackoff)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

var _ adapters.Discoverer = (*discovery)(nil)
