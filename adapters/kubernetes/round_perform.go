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

	"github.com/mobula-serve/mobula/kube"
)

// errForeign is of an object whose name is needed.
var errForeign = errors.New("one of that name is in the namespace that is not Mobula's")

// perform does what was planned, in order, up to the first error. What could not be done is planned again.
func (s *keeper) perform(ctx context.Context, in *situation, todo *actions, p *pace) error {
	for _, r := range todo.adopt {
		if err := s.change(ctx, r, func(next *record) bool { next.owner = in.owner; return true }); err != nil {
			return err
		}
	}
	for _, r := range todo.resize {
		if err := s.change(ctx, r, func(next *record) bool { s.resize(next); return !slices.Equal(next.Victims, r.Victims) }); err != nil {
			return err
		}
	}
	if err := s.claim(ctx, in, p); err != nil {
		return err
	}
	steps := []func(context.Context) error{}
	for _, o := range todo.apply {
		steps = append(steps, func(ctx context.Context) error { return s.apply(ctx, o, p) })
	}
	for _, patch := range todo.patch {
		steps = append(steps, func(ctx context.Context) error { return s.patch(ctx, patch, p) })
	}
	for _, m := range todo.marks {
		steps = append(steps, func(ctx context.Context) error { return s.mark(ctx, m, p) })
	}
	for _, k := range todo.kill {
		steps = append(steps, func(ctx context.Context) error { return s.kill(ctx, k, p) })
	}
	for _, o := range todo.remove {
		steps = append(steps, func(ctx context.Context) error { return s.remove(ctx, o, p) })
	}
	for _, r := range todo.forget {
		steps = append(steps, func(ctx context.Context) error { return s.forget(ctx, r) })
	}
	for _, step := range steps {
		if err := inTime(ctx, step); err != nil {
			return err
		}
	}
	return nil
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

// claim makes the model's PersistentVolumeClaim once; it is never changed or deleted.
func (s *keeper) claim(ctx context.Context, in *situation, p *pace) error {
	for _, r := range in.records {
		if r.Removed || p.claim == r.uid {
			continue
		}
		e := r.engine()
		claim, ok := e.Claim(r.Replicas)
		if !ok {
			continue
		}
		err := inTime(ctx, func(ctx context.Context) error {
			_, err := s.link.Client.CoreV1().PersistentVolumeClaims(s.link.Namespace).Create(ctx, claim, metav1.CreateOptions{FieldManager: kube.FieldManager})
			return err
		})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return explain("create", "PersistentVolumeClaim", claim.Name, err)
		}
		p.claim = r.uid
	}
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
