package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/kube"
)

// chatModel is that of most fleets: its object is called chat.
const chatModel = "org/chat"

// chatObject is its object with so many replicas, and more of its spec.
func chatObject(replicas int, more string) string {
	return modelObject("chat", fmt.Sprintf("name: %s, replicas: %d, engine: {kind: sim, args: [--itl, 2ms]%s", chatModel, replicas, more))
}

func TestKubernetesFleetOfObjectsServes(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(2, "}, aliases: [chat]"))
	w.awaitServing("chat", 2)
	w.awaitAnswers("chat")
	a, err := w.Chat(t.Context(), chatModel)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status, a.Body)
	require.Contains(t, w.pods(chatModel), a.Header.Get("X-Mobula-Endpoint"), "a replica's ID is its pod's name")
	require.Contains(t, w.Get("/v1/models"), chatModel)

	status := w.object(resources.KindModel, "chat").Get("status")
	require.Equal(t, "Complete", status.Get("phase").String(), status)
	require.EqualValues(t, 2, status.Get("readyReplicas").Int())
	require.True(t, w.is(resources.KindModel, "chat", resources.ConditionReady, "True", "AllReady"), status)
	w.Await("the Fleet's status says so", func() bool {
		fleet := w.object(resources.KindFleet, "default").Get("status")
		return fleet.Get("ready").String() == "1/1" && fleet.Get("phase").String() == "Ready" && fleet.Get("routers").Int() == 1
	})

	pod := w.pods(chatModel)[0]
	require.Regexp(t, chatModel+` .*2/2`, w.Run("get", "models"))
	require.Contains(t, w.Run("get", "replicas"), pod)
	require.Contains(t, w.Run("describe", "model", chatModel), "Complete")
	require.Contains(t, w.Run("describe", "replica", pod), "node-1")
	require.Contains(t, w.Run("logs", pod), "simulated engine of "+chatModel)
	require.Contains(t, w.Run("events"), "model/"+chatModel)
	w.Await("events of the Model", func() bool { return w.events("Model", "chat") != "" })
}

