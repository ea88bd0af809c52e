package pick

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

// serving makes an endpoint that serves models; "lora<base" is a LoRA of base.
func serving(id string, models ...string) *Endpoint {
	e := NewEndpoint(mobula.Endpoint{ID: id}, &Live{})
	e.Serving = true
	for _, m := range models {
		name, parent, _ := strings.Cut(m, "<")
		e.Cards = append(e.Cards, mobula.Card{ID: name, Parent: parent})
	}
	return e
}

func with(e *Endpoint, change func(*Endpoint)) *Endpoint {
	change(e)
	return e
}

// describe renders all groups, one line each: model(base) aliases: endpoints.
func describe(s *Snapshot) []string {
	lines := []string{}
	for _, g := range s.Models() {
		var ids []string
		for _, e := range g.Endpoints {
			ids = append(ids, e.ID)
		}
		line := g.Model
		if g.Base != g.Model {
			line += "<" + g.Base
		}
		if len(g.Aliases) > 0 {
			line += "=" + strings.Join(g.Aliases, ",")
		}
		line += ": " + strings.Join(ids, " ")
		if g.Ejected {
			line += " (ejected)"
		}
		lines = append(lines, line)
	}
	return lines
}

func TestSnapshotGroups(t *testing.T) {
	eject := func(e *Endpoint) { e.Serving = false }
	for _, c := range []struct {
		name      string
		endpoints []*Endpoint
		models    []mobula.Model
		known     []string
		want      []string
	}{
		{"nothing", nil, nil, nil, []string{}},
		{"sorted by model and endpoint", []*Endpoint{serving("b", "y", "x"), serving("a", "y")}, nil, nil, []string{"x: b", "y: a b"}},
		{"a lora knows its base", []*Endpoint{serving("a", "x", "l<x")}, nil, nil, []string{"l<x: a", "x: a"}},
		{"a model listed twice counts once", []*Endpoint{serving("a", "x", "y", "x"), serving("b", "x", "x")}, nil, nil, []string{"x: a b", "y: a"}},
		{
			"models restrict, loras follow their base",
			[]*Endpoint{with(serving("a", "x", "y", "l<x", "k<y"), func(e *Endpoint) { e.Models = []string{"x"} })},
			nil, nil,
			[]string{"l<x: a", "x: a"},
		},
		{"ejected ones are left out", []*Endpoint{serving("a", "x"), with(serving("b", "x"), eject)}, nil, nil, []string{"x: a"}},
		{
			"ejected ones are tried when nothing else is left",
			[]*Endpoint{with(serving("a", "x", "x"), eject), with(serving("b", "x"), eject)},
			nil, nil,
			[]string{"x: a b (ejected)"},
		},
		{
			"draining ones never",
			[]*Endpoint{with(serving("a", "x"), func(e *Endpoint) { e.Draining = true }), with(serving("b", "x"), func(e *Endpoint) { eject(e); e.Draining = true })},
			nil, nil,
			[]string{"x: "},
		},
		{"prefill ones never", []*Endpoint{with(serving("a", "x"), func(e *Endpoint) { e.Role = mobula.RolePrefill })}, nil, nil, []string{"x: "}},
		{"decode ones do", []*Endpoint{with(serving("a", "x"), func(e *Endpoint) { e.Role = mobula.RoleDecode })}, nil, nil, []string{"x: a"}},
		{"known models stay", []*Endpoint{serving("a", "x")}, nil, []string{"gone", "x"}, []string{"gone: ", "x: a"}},
		{"configured models are known", nil, []mobula.Model{{Name: "x", Aliases: []string{"gpt"}}}, nil, []string{"x=gpt: "}},
		{
			"an alias never hides a model that an engine lists",
			[]*Endpoint{serving("a", "x", "y")},
			[]mobula.Model{{Name: "x", Aliases: []string{"y", "z"}}},
			nil,
			[]string{"x=z: a", "y: a"},
		},
		{
			"an alias never hides a model configured after it",
			nil,
			[]mobula.Model{{Name: "x", Aliases: []string{"y"}}, {Name: "y"}},
			nil,
			[]string{"x: ", "y: "},
		},
		{
			"the first to claim an alias has it",
			nil,
			[]mobula.Model{{Name: "x", Aliases: []string{"a"}}, {Name: "y", Aliases: []string{"a", "b"}}},
			nil,
			[]string{"x=a: ", "y=b: "},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Empty(t, cmp.Diff(c.want, describe(NewSnapshot(c.endpoints, c.models, c.known))))
		})
	}
}

