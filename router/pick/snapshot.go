package pick

import (
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/mobula-serve/mobula"
)

// Snapshot is the fleet as requests see it. It is immutable; a change makes a new one.
type Snapshot struct {
	// Endpoints are all of them, serving or not, sorted by ID.
	Endpoints []*Endpoint
	groups    map[string]*Group
	models    []*Group
}

// Group is the endpoints that may serve one model.
type Group struct {
	// Model is the name that engines know, Base the model under a LoRA or Model itself.
	Model, Base string
	// Aliases are other names for it.
	Aliases []string
	// Card is what /v1/models shows of it: the first endpoint's.
	Card mobula.Card
	// Endpoints may be sent to. Ejected ones are in it only when nothing else is left:
	// trying them costs less than refusing. Never empty in a group that Lookup returns as usable.
	Endpoints []*Endpoint
	// Ejected tells that Endpoints are all ejected ones.
	Ejected bool
	// Providers serve it too, in the order in which they are asked. Ejected ones are in it only
	// when nothing else is left of a model that is not placed.
	Providers []*Endpoint
	// Placed tells that engines are made for it: without any, requests wait. At most Held of them
	// wait, those for LoRAs of Base included, each for HeldFor.
	Placed  bool
	Held    int
	HeldFor time.Duration
}

// Offered tells that requests for it are taken: something may serve it, or will.
func (g *Group) Offered() bool { return len(g.Endpoints) > 0 || len(g.Providers) > 0 || g.Placed }

// Serves tells whether an engine is up, or a provider of one of these kinds takes a request, by
// what is known at this moment.
func (g *Group) Serves(kinds []string) bool {
	return g.Engines() > 0 || g.Provided(kinds)
}

// Provided tells whether a provider of one of these kinds takes a request at this moment.
func (g *Group) Provided(kinds []string) bool {
	return slices.ContainsFunc(g.Providers, func(e *Endpoint) bool { return e.takes(kinds) })
}

// Spare is how many more requests the providers of these kinds take at this moment.
func (g *Group) Spare(kinds []string) int {
	n := 0
	for _, e := range g.Providers {
		if e.takes(kinds) {
			n += max(0, e.Provider.InFlight-int(e.Live.InFlight.Load()))
		}
	}
	return n
}

// Engines is the number of engines that are up at this moment.
func (g *Group) Engines() int {
	n := 0
	if !g.Ejected {
		for _, e := range g.Endpoints {
			if !e.Live.Ejected.Load() && !e.Live.Draining.Load() {
				n++
			}
		}
	}
	return n
}

// NewEndpoint makes the Endpoint of e with its Hash, sharing live.
func NewEndpoint(e mobula.Endpoint, live *Live) *Endpoint {
	return &Endpoint{Endpoint: e, Hash: xxhash.Sum64String(e.ID), Live: live}
}

// Allows tells that a model that e lists may be routed to it. The LoRAs of a base model
// follow it.
func (e *Endpoint) Allows(c mobula.Card) bool {
	return len(e.Models) == 0 || slices.Contains(e.Models, c.ID) || slices.Contains(e.Models, c.Parent)
}

// NewSnapshot builds the groups: by model id, then by alias. known are models to keep
// although nothing serves them now, so that they are 503 rather than 404. An alias never
// hides a model of the same name, and the first model to claim an alias has it. Endpoints
// with role prefill and draining ones are in no group. LoRAs that models name have groups
// before an engine has loaded them. IDs must be unique.
func NewSnapshot(endpoints []*Endpoint, models []mobula.Model, known []string) *Snapshot {
	s := &Snapshot{Endpoints: slices.Clone(endpoints), groups: map[string]*Group{}}
	slices.SortFunc(s.Endpoints, func(a, b *Endpoint) int { return strings.Compare(a.ID, b.ID) })
	ejected := map[*Group][]*Endpoint{}
	providers := 0
	for _, e := range s.Endpoints {
		if e.Provider != nil {
			providers++
			continue
		}
		s.add(e, ejected)
	}
	for _, name := range known {
		s.group(name)
	}
	// All names before the first alias: a model listed later keeps its own name.
	for i := range models {
		s.place(&models[i])
	}
	for _, m := range models {
		g := s.group(m.Name)
		for _, a := range m.Aliases {
			if s.groups[a] == nil {
				s.groups[a] = g
				g.Aliases = append(g.Aliases, a)
			}
		}
	}
	for _, g := range s.models {
		if len(g.Endpoints) == 0 && len(ejected[g]) > 0 {
			g.Endpoints, g.Ejected = ejected[g], true
		}
	}
	if providers > 0 {
		s.addProviders()
	}
	slices.SortFunc(s.models, func(a, b *Group) int { return strings.Compare(a.Model, b.Model) })
	return s
}

// add puts e into the groups of its cards, or, while it is ejected, into what may be
// tried when nothing else is left.
func (s *Snapshot) add(e *Endpoint, ejected map[*Group][]*Endpoint) {
	for _, c := range e.Cards {
		if !e.Allows(c) {
			continue
		}
		g := s.group(c.ID)
		if g.Card.ID == "" {
			g.Card = c
			if c.Parent != "" {
				g.Base = c.Parent
			}
		}
		switch {
		case e.Draining || e.Role == mobula.RolePrefill:
		case e.Serving:
			g.Endpoints = appendOnce(g.Endpoints, e)
		default:
			ejected[g] = appendOnce(ejected[g], e)
		}
	}
}

// place makes the groups of a model and its LoRAs, and has them wait for engines if it is placed.
func (s *Snapshot) place(m *mobula.Model) {
	g := s.group(m.Name)
	if !m.Placed() {
		return
	}
	g.Placed, g.Held, g.HeldFor = true, m.Scaling.Held, time.Duration(m.Scaling.HeldFor)
	for _, l := range m.LoRAs {
		lora := s.group(l.Name)
		lora.Base, lora.Placed, lora.Held, lora.HeldFor = m.Name, true, g.Held, g.HeldFor
	}
}

// appendOnce leaves out e when it was the last one: an engine may list a model twice.
func appendOnce(list []*Endpoint, e *Endpoint) []*Endpoint {
	if n := len(list); n > 0 && list[n-1] == e {
		return list
	}
	return append(list, e)
}

func (s *Snapshot) group(model string) *Group {
	g := s.groups[model]
	if g == nil {
		g = &Group{Model: model, Base: model}
		s.groups[model] = g
		s.models = append(s.models, g)
	}
	return g
}

// Lookup finds the group of a model or alias, nil when the name is unknown. A known model
// that nothing serves has a group without endpoints.
func (s *Snapshot) Lookup(model string) *Group { return s.groups[model] }

// LookupBytes is Lookup without a copy of the name.
func (s *Snapshot) LookupBytes(model []byte) *Group { return s.groups[string(model)] }

// Models are all groups, sorted by model id.
func (s *Snapshot) Models() []*Group { return s.models }
