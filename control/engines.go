package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control/lora"
)

const (
	sleepLevel     = 1               // weights go to the host's memory, the KV cache is dropped
	sleepTimeout   = 2 * time.Minute // of a sleep or a wake
	maxSleepTries  = 3               // before the replica is given up
	loadTimeout    = 10 * time.Minute
	fetchTimeout   = 2 * time.Hour // a download
	cardsEvery     = 10 * time.Second
	maxCardTries   = 3 // before LoRAs go elsewhere
	maxEngineCalls = 32
)

// engineCalls makes the calls to engines that take long, each in a goroutine of its own: sleep, wake, LoRAs.
// Its fields are guarded by Control.mu, but for the WaitGroup.
type engineCalls struct {
	c     *Control
	wg    sync.WaitGroup
	busy  map[string]bool    // calls that run, by what they do
	pause map[string]backoff // those that failed
	cards map[string]cards   // by replica
	// status is how each model's LoRAs fare.
	status map[string][]LoRAStatus
}

// cards is what an engine has loaded.
type cards struct {
	restarts int       // of its process when it was asked
	url      string    // where it was asked
	at       time.Time // zero: to be asked again
	changed  time.Time // by a call of ours; what was asked before is old
	loras    []string  // sorted, never changed in place
}

// of tells whether they are of the process that a replica has now.
func (c *cards) of(r *mobula.Replica) bool { return c.restarts == r.Restarts && c.url == r.URL }

func newEngineCalls(c *Control) *engineCalls {
	return &engineCalls{c: c, busy: map[string]bool{}, pause: map[string]backoff{}, cards: map[string]cards{}, status: map[string][]LoRAStatus{}}
}

// wait waits for all calls, which end with Run's ctx.
func (e *engineCalls) wait() { e.wg.Wait() }

// start runs a call in the background unless it runs already, has failed lately, or there are too many. f gives what is to be
// done with the result while c.mu is held. c.mu is held.
func (e *engineCalls) start(ctx context.Context, key string, timeout time.Duration, f func(ctx context.Context) error, done func(err error, tries int)) {
	if e.busy[key] || len(e.busy) >= maxEngineCalls || e.c.o.Now().Before(e.pause[key].until) {
		return
	}
	e.busy[key] = true
	e.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		err := f(ctx)
		e.c.mu.Lock()
		defer e.c.mu.Unlock()
		delete(e.busy, key)
		if errors.Is(err, context.Canceled) { // we stop
			return
		}
		tries := 0
		if err == nil {
			delete(e.pause, key)
		} else {
			e.pause[key] = e.pause[key].next(e.c.o.Now())
			tries = e.pause[key].tries
		}
		done(err, tries)
		e.c.wakeUp()
	})
}

// endpointOf gives where a replica's engine answers.
func endpointOf(r *mobula.Replica) mobula.Endpoint { return mobula.Endpoint{ID: r.ID, URL: r.URL} }

// begin starts what a decision wants of engines.
func (e *engineCalls) begin(ctx context.Context, d *decision) {
	if e.c.o.Engines == nil {
		return
	}
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	for _, r := range d.sleep {
		e.start(ctx, "sleep/"+r.ID, sleepTimeout, func(ctx context.Context) error {
			return e.c.o.Engines.Sleep(ctx, endpointOf(r), sleepLevel)
		}, func(err error, tries int) { e.slept(r, err, tries) })
	}
	for _, r := range d.wake {
		e.start(ctx, "wake/"+r.ID, sleepTimeout, func(ctx context.Context) error {
			return e.c.o.Engines.Wake(ctx, endpointOf(r))
		}, func(err error, tries int) { e.woke(r, err, tries) })
	}
	for _, r := range d.ask {
		e.start(ctx, "cards/"+r.ID, callTimeout, func(ctx context.Context) error { return e.read(ctx, r) }, func(error, int) {})
	}
	for _, a := range d.loras {
		e.act(ctx, d.name, a)
	}
}

// slept remembers that a replica sleeps, or gives up having it sleep. c.mu is held.
func (e *engineCalls) slept(r *mobula.Replica, err error, tries int) {
	e.editMark(r, func(m *memory, mk mark, d *draft) {
		switch {
		case err == nil:
			mk.Asleep, mk.Restarts = true, r.Restarts
			d.notef("replica/"+r.ID, "Asleep", "it is not needed and sleeps")
		case tries >= maxSleepTries:
			mk.Sleep = false
			d.warnf("replica/"+r.ID, "SleepFailed", "it stops in place of sleeping: %v", err)
		default:
			return
		}
		m.Marks[r.ID] = mk
	})
}

