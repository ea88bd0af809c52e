package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

// errForeign is of an object whose name is needed.
var errForeign = errors.New("one of that name is in the namespace that is not Mobula's")

// step is one thing to do for a model.
type step struct {
	base string // of the record that it is for, empty for what all revisions share
	// stops tells of one that what follows for the same record relies on: once it has failed, the rest of that is planned again.
	stops bool
	do    func(context.Context) error
}

// perform does what was planned, in order. What fails keeps nothing else from being done, unless the cluster can't be asked at all: it is
// planned again. In todo it leaves of the pods those that were deleted.
func (s *keeper) perform(ctx context.Context, in *situation, todo *actions, p *pace) error {
	var failed []error
	stopped := map[string]bool{}
	for _, x := range s.steps(in, todo, p) {
		if stopped[x.base] {
			continue
		}
		err := inTime(ctx, x.do)
		if err == nil {
			continue
		}
		failed = append(failed, err)
		if ctx.Err() != nil || errors.Is(err, adapters.ErrUnavailable) {
			break
		}
		stopped[x.base] = x.stops
	}
	return lasting(failed...)
}

// steps are what perform does.
func (s *keeper) steps(in *situation, todo *actions, p *pace) []step {
	var all []step
	for _, r := range todo.adopt {
		all = append(all, step{r.Base, true, func(ctx context.Context) error {
			return s.change(ctx, r, func(next *record) bool { next.owner = in.owner; return true })
		}})
	}
	for _, r := range todo.resize {
		all = append(all, step{r.Base, true, func(ctx context.Context) error {
			return s.change(ctx, r, func(next *record) bool { s.resize(next); return !slices.Equal(next.Victims, r.Victims) })
		}})
	}
	p.claimed = slices.DeleteFunc(p.claimed, func(uid types.UID) bool {
		return !slices.ContainsFunc(in.records, func(r *record) bool { return r.uid == uid })
	})
	for _, r := range in.records {
		if !r.Removed && !slices.Contains(p.claimed, r.uid) {
			all = append(all, step{r.Base, true, func(ctx context.Context) error { return s.claim(ctx, r, p) }})
		}
	}
	for _, o := range todo.apply {
		all = append(all, step{o.GetLabels()[labelRecord], false, func(ctx context.Context) error { return s.apply(ctx, o, p) }})
	}
	for _, m := range todo.marks {
		all = append(all, step{in.baseOfPod(m.name), false, func(ctx context.Context) error { return s.mark(ctx, m, p) }})
	}
	for _, patch := range todo.patch {
		all = append(all, step{in.baseOf(patch.ident), true, func(ctx context.Context) error { return s.patch(ctx, patch, p) }})
	}
	kill := todo.kill
	todo.kill = nil
	for _, k := range kill {
		all = append(all, step{in.baseOfPod(k.name), false, func(ctx context.Context) error {
			err := s.kill(ctx, k, p)
			if err == nil {
				todo.kill = append(todo.kill, k)
			}
			return err
		}})
	}
	for _, o := range todo.remove {
		all = append(all, step{o.GetLabels()[labelRecord], true, func(ctx context.Context) error { return s.remove(ctx, o, p) }})
	}
	for _, r := range todo.forget {
		all = append(all, step{r.Base, true, func(ctx context.Context) error { return s.forget(ctx, r) }})
	}
	return all
}

// baseOf gives the base of the record that an object is of, empty for none.
func (s *situation) baseOf(id ident) string {
	for _, o := range s.objects {
		if o.GetName() == id.Name && o.GetKind() == id.Kind {
			return o.GetLabels()[labelRecord]
		}
	}
	return ""
}

// baseOfPod is baseOf for a pod.
func (s *situation) baseOfPod(name string) string {
	for _, pod := range s.pods {
		if r := s.recordOf(pod); pod.Name == name && r != nil {
			return r.Base
		}
	}
	return ""
}

// lasting joins errors, each once. Those that pass by themselves are left out unless all do.
func lasting(all ...error) error {
	var stay []error
	for _, err := range all {
		if err != nil && !transient(err) && !slices.ContainsFunc(stay, func(told error) bool { return told.Error() == err.Error() }) {
			stay = append(stay, err)
		}
	}
	if len(stay) == 0 {
		return errors.Join(all...)
	}
	return errors.Join(stay...)
}

// change writes a record anew as it became, which nobody has asked for, unless Apply has changed it meanwhile: that is a conflict.
func (s *keeper) change(ctx context.Context, r *record, to func(next *record) bool) error {
	lock := s.lock(r.Key)
	lock.Lock()
	defer lock.Unlock()
	next := r.clone()
	if !to(next) {
		return nil
	}
	return s.store(ctx, next)
}

// inTime bounds one request.
func inTime(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx)
}

// transient tells of errors that say only that something has changed meanwhile.
func transient(err error) bool {
	return errors.Is(err, context.Canceled) || apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err)
}

// explain says what was to be done to what.
func explain(verb, kind, name string, err error) error {
	return fmt.Errorf("%s %s %s: %w", verb, kind, name, Explain(err))
}

