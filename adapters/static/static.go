// Package static is the platform without an orchestrator: engines that already run at known addresses (Discovery), and hosts
// on which mobula agent runs them (Hosts).
package static

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Options set up a Discovery.
type Options struct {
	// LookupEnv finds an environment variable that holds an API key. Default os.LookupEnv.
	LookupEnv func(name string) (string, bool)
}

// Discovery reports the endpoints of a platform.static section. Its changes come by Update.
type Discovery struct {
	lookup func(string) (string, bool)
	state  *adapters.InMemory
}

// New makes a Discovery from a checked section. It reads the API keys, and fails when one
// can't be read.
func New(s mobula.Static, o Options) (*Discovery, error) {
	d := &Discovery{lookup: o.LookupEnv}
	if d.lookup == nil {
		d.lookup = os.LookupEnv
	}
	endpoints, err := d.endpoints(s)
	if err != nil {
		return nil, err
	}
	d.state = adapters.NewInMemory(endpoints...)
	return d, nil
}

// Update reports s from now on, with its API keys read again. On an error the old state stays.
func (d *Discovery) Update(s mobula.Static) error {
	endpoints, err := d.endpoints(s)
	if err != nil {
		return err
	}
	d.state.Set(endpoints...)
	return nil
}

// Run sends the endpoints, and again after each Update.
func (d *Discovery) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	return d.state.Run(ctx, up)
}

func (d *Discovery) endpoints(s mobula.Static) ([]mobula.Endpoint, error) {
	endpoints := make([]mobula.Endpoint, 0, len(s.Endpoints))
	seen := make(map[string]bool, len(s.Endpoints))
	for _, e := range s.Endpoints {
		url := strings.TrimRight(e.URL, "/")
		if seen[url] {
			return nil, fmt.Errorf("endpoint %s: listed twice", url)
		}
		seen[url] = true
		key, err := adapters.ReadKey(e.APIKeyFile, e.APIKeyEnv, d.lookup)
		if err != nil {
			return nil, fmt.Errorf("endpoint %s: %w", url, err)
		}
		endpoints = append(endpoints, mobula.Endpoint{
			ID:            url,
			URL:           url,
			Models:        slices.Clone(e.Models),
			Role:          e.Role,
			Labels:        maps.Clone(e.Labels),
			APIKey:        key,
			TLSSkipVerify: e.InsecureSkipVerify,
			Draining:      e.Drain,
		})
	}
	return endpoints, nil
}

var _ adapters.Discoverer = (*Discovery)(nil)
