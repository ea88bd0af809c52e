package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func start() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

var errLoad = errors.New("no adapter found")

// ready makes replicas that take requests.
func ready(loaded map[string][]string, ids ...string) []Replica {
	var out []Replica
	for _, id := range ids {
		out = append(out, Replica{ID: id, Serving: true, Known: true, Loaded: loaded[id]})
	}
	return out
}

func lora(name string, replicas int) mobula.LoRA {
	return mobula.LoRA{Name: name, Source: "/loras/" + name, Replicas: replicas}
}

func TestPlan(t *testing.T) {
	ours := func(source string, at ...string) State {
		s := State{}
		for _, r := range at {
			s.Loaded = put(s.Loaded, r, "a", source)
		}
		return s
	}
	has := func(ids ...string) map[string][]string {
		m := map[string][]string{}
		for _, id := range ids {
			m[id] = []string{"a"}
		}
		return m
	}
	load := func(r string) Action { return Action{Kind: Load, Replica: r, LoRA: "a", Source: "/loras/a"} }
	unload := func(r string) Action { return Action{Kind: Unload, Replica: r, LoRA: "a"} }
	for name, tc := range map[string]struct {
		loras    []mobula.LoRA
		replicas []Replica
		state    State
		want     []Action
	}{
		"all of them":                {[]mobula.LoRA{lora("a", 0)}, ready(nil, "r1", "r2"), State{}, []Action{load("r1"), load("r2")}},
		"more than there are":        {[]mobula.LoRA{lora("a", 5)}, ready(nil, "r1", "r2"), State{}, []Action{load("r1"), load("r2")}},
		"nobody is ready":            {[]mobula.LoRA{lora("a", 0)}, []Replica{{ID: "r1"}, {ID: "r2", Serving: true}, {ID: "r3", Serving: true, Known: true, Draining: true}}, State{}, nil},
		"it stays where it is":       {[]mobula.LoRA{lora("a", 1)}, ready(has("r2"), "r1", "r2", "r3"), ours("/loras/a", "r2"), nil},
		"found and taken over":       {[]mobula.LoRA{lora("a", 1)}, ready(has("r2"), "r1", "r2", "r3"), State{}, nil},
		"one restarted without it":   {[]mobula.LoRA{lora("a", 0)}, ready(has("r2"), "r1", "r2"), ours("/loras/a", "r1", "r2"), []Action{load("r1")}},
		"one too many":               {[]mobula.LoRA{lora("a", 1)}, ready(has("r1", "r2"), "r1", "r2"), ours("/loras/a", "r1", "r2"), []Action{unload(worse("a", "r1", "r2"))}},
		"removed from the fleet":     {nil, ready(has("r1", "r2"), "r1", "r2"), ours("/loras/a", "r1", "r2"), []Action{unload("r1"), unload("r2")}},
		"loaded by hand":             {nil, ready(has("r1"), "r1", "r2"), State{}, nil},
		"another source":             {[]mobula.LoRA{lora("a", 1)}, ready(has("r1"), "r1", "r2"), ours("/loras/old", "r1"), []Action{load("r1")}},
		"one not known yet keeps it": {[]mobula.LoRA{lora("a", 1)}, append(ready(nil, "r2"), Replica{ID: "r1", Serving: true}), ours("/loras/a", "r1"), nil},
		"one not known may lack it":  {[]mobula.LoRA{lora("a", 1)}, append(ready(has("r2"), "r2"), Replica{ID: "r1", Serving: true}), ours("/loras/a", "r1", "r2"), nil},
		"its replica drains":         {[]mobula.LoRA{lora("a", 1)}, append(ready(nil, "r2"), Replica{ID: "r1", Serving: true, Draining: true, Known: true, Loaded: []string{"a"}}), ours("/loras/a", "r1"), []Action{load("r2")}},
		"its replica is gone":        {[]mobula.LoRA{lora("a", 1)}, ready(nil, "r2"), ours("/loras/a", "r1"), []Action{load("r2")}},
		"removed where one drains":   {nil, []Replica{{ID: "r1", Serving: true, Draining: true, Known: true, Loaded: []string{"a"}}}, ours("/loras/a", "r1"), nil},
		"no LoRAs and no replicas":   {nil, nil, State{}, nil},
		"a card that is not a LoRA":  {[]mobula.LoRA{lora("a", 1)}, ready(map[string][]string{"r1": {"other"}}, "r1"), State{}, []Action{load("r1")}},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := json.Marshal(tc.state)
			require.NoError(t, err)
			got, _ := Plan(Input{Now: start(), LoRAs: tc.loras, Replicas: tc.replicas}, tc.state)
			require.Empty(t, cmp.Diff(tc.want, got))
			after, err := json.Marshal(tc.state)
			require.NoError(t, err)
			require.JSONEq(t, string(before), string(after), "the state given is not touched")
		})
	}
}

