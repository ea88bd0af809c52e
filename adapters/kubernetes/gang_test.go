package kubernetes

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// pair is an engine of two pods that is ready.
func pair(tb testing.TB, o kubetest.Options) (l *lab, first, other *corev1.Pod) {
	tb.Helper()
	l = newLab(tb, o)
	d := deployment("big", "r1", 1)
	d.Model.Resources.Hosts, d.Model.Engine.Kind = 2, "vllm"
	l.apply(d)
	id := l.ready(1)[0]
	l.quiet()
	return l, l.cube.Pod(testSpace, id+"-0"), l.cube.Pod(testSpace, id+othersSuffix+"-1")
}

// draining tells whether routers see that a pod is to get no more requests.
func (l *lab) draining(name string) bool {
	pod := l.cube.Pod(testSpace, name)
	if pod == nil {
		return false
	}
	e, serves := kube.Endpoint(pod)
	return serves && e.Draining
}

func TestWhenOnePodOfAnEngineLeavesTheOneThatServesGetsNoMoreRequests(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(l *lab, other string)
	}{
		{"it is deleted and has not ended yet", func(l *lab, other string) { require.NoError(l.t, l.cube.DeletePod(testSpace, other)) }},
		{"it is evicted", func(l *lab, other string) { require.NoError(l.t, l.cube.Evict(testSpace, other)) }},
		{"it has crashed", func(l *lab, other string) { require.NoError(l.t, l.cube.Crash(testSpace, other, 1, "NCCL error")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, first, other := pair(t, kubetest.Options{Lingers: true})
			require.False(t, l.draining(first.Name))
			test.end(l, other.Name)
			l.await("it drains", func() bool { return l.draining(first.Name) })
			for _, pod := range []*corev1.Pod{first, other} {
				_ = l.cube.Finish(testSpace, pod.Name)
			}
			l.await("its pods are started", func() bool {
				_ = l.cube.Ready(testSpace, other.Name)
				all := l.replicas()
				return len(all) == 1 && all[0].State == mobula.StateReady
			})
			require.NotEqual(t, first.UID, l.cube.Pod(testSpace, first.Name).UID, "all of it is made anew")
			l.await("it takes requests", func() bool { return !l.draining(first.Name) })
		})
	}
}

// gangState is a gang as plans see it.
type gangState struct {
	t    *testing.T
	now  time.Time
	rec  *record
	set  *unstructured.Unstructured
	pods []*corev1.Pod
	made int
}

func newGang(t *testing.T) *gangState {
	t.Helper()
	d := deployment("big", "r1", 1)
	d.Model.Resources.Hosts, d.Model.Engine.Kind = 2, "vllm"
	rec := &record{Base: "big-r1", Key: d.Key, Model: d.Model, Replicas: 1, Kind: kube.KindStatefulSet, Names: []string{"big-1"}, uid: "u"}
	g := &gangState{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), rec: rec}
	g.set = &unstructured.Unstructured{Object: map[string]any{"kind": kube.KindStatefulSet, "metadata": map[string]any{"name": "big-1"}}}
	g.anew("big-1-0")
	g.anew("big-1-w-1")
	return g
}

// anew has a pod be another one, whose engine runs.
func (g *gangState) anew(name string) *corev1.Pod {
	g.made++
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: types.UID(strconv.Itoa(g.made)), Labels: map[string]string{kube.LabelReplica: "big-1", kube.LabelServes: "true"},
	}}
	if name != "big-1-0" {
		pod.Labels[kube.LabelServes] = ""
	}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: kube.Container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(g.now)}},
	}}
	g.pods = append(slices.DeleteFunc(g.pods, func(p *corev1.Pod) bool { return p.Name == name }), pod)
	return pod
}

func (g *gangState) pod(name string) *corev1.Pod {
	return g.pods[slices.IndexFunc(g.pods, func(p *corev1.Pod) bool { return p.Name == name })]
}

// look does what is planned, and gives the pods that were killed, which are others then.
func (g *gangState) look() (killed []string) {
	p := &planner{situation: &situation{now: g.now, pods: g.pods}, known: map[ident]*unstructured.Unstructured{{kube.KindStatefulSet, "big-1"}: g.set}}
	p.gang(g.rec, "big-1")
	annotations := g.set.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	for _, patch := range p.patch {
		for name, value := range patch.body["metadata"].(map[string]any)["annotations"].(map[string]any) {
			if delete(annotations, name); value != nil {
				annotations[name] = value.(string)
			}
		}
	}
	g.set.SetAnnotations(annotations)
	for _, k := range p.kill {
		killed = append(killed, k.name)
		g.anew(k.name)
	}
	return killed
}

func (g *gangState) crash(name string) {
	g.pod(name).Status.ContainerStatuses[0].RestartCount++
}

func TestAGangThatCrashesAgainAndAgainIsMadeAnewLessAndLessOften(t *testing.T) {
	g := newGang(t)
	require.Empty(t, g.look(), "their lives are noted")
	require.Empty(t, g.look())
	var waits []time.Duration
	for i := range 9 {
		crash, other := "big-1-0", "big-1-w-1"
		if i%2 > 0 { // so that no pod has crashed often
			crash, other = other, crash
		}
		began := g.now
		g.crash(crash)
		killed := g.look()
		for ; len(killed) == 0; killed = g.look() {
			g.now = g.now.Add(time.Second)
		}
		waits = append(waits, g.now.Sub(began))
		require.Equal(t, []string{other}, killed)
		require.Empty(t, g.look(), "they are noted anew")
		x := mobula.Replica{State: mobula.StateStarting, Reason: "why"}
		readFalls(g.set).told(&x)
		require.Equal(t, i+1, x.Restarts)
		require.Equal(t, i+1 >= maxFalls, x.State == mobula.StateFailed)
	}
	require.Equal(t, []time.Duration{
		0, 0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute,
	}, waits)

	g.pod("big-1-0").Status.ContainerStatuses[0].Ready = true
	require.Empty(t, g.look())
	require.Zero(t, readFalls(g.set), "it was ready: it begins anew")
	g.crash("big-1-w-1")
	require.Equal(t, []string{"big-1-0"}, g.look(), "at once")
}

