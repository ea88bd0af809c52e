package resources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

const patience = 60 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a cluster with our custom resources and a Source that runs.
type world struct {
	*kubetest.Cluster
	*Source
	t     *testing.T
	wrong chan Event // the first of them
}

func newWorld(t *testing.T, previous []byte) *world {
	t.Helper()
	c := kubetest.New(kubetest.Options{})
	t.Cleanup(c.Close)
	w := &world{Cluster: c, t: t, wrong: make(chan Event, 100)}
	w.Source = w.start(previous)
	return w
}

func (w *world) start(previous []byte) *Source { return w.startWith(previous, nil) }

func (w *world) startWith(previous []byte, recall func(context.Context) ([]byte, error)) *Source {
	tell := func(e Event) {
		select {
		case w.wrong <- e:
		default:
		}
	}
	s, err := New(Options{
		Client: w.Dynamic(), Namespace: "n", Fleet: DefaultFleet, Previous: previous, Recall: recall, Wrong: tell, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

func (w *world) create(gvr schema.GroupVersionResource, text string) {
	w.t.Helper()
	o := object(w.t, 0, text)
	unstructured.RemoveNestedField(o.Object, "metadata", "creationTimestamp")
	_, err := w.Dynamic().Resource(gvr).Namespace("n").Create(w.t.Context(), o, metav1.CreateOptions{})
	require.NoError(w.t, err)
}

func (w *world) patch(gvr schema.GroupVersionResource, name, body string) {
	w.t.Helper()
	_, err := w.Dynamic().Resource(gvr).Namespace("n").Patch(w.t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{})
	require.NoError(w.t, err)
}

func (w *world) status(gvr schema.GroupVersionResource, name string) map[string]any {
	w.t.Helper()
	o, err := w.Dynamic().Resource(gvr).Namespace("n").Get(w.t.Context(), name, metav1.GetOptions{})
	require.NoError(w.t, err)
	status, _, err := unstructured.NestedMap(o.Object, "status")
	require.NoError(w.t, err)
	return status
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("never %s", what)
		}
	}
}

// until gives the first state that is so.
func (w *world) until(s *Source, ok func(*mobula.Fleet) bool) (State, *mobula.Fleet) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for version := int64(0); ; {
		state := s.Next(ctx, version)
		require.NoError(w.t, ctx.Err(), "it never came: %s\n%s", state.Why, state.File)
		version = state.Version
		if state.File == nil {
			continue
		}
		f, err := mobula.Load(state.File, "state")
		require.NoError(w.t, err)
		if ok(f) {
			return state, f
		}
	}
}

func models(n int) func(*mobula.Fleet) bool {
	return func(f *mobula.Fleet) bool { return len(f.Models) == n }
}

// condition gives "True Reason" of a condition.
func is(status map[string]any, kind string) string {
	all, _ := status["conditions"].([]any)
	for _, each := range all {
		if c, ok := each.(map[string]any); ok && c["type"] == kind {
			return c["status"].(string) + " " + c["reason"].(string)
		}
	}
	return ""
}

const (
	fleetText = "kind: Fleet\nmetadata: {name: default}\nspec: {router: {policy: {name: prefix}}}"
	chatText  = "kind: Model\nmetadata: {name: chat}\nspec: {name: org/chat, replicas: 2, engine: {kind: sim}}"
)

