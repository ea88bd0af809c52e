package kubernetes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

func TestARecordReadsAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		key := adapters.Key{Fleet: "f", Model: rapid.StringMatching(`[a-zA-Z0-9/._-]{1,60}`).Draw(r, "model"), Revision: rapid.StringMatching(`[0-9a-f]{10}`).Draw(r, "revision")}
		x := &record{
			Base: kube.Name(key.Model, key.Revision), Key: key, Model: mobula.Model{Name: key.Model}, Kind: kube.KindDeployment,
			Replicas: rapid.IntRange(0, 100).Draw(r, "replicas"), Drain: rapid.SliceOfN(rapid.StringMatching(`[a-z]{3}`), 1, 3).Draw(r, "drain"),
			Removed: rapid.Bool().Draw(r, "removed"),
		}
		m, err := x.configMap("ns")
		require.NoError(r, err)
		y, err := readRecord(m)
		require.NoError(r, err)
		a, err := x.text()
		require.NoError(r, err)
		b, err := y.text()
		require.NoError(r, err)
		require.Equal(r, a, b)
	})
}

func TestNamesOfDeploymentsThatAreTaken(t *testing.T) {
	var got []string
	for base := range bases(adapters.Key{Fleet: "f", Model: "chat", Revision: "r1"}) {
		if got = append(got, base); len(got) == 3 {
			break
		}
	}
	require.Equal(t, []string{"chat-r1", "chat-r1-2", "chat-r1-3"}, got)
	first, second := newID(adapters.Key{Model: "chat", Revision: "r1"}), newID(adapters.Key{Model: "chat", Revision: "r1"})
	require.NotEqual(t, first, second)
	require.LessOrEqual(t, len(newID(adapters.Key{Model: "org/a-model-with-a-name-that-is-very-long-indeed-and-longer", Revision: "0123456789"})), 50)
}

// aRecord is one that is right.
func aRecord(tb testing.TB) *corev1.ConfigMap {
	tb.Helper()
	d := deployment("chat", "r1", 2, "chat-1")
	m, err := (&record{Base: "chat-r1", Key: d.Key, Model: d.Model, Replicas: 2, Drain: d.Drain, Kind: kube.KindStatefulSet, Names: []string{"a", "b"}, Print: "p"}).configMap("ns")
	require.NoError(tb, err)
	return m
}

func TestRecordsThatAreWrong(t *testing.T) {
	good := aRecord(t).Data[recordKey]
	for _, test := range []struct{ name, from, to, want string }{
		{"of a newer version", `"kind"`, `"later":{"x":1},"kind"`, ""},
		{"with another print", `"print":"p"`, `"print":"q"`, ""},
		{"not there", good, "", "delete it: unexpected end of JSON input"},
		{"cut off", good[len(good)/2:], "", "delete it: unexpected end of JSON input"},
		{"something else", good, "[]", "delete it: json: cannot unmarshal array"},
		{"nothing", good, "null", "it says to be \"mobula-\""},
		{"with another name", `"base":"chat-r1"`, `"base":"chat-r2"`, `it says to be "mobula-chat-r2"`},
		{"of another fleet", `"` + testFleet + `"`, `"depot"`, "it says to be of depot/chat, and its labels of shop/chat"},
		{"of another model", `"Model":"chat"`, `"Model":"code"`, `its model is "chat", and "code" in its key`},
		{"of no model", `"Model":"chat"`, `"Model":""`, "is no record"},
		{"less than no replicas", `"replicas":2`, `"replicas":-2`, "is no record"},
		{"many replicas", `"replicas":2`, `"replicas":2e9999`, "is no record"},
		{"a replica without a name", `"a","b"`, `"a",""`, "is no record"},
		{"of no kind", `"kind":"StatefulSet"`, `"kind":""`, "is no record"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := aRecord(t)
			require.Contains(t, good, test.from)
			m.Data[recordKey] = strings.Replace(good, test.from, test.to, 1)
			_, err := readRecord(m)
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "ConfigMap mobula-chat-r1 is no record of a deployment")
			require.ErrorContains(t, err, test.want)
		})
	}
}

