// Package kube is what the Kubernetes platforms share, as pure functions: how the pods of an engine are made, what
// they are called, and what a pod tells of the replica that it is. It asks no API server.
package kube

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula"
)

// Group is the API group of Mobula's resources, and the prefix of its labels and annotations.
const Group = "mobula.dev"

// Labels of all objects that are made for engines. Values that labels can't hold (a model's name) are shortened and
// hashed by Label; the annotations have them as they are.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by" // ManagedBy
	LabelName      = "app.kubernetes.io/name"       // AppEngine
	LabelFleet     = Group + "/fleet"
	LabelModel     = Group + "/model"    // Label(model's name)
	LabelRevision  = Group + "/revision" // ten characters
	LabelReplica   = Group + "/replica"  // of an engine of several pods: the replica's ID; a Deployment's pod is a replica itself
	LabelServes    = Group + "/serves"   // "true" on the pod of an engine that takes requests; no other pod is an endpoint
)

// Annotations.
const (
	AnnotationModel = Group + "/model" // the model's name
	// AnnotationDrain on a serving pod has it get no new requests. Its value says why, for people.
	AnnotationDrain = Group + "/drain"
	// AnnotationSpec is a hash of what an object was made from, so that what has not changed is not sent again.
	AnnotationSpec = Group + "/spec"
)

// Values of labels, names of containers and ports.
const (
	ManagedBy    = "mobula"
	AppEngine    = "mobula-engine"
	FieldManager = "mobula"
	Container    = "engine" // the container of the engine
	PortName     = "http"
	Port         = 8000 // that engines listen on
	DataPath     = "/data"
	// MasterPort is where the pods of one engine meet.
	MasterPort = 29500
)

// Engine is what the pods of one revision of a model are made from.
type Engine struct {
	Fleet    string
	Revision string
	// Model with all that its engines are made from: mobula.Fleet.Engine gives it.
	Model mobula.Model
	// KubeRay is the platform's section, nil on plain Kubernetes.
	KubeRay *mobula.KubeRay
	// OwnImage is the image of simulated engines that name none: the control plane's own.
	OwnImage string
}

// Member is the part that one pod has in an engine of several.
type Member struct {
	// Rank of the pod, 0 for the one that serves. RankVar, if not empty, is an expression such as $(MOBULA_RANK) that stands
	// for it in arguments: pods of rank 1 and above that are made from one template.
	Rank    int
	RankVar string
	// Master is the address at which the pod of rank 0 is reached.
	Master string
	// Replica is the ID of the replica that the pod belongs to.
	Replica string
}

// Workload makes the pods of a deployment's replicas exist, by objects that a controller of the cluster looks after.
type Workload interface {
	// Kind is the value of mobula.KubernetesPods.Workload that asks for it.
	Kind() string
	// Resources are those of the objects that it makes.
	Resources() []schema.GroupVersionResource
	// Counted tells that one object holds all replicas and their number is a field of it (a Deployment), each pod being a
	// replica. Else each replica has objects of its own that bear its ID.
	Counted() bool
	// Objects gives the objects that should be there, complete but for namespace and owner, those that others need first. With Counted
	// replica is empty and count the number of replicas; else count is 1. The first problem of the model's section is the error.
	Objects(e Engine, replica string, count int) ([]*unstructured.Unstructured, error)
	// Problem tells from one of its objects as the cluster has it why pods are missing, a sentence for people; empty when nothing is wrong.
	Problem(o *unstructured.Unstructured) string
}

// Sleeper is a Workload whose objects can be there without pods. Those of the replicas that a model at zero had last are kept so, and are
// the first to be used again.
type Sleeper interface {
	Workload
	// Sleep gives fields of spec, for a merge patch, that have an object's pods taken away, or made again.
	Sleep(on bool) map[string]any
	// Asleep tells whether these fields of an object are so that it has no pods.
	Asleep(o *unstructured.Unstructured) bool
}
