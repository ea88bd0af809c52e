package kuberay

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/raycluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func engine() kube.Engine {
	return kube.Engine{
		Fleet: "main", Revision: "0123456789", KubeRay: &mobula.KubeRay{},
		Model: mobula.Model{Name: "chat", Resources: mobula.Resources{Hosts: 2}, Engine: mobula.Engine{Args: []string{"-pp", "2"}}, Kubernetes: mobula.KubernetesPods{Image: "ray"}},
	}
}

func TestObjects(t *testing.T) {
	objects, err := New().Objects(engine(), "chat-012345-abcde", 1)
	require.NoError(t, err)
	require.Len(t, objects, 1)
	o := objects[0]
	require.Equal(t, New().Kind(), o.GetKind())
	require.Equal(t, New().Resources()[0].GroupVersion().String(), o.GetAPIVersion())
	require.Equal(t, "chat-012345-abcde", o.GetName())
	require.Equal(t, "chat-012345-abcde", o.GetLabels()[kube.LabelReplica])
	require.NotContains(t, o.Object, "status")
	text, err := json.Marshal(o.Object)
	require.NoError(t, err)
	require.NotContains(t, string(text), "null")
	require.False(t, New().Counted())
}

func TestSleep(t *testing.T) {
	o := cluster(map[string]any{}, nil)
	require.False(t, New().Asleep(o))
	for _, on := range []bool{true, false} {
		require.Equal(t, map[string]any{"suspend": on}, New().Sleep(on), "the operator resumes none that says nothing")
		o.Object["spec"] = New().Sleep(on)
		require.Equal(t, on, New().Asleep(o))
	}
}

func TestObjectsAreRefused(t *testing.T) {
	_, err := New().Objects(engine(), "", 2)
	require.ErrorContains(t, err, "want its ID and a count of 1")
	e := engine()
	e.KubeRay = nil
	_, err = New().Objects(e, "chat-1", 1)
	require.ErrorIs(t, err, raycluster.ErrNoKubeRay)
}

// cluster gives a RayCluster with a status as the operator writes it.
func cluster(spec, status map[string]any) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec, "status": status}}
	o.SetName("chat-1")
	o.SetNamespace("models")
	return o
}

func conditions(of ...map[string]any) map[string]any {
	list := make([]any, 0, len(of))
	for _, c := range of {
		list = append(list, c)
	}
	return map[string]any{"conditions": list}
}

func is(kind, status, reason, message string) map[string]any {
	return map[string]any{"type": kind, "status": status, "reason": reason, "message": message}
}

func TestProblem(t *testing.T) {
	provisioning := is("RayClusterProvisioned", "False", "RayClusterPodsProvisioning", "RayCluster Pods are being provisioned for first time")
	for _, c := range []struct {
		name         string
		spec, status map[string]any
		want         string
	}{
		{"ready", nil, map[string]any{"state": "ready", "conditions": []any{is("HeadPodReady", "True", "HeadPodRunningAndReady", "")}}, ""},
		{"head starting", nil, conditions(provisioning, is("HeadPodReady", "False", "ContainersNotReady", "containers with unready status: [engine]")), ""},
		{
			"never looked at", nil, nil,
			"KubeRay's operator has not taken RayCluster models/chat-1 up: it does not run, does not watch this namespace, or refuses it, which it says in kubectl -n models describe raycluster chat-1",
		},
		{
			"quota", nil, conditions(is("ReplicaFailure", "True", "FailedCreateWorkerPod", `FailedCreateWorkerPod: pods "chat-1-worker" is forbidden:
exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8`), provisioning),
			`KubeRay could not make a worker pod of RayCluster models/chat-1: FailedCreateWorkerPod: pods "chat-1-worker" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8 (raise the namespace's ResourceQuota or ask for less)`,
		},
		{
			"pod security", nil, conditions(is("ReplicaFailure", "True", "FailedCreateHeadPod", `violates PodSecurity "restricted:latest"`)),
			`KubeRay could not make the head pod of RayCluster models/chat-1: violates PodSecurity "restricted:latest" (relax the namespace's pod security level, or set a securityContext in the model's kubernetes.pod)`,
		},
		{
			"operator's rights", nil, conditions(is("ReplicaFailure", "True", "FailedDeleteAllPods", `pods is forbidden: User "system:serviceaccount:kuberay:kuberay-operator" cannot delete`)),
			`KubeRay could not delete pods of RayCluster models/chat-1: pods is forbidden: User "system:serviceaccount:kuberay:kuberay-operator" cannot delete (give KubeRay's operator that right)`,
		},
		{"failure that is over", nil, conditions(is("ReplicaFailure", "False", "", ""), provisioning), ""},
		{
			"suspended",
			map[string]any{"suspend": true},
			map[string]any{"state": "suspended"},
			"RayCluster models/chat-1 is suspended and has no pods: set its spec.suspend to false, or find out who has set it (Kueue does while its quota is used up)",
		},
		{"of others", map[string]any{"managedBy": "kueue.x-k8s.io/multikueue"}, nil, "RayCluster models/chat-1 is managed by kueue.x-k8s.io/multikueue and not by KubeRay: its pods are for that to make"},
		{"failed, of an old operator", nil, map[string]any{"state": "failed"}, "RayCluster models/chat-1 has failed: see kubectl -n models describe raycluster chat-1"},
		{"a reason, of an old operator", nil, map[string]any{"state": "failed", "reason": "no nodes"}, "RayCluster models/chat-1: no nodes"},
		{"no head", nil, conditions(is("HeadPodReady", "False", "HeadPodNotFound", "Head Pod not found")), "RayCluster models/chat-1 has no head pod yet: if it stays so, see the log of KubeRay's operator"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, New().Problem(cluster(c.spec, c.status)))
		})
	}
}

func TestProblemOfOneThatGoes(t *testing.T) {
	o := cluster(nil, nil)
	o.SetDeletionTimestamp(new(metav1.Now()))
	require.Empty(t, New().Problem(o))
	require.Empty(t, New().Problem(nil))
}

func FuzzProblem(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"status":{"conditions":[{"type":"ReplicaFailure","status":"True","message":"m"}]}}`, `{"status":{"conditions":{"a":1}}}`,
		`{"spec":{"suspend":"yes"},"status":[]}`, `{"status":{"state":"failed","reason":"a\nb"}}`, `{"metadata":{"deletionTimestamp":1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var content map[string]any
		if json.Unmarshal(text, &content) != nil {
			return
		}
		problem := New().Problem(&unstructured.Unstructured{Object: content})
		o := &unstructured.Unstructured{Object: content}
		require.LessOrEqual(t, len(problem), 2*maxDetail+4*(len(o.GetName())+len(o.GetNamespace()))+len(text))
		if !strings.ContainsAny(o.GetName()+o.GetNamespace()+managed(o), "\n\r") {
			require.NotContains(t, problem, "\n")
		}
	})
}

func managed(o *unstructured.Unstructured) string {
	s, _, _ := unstructured.NestedString(o.Object, "spec", "managedBy")
	return s
}
