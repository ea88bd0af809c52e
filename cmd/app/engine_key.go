package app

import (
	"cmp"
	"context"
	"os"
	"slices"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
)

// engineKey is the key that vLLM engines ask for: they take it from their environment, and so do we from ours.
func engineKey() mobula.Secret { return mobula.Secret(os.Getenv("VLLM_API_KEY")) }

// withKey gives the endpoints of d that have no key of their own the engines' key, if there is one.
func withKey(d adapters.Discoverer, key mobula.Secret) adapters.Discoverer {
	if key == "" {
		return d
	}
	return keyedDiscoverer{d, key}
}

type keyedDiscoverer struct {
	adapters.Discoverer
	key mobula.Secret
}

// Run sends what the Discoverer sends, with the key.
func (k keyedDiscoverer) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	ctx, cancel := context.WithCancel(ctx)
	plain, done := make(chan []mobula.Endpoint), make(chan error, 1)
	go func() { done <- k.Discoverer.Run(ctx, plain) }()
	defer func() { cancel(); <-done }()
	for {
		select {
		case err := <-done:
			done <- err
			return err
		case endpoints := <-plain:
			endpoints = slices.Clone(endpoints)
			for i := range endpoints {
				endpoints[i].APIKey = cmp.Or(endpoints[i].APIKey, k.key)
			}
			select {
			case up <- endpoints:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// keyedEngines are the control plane's calls to engines, with the key.
type keyedEngines struct {
	control.Engines
	key mobula.Secret
}

func (k keyedEngines) with(e mobula.Endpoint) mobula.Endpoint {
	e.APIKey = k.key
	return e
}

// Models asks what the engine serves.
func (k keyedEngines) Models(ctx context.Context, e mobula.Endpoint) ([]mobula.Card, error) {
	return k.Engines.Models(ctx, k.with(e))
}

// LoadLoRA has the engine load a LoRA.
func (k keyedEngines) LoadLoRA(ctx context.Context, e mobula.Endpoint, name, path string) error {
	return k.Engines.LoadLoRA(ctx, k.with(e), name, path)
}

// UnloadLoRA has the engine unload a LoRA.
func (k keyedEngines) UnloadLoRA(ctx context.Context, e mobula.Endpoint, name string) error {
	return k.Engines.UnloadLoRA(ctx, k.with(e), name)
}

// Sleep has the engine sleep.
func (k keyedEngines) Sleep(ctx context.Context, e mobula.Endpoint, level int) error {
	return k.Engines.Sleep(ctx, k.with(e), level)
}

// Wake wakes the engine up.
func (k keyedEngines) Wake(ctx context.Context, e mobula.Endpoint) error {
	return k.Engines.Wake(ctx, k.with(e))
}
