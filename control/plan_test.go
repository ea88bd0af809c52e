package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// world is a platform with one model, a router that drains, and a memory, all driven by hand.
type world struct {
	*rapid.T
	clock   time.Time
	placer  *adapters.InMemoryPlacer
	want    *mobula.Model
	mem     memory
	routers *routers
	load    map[string]int
	leaving map[string]bool
	asked   int // replicas after the last round
}

func newWorld(t *rapid.T) *world {
	w := &world{T: t, clock: time.Unix(1_700_000_000, 0), load: map[string]int{}, leaving: map[string]bool{}, mem: memory{}.clone()}
	w.placer = adapters.NewInMemoryPlacer(func() time.Time { return w.clock })
	w.routers = &routers{found: w.clock}
	m := mobula.NewModel("m")
	m.Engine.Kind = "sim"
	m.Engine.StartTimeout = mobula.Duration(10 * time.Minute)
	m.Rollout.Surge = rapid.IntRange(0, 3).Draw(t, "surge")
	m.Rollout.Unavailable = rapid.IntRange(0, 2).Draw(t, "unavailable")
	if m.Rollout.Surge == 0 {
		m.Rollout.Unavailable = max(1, m.Rollout.Unavailable)
	}
	m.Rollout.Rollback = rapid.Bool().Draw(t, "rollback")
	w.want = &m
	w.scale(rapid.IntRange(0, 6).Draw(t, "replicas"))
	return w
}

func (w *world) scale(n int) {
	w.want.Replicas = &mobula.Range{Min: n, Max: n}
	w.mem = w.mem.clone()
	w.mem.Range = *w.want.Replicas
}

// report has the router tell how it fares.
func (w *world) report() {
	held, err := w.placer.Deployments(w.Context(), "f")
	require.NoError(w, err)
	r := mobula.Report{Router: "r"}
	for _, s := range w.placer.Replicas(mobula.StateReady) {
		draining := slices.ContainsFunc(held, func(d adapters.Deployment) bool { return slices.Contains(d.Drain, s.ID) })
		r.Endpoints = append(r.Endpoints, mobula.EndpointReport{ID: s.ID, State: "up", Draining: draining, InFlight: w.load[s.ID]})
	}
	w.routers = w.routers.with(r, w.clock)
}

func (w *world) situation() *situation {
	held, err := w.placer.Deployments(w.Context(), "f")
	require.NoError(w, err)
	replicas, err := w.placer.Status(w.Context(), "f")
	require.NoError(w, err)
	asked := map[string]adapters.Deployment{}
	for _, d := range held {
		asked[d.Revision] = d
	}
	return &situation{
		now: w.clock, fleet: "f", name: "m", want: w.want, was: w.mem, asked: asked,
		replicas: replicas, routers: w.routers, leaving: w.leaving,
	}
}

// serving counts what takes requests, for all we know.
func serving(s *situation, m *memory) (n int) {
	for i := range s.replicas {
		if _, marked := m.Marks[s.replicas[i].ID]; !marked && (s.replicas[i].Serving() || s.replicas[i].State == mobula.StateSuspect) {
			n++
		}
	}
	return n
}

// round plans once, holds the plan against its bounds, and acts on it unless the process dies first.
func (w *world) round(dies int) {
	s := w.situation()
	before, err := json.Marshal(s.was)
	require.NoError(w, err)
	d := plan(s)
	after, err := json.Marshal(s.was)
	require.NoError(w, err)
	require.Equal(w, string(before), string(after), "plan changes nothing that it is given")
	total := 0
	for _, n := range d.mem.asks() {
		total += n
	}
	wanted, least := 0, 0
	if w.want != nil {
		wanted = w.want.Replicas.Min + w.want.Rollout.Surge
		least = w.want.Replicas.Min - w.want.Rollout.Unavailable
	}
	require.LessOrEqual(w, total, max(wanted, w.asked), "replicas asked for")
	require.GreaterOrEqual(w, serving(s, &d.mem), min(serving(s, &s.was), least), "replicas that serve")
	for id, m := range d.mem.Marks {
		r := s.replicas[slices.IndexFunc(s.replicas, func(r mobula.Replica) bool { return r.ID == id })]
		if m.Released && !s.was.Marks[id].Released && r.Serving() {
			require.True(w, w.load[id] == 0 || !w.routers.any(w.clock) || w.clock.Sub(m.Since) >= 5*time.Minute, "%s goes with %d requests", id, w.load[id])
		}
	}
	if dies == 0 {
		return // before the memory is written
	}
	w.mem, w.asked = reload(w, d.mem), total
	for i, dep := range d.apply {
		if dies == i+1 {
			return
		}
		require.NoError(w, w.placer.Apply(w.Context(), dep))
	}
	for _, key := range d.remove {
		require.NoError(w, w.placer.Remove(w.Context(), key))
	}
	there := w.placer.Replicas()
	for i := range s.replicas {
		r := &s.replicas[i]
		left := !slices.ContainsFunc(there, func(o mobula.Replica) bool { return o.ID == r.ID })
		require.True(w, !left || !r.Serving() || w.mem.Marks[r.ID].Released, "%s is stopped, and not released: %+v then %+v", r.ID, s.was.Marks, w.mem.Marks)
	}
}

