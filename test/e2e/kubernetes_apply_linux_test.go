package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/kube"
)

// fileOf is a fleet file on Kubernetes; platform is more of that section, models are in flow style.
func fileOf(platform string, models ...string) string {
	return "apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {" + platform + "}}\nmodels:\n  - {" + strings.Join(models, "}\n  - {") + "}\n"
}

// left are the objects of the engines, and of the fleet, that are there.
func (w *world) left() (all []string) {
	for _, resource := range []string{"fleets", "models", "loras", "configmaps", "deployments", "replicasets", "statefulsets", "services", "poddisruptionbudgets"} {
		for _, o := range w.cluster.Objects(resource, "default", "") {
			all = append(all, resource+"/"+o.GetName())
		}
	}
	for _, pod := range w.cluster.Pods("default", kube.LabelManagedBy) {
		all = append(all, "pods/"+pod.Name)
	}
	return all
}

// noneLeft waits until nothing but claims is left.
func (w *world) noneLeft() {
	w.t.Helper()
	w.Await("nothing is left", func() bool { return len(w.left()) == 0 && len(w.Processes("sim")) == 0 })
}

func TestApplyWritesKubernetesObjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.startControl("control-a")
	w.leads("control-a")
	const one = "name: org/chat, replicas: 2, engine: {kind: sim, args: [--itl, 2ms]}, kubernetes: {data: {size: 1GiB}}"
	const two = "name: org/second, replicas: 1, engine: {kind: sim}"
	w.Apply(fileOf("", one, two))
	w.startRouter("router")
	w.awaitServing("org-chat", 2)
	w.awaitServing("org-second", 1)
	w.awaitAnswers(chatModel)
	version := func() string {
		return w.object(resources.KindFleet, "default").Get("metadata.generation").String() + " " + w.object(resources.KindModel, "org-chat").Get("metadata.generation").String()
	}
	before, pods := version(), w.pods(chatModel)
	require.Regexp(t, "(?m)^no change$", w.Apply(fileOf("", one, two)))
	require.Equal(t, before, version())
	require.Equal(t, pods, w.pods(chatModel))

	w.apply("apiVersion: mobula.dev/v1alpha1\nkind: LoRA\nmetadata: {name: extra}\nspec: {model: org-chat, source: /loras/extra}\n")
	w.Await("the LoRA is in use", func() bool { return w.is(resources.KindLoRA, "extra", resources.ConditionReady, "True", "Loaded") })
	w.Await("its engines are new", func() bool { return w.phase(chatModel) == "Complete" })
	w.Apply(fileOf("", one, two)) // which has no word of it

	file := filepath.Join(t.TempDir(), "fleet.yaml")
	require.NoError(t, os.WriteFile(file, []byte(fileOf("", one)), 0o600))
	w.Run("apply", "-f", file)
	w.Await("the other Model is gone", func() bool {
		return !w.object(resources.KindModel, "org-second").Exists() && len(w.pods("org/second")) == 0
	})
	t.Run("what belongs to Helm is left to it", func(t *testing.T) {
		w.patch(resources.KindModel, "org-chat", `{"metadata":{"labels":{"app.kubernetes.io/managed-by":"Helm"},"annotations":{"meta.helm.sh/release-name":"prod"}}}`)
		require.NoError(t, os.WriteFile(file, []byte(fileOf("", strings.Replace(one, "replicas: 2", "replicas: 1", 1))), 0o600))
		for _, args := range [][]string{{"apply", "-f", file}, {"delete", chatModel, "--yes"}, {"delete", "--all", "--yes"}} {
			w.Await("it is refused: "+strings.Join(args, " "), func() bool { // once the control plane has seen the label
				_, err := w.TryRun(args...)
				return err != nil && strings.Contains(err.Error(), "Model org-chat belongs to the Helm release prod: change its values and run helm upgrade")
			})
		}
		require.EqualValues(t, 2, w.object(resources.KindModel, "org-chat").Get("spec.replicas").Int())
		w.patch(resources.KindModel, "org-chat", `{"metadata":{"labels":{"app.kubernetes.io/managed-by":"mobula-apply"}}}`)
	})
	w.Await("it may be deleted", func() bool { _, err := w.TryRun("delete", chatModel, "--yes"); return err == nil })
	w.Await("the Model is gone", func() bool { return !w.object(resources.KindModel, "org-chat").Exists() })
	w.Apply(fileOf("", one))
	w.awaitServing("org-chat", 2)
	w.remove(resources.KindLoRA, "extra")
	w.Run("delete", "--all", "--yes")
	w.noneLeft()
	require.Len(t, w.cluster.Objects("persistentvolumeclaims", "default", ""), 1, "data stays")
}

func TestAKubernetesFleetThatIsDeletedDoesNotComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.startControl("control-a")
	w.leads("control-a")
	const model = "name: org/chat, replicas: 1, engine: {kind: sim}"
	forgotten := func() {
		t.Helper()
		w.Await("the control plane wants nothing", func() bool {
			file, err := w.TryRun("get", "fleet")
			return err == nil && file == ""
		})
	}
	for _, byHand := range []bool{false, true} {
		w.Apply(fileOf("", model))
		w.awaitServing("org-chat", 1)
		if byHand {
			w.remove(resources.KindFleet, "default")
			w.Await("its Model says so", func() bool {
				return w.is(resources.KindModel, "org-chat", resources.ConditionAccepted, "False", "NoFleet", "there is no Fleet object")
			})
			require.Contains(t, w.Run("get", "fleet"), chatModel, "what runs stays while there are Models")
			require.Len(t, w.pods(chatModel), 1)
			w.remove(resources.KindModel, "org-chat")
		} else {
			w.Run("delete", "--all", "--yes")
		}
		forgotten()
		w.noneLeft()
	}
	w.cluster.ResetCalls()
	w.Stop("control-a")
	w.startControl("control-b")
	w.leads("control-b")
	forgotten()
	w.Apply(fileOf("", strings.Replace(model, "org/chat", "org/second", 1)))
	w.awaitServing("org-second", 1)
	require.Equal(t, 1, w.cluster.Calls()["create configmaps"], "nothing was made of what is deleted")
}

