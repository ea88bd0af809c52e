package static

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/agent"
)

// fetchesAtOnce bounds the downloads of one Fetch.
const fetchesAtOnce = 8

var errDoubt = errors.New("a write has failed, reading it again")

// Apply makes d so.
func (h *Hosts) Apply(ctx context.Context, d adapters.Deployment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.do(func() error {
		if err := h.possible(&d); err != nil {
			return err
		}
		h.apply(&deploymentRecord{Key: d.Key, Model: d.Model, Replicas: d.Replicas, Drain: slices.Clone(d.Drain)})
		return nil
	})
}

// Check fails as Apply would.
func (h *Hosts) Check(ctx context.Context, d adapters.Deployment) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt {
		return unavailable(errDoubt)
	}
	return h.possible(&d)
}

// possible accepts everything as long as no host has told what it has.
func (h *Hosts) possible(d *adapters.Deployment) error {
	known := false
	for _, host := range h.hosts {
		known = known || host.contact
	}
	if !known {
		return nil
	}
	return possible(h.nodes(true), &d.Model)
}

func (h *Hosts) apply(d *deploymentRecord) {
	before := h.records.deployments[d.Key]
	h.records.deployments[d.Key] = d
	have := h.records.wanted(d.Key)
	if before != nil && len(have) == d.Replicas && same(before, d) {
		return
	}
	h.records.saveDeployment(d)
	for _, r := range have {
		if before == nil || slices.Contains(before.Drain, r.ID) != slices.Contains(d.Drain, r.ID) || !same(&before.Model, &d.Model) {
			h.records.save(r, true)
		}
	}
	if extra := len(have) - d.Replicas; extra > 0 {
		all := make([]mobula.Replica, len(have))
		for i, r := range have {
			all[i] = h.status(r)
		}
		for _, id := range adapters.Leaving(all, d.Drain, extra) {
			h.records.remove(h.records.replicas[id])
		}
	}
	missing := d.Replicas - len(have)
	for range missing {
		h.newReplica(d.Key)
	}
	if missing > 0 {
		h.adopt()
	}
}

// same compares what would be stored.
func same[T any](a, b *T) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Remove stops all replicas of the deployment and forgets it.
func (h *Hosts) Remove(ctx context.Context, key adapters.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.do(func() error {
		if h.records.deployments[key] == nil {
			return nil
		}
		for _, r := range h.records.replicas {
			if r.key() == key {
				h.records.remove(r)
			}
		}
		h.records.removeDeployment(key)
		delete(h.reasons, key)
		return nil
	})
}

// Deployments gives what is asked for in a fleet.
func (h *Hosts) Deployments(_ context.Context, fleet string) ([]adapters.Deployment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt {
		return nil, unavailable(errDoubt)
	}
	all := []adapters.Deployment{}
	for key, d := range h.records.deployments {
		if key.Fleet == fleet {
			all = append(all, adapters.Deployment{Key: key, Model: d.Model, Replicas: d.Replicas, Drain: slices.Clone(d.Drain)})
		}
	}
	slices.SortFunc(all, func(a, b adapters.Deployment) int { return a.Compare(b.Key) })
	return all, nil
}

// Logs reads what a replica's engine prints; for one of several hosts, the part that serves.
func (h *Hosts) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	name, task, client, err := h.locate(replica)
	if err != nil {
		return nil, err
	}
	log, err := client.Logs(ctx, task, tail, follow)
	if err != nil {
		return nil, fmt.Errorf("logs of replica %s on host %s: %w", replica, name, err)
	}
	return log, nil
}

// locate finds the task of a replica that serves, and its host.
func (h *Hosts) locate(replica string) (name, task string, client AgentClient, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.records.replicas[replica]; r != nil {
		if len(r.Parts) == 0 {
			return "", "", nil, fmt.Errorf("replica %s has not started: %s", replica, h.status(r).Reason)
		}
		name, task = r.Parts[0].Host, r.task(0)
	} else {
		h.leftovers(func(host *host, t *agent.TaskStatus) {
			if t.Replica == replica && (task == "" || t.ID < task) {
				name, task = host.name, t.ID
			}
		})
	}
	host := h.hosts[name]
	if host == nil {
		return "", "", nil, fmt.Errorf("replica %s: %w", replica, adapters.ErrUnknownReplica)
	}
	if host.silent != "" {
		return "", "", nil, fmt.Errorf("replica %s: %w: host %s is silent: %s", replica, adapters.ErrUnavailable, name, host.silent)
	}
	return name, task, host.client, nil
}

// Fetch has all hosts of a replica hold source.
func (h *Hosts) Fetch(ctx context.Context, replica, source string) (string, error) {
	clients, names, err := h.clientsOf(replica)
	if err != nil {
		return "", err
	}
	paths := make([]string, len(clients))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchesAtOnce)
	for i, client := range clients {
		group.Go(func() error {
			path, err := client.Fetch(ctx, source)
			if err != nil {
				return fmt.Errorf("fetch %s to host %s: %w", source, names[i], err)
			}
			paths[i] = path
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	for i, path := range paths {
		if path != paths[0] {
			return "", fmt.Errorf("fetch %s: host %s has it at %s, host %s at %s: give their agents the same data directory",
				source, names[0], paths[0], names[i], path)
		}
	}
	return paths[0], nil
}

func (h *Hosts) clientsOf(replica string) (clients []AgentClient, names []string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.records.replicas[replica]
	if r == nil {
		return nil, nil, fmt.Errorf("replica %s: %w", replica, adapters.ErrUnknownReplica)
	}
	if len(r.Parts) == 0 {
		return nil, nil, fmt.Errorf("replica %s has no host: %s", replica, h.status(r).Reason)
	}
	for _, p := range r.Parts {
		host := h.hosts[p.Host]
		if host == nil || host.silent != "" {
			return nil, nil, fmt.Errorf("replica %s: %w: host %s is silent", replica, adapters.ErrUnavailable, p.Host)
		}
		clients, names = append(clients, host.client), append(names, p.Host)
	}
	return clients, names, nil
}

var (
	_ adapters.Placer  = (*Hosts)(nil)
	_ adapters.Watcher = (*Hosts)(nil)
	_ adapters.Checker = (*Hosts)(nil)
	_ adapters.Fetcher = (*Hosts)(nil)
	_ adapters.Hosts   = (*Hosts)(nil)
)
