package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/test/fleet"
)

// What the chart calls its objects.
const (
	controlSecret = "mobula-control"
	routerSecret  = "mobula-router"
	stateSecret   = "mobula-state"
	controlLease  = "mobula-control"
)

// world is a fleet of a Kubernetes cluster: control planes and routers are processes beside it.
type world struct {
	*fleet.Fleet
	t          *testing.T
	cluster    *kubetest.Cluster
	kubelet    *kubelet
	kubeconfig string
}

// newWorld starts a cluster of these nodes that runs pods, and nothing of Mobula.
func newWorld(t *testing.T, nodes ...kubetest.Node) *world {
	t.Helper()
	cluster, kubelet := newCluster(t, nodes...)
	w := &world{Fleet: fleet.Attach(t, binary(t)), t: t, cluster: cluster, kubelet: kubelet, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	require.NoError(t, os.WriteFile(w.kubeconfig, cluster.Kubeconfig("default"), 0o600))
	kubelet.begin(w.Command)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.dump())
		}
	})
	return w
}

// newObjectFleet starts a world with a control plane, these objects, and a router once there is something to route.
func newObjectFleet(t *testing.T, objects string, nodes ...kubetest.Node) *world {
	t.Helper()
	w := newWorld(t, nodes...)
	w.startControl("control-a")
	w.leads("control-a")
	w.apply(objects)
	w.startRouter("router")
	return w
}

// fleetObject is a Fleet object without anything special.
const fleetObject = "apiVersion: mobula.dev/v1alpha1\nkind: Fleet\nmetadata: {name: default}\nspec: {}\n"

// modelObject is a Model object of simulated engines; spec is more of it, in flow style.
func modelObject(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: mobula.dev/v1alpha1\nkind: Model\nmetadata: {name: %s}\nspec: {%s}\n", name, spec)
}

// startControl starts a control plane; it leads when it is its turn. It is the process of a pod that only the API server knows.
func (w *world) startControl(name string) {
	w.t.Helper()
	if w.cluster.Pod("default", name) == nil {
		w.cluster.Add(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec:       corev1.PodSpec{NodeName: w.cluster.Objects("nodes", "", "")[0].GetName(), Containers: []corev1.Container{{Name: "control", Image: "mobula:test"}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning},
		})
	}
	w.Start(name, []string{"POD_NAME=" + name}, "control", "--kubernetes", "--kubeconfig", w.kubeconfig, "--namespace", "default",
		"--fleet", "default", "--listen", "127.0.0.1:0", "--control-secret", controlSecret, "--router-secret", routerSecret, "--state-secret", stateSecret,
		"--lease", controlLease, "--image", "mobula:test")
}

// leads waits until a control plane leads, and has commands reach it.
func (w *world) leads(name string) {
	w.t.Helper()
	before, _ := os.ReadFile(w.Config())
	w.Await(name+" leads", func() bool {
		access := w.access()
		holds := false
		for _, l := range w.cluster.Objects("leases", "default", "") {
			holder, _, _ := unstructured.NestedString(l.Object, "spec", "holderIdentity")
			holds = holds || holder == name
		}
		if !holds || len(access) == 0 || bytes.Equal(access, before) {
			return false
		}
		require.NoError(w.t, os.WriteFile(w.Config(), access, 0o600))
		return true
	})
}

// ends waits until a process ends by itself with an error that has this text.
func (w *world) ends(name, text string) {
	w.t.Helper()
	log, code := w.Ended(name)
	require.Equal(w.t, 1, code, log)
	require.Contains(w.t, log[strings.LastIndex(log, "error:"):], text)
}

// access is how the control plane is reached, as its Secret says; nil while that says nothing.
func (w *world) access() []byte {
	for _, s := range w.cluster.Objects("secrets", "default", "") {
		if s.GetName() == controlSecret {
			text, _, _ := unstructured.NestedString(s.Object, "data", "client.json")
			data, err := base64.StdEncoding.DecodeString(text)
			require.NoError(w.t, err)
			return data
		}
	}
	return nil
}

// startRouter starts a router of the objects, again on the same port.
func (w *world) startRouter(name string) {
	w.t.Helper()
	address := "127.0.0.1:0"
	if w.URL != "" {
		address = strings.TrimPrefix(w.URL, "http://")
	}
	line := w.Start(name, []string{"POD_NAME=" + name}, "router", "--kubernetes", "--kubeconfig", w.kubeconfig, "--namespace", "default",
		"--control-secret", routerSecret, "--listen", address)
	w.URL = strings.TrimPrefix(line, "listening on ")
}

func (w *world) resource(kind string) dynamic.ResourceInterface {
	gvr := map[string]schema.GroupVersionResource{
		resources.KindFleet: resources.Fleets(), resources.KindModel: resources.Models(), resources.KindLoRA: resources.LoRAs(),
		"Pod": {Version: "v1", Resource: "pods"}, "Service": {Version: "v1", Resource: "services"},
	}[kind]
	require.NotEmpty(w.t, gvr, kind)
	return w.cluster.Dynamic().Resource(gvr).Namespace("default")
}