// worse gives the replica that a LoRA prefers less.
func worse(name, a, b string) string {
	if rendezvous(name, a) < rendezvous(name, b) {
		return a
	}
	return b
}

func TestALoRAIsLoadedElsewhereBeforeItIsUnloaded(t *testing.T) {
	w := newWorld("r1", "r2", "r3", "r4")
	for i := range 8 {
		w.loras = append(w.loras, lora(fmt.Sprintf("l%d", i), 1))
	}
	w.loaded["r1"] = nil
	for _, l := range w.loras {
		w.loaded["r1"] = append(w.loaded["r1"], l.Name) // r1 was alone
	}
	actions := w.step()
	require.Len(t, actions, 6, "r1 keeps its share")
	for _, a := range actions {
		require.Equal(t, Load, a.Kind)
	}
	for _, a := range w.step() {
		require.Equal(t, Action{Kind: Unload, Replica: "r1", LoRA: a.LoRA}, a)
	}
	require.Empty(t, w.step())
	for r, has := range w.loaded {
		require.Len(t, has, 2, r)
	}
}

func TestFailuresWaitLongerAndLonger(t *testing.T) {
	in := Input{Now: start(), LoRAs: []mobula.LoRA{lora("a", 0)}, Replicas: ready(nil, "r1")}
	var s State
	var pauses []time.Duration
	for range 8 {
		actions, next := Plan(in, s)
		require.Len(t, actions, 1)
		s = next.Done(actions[0], errLoad, in.Now)
		failed := in.Now
		for actions, s = Plan(in, s); len(actions) == 0; actions, s = Plan(in, s) {
			require.Equal(t, "replica r1: no adapter found", Statuses(in, s)[0].Error)
			in.Now = in.Now.Add(time.Second)
		}
		pauses = append(pauses, in.Now.Sub(failed)/time.Second)
	}
	require.Equal(t, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}, pauses)

	_, s = Plan(in, s.Done(Action{Kind: Load, Replica: "r1", LoRA: "a", Source: "/loras/a"}, nil, in.Now))
	require.Empty(t, s.Failures)
}

func TestAnotherReplicaIsTriedAfterAFailure(t *testing.T) {
	in := Input{Now: start(), LoRAs: []mobula.LoRA{lora("a", 1)}, Replicas: ready(nil, "r1", "r2", "r3")}
	var s State
	tried := map[string]bool{}
	for range 3 {
		actions, next := Plan(in, s)
		require.Len(t, actions, 1)
		tried[actions[0].Replica] = true
		s = next.Done(actions[0], errLoad, in.Now)
	}
	require.Len(t, tried, 3)
	actions, s := Plan(in, s)
	require.Empty(t, actions)
	in.LoRAs[0].Source = "/loras/better"
	actions, s = Plan(in, s)
	require.Len(t, actions, 1, "another source is tried at once")
	require.Empty(t, s.Failures)
}

