package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/kube"
)

func TestBadKubernetesObjectsSayWhatIsWrongAndDisturbNobody(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(2, "}"), kubetest.Node{Name: "n1"})
	w.awaitServing("chat", 2)
	w.awaitAnswers(chatModel)
	load := w.Traffic(chatModel, 2, true)
	before := w.pods(chatModel)

	// What can never be is refused: the object says so, nothing is made of it.
	refused := func(t *testing.T, name, spec string, texts ...string) {
		t.Helper()
		w.apply(modelObject(name, spec))
		w.Await("it is refused", func() bool {
			return w.is(resources.KindModel, name, resources.ConditionAccepted, "False", "Invalid", texts...)
		})
		require.Contains(t, w.Log("control-a"), texts[0])
		model, object := name, name
		if id := w.object(resources.KindModel, name).Get("spec.name").String(); id != "" {
			model, object = id, "chat" // which has the name
		}
		w.Await("it is an event of the Model", func() bool {
			return strings.Contains(w.events(resources.KindModel, object), texts[0]) && strings.Contains(w.events(resources.KindModel, object), "Invalid: ")
		})
		said := w.Run("describe", "model", model)
		require.Contains(t, said, "the Model object "+name+" is not in use: ")
		require.Contains(t, said, texts[0])
		require.Regexp(t, `(?m)^`+regexp.QuoteMeta(model)+` .*the Model object `+name, w.Run("get", "models", "-o", "wide"))
		require.Empty(t, w.pods(name))
		load.More(10)
		w.remove(resources.KindModel, name)
	}
	t.Run("no such field of a pod", func(t *testing.T) {
		refused(t, "overlay", "replicas: 1, engine: {kind: sim}, kubernetes: {pod: {spec: {tolerationz: []}}}", "kubernetes.pod.spec.tolerationz: no such field", "did you mean tolerations?")
	})
	t.Run("no such field of a model", func(t *testing.T) {
		refused(t, "field", "replicas: 1, engine: {kind: sim}, replikas: 3", "replikas")
	})
	t.Run("GPUs that can't be shared", func(t *testing.T) {
		refused(t, "shares", "replicas: 1, resources: {hosts: 2, gpus: 3}", "spec.resources.gpus: want a multiple of hosts (2), got 3")
	})
	t.Run("no quantity", func(t *testing.T) {
		refused(t, "quantity", "replicas: 1, engine: {kind: sim}, kubernetes: {memory: lots}", "kubernetes.memory: want a quantity such as 512Mi or 16Gi, got")
	})
	t.Run("no KubeRay", func(t *testing.T) {
		refused(t, "ray", "replicas: 1, resources: {gpus: 1}, kubernetes: {workload: RayCluster}", "kubernetes.workload: want platform kuberay for a RayCluster")
	})
	t.Run("a second Model of one name", func(t *testing.T) {
		refused(t, "twin", "name: "+chatModel+", engine: {kind: sim}", chatModel)
	})
	t.Run("what was right before stays", func(t *testing.T) {
		w.patch(resources.KindModel, "chat", `{"spec":{"kubernetes":{"cpu":"many"}}}`)
		w.Await("it is refused", func() bool {
			return w.is(resources.KindModel, "chat", resources.ConditionAccepted, "False", "Invalid", `kubernetes.cpu: want a quantity`, "what it was before stays")
		})
		require.Regexp(t, `Rollout: +Complete .*the Model object chat is not in use as it is now, what it was before stays: spec.kubernetes.cpu`, w.Run("describe", "model", chatModel))
		load.More(10)
		w.patch(resources.KindModel, "chat", `{"spec":{"kubernetes":null}}`)
		w.awaitServing("chat", 2)
	})

	t.Run("a Model of a fleet that is not there", func(t *testing.T) {
		w.apply(modelObject("lost", "fleet: other, replicas: 1, engine: {kind: sim}"))
		const why = `there is no Fleet object "other" in namespace default; it has default: name one in the Models' spec.fleet`
		w.Await("it says so", func() bool {
			return w.is(resources.KindModel, "lost", resources.ConditionAccepted, "False", "NoFleet", why)
		})
		w.Await("an event of the Fleet", func() bool { return strings.Contains(w.events(resources.KindFleet, "default"), why) })
		require.Contains(t, w.Run("events"), why)
		require.Contains(t, w.Log("control-a"), "a Model has no fleet")
		require.Empty(t, w.pods("lost"))
		w.remove(resources.KindModel, "lost")
	})
	t.Run("what others change is put back", func(t *testing.T) {
		name := w.cluster.Objects("deployments", "default", "")[0].GetName()
		_, err := w.cluster.Client().AppsV1().Deployments("default").Patch(t.Context(), name, types.MergePatchType,
			[]byte(`{"spec":{"revisionHistoryLimit":7}}`), metav1.PatchOptions{FieldManager: "kubectl-edit"})
		require.NoError(t, err)
		const why = "spec.revisionHistoryLimit was changed by kubectl-edit and is put back: change the fleet or the Model instead"
		w.Await("the Model's events say so", func() bool {
			return strings.Contains(w.events(resources.KindModel, "chat"), "PutBack: Deployment "+name+": "+why)
		})
		w.Await("so does describe", func() bool { return strings.Contains(w.Run("describe", "model", chatModel), why) })
		require.Contains(t, w.Log("control-a"), why)
	})
	t.Run("what others delete is made again", func(t *testing.T) {
		w.apply(modelObject("brief", "replicas: 1, engine: {kind: sim}"))
		ready := func() bool { return w.is(resources.KindModel, "brief", resources.ConditionReady, "True", "AllReady") }
		w.Await("it serves", ready)
		all := w.cluster.Objects("deployments", "default", kube.LabelModel+"=brief")
		require.Len(t, all, 1)
		name := all[0].GetName()
		require.NoError(t, w.cluster.Client().AppsV1().Deployments("default").Delete(t.Context(), name, metav1.DeleteOptions{}))
		w.Await("the Model's events say so", func() bool {
			return strings.Contains(w.events(resources.KindModel, "brief"), "PutBack: Deployment "+name+" was deleted by somebody else and is made again")
		})
		w.Await("it serves again", ready)
		w.remove(resources.KindModel, "brief")
	})
	t.Run("a second control plane of the fleet", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "fleet.yaml")
		require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "apiVersion: mobula/v1\nkind: Fleet\nname: default\nplatform: {kubernetes: {kubeconfig: %s, namespace: default}}\nmodels: [{name: more, replicas: 1, engine: {kind: sim}}]\n", w.kubeconfig), 0o600))
		second := runCLI(t, nil, "control", "-f", file, "--listen", "127.0.0.1:0", "--data", t.TempDir())
		w.Await("it says whose the fleet is", func() bool {
			return strings.Contains(second.stderr.String(), "namespace default has a Fleet object default, whose own control plane looks after the engines")
		})
		w.startControl("control-b")
		w.Await("another one of objects stands by", func() bool {
			return strings.Contains(w.Log("control-b"), "another control plane leads") && strings.Contains(w.Log("control-b"), "leader=control-a")
		})
		w.Stop("control-b")
		require.Empty(t, w.pods("more"))
	})

	// What could be, but not here or now, is tried, and told of.
	t.Run("no room", func(t *testing.T) {
		w.apply(modelObject("large", "replicas: 1, resources: {gpus: 4}"))
		const why = "Insufficient nvidia.com/gpu"
		w.Await("why it waits", func() bool {
			return w.is(resources.KindModel, "large", resources.ConditionReady, "False", "ReplicasMissing", why) &&
				w.is(resources.KindModel, "large", resources.ConditionAccepted, "True", "Applied")
		})
		require.Contains(t, w.Run("describe", "model", "large"), why)
		require.Contains(t, w.Run("get", "replicas", "-o", "wide"), why)
		w.Await("events of the Model", func() bool { return strings.Contains(w.events(resources.KindModel, "large"), why) })
		require.Contains(t, w.Log("control-a"), why)
		w.remove(resources.KindModel, "large")
	})
	t.Run("an engine that ends at once", func(t *testing.T) {
		w.apply(modelObject("loop", "replicas: 1, engine: {kind: sim, args: [--no-such-flag]}"))
		const why = "no-such-flag"
		w.Await("it has failed", func() bool {
			return w.is(resources.KindModel, "loop", resources.ConditionReady, "False", "ReplicasMissing", "it crashed", why)
		})
		w.Await("so says describe", func() bool { return strings.Contains(w.Run("describe", "model", "loop"), why) })
		require.Contains(t, w.Run("logs", w.pods("loop")[0]), why)
		w.Await("events of the Model", func() bool { return strings.Contains(w.events("Model", "loop"), why) })
		w.Await("the log", func() bool { return strings.Contains(w.Log("control-a"), why) })
		w.remove(resources.KindModel, "loop")
	})
	t.Run("a pod with our labels that is not ours", func(t *testing.T) {
		ours := w.cluster.Pod("default", before[0])
		stranger := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "stranger", Labels: ours.Labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "engine", Image: "other:v1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8000}}}}},
		}
		stranger.Labels = map[string]string{}
		for key, value := range ours.Labels {
			if key != kube.Group+"/record" && key != "pod-template-hash" {
				stranger.Labels[key] = value
			}
		}
		_, err := w.cluster.Client().CoreV1().Pods("default").Create(t.Context(), stranger, metav1.CreateOptions{})
		require.NoError(t, err)
		w.Await("it is told of", func() bool {
			return strings.Contains(w.Run("get", "replicas", "-o", "wide"), "nothing asks for it any more")
		})
		load.More(20)
		require.NotNil(t, w.cluster.Pod("default", "stranger"), "it is not ours to delete")
		w.remove("Pod", "stranger")
	})
	load.More(20)
	load.End()
	w.awaitServing("chat", 2)
	require.Equal(t, before, w.pods(chatModel), "no engine was started again")
}

func TestKubernetesFleetWaitsForWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := map[string]string{"fleets": resources.KindFleet, "models": resources.KindModel, "loras": resources.KindLoRA}
	for _, gvr := range []string{"fleets", "models", "loras"} {
		w.cluster.Unregister(resources.Fleets().GroupVersion().WithResource(gvr))
	}
	w.startControl("control-a")
	w.leads("control-a")
	router := runCLI(t, nil, "router", "--kubernetes", "--kubeconfig", w.kubeconfig, "--namespace", "default", "--control-secret", routerSecret, "--listen", "127.0.0.1:0")
	both := func(text string) {
		t.Helper()
		w.Await("both say: "+text, func() bool {
			return strings.Contains(router.stderr.String(), text) && strings.Contains(w.Log("control-a"), text)
		})
	}
	both("the cluster has no fleets.mobula.dev: install the custom resources")

	w.cluster.Deny("list", "models")
	w.cluster.Deny("watch", "models") // which lists too
	for resource, kind := range all {
		w.cluster.Register(resources.Fleets().GroupVersion().WithResource(resource), kind, true, "status", "scale")
	}
	both("models of namespace default may not be read: grant get, list and watch of fleets, models and loras in mobula.dev there, by a Role and a RoleBinding to who asks (the chart makes them with rbac.create)")
	w.cluster.Allow("list", "models")
	w.cluster.Allow("watch", "models")
	both("there is no Fleet object")

	w.apply(chatObject(1, "}"))
	w.Await("the Model says that there is no Fleet", func() bool {
		return w.is(resources.KindModel, "chat", resources.ConditionAccepted, "False", "NoFleet", `no Fleet object "default"`)
	})
	w.cluster.Deny("create", "deployments")
	w.apply(fleetObject)
	const missing = "missing rights in namespace default: create deployments.apps"
	w.Await("what is not allowed", func() bool {
		return w.is(resources.KindFleet, "default", resources.ConditionAccepted, "False", "Refused", missing) && strings.Contains(w.Log("control-a"), missing)
	})
	w.cluster.Allow("create", "deployments")
	w.awaitServing("chat", 1)
	router.stdout.await(t, "listening on ")
	w.URL = strings.TrimSpace(strings.TrimPrefix(router.stdout.String(), "listening on "))
	w.awaitAnswers(chatModel)
}

