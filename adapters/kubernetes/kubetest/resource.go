package kubetest

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// Resource is one that the API server serves.
type Resource struct {
	schema.GroupVersionResource
	// Kind of its objects.
	Kind string
	// Namespaced tells that its objects lie in namespaces.
	Namespaced bool
	// Subresources that it has beside those of pods: status, scale.
	Subresources []string
	// ShortNames for people.
	ShortNames []string
}

func (r Resource) is(group, resource string) bool {
	return r.Group == group && r.Resource == resource
}

func (r Resource) kind() schema.GroupVersionKind { return r.GroupVersion().WithKind(r.Kind) }

func (r Resource) has(subresource string) bool { return slices.Contains(r.Subresources, subresource) }

func (r Resource) apiVersion() string { return r.GroupVersion().String() }

// conditional tells that objects are replaced only by those who say which version: custom resources, and leases.
func (r Resource) conditional() bool {
	return !scheme.Scheme.Recognizes(r.kind()) || r.is("coordination.k8s.io", "leases")
}

// named makes a resource of a namespace.
func named(group, version, resource, kind string, subresources ...string) Resource {
	return Resource{
		GroupVersionResource: schema.GroupVersionResource{Group: group, Version: version, Resource: resource},
		Kind:                 kind, Namespaced: true, Subresources: subresources,
	}
}

// global makes a resource of the cluster.
func global(group, version, resource, kind string, subresources ...string) Resource {
	r := named(group, version, resource, kind, subresources...)
	r.Namespaced = false
	return r
}

// resources are those that are served from the start.
func resources() []Resource {
	return []Resource{
		named("", "v1", "pods", "Pod", "status", "log", "eviction", "binding"),
		global("", "v1", "nodes", "Node", "status"),
		global("", "v1", "namespaces", "Namespace", "status"),
		global("", "v1", "persistentvolumes", "PersistentVolume", "status"),
		named("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", "status"),
		named("", "v1", "services", "Service", "status"),
		named("", "v1", "endpoints", "Endpoints"),
		named("", "v1", "configmaps", "ConfigMap"),
		named("", "v1", "secrets", "Secret"),
		named("", "v1", "serviceaccounts", "ServiceAccount"),
		named("", "v1", "events", "Event"),
		named("", "v1", "resourcequotas", "ResourceQuota", "status"),
		named("apps", "v1", "deployments", "Deployment", "status", "scale"),
		named("apps", "v1", "replicasets", "ReplicaSet", "status", "scale"),
		named("apps", "v1", "statefulsets", "StatefulSet", "status", "scale"),
		named("apps", "v1", "daemonsets", "DaemonSet", "status"),
		named("apps", "v1", "controllerrevisions", "ControllerRevision"),
		named("batch", "v1", "jobs", "Job", "status"),
		named("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "status"),
		named("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "status"),
		named("coordination.k8s.io", "v1", "leases", "Lease"),
		named("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
		named("events.k8s.io", "v1", "events", "Event"),
		named("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
		named("networking.k8s.io", "v1", "ingresses", "Ingress", "status"),
		named("rbac.authorization.k8s.io", "v1", "roles", "Role"),
		named("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
		global("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole"),
		global("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding"),
		global("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass"),
		global("storage.k8s.io", "v1", "storageclasses", "StorageClass"),
		global("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass"),
		global("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", "status"),
		global("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
		global("authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
		named("ray.io", "v1", "rayclusters", "RayCluster", "status"),
		named("ray.io", "v1", "rayservices", "RayService", "status"),
		named("ray.io", "v1", "rayjobs", "RayJob", "status"),
		named("mobula.dev", "v1alpha1", "fleets", "Fleet", "status"),
		named("mobula.dev", "v1alpha1", "models", "Model", "status", "scale"),
		named("mobula.dev", "v1alpha1", "loras", "LoRA", "status"),
	}
}
