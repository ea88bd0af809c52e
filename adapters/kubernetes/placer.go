package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	storeTries = 5  // to write a record that others touch too
	baseTries  = 20 // names of a deployment that may be taken
	idTail     = 5
	idModel    = 33 // so that a StatefulSet's name, and its pods', have room for more
)

// errLost tells that a write was done before, and that nobody knew.
var errLost = errors.New("it is written already")

// impossibleError is what no cluster could run.
type impossibleError struct{ error }

func (e impossibleError) Is(target error) bool { return target == adapters.ErrImpossible } //nolint:errorlint // as errors.Is asks
func (e impossibleError) Unwrap() error        { return e.error }

// Apply makes d so.
func (c *Cluster) Apply(ctx context.Context, d adapters.Deployment) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.reach(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.fleets[d.Fleet] = true
	c.mu.Unlock()
	lock := c.lock(d.Key)
	lock.Lock()
	defer lock.Unlock()
	for range storeTries {
		was := c.live(d.Key)
		next, err := s.next(was, d)
		if err != nil {
			return err
		}
		text, err := next.text()
		switch {
		case err != nil:
			return err
		case was != nil && text == was.written:
			s.keep(next) // JSON does not keep all of a model's types
			return nil
		case was == nil:
			err = s.create(ctx, next)
		default:
			err = s.store(ctx, next)
		}
		if errors.Is(err, errLost) {
			continue
		}
		if was == nil || !apierrors.IsConflict(err) {
			return err
		}
		if err := s.reread(ctx, was); err != nil {
			return err
		}
	}
	return fmt.Errorf("deployment %s: its record changes all the time: does another control plane use namespace %s?", d.Key.Model, s.link.Namespace)
}

// Check fails as Apply would.
func (c *Cluster) Check(ctx context.Context, d adapters.Deployment) error {
	s, err := c.reach(ctx)
	if err != nil {
		return err
	}
	_, err = s.next(c.live(d.Key), d)
	return err
}

// lock is held while one of a model's records is changed.
func (c *Cluster) lock(key adapters.Key) *sync.Mutex {
	return &c.writing[maphash.String(c.seed, groupOf(key.Fleet, kube.Label(key.Model)))%uint64(len(c.writing))]
}

// next is the record of d, which follows on was, nil for none.
func (s *keeper) next(was *record, d adapters.Deployment) (*record, error) {
	next := &record{}
	if was != nil {
		next = was.clone()
		if made := was.engine().Model; next.Made == nil && kube.Hash(made) != kube.Hash(d.Model) {
			next.Made = &made
		}
	} else {
		next.Key, next.OwnImage, next.KubeRay = d.Key, s.options.OwnImage, s.link.platform.KubeRay
	}
	next.Model, next.Replicas, next.Drain = d.Model, d.Replicas, slices.Clone(d.Drain)
	if was == nil {
		e := next.engine()
		next.Kind = e.Workload()
		w := s.workloads[next.Kind]
		if w == nil || next.Kind == kube.KindRayCluster && s.link.platform.KubeRay == nil {
			return nil, impossibleError{fmt.Errorf("models[%s].kubernetes.workload: this platform has no %s", d.Model.Name, next.Kind)}
		}
		if _, err := w.Objects(e, newID(d.Key), 1); err != nil {
			return nil, impossibleError{err}
		}
	}
	s.resize(next)
	return next, nil
}

// resize takes away the replicas that are too many, or names those that are to come.
func (s *keeper) resize(r *record) {
	known := s.replicas(r) // oldest first
	living := slices.DeleteFunc(slices.Clone(known), func(x mobula.Replica) bool { return slices.Contains(r.Victims, x.ID) })
	r.Victims = slices.DeleteFunc(r.Victims, func(id string) bool {
		return !slices.ContainsFunc(known, func(x mobula.Replica) bool { return x.ID == id })
	})
	leaving := adapters.Leaving(living, r.Drain, len(living)-r.Replicas)
	r.Victims = append(r.Victims, leaving...)
	w := s.workloads[r.Kind]
	if w == nil || w.Counted() {
		return
	}
	r.Names = slices.DeleteFunc(r.Names, func(id string) bool { return slices.Contains(r.Victims, id) })
	if _, ok := w.(kube.Sleeper); ok {
		s.sleep(r, leaving)
	}
	for len(r.Names) < r.Replicas {
		id := newID(r.Key)
		r.wake(id)
		r.Names = append(r.Names, id)
	}
	maps.DeleteFunc(r.Taken, func(id, _ string) bool { return !slices.Contains(r.Names, id) && !slices.Contains(r.Victims, id) })
}