// claim makes the model's PersistentVolumeClaim, once for each record; it is never changed or deleted.
func (s *keeper) claim(ctx context.Context, r *record, p *pace) error {
	e := r.engine()
	claim, ok := e.Claim(r.Replicas)
	if !ok {
		return nil
	}
	claims := s.link.Client.CoreV1().PersistentVolumeClaims(s.link.Namespace)
	_, err := claims.Create(ctx, claim, metav1.CreateOptions{FieldManager: kube.FieldManager})
	if apierrors.IsForbidden(err) { // a quota that is used up comes before the name that is taken
		if _, missing := claims.Get(ctx, claim.Name, metav1.GetOptions{}); missing == nil {
			err = nil
		}
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return explain("create", "PersistentVolumeClaim", claim.Name, err)
	}
	p.claimed = append(p.claimed, r.uid)
	return nil
}

func (s *keeper) resource(kind string) (schema.GroupVersionResource, *shelf) {
	for gvr, on := range s.objects {
		if gvr.Resource == plural(kind) {
			return gvr, on
		}
	}
	return schema.GroupVersionResource{}, nil
}

func (s *keeper) apply(ctx context.Context, o *unstructured.Unstructured, p *pace) error {
	gvr, on := s.resource(o.GetKind())
	if on == nil {
		return fmt.Errorf("%s %s: no workload names its resource", o.GetKind(), o.GetName())
	}
	o.SetNamespace(s.link.Namespace)
	ours := on.has(o.GetName()) // what is there and not ours is not taken over
	made, err := s.link.Dynamic.Resource(gvr).Namespace(s.link.Namespace).Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: kube.FieldManager, Force: ours})
	switch {
	case apierrors.IsConflict(err) && !ours:
		return fmt.Errorf("%s %s: %w: delete or rename it (%v)", o.GetKind(), o.GetName(), errForeign, err) //nolint:errorlint // it is no conflict that passes
	case err != nil:
		return explain("apply", o.GetKind(), o.GetName(), err)
	}
	p.await(awaited{on: on, name: made.GetName(), version: made.GetResourceVersion()}, s.now())
	return nil
}

func (s *keeper) patch(ctx context.Context, patch objectPatch, p *pace) error {
	gvr, on := s.resource(patch.Kind)
	body, err := json.Marshal(patch.body)
	if err != nil || on == nil {
		return fmt.Errorf("patch %s %s: %w", patch.Kind, patch.Name, errors.Join(err, errUnseen))
	}
	made, err := s.link.Dynamic.Resource(gvr).Namespace(s.link.Namespace).Patch(ctx, patch.Name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: kube.FieldManager})
	if err != nil {
		return explain("patch", patch.Kind, patch.Name, err)
	}
	p.await(awaited{on: on, name: made.GetName(), version: made.GetResourceVersion()}, s.now())
	return nil
}

func (s *keeper) mark(ctx context.Context, m podPatch, p *pace) error {
	body, err := m.body()
	if err != nil {
		return err
	}
	pod, err := s.link.Client.CoreV1().Pods(s.link.Namespace).Patch(ctx, m.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: kube.FieldManager})
	if err != nil {
		return explain("patch", "Pod", m.name, err)
	}
	p.await(awaited{on: s.pods, name: pod.Name, version: pod.ResourceVersion}, s.now())
	return nil
}

func (s *keeper) kill(ctx context.Context, k podKill, p *pace) error {
	s.log.Info("deletes a pod", "pod", k.name, "reason", k.why)
	o := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &k.uid}}
	if k.grace > 0 {
		o.GracePeriodSeconds = &k.grace
	}
	err := s.link.Client.CoreV1().Pods(s.link.Namespace).Delete(ctx, k.name, o)
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("delete", "Pod", k.name, err)
	}
	p.await(awaited{on: s.pods, name: k.name, gone: k.uid, grace: k.grace}, s.now())
	return nil
}

func (s *keeper) remove(ctx context.Context, o *unstructured.Unstructured, p *pace) error {
	gvr, on := s.resource(o.GetKind())
	if on == nil {
		return fmt.Errorf("%s %s: no workload names its resource", o.GetKind(), o.GetName())
	}
	uid := o.GetUID()
	err := s.link.Dynamic.Resource(gvr).Namespace(s.link.Namespace).Delete(ctx, o.GetName(), metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid}, PropagationPolicy: new(metav1.DeletePropagationBackground),
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("delete", o.GetKind(), o.GetName(), err)
	}
	p.await(awaited{on: on, name: o.GetName(), gone: uid}, s.now())
	if err == nil {
		p.removed = append(p.removed, uid)
	}
	return nil
}

func (s *keeper) forget(ctx context.Context, r *record) error {
	if r.uid == "" {
		return nil
	}
	err := s.link.Client.CoreV1().ConfigMaps(s.link.Namespace).Delete(ctx, r.name(), metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &r.uid, ResourceVersion: &r.version}, // somebody may want it again
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("delete", "ConfigMap", r.name(), err)
	}
	s.unlearn(r.group(), r.Base, r.uid)
	s.forgetShapes(r.Base)
	s.refresh(r.group())
	return nil
}