func TestSourceFollowsTheObjects(t *testing.T) {
	w := newWorld(t, nil)
	state := w.Next(t.Context(), 0)
	require.Nil(t, state.File)
	require.Contains(t, state.Why, `no Fleet object "default" in namespace n`)

	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.until(w.Source, models(1))
	w.create(Models(), "kind: Model\nmetadata: {name: other}\nspec: {fleet: another, replicas: 2, engine: {kind: sim}}")
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: l}\nspec: {model: chat, source: /l}")
	_, f := w.until(w.Source, func(f *mobula.Fleet) bool { return len(f.Models) == 1 && len(f.Models[0].LoRAs) == 1 })
	require.Equal(t, "org/chat", f.Models[0].Name, "models of other fleets are theirs")
	require.NotNil(t, w.Owner("org/chat"))
	require.Equal(t, "chat", w.Owner("org/chat").Name)
	require.Nil(t, w.Owner("chat"))

	w.patch(Models(), "chat", `{"spec":{"replicas":3}}`)
	w.until(w.Source, func(f *mobula.Fleet) bool { return f.Models[0].Replicas.Max == 3 })
	w.DropWatches()
	w.Compact()
	require.NoError(t, w.Dynamic().Resource(Models()).Namespace("n").Delete(t.Context(), "chat", metav1.DeleteOptions{}))
	w.until(w.Source, models(0))
}

func TestStatusesAreWritten(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.create(Models(), "kind: Model\nmetadata: {name: bad}\nspec: {replicas: 1, engine: {kind: simm}}")
	w.create(LoRAs(), "kind: LoRA\nmetadata: {name: l}\nspec: {model: chat, source: /l}")
	state, _ := w.until(w.Source, func(f *mobula.Fleet) bool { return len(f.Models) == 1 && len(f.Models[0].LoRAs) == 1 })
	require.Empty(t, w.status(Models(), "chat"), "who does not report does not write")
	w.Took(state.Version, 0, nil)
	w.Report(&Status{Routers: 1, Models: map[string]ModelStatus{"org/chat": {
		Wanted: 2, Replicas: 2, Ready: 1, Revision: "2d14645278", Phase: "Progressing", Message: "1 of 2", Problem: "replica x: the image can't be pulled",
		LoRAs: []LoRAStatus{{Name: "l", Wanted: 2, Loaded: 1}},
	}}})
	w.eventually("statuses", func() bool { return is(w.status(Models(), "chat"), ConditionAccepted) == "True Applied" })
	chat := w.status(Models(), "chat")
	require.Equal(t, "1/2", chat["ready"])
	require.Equal(t, int64(1), chat["readyReplicas"])
	require.Equal(t, "False ReplicasMissing", is(chat, ConditionReady))
	require.Equal(t, "True Progressing", is(chat, ConditionProgressing))
	require.Contains(t, chat["message"], "the image can't be pulled")
	require.Contains(t, chat["selector"], "mobula.dev/serves=true")
	require.Equal(t, int64(1), chat["observedGeneration"])
	w.eventually("the bad one is told", func() bool { return is(w.status(Models(), "bad"), ConditionAccepted) == "False Invalid" })
	require.Equal(t, "Invalid", w.status(Models(), "bad")["phase"])
	e := <-w.wrong
	require.Equal(t, "model/bad", e.Object)
	require.Contains(t, e.Message, "simm")
	w.eventually("the others", func() bool {
		return w.status(Fleets(), "default")["ready"] == "0/1" && w.status(LoRAs(), "l")["ready"] == "1/2"
	})

	w.ResetCalls()
	w.Report(w.Source.status) // the same again
	time.Sleep(2 * statusEvery)
	require.Empty(t, w.Calls()["patch models/status"])
	w.patch(Models(), "chat", `{"spec":{"replicas":-1}}`)
	w.eventually("what became bad is told", func() bool { return is(w.status(Models(), "chat"), ConditionAccepted) == "False Invalid" })
	state, _ = w.until(w.Source, models(1))
	require.Contains(t, string(state.File), "replicas: 2")
}

func TestWhatIsBadFromTheStartIsAsItWasApplied(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	before, _ := w.until(w.Source, models(1))
	w.patch(Models(), "chat", `{"spec":{"engine":{"kind":"simm"}}}`)
	again := w.start(before.File)
	_, f := w.until(again, models(1))
	require.Equal(t, "sim", f.Models[0].Engine.Kind)
}