// woke remembers that a replica is back, or gives it up. c.mu is held.
func (e *engineCalls) woke(r *mobula.Replica, err error, tries int) {
	e.editMark(r, func(m *memory, mk mark, d *draft) {
		switch {
		case err == nil:
			delete(m.Marks, r.ID)
			d.notef("replica/"+r.ID, "Awake", "it is needed and awake again")
		case tries >= maxSleepTries:
			mk.Sleep, mk.Waking = false, false
			m.Marks[r.ID] = mk
			d.warnf("replica/"+r.ID, "WakeFailed", "it is replaced: %v", err)
		}
	})
}

// editMark changes a model's memory if the replica is still marked. c.mu is held.
func (e *engineCalls) editMark(r *mobula.Replica, f func(m *memory, mk mark, d *draft)) {
	mem := e.c.models[r.Model].clone()
	mk, marked := mem.Marks[r.ID]
	if !marked || mk.Released {
		return
	}
	d := draft{models: map[string]*memory{r.Model: &mem}}
	f(&mem, mk, &d)
	if err := e.c.commit(d); err != nil {
		e.c.log.Error("can't remember that a replica sleeps or is awake", "replica", r.ID, "error", err)
	}
	e.c.viewDirty = true
}

// read asks an engine what it has loaded.
func (e *engineCalls) read(ctx context.Context, r *mobula.Replica) error {
	begun := e.c.o.Now()
	all, err := e.c.o.Engines.Models(ctx, endpointOf(r))
	if err != nil {
		return err
	}
	got := cards{restarts: r.Restarts, url: r.URL}
	for i := range all {
		if all[i].Parent != "" {
			got.loras = append(got.loras, all[i].ID)
		}
	}
	slices.Sort(got.loras)
	e.c.mu.Lock()
	defer e.c.mu.Unlock()
	got.at = e.c.o.Now()
	old := e.cards[r.ID]
	if old.of(r) && begun.Before(old.changed) {
		return nil
	}
	if !slices.Equal(old.loras, got.loras) {
		e.c.viewDirty = true
	}
	e.cards[r.ID] = got
	return nil
}

// lorasFor plans a model's LoRAs. It gives the calls that are due, the replicas to ask, and what is to be remembered. c.mu is held.
func (e *engineCalls) lorasFor(s *situation, mem memory) (actions []lora.Action, read []*mobula.Replica, _ memory) {
	if e.c.o.Engines == nil || s.want == nil || len(s.want.LoRAs) == 0 && len(mem.LoRA.Loaded) == 0 {
		delete(e.status, s.name)
		return nil, nil, mem
	}
	in := e.loraInput(s, &mem)
	for i := range s.replicas {
		r := &s.replicas[i]
		if got, known := e.cards[r.ID]; r.Serving() && (!known || !got.of(r) || s.now.Sub(got.at) >= cardsEvery) {
			read = append(read, r)
		}
	}
	actions, next := lora.Plan(in, mem.LoRA)
	if !reflect.DeepEqual(next, mem.LoRA) {
		mem.LoRA = next
	}
	e.note(s, in, next)
	return actions, read, mem
}

func (e *engineCalls) loraInput(s *situation, mem *memory) lora.Input {
	in := lora.Input{Now: s.now, LoRAs: s.want.LoRAs}
	for i := range s.replicas {
		r := &s.replicas[i]
		if len(mem.Revisions[r.Revision].Model.LoRAs) == 0 { // its engine was started without
			continue
		}
		_, marked := mem.Marks[r.ID]
		seen := lora.Replica{ID: r.ID, Serving: r.Serving(), Draining: marked || r.State == mobula.StateDraining}
		if got, known := e.cards[r.ID]; known && got.of(r) {
			seen.Known, seen.Loaded = true, got.loras
		} else if e.pause["cards/"+r.ID].tries >= maxCardTries { // it may never tell
			seen.Serving = false
		}
		in.Replicas = append(in.Replicas, seen)
	}
	return in
}

