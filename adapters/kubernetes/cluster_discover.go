package kubernetes

import (
	"context"
	"sync"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Discoverer gives the endpoints of the fleet's engines and of those that platform.kubernetes.discover selects, for routers that follow the
// control plane. It works while Run does, and sends nothing before the cluster was looked at once.
func (c *Cluster) Discoverer() adapters.Discoverer { return discoverer{c} }

type discoverer struct{ cluster *Cluster }

// Run sends the endpoints, and again when they change. Any number of Runs may go on at once.
func (d discoverer) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.cluster.known:
		return d.cluster.served.Run(ctx, up)
	}
}

// discover finds the endpoints of a link's cluster until ctx ends.
func (c *Cluster) discover(ctx context.Context, l *link) {
	d, err := NewDiscovery(l.fleet, l.platform, DiscoveryOptions{
		Client: c.options.Client, Namespace: l.Namespace, Logger: c.log, Version: c.options.Version,
	})
	if err != nil { // Configure has tried the same
		c.log.Error("cannot find the engines of the Kubernetes cluster", "error", err)
		return
	}
	c.mu.Lock()
	c.discovery = d
	c.mu.Unlock()
	up := make(chan []mobula.Endpoint)
	var wg sync.WaitGroup
	wg.Go(func() { _ = d.Run(ctx, up) }) // it ends with ctx only
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case all := <-up:
			c.served.Set(all...)
			c.knownOnce.Do(func() { close(c.known) })
		}
	}
}

var _ adapters.Discoverer = discoverer{}