func TestLifeOfAKubernetesFleet(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(3, "}"), kubetest.Node{Name: "n1", GPUs: 8}, kubetest.Node{Name: "n2", GPUs: 8})
	w.awaitServing("chat", 3)
	w.awaitAnswers(chatModel)
	load := w.Traffic(chatModel, 4, true)
	load.More(50)
	step := func(name string, do func(t *testing.T)) {
		if !t.Run(name, do) {
			t.FailNow()
		}
		load.More(20)
	}
	revision := func() string { return w.object(resources.KindModel, "chat").Get("status.revision").String() }

	step("kubectl scale and mobula scale", func(*testing.T) {
		w.patch(resources.KindModel, "chat", `{"spec":{"replicas":5}}`, "scale")
		w.awaitServing("chat", 5)
		w.patch(resources.KindModel, "chat", `{"spec":{"replicas":2}}`, "scale")
		w.awaitServing("chat", 2)
		w.Run("scale", chatModel, "4")
		w.awaitServing("chat", 4)
		w.Run("scale", chatModel, "auto")
		w.awaitServing("chat", 2)
		w.apply(chatObject(3, "}"))
		w.awaitServing("chat", 3)
	})
	step("all engines are replaced", func(*testing.T) {
		before := revision()
		w.apply(chatObject(3, ", env: {A: b}}"))
		w.Await("another revision", func() bool {
			ready := w.Ready(chatModel)
			return len(ready) == 3 && len(w.Replicas()) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Revision == before })
		})
		w.Await("nothing is left of the one before", func() bool {
			return len(w.cluster.Objects("deployments", "default", "")) == 1 && len(w.cluster.Pods("default", kube.LabelManagedBy)) == 3
		})
	})
	step("a revision that ends at once is taken back", func(t *testing.T) {
		t.Helper()
		before := revision()
		w.apply(strings.Replace(chatObject(3, ", env: {A: b}}"), "--itl, 2ms", "--no-such-flag", 1))
		w.Await("it is taken back", func() bool { return w.phase(chatModel) == control.RolloutRolledBack })
		w.awaitServing("chat", 3)
		require.Equal(t, before, w.oneReady(chatModel).Revision)
		w.Await("the Model says why", func() bool {
			return strings.Contains(w.object(resources.KindModel, "chat").Get("status.message").String(), "no-such-flag")
		})
		w.apply(chatObject(3, ", env: {A: b}}"))
		w.Await("complete", func() bool { return w.phase(chatModel) == control.RolloutComplete })
	})
	step("a pod is deleted", func(t *testing.T) {
		t.Helper()
		gone := w.pods(chatModel)[0]
		w.remove("Pod", gone)
		w.Await("another pod", func() bool { return !slices.Contains(w.pods(chatModel), gone) && w.cluster.Pod("default", gone) == nil })
		w.awaitServing("chat", 3)
	})
	step("a replica is drained, and is taken back", func(t *testing.T) {
		t.Helper()
		gone := w.pods(chatModel)[0]
		w.Run("drain", gone)
		w.Await("another replica in its place", func() bool { return !slices.Contains(w.pods(chatModel), gone) && len(w.Ready(chatModel)) == 3 })
	})
	step("a node is drained, and is taken back", func(*testing.T) {
		w.Run("drain", "host/n1")
		w.Await("all replicas are elsewhere", func() bool {
			all := w.Replicas()
			return len(all) == 3 && len(w.Ready(chatModel)) == 3 && !slices.ContainsFunc(all, func(r control.ReplicaStatus) bool { return r.Hosts[0] == "n1" })
		})
		w.Await("the node is cordoned", func() bool { return w.cordoned("n1") })
		w.Run("drain", "host/n1", "--off")
		w.Await("it is not any more", func() bool { return !w.cordoned("n1") })
		w.awaitServing("chat", 3)
	})
	load.End()

	// Streams that have begun break with their engine; plain requests move to another one.
	plain := w.Traffic(chatModel, 4, false)
	plain.More(20)
	t.Run("an engine crashes and comes back", func(t *testing.T) {
		victim := w.pods(chatModel)[0]
		w.kubelet.crash(t, victim)
		w.Await("it is back under its ID", func() bool {
			return slices.ContainsFunc(w.Ready(chatModel), func(r control.ReplicaStatus) bool { return r.ID == victim && r.Restarts == 1 })
		})
		w.AwaitServes(chatModel, victim)
	})
	t.Run("a node is lost and comes back", func(t *testing.T) {
		w.cluster.AddNode(kubetest.Node{Name: "n3", GPUs: 8})
		lost := w.oneReady(chatModel).Hosts[0]
		w.kubelet.loseNode(t, lost)
		w.Await("replicas elsewhere", func() bool {
			ready := w.Ready(chatModel)
			return len(ready) == 3 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.Hosts[0] == lost })
		})
		plain.More(20)
		w.kubelet.returnNode(lost)
		w.awaitServing("chat", 3)
		require.Len(t, w.Processes("sim"), 3, "nothing runs twice")
	})
	plain.More(20)
	plain.End()
}

func TestKubernetesRevisionWithoutItsImageIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(2, "}"))
	w.awaitServing("chat", 2)
	w.awaitAnswers(chatModel)
	load := w.Traffic(chatModel, 2, true)
	load.More(20)
	before := w.oneReady(chatModel).Revision
	const image = "registry.example/none:v1"
	w.cluster.ImagePullFails(image)
	w.apply(chatObject(2, ", startTimeout: 3s}, kubernetes: {image: '"+image+"'}"))
	w.Await("the Model says what it waits for", func() bool {
		return strings.Contains(w.object(resources.KindModel, "chat").Get("status.conditions").String(), image)
	})
	w.Await("it is taken back", func() bool { return w.phase(chatModel) == control.RolloutRolledBack })
	w.awaitServing("chat", 2)
	require.Equal(t, before, w.oneReady(chatModel).Revision)
	w.Await("the Model says why", func() bool {
		return strings.Contains(w.object(resources.KindModel, "chat").Get("status.message").String(), image)
	})
	require.Contains(t, w.Run("describe", "model", chatModel), image)
	w.Await("events of the Model", func() bool { return strings.Contains(w.events("Model", "chat"), image) })
	w.cluster.ImagePullWorks(image)
	w.apply(chatObject(2, ", startTimeout: 4s}, kubernetes: {image: '"+image+"'}"))
	w.Await("another try", func() bool {
		return w.phase(chatModel) == control.RolloutComplete && w.oneReady(chatModel).Revision != before
	})
	load.More(20)
	load.End()
}

