package kuberay

import (
	"fmt"
	"strings"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// maxDetail bounds what is passed on of a message of the operator's, in bytes.
const maxDetail = 600

// Problem implements kube.Workload: it reads the status of a RayCluster. What is wrong with pods that are there they tell themselves.
func (Clusters) Problem(o *unstructured.Unstructured) string {
	if o == nil || o.GetDeletionTimestamp() != nil {
		return ""
	}
	name := o.GetNamespace() + "/" + o.GetName()
	conditions := conditionsOf(o)
	if c, ok := conditions[rayv1.RayClusterReplicaFailure]; ok && c.status == "True" {
		return failure(name, c)
	}
	if on, _, _ := unstructured.NestedBool(o.Object, "spec", "suspend"); on {
		return fmt.Sprintf("RayCluster %s is suspended and has no pods: set its spec.suspend to false, or find out who has set it (Kueue does while its quota is used up)", name)
	}
	if managed, _, _ := unstructured.NestedString(o.Object, "spec", "managedBy"); managed != "" && managed != "ray.io/kuberay-operator" {
		return fmt.Sprintf("RayCluster %s is managed by %s and not by KubeRay: its pods are for that to make", name, managed)
	}
	state, _, _ := unstructured.NestedString(o.Object, "status", "state")
	reason, _, _ := unstructured.NestedString(o.Object, "status", "reason")
	head := conditions[rayv1.HeadPodReady]
	switch {
	case state == "" && len(conditions) == 0:
		return fmt.Sprintf("KubeRay's operator has not taken RayCluster %s up: it does not run, does not watch this namespace, or refuses it, which it says in kubectl -n %s describe raycluster %s",
			name, o.GetNamespace(), o.GetName())
	case reason != "" && state != string(rayv1.Ready):
		return fmt.Sprintf("RayCluster %s: %s", name, bounded(reason))
	case state == string(rayv1.Failed):
		return fmt.Sprintf("RayCluster %s has failed: see kubectl -n %s describe raycluster %s", name, o.GetNamespace(), o.GetName())
	case head.reason == rayv1.HeadPodNotFound:
		return fmt.Sprintf("RayCluster %s has no head pod yet: if it stays so, see the log of KubeRay's operator", name)
	}
	return ""
}

// failure tells why pods could not be made or deleted, and what helps.
func failure(name string, c condition) string {
	advice := "see the events of the RayCluster"
	switch message := strings.ToLower(c.message); {
	case strings.Contains(message, "exceeded quota"):
		advice = "raise the namespace's ResourceQuota or ask for less"
	case strings.Contains(message, "violates podsecurity"):
		advice = "relax the namespace's pod security level, or set a securityContext in the model's kubernetes.pod"
	case strings.Contains(message, "admission webhook"):
		advice = "the webhook's owner knows what it wants"
	case strings.Contains(message, "is forbidden") && strings.Contains(message, "user "):
		advice = "give KubeRay's operator that right"
	}
	what := "KubeRay could not make or delete pods"
	switch c.reason {
	case "FailedCreateHeadPod":
		what = "KubeRay could not make the head pod"
	case "FailedCreateWorkerPod":
		what = "KubeRay could not make a worker pod"
	case "FailedDeleteHeadPod", "FailedDeleteWorkerPod", "FailedDeleteAllPods":
		what = "KubeRay could not delete pods"
	}
	return fmt.Sprintf("%s of RayCluster %s: %s (%s)", what, name, bounded(c.message), advice)
}

// condition is one of a RayCluster's conditions.
type condition struct{ status, reason, message string }

// conditionsOf reads them whatever they look like.
func conditionsOf(o *unstructured.Unstructured) map[rayv1.RayClusterConditionType]condition {
	list, _, _ := unstructured.NestedFieldNoCopy(o.Object, "status", "conditions")
	items, _ := list.([]any)
	out := make(map[rayv1.RayClusterConditionType]condition, len(items))
	for _, item := range items {
		fields, _ := item.(map[string]any)
		text := func(name string) string { s, _ := fields[name].(string); return s }
		if kind := text("type"); kind != "" {
			out[rayv1.RayClusterConditionType(kind)] = condition{status: text("status"), reason: text("reason"), message: text("message")}
		}
	}
	return out
}

// bounded gives a message in one line, cut at maxDetail.
func bounded(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "")), " ")
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}