// FuzzReadRecord: what reads is what is written, and is the same when it is read again; plans can be made of it.
func FuzzReadRecord(f *testing.F) {
	good := aRecord(f)
	f.Add(good.Data[recordKey])
	f.Add(strings.Replace(good.Data[recordKey], "StatefulSet", "Deployment", 1))
	f.Add(strings.Replace(good.Data[recordKey], `"names"`, `"removed":true,"victims":["a"],"asleep":[{}],"taken":{"a":"b"},"made":{"Name":"chat"},"kubeRay":{},"names"`, 1))
	f.Add(`{"base":"chat-r1"}`)
	f.Fuzz(func(t *testing.T, text string) {
		m := good.DeepCopy()
		m.Data = map[string]string{recordKey: text}
		r, err := readRecord(m)
		if err != nil {
			return
		}
		once, err := r.configMap("ns")
		require.NoError(t, err)
		require.Equal(t, m.Name, once.Name)
		require.Equal(t, groupByLabels(m), groupByLabels(once))
		again, err := readRecord(once)
		require.NoError(t, err)
		if twice, err := again.configMap("ns"); err != nil || once.Data[recordKey] != twice.Data[recordKey] {
			t.Fatalf("it reads as another one (%v): %s", err, cmp.Diff(once.Data, twice.Data))
		}
		if len(r.Names) > 5 || r.engine().Model.Resources.Hosts > 50 {
			return // right, and too much for a fuzz
		}
		in := &situation{
			records: []*record{r}, held: func(ident) bool { return false }, stored: func(string) bool { return true },
			workload: func(kind string) kube.Workload {
				return map[string]kube.Workload{kube.KindDeployment: Deployments{}, kube.KindStatefulSet: StatefulSets{}}[kind]
			},
		}
		in.render = func(r *record, id string) ([]*unstructured.Unstructured, error) {
			return render(in.workload(r.Kind), r, id, nil)
		}
		in.shape = func(r *record, id string) (all []ident, err error) {
			objects, err := in.render(r, id)
			for _, o := range objects {
				all = append(all, ident{o.GetKind(), o.GetName()})
			}
			return all, err
		}
		in.budget = func(*record) (*unstructured.Unstructured, error) { return nil, nil }
		todo, _ := plan(in)
		require.Empty(t, todo.kill)
		require.Empty(t, todo.remove)
	})
}

// spoil changes what a record says.
func (l *lab) spoil(change func(m *corev1.ConfigMap)) {
	l.t.Helper()
	maps := l.cube.Client().CoreV1().ConfigMaps(testSpace)
	all, err := maps.List(l.t.Context(), metav1.ListOptions{LabelSelector: labelRecord})
	require.NoError(l.t, err)
	require.Len(l.t, all.Items, 1)
	change(&all.Items[0])
	_, err = maps.Update(l.t.Context(), &all.Items[0], metav1.UpdateOptions{FieldManager: "kubectl-edit"})
	require.NoError(l.t, err)
}

func TestARecordThatWasSpoiledTakesNoEngineAwayAndIsMendedByTheNextWish(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("chat", "r1", 2)
	l.apply(d)
	ids := l.ready(2)
	l.quiet()
	l.spoil(func(m *corev1.ConfigMap) { m.Data[recordKey] = m.Data[recordKey][:40] })
	l.restart()
	l.await("it is known what runs", func() bool { return len(l.replicas()) == 2 })
	held, err := l.Deployments(t.Context(), testFleet)
	require.NoError(t, err)
	require.Empty(t, held)
	l.keeper.look(t.Context(), groupOf(testFleet, "chat"))
	require.ElementsMatch(t, ids, l.pods())

	l.apply(d)
	require.Equal(t, ids, l.ready(2), "the same engines")
	l.quiet()
	require.Len(t, l.cube.Objects("configmaps", testSpace, labelRecord), 1)
	require.Len(t, l.cube.Objects("deployments", testSpace, ""), 1)
}

func TestARecordOfAnotherVersionOfMobulaRestartsNothing(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("chat", "r1", 1)
	l.apply(d)
	ids := l.ready(1)
	l.quiet()
	l.stop()
	l.spoil(func(m *corev1.ConfigMap) {
		var text map[string]any
		require.NoError(t, json.Unmarshal([]byte(m.Data[recordKey]), &text))
		text["print"], text["later"] = "made-otherwise", map[string]any{"x": 1}
		raw, err := json.Marshal(text)
		require.NoError(t, err)
		m.Data[recordKey] = string(raw)
	})
	l.start()
	l.apply(d)
	require.Equal(t, ids, l.ready(1))
	l.await("its objects bear the print", func() bool {
		return l.cube.Objects("deployments", testSpace, "")[0].GetAnnotations()[kube.AnnotationSpec] == "made-otherwise"
	})
	l.quiet()
	require.Equal(t, ids, l.ready(1))
}

func TestARecordThatARoundHasChangedIsNoOneElses(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	l.apply(deployment("chat", "r1", 2))
	l.ready(2)
	l.quiet()
	key := deployment("chat", "r1", 2).Key

	was := l.live(key)
	next := was.clone()
	next.Victims = append(next.Victims, "gone")
	require.NoError(t, l.keeper.store(t.Context(), next))
	require.NoError(t, l.keeper.reread(t.Context(), was), "what is asked for is the same")
	require.True(t, apierrors.IsConflict(l.keeper.change(t.Context(), was, func(*record) bool { return true })), "a round never writes over what is newer")

	other := was.clone()
	other.Replicas = 7
	require.ErrorContains(t, l.keeper.reread(t.Context(), other), "only one control plane may look after a deployment")
}
