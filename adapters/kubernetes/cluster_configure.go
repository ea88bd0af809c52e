package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

// Configured tells whether there is a cluster to look after.
func (c *Cluster) Configured() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

// Configure has the cluster of the fleet's platform.kubernetes or platform.kuberay be used from now on, or none without these sections.
// It fails while there are deployments that would be left behind, and when rights or resources are missing. An error that wraps
// ErrUnavailable is a warning: the settings are in use.
func (c *Cluster) Configure(ctx context.Context, fleet string, p mobula.Platform, dry bool) error {
	c.configure.Lock()
	defer c.configure.Unlock()
	c.mu.Lock()
	before, holds := c.link, c.holds()
	c.mu.Unlock()
	k := p.OnKubernetes()
	if k == nil {
		switch {
		case before == nil || before.fleet != fleet:
			return nil
		case holds:
			return fmt.Errorf("fleet %s has deployments in namespace %s of the Kubernetes cluster: delete the models first", fleet, before.Namespace)
		case !dry:
			c.use(nil)
		}
		return nil
	}
	next, err := c.connect(*k)
	if err != nil {
		return fmt.Errorf("platform.kubernetes: %w", err)
	}
	l := &link{fleet: fleet, platform: p, Connection: next}
	if _, err := NewDiscovery(fleet, p, DiscoveryOptions{Client: next.Client, Namespace: next.Namespace}); err != nil {
		return err
	}
	if before != nil && before.fleet == fleet && before.same(next) && reflect.DeepEqual(sections(before.platform), sections(p)) {
		if dry {
			return nil
		}
		return c.answers(ctx, l)
	}
	if before != nil && holds && (before.Namespace != next.Namespace || before.Config != nil && next.Config != nil && before.Config.Host != next.Config.Host) {
		return fmt.Errorf("platform.kubernetes: namespace %s has deployments of fleet %s, and %s would be used from now on: delete the models first",
			before.Namespace, before.fleet, next.Namespace)
	}
	warning := c.check(ctx, l)
	if warning != nil && !errors.Is(warning, adapters.ErrUnavailable) {
		return warning
	}
	if !dry {
		c.use(l)
	}
	return warning
}

// sections are those that matter here.
func sections(p mobula.Platform) [2]any { return [2]any{p.Kubernetes, p.KubeRay} }

// holds tells whether anything is asked for of our fleets, or still on its way out. c.mu is held.
func (c *Cluster) holds() bool {
	for group := range c.records {
		if _, known := c.fleets[fleetOf(group)]; known {
			return true
		}
	}
	return false
}

func (c *Cluster) connect(k mobula.Kubernetes) (*Connection, error) {
	if c.options.Client == nil {
		return Connect(k, ConnectOptions{Version: c.options.Version, Logger: c.log})
	}
	namespace := k.Namespace
	if namespace == "" {
		namespace = c.options.Namespace
	}
	if namespace == "" {
		namespace = "default"
	}
	return &Connection{Client: c.options.Client, Dynamic: c.options.Dynamic, Namespace: namespace}, nil
}

// use looks after another cluster from now on, or none.
func (c *Cluster) use(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil || l == nil || !c.link.same(l.Connection) {
		clear(c.fleets)
		clear(c.records)
		clear(c.statuses)
		clear(c.gaps)
		clear(c.stuck)
		clear(c.troubles)
		c.notes = nil
	}
	for fleet := range c.fleets {
		c.fleets[fleet] = false
	}
	if l != nil {
		c.fleets[l.fleet] = true
	}
	c.link = l
	c.tell()
	select {
	case c.anew <- struct{}{}:
	default:
	}
}

// answers fails with ErrUnavailable unless the API server answers now.
func (c *Cluster) answers(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.permit(ctx, l)
}

// check fails when something is missing that we need of the cluster.
func (c *Cluster) check(ctx context.Context, l *link) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.permit(ctx, l); err != nil {
		return err
	}
	if c.options.Check != nil { // it knows better what to do than what follows
		if err := c.options.Check(ctx, l.Connection, l.platform); err != nil {
			return err
		}
	}
	for _, gvr := range c.resources(l.platform) {
		if err := served(l.Connection, gvr); err != nil {
			return fmt.Errorf("platform: %w", err)
		}
	}
	if c.alone {
		return unclaimed(ctx, l)
	}
	return nil
}

// Possible fails when a platform of this section could never run d, whatever cluster it is. It is asked before the section is in use.
func (c *Cluster) Possible(p mobula.Platform, d adapters.Deployment) error {
	e := kube.Engine{Fleet: d.Fleet, Revision: d.Revision, Model: d.Model, KubeRay: p.KubeRay, OwnImage: c.options.OwnImage}
	kind := e.Workload()
	w := c.workloads[kind]
	if w == nil || kind == kube.KindRayCluster && p.KubeRay == nil {
		return impossibleError{fmt.Errorf("models[%s].kubernetes.workload: this platform has no %s", d.Model.Name, kind)}
	}
	if _, err := w.Objects(e, newID(d.Key), 1); err != nil {
		return impossibleError{err}
	}
	return nil
}

// unclaimed fails when the cluster has a Fleet object of the fleet's name: a control plane in the cluster looks after that one, and two would
// undo what the other does. Without the right to look there is nothing to say.
func unclaimed(ctx context.Context, l *link) error {
	fleets := schema.GroupVersionResource{Group: kube.Group, Version: "v1alpha1", Resource: "fleets"}
	_, err := l.Dynamic.Resource(fleets).Namespace(l.Namespace).Get(ctx, l.fleet, metav1.GetOptions{})
	switch err = Explain(err); {
	case err == nil:
		return fmt.Errorf("platform.kubernetes: namespace %s has a Fleet object %s, whose own control plane looks after the engines: change that one (kubectl, helm, or mobula apply to its control plane), "+
			"or give this fleet another name or namespace", l.Namespace, l.fleet)
	case errors.Is(err, adapters.ErrUnavailable):
		return err
	}
	return nil
}

func (c *Cluster) permit(ctx context.Context, l *link) error {
	var workloads []kube.Workload
	for _, w := range c.options.Workloads {
		if w.Kind() != kube.KindRayCluster || l.platform.KubeRay != nil {
			workloads = append(workloads, w)
		}
	}
	if err := Permitted(ctx, l.Connection, Rules(workloads...)); err != nil {
		return fmt.Errorf("platform.kubernetes: %w", err)
	}
	return nil
}

// served fails when the cluster does not know a resource.
func served(c *Connection, gvr schema.GroupVersionResource) error {
	list, err := c.Client.Discovery().ServerResourcesForGroupVersion(gvr.GroupVersion().String())
	if err != nil && !apierrors.IsNotFound(err) {
		return unavailable(Explain(err))
	}
	if list != nil {
		for i := range list.APIResources {
			if list.APIResources[i].Name == gvr.Resource {
				return nil
			}
		}
	}
	what := "install the CustomResourceDefinition of it"
	if gvr.Group == "ray.io" {
		what = "install the KubeRay operator: helm install kuberay-operator kuberay/kuberay-operator"
	}
	return fmt.Errorf("the cluster has no %s.%s %s: %s", gvr.Resource, gvr.Group, gvr.Version, what)
}

// resourcesOf are those of the objects of workloads.
func resourcesOf(workloads []kube.Workload) (all []schema.GroupVersionResource) {
	for _, w := range workloads {
		all = append(all, w.Resources()...)
	}
	return all
}
