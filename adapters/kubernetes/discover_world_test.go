package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// world is a cluster without a network, for tests on a clock of their own: what client-go's fake lacks is a history, without
// which a watch misses what happens between list and watch.
type world struct {
	mu      sync.Mutex
	version int
	oldest  int // the first version that a watch can begin after
	objects map[string]metav1.Object
	history []happening
	streams map[*stream]bool
	fail    func(verb, resource, namespace string) error
	calls   map[string]int
}

type happening struct {
	version int
	before  metav1.Object // nil for one that is new
	now     metav1.Object // nil for one that is gone
}

// stream is a watch.
type stream struct {
	world     *world
	resource  string
	namespace string
	selector  labels.Selector
	events    chan watch.Event
}

func newWorld() *world {
	return &world{objects: map[string]metav1.Object{}, streams: map[*stream]bool{}, calls: map[string]int{}}
}

func (w *world) client() kubernetes.Interface {
	c := &fake.Clientset{}
	c.AddReactor("list", "*", w.list)
	c.AddWatchReactor("*", w.watch)
	return c
}

func pluralOf(o any) string {
	switch o.(type) {
	case *corev1.Pod:
		return "pods"
	case *corev1.Service:
		return "services"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	}
	panic(fmt.Sprintf("%T", o))
}

// set makes objects so; they are not to be changed afterwards.
func (w *world) set(all ...metav1.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range all {
		w.change(pluralOf(o)+"/"+o.GetNamespace()+"/"+o.GetName(), o)
	}
}

func (w *world) remove(all ...metav1.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range all {
		w.change(pluralOf(o)+"/"+o.GetNamespace()+"/"+o.GetName(), nil)
	}
}

func (w *world) change(key string, o metav1.Object) {
	before := w.objects[key]
	if before == nil && o == nil {
		return
	}
	w.version++
	if o == nil {
		delete(w.objects, key)
	} else {
		o.SetResourceVersion(strconv.Itoa(w.version))
		w.objects[key] = o
	}
	c := happening{w.version, before, o}
	w.history = append(w.history, c)
	for s := range w.streams {
		s.send(c)
	}
}

func (s *stream) sees(o metav1.Object) bool {
	return o != nil && pluralOf(o) == s.resource && (s.namespace == "" || o.GetNamespace() == s.namespace) && s.selector.Matches(labels.Set(o.GetLabels()))
}

func (s *stream) send(c happening) {
	switch had, has := s.sees(c.before), s.sees(c.now); {
	case had && has:
		s.events <- watch.Event{Type: watch.Modified, Object: c.now.(runtime.Object).DeepCopyObject()}
	case has:
		s.events <- watch.Event{Type: watch.Added, Object: c.now.(runtime.Object).DeepCopyObject()}
	case had:
		gone := c.before.(runtime.Object).DeepCopyObject()
		gone.(metav1.Object).SetResourceVersion(strconv.Itoa(c.version))
		s.events <- watch.Event{Type: watch.Deleted, Object: gone}
	}
}

func (s *stream) ResultChan() <-chan watch.Event { return s.events }

func (s *stream) Stop() {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	s.end()
}

func (s *stream) end() {
	if s.world.streams[s] {
		delete(s.world.streams, s)
		close(s.events)
	}
}

// drop ends all watches.
func (w *world) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.streams {
		s.end()
	}
}

// forget has watches from before be answered with 410.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.version++
	w.oldest, w.history = w.version, nil
}

// failing has requests fail from now on; nil ends that. Watches that go on do so.
func (w *world) failing(fail func(verb, resource, namespace string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = fail
}

// down has no request get through.
func (w *world) down() {
	w.failing(func(string, string, string) error { return apierrors.NewServiceUnavailable("away") })
	w.drop()
}

func (w *world) called(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[what]
}

func (w *world) enter(a clienttesting.Action) error {
	w.calls[a.GetVerb()+" "+a.GetResource().Resource]++
	if w.fail != nil {
		return w.fail(a.GetVerb(), a.GetResource().Resource, a.GetNamespace())
	}
	return nil
}

func (w *world) list(a clienttesting.Action) (bool, runtime.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(a); err != nil {
		return true, nil, err
	}
	options := a.(clienttesting.ListActionImpl).ListOptions
	selector, err := labels.Parse(options.LabelSelector)
	if err != nil {
		return true, nil, err
	}
	s := &stream{resource: a.GetResource().Resource, namespace: a.GetNamespace(), selector: selector}
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(w.version)}
	pods, services, slicesOf := &corev1.PodList{ListMeta: meta}, &corev1.ServiceList{ListMeta: meta}, &discoveryv1.EndpointSliceList{ListMeta: meta}
	for _, key := range slices.Sorted(maps.Keys(w.objects)) {
		if !s.sees(w.objects[key]) {
			continue
		}
		switch o := w.objects[key].(type) {
		case *corev1.Pod:
			pods.Items = append(pods.Items, *o.DeepCopy())
		case *corev1.Service:
			services.Items = append(services.Items, *o.DeepCopy())
		case *discoveryv1.EndpointSlice:
			slicesOf.Items = append(slicesOf.Items, *o.DeepCopy())
		}
	}
	return true, map[string]runtime.Object{"pods": pods, "services": services, "endpointslices": slicesOf}[s.resource], nil
}

func (w *world) watch(a clienttesting.Action) (bool, watch.Interface, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter(a); err != nil {
		return true, nil, err
	}
	options := a.(clienttesting.WatchActionImpl).ListOptions
	from, err := strconv.Atoi(options.ResourceVersion)
	switch {
	case err != nil:
		return true, nil, err
	case from < w.oldest:
		return true, nil, apierrors.NewResourceExpired("too old resource version")
	}
	selector, err := labels.Parse(options.LabelSelector)
	if err != nil {
		return true, nil, err
	}
	s := &stream{world: w, resource: a.GetResource().Resource, namespace: a.GetNamespace(), selector: selector, events: make(chan watch.Event, 20_000)}
	w.streams[s] = true
	for _, c := range w.history {
		if c.version > from {
			s.send(c)
		}
	}
	return true, s, nil
}

// noRight is what RBAC says.
func noRight(verb, resource, namespace string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", fmt.Errorf(
		`User "system:serviceaccount:llm:mobula-router" cannot %s resource %q in API group "" in the namespace %q`, verb, resource, namespace))
}