func TestWhatIsBadFromTheStartIsRecalled(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	before, _ := w.until(w.Source, models(1))
	var asked atomic.Int32
	recall := func(context.Context) ([]byte, error) {
		if asked.Add(1) == 1 {
			return nil, errors.New("away")
		}
		return before.File, nil
	}
	w.until(w.startWith(nil, recall), models(1))
	require.Zero(t, asked.Load(), "all is right, so nobody is asked")

	w.patch(Models(), "chat", `{"spec":{"engine":{"kind":"simm"}}}`)
	alone := w.startWith(nil, recall)
	w.until(alone, models(0))
	require.EqualValues(t, 1, asked.Load())
	w.create(Models(), "kind: Model\nmetadata: {name: more}\nspec: {replicas: 1, engine: {kind: simm}}")
	w.patch(Fleets(), "default", `{"spec":{"router":{"policy":{"name":"leastload"}}}}`)
	w.until(alone, func(f *mobula.Fleet) bool { return f.Router.Policy.Name == "leastload" && len(f.Models) == 0 })
	require.EqualValues(t, 1, asked.Load(), "it has a fleet and asks no more")

	state := w.startWith(nil, recall).Next(t.Context(), 0)
	f, err := mobula.Load(state.File, "state")
	require.NoError(t, err)
	require.Equal(t, "sim", f.Models[0].Engine.Kind, "its first state is what others have")
	require.Equal(t, "leastload", f.Router.Policy.Name)

	asked.Store(0)
	w.patch(Fleets(), "default", `{"spec":{"router":{"policy":{"name":"prefixx"}}}}`)
	s := w.startWith(nil, recall)
	require.Contains(t, s.Next(t.Context(), 0).Why, "prefixx")
	_, f = w.until(s, models(1))
	require.Equal(t, "prefix", f.Router.Policy.Name, "it has asked again")
	w.patch(Fleets(), "default", `{"spec":{"router":{"policy":{"name":"leastload"}}}}`)
	w.until(s, func(f *mobula.Fleet) bool { return f.Router.Policy.Name == "leastload" })
	require.EqualValues(t, 2, asked.Load())
}

// refuse refuses what there is now.
func (w *world) refuse(why map[string]string) {
	w.t.Helper()
	w.Refuse(w.Next(w.t.Context(), 0).Version, why)
}

func TestRefusedModelsHoldUpNoOthers(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.create(Models(), "kind: Model\nmetadata: {name: huge}\nspec: {replicas: 1, resources: {gpus: 512}}")
	w.until(w.Source, models(2))
	w.Refuse(w.Next(t.Context(), 0).Version-1, map[string]string{"org/chat": "of what is not the newest any more"})
	w.refuse(map[string]string{"huge": "no node has 512 GPUs"})
	state, f := w.until(w.Source, models(1))
	require.Equal(t, "org/chat", f.Models[0].Name)
	w.Took(state.Version, 0, nil)
	w.Report(&Status{})
	w.eventually("it is told", func() bool { return is(w.status(Models(), "huge"), ConditionAccepted) == "False Invalid" })
	w.patch(Models(), "huge", `{"spec":{"resources":{"gpus":8}}}`)
	w.until(w.Source, models(2))
}

func TestARefusedChangeLeavesTheModelAsItWas(t *testing.T) {
	w := newWorld(t, nil)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	state, _ := w.until(w.Source, models(1))
	w.Took(state.Version, 0, nil)
	w.patch(Models(), "chat", `{"spec":{"replicas":3}}`)
	w.until(w.Source, func(f *mobula.Fleet) bool { return f.Models[0].Replicas.Max == 3 })
	w.refuse(map[string]string{"org/chat": "no room for 3"})
	w.until(w.Source, func(f *mobula.Fleet) bool { return len(f.Models) == 1 && f.Models[0].Replicas.Max == 2 })
	require.Contains(t, w.Rejected()["org/chat"], "what it was before stays: no room for 3")
	w.refuse(map[string]string{"org/chat": "no room for 2"})
	w.until(w.Source, models(0)) // else the others would wait for it
}

