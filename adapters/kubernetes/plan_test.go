package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// mortal is a transport of a control plane that dies at a given write: before it is sent, or before it is answered.
type mortal struct {
	next  http.RoundTripper
	left  atomic.Int64 // writes until then
	after bool
}

func (m *mortal) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || path.Dir(r.URL.Path) == "/apis/authorization.k8s.io/v1" {
		return m.next.RoundTrip(r)
	}
	left := m.left.Add(-1)
	if left > 0 || left == 0 && m.after {
		res, err := m.next.RoundTrip(r)
		if left == 0 && err == nil {
			_ = res.Body.Close()
			return nil, context.Canceled
		}
		return res, err
	}
	return nil, context.Canceled
}

// TestAControlPlaneThatDiesAnywhereLosesNothing has it die at each write of a history, sent or not; the next one makes things as they were
// asked for last.
func TestAControlPlaneThatDiesAnywhereLosesNothing(t *testing.T) {
	for _, test := range []struct {
		kind     string
		answered bool
	}{{kube.KindDeployment, false}, {kube.KindDeployment, true}, {kube.KindStatefulSet, true}} {
		for at := 1; at <= 9; at++ {
			t.Run(fmt.Sprintf("%s at write %d, sent %t", test.kind, at, test.answered), func(t *testing.T) {
				l := newLab(t, kubetest.Options{})
				m := &mortal{after: test.answered}
				m.left.Store(int64(at))
				l.die(m)
				of := func(revision string, n int) adapters.Deployment {
					d := deployment("chat", revision, n)
					d.Model.Kubernetes.Workload = test.kind
					return d
				}
				last := map[string]int{}
				for _, d := range []adapters.Deployment{of("r1", 2), of("r1", 1), of("r2", 1)} {
					if l.Apply(t.Context(), d) == nil {
						last[d.Revision] = d.Replicas
						l.look()
					}
				}
				if l.Remove(t.Context(), of("r1", 0).Key) == nil {
					delete(last, "r1")
				}
				l.look()
				l.stop()
				l.options.Client, l.options.Dynamic = l.cube.Client(), l.cube.Dynamic()
				l.start()
				held, err := l.Deployments(t.Context(), testFleet)
				require.NoError(t, err)
				want := 0
				for _, d := range held { // what was not answered may have been done
					want += d.Replicas
				}
				for revision := range last {
					require.True(t, test.answered || slices.ContainsFunc(held, func(d adapters.Deployment) bool {
						return d.Revision == revision && d.Replicas == last[revision]
					}), "what was told to be durable is there")
				}
				l.await("what was asked for last, and nothing else", func() bool {
					var ids []string
					all, err := l.Status(t.Context(), testFleet)
					for _, r := range all {
						if r.State == mobula.StateReady {
							ids = append(ids, r.ID)
						}
					}
					running := l.running()
					slices.Sort(running)
					return err == nil && len(all) == want && slices.Equal(ids, running) &&
						len(l.cube.Objects("configmaps", testSpace, labelRecord)) == len(held)
				})
			})
		}
	}
}

// look has all groups be looked at once; what fails is of no interest.
func (l *lab) look() {
	for _, group := range l.keeper.groups() {
		l.keeper.queue.Add(group)
		l.keeper.queue.Forget(group)
	}
}

// die has the Cluster be another one, whose requests end as m says.
func (l *lab) die(m *mortal) {
	l.t.Helper()
	l.stop()
	config := l.cube.Config()
	m.next = config.Transport
	config.Transport = m
	l.options.Client, l.options.Dynamic = kubernetes.NewForConfigOrDie(config), dynamic.NewForConfigOrDie(config)
	l.start()
}

func TestDifferencesOfOwnedFields(t *testing.T) {
	wish := `{"replicas":1,"template":{"spec":{"containers":[{"name":"engine","image":"a","resources":{"requests":{"cpu":"1000m"}}}]}}}`
	for _, test := range []struct {
		name, owned, there string
		want               []string
	}{
		{"another number", `{"f:replicas":{}}`, `{"replicas":2}`, []string{"replicas"}},
		{"the same number", `{"f:replicas":{}}`, `{"replicas":1}`, nil},
		{"a field that we don't set", `{"f:paused":{}}`, `{"paused":true}`, nil},
		{
			"a container's image",
			`{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"engine\"}":{"f:image":{}}}}}}`,
			`{"template":{"spec":{"containers":[{"name":"engine","image":"b"}]}}}`,
			[]string{"template.spec.containers.engine.image"},
		},
		{
			"another container",
			`{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"side\"}":{".":{},"f:image":{}}}}}}`,
			`{"template":{"spec":{"containers":[{"name":"side","image":"b"}]}}}`, nil,
		},
		{
			"a quantity in other words",
			`{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"engine\"}":{"f:resources":{"f:requests":{"f:cpu":{}}}}}}}}`,
			`{"template":{"spec":{"containers":[{"name":"engine","resources":{"requests":{"cpu":"1"}}}]}}}`, nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o map[string]any
			var a, b any
			for text, into := range map[string]any{test.owned: &o, test.there: &a, wish: &b} {
				require.NoError(t, json.Unmarshal([]byte(text), into))
			}
			require.Equal(t, test.want, differ(o, a, b, nil))
		})
	}
}