func TestNothingIsLeftOfKubernetesObjectsWithoutAControlPlane(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(2, "}")+modelObject("second", "replicas: 1, engine: {kind: sim}"))
	w.awaitServing("chat", 2)
	w.awaitServing("second", 1)
	w.Kill("control-a")
	w.remove(resources.KindModel, "chat")
	w.remove(resources.KindModel, "second")
	w.remove(resources.KindFleet, "default")
	w.noneLeft()
}

func TestKubernetesWithoutObjects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "fleet.yaml")
	platform := "kubeconfig: " + w.kubeconfig
	const model = "name: org/chat, replicas: 2, engine: {kind: sim, args: [--itl, 2ms]}"
	require.NoError(t, os.WriteFile(file, []byte(fileOf(platform, model)), 0o600))
	w.Start("control", []string{"MOBULA_IMAGE=mobula:test"}, "control", "-f", file, "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "control"))
	access, err := os.ReadFile(filepath.Join(dir, "control", "client.json"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(w.Config(), access, 0o600))
	w.URL = strings.TrimPrefix(w.Start("router", nil, "router", "--config", w.Config(), "--listen", "127.0.0.1:0"), "listening on ")
	w.AwaitReady(chatModel, 2)
	w.awaitAnswers(chatModel)
	load := w.Traffic(chatModel, 4, true)
	load.More(20)
	w.Run("scale", chatModel, "3")
	w.AwaitReady(chatModel, 3)
	require.NoError(t, os.WriteFile(file, []byte(fileOf(platform, strings.Replace(model, "2ms]", "1ms]", 1))), 0o600))
	before := w.oneReady(chatModel).Revision
	w.Await("another revision", func() bool {
		ready := w.Ready(chatModel)
		return len(ready) > 0 && len(w.Replicas()) == len(ready) && ready[0].Revision != before
	})
	load.More(20)
	load.End()
	w.Run("delete", "--all", "--yes")
	w.noneLeft()
}

func TestRouterFindsKubernetesPodsOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	create := func(name string, labels map[string]string) {
		t.Helper()
		_, err := w.cluster.Client().CoreV1().Pods("theirs").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Name: "vllm", Image: "theirs:v1", Command: []string{ownCommand},
				Args:      []string{"sim", "--model", chatModel, "--host", "0.0.0.0", "--port", "8000", "--itl", "2ms", "--drain-timeout", "30s"},
				Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}},
				Ports:     []corev1.ContainerPort{{Name: "http", ContainerPort: 8000}},
			}}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	engines := map[string]string{"app": "vllm"}
	create("a", engines)
	create("b", engines)
	create("c", map[string]string{"app": "other"})
	_, err := w.cluster.Client().CoreV1().Services("theirs").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "svc", Labels: map[string]string{"mesh": "true"}},
		Spec:       corev1.ServiceSpec{Selector: engines, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)

	file := filepath.Join(t.TempDir(), "fleet.yaml")
	discover := fmt.Sprintf("kubeconfig: %s, discover: [{selector: app=vllm, namespaces: [theirs]}, {selector: 'mesh=true', namespaces: ['*'], by: services, models: [org/mesh]}]", w.kubeconfig)
	require.NoError(t, os.WriteFile(file, []byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {"+discover+"}}\n"), 0o600))
	w.URL = strings.TrimPrefix(w.Start("router", nil, "router", "-f", file, "--listen", "127.0.0.1:0"), "listening on ")
	w.awaitAnswers(chatModel)
	said := func(what, id string) bool { return strings.Contains(w.Log("router"), `msg="`+what+`" endpoint=`+id) }
	id := func(pod string) string {
		p := w.cluster.Pod("theirs", pod)
		return fmt.Sprintf("theirs/%s:%d", pod, p.Spec.Containers[0].Ports[0].ContainerPort)
	}
	w.AwaitServes(chatModel, id("a"))
	w.AwaitServes(chatModel, id("b"))
	require.NotContains(t, w.Log("router"), "theirs/c", "another label")
	w.Await("the Service is an endpoint", func() bool { return said("endpoint does not answer yet", "svc.theirs:80") }) // there is no DNS here

	load := w.Traffic(chatModel, 4, true)
	load.More(20)
	create("d", engines)
	w.Await("a new pod serves", func() bool { p := w.cluster.Pod("theirs", "d"); return p.Status.PodIP != "" })
	w.AwaitServes(chatModel, id("d"))
	gone := id("a")
	require.NoError(t, w.cluster.Client().CoreV1().Pods("theirs").Delete(t.Context(), "a", metav1.DeleteOptions{}))
	w.Await("a deleted one is forgotten", func() bool { return said("endpoint removed", gone) })
	require.NoError(t, w.cluster.Client().CoreV1().Services("theirs").Delete(t.Context(), "svc", metav1.DeleteOptions{}))
	w.Await("so is the Service", func() bool { return said("endpoint removed", "svc.theirs:80") })
	load.More(20)
	load.End()
}
