package api

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
)

// fake is a control plane in memory that remembers what it was told.
type fake struct {
	mu      sync.Mutex
	err     error // of all calls but View and Fleet
	deleted []string
	file    []byte
	view    control.View
	events  []control.Event
	changed chan struct{}
	calls   []string
	reports []mobula.Report
	log     func(ctx context.Context) io.ReadCloser
}

func newFake() *fake {
	return &fake{view: control.View{Control: "c1", Version: 1}, changed: make(chan struct{})}
}

// change makes another View.
func (f *fake) change(how func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view.Version++
	how(f)
	close(f.changed)
	f.changed = make(chan struct{})
}

// fail has all calls but View and Fleet fail.
func (f *fake) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fake) told(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) takeCalls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fake) Apply(_ context.Context, file []byte, source string, dry, force bool) (*control.Change, error) {
	if err := f.told("apply %s from %s dry %v force %v", file, source, dry, force); err != nil {
		return nil, err
	}
	if !dry {
		f.change(func(f *fake) { f.file = file; f.view.Generation++ })
	}
	return &control.Change{Fleet: "prod", Generation: 3}, nil
}

func (f *fake) Fleet(context.Context) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil, control.ErrNotFound
	}
	return f.file, nil
}

func (f *fake) Settings(ctx context.Context, after int64) (*control.Settings, error) {
	v, err := f.View(ctx, after)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &control.Settings{Version: v.Version, File: string(f.file), Deleted: f.deleted}, nil
}

func (f *fake) View(ctx context.Context, after int64) (*control.View, error) {
	for {
		f.mu.Lock()
		v, changed := f.view, f.changed
		f.mu.Unlock()
		if v.Version > after {
			return &v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fake) Events(ctx context.Context, after int64, wait bool) ([]control.Event, error) {
	for {
		f.mu.Lock()
		err, changed := f.err, f.changed
		i := slices.IndexFunc(f.events, func(e control.Event) bool { return e.Seq > after })
		var events []control.Event
		if i >= 0 {
			events = slices.Clone(f.events[i:])
		}
		f.mu.Unlock()
		if err != nil || len(events) > 0 || !wait {
			return events, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fake) Scale(_ context.Context, model string, n int) error {
	return f.told("scale %s %d", model, n)
}

func (f *fake) Drain(_ context.Context, replica string, on bool) error {
	return f.told("drain %s %v", replica, on)
}

func (f *fake) Cordon(_ context.Context, host string, on, drain bool) error {
	return f.told("cordon %s %v drain %v", host, on, drain)
}
func (f *fake) Forget(_ context.Context, host string) error   { return f.told("forget %s", host) }
func (f *fake) Restart(_ context.Context, model string) error { return f.told("restart %q", model) }

func (f *fake) Rollback(_ context.Context, model string) error { return f.told("rollback %s", model) }
func (f *fake) Delete(_ context.Context, model string) error   { return f.told("delete %q", model) }

func (f *fake) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	if err := f.told("logs %s %d %v", replica, tail, follow); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.log != nil {
		return f.log(ctx), nil
	}
	return io.NopCloser(strings.NewReader("one\ntwo\n")), nil
}

func (f *fake) Report(_ context.Context, r mobula.Report) error {
	f.mu.Lock()
	f.reports = append(f.reports, r)
	f.mu.Unlock()
	return f.told("report %s", r.Router)
}

// fakeJoin is Tokens and Joiner; the token "good" is good.
type fakeJoin struct {
	mu     sync.Mutex
	err    error
	joined []agent.Join
	peers  []string // common names, "" for none
	used   int
}

func (f *fakeJoin) New(context.Context) (string, error) { return "fresh", f.err }

func (f *fakeJoin) Check(_ context.Context, token string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used++
	if token != "good" {
		return errors.New("the join token is used up: make another with mobula token")
	}
	return nil
}

func (f *fakeJoin) Join(_ context.Context, j agent.Join, peer *x509.Certificate) (agent.Joined, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := ""
	if peer != nil {
		name = peer.Subject.CommonName
	}
	f.joined, f.peers = append(f.joined, j), append(f.peers, name)
	return agent.Joined{Control: "c1", Certificate: "CERT", CA: "CA"}, f.err
}

var (
	_ Backend = (*fake)(nil)
	_ Tokens  = (*fakeJoin)(nil)
	_ Joiner  = (*fakeJoin)(nil)
)