func TestSnapshotLookup(t *testing.T) {
	s := NewSnapshot([]*Endpoint{serving("a", "x")}, []mobula.Model{{Name: "x", Aliases: []string{"gpt"}}}, nil)
	require.Same(t, s.Lookup("x"), s.Lookup("gpt"))
	require.Same(t, s.Lookup("x"), s.LookupBytes([]byte("gpt")))
	require.Nil(t, s.Lookup("other"))
	name := []byte("gpt")
	require.Zero(t, testing.AllocsPerRun(100, func() { s.LookupBytes(name) }))
}

func TestSnapshotLeavesItsInputAlone(t *testing.T) {
	in := []*Endpoint{serving("b", "x"), serving("a", "x")}
	NewSnapshot(in, nil, nil)
	require.Equal(t, "b", in[0].ID)
}

// A snapshot never sends a model to an endpoint that should not have it, and never
// withholds one that should.
func TestSnapshotProperties(t *testing.T) {
	name := rapid.SampledFrom([]string{"m0", "m1", "m2", "m3", "m4"})
	names := rapid.SliceOfN(name, 0, 4)
	rapid.Check(t, func(t *rapid.T) {
		var endpoints []*Endpoint
		for i := range rapid.IntRange(0, 6).Draw(t, "n") {
			e := serving(fmt.Sprint("e", i), names.Draw(t, "cards")...)
			e.Serving = rapid.Bool().Draw(t, "serving")
			e.Draining = rapid.Bool().Draw(t, "draining")
			e.Models = names.Draw(t, "models")
			e.Role = rapid.SampledFrom([]mobula.Role{mobula.RoleBoth, mobula.RolePrefill, mobula.RoleDecode}).Draw(t, "role")
			endpoints = append(endpoints, e)
		}
		var models []mobula.Model
		for _, m := range rapid.SliceOfNDistinct(name, 0, 3, rapid.ID).Draw(t, "configured") {
			models = append(models, mobula.Model{Name: m, Aliases: names.Draw(t, "aliases")})
		}
		s := NewSnapshot(endpoints, models, names.Draw(t, "known"))

		for _, g := range s.Models() {
			if s.Lookup(g.Model) != g {
				t.Fatalf("lookup of %s finds another group", g.Model)
			}
			for _, a := range g.Aliases {
				if s.Lookup(a) != g {
					t.Fatalf("alias %s of %s finds another group", a, g.Model)
				}
			}
			var want []*Endpoint
			for _, ejected := range []bool{false, true} {
				for _, e := range endpoints {
					lists := slices.ContainsFunc(e.Cards, func(c mobula.Card) bool { return c.ID == g.Model })
					allowed := len(e.Models) == 0 || slices.Contains(e.Models, g.Model)
					if lists && allowed && !e.Draining && e.Role != mobula.RolePrefill && e.Serving != ejected {
						want = append(want, e)
					}
				}
				if len(want) > 0 {
					if g.Ejected != ejected {
						t.Fatalf("%s: ejected is %v", g.Model, g.Ejected)
					}
					break
				}
			}
			if !slices.Equal(want, g.Endpoints) {
				t.Fatalf("%s: want %v, got %v", g.Model, want, g.Endpoints)
			}
		}
	})
}

func BenchmarkNewSnapshot(b *testing.B) {
	for _, n := range []int{4, 100, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var endpoints []*Endpoint
			for i := range n {
				endpoints = append(endpoints, serving(fmt.Sprintf("http://10.0.%d.%d:8000", i/256, i%256), "base", fmt.Sprintf("lora-%d<base", i%10)))
			}
			b.ReportAllocs()
			for b.Loop() {
				NewSnapshot(endpoints, nil, nil)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	s := NewSnapshot([]*Endpoint{serving("a", "meta-llama/Llama-3.1-8B-Instruct")}, nil, nil)
	name := []byte("meta-llama/Llama-3.1-8B-Instruct")
	b.ReportAllocs()
	for b.Loop() {
		s.LookupBytes(name)
	}
}
