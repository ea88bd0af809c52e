package kubernetes

import (
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mobula-serve/mobula/kube"
)

const (
	// rankVariable holds a pod's rank, which is its index in the StatefulSet.
	rankVariable = "MOBULA_RANK"
	// othersSuffix is what the StatefulSet of the ranks from 1 has after the replica's ID.
	othersSuffix = "-w"
)

// StatefulSets is the workload of engines of several pods that meet without Ray: each replica has a StatefulSet for the
// pod of rank 0, which serves, another one for the others, and a headless Service by which they meet.
type StatefulSets struct{}

// Kind is StatefulSet.
func (StatefulSets) Kind() string { return kube.KindStatefulSet }

// Counted is false.
func (StatefulSets) Counted() bool { return false }

// Gang is true: when the process of one pod ends, those of the others are of no use any more.
func (StatefulSets) Gang() bool { return true }

// Resources are Services and StatefulSets.
func (StatefulSets) Resources() []schema.GroupVersionResource {
	return []schema.GroupVersionResource{
		corev1.SchemeGroupVersion.WithResource("services"),
		appsv1.SchemeGroupVersion.WithResource("statefulsets"),
	}
}

// Objects gives the Service and the StatefulSets of one replica.
func (StatefulSets) Objects(e kube.Engine, replica string, _ int) ([]*unstructured.Unstructured, error) {
	labels := e.Labels()
	labels[kube.LabelReplica] = replica
	master := fmt.Sprintf("%s-0.%s", replica, replica)
	first, err := e.Member(kube.Member{Master: master, Replica: replica})
	if err != nil {
		return nil, err
	}
	objects := []runtime.Object{
		&corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: metav1.ObjectMeta{Name: replica, Labels: labels, Annotations: annotations(e)},
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{kube.LabelReplica: replica},
				PublishNotReadyAddresses: true, // they meet before any of them is ready
			},
		},
		statefulSet(e, replica, replica, labels, first, 0, 1),
	}
	if others := e.Model.Resources.Hosts - 1; others > 0 {
		pod, err := e.Member(kube.Member{Rank: 1, RankVar: "$(" + rankVariable + ")", Master: master, Replica: replica})
		if err != nil {
			return nil, err
		}
		withRank(&pod)
		objects = append(objects, statefulSet(e, replica+othersSuffix, replica, labels, pod, 1, others))
	}
	all := make([]*unstructured.Unstructured, 0, len(objects))
	for _, o := range objects {
		u, err := toObject(o)
		if err != nil {
			return nil, err
		}
		all = append(all, u)
	}
	return all, nil
}

// statefulSet makes one of so many pods, the first of which has the rank start.
func statefulSet(e kube.Engine, name, service string, labels map[string]string, pod corev1.PodTemplateSpec, start, count int) *appsv1.StatefulSet {
	selector := maps.Clone(labels)
	if start > 0 { // the two select each its own
		selector[labelPart] = partOthers
	} else {
		selector[labelPart] = partFirst
	}
	pod.Labels = maps.Clone(pod.Labels)
	pod.Labels[labelPart] = selector[labelPart]
	set := &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: kube.KindStatefulSet},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations(e)},
		Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(count)), ServiceName: service,
			Selector: &metav1.LabelSelector{MatchLabels: selector}, Template: pod,
			PodManagementPolicy:  appsv1.ParallelPodManagement, // none gets ready without the others
			UpdateStrategy:       appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType},
			RevisionHistoryLimit: new(int32(0)),
		},
	}
	if start > 0 {
		set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(start)}
	}
	return set
}

// withRank has the engine's container know its pod's index. Variables that others refer to come first.
func withRank(pod *corev1.PodTemplateSpec) {
	at := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == kube.Container })
	if at < 0 {
		return
	}
	c := &pod.Spec.Containers[at]
	c.Env = slices.Insert(slices.Clone(c.Env), 0, corev1.EnvVar{Name: rankVariable, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels['" + appsv1.PodIndexLabel + "']"},
	}})
}

// Problem is empty: a StatefulSet tells why pods are missing only by events.
func (StatefulSets) Problem(*unstructured.Unstructured) string { return "" }

var _ kube.Workload = StatefulSets{}
