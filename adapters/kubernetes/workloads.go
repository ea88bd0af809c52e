package kubernetes

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula/kube"
)

// Deployments is the workload of engines of one pod: one Deployment holds all replicas of a revision.
type Deployments struct{}

// Kind is Deployment.
func (Deployments) Kind() string { return kube.KindDeployment }

// Counted is true.
func (Deployments) Counted() bool { return true }

// Resources are Deployments.
func (Deployments) Resources() []schema.GroupVersionResource {
	return []schema.GroupVersionResource{appsv1.SchemeGroupVersion.WithResource("deployments")}
}

// Objects gives the Deployment.
func (Deployments) Objects(e kube.Engine, _ string, count int) ([]*unstructured.Unstructured, error) {
	pod, err := e.Pod()
	if err != nil {
		return nil, err
	}
	labels := e.Labels()
	o, err := toObject(&appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: kube.KindDeployment},
		ObjectMeta: metav1.ObjectMeta{Name: kube.Name(e.Model.Name, e.Revision), Labels: labels, Annotations: annotations(e)},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(count)),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: pod,
			// A revision's pods never change: another revision is another Deployment, and control rolls from one to the other by what
			// routers see. Should somebody edit the template by hand, pods must not want for two sets of GPUs.
			Strategy:             appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			RevisionHistoryLimit: new(int32(0)),
		},
	})
	return []*unstructured.Unstructured{o}, err
}

// Problem tells why pods are missing: a quota, an admission that refuses them.
func (Deployments) Problem(o *unstructured.Unstructured) string {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		if c, ok := c.(map[string]any); ok && c["type"] == string(appsv1.DeploymentReplicaFailure) && c["status"] == "True" {
			message, _ := c["message"].(string)
			return fmt.Sprintf("Kubernetes refuses the pods of Deployment %s: %s", o.GetName(), message)
		}
	}
	return ""
}

func annotations(e kube.Engine) map[string]string {
	return map[string]string{kube.AnnotationModel: e.Model.Name}
}

// toObject makes what is sent of a typed object: without the fields that are for the cluster to fill in.
func toObject(o runtime.Object) (*unstructured.Unstructured, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("%T: %w", o, err)
	}
	delete(fields, "status")
	dropEmptyTime(fields)
	return &unstructured.Unstructured{Object: fields}, nil
}

// dropEmptyTime removes creationTimestamp: null, which typed objects have in each metadata.
func dropEmptyTime(fields map[string]any) {
	for name, value := range fields {
		switch value := value.(type) {
		case nil:
			if name == "creationTimestamp" {
				delete(fields, name)
			}
		case map[string]any:
			dropEmptyTime(value)
		}
	}
}

var _ kube.Workload = Deployments{}
