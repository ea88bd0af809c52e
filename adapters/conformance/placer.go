package conformance

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

const (
	placerPatience = 60 * time.Second // a claim on nothing: it ends a test that hangs
	look           = 5 * time.Millisecond
	fleet          = "conformance"
)

// PlacerSubject is a Placer under test with a platform behind it that has room for at least six replicas of
// Model. Hooks may be nil: what needs them is not run, and the test's log says so.
type PlacerSubject struct {
	Placer adapters.Placer
	// Discoverer reports the endpoints of the Placer's replicas. Default: the Placer, if it is one.
	Discoverer adapters.Discoverer
	// Model is one whose engines get ready by themselves.
	Model mobula.Model
	// Impossible is one that fits on no host; nil when the platform takes everything.
	Impossible *mobula.Model
	// Platform is the section that a Configurer has been given for the fleets conformance and conformance-other, or takes for them;
	// Refused is one that it does not take while it has replicas. Neither is for a Placer that is no Configurer.
	Platform, Refused *mobula.Platform
	// Crash has the process of a replica die.
	Crash func(id string)
	// Lose makes the platform one that can't be asked, and one that can.
	Lose func(on bool)
	// Restart ends the Placer as a kill would, and gives a new one over the same durable state.
	Restart func() (adapters.Placer, adapters.Discoverer)
	// Running gives the ID of each engine that truly runs, in any order; an engine that runs twice is there twice.
	Running func() []string
}

// Placer tests the contract of adapters.Placer. subject makes a fresh PlacerSubject for each test; what it
// starts ends with t.
func Placer(t *testing.T, subject func(t testing.TB) PlacerSubject) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(t *testing.T, p *placerTest)
	}{
		{"apply makes replicas that get ready and serve", testApply},
		{"the same apply again changes nothing", testSameApply},
		{"scales up, down and to nothing", testScale},
		{"a marked replica drains, and takes requests again when the mark is gone", testDrain},
		{"marked replicas go first", testMarkedGoFirst},
		{"two revisions live side by side, and one rolls into the other", testRoll},
		{"two fleets do not see each other", testFleets},
		{"a replica that crashes starts again under its ID", testCrash},
		{"remove leaves nothing, and is fine twice", testRemove},
		{"deployments tell what was applied", testDeployments},
		{"logs of a replica, and of one that is unknown", testLogs},
		{"what fits nowhere is impossible, and changes nothing", testImpossible},
		{"a lost platform changes nothing", testLost},
		{"another start of ours takes up what runs", testRestart},
		{"apply from many sides at once", testAtOnce},
		{"hosts can be cordoned", testHosts},
		{"files reach a replica", testFetch},
		{"the same section again changes nothing, and one that is refused neither", testConfigure},
		{"changes are told", testChanged},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := subject(t)
			if s.Discoverer == nil {
				s.Discoverer, _ = s.Placer.(adapters.Discoverer)
			}
			test.run(t, &placerTest{PlacerSubject: s})
		})
	}
}

// placerTest is one test in progress.
type placerTest struct{ PlacerSubject }

func (p *placerTest) deployment(revision string, replicas int, drain ...string) adapters.Deployment {
	return adapters.Deployment{
		Key:   adapters.Key{Fleet: fleet, Model: p.Model.Name, Revision: revision},
		Model: p.Model, Replicas: replicas, Drain: drain,
	}
}

func (p *placerTest) apply(t *testing.T, d adapters.Deployment) {
	t.Helper()
	if err := p.Placer.Apply(t.Context(), d); err != nil {
		t.Fatalf("apply %v: %v", d.Key, err)
	}
}

// applyBack is apply on a platform that was lost and is back: what hangs on to the time before may say once more that it is not there.
func (p *placerTest) applyBack(t *testing.T, d adapters.Deployment) {
	t.Helper()
	var err error
	p.await(t, func() any { return err }, func() bool {
		if err = p.Placer.Apply(t.Context(), d); err != nil && !errors.Is(err, adapters.ErrUnavailable) {
			t.Fatalf("apply %v: %v", d.Key, err)
		}
		return err == nil
	})
}

