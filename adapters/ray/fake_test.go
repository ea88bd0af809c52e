package ray

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/raycluster"
)

// fakeRay is an API with a small Ray behind it, for what package raytest can't do: it fails where a test wants, and it can
// be looked at while it is asked nothing. Each State makes everything get on by one step.
type fakeRay struct {
	mu      sync.Mutex
	session string
	nodes   []Node
	actors  []*fakeActor
	dead    []Actor // the last one first
	groups  []*fakeGroup
	jobs    []*fakeJob
	serial  int
	pkgs    map[string]bool

	fail        func(method string) error // before a call has an effect
	lose        func(method string) error // after it
	hold        bool                      // jobs stay PENDING
	stuck       bool                      // actors stay PENDING_CREATION
	fuse        int                       // a launcher dies after so many starts or stops; 0 for never
	failure     map[string]string         // by replica: its engine can't be started, for this reason
	broken      string                    // launchers print this and fail
	partial     string
	submissions int
}

type fakeActor struct {
	Actor
	start    raycluster.Start
	rank     int
	gen      int
	job      string // that it ends with, empty for a detached one
	stranger bool
}

type fakeGroup struct {
	Group
	need need
	job  string
}

type fakeJob struct {
	Job
	order raycluster.Order
	log   string
}

func newFakeRay(nodes ...Node) *fakeRay {
	if nodes == nil {
		for i := range 2 {
			nodes = append(nodes, node(fmt.Sprintf("10.77.0.%d", i+1), 16, 8))
		}
	}
	return &fakeRay{session: "session_1", nodes: nodes, pkgs: map[string]bool{}, failure: map[string]string{}}
}

func node(ip string, cpus, gpus float64) Node {
	id := strings.Repeat(fmt.Sprintf("%x", ip), 4)
	n := Node{ID: id, IP: ip, Name: ip, Alive: true, Resources: map[string]float64{"CPU": cpus, nodePrefix + ip: 1}, Labels: map[string]string{nodeIDLabel: id}}
	if gpus > 0 {
		n.Resources["GPU"] = gpus
	}
	return n
}

// call begins each method of API: under the lock, unless it fails.
func (f *fakeRay) call(method string) (func() error, error) {
	f.mu.Lock()
	if f.fail != nil {
		if err := f.fail(method); err != nil {
			f.mu.Unlock()
			return nil, err
		}
	}
	return func() error {
		defer f.mu.Unlock()
		if f.lose != nil {
			return f.lose(method)
		}
		return nil
	}, nil
}

func (f *fakeRay) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeRay) Version(context.Context) (Version, error) {
	done, err := f.call("Version")
	if err != nil {
		return Version{}, err
	}
	v := Version{Ray: "2.60.0", Session: f.session}
	return v, done()
}

func (f *fakeRay) State(_ context.Context, namespace string) (*State, error) {
	done, err := f.call("State")
	if err != nil {
		return nil, err
	}
	f.step()
	s := &State{At: time.Now(), Nodes: slices.Clone(f.nodes), Partial: f.partial}
	for _, a := range f.actors {
		s.Actors = append(s.Actors, a.Actor)
	}
	for _, g := range f.groups {
		c := g.Group
		c.Nodes = slices.Clone(g.Nodes)
		s.Groups = append(s.Groups, c)
	}
	_ = namespace
	return s, done()
}

func (f *fakeRay) Dead(context.Context, string) ([]Actor, error) {
	done, err := f.call("Dead")
	if err != nil {
		return nil, err
	}
	all := slices.Clone(f.dead)
	return all, done()
}

func (f *fakeRay) Upload(_ context.Context, name string, _ []byte) error {
	done, err := f.call("Upload")
	if err != nil {
		return err
	}
	f.pkgs[name] = true
	return done()
}

