package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Ways to fail.
var (
	errRefused = &os.SyscallError{Syscall: "connect", Err: syscall.ECONNREFUSED}
	errSick    = &engine.StatusError{Path: "/health", Status: 503}
	errKey     = &engine.StatusError{Path: "/v1/models", Status: 401}
	errHangs   = fmt.Errorf("hangs: %w", context.DeadlineExceeded) // takes the whole timeout
)

// fakeEngine is an engine in memory. It is in order unless told otherwise.
type fakeEngine struct {
	mu                            sync.Mutex
	health, models, infer, scrape error
	cards                         []mobula.Card
	metrics                       engine.Metrics
	healths, modelses, infers     []time.Time // begin of each call
	askedFor                      string      // model of the last inference probe
	key                           mobula.Secret
	hold                          chan struct{} // a health probe that began before it was closed ends after
}

func (f *fakeEngine) set(change func(f *fakeEngine)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeEngine) kill() {
	f.set(func(f *fakeEngine) {
		f.health, f.models, f.infer, f.scrape = errRefused, errRefused, errRefused, errRefused
	})
}

func (f *fakeEngine) revive() {
	f.set(func(f *fakeEngine) { f.health, f.models, f.infer, f.scrape = nil, nil, nil, nil })
}

// times is a copy of one of the lists of calls.
func (f *fakeEngine) times(calls *[]time.Time) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(*calls)
}

func (f *fakeEngine) count(calls *[]time.Time) int { return len(f.times(calls)) }

// do waits out ctx for errHangs.
func do(ctx context.Context, err error) error {
	if errors.Is(err, errHangs) {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

// fakes is a Prober of engines by URL.
type fakes map[string]*fakeEngine

func (c fakes) Health(ctx context.Context, e mobula.Endpoint) error {
	f := c[e.URL]
	f.mu.Lock()
	err, hold := f.health, f.hold
	f.healths = append(f.healths, time.Now())
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return do(ctx, err)
}

func (c fakes) Models(ctx context.Context, e mobula.Endpoint) ([]mobula.Card, error) {
	f := c[e.URL]
	f.mu.Lock()
	err, cards := f.models, f.cards
	f.modelses = append(f.modelses, time.Now())
	f.key = e.APIKey
	f.mu.Unlock()
	if err != nil {
		return nil, do(ctx, err)
	}
	return cards, nil
}

func (c fakes) Metrics(ctx context.Context, e mobula.Endpoint) (engine.Metrics, error) {
	f := c[e.URL]
	f.mu.Lock()
	err, m := f.scrape, f.metrics
	f.mu.Unlock()
	return m, do(ctx, err)
}

func (c fakes) Complete(ctx context.Context, e mobula.Endpoint, model string) error {
	f := c[e.URL]
	f.mu.Lock()
	err := f.infer
	f.infers, f.askedFor = append(f.infers, time.Now()), model
	f.mu.Unlock()
	return do(ctx, err)
}

// fleet is a running Keeper with its engines, in a bubble of synctest.
type fleet struct {
	t *testing.T // the bubble's
	*Keeper
	engines fakes
	up      chan []mobula.Endpoint
	logged  *logs
	changes *int
}

// cards makes models; "lora<base" is a LoRA.
func cards(models ...string) []mobula.Card {
	var all []mobula.Card
	for _, m := range models {
		id, parent, _ := strings.Cut(m, "<")
		all = append(all, mobula.Card{ID: id, Parent: parent, Raw: []byte(time.Now().String())})
	}
	return all
}

// bubble runs test with a fleet whose engines a, b and c serve model m, none reported yet.
func bubble(t *testing.T, test func(f *fleet), options ...func(*Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, engines: fakes{}, up: make(chan []mobula.Endpoint), logged: &logs{}, changes: new(int)}
		for _, id := range []string{"a", "b", "c"} {
			f.engines[url(id)] = &fakeEngine{cards: cards("m")}
		}
		o := Options{
			Client:   f.engines,
			Logger:   slog.New(slog.NewTextHandler(f.logged, nil)),
			OnChange: func(*pick.Snapshot) { *f.changes++ },
		}
		for _, option := range options {
			option(&o)
		}
		f.Keeper = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx, f.up) }()
		defer func() { // also when the test has failed
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v", err)
			}
		}()
		test(f)
	})
}

func url(id string) string { return "http://" + id }

func endpoints(ids ...string) []mobula.Endpoint {
	all := []mobula.Endpoint{}
	for _, id := range ids {
		all = append(all, mobula.Endpoint{ID: id, URL: url(id)})
	}
	return all
}

// report has discovery report ids and waits until all is quiet.
func (f *fleet) report(ids ...string) {
	f.up <- endpoints(ids...)
	synctest.Wait()
}

func (f *fleet) engine(id string) *fakeEngine { return f.engines[url(id)] }

// after lets d pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// serving are the endpoints that requests for m go to; an ejected one as "a!".
func (f *fleet) serving() string {
	g := f.Snapshot().Lookup("m")
	if g == nil {
		return "unknown"
	}
	var ids []string
	for _, e := range g.Endpoints {
		id := e.ID
		if !e.Serving {
			id += "!"
		}
		ids = append(ids, id)
	}
	return strings.Join(ids, " ")
}

func (f *fleet) endpoint(id string) *pick.Endpoint {
	for _, e := range f.Snapshot().Endpoints {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// ends has a request to id, picked now, end by cause.
func (f *fleet) ends(id string, cause proxy.Cause) {
	f.Report(f.endpoint(id), proxy.Outcome{Cause: cause})
	synctest.Wait()
}

// logs keeps what is logged.
type logs struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}