// replicas gives those that a record has or had, oldest first, those that are being deleted left out.
func (s *keeper) replicas(r *record) []mobula.Replica {
	byID := map[string]mobula.Replica{}
	s.mu.Lock()
	for _, x := range s.statuses[r.group()] {
		byID[x.ID] = x
	}
	s.mu.Unlock()
	var all []mobula.Replica
	if w := s.workloads[r.Kind]; w == nil || !w.Counted() {
		for _, id := range append(slices.Clone(r.Victims), r.Names...) {
			x := byID[id]
			x.ID = id
			if slices.Contains(r.Victims, id) && x.State == "" { // nothing is left of it
				continue
			}
			all = append(all, x)
		}
		return all
	}
	pods := s.podsOf(r)
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, pod := range pods {
		x := byID[pod.Name]
		x.ID = pod.Name
		all = append(all, x)
	}
	return all
}

// podsOf gives the pods of a Counted record that live.
func (s *keeper) podsOf(r *record) []*corev1.Pod {
	var all []*corev1.Pod
	for _, o := range s.pods.of(r.group()) {
		if pod, ok := o.(*corev1.Pod); ok && pod.Labels[labelRecord] == r.Base && pod.DeletionTimestamp == nil && !over(pod) {
			all = append(all, pod)
		}
	}
	return all
}

// newID makes an ID that nothing has had.
func newID(key adapters.Key) string {
	model := kube.Label(key.Model)
	return adapters.ReplicaID(model[:min(len(model), idModel)], key.Revision, rand.String(idTail))
}

// create writes a record that is not there yet, under the first name that is free.
func (s *keeper) create(ctx context.Context, r *record) error {
	tries := 0
	r.owner = s.options.Owner(r.Key.Model)
	if r.owner == nil && !s.alone { // nobody could delete it
		return fmt.Errorf("model %s has no Model object, so nothing is made for it: %w", r.Key.Model, adapters.ErrWithdrawn)
	}
	for base := range bases(r.Key) {
		r.Base = base
		r.Print = kube.Hash([]any{base, r.engine()})
		m, err := r.configMap(s.link.Namespace)
		if err != nil {
			return err
		}
		m, err = s.link.Client.CoreV1().ConfigMaps(s.link.Namespace).Create(ctx, m, metav1.CreateOptions{FieldManager: kube.FieldManager})
		if apierrors.IsAlreadyExists(err) {
			if tries++; tries < baseTries {
				if mine, err := s.mine(ctx, r); mine || err != nil {
					return err
				}
				continue
			}
		}
		if err != nil {
			return explain("create", "ConfigMap", r.name(), err)
		}
		s.wrote(r, m)
		return nil
	}
	return nil
}

// mine tells whether the record that has r's name is what an earlier try has written, the answer to which was lost.
func (s *keeper) mine(ctx context.Context, r *record) (bool, error) {
	m, err := s.link.Client.CoreV1().ConfigMaps(s.link.Namespace).Get(ctx, r.name(), metav1.GetOptions{})
	if err != nil {
		return false, explain("get", "ConfigMap", r.name(), err)
	}
	is, err := readRecord(m)
	if err != nil && groupByLabels(m) == r.group() && m.Labels[kube.LabelRevision] == r.Key.Revision && m.Labels[labelRecord] == r.Base {
		s.log.Warn("a record that can't be read is written anew", "error", err)
		r.version = m.ResourceVersion
		return true, s.store(ctx, r)
	}
	if err != nil || is.Key != r.Key || is.Removed {
		return false, nil //nolint:nilerr // the name is taken, by whatever it is
	}
	s.learn(is)
	return true, errLost
}