func TestAModelThatHasNotChangedIsNotRefusedForTheFleet(t *testing.T) {
	w := newWorld(t, nil)
	limit := func(f *mobula.Fleet) string { return f.Platform.Kubernetes.Pods.MemoryLimit }
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.create(Models(), "kind: Model\nmetadata: {name: other}\nspec: {replicas: 1, engine: {kind: sim}}")
	state, _ := w.until(w.Source, models(2))
	w.Took(state.Version, 0, nil)
	w.patch(Fleets(), DefaultFleet, `{"spec":{"platform":{"kubernetes":{"pods":{"memoryLimit":"4Gi"}}}}}`)
	w.until(w.Source, func(f *mobula.Fleet) bool { return limit(f) == "4Gi" })
	w.refuse(map[string]string{"org/chat": "it wants 8Gi", "other": "it wants 6Gi"})
	state, f := w.until(w.Source, func(f *mobula.Fleet) bool { return limit(f) == "" })
	require.Len(t, f.Models, 2)
	require.Empty(t, w.Rejected())
	w.Took(state.Version, 0, nil)
	w.Report(&Status{})
	w.eventually("the Fleet is told", func() bool {
		conditions := fmt.Sprint(w.status(Fleets(), DefaultFleet)["conditions"])
		return strings.Contains(conditions, "with it Model chat can't be: it wants 8Gi; with it Model other can't be: it wants 6Gi (what it was before stays)")
	})

	w.patch(Fleets(), DefaultFleet, `{"spec":{"platform":{"kubernetes":{"pods":{"memoryLimit":"16Gi"}}}}}`)
	w.until(w.Source, func(f *mobula.Fleet) bool { return limit(f) == "16Gi" && len(f.Models) == 2 })
	w.refuse(map[string]string{"org/chat": "it wants 32Gi"})
	w.until(w.Source, func(f *mobula.Fleet) bool { return limit(f) == "" && len(f.Models) == 2 })
	w.refuse(map[string]string{"org/chat": "its type of pod is not known any more"}) // whatever the Fleet says
	_, f = w.until(w.Source, models(1))
	require.Equal(t, "other", f.Models[0].Name)
	require.Equal(t, "16Gi", limit(f), "it was not the Fleet")
}

func TestMissingCustomResourcesAreNamed(t *testing.T) {
	c := kubetest.New(kubetest.Options{})
	t.Cleanup(c.Close)
	for _, gvr := range []schema.GroupVersionResource{Fleets(), Models(), LoRAs()} {
		c.Unregister(gvr)
	}
	w := &world{Cluster: c, t: t}
	s := w.start(nil)
	why := func() string {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		return s.Next(ctx, 0).Why
	}
	w.eventually("it is said", func() bool { return why() != "" && why() != "the cluster has not told yet" })
	require.Contains(t, why(), "kubectl apply --server-side -f charts/mobula/crds")
}

// known waits until the source has seen an object so.
func (w *world) known(kind, name string, ok func(*unstructured.Unstructured) bool) {
	w.t.Helper()
	w.eventually(kind+" "+name+" is known so", func() bool {
		for _, each := range w.stores[kind].List() {
			if u := each.(*unstructured.Unstructured); u.GetName() == name {
				return ok(u)
			}
		}
		return false
	})
}