func (f *fakeRay) Submit(_ context.Context, s Submission) error {
	done, err := f.call("Submit")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(f.jobs, func(j *fakeJob) bool { return j.ID == s.ID }) {
		return done()
	}
	f.submissions++
	j := &fakeJob{Job: Job{ID: s.ID, Status: "PENDING", JobID: f.id("job"), Metadata: s.Metadata, Started: time.Now()}}
	text := s.RuntimeEnv["env_vars"].(map[string]string)[raycluster.OrderVariable]
	if err := json.Unmarshal([]byte(text), &j.order); err != nil || len(text) > raycluster.MaxOrderBytes {
		j.Status, j.Message = "FAILED", fmt.Sprint("bad order: ", err)
	}
	f.jobs = append(f.jobs, j)
	return done()
}

func (f *fakeRay) Jobs(_ context.Context, prefix string) ([]Job, error) {
	done, err := f.call("Jobs")
	if err != nil {
		return nil, err
	}
	var all []Job
	for _, j := range f.jobs {
		if strings.HasPrefix(j.ID, prefix) {
			all = append(all, j.Job)
		}
	}
	return all, done()
}

func (f *fakeRay) JobLogs(_ context.Context, id string) (string, error) {
	done, err := f.call("JobLogs")
	if err != nil {
		return "", err
	}
	log := ""
	for _, j := range f.jobs {
		if j.ID == id {
			log = j.log
		}
	}
	return log, done()
}

func (f *fakeRay) StopJob(_ context.Context, id string) error {
	done, err := f.call("StopJob")
	if err != nil {
		return err
	}
	for _, j := range f.jobs {
		if j.ID == id && !j.Over() {
			j.Status = "STOPPED"
			f.endJob(j)
		}
	}
	return done()
}

func (f *fakeRay) DeleteJob(_ context.Context, id string) error {
	done, err := f.call("DeleteJob")
	if err != nil {
		return err
	}
	f.jobs = slices.DeleteFunc(f.jobs, func(j *fakeJob) bool { return j.ID == id && j.Over() })
	return done()
}

func (f *fakeRay) Logs(ctx context.Context, actor string, _ int, follow bool) (io.ReadCloser, error) {
	done, err := f.call("Logs")
	if err != nil {
		return nil, err
	}
	log := io.Reader(strings.NewReader("log of " + actor + "\n"))
	ctx, cancel := context.WithCancel(ctx)
	if follow {
		log = io.MultiReader(log, untilDone{ctx})
	}
	return fakeLog{log, cancel}, done()
}

// fakeLog ends when it is closed, as the body of an answer does.
type fakeLog struct {
	io.Reader
	cancel context.CancelFunc
}

func (l fakeLog) Close() error { l.cancel(); return nil }

type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, io.EOF
}

func (f *fakeRay) Serve(context.Context) (*ServeState, error) { return &ServeState{}, nil }

func (f *fakeRay) DeployServe(context.Context, json.RawMessage) error { return errors.New("not here") }

func (f *fakeRay) id(kind string) string {
	f.serial++
	return fmt.Sprintf("%s%08d", kind, f.serial)
}

// step has everything get on a little.
func (f *fakeRay) step() {
	for _, j := range f.jobs {
		switch {
		case f.hold || j.Over():
		case j.Status == "PENDING":
			j.Status = "RUNNING"
		case j.order.Detached:
			f.launch(j)
		case len(f.of(j.order.Start[0].Name)) == 0:
			f.launch(j)
			if j.Status == "SUCCEEDED" {
				j.Status = "RUNNING"
			}
		}
	}
	for _, g := range f.groups {
		f.place(g)
	}
	for _, a := range slices.Clone(f.actors) {
		f.advance(a)
	}
}