func TestKubernetesModelGoesToZeroAndBack(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+modelObject("chat", "name: org/chat, range: {min: 0, max: 2}, engine: {kind: sim, args: [--itl, 2ms]}, scaling: {zeroAfter: 2s, upAfter: 0s, downAfter: 1s}"))
	zero := func() bool {
		return w.is(resources.KindModel, "chat", resources.ConditionReady, "True", "ScaledToZero") && len(w.cluster.Pods("default", kube.LabelManagedBy)) == 0
	}
	w.Await("no replica before anybody asks", zero)
	require.Contains(t, w.Get("/v1/models"), chatModel)
	for range 2 {
		w.Burst(chatModel, 20) // all of it is answered, so there was a replica
		w.Await("zero again", zero)
	}
	require.Contains(t, w.Run("describe", "model", chatModel), "no request for 2s")
	w.patch(resources.KindModel, "chat", `{"spec":{"range":null,"replicas":1}}`)
	w.awaitServing("chat", 1)
}

func TestKubernetesLoRAObjects(t *testing.T) {
	t.Parallel()
	lora := func(name, spec string) string {
		return fmt.Sprintf("---\napiVersion: mobula.dev/v1alpha1\nkind: LoRA\nmetadata: {name: %s}\nspec: {model: chat, %s}\n", name, spec)
	}
	w := newObjectFleet(t, fleetObject+chatObject(2, "}")+lora("all", "source: /loras/all"))
	w.awaitServing("chat", 2)
	before := w.pods(chatModel)
	w.apply(lora("one", "name: org/one, source: /loras/one, replicas: 1") + lora("lost", "source: /loras/lost"))
	w.patch(resources.KindLoRA, "lost", `{"spec":{"model":"nobody"}}`)
	loaded := func(name, want string) func() bool {
		return func() bool {
			return w.is(resources.KindLoRA, name, resources.ConditionReady, "True", "Loaded") && w.object(resources.KindLoRA, name).Get("status.ready").String() == want
		}
	}
	w.Await("one is loaded", loaded("one", "1/1"))
	w.Await("all is loaded", loaded("all", "2/2"))
	w.Await("the third says that it has no Model", func() bool {
		return w.is(resources.KindLoRA, "lost", resources.ConditionAccepted, "False", "Invalid", `no Model object "nobody"`)
	})
	for _, name := range []string{"all", "org/one"} {
		w.awaitAnswers(name)
		a, err := w.Chat(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, name, gjson.Get(a.Body, "model").String())
	}
	load := w.Traffic("all", 2, false)
	load.More(10)
	w.remove(resources.KindLoRA, "one")
	w.Await("the router has noticed", func() bool {
		a, err := w.Chat(t.Context(), "org/one")
		return err == nil && a.Status == http.StatusNotFound
	})
	load.More(10)
	gone := w.pods(chatModel)[0]
	w.remove("Pod", gone)
	w.Await("it is loaded into the pod that takes the other's place", func() bool {
		ready := w.Ready(chatModel)
		return len(ready) == 2 && !slices.ContainsFunc(ready, func(r control.ReplicaStatus) bool { return r.ID == gone || !slices.Contains(r.LoRAs, "all") })
	})
	load.More(10)
	load.End()
	require.Contains(t, w.pods(chatModel), before[1], "no other engine was started again")
}