// status gives the replicas that are not on their way out.
func (p *placerTest) status(t *testing.T, of string) []mobula.Replica {
	t.Helper()
	all, err := p.Placer.Status(t.Context(), of)
	for deadline := time.Now().Add(placerPatience); errors.Is(err, adapters.ErrUnavailable) && time.Now().Before(deadline); {
		time.Sleep(look) // it was lost, and comes back
		all, err = p.Placer.Status(t.Context(), of)
	}
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if !slices.IsSortedFunc(all, func(a, b mobula.Replica) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("status is not sorted by ID: %v", all)
	}
	for _, r := range all {
		checkReplica(t, &r)
	}
	return slices.DeleteFunc(all, func(r mobula.Replica) bool { return r.State == mobula.StateDraining })
}

func checkReplica(t *testing.T, r *mobula.Replica) {
	t.Helper()
	switch {
	case r.ID == "" || r.Model == "" || r.Revision == "":
		t.Errorf("replica without a name: %+v", r)
	case r.Since.IsZero():
		t.Errorf("replica %s is %s since never", r.ID, r.State)
	case r.State == mobula.StateGone:
		t.Errorf("replica %s is Gone and still told", r.ID)
	case r.State == mobula.StateReady && (r.URL == "" || len(r.Hosts) == 0):
		t.Errorf("replica %s is Ready without a URL or a host: %+v", r.ID, r)
	case r.Reason == "" && slices.Contains([]mobula.State{mobula.StatePending, mobula.StateSuspect, mobula.StateFailed}, r.State):
		t.Errorf("replica %s is %s without a reason", r.ID, r.State)
	}
}

// ready waits until a revision has n replicas, all Ready and no more running, and gives their IDs.
func (p *placerTest) ready(t *testing.T, revision string, n int) []string {
	t.Helper()
	var ids []string
	p.await(t, func() any { return p.status(t, fleet) }, func() bool {
		ids = nil
		for _, r := range p.status(t, fleet) {
			if r.Revision != revision {
				continue
			}
			if r.State != mobula.StateReady {
				return false
			}
			ids = append(ids, r.ID)
		}
		return len(ids) == n
	})
	return ids
}

// runs waits until these engines run, each once, and no other.
func (p *placerTest) runs(t *testing.T, ids ...string) {
	t.Helper()
	if p.Running == nil {
		t.Log("not run: nothing tells what truly runs")
		return
	}
	want := slices.Sorted(slices.Values(ids))
	p.await(t, func() any { return gocmp.Diff(want, p.Running()) }, func() bool {
		return slices.Equal(want, slices.Sorted(slices.Values(p.Running())))
	})
}

// settles waits until a revision has n replicas, all Ready, and no other engine runs. Which ones they are may change until then:
// Kubernetes chooses itself what it takes away, and may take another one than was told.
func (p *placerTest) settles(t *testing.T, revision string, n int) {
	t.Helper()
	ids := p.ready(t, revision, n)
	if p.Running == nil {
		t.Log("not run: nothing tells what truly runs")
		return
	}
	p.await(t, func() any { return gocmp.Diff(ids, p.Running()) }, func() bool {
		ids = p.ready(t, revision, n)
		return slices.Equal(ids, slices.Sorted(slices.Values(p.Running())))
	})
}