func TestStatuses(t *testing.T) {
	in := Input{
		Now: start(), LoRAs: []mobula.LoRA{lora("a", 0), lora("b", 2), lora("c", 1)},
		Replicas: append(ready(map[string][]string{"r2": {"a", "b"}, "r1": {"b"}}, "r2", "r1"),
			Replica{ID: "r3", Serving: true, Draining: true, Known: true, Loaded: []string{"a"}}),
	}
	fail := func(s State, r, name string, after time.Duration, message string) State {
		return s.Done(Action{Kind: Load, Replica: r, LoRA: name, Source: "/loras/" + name}, errors.New(message), start().Add(after))
	}
	_, s := Plan(in, State{})
	s = fail(fail(fail(s, "r1", "a", 1, "old"), "r2", "c", 2, "older"), "r1", "c", 3, "newest")
	s = fail(s, "r3", "b", 4, "but two have it")
	require.Empty(t, cmp.Diff([]Status{
		{Name: "a", Source: "/loras/a", Wanted: 2, Loaded: []string{"r2"}, Error: "replica r1: old"},
		{Name: "b", Source: "/loras/b", Wanted: 2, Loaded: []string{"r1", "r2"}},
		{Name: "c", Source: "/loras/c", Wanted: 1, Loaded: []string{}, Error: "replica r1: newest"},
	}, Statuses(in, s)))
}

func TestStateSurvivesJSON(t *testing.T) {
	_, s := Plan(Input{Now: start(), LoRAs: []mobula.LoRA{lora("a", 0)}, Replicas: ready(map[string][]string{"r1": {"a"}}, "r1", "r2")}, State{})
	s = s.Done(Action{Kind: Load, Replica: "r2", LoRA: "a", Source: "/loras/a"}, errLoad, start())
	b, err := json.Marshal(s)
	require.NoError(t, err)
	var back State
	require.NoError(t, json.Unmarshal(b, &back))
	require.Empty(t, cmp.Diff(s, back))
}

// world is replicas that do as they are told.
type world struct {
	now    time.Time
	loras  []mobula.LoRA
	ids    []string
	loaded map[string][]string
	state  State
	fails  func(Action) bool
	// unknown replicas have not told yet what they have.
	unknown []string
}

func newWorld(ids ...string) *world {
	return &world{now: start(), ids: ids, loaded: map[string][]string{}, fails: func(Action) bool { return false }}
}

func (w *world) input() Input {
	in := Input{Now: w.now, LoRAs: w.loras, Replicas: ready(w.loaded, w.ids...)}
	for i := range in.Replicas {
		if r := &in.Replicas[i]; slices.Contains(w.unknown, r.ID) {
			r.Known, r.Loaded = false, nil
		}
	}
	return in
}

// step plans once and does all of it.
func (w *world) step() []Action {
	actions, s := Plan(w.input(), w.state)
	for _, a := range actions {
		var err error
		switch has := slices.Index(w.loaded[a.Replica], a.LoRA); {
		case w.fails(a):
			err = errLoad
		case a.Kind == Unload:
			w.loaded[a.Replica] = slices.Delete(slices.Clone(w.loaded[a.Replica]), has, has+1)
		case has < 0:
			w.loaded[a.Replica] = append(slices.Clone(w.loaded[a.Replica]), a.LoRA)
		}
		s = s.Done(a, err, w.now)
	}
	w.state, w.now = s, w.now.Add(time.Minute)
	return actions
}

func (w *world) count(name string) int {
	n := 0
	for _, r := range w.ids {
		if slices.Contains(w.loaded[r], name) {
			n++
		}
	}
	return n
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		pool := []string{"r1", "r2", "r3", "r4", "r5", "r6", "r7"}
		byHand := false
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			w.change(t, pool)
			if !byHand && len(w.ids) > 0 && rapid.Bool().Draw(t, "by hand") {
				w.loaded[w.ids[0]], byHand = append(slices.Clone(w.loaded[w.ids[0]]), "hand"), true
			}
			hand := w.count("hand")
			for range rapid.IntRange(0, 2).Draw(t, "unfinished") {
				w.unknown = rapid.SliceOfN(rapid.SampledFrom(pool), 0, 2).Draw(t, "unread")
				w.safe(t)
			}
			w.unknown = nil
			w.converge(t)
			require.Equal(t, hand, w.count("hand"), "what was loaded by hand stays")
			w.even(t)
		}
	})
}