// store writes a record over the one that it follows on. A conflict is an error for apierrors.IsConflict.
func (s *keeper) store(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := r.configMap(s.link.Namespace)
	if err != nil {
		return err
	}
	m, err = s.link.Client.CoreV1().ConfigMaps(s.link.Namespace).Update(ctx, m, metav1.UpdateOptions{FieldManager: kube.FieldManager})
	if err != nil {
		return explain("update", "ConfigMap", r.name(), err)
	}
	s.wrote(r, m)
	return nil
}

// wrote takes up a record that was written.
func (s *keeper) wrote(r *record, m *corev1.ConfigMap) {
	r.version, r.uid, r.written, r.since = m.ResourceVersion, m.UID, m.Data[recordKey], m.CreationTimestamp.Time
	s.learn(r)
	s.refresh(r.group())
	s.queue.Add(r.group())
}

// keep has a record that is stored as it is be held as it was applied.
func (s *keeper) keep(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if is := s.records[r.group()][r.Base]; is != nil && is.version == r.version && is.uid == r.uid {
		s.records[r.group()][r.Base] = r
	}
}

// reread reads a record that was changed meanwhile, and fails when what is asked for in it was.
func (s *keeper) reread(ctx context.Context, was *record) error {
	m, err := s.link.Client.CoreV1().ConfigMaps(s.link.Namespace).Get(ctx, was.name(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.unlearn(was.group(), was.Base, was.uid)
		return nil
	case err != nil:
		return explain("get", "ConfigMap", was.name(), err)
	}
	r, err := readRecord(m)
	if err != nil {
		return err
	}
	s.learn(r)
	if !r.asks(was) {
		return fmt.Errorf("ConfigMap %s: it was changed by %s: only one control plane may look after a deployment", was.name(), lastManager(m))
	}
	return nil
}

// lastManager is who changed an object last.
func lastManager(o metav1.Object) string {
	who, at := "somebody else", metav1.Time{}
	for _, m := range o.GetManagedFields() {
		if m.Time != nil && at.Before(m.Time) {
			who, at = m.Manager, *m.Time
		}
	}
	return who
}

// Remove stops all replicas of the deployment and forgets it.
func (c *Cluster) Remove(ctx context.Context, key adapters.Key) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := c.reach(ctx)
	if err != nil {
		return err
	}
	lock := c.lock(key)
	lock.Lock()
	defer lock.Unlock()
	for range storeTries {
		was := c.live(key)
		if was == nil {
			return nil
		}
		next := was.clone()
		next.Removed, next.Replicas, next.Drain = true, 0, nil
		next.Victims, next.Names, next.Asleep = append(next.Victims, next.Names...), nil, nil
		err := s.store(ctx, next)
		switch {
		case apierrors.IsNotFound(err):
			s.unlearn(was.group(), was.Base, was.uid)
			s.queue.Add(was.group())
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
		if err := s.reread(ctx, was); err != nil {
			return err
		}
	}
	return errors.New("its record changes all the time: does another control plane use namespace " + s.link.Namespace + "?")
}

// Deployments gives what is asked for in a fleet.
func (c *Cluster) Deployments(ctx context.Context, fleet string) ([]adapters.Deployment, error) {
	if _, err := c.reach(ctx); err != nil {
		return nil, err
	}
	all := []adapters.Deployment{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, records := range c.records {
		for _, r := range records {
			if r.Key.Fleet == fleet && !r.Removed {
				all = append(all, r.deployment())
			}
		}
	}
	slices.SortFunc(all, func(a, b adapters.Deployment) int { return a.Compare(b.Key) })
	return all, nil
}

// Status gives the replicas of a fleet as the watches show them.
func (c *Cluster) Status(ctx context.Context, fleet string) ([]mobula.Replica, error) {
	s, err := c.reach(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.away(lostAfter); err != nil {
		return nil, unavailable(err)
	}
	all := []mobula.Replica{}
	c.mu.Lock()
	defer c.mu.Unlock()
	for group, some := range c.statuses {
		if fleetOf(group) != fleet {
			continue
		}
		for _, r := range some {
			r.Hosts, r.Devices = slices.Clone(r.Hosts), slices.Clone(r.Devices)
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b mobula.Replica) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}
