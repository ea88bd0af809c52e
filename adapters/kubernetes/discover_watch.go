package kubernetes

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

const (
	// Between two tries: 0.5 s to 1 s, doubled each time up to 4 s to 8 s, so that many routers don't come back to an API server all
	// at once. client-go's own go up to a minute, for which new pods would wait.
	retryFirst = 500 * time.Millisecond
	retryMost  = 4 * time.Second
	retrySteps = 16
	// retryForget is how long a watch must have gone well for the next failure to be the first one.
	retryForget = time.Minute
	// watchSlack is how much longer than asked for a watch may go on before it is ended here.
	watchSlack = time.Minute
)

// items is where a watch puts what it sees.
type items interface {
	cache.ReflectorStore
	// synced tells that it was filled once.
	synced() bool
}

// client lists and watches one resource in one namespace.
type client[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// watched keeps items as the API server has them. client-go's reflector does so: a list, a watch from there on, another watch from where
// the last one ended, another list when that is too long ago (410).
type watched struct {
	what     string // "pods"
	example  runtime.Object
	items    items
	selector string
	list     func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch    func(context.Context, metav1.ListOptions) (watch.Interface, error)
	changed  func() // called when it begins to fail, fails for another reason or does no longer

	mu    sync.Mutex
	err   error // explained; nil while all is well
	no    bool  // err is an answer
	since time.Time
}

func newWatched[L runtime.Object](what string, example runtime.Object, c client[L], selector string, items items, changed func()) *watched {
	return &watched{
		what: what, example: example, items: items, selector: selector, changed: changed,
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: c.Watch,
	}
}

// plainLists has the reflector list rather than stream: when a stream fails it waits without looking whether it should end.
type plainLists struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what client-go asks for.
func (plainLists) IsWatchListSemanticsUnSupported() bool { return true }

// run watches until ctx ends. It goes round the reflector's own loop, which logs each failure and sleeps on it.
func (w *watched) run(ctx context.Context) {
	retry := wait.Backoff{Duration: retryFirst, Cap: retryMost, Factor: 2, Jitter: 1, Steps: retrySteps}
	lists := plainLists{&cache.ListWatch{ListWithContextFunc: w.listAll, WatchFuncWithContext: w.watchOn}}
	reflector := cache.NewReflectorWithOptions(lists, w.example, w.items, cache.ReflectorOptions{Name: "mobula", Backoff: &retry})
	for next := retry; ctx.Err() == nil; {
		began := time.Now()
		_ = reflector.ListAndWatchWithContext(ctx) // listAll and watchOn have noted why
		if time.Since(began) > retryForget {
			next = retry
		}
		select {
		case <-ctx.Done():
		case <-time.After(next.Step()):
		}
	}
}

// listAll is bounded, for an API server that takes the request and never answers.
func (w *watched) listAll(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o.LabelSelector = w.selector
	list, err := w.list(bounded, o)
	w.note(ctx, err)
	return list, err
}

// watchOn is bounded by the time that the API server was asked to end the watch after.
func (w *watched) watchOn(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.LabelSelector = w.selector
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if o.TimeoutSeconds != nil {
		bounded, cancel = context.WithTimeout(ctx, time.Duration(*o.TimeoutSeconds)*time.Second+watchSlack)
	}
	stream, err := w.watch(bounded, o)
	w.note(ctx, err)
	if err != nil {
		cancel()
		return nil, err
	}
	return &endingWatch{stream, cancel}, nil
}

// endingWatch ends its context when it is stopped.
type endingWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (w *endingWatch) Stop() {
	w.Interface.Stop()
	w.cancel()
}

// note keeps how the last request went. One that is too long ago (410) is part of the game.
func (w *watched) note(ctx context.Context, err error) {
	if ctx.Err() != nil || expired(err) {
		return
	}
	explained, no := Explain(err), err != nil && refused(err)
	w.mu.Lock()
	turned := (err == nil) != (w.err == nil) || no != w.no
	if turned {
		w.since = time.Now()
	}
	w.err, w.no = explained, no
	w.mu.Unlock()
	if turned {
		w.changed()
	}
}

func expired(err error) bool { return apierrors.IsGone(err) || apierrors.IsResourceExpired(err) }

// failing gives the last request's error and since when there is one, nil while all is well.
func (w *watched) failing() (err error, since time.Time) { //nolint:revive,staticcheck // the error is what is asked for, not a failure to answer
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err, w.since
}

// refused tells that the API server has answered, with a no.
func (w *watched) refused() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.no
}