func TestWriteMakesObjectsOfAFleetFile(t *testing.T) {
	w := newWorld(t, nil)
	w.Next(t.Context(), 0)
	file := func(models string) []byte {
		return []byte("apiVersion: mobula/v1\nkind: Fleet\nplatform: {kubernetes: {namespace: n}}\nrouter: {policy: {name: prefix}}\nmodels:\n" + models)
	}
	two := file("  - {name: org/Chat_1, replicas: 2, engine: {kind: sim}}\n  - {name: auto, replicas: 0-4, engine: {kind: sim}}\n")
	require.NoError(t, w.Write(t.Context(), two, false))
	_, f := w.until(w.Source, models(2))
	require.Equal(t, "prefix", f.Router.Policy.Name)
	require.NoError(t, w.Write(t.Context(), two, false), "twice is once")
	require.NoError(t, w.Write(t.Context(), file("  - {name: auto, replicas: 0-4, engine: {kind: sim}}\n"), false))
	w.until(w.Source, models(1))
	w.create(Models(), "kind: Model\nmetadata: {name: helms, labels: {app.kubernetes.io/managed-by: Helm}, annotations: {meta.helm.sh/release-name: rel}}\nspec: {replicas: 1, engine: {kind: sim}}")
	w.until(w.Source, models(2))
	err := w.Write(t.Context(), two, false)
	require.ErrorIs(t, err, ErrForeign)
	require.ErrorContains(t, err, "Helm release rel")
	require.ErrorIs(t, w.Delete(t.Context(), "helms"), ErrForeign)
	require.NoError(t, w.Delete(t.Context(), "auto"))
	w.until(w.Source, models(1))
}

func TestObjectNames(t *testing.T) {
	for id, want := range map[string]string{
		"chat": "chat", "org/Chat_7B.v1": "org-chat-7b-v1", "--": "model-d8156bae", "a//b": "a-b",
	} {
		require.Equal(t, want, ObjectName(id), id)
	}
	long := ObjectName("organisation/" + string(make([]byte, 10)) + "a-very-long-name-of-a-model-that-does-not-end-here-at-all")
	require.LessOrEqual(t, len(long), maxObjectName)
}

func TestSourceTellsWhenAllIsGone(t *testing.T) {
	w := newWorld(t, nil)
	next := func(version int64, what string, gone bool) State {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for state := w.Next(ctx, version); ; state = w.Next(ctx, state.Version) {
			require.NoError(t, ctx.Err(), "%s: %+v", what, state)
			if state.File == nil && state.Gone == gone {
				return state
			}
		}
	}
	remove := func(gvr schema.GroupVersionResource, name string) {
		t.Helper()
		require.NoError(t, w.Dynamic().Resource(gvr).Namespace("n").Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	next(0, "nothing was made", true)
	w.create(Fleets(), fleetText)
	w.create(Models(), chatText)
	w.create(Models(), "kind: Model\nmetadata: {name: other}\nspec: {fleet: another, replicas: 2, engine: {kind: sim}}")
	state, _ := w.until(w.Source, models(1))
	remove(Fleets(), "default")
	state = next(state.Version, "a Model is left", false)
	remove(Models(), "chat")
	next(state.Version, "another fleet's Model is left", true)
}

func TestSourceTellsOfModelsThatCome(t *testing.T) {
	w := newWorld(t, nil)
	came := make(chan string, 100)
	s, err := New(Options{Client: w.Dynamic(), Namespace: "n", Fleet: DefaultFleet, Came: func(model string) { came <- model }, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	w.create(Models(), "kind: Model\nmetadata: {name: other}\nspec: {fleet: another, replicas: 2, engine: {kind: sim}}")
	w.create(Fleets(), fleetText)
	for range 2 { // the second time as it was
		w.create(Models(), chatText)
		w.create(LoRAs(), "kind: LoRA\nmetadata: {name: l}\nspec: {model: chat, source: /l}")
		require.Equal(t, "org/chat", <-came)
		require.NotNil(t, s.Owner("org/chat"), "it is there by then")
		for gvr, name := range map[schema.GroupVersionResource]string{Models(): "chat", LoRAs(): "l"} {
			require.NoError(t, w.Dynamic().Resource(gvr).Namespace("n").Delete(t.Context(), name, metav1.DeleteOptions{}))
		}
	}
	require.Empty(t, came)
}