// serves waits until the endpoints are these: those whose name ends in "!" drain.
func (p *placerTest) serves(t *testing.T, want ...string) {
	t.Helper()
	if p.Discoverer == nil {
		t.Log("not run: nothing discovers endpoints")
		return
	}
	want = slices.Sorted(slices.Values(want))
	r := start(t, p.Discoverer, 0)
	defer r.stop(t)
	got := []string{}
	for deadline := time.Now().Add(placerPatience); time.Now().Before(deadline); {
		select {
		case state := <-r.up:
			got = got[:0]
			for _, e := range state {
				if e.URL == "" {
					t.Errorf("endpoint %s has no URL", e.ID)
				}
				if e.Draining {
					e.ID += "!"
				}
				got = append(got, e.ID)
			}
			slices.Sort(got)
			if slices.Equal(got, want) {
				return
			}
		case <-time.After(look):
		}
	}
	t.Fatalf("endpoints (-want +got):\n%s", gocmp.Diff(want, got))
}

// await waits until ok. now says how things are, for the message.
func (p *placerTest) await(t *testing.T, now func() any, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(placerPatience); !ok(); time.Sleep(look) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come; now:\n%+v", now())
		}
	}
}

func testApply(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	p.serves(t, ids...)
	p.runs(t, ids...)
}

func testSameApply(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 3))
	first := p.status(t, fleet)
	for range 3 {
		p.apply(t, p.deployment("r1", 3))
	}
	ids := p.ready(t, "r1", 3)
	p.apply(t, p.deployment("r1", 3))
	if got := p.ready(t, "r1", 3); !slices.Equal(ids, got) || len(first) != 3 || first[0].ID != ids[0] {
		t.Errorf("replicas were %v, then %v, then %v", first, ids, got)
	}
	p.runs(t, ids...)
}

func testScale(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 1))
	one := p.ready(t, "r1", 1)
	p.apply(t, p.deployment("r1", 4))
	four := p.ready(t, "r1", 4)
	if !slices.Contains(four, one[0]) {
		t.Errorf("scaling up replaced %v by %v", one, four)
	}
	p.apply(t, p.deployment("r1", 1))
	p.settles(t, "r1", 1)
	p.apply(t, p.deployment("r1", 0))
	p.ready(t, "r1", 0)
	p.serves(t)
	p.runs(t)
	p.apply(t, p.deployment("r1", 1))
	again := p.ready(t, "r1", 1)
	if slices.Contains(four, again[0]) {
		t.Errorf("%s is a new replica with an old ID", again[0])
	}
}

func testDrain(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	p.apply(t, p.deployment("r1", 2, ids[1]))
	p.serves(t, ids[0], ids[1]+"!")
	p.ready(t, "r1", 2) // a mark is no state
	p.apply(t, p.deployment("r1", 2))
	p.serves(t, ids...)
	p.runs(t, ids...)
}

func testMarkedGoFirst(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 4))
	ids := p.ready(t, "r1", 4)
	p.apply(t, p.deployment("r1", 4, ids[0], ids[2]))
	p.apply(t, p.deployment("r1", 2, ids[0], ids[2]))
	p.serves(t, ids[1], ids[3])
	p.runs(t, ids[1], ids[3])
}

func testRoll(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 2))
	before := p.ready(t, "r1", 2)
	p.apply(t, p.deployment("r2", 1))
	p.apply(t, p.deployment("r1", 2, before[0]))
	after := p.ready(t, "r2", 1)
	p.serves(t, before[0]+"!", before[1], after[0])
	p.apply(t, p.deployment("r1", 1, before[0]))
	p.apply(t, p.deployment("r2", 2))
	after = p.ready(t, "r2", 2)
	p.serves(t, before[1], after[0], after[1])
	if err := p.Placer.Remove(t.Context(), p.deployment("r1", 0).Key); err != nil {
		t.Fatal(err)
	}
	p.serves(t, after...)
	p.runs(t, after...)
}

func testFleets(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r1", 1))
	other := p.deployment("r1", 1)
	other.Fleet = fleet + "-other"
	p.apply(t, other)
	ids := p.ready(t, "r1", 1)
	if got := p.status(t, other.Fleet); len(got) != 1 || got[0].ID == ids[0] {
		t.Errorf("the other fleet has %v, ours %v", got, ids)
	}
	if err := p.Placer.Remove(t.Context(), other.Key); err != nil {
		t.Fatal(err)
	}
	p.runs(t, ids...)
}

