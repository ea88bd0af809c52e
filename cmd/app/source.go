package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/ray"
	"github.com/mobula-serve/mobula/adapters/static"
)

// switched is a Discoverer that is another one from time to time. While it is none it says nothing: no endpoints would
// take away those that are known.
type switched struct {
	mu      sync.Mutex
	now     adapters.Discoverer
	changed chan struct{} // closed when now changes
}

func newSwitched() *switched { return &switched{changed: make(chan struct{})} }

func (s *switched) set(d adapters.Discoverer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != d {
		s.now = d
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

func (s *switched) get() (now adapters.Discoverer, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now, s.changed
}

func (s *switched) known() bool {
	now, _ := s.get()
	return now != nil
}

// Run sends what the present Discoverer sends.
func (s *switched) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	for ctx.Err() == nil {
		now, changed := s.get()
		one, stop := context.WithCancel(ctx)
		g, one := errgroup.WithContext(one)
		if now != nil {
			g.Go(func() error { return now.Run(one, up) })
		}
		g.Go(func() error {
			defer stop()
			select {
			case <-one.Done():
			case <-changed:
			}
			return nil
		})
		err := g.Wait()
		stop()
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return ctx.Err()
}

// source is where a router finds the engines of its fleet's platform, but for those that a control plane tells of.
type source struct {
	*switched
	fixed   *static.Discovery
	cluster *ray.Discovery        // nil before the fleet is on a Ray cluster
	pods    *kubernetes.Discovery // nil before the fleet is on a Kubernetes cluster
	options kubernetes.DiscoveryOptions
	follows bool // a control plane tells of what is on the cluster
	// shared are engines in a RayCluster of others, as a control plane tells of them; nil when the router is to look there itself.
	shared adapters.Discoverer
	logger *slog.Logger
}

func newSource(f *mobula.Fleet, follows bool, shared adapters.Discoverer, pods kubernetes.DiscoveryOptions, logger *slog.Logger) (*source, error) {
	fixed, err := static.New(mobula.Static{}, static.Options{})
	if err != nil {
		return nil, err
	}
	s := &source{switched: newSwitched(), fixed: fixed, follows: follows, shared: shared, options: pods, logger: logger}
	return s, s.update(f)
}

// update takes another fleet. On an error what is there stays.
func (s *source) update(f *mobula.Fleet) error {
	p := f.Platform
	if p.KubeRay.Shares() && !s.follows {
		if s.shared != nil {
			s.set(s.shared)
			return nil
		}
		if s.options.Client != nil {
			return errors.New("platform.kuberay.shared: a router with --kubernetes hears of these engines from the control plane: want --control-secret")
		}
		var err error
		if p, err = (sharedRay{version: s.options.Version, logger: s.logger}).platform(p); err != nil {
			return err
		}
	}
	if p.Ray != nil && !s.follows {
		var err error
		if s.cluster == nil {
			s.cluster, err = ray.NewDiscovery(f.Name, *p.Ray, ray.DiscoveryOptions{Dial: sharedRay{version: s.options.Version, logger: s.logger}.dial, Logger: s.logger})
		} else {
			err = s.cluster.Update(f.Name, *p.Ray)
		}
		if err != nil {
			return fmt.Errorf("platform.ray: %w", err)
		}
		s.set(s.cluster)
		return nil
	}
	if p.OnKubernetes() != nil && !s.follows {
		var err error
		if s.pods == nil {
			s.pods, err = kubernetes.NewDiscovery(f.Name, p, s.options)
		} else {
			err = s.pods.Update(f.Name, p)
		}
		if err != nil {
			return err
		}
		s.set(withKey(s.pods, engineKey()))
		return nil
	}
	var endpoints mobula.Static
	if p.Static != nil {
		endpoints = *p.Static
	}
	if err := s.fixed.Update(endpoints); err != nil {
		return fmt.Errorf("platform.static: %w", err)
	}
	s.set(s.fixed)
	return nil
}