// launch is what the launcher does.
func (f *fakeRay) launch(j *fakeJob) {
	if f.broken != "" {
		j.Status, j.log, j.Message = "FAILED", f.broken, "Job entrypoint command failed with exit code 1"
		return
	}
	steps := f.fuse
	burnt := func() bool {
		if steps == 0 {
			return false
		}
		steps--
		if steps > 0 {
			return false
		}
		f.fuse, j.Status, j.log = 0, "FAILED", "Killed"
		f.endJob(j)
		return true
	}
	j.Status = "SUCCEEDED"
	job := ""
	if !j.order.Detached {
		job = j.ID
	}
	for _, s := range j.order.Start {
		if slices.ContainsFunc(f.actors, func(a *fakeActor) bool { return a.Name == s.Name && a.stranger }) {
			j.Status = "FAILED"
			j.log += "name taken: " + s.Name + " is an actor of class Other\n"
			continue
		}
		g := f.group(s.Name)
		if g == nil {
			n := need{parts: len(s.Argv), bundle: s.Bundle, labels: s.Labels}
			g = &fakeGroup{Group: Group{ID: f.id("group"), Name: s.Name, State: "PENDING", Nodes: make([]string, n.parts), Bundle: s.Bundle, Labels: maps.Clone(s.Labels)}, need: n, job: job}
			if g.Labels == nil {
				g.Labels = map[string]string{}
			}
			f.groups = append(f.groups, g)
			if burnt() {
				return
			}
		}
		for rank := range s.Argv {
			name := raycluster.PartName(s.Name, rank)
			if slices.ContainsFunc(f.actors, func(a *fakeActor) bool { return a.Name == name }) {
				continue
			}
			f.actors = append(f.actors, &fakeActor{
				Actor: Actor{ID: f.id("actor"), Class: raycluster.ActorClass, Name: name, State: "PENDING_CREATION", JobID: j.JobID, GroupID: g.ID},
				start: s, rank: rank, job: job,
			})
			if burnt() {
				return
			}
		}
	}
	for _, s := range j.order.Stop {
		for _, a := range f.of(s.Name) {
			f.kill(a, "killed")
		}
		f.groups = slices.DeleteFunc(f.groups, func(g *fakeGroup) bool { return g.Name == s.Name })
		if burnt() {
			return
		}
	}
}

// of gives the actors of all parts.
func (f *fakeRay) of(name string) (all []*fakeActor) {
	for _, a := range f.actors {
		if (a.Name == name || strings.HasPrefix(a.Name, name+".")) && !a.stranger {
			all = append(all, a)
		}
	}
	return all
}

func (f *fakeRay) group(name string) *fakeGroup {
	for _, g := range f.groups {
		if g.Name == name {
			return g
		}
	}
	return nil
}

func (f *fakeRay) kill(a *fakeActor, why string) {
	f.actors = slices.DeleteFunc(f.actors, func(o *fakeActor) bool { return o == a })
	a.State, a.Death = "DEAD", why
	f.dead = slices.Insert(f.dead, 0, a.Actor)
	if a.job != "" {
		for _, j := range f.jobs {
			if j.ID == a.job && !j.Over() {
				j.Status, j.log = "FAILED", "failed "+a.Name+": "+why
				f.endJob(j)
			}
		}
	}
}

// endJob ends what is not detached.
func (f *fakeRay) endJob(j *fakeJob) {
	for _, a := range slices.Clone(f.actors) {
		if a.job == j.ID {
			f.kill(a, "its job has ended")
		}
	}
	f.groups = slices.DeleteFunc(f.groups, func(g *fakeGroup) bool { return g.job == j.ID })
}

// place finds nodes for a group.
func (f *fakeRay) place(g *fakeGroup) {
	if g.State == "CREATED" {
		return
	}
	nodes := slices.Clone(g.Nodes)
	possible := 0
	for i := range nodes {
		for n := range f.nodes {
			node := &f.nodes[n]
			if what, _ := g.need.lacks(node); !node.Alive || what != "" {
				continue
			}
			possible++
			if nodes[i] == "" && !slices.Contains(nodes, node.ID) && f.free(node, g.need.bundle) {
				nodes[i] = node.ID
			}
		}
	}
	if slices.Contains(nodes, "") {
		g.Scheduling = "NO_RESOURCES"
		if possible == 0 {
			g.Scheduling = "INFEASIBLE"
		}
		return
	}
	g.Nodes, g.State, g.Scheduling = nodes, "CREATED", "FINISHED"
}

func (f *fakeRay) free(n *Node, bundle map[string]float64) bool {
	left := maps.Clone(n.Resources)
	for _, g := range f.groups {
		for _, id := range g.Nodes {
			if id == n.ID {
				for name, v := range g.need.bundle {
					left[name] -= v
				}
			}
		}
	}
	for name, v := range bundle {
		if left[name] < v {
			return false
		}
	}
	return true
}