func TestKubernetesControlPlaneIsReplaced(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(2, "}"))
	w.awaitServing("chat", 2)
	w.awaitAnswers(chatModel)
	first := w.oneReady(chatModel).Revision
	w.apply(chatObject(2, ", env: {A: b}}"))
	w.Await("another revision", func() bool {
		return w.phase(chatModel) == control.RolloutComplete && w.Status(chatModel).Revision != first
	})
	w.Run("rollback", chatModel, "--wait")
	w.Run("scale", chatModel, "3")
	w.awaitServing("chat", 3)
	held := w.pods(chatModel)[0]
	token := gjson.GetBytes(w.access(), "token").String()
	w.startControl("control-b")
	load := w.Traffic(chatModel, 4, false)
	load.More(20)

	w.Kill("control-a")
	load.More(50)
	w.remove("Pod", held) // its controller makes another one, which the router finds by itself
	w.Await("another pod", func() bool { return !slices.Contains(w.pods(chatModel), held) && len(w.pods(chatModel)) == 3 })
	for _, pod := range w.pods(chatModel) {
		w.AwaitServes(chatModel, pod)
	}
	before := w.pods(chatModel)
	w.leads("control-b")
	w.awaitServing("chat", 3)
	require.Equal(t, token, gjson.GetBytes(w.access(), "token").String(), "it is the same control plane to everybody")
	require.True(t, w.Status(chatModel).Scaled, "what mobula scale has set survives")
	require.Equal(t, first, w.Status(chatModel).Revision, "so does what mobula rollback has")
	require.Equal(t, before, w.pods(chatModel), "no engine was started again")
	w.Await("the router reports to it", func() bool { return w.object(resources.KindFleet, "default").Get("status.routers").Int() == 1 })

	w.Await("its Service finds it", func() bool { return w.cluster.Pod("default", "control-b").Labels[kube.Group+"/leader"] == "true" })

	w.startControl("control-a")
	w.Stop("control-b") // in order: the lease is given up at once
	w.leads("control-a")
	w.Run("scale", chatModel, "auto")
	w.awaitServing("chat", 2)
	load.More(20)
	load.End()
}

// A leader whose Secret somebody else writes ends and is followed; so is one whose Secret is deleted.
func TestKubernetesStateIsWrittenFromOutside(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(1, "}"))
	w.awaitServing("chat", 1)
	secrets := w.cluster.Client().CoreV1().Secrets("default")
	w.startControl("control-b")
	secret, err := secrets.Get(t.Context(), stateSecret, metav1.GetOptions{})
	require.NoError(t, err)
	w.patch(resources.KindModel, "chat", `{"spec":{"replicas":2}}`, "scale")
	w.awaitServing("chat", 2)
	secret.ResourceVersion = "" // as kubectl replace does
	_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	require.NoError(t, err)
	w.patch(resources.KindModel, "chat", `{"spec":{"replicas":3}}`, "scale")
	w.ends("control-a", "another control plane has written the state")
	w.leads("control-b")
	w.awaitServing("chat", 3)

	w.startControl("control-a")
	require.NoError(t, secrets.Delete(t.Context(), stateSecret, metav1.DeleteOptions{}))
	w.patch(resources.KindModel, "chat", `{"spec":{"replicas":4}}`, "scale")
	w.ends("control-b", "it has been deleted")
	w.leads("control-a")
	w.awaitServing("chat", 4)
}

func TestKubernetesAPIServerComesAndGoes(t *testing.T) {
	t.Parallel()
	w := newObjectFleet(t, fleetObject+chatObject(3, "}"))
	w.awaitServing("chat", 3)
	w.awaitAnswers(chatModel)
	load := w.Traffic(chatModel, 4, false)
	load.More(20)
	all := func() {
		for _, pod := range w.pods(chatModel) {
			w.AwaitServes(chatModel, pod)
		}
	}
	all()
	t.Run("away", func(*testing.T) {
		w.cluster.Down(true)
		w.ends("control-a", "no longer the leader")
		w.startControl("control-a") // as the kubelet would
		load.More(50)
		all()
		w.cluster.Down(false)
		w.leads("control-a")
		w.awaitServing("chat", 3)
		load.More(20)
	})
	t.Run("a deletion is missed", func(t *testing.T) {
		gone := w.pods(chatModel)[0]
		w.cluster.Down(true) // for less than a lease
		require.NoError(t, w.cluster.DeletePod("default", gone))
		w.Await("it is gone", func() bool { return w.cluster.Pod("default", gone) == nil && len(w.pods(chatModel)) == 3 })
		load.More(20)
		w.cluster.Compact()
		w.cluster.Down(false)
		w.Await("no trace of it", func() bool { return strings.Contains(w.Log("router"), `msg="endpoint removed" endpoint=`+gone) })
		w.awaitServing("chat", 3)
		all()
	})
	t.Run("watches are dropped, and history is forgotten", func(*testing.T) {
		for range 3 {
			w.cluster.Compact()
			w.cluster.DropWatches()
			load.More(20)
		}
		w.patch(resources.KindModel, "chat", `{"spec":{"replicas":4}}`, "scale")
		w.awaitServing("chat", 4)
		all()
	})
	load.End()
}