// act loads or unloads one LoRA. c.mu is held.
func (e *engineCalls) act(ctx context.Context, model string, a lora.Action) {
	i := slices.IndexFunc(e.c.observed.replicas, func(r mobula.Replica) bool { return r.ID == a.Replica })
	if i < 0 {
		return
	}
	at := endpointOf(&e.c.observed.replicas[i])
	timeout := loadTimeout
	if strings.Contains(a.Source, "://") {
		timeout += fetchTimeout
	}
	e.start(ctx, "lora/"+a.Replica+"/"+a.LoRA, timeout, func(ctx context.Context) error {
		if a.Kind == lora.Unload {
			return e.c.o.Engines.UnloadLoRA(ctx, at, a.LoRA)
		}
		path, err := e.fetch(ctx, a)
		if err != nil {
			return err
		}
		return e.c.o.Engines.LoadLoRA(ctx, at, a.LoRA, path)
	}, func(err error, _ int) { e.loraDone(model, a, err) })
}

// fetch brings what is behind a URL to the replica's hosts.
func (e *engineCalls) fetch(ctx context.Context, a lora.Action) (string, error) {
	if !strings.Contains(a.Source, "://") {
		return a.Source, nil
	}
	f, ok := e.c.o.Placer.(adapters.Fetcher)
	if !ok {
		return "", fmt.Errorf("%w: the platform can't bring %s to its hosts; give a folder or a name on the hub", ErrInvalid, a.Source)
	}
	path, err := f.Fetch(ctx, a.Replica, a.Source)
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", a.Source, err)
	}
	return path, nil
}

// took notes what an engine has after a call, as far as that is known, and has it asked again. c.mu is held.
func (e *engineCalls) took(a lora.Action, err error) {
	got, known := e.cards[a.Replica]
	if !known {
		return
	}
	if err == nil {
		got.loras = slices.DeleteFunc(slices.Clone(got.loras), func(name string) bool { return name == a.LoRA })
	}
	if err == nil && a.Kind == lora.Load {
		got.loras = append(got.loras, a.LoRA)
		slices.Sort(got.loras)
	}
	got.at, got.changed = time.Time{}, e.c.o.Now()
	e.cards[a.Replica] = got
}

// loraDone remembers how a call ended. c.mu is held.
func (e *engineCalls) loraDone(model string, a lora.Action, err error) {
	delete(e.pause, "lora/"+a.Replica+"/"+a.LoRA) // lora.State has a pause of its own
	e.took(a, err)
	if _, known := e.c.models[model]; !known {
		return
	}
	mem := e.c.models[model].clone()
	mem.LoRA = mem.LoRA.Done(a, err, e.c.o.Now())
	d := draft{models: map[string]*memory{model: &mem}}
	switch {
	case err != nil:
		d.warnf("model/"+model, "LoRAFailed", "%s %s on replica %s: %v", a.Kind, a.LoRA, a.Replica, err)
	case a.Kind == lora.Load:
		d.notef("model/"+model, "LoRALoaded", "%s on replica %s", a.LoRA, a.Replica)
	default:
		d.notef("model/"+model, "LoRAUnloaded", "%s on replica %s", a.LoRA, a.Replica)
	}
	if err := e.c.commit(d); err != nil {
		e.c.log.Error("can't remember a LoRA", "model", model, "lora", a.LoRA, "error", err)
	}
}

// prune forgets replicas that are gone. c.mu is held.
func (e *engineCalls) prune(replicas []mobula.Replica) {
	if len(e.cards)+len(e.pause) == 0 {
		return
	}
	there := make(map[string]bool, len(replicas))
	for i := range replicas {
		there[replicas[i].ID] = true
	}
	for id := range e.cards {
		if !there[id] {
			delete(e.cards, id)
		}
	}
	for key := range e.pause {
		if id := strings.Split(key, "/")[1]; !there[id] {
			delete(e.pause, key)
		}
	}
}

// note remembers how the LoRAs of a model fare, for views. c.mu is held.
func (e *engineCalls) note(s *situation, in lora.Input, state lora.State) {
	var all []LoRAStatus
	for _, l := range lora.Statuses(in, state) {
		all = append(all, LoRAStatus{Name: l.Name, Source: l.Source, Wanted: l.Wanted, Loaded: l.Loaded, Error: l.Error})
	}
	if !reflect.DeepEqual(all, e.status[s.name]) {
		e.status[s.name] = all
		e.c.viewDirty = true
	}
}