func (f *fakeRay) advance(a *fakeActor) {
	g := f.group(raycluster.ActorName(ownerOf(a.Name), replicaOf(a.Name)))
	switch {
	case a.stranger || a.State == "ALIVE" || f.stuck:
		return
	case g == nil:
		f.kill(a, "placement group removed")
		return
	case g.State != "CREATED":
		return
	case f.failure[a.start.Replica] != "":
		f.kill(a, raycluster.FailureMark+f.failure[a.start.Replica])
		return
	}
	a.State, a.NodeID, a.PID = "ALIVE", g.Nodes[a.rank], 1000+f.serial
	f.serial++
	p := raycluster.Publication{
		Version: raycluster.OrderVersion, Fleet: a.start.Fleet, Model: a.start.Model, Revision: a.start.Revision, Replica: a.start.Replica,
		Rank: a.rank, Generation: a.gen, PID: a.PID, Devices: "0",
	}
	if a.rank == 0 {
		p.URL = fmt.Sprintf("http://10.77.0.1:%d", 20000+a.PID)
	}
	text, _ := json.Marshal(p)
	a.Repr = "mobula " + string(text)
}

func ownerOf(name string) string   { owner, _, _, _ := raycluster.ParseName(name); return owner }
func replicaOf(name string) string { _, id, _, _ := raycluster.ParseName(name); return id }

// crash has a replica's engine die.
func (f *fakeRay) crash(replica string) {
	f.set(func() {
		for _, a := range slices.Clone(f.actors) {
			switch {
			case replicaOf(a.Name) != replica || a.stranger || a.State != "ALIVE":
			case a.job != "":
				f.kill(a, "engine exited with code 1")
				return
			default:
				a.State, a.Death = "RESTARTING", "engine exited with code 1"
				a.Restarts++
				a.gen++
			}
		}
	})
}

// loseNode has a node die with all that is on it.
func (f *fakeRay) loseNode(ip string) {
	f.set(func() {
		for i := range f.nodes {
			if f.nodes[i].IP != ip {
				continue
			}
			f.nodes[i].Alive, f.nodes[i].Died = false, "missing too many heartbeats"
			for _, g := range f.groups {
				for b, id := range g.Nodes {
					if id == f.nodes[i].ID {
						g.Nodes[b], g.State, g.Scheduling = "", "RESCHEDULING", "FAILED_TO_COMMIT_RESOURCES"
					}
				}
			}
			for _, a := range f.actors {
				if a.NodeID == f.nodes[i].ID {
					a.State, a.gen = "RESTARTING", a.gen+1
					a.Restarts++
				}
			}
		}
	})
}

// restart is another session: nothing is left.
func (f *fakeRay) restart() {
	f.set(func() {
		f.session += "x"
		f.actors = slices.DeleteFunc(f.actors, func(a *fakeActor) bool { return !a.stranger })
		f.groups, f.jobs, f.dead = nil, nil, nil
	})
}

// submitted is how many orders Ray was given.
func (f *fakeRay) submitted() (n int) {
	f.set(func() { n = f.submissions })
	return n
}

// down makes it one that can't be asked.
func (f *fakeRay) down(on bool) {
	f.set(func() {
		f.fail = nil
		if on {
			f.fail = func(string) error { return fmt.Errorf("connection refused: %w", adapters.ErrUnavailable) }
		}
	})
}

// running gives the replica of each engine that runs: that of part 0.
func (f *fakeRay) running() (all []string) {
	f.set(func() {
		for _, a := range f.actors {
			if a.State == "ALIVE" && a.rank == 0 && !a.stranger {
				all = append(all, replicaOf(a.Name))
			}
		}
	})
	return all
}

// left says what of ours there is.
func (f *fakeRay) left() (all []string) {
	f.set(func() {
		for _, a := range f.actors {
			if !a.stranger {
				all = append(all, "actor "+a.Name)
			}
		}
		for _, g := range f.groups {
			all = append(all, "group "+g.Name)
		}
		for _, j := range f.jobs {
			all = append(all, "job "+j.ID)
		}
	})
	return all
}

var _ API = (*fakeRay)(nil)