// reload gives a memory as a restarted process reads it.
func reload(t require.TestingT, m memory) memory {
	data, err := json.Marshal(m)
	require.NoError(t, err)
	var next memory
	require.NoError(t, json.Unmarshal(data, &next))
	return next.clone()
}

func (w *world) step() {
	pick := func(states ...mobula.State) string {
		all := w.placer.Replicas(states...)
		if len(all) == 0 {
			return ""
		}
		return all[rapid.IntRange(0, len(all)-1).Draw(w.T, "replica")].ID
	}
	switch rapid.IntRange(0, 13).Draw(w.T, "step") {
	case 0, 1, 2:
		w.clock = w.clock.Add(time.Duration(rapid.IntRange(1, 400).Draw(w.T, "seconds")) * time.Second)
	case 3, 4, 5:
		w.placer.Ready(pick(mobula.StateStarting, mobula.StateSuspect))
	case 6:
		w.placer.Crash(pick())
	case 7:
		w.placer.Fail(pick(), "it died")
	case 8:
		id, load := pick(), rapid.IntRange(0, 3).Draw(w.T, "load")
		if _, marked := w.mem.Marks[id]; !marked || load < w.load[id] { // a router sends nothing more where it drains
			w.load[id] = load
		}
	case 9:
		w.scale(rapid.IntRange(0, 6).Draw(w.T, "replicas"))
		w.asked = max(w.asked, w.want.Replicas.Min+w.want.Rollout.Surge)
	case 10:
		w.want.Source = fmt.Sprint("source-", rapid.IntRange(0, 3).Draw(w.T, "source"))
		w.mem = w.mem.clone()
		w.mem.Pin = ""
	case 11:
		if id := pick(mobula.StateReady); id != "" && w.mem.Marks[id].Since.IsZero() {
			w.mem = w.mem.clone()
			w.mem.Marks[id] = mark{Revision: w.situation().replicaNamed(id).Revision, Since: w.clock, Person: true, Why: "by hand"}
			w.asked++ // somebody did that: the bound is not the plan's
		}
	case 12:
		host := rapid.SampledFrom([]string{"host-1", "host-2"}).Draw(w.T, "host")
		w.leaving[host] = !w.leaving[host]
	case 13:
		w.placer.Suspect(pick(mobula.StateReady), "its host is silent")
	}
	if rapid.IntRange(0, 3).Draw(w.T, "reports") > 0 {
		w.report()
	}
}

func (s *situation) replicaNamed(id string) *mobula.Replica {
	i := slices.IndexFunc(s.replicas, func(r mobula.Replica) bool { return r.ID == id })
	return &s.replicas[i]
}

// settle lets the world run on without trouble.
func (w *world) settle(want func() bool) {
	clear(w.load)
	clear(w.leaving)
	w.placer.Auto(true)
	for range 400 {
		w.clock = w.clock.Add(5 * time.Second)
		for _, r := range w.placer.Replicas(mobula.StateSuspect) {
			w.placer.Ready(r.ID)
		}
		w.report()
		w.round(100)
		if want() {
			return
		}
	}
	require.Fail(w, "it does not settle", "memory %+v\nreplicas %+v", w.mem, w.placer.Replicas())
}

func TestPlanKeepsItsBoundsAndConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step()
			dies := 100
			if rapid.IntRange(0, 4).Draw(t, "dies") == 0 {
				dies = rapid.IntRange(0, 2).Draw(t, "after")
			}
			w.round(dies)
		}
		w.mem.Pin = "" // as an apply does
		w.mem.Nonce++
		complete := func() bool {
			all := w.placer.Replicas()
			return len(all) == w.want.Replicas.Min && len(w.mem.Marks) == 0 && w.mem.Phase == RolloutComplete &&
				!slices.ContainsFunc(all, func(r mobula.Replica) bool { return r.Revision != w.mem.Target || !r.Serving() })
		}
		w.settle(complete)
		w.round(100) // forgets what is gone
		// What is settled stays as it is.
		before := w.placer.Replicas()
		for range 20 {
			w.clock = w.clock.Add(time.Minute)
			w.report()
			d := plan(w.situation())
			require.Empty(t, d.apply)
			require.Empty(t, d.remove)
			require.Empty(t, d.events)
			require.Equal(t, w.mem, reload(t, d.mem))
			w.round(100)
		}
		require.Equal(t, before, w.placer.Replicas())
		// And goes when nobody wants it any more.
		w.want = nil
		w.settle(func() bool { return len(w.placer.Replicas()) == 0 && len(w.mem.Revisions) == 0 })
	})
}

// A router that had given a replica up, for its host was silent, does not name it: that says nothing of requests which it has there since it is back.
func TestAReplicaThatIsBackIsNotIdleBeforeRoutersHaveFoundIt(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for ago, idle := range map[time.Duration]bool{0: false, 8 * time.Second: true} {
		m := mark{Revision: "r", Since: now.Add(-10 * time.Second)}
		p := &planner{situation: &situation{
			now: now, asked: map[string]adapters.Deployment{"r": {Drain: []string{"m-1"}}}, replicas: []mobula.Replica{{ID: "m-1", State: mobula.StateReady, Since: now.Add(-ago)}},
			routers: (&routers{}).with(mobula.Report{Router: "r"}, now.Add(-time.Second)),
		}}
		require.Equal(t, idle, p.idle("m-1", &m), "%s", ago)
	}
}

func TestAModelThatMayHaveSeveralReplicasSharesItsVolume(t *testing.T) {
	m := mobula.NewModel("m")
	m.Kubernetes.Data.Size = 1 << 30
	for most, want := range map[int]string{1: "", 4: "ReadWriteMany"} {
		m.Replicas = &mobula.Range{Min: 0, Max: most}
		require.Equal(t, want, engineModel(&m).Kubernetes.Data.AccessMode)
	}
	m.Kubernetes.Data.AccessMode = "ReadWriteOncePod"
	require.Equal(t, "ReadWriteOncePod", engineModel(&m).Kubernetes.Data.AccessMode)
	m.Kubernetes.Data = mobula.KubernetesData{Claim: "mine"}
	require.Empty(t, engineModel(&m).Kubernetes.Data.AccessMode)
}

func TestRevisionIsOfWhatNeedsNewEngines(t *testing.T) {
	gpus := 2
	base := func() *mobula.Model {
		m := mobula.NewModel("m")
		m.Engine.Env = map[string]string{"A": "1", "B": "2"}
		return &m
	}
	for name, tc := range map[string]struct {
		change func(m *mobula.Model)
		same   bool
	}{
		"timeouts":          {func(m *mobula.Model) { m.Engine.StartTimeout, m.Engine.StopTimeout = 1, 1 }, true},
		"replicas":          {func(m *mobula.Model) { m.Replicas = &mobula.Range{Min: 1, Max: 2} }, true},
		"rollout":           {func(m *mobula.Model) { m.Rollout.Surge = 7 }, true},
		"aliases":           {func(m *mobula.Model) { m.Aliases = []string{"x"} }, true},
		"source as default": {func(m *mobula.Model) { m.Source = "m" }, true},
		"source":            {func(m *mobula.Model) { m.Source = "n" }, false},
		"arguments":         {func(m *mobula.Model) { m.Engine.Args = []string{"--x"} }, false},
		"environment":       {func(m *mobula.Model) { m.Engine.Env["A"] = "2" }, false},
		"resources":         {func(m *mobula.Model) { m.Resources.GPUs = &gpus }, false},
		"the first LoRA":    {func(m *mobula.Model) { m.LoRAs = []mobula.LoRA{{Name: "l"}} }, false},
		"sleep":             {func(m *mobula.Model) { m.Scaling.Sleep = true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := base()
			tc.change(m)
			require.Equal(t, tc.same, revisionOf(base(), 0) == revisionOf(m, 0))
			require.NotEqual(t, revisionOf(m, 0), revisionOf(m, 1), "a restart is another revision")
			require.Len(t, revisionOf(m, 0), 10)
		})
	}
}
