// Package providers reports services of others (OpenAI, Azure, Anthropic and what speaks like
// them) as endpoints.
package providers

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// Options set up a Discovery.
type Options struct {
	// LookupEnv finds an environment variable that holds an API key. Default os.LookupEnv.
	LookupEnv func(name string) (string, bool)
}

// Discovery reports the providers of a fleet. Its changes come by Update.
type Discovery struct {
	lookup func(string) (string, bool)
	state  *adapters.InMemory
}

// New makes a Discovery from checked providers, in the order in which they are to be asked. It reads
// the API keys, and fails when one can't be read.
func New(providers []mobula.Provider, o Options) (*Discovery, error) {
	d := &Discovery{lookup: o.LookupEnv}
	if d.lookup == nil {
		d.lookup = os.LookupEnv
	}
	endpoints, err := d.endpoints(providers)
	if err != nil {
		return nil, err
	}
	d.state = adapters.NewInMemory(endpoints...)
	return d, nil
}

// Check reads the API keys and tells what Update would fail with. Nothing changes.
func (d *Discovery) Check(providers []mobula.Provider) error {
	_, err := d.endpoints(providers)
	return err
}

// Update reports these from now on, with their API keys read again. On an error the old state stays.
func (d *Discovery) Update(providers []mobula.Provider) error {
	endpoints, err := d.endpoints(providers)
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

// ID is that of a provider's endpoint.
func ID(name string) string { return "provider/" + name }

func (d *Discovery) endpoints(providers []mobula.Provider) ([]mobula.Endpoint, error) {
	endpoints := make([]mobula.Endpoint, 0, len(providers))
	for i := range providers {
		p := &providers[i]
		key, err := adapters.ReadKey(p.APIKeyFile, p.APIKeyEnv, d.lookup)
		if err != nil {
			return nil, fmt.Errorf("provider %s: %w", p.Name, err)
		}
		base, err := baseURL(p)
		if err != nil {
			return nil, fmt.Errorf("provider %s: %w", p.Name, err)
		}
		e := mobula.Endpoint{
			ID: ID(p.Name), URL: base.Scheme + "://" + base.Host, APIKey: key,
			Labels: map[string]string{"provider": p.Kind},
			Provider: &mobula.ProviderTarget{
				Kind: p.Kind, BasePath: strings.TrimRight(base.EscapedPath(), "/"), Rename: map[string]string{}, Order: i,
				Spill: p.Use == "spill", SpillAfter: time.Duration(p.SpillAfter), InFlight: p.InFlight,
			},
		}
		for _, m := range p.Models {
			e.Models = append(e.Models, m.Name)
			if m.As != "" {
				e.Provider.Rename[m.Name] = m.As
			}
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, nil
}

// baseURL is what an OpenAI client would have as such.
func baseURL(p *mobula.Provider) (*url.URL, error) {
	raw := p.URL
	if raw == "" {
		raw = map[string]string{"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com/v1"}[p.Kind]
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("url %q: want a base URL such as https://api.openai.com/v1", raw)
	}
	return u, nil
}

var _ adapters.Discoverer = (*Discovery)(nil)