func TestANewRouterServesWhatOthersDoWhileObjectsAreWrong(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+modelObject("chat", "name: "+chatModel+", range: {min: 0, max: 2}, engine: {kind: sim, args: [--itl, 2ms]}, scaling: {zeroAfter: 2s, upAfter: 0s, downAfter: 1s}"))
	w.Await("no replica before anybody asks", func() bool {
		return w.is(resources.KindModel, "chat", resources.ConditionReady, "True", "ScaledToZero")
	})
	w.patch(resources.KindModel, "chat", `{"spec":{"kubernetes":{"cpu":"many"}}}`)
	w.Await("the Model is refused", func() bool {
		return w.is(resources.KindModel, "chat", resources.ConditionAccepted, "False", "Invalid", "what it was before stays")
	})
	w.Stop("router")
	w.startRouter("router-b")
	w.Burst(chatModel, 4) // there is no replica, so it tells of the demand

	w.patch(resources.KindFleet, "default", `{"spec":{"router":{"policy":{"name":"nearest"}}}}`)
	w.Await("the Fleet is refused", func() bool {
		return w.is(resources.KindFleet, "default", resources.ConditionAccepted, "False", "Invalid", "nearest")
	})
	w.Stop("router-b")
	w.startRouter("router-c")
	w.Burst(chatModel, 4)

	// A router and the control plane start anew: the one waits for the other.
	w.Stop("control-a")
	early := runCLI(t, nil, "router", "--kubernetes", "--kubeconfig", w.kubeconfig, "--namespace", "default", "--control-secret", routerSecret, "--listen", "127.0.0.1:0")
	early.stderr.await(t, "objects are wrong, and what was applied last is not known")
	early.stderr.await(t, "waiting for the fleet: Fleet/default: spec.router.policy.name: ")
	w.startControl("control-b")
	w.leads("control-b")
	early.stdout.await(t, "listening on ")
	w.URL = strings.TrimSpace(strings.TrimPrefix(early.stdout.String(), "listening on "))
	w.Burst(chatModel, 4)
}

