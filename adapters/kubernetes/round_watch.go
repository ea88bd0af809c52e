package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/mobula-serve/mobula/kube"
)

// shelf keeps what a watch sees, by name and by group. Nothing on it is changed.
type shelf struct {
	group   func(metav1.Object) string // what it belongs to; nil for nothing
	slim    func(any) (any, error)
	touched func(o metav1.Object, gone bool)

	mu     sync.RWMutex
	all    map[string]metav1.Object
	groups map[string]map[string]metav1.Object
	filled bool
}

func newShelf(group func(metav1.Object) string, slim func(any) (any, error), touched func(metav1.Object, bool)) *shelf {
	return &shelf{group: group, slim: slim, touched: touched, all: map[string]metav1.Object{}, groups: map[string]map[string]metav1.Object{}}
}

// Add puts an object there, or in the place of another one with its name.
func (s *shelf) Add(obj any) error {
	o, err := s.slimmed(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.put(o)
	s.mu.Unlock()
	s.touched(o, false)
	return nil
}

// Update is Add.
func (s *shelf) Update(obj any) error { return s.Add(obj) }

// Delete takes it away.
func (s *shelf) Delete(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("a %T on the shelf", obj)
	}
	s.mu.Lock()
	s.take(o.GetName())
	s.mu.Unlock()
	s.touched(o, true)
	return nil
}

// Replace puts these there, and nothing else.
func (s *shelf) Replace(list []any, _ string) error {
	next := map[string]metav1.Object{}
	for _, obj := range list {
		o, err := s.slimmed(obj)
		if err != nil {
			return err
		}
		next[o.GetName()] = o
	}
	var gone, changed []metav1.Object
	s.mu.Lock()
	for name, o := range s.all {
		if next[name] == nil {
			gone = append(gone, o)
			s.take(name)
		}
	}
	for name, o := range next {
		if was := s.all[name]; was == nil || was.GetResourceVersion() != o.GetResourceVersion() {
			changed = append(changed, o)
			s.put(o)
		}
	}
	s.mu.Unlock()
	for _, o := range gone {
		s.touched(o, true)
	}
	for _, o := range changed {
		s.touched(o, false)
	}
	s.mu.Lock()
	s.filled = true // all of them have been heard of
	s.mu.Unlock()
	s.touched(nil, false)
	return nil
}

// Resync has nothing to do.
func (s *shelf) Resync() error { return nil }

func (s *shelf) synced() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.filled
}

func (s *shelf) has(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[name] != nil
}

func (s *shelf) slimmed(obj any) (metav1.Object, error) {
	if s.slim != nil {
		var err error
		if obj, err = s.slim(obj); err != nil {
			return nil, err
		}
	}
	o, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("a %T on the shelf", obj)
	}
	return o, nil
}

// put and take need s.mu.
func (s *shelf) put(o metav1.Object) {
	s.take(o.GetName())
	s.all[o.GetName()] = o
	if s.group == nil {
		return
	}
	g := s.group(o)
	if s.groups[g] == nil {
		s.groups[g] = map[string]metav1.Object{}
	}
	s.groups[g][o.GetName()] = o
}

func (s *shelf) take(name string) {
	o := s.all[name]
	if o == nil {
		return
	}
	delete(s.all, name)
	if s.group == nil {
		return
	}
	g := s.group(o)
	if delete(s.groups[g], name); len(s.groups[g]) == 0 {
		delete(s.groups, g)
	}
}

func (s *shelf) get(name string) metav1.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.all[name]
}

// of gives those of a group, by name.
func (s *shelf) of(group string) []metav1.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in := s.groups[group]
	all := make([]metav1.Object, 0, len(in))
	for _, name := range slices.Sorted(maps.Keys(in)) {
		all = append(all, in[name])
	}
	return all
}

// every gives all, in no order.
func (s *shelf) every() []metav1.Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.all))
}

// groupByLabels is the group of an object of ours.
func groupByLabels(o metav1.Object) string {
	labels := o.GetLabels()
	return groupOf(labels[kube.LabelFleet], labels[kube.LabelModel])
}

// newer tells whether a version of an object comes after another one of it.
func newer(a, b string) bool {
	n, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil && a != b || n > 0
}

// slimPod leaves what replicas are read from.
func slimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	pod.ManagedFields = nil
	pod.Spec.Volumes, pod.Spec.Affinity, pod.Spec.Tolerations, pod.Spec.TopologySpreadConstraints = nil, nil, nil, nil
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			c := &list[i]
			list[i] = corev1.Container{Name: c.Name, Image: c.Image, Ports: c.Ports, Resources: c.Resources, RestartPolicy: c.RestartPolicy}
		}
	}
	return pod, nil
}

// slimNode leaves what hosts are read from.
func slimNode(obj any) (any, error) {
	if node, ok := obj.(*corev1.Node); ok {
		node.ManagedFields, node.Annotations, node.Status.Images, node.Status.VolumesAttached, node.Status.VolumesInUse = nil, nil, nil, nil, nil
	}
	return obj, nil
}