func TestAGangWhosePodsAreTakenAwayHasNotCrashed(t *testing.T) {
	g := newGang(t)
	require.Empty(t, g.look())
	for range 5 {
		g.now = g.now.Add(time.Second)
		g.anew("big-1-w-1")
		require.Equal(t, []string{"big-1-0"}, g.look())
		require.Empty(t, g.look())
	}
	require.Zero(t, readFalls(g.set))
}

func TestAnEngineThatIsToldToGoFinishesItsRequests(t *testing.T) {
	for name, c := range map[string]struct {
		then func(*gangState)
		want []string
	}{
		"its requests run":        {func(*gangState) {}, nil},
		"the other pod crashed":   {func(g *gangState) { g.crash("big-1-w-1") }, nil}, // what is left of it ends
		"it never was ready":      {func(g *gangState) { g.pod("big-1-0").Status.ContainerStatuses[0].Ready = false }, []string{"big-1-w-1"}},
		"it has finished":         {func(g *gangState) { g.pod("big-1-0").Status.Phase = corev1.PodSucceeded }, []string{"big-1-w-1"}},
		"it is gone":              {func(g *gangState) { g.pods = g.pods[1:] }, []string{"big-1-w-1"}},
		"there is another one":    {func(g *gangState) { g.anew("big-1-0") }, []string{"big-1-w-1"}},
		"the other one goes, too": {func(g *gangState) { g.pod("big-1-w-1").DeletionTimestamp = new(metav1.NewTime(g.now)) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGang(t)
			g.pod("big-1-0").Status.ContainerStatuses[0].Ready = true
			require.Empty(t, g.look())
			require.Equal(t, "big-1-0", g.pods[0].Name)
			g.pods[0].DeletionTimestamp = new(metav1.NewTime(g.now))
			c.then(g)
			require.Equal(t, c.want, g.look())
		})
	}
}

func TestFallsThatAreWrittenByHand(t *testing.T) {
	for _, text := range []string{"", "3", "x 2026-01-01T00:00:00Z", "3 yesterday", "-1 2026-01-01T00:00:00Z"} {
		g := newGang(t)
		g.set.SetAnnotations(map[string]string{annotationFalls: text})
		require.Zero(t, readFalls(g.set), text)
	}
	f := fall{3, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	g := newGang(t)
	g.set.SetAnnotations(map[string]string{annotationFalls: f.String()})
	require.Equal(t, f, readFalls(g.set))
	x := mobula.Replica{State: mobula.StatePending, NoRoom: true}
	f.told(&x)
	require.Equal(t, mobula.StatePending, x.State, "it waits for room, not for a mend")
}

func TestAnEngineWhoseOperatorMakesItAnewIsMarkedWhileOneOfItsPodsEnds(t *testing.T) {
	labels := func(serves string) map[string]string {
		return map[string]string{kube.LabelReplica: "big-1", kube.LabelServes: serves}
	}
	now := metav1.Now()
	head := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "head", Labels: labels("true"), Annotations: map[string]string{}}}
		pod.Status.PodIP = "10.0.0.1"
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: kube.Container, Started: new(true)}}
		change(pod)
		return pod
	}
	worker := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "worker", Labels: labels("")}}
		change(pod)
		return pod
	}
	as := func(*corev1.Pod) {}
	marked := func(pod *corev1.Pod) { pod.Annotations[kube.AnnotationDrain] = brokenReason }
	for _, test := range []struct {
		name string
		pods []*corev1.Pod
		want string // "mark", "unmark" or nothing
	}{
		{"all are well", []*corev1.Pod{head(as), worker(as)}, ""},
		{"one is being deleted", []*corev1.Pod{head(as), worker(func(p *corev1.Pod) { p.DeletionTimestamp = &now })}, "mark"},
		{"one is evicted", []*corev1.Pod{head(as), worker(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, "mark"},
		{"one is missing", []*corev1.Pod{head(as)}, "mark"},
		{"one is missing and it is marked", []*corev1.Pod{head(marked)}, ""},
		{"one has not been made and the engine has not started", []*corev1.Pod{head(func(p *corev1.Pod) { p.Status.ContainerStatuses[0].Started = new(false) })}, ""},
		{"all are well again", []*corev1.Pod{head(marked), worker(as)}, "unmark"},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGang(t)
			p := &planner{situation: &situation{
				pods: test.pods, workload: func(string) kube.Workload { return operated{} },
				shape: func(*record, string) ([]ident, error) { return nil, nil },
			}, known: map[ident]*unstructured.Unstructured{}}
			require.NoError(t, p.record(g.rec))
			require.Empty(t, p.kill)
			got := ""
			for _, m := range p.marks {
				require.Equal(t, "head", m.name)
				if got = "unmark"; m.annotations[kube.AnnotationDrain] != nil {
					got = "mark"
					require.True(t, strings.HasPrefix(*m.annotations[kube.AnnotationDrain], "another pod"))
				}
			}
			require.Equal(t, test.want, got)
		})
	}
}

// operated is a workload whose operator looks after the engine's pods.
type operated struct{ kube.Workload }

func (operated) Counted() bool { return false }