func testCrash(t *testing.T, p *placerTest) {
	t.Helper()
	if p.Crash == nil {
		t.Log("not run: nothing crashes a replica")
		return
	}
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	for n := 1; n <= 2; n++ {
		p.Crash(ids[0])
		p.await(t, func() any { return p.status(t, fleet) }, func() bool {
			return slices.ContainsFunc(p.status(t, fleet), func(r mobula.Replica) bool {
				return r.ID == ids[0] && r.Restarts >= n && r.State == mobula.StateReady
			})
		})
	}
	p.serves(t, ids...)
	p.runs(t, ids...)
}

func testRemove(t *testing.T, p *placerTest) {
	t.Helper()
	d := p.deployment("r1", 2)
	if err := p.Placer.Remove(t.Context(), d.Key); err != nil {
		t.Fatalf("remove of what never was: %v", err)
	}
	p.apply(t, d)
	p.ready(t, "r1", 2)
	for range 2 {
		if err := p.Placer.Remove(t.Context(), d.Key); err != nil {
			t.Fatal(err)
		}
	}
	p.serves(t)
	p.runs(t)
	p.await(t, func() any { return "replicas are left" }, func() bool {
		all, err := p.Placer.Status(t.Context(), fleet)
		return err == nil && len(all) == 0
	})
	if all, err := p.Placer.Deployments(t.Context(), fleet); err != nil || len(all) != 0 {
		t.Errorf("deployments %v, error %v", all, err)
	}
}

func testDeployments(t *testing.T, p *placerTest) {
	t.Helper()
	p.apply(t, p.deployment("r2", 1))
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	want := []adapters.Deployment{p.deployment("r1", 2, ids[0]), p.deployment("r2", 0)}
	for _, d := range want {
		p.apply(t, d)
	}
	got, err := p.Placer.Deployments(t.Context(), fleet)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got { // how a model is stored is no business of ours: it goes with the revision
		got[i].Model, want[i].Model = mobula.Model{}, mobula.Model{}
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("deployments (-want +got):\n%s", d)
	}
}