// TestAPlanHurtsNobody: whatever the cluster looks like, pods are deleted only if they have ended or are to go, the number of replicas
// becomes what was asked for and is lowered only when those who go are marked, and objects of others are left alone.
func TestAPlanHurtsNobody(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := deployment("chat", "r1", rapid.IntRange(0, 4).Draw(r, "replicas"))
		rec := &record{Base: "chat-r1", Key: d.Key, Model: d.Model, Replicas: d.Replicas, Kind: kube.KindDeployment, OwnImage: "i", uid: "u", version: "1"}
		marked := true
		var pods []*corev1.Pod
		for i := range rapid.IntRange(0, 6).Draw(r, "pods") {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprintf("u%d", i)), Annotations: map[string]string{},
				Labels: map[string]string{labelRecord: rec.Base, kube.LabelServes: "true"},
			}, Status: corev1.PodStatus{Phase: rapid.SampledFrom([]corev1.PodPhase{corev1.PodRunning, corev1.PodPending, corev1.PodFailed}).Draw(r, "phase")}}
			if cost := rapid.SampledFrom([]string{"", costVictim, costDrained, "7"}).Draw(r, "cost"); cost != "" {
				pod.Annotations[annotationCost] = cost
			}
			if rapid.Bool().Draw(r, "victim") {
				rec.Victims = append(rec.Victims, pod.Name)
				marked = marked && (over(pod) || pod.Annotations[annotationCost] == costVictim)
			}
			if rapid.Bool().Draw(r, "drained") {
				rec.Drain = append(rec.Drain, pod.Name)
			}
			pods = append(pods, pod)
		}
		have := rapid.Int64Range(0, 5).Draw(r, "has")
		objects, err := render(Deployments{}, rec, "", nil)
		require.NoError(r, err)
		o := objects[0]
		require.NoError(r, unstructured.SetNestedField(o.Object, have, "spec", "replicas"))
		require.NoError(r, unstructured.SetNestedField(o.Object, rapid.Int64Range(0, 6).Draw(r, "seen"), "status", "replicas"))
		in := &situation{
			records: []*record{rec}, objects: objects, pods: pods, held: func(ident) bool { return false },
			workload: func(string) kube.Workload { return Deployments{} },
			shape:    func(*record, string) ([]ident, error) { return []ident{{o.GetKind(), o.GetName()}}, nil },
			render: func(rec *record, id string) ([]*unstructured.Unstructured, error) {
				return render(Deployments{}, rec, id, nil)
			},
			budget: func(*record) (*unstructured.Unstructured, error) { return nil, nil },
		}
		todo, err := plan(in)
		require.NoError(r, err)
		require.Empty(r, todo.remove)
		require.Empty(r, todo.apply)
		require.Empty(r, todo.forget)
		living := slices.DeleteFunc(slices.Clone(pods), func(pod *corev1.Pod) bool { return over(pod) || slices.Contains(rec.Victims, pod.Name) })
		require.Equal(r, len(living) > rec.Replicas, len(todo.resize) == 1, "it is decided who goes before anybody does")
		for _, k := range todo.kill {
			i := slices.IndexFunc(pods, func(pod *corev1.Pod) bool { return pod.Name == k.name })
			require.True(r, over(pods[i]) || slices.Contains(rec.Victims, k.name) && have == int64(rec.Replicas), "killed %s", k.name)
		}
		for _, p := range todo.patch {
			require.Equal(r, map[string]any{"replicas": int64(rec.Replicas)}, p.body["spec"])
			require.True(r, marked || int64(rec.Replicas) > have, "lowered before those who go are marked")
		}
		for _, m := range todo.marks {
			_, sets := m.annotations[annotationCost]
			i := slices.IndexFunc(pods, func(pod *corev1.Pod) bool { return pod.Name == m.name })
			if sets && pods[i].Annotations[annotationCost] == "7" {
				require.True(r, slices.Contains(rec.Victims, m.name) || slices.Contains(rec.Drain, m.name), "a cost that others have set stays")
			}
		}
	})
}