// apply is kubectl apply --server-side.
func (w *world) apply(objects string) {
	w.t.Helper()
	for doc := range strings.SplitSeq(objects, "---\n") {
		o := &unstructured.Unstructured{}
		require.NoError(w.t, yaml.Unmarshal([]byte(doc), &o.Object))
		if len(o.Object) == 0 {
			continue
		}
		_, err := w.resource(o.GetKind()).Apply(w.t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "kubectl", Force: true})
		require.NoError(w.t, err)
	}
}

// patch is kubectl patch --type merge.
func (w *world) patch(kind, name, body string, subresources ...string) {
	w.t.Helper()
	_, err := w.resource(kind).Patch(w.t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: "kubectl"}, subresources...)
	require.NoError(w.t, err)
}

// remove is kubectl delete.
func (w *world) remove(kind, name string) {
	w.t.Helper()
	require.NoError(w.t, w.resource(kind).Delete(w.t.Context(), name, metav1.DeleteOptions{}))
}

// object is an object as JSON, empty when it is not there.
func (w *world) object(kind, name string) gjson.Result {
	resource := map[string]string{resources.KindFleet: "fleets", resources.KindModel: "models", resources.KindLoRA: "loras"}[kind]
	for _, o := range w.cluster.Objects(resource, "default", "") {
		if o.GetName() == name {
			data, err := o.MarshalJSON()
			require.NoError(w.t, err)
			return gjson.ParseBytes(data)
		}
	}
	return gjson.Result{}
}

// is tells whether a condition of an object has a status and reason, and a message with all of these texts.
func (w *world) is(kind, name, condition, status, reason string, texts ...string) bool {
	c := w.object(kind, name).Get(`status.conditions.#(type="` + condition + `")`)
	ok := c.Get("status").String() == status && c.Get("reason").String() == reason
	for _, text := range texts {
		ok = ok && strings.Contains(c.Get("message").String(), text)
	}
	return ok
}

// awaitServing waits until a Model has n replicas, all of them ready, and no others.
func (w *world) awaitServing(model string, n int) {
	w.t.Helper()
	w.Await(fmt.Sprintf("Model %s has %d replicas ready", model, n), func() bool {
		status := w.object(resources.KindModel, model).Get("status")
		return status.Get("ready").String() == fmt.Sprintf("%d/%d", n, n) && int(status.Get("replicas").Int()) == n &&
			w.is(resources.KindModel, model, resources.ConditionAccepted, "True", "Applied")
	})
}

// oneReady gives a replica that is ready. One that answers late on a busy machine is not for a moment.
func (w *world) oneReady(model string) (one control.ReplicaStatus) {
	w.t.Helper()
	w.Await("a replica of "+model+" is ready", func() bool {
		ready := w.Ready(model)
		if len(ready) > 0 {
			one = ready[0]
		}
		return len(ready) > 0
	})
	return one
}

// awaitAnswers waits until the router answers for a model.
func (w *world) awaitAnswers(model string) {
	w.t.Helper()
	w.Await(model+" is answered", func() bool {
		a, err := w.Chat(w.t.Context(), model)
		return err == nil && a.Status == 200
	})
}

// pods are the names of a model's pods that are not being deleted.
func (w *world) pods(model string) (names []string) {
	for _, pod := range w.cluster.Pods("default", kube.LabelModel+"="+kube.Label(model)) {
		if pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	return names
}

// status of a placed model, as the control plane has it.
func (w *world) phase(model string) control.Phase {
	w.t.Helper()
	return w.Status(model).Rollout
}

// cordoned tells whether a node takes no new pods.
func (w *world) cordoned(node string) bool {
	for _, n := range w.cluster.Objects("nodes", "", "") {
		if n.GetName() == node {
			off, _, _ := unstructured.NestedBool(n.Object, "spec", "unschedulable")
			return off
		}
	}
	return false
}

// events are those of an object, as kubectl describe shows them: reason and message.
func (w *world) events(kind, name string) string {
	var b strings.Builder
	for _, e := range w.cluster.Objects("events", "default", "") {
		about, _, _ := unstructured.NestedStringMap(e.Object, "involvedObject")
		reason, _, _ := unstructured.NestedString(e.Object, "reason")
		message, _, _ := unstructured.NestedString(e.Object, "message")
		if about["kind"] == kind && about["name"] == name {
			fmt.Fprintf(&b, "%s: %s\n", reason, message)
		}
	}
	return b.String()
}

// dump is what the cluster has.
func (w *world) dump() string {
	var b strings.Builder
	for _, resource := range []string{"fleets", "models", "loras", "deployments", "replicasets", "configmaps"} {
		for _, o := range w.cluster.Objects(resource, "", "") {
			spec, _ := yaml.Marshal(map[string]any{"spec": o.Object["spec"], "status": o.Object["status"], "data": o.Object["data"]})
			if resource == "deployments" || resource == "replicasets" {
				spec, _ = yaml.Marshal(map[string]any{"status": o.Object["status"]})
			}
			fmt.Fprintf(&b, "--- %s %s %v\n%.3000s\n", resource, o.GetName(), o.GetAnnotations(), spec)
		}
	}
	for _, pod := range w.cluster.Pods("", "") {
		status, _ := yaml.Marshal(pod.Status.ContainerStatuses)
		fmt.Fprintf(&b, "--- pod %s on %s %s %v deleted %v\n%s\n", pod.Name, pod.Spec.NodeName, pod.Status.Phase, pod.Annotations, pod.DeletionTimestamp, status)
	}
	return b.String()
}