func testLogs(t *testing.T, p *placerTest) {
	t.Helper()
	if _, err := p.Placer.Logs(t.Context(), "nobody", 10, false); !errors.Is(err, adapters.ErrUnknownReplica) {
		t.Errorf("logs of nobody: %v, want ErrUnknownReplica", err)
	}
	p.apply(t, p.deployment("r1", 1))
	id := p.ready(t, "r1", 1)[0]
	log, err := p.Placer.Logs(t.Context(), id, 10, false)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(log)
	if err := errors.Join(err, log.Close()); err != nil || len(text) == 0 {
		t.Errorf("log %q, error %v", text, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	follow, err := p.Placer.Logs(ctx, id, 10, true)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	if _, err := follow.Read(make([]byte, 1)); err != nil {
		t.Errorf("following a log: %v", err)
	}
	cancel()
	_, _ = io.Copy(io.Discard, follow) // it has to end
	_ = follow.Close()
}

func testImpossible(t *testing.T, p *placerTest) {
	t.Helper()
	if p.Impossible == nil {
		t.Log("not run: nothing is impossible")
		return
	}
	p.apply(t, p.deployment("r1", 1))
	ids := p.ready(t, "r1", 1)
	d := p.deployment("r1", 1)
	d.Model, d.Key.Model = *p.Impossible, p.Impossible.Name
	if err := p.Placer.Apply(t.Context(), d); !errors.Is(err, adapters.ErrImpossible) {
		t.Errorf("apply: %v, want ErrImpossible", err)
	}
	if c, ok := p.Placer.(adapters.Checker); ok {
		if err := c.Check(t.Context(), d); !errors.Is(err, adapters.ErrImpossible) {
			t.Errorf("check: %v, want ErrImpossible", err)
		}
		if err := c.Check(t.Context(), p.deployment("r9", 1)); err != nil {
			t.Errorf("check of what is possible: %v", err)
		}
	}
	if got := p.ready(t, "r1", 1); !slices.Equal(ids, got) {
		t.Errorf("replicas were %v, are %v", ids, got)
	}
	if all, err := p.Placer.Deployments(t.Context(), fleet); err != nil || len(all) != 1 {
		t.Errorf("deployments %v, error %v", all, err)
	}
}

func testLost(t *testing.T, p *placerTest) {
	t.Helper()
	if p.Lose == nil {
		t.Log("not run: nothing makes the platform unavailable")
		return
	}
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	p.serves(t, ids...)
	p.Lose(true)
	if err := p.Placer.Apply(t.Context(), p.deployment("r1", 4, ids[0])); !errors.Is(err, adapters.ErrUnavailable) {
		t.Errorf("apply: %v, want ErrUnavailable", err)
	}
	if err := p.Placer.Remove(t.Context(), p.deployment("r1", 0).Key); !errors.Is(err, adapters.ErrUnavailable) {
		t.Errorf("remove: %v, want ErrUnavailable", err)
	}
	if _, err := p.Placer.Status(t.Context(), fleet); err != nil && !errors.Is(err, adapters.ErrUnavailable) {
		t.Errorf("status: %v, want ErrUnavailable or none", err)
	}
	p.serves(t, ids...)
	p.runs(t, ids...)
	p.Lose(false)
	if got := p.ready(t, "r1", 2); !slices.Equal(ids, got) {
		t.Errorf("replicas were %v, are %v", ids, got)
	}
	p.applyBack(t, p.deployment("r1", 3))
	p.settles(t, "r1", 3)
}

func testRestart(t *testing.T, p *placerTest) {
	t.Helper()
	if p.Restart == nil {
		t.Log("not run: nothing starts the placer again")
		return
	}
	p.apply(t, p.deployment("r1", 3))
	ids := p.ready(t, "r1", 3)
	p.apply(t, p.deployment("r1", 3, ids[1]))
	p.serves(t, ids[0], ids[1]+"!", ids[2])
	p.Placer, p.Discoverer = p.Restart()
	p.serves(t, ids[0], ids[1]+"!", ids[2])
	if got := p.ready(t, "r1", 3); !slices.Equal(ids, got) {
		t.Errorf("replicas were %v, are %v", ids, got)
	}
	p.runs(t, ids...)
	p.apply(t, p.deployment("r1", 4))
	p.Placer, p.Discoverer = p.Restart() // in the middle of it
	p.settles(t, "r1", 4)
}

func testAtOnce(t *testing.T, p *placerTest) {
	t.Helper()
	errs := make(chan error)
	const sides = 8
	for i := range sides {
		go func() { errs <- p.Placer.Apply(t.Context(), p.deployment("r1", 1+i%3)) }()
	}
	for range sides {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	p.apply(t, p.deployment("r1", 2))
	p.settles(t, "r1", 2)
}

func testHosts(t *testing.T, p *placerTest) {
	t.Helper()
	hosts, ok := p.Placer.(adapters.Hosts)
	if !ok {
		t.Log("not run: the platform has no hosts to look at")
		return
	}
	if err := hosts.Cordon(t.Context(), "nobody", true); !errors.Is(err, adapters.ErrUnknownHost) {
		t.Errorf("cordon of nobody: %v, want ErrUnknownHost", err)
	}
	if err := hosts.Forget(t.Context(), "nobody"); !errors.Is(err, adapters.ErrUnknownHost) {
		t.Errorf("forget of nobody: %v, want ErrUnknownHost", err)
	}
	all, err := hosts.Hosts(t.Context())
	if err != nil || len(all) < 2 {
		t.Fatalf("want two hosts at least: %v, error %v", all, err)
	}
	cordoned := all[0].Name
	for range 2 {
		if err := hosts.Cordon(t.Context(), cordoned, true); err != nil {
			t.Fatal(err)
		}
	}
	p.apply(t, p.deployment("r1", 2))
	p.ready(t, "r1", 2)
	for _, r := range p.status(t, fleet) {
		if slices.Contains(r.Hosts, cordoned) {
			t.Errorf("replica %s is on the cordoned host %s", r.ID, cordoned)
		}
	}
	if all, err = hosts.Hosts(t.Context()); err != nil || !all[0].Cordoned {
		t.Errorf("hosts %v, error %v", all, err)
	}
	if err := hosts.Cordon(t.Context(), cordoned, false); err != nil {
		t.Fatal(err)
	}
}

func testFetch(t *testing.T, p *placerTest) {
	t.Helper()
	f, ok := p.Placer.(adapters.Fetcher)
	if !ok {
		t.Log("not run: the platform fetches nothing")
		return
	}
	if _, err := f.Fetch(t.Context(), "nobody", "/somewhere"); !errors.Is(err, adapters.ErrUnknownReplica) {
		t.Errorf("fetch for nobody: %v, want ErrUnknownReplica", err)
	}
	p.apply(t, p.deployment("r1", 1))
	id := p.ready(t, "r1", 1)[0]
	path, err := f.Fetch(t.Context(), id, t.TempDir())
	if err != nil || path == "" {
		t.Errorf("fetch: path %q, error %v", path, err)
	}
}

func testConfigure(t *testing.T, p *placerTest) {
	t.Helper()
	c, ok := p.Placer.(adapters.Configurer)
	if !ok || p.Platform == nil {
		t.Log("not run: the platform takes no settings")
		return
	}
	configure := func(section *mobula.Platform, dry bool) error {
		return c.Configure(t.Context(), fleet, *section, dry)
	}
	stays := func(ids []string) {
		t.Helper()
		if got := p.ready(t, "r1", len(ids)); !slices.Equal(ids, got) {
			t.Errorf("replicas were %v, are %v", ids, got)
		}
		p.serves(t, ids...)
		p.runs(t, ids...)
	}
	if err := configure(p.Platform, false); err != nil {
		t.Fatalf("configure: %v", err)
	}
	p.apply(t, p.deployment("r1", 2))
	ids := p.ready(t, "r1", 2)
	for _, dry := range []bool{true, false, false} {
		if err := configure(p.Platform, dry); err != nil {
			t.Errorf("the same section, dry %t: %v", dry, err)
		}
		stays(ids)
	}
	if p.Refused != nil {
		for _, dry := range []bool{true, false} {
			if err := configure(p.Refused, dry); err == nil || errors.Is(err, adapters.ErrUnavailable) {
				t.Errorf("a section that is to be refused, dry %t: %v", dry, err)
			}
			stays(ids)
		}
	}
	if p.Lose != nil {
		p.Lose(true)
		for _, dry := range []bool{true, false} {
			if err := configure(p.Platform, dry); err != nil && !errors.Is(err, adapters.ErrUnavailable) {
				t.Errorf("while the platform is lost, dry %t: %v, want ErrUnavailable or none", dry, err)
			}
		}
		p.serves(t, ids...)
		p.runs(t, ids...)
		p.Lose(false)
	}
	stays(ids)
	p.applyBack(t, p.deployment("r1", 3))
	p.settles(t, "r1", 3)
}

func testChanged(t *testing.T, p *placerTest) {
	t.Helper()
	w, ok := p.Placer.(adapters.Watcher)
	if !ok {
		t.Log("not run: the platform tells of no change")
		return
	}
	changed := w.Changed()
	p.apply(t, p.deployment("r1", 1))
	for deadline := time.After(placerPatience); ; changed = w.Changed() {
		if all := p.status(t, fleet); len(all) == 1 && all[0].State == mobula.StateReady {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("Status became Ready without a word, or never")
		}
	}
}