func TestKubernetesControlPlaneWithoutRightsSaysWhich(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cluster.Deny("update", "leases")
	w.cluster.Deny("watch", "pods")
	w.startControl("control-a")
	w.Await("what is missing", func() bool {
		log := w.Log("control-a")
		return strings.Contains(log, "rights are missing, waiting for them") &&
			strings.Contains(log, "missing rights in namespace default: update leases.coordination.k8s.io/mobula-control; watch pods: grant them by a Role and a RoleBinding there")
	})
	w.cluster.Allow("update", "leases")
	w.cluster.Allow("watch", "pods")
	w.leads("control-a")
}

func TestKubeRayThatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rayclusters := schema.GroupVersionResource{Group: "ray.io", Version: "v1", Resource: "rayclusters"}
	for _, resource := range []string{"rayclusters", "rayservices", "rayjobs"} {
		w.cluster.Unregister(rayclusters.GroupVersion().WithResource(resource))
	}
	w.startControl("control-a")
	w.leads("control-a")
	w.apply(strings.Replace(fleetObject, "spec: {}", "spec: {platform: {kuberay: {}}}", 1) +
		modelObject("bare", "replicas: 1, resources: {hosts: 2, gpus: 16}") +
		modelObject("big", "replicas: 1, resources: {hosts: 2, gpus: 16}, kubernetes: {image: 'example/vllm-ray:v1'}"))
	refused := func(texts ...string) {
		t.Helper()
		w.Await("it is refused: "+texts[0], func() bool {
			return w.is(resources.KindFleet, "default", resources.ConditionAccepted, "False", "Refused", texts...)
		})
		require.Contains(t, w.Log("control-a"), texts[0])
		require.Contains(t, w.Run("describe", "model", "big"), texts[0])
		w.Await("an event of the Fleet", func() bool { return strings.Contains(w.events(resources.KindFleet, "default"), texts[0]) })
	}
	refused("KubeRay is not installed in this cluster", "helm install kuberay-operator kuberay-operator --repo")
	w.cluster.Register(schema.GroupVersionResource{Group: "ray.io", Version: "v1alpha1", Resource: "rayclusters"}, "RayCluster", true, "status")
	refused("KubeRay is too old: it serves ray.io/[v1alpha1] and not ray.io/v1", "1.5.1 or newer")
	w.cluster.Pause(true) // nobody acts on RayClusters
	w.cluster.Register(rayclusters, "RayCluster", true, "status")
	w.Await("its RayCluster is not taken up", func() bool {
		return w.is(resources.KindModel, "big", resources.ConditionReady, "False", "ReplicasMissing", "KubeRay's operator has not taken RayCluster default/", "up: it does not run, does not watch this namespace")
	})
	w.Await("so says describe", func() bool {
		return strings.Contains(w.Run("describe", "model", "big"), "KubeRay's operator has not taken")
	})
	require.True(t, w.is(resources.KindModel, "bare", resources.ConditionAccepted, "False", "Invalid", "spec.kubernetes.image: a RayCluster needs an image with vLLM and Ray"),
		"what is wrong with one holds up no other, from the start")
}
