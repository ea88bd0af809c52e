package static

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// joinProbe bounds the question whether a host's old address still answers.
const joinProbe = 2 * time.Second

// Errors of Join.
var (
	// ErrHostTaken: another agent has joined under the name, and answers.
	ErrHostTaken = errors.New("another host of this name answers")
	// ErrTooManyHosts: no more can join.
	ErrTooManyHosts = errors.New("too many hosts")
)

// Join takes a host up, durably. address is its agent's, host:port. A host that has joined may join
// again, also at another address unless the one before still answers (ErrHostTaken).
func (h *Hosts) Join(ctx context.Context, name, address string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("host name %q: want 1 to 253 characters", name)
	}
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return fmt.Errorf("address %q of host %s: want host:port", address, name)
	}
	if err := h.moved(ctx, name, address); err != nil {
		return err
	}
	return h.do(func() error {
		rec := h.records.hosts[name]
		switch {
		case rec != nil && rec.Address == address:
			return nil
		case rec == nil && len(h.hosts) >= maxHosts:
			return fmt.Errorf("host %s: %w: %d have joined", name, ErrTooManyHosts, maxHosts)
		case rec == nil:
			h.log.Info("host has joined", "host", name, "address", address)
			h.records.saveHost(&hostRecord{Name: name, Address: address})
		default:
			h.log.Info("host has moved", "host", name, "from", rec.Address, "to", address)
			rec.Address = address
			h.records.saveHost(rec)
			h.drop(h.hosts[name])
		}
		h.add(name, address)
		return nil
	})
}

// moved fails when name is at another address and answers there.
func (h *Hosts) moved(ctx context.Context, name, address string) error {
	h.mu.Lock()
	host := h.hosts[name]
	h.mu.Unlock()
	if host == nil || host.address == address {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinProbe)
	defer cancel()
	s, err := host.client.State(ctx, 0, 0)
	if err == nil && (s.Name == "" || s.Name == name) {
		return fmt.Errorf("host %s at %s: %w at %s", name, address, ErrHostTaken, host.address)
	}
	return nil
}

// Hosts lists the hosts that have joined.
func (h *Hosts) Hosts(context.Context) ([]mobula.Host, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]mobula.Host, 0, len(h.hosts))
	for name, host := range h.hosts {
		all = append(all, mobula.Host{
			Name: name, Address: host.address, Labels: host.state.Labels, Devices: slices.Clone(host.state.Devices), Slots: host.state.Slots,
			Cordoned: h.records.hosts[name].Cordoned, Heard: host.heard, Silent: host.silent, Version: host.state.Version,
		})
	}
	slices.SortFunc(all, func(a, b mobula.Host) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// Cordon has a host get no new replicas, or get them again.
func (h *Hosts) Cordon(ctx context.Context, host string, on bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.do(func() error {
		rec := h.records.hosts[host]
		switch {
		case rec == nil:
			return fmt.Errorf("host %s: %w", host, adapters.ErrUnknownHost)
		case rec.Cordoned != on:
			rec.Cordoned = on
			h.records.saveHost(rec)
			h.roomy = true
		}
		return nil
	})
}

// Forget removes a host; its replicas are placed elsewhere at once. Its agent is told nothing: an engine
// that still runs there goes on until somebody stops it, or until the host joins again.
func (h *Hosts) Forget(ctx context.Context, host string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.do(func() error {
		if h.records.hosts[host] == nil {
			return fmt.Errorf("host %s: %w", host, adapters.ErrUnknownHost)
		}
		for _, r := range h.records.on[host] {
			if r.GivenUp == nil {
				h.records.succeed(r, h.newReplica(r.key()))
			}
			h.records.remove(r)
		}
		h.records.removeHost(host)
		h.drop(h.hosts[host])
		h.log.Info("host is forgotten", "host", host)
		return nil
	})
}
