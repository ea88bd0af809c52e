package kubernetes

import (
	"cmp"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"
)

// store keeps of each watched object only what is needed of it, a few hundred bytes rather than ten thousand. A reflector fills it.
type store[T any] struct {
	// read gives what is kept of an object, false for nothing.
	read func(object any) (T, bool)
	same func(a, b T) bool
	// changed is called when something else is kept than before. It does not block.
	changed func()

	mu     sync.Mutex
	filled bool
	all    []*item[T] // sorted by key; an item is not changed
}

type item[T any] struct {
	key   string // namespace/name
	value T
}

func (s *store[T]) item(object any) (*item[T], bool) {
	o, err := meta.Accessor(object)
	if err != nil {
		return nil, false
	}
	i := &item[T]{key: o.GetNamespace() + "/" + o.GetName()}
	value, kept := s.read(object)
	i.value = value
	return i, kept
}

func byKey[T any](a, b *item[T]) int { return cmp.Compare(a.key, b.key) }

// put keeps or drops one object. Events come in the order in which things happened.
func (s *store[T]) put(object any, there bool) error {
	i, kept := s.item(object)
	if i == nil {
		return nil
	}
	kept = kept && there
	s.mu.Lock()
	at, had := slices.BinarySearchFunc(s.all, i, byKey)
	turned := kept != had || kept && !s.same(s.all[at].value, i.value)
	switch {
	case !turned:
	case !kept:
		s.all = slices.Delete(s.all, at, at+1)
	case had:
		s.all[at] = i
	default:
		s.all = slices.Insert(s.all, at, i)
	}
	s.mu.Unlock()
	if turned {
		s.changed()
	}
	return nil
}

// Add keeps an object that is new.
func (s *store[T]) Add(object any) error { return s.put(object, true) }

// Update keeps an object that was changed.
func (s *store[T]) Update(object any) error { return s.put(object, true) }

// Delete drops an object.
func (s *store[T]) Delete(object any) error { return s.put(object, false) }

// Replace drops all that is not listed: what was deleted while nobody watched.
func (s *store[T]) Replace(objects []any, _ string) error {
	all := make([]*item[T], 0, len(objects))
	for _, o := range objects {
		if i, kept := s.item(o); kept {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, byKey)
	s.mu.Lock()
	turned := !s.filled || !slices.EqualFunc(all, s.all, func(a, b *item[T]) bool { return a.key == b.key && s.same(a.value, b.value) })
	s.all, s.filled = all, true
	s.mu.Unlock()
	if turned {
		s.changed()
	}
	return nil
}

// Resync does nothing: there is nobody to tell again.
func (s *store[T]) Resync() error { return nil }

func (s *store[T]) synced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.filled
}

// list gives what is kept, sorted by key.
func (s *store[T]) list() []*item[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all)
}

var _ cache.ReflectorStore = (*store[int])(nil)
