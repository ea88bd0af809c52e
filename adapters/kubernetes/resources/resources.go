// Package resources has a fleet in custom resources: Fleet, Model and LoRA objects become the fleet file that the control plane
// applies and routers follow, and how it fares becomes their status. What an object may hold is in charts/mobula/crds, which
// cmd/fleetdoc writes from the fleet file's types.
package resources

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula/kube"
)

// Version and kinds of the custom resources, in the API group kube.Group.
const (
	Version   = "v1alpha1"
	KindFleet = "Fleet"
	KindModel = "Model"
	KindLoRA  = "LoRA"
	// DefaultFleet is the fleet of Model objects that name none.
	DefaultFleet = "default"
)

// Conditions in the status of the objects.
const (
	// ConditionAccepted: the object is right and in use. While it is not, what it was before is.
	ConditionAccepted = "Accepted"
	// ConditionReady: as many replicas as wanted serve; a LoRA is loaded where it is wanted; a Fleet is in use.
	ConditionReady = "Ready"
	// ConditionModelsReady: all models of a Fleet have as many replicas as wanted.
	ConditionModelsReady = "ModelsReady"
	// ConditionProgressing: replicas are being started or replaced.
	ConditionProgressing = "Progressing"
)

// Fleets is the resource of Fleet objects.
func Fleets() schema.GroupVersionResource { return resource("fleets") }

// Models is the resource of Model objects.
func Models() schema.GroupVersionResource { return resource("models") }

// LoRAs is the resource of LoRA objects.
func LoRAs() schema.GroupVersionResource { return resource("loras") }

func resource(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: kube.Group, Version: Version, Resource: name}
}