// change makes other LoRAs wanted and has replicas come, go and restart.
func (w *world) change(t *rapid.T, pool []string) {
	w.loras = nil
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}), 0, 6, rapid.ID).Draw(t, "loras") {
		l := lora(name, rapid.IntRange(0, 4).Draw(t, "n"))
		l.Source = rapid.SampledFrom([]string{"/x", "/y"}).Draw(t, "source")
		w.loras = append(w.loras, l)
	}
	w.ids = rapid.SliceOfNDistinct(rapid.SampledFrom(pool), 0, len(pool), rapid.ID).Draw(t, "replicas")
	for _, r := range pool {
		if !slices.Contains(w.ids, r) || rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
			delete(w.loaded, r)
		}
	}
}

// safe does one step and checks that no LoRA loses a replica that it needs.
func (w *world) safe(t *rapid.T) []Action {
	before := map[string]int{}
	for _, l := range w.loras {
		before[l.Name] = w.count(l.Name)
	}
	odd := rapid.IntRange(0, 3).Draw(t, "fail every")
	n := 0
	w.fails = func(Action) bool { n++; return odd > 0 && n%(odd+1) == 0 }
	actions := w.step()
	w.fails = func(Action) bool { return false }
	for _, l := range w.loras {
		want := l.Replicas
		if want == 0 {
			want = len(w.ids)
		}
		require.GreaterOrEqual(t, w.count(l.Name), min(before[l.Name], want), "%s in %v", l.Name, actions)
	}
	return actions
}

// converge steps until nothing is left to do: it loads first, unloads then, and is done, but for what is put back once a
// failure is forgotten.
func (w *world) converge(t *rapid.T) {
	for range 15 {
		w.step()
	}
	w.unknown = rapid.SliceOfN(rapid.SampledFrom(append([]string{"none"}, w.ids...)), 0, 3).Draw(t, "unknown")
	require.Empty(t, w.step(), "nothing moves while a replica is read anew")
	w.unknown = nil
	require.Empty(t, w.step(), "it settles")
	for _, l := range w.loras {
		want := min(l.Replicas, len(w.ids))
		if l.Replicas == 0 {
			want = len(w.ids)
		}
		require.Equal(t, want, w.count(l.Name), l.Name)
	}
	for _, r := range w.ids {
		for _, name := range w.loaded[r] {
			i := slices.IndexFunc(w.loras, func(l mobula.LoRA) bool { return l.Name == name })
			require.True(t, i >= 0 || name == "hand", "%s stays", name)
			if i >= 0 {
				require.Equal(t, w.loras[i].Source, w.state.Loaded[r][name])
			}
		}
	}
	for _, st := range Statuses(w.input(), w.state) {
		if len(w.ids) > 0 {
			require.Empty(t, st.Error)
		}
	}
}

// even checks that no replica has more than its share, give or take what cannot be shared out. Where something failed
// less is put, so that others have more.
func (w *world) even(t *rapid.T) {
	if len(w.ids) == 0 || len(w.state.Failures) > 0 {
		return
	}
	count, total := map[string]int{}, 0
	for _, l := range w.loras {
		if l.Replicas == 0 || l.Replicas >= len(w.ids) {
			continue
		}
		total += l.Replicas
		for _, r := range w.ids {
			if slices.Contains(w.loaded[r], l.Name) {
				count[r]++
			}
		}
	}
	for _, r := range w.ids {
		require.LessOrEqual(t, count[r], (total+len(w.ids)-1)/len(w.ids)+1, "%v", w.loaded)
	}
}

func BenchmarkPlan(b *testing.B) {
	w := newWorld()
	for i := range 100 {
		w.ids = append(w.ids, fmt.Sprintf("replica-%d", i))
	}
	for i := range 20 {
		w.loras = append(w.loras, lora(fmt.Sprintf("lora-%d", i), i%5))
	}
	w.step()
	in := w.input()
	b.ReportAllocs()
	for b.Loop() {
		_, w.state = Plan(in, w.state)
	}
}
