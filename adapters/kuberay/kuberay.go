// Package kuberay has engines run as RayClusters that the KubeRay operator looks after, one for each replica, and finds the head of
// a RayCluster or RayService that engines share. adapters/kubernetes applies and watches the objects.
package kuberay

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/raycluster"
)

const (
	group       = "ray.io"
	version     = "v1"
	kindCluster = "RayCluster"
)

// Clusters is the workload RayCluster.
type Clusters struct{}

// New gives the workload.
func New() Clusters { return Clusters{} }

// Kind implements kube.Workload.
func (Clusters) Kind() string { return kindCluster }

// Resources implements kube.Workload.
func (Clusters) Resources() []schema.GroupVersionResource {
	return []schema.GroupVersionResource{resource("rayclusters")}
}

// Counted implements kube.Workload: each replica is a RayCluster.
func (Clusters) Counted() bool { return false }

// Objects implements kube.Workload: one RayCluster.
func (Clusters) Objects(e kube.Engine, replica string, count int) ([]*unstructured.Unstructured, error) {
	if replica == "" || count != 1 {
		return nil, fmt.Errorf("a RayCluster is one replica: want its ID and a count of 1, got %q and %d", replica, count)
	}
	rc, err := raycluster.Cluster(e, replica)
	if err != nil {
		return nil, err
	}
	object, err := raycluster.Object(rc)
	if err != nil {
		return nil, err
	}
	return []*unstructured.Unstructured{object}, nil
}

// Sleep implements kube.Sleeper: KubeRay takes the pods of a suspended RayCluster away and keeps what else it has made for it. It resumes
// one that says false, and none that says nothing.
func (Clusters) Sleep(on bool) map[string]any { return map[string]any{"suspend": on} }

// Asleep implements kube.Sleeper.
func (Clusters) Asleep(o *unstructured.Unstructured) bool {
	on, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend")
	return on
}

func resource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: name}
}

var _ kube.Sleeper = Clusters{}
