package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// own is a pod of the fleet chat in namespace llm that serves.
func own(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	pod := stranger()
	pod.Namespace, pod.Name = "llm", name
	pod.Labels = map[string]string{
		"app": "vllm", kube.LabelFleet: "chat", kube.LabelModel: "m", kube.LabelRevision: "0123456789", kube.LabelServes: "true",
	}
	pod.Spec.Containers = []corev1.Container{{Name: kube.Container, Ports: []corev1.ContainerPort{{Name: kube.PortName, ContainerPort: kube.Port}}}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: kube.Container, Started: new(true), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	for _, c := range change {
		c(pod)
	}
	return pod
}

func named(namespace, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Namespace, p.Name = namespace, name }
}

func deleted(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }

func platform(all ...mobula.KubernetesDiscover) mobula.Platform {
	return mobula.Platform{Kubernetes: &mobula.Kubernetes{Namespace: "llm", Discover: all}}
}

// others selects app=vllm in namespaces.
func others(namespaces ...string) mobula.KubernetesDiscover {
	return mobula.KubernetesDiscover{Selector: "app=vllm", Namespaces: namespaces, By: "pods"}
}

// bubble is a Run in a bubble of its own time.
type bubble struct {
	*Discovery
	t     *testing.T
	world *world
	log   bytes.Buffer
	ends  context.CancelFunc
	done  chan error

	mu   sync.Mutex
	come [][]string // "ID" or "ID drains"
}

// in runs a test on a clock that jumps: synctest waits until nothing moves.
func in(t *testing.T, w *world, p mobula.Platform, test func(s *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { live(t, w, p, test) })
}

// live runs a test in a bubble.
func live(t *testing.T, w *world, p mobula.Platform, test func(s *bubble)) {
	t.Helper()
	s := &bubble{t: t, world: w, done: make(chan error)}
	var err error
	s.Discovery, err = NewDiscovery("chat", p, DiscoveryOptions{
		Client: w.client(), Logger: slog.New(slog.NewTextHandler(&s.log, nil)),
	})
	require.NoError(t, err)
	s.begin()
	test(s)
	s.end()
}

// begin takes all states that come.
func (s *bubble) begin() {
	ctx, cancel := context.WithCancel(s.t.Context())
	up := make(chan []mobula.Endpoint)
	s.ends = cancel
	go func() { s.done <- s.Run(ctx, up) }()
	go func() {
		for {
			select {
			case state := <-up:
				ids := make([]string, 0, len(state))
				for _, e := range state {
					if e.Draining {
						e.ID += " drains"
					}
					ids = append(ids, e.ID)
				}
				s.mu.Lock()
				s.come = append(s.come, ids)
				s.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	}()
	synctest.Wait()
}

func (s *bubble) end() {
	s.t.Helper()
	before := time.Now()
	s.ends()
	require.ErrorIs(s.t, <-s.done, context.Canceled)
	synctest.Wait()
	require.Zero(s.t, time.Since(before), "Run ends at once, whatever it waits for")
}

// after lets time pass, and gives the last state. What has an end by itself ends in that time.
func (s *bubble) after(d time.Duration) []string {
	time.Sleep(d)
	synctest.Wait()
	if all := s.states(); len(all) > 0 {
		return all[len(all)-1]
	}
	return nil
}

// states gives all that came.
func (s *bubble) states() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.come)
}

func (s *bubble) is(want ...string) {
	s.t.Helper()
	if want == nil {
		want = []string{}
	}
	require.Empty(s.t, cmp.Diff(want, s.after(coalesce)))
}

func TestEndpointsOfTheFleet(t *testing.T) {
	w := newWorld()
	w.set(own("a"), own("b", func(p *corev1.Pod) { p.Labels[kube.LabelFleet] = "other" }), stranger())
	in(t, w, platform(), func(s *bubble) {
		s.is("a")
		starting := own("c", func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].Started = new(false)
			p.Status.Conditions[0].Status = corev1.ConditionFalse
		})
		w.set(starting)
		s.is("a")
		w.set(own("c"))
		s.is("a", "c")
		w.set(own("a", deleted))
		s.is("a drains", "c")
		w.remove(own("a"))
		s.is("c")
		w.set(own("c", func(p *corev1.Pod) { p.Annotations = map[string]string{kube.AnnotationDrain: "scaled down"} }))
		s.is("c drains")
		w.remove(own("c"))
		s.is()
		require.Equal(t, 1, w.called("list pods"), "all but the first came by the watch")
	})
}

func TestAnEqualStateIsNotSentAgain(t *testing.T) {
	w := newWorld()
	w.set(own("a"))
	in(t, w, platform(), func(s *bubble) {
		s.is("a")
		w.set(own("a", func(p *corev1.Pod) { p.Annotations = map[string]string{"x": "y"} }))
		s.after(time.Second)
		w.set(own("c"))
		synctest.Wait() // it is looked at: what comes now is, together, a while later
		w.set(own("b"))
		w.remove(own("b"))
		s.after(time.Second)
		w.forget()
		w.drop()
		s.after(time.Minute)
		require.Equal(t, 2, w.called("list pods"))
		require.Equal(t, [][]string{{"a"}, {"a", "c"}}, s.states())
	})
}

func TestABurstIsFewStates(t *testing.T) {
	w := newWorld()
	in(t, w, platform(), func(s *bubble) {
		s.is()
		s.after(time.Second)
		w.set(own("first"))
		synctest.Wait()
		require.Equal(t, [][]string{{}, {"first"}}, s.states(), "at once")
		for i := range 200 {
			w.set(own(fmt.Sprintf("p%03d", i)))
			time.Sleep(time.Millisecond / 2)
		}
		require.Len(t, s.after(time.Second), 201)
		require.LessOrEqual(t, len(s.states()), 2+100/20+1)
	})
}

func TestALostAPIServerRemovesNothing(t *testing.T) {
	w := newWorld()
	w.set(own("a"), own("b"), stranger())
	in(t, w, platform(others("team")), func(s *bubble) {
		s.is("a", "b", "team/vllm-0:8000")
		w.down()
		w.remove(own("a"))
		w.set(own("c"))
		require.Equal(t, []string{"a", "b", "team/vllm-0:8000"}, s.after(10*time.Minute))
		problems := s.Problems()
		require.Len(t, problems, 1, "both watches fail for the same reason")
		require.Contains(t, problems[0], "can't be asked since 2000-01-01T00:00:")
		require.Less(t, w.called("list pods")+w.called("watch pods"), 2*10*60/3, "it is not asked all the time")
		w.failing(nil)
		require.Equal(t, []string{"b", "c", "team/vllm-0:8000"}, s.after(time.Minute))
		require.Empty(t, s.Problems())
		require.Len(t, s.states(), 2, "nothing was lost on the way")
		require.Equal(t, 1, strings.Count(s.log.String(), "level=WARN"), s.log.String())
		require.Equal(t, 1, strings.Count(s.log.String(), "is over"))
	})
}

func TestADeletionThatWasMissedIsFound(t *testing.T) {
	for name, miss := range map[string]func(w *world){
		"the watch was dropped":        func(*world) {},
		"the history is gone (410)":    (*world).forget,
		"the API server was restarted": (*world).down,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.set(own("a"), own("b"))
			in(t, w, platform(), func(s *bubble) {
				s.is("a", "b")
				w.failing(func(string, string, string) error { return errors.New("http2: client connection lost") })
				w.drop()
				s.after(5 * time.Minute)
				w.remove(own("a"))
				miss(w)
				w.failing(nil)
				require.Equal(t, []string{"b"}, s.after(time.Minute))
				require.Len(t, s.states(), 2)
			})
		})
	}
}

func TestAnAPIServerThatIsAwayAtFirst(t *testing.T) {
	w := newWorld()
	w.set(own("a"))
	w.down()
	in(t, w, platform(), func(s *bubble) {
		s.after(10 * time.Minute)
		require.Empty(t, s.states(), "nothing is known: no state")
		require.Len(t, s.Problems(), 1)
		w.failing(nil)
		s.after(time.Minute)
		require.Equal(t, [][]string{{"a"}}, s.states())
	})
}

func TestARightThatLacksDisturbsNothingElse(t *testing.T) {
	w := newWorld()
	w.set(own("a"), stranger(), stranger(named("closed", "x")))
	w.failing(func(verb, resource, namespace string) error {
		if namespace == "closed" {
			return noRight(verb, resource, namespace)
		}
		return nil
	})
	in(t, w, platform(others("closed", "team")), func(s *bubble) {
		s.is("a", "team/vllm-0:8000")
		require.Equal(t, []string{"pods of platform.kubernetes.discover[0] (app=vllm) in namespace closed: service account llm/mobula-router may not list pods " +
			"in namespace closed: grant it (charts/mobula's role does)"}, s.Problems())
		s.after(10 * time.Minute)
		require.Equal(t, 1, strings.Count(s.log.String(), "level=WARN"), "said once")
		w.failing(nil)
		require.Equal(t, []string{"a", "closed/x:8000", "team/vllm-0:8000"}, s.after(time.Minute))
		require.Empty(t, s.Problems())
	})
}

func TestANoForAllIsNoState(t *testing.T) {
	w := newWorld()
	w.failing(noRight)
	in(t, w, platform(), func(s *bubble) {
		s.after(time.Minute)
		require.Empty(t, s.states())
		require.Len(t, s.Problems(), 1)
	})
}

func TestTheFirstStateWaitsASecondForTheRest(t *testing.T) {
	w := newWorld()
	w.set(own("a"), stranger())
	w.failing(func(_, _, namespace string) error {
		if namespace == "team" {
			return errors.New("http2: client connection lost")
		}
		return nil
	})
	in(t, w, platform(others("team")), func(s *bubble) {
		s.after(grace / 2)
		require.Empty(t, s.states())
		s.after(grace)
		require.Equal(t, [][]string{{"a"}}, s.states())
		w.failing(nil)
		require.Equal(t, []string{"a", "team/vllm-0:8000"}, s.after(time.Minute))
	})
}

func TestOthersInAllNamespaces(t *testing.T) {
	w := newWorld()
	w.set(own("a"), stranger(), stranger(named("x", "y")), stranger(named("llm", "z")), stranger(func(p *corev1.Pod) { p.Name, p.Labels = "other", nil }))
	in(t, w, platform(others("*"), others("team", "team")), func(s *bubble) {
		s.is("a", "llm/z:8000", "team/vllm-0:8000", "x/y:8000")
		require.Equal(t, 3, w.called("list pods"))
	})
}

func TestWhatIsNoEngineIsLeftOut(t *testing.T) {
	w := newWorld()
	bad := func(name string) *corev1.Pod {
		return stranger(named("team", name), func(p *corev1.Pod) { p.Spec.Containers[1].Ports = nil })
	}
	worker := stranger(named("team", "worker"), func(p *corev1.Pod) { p.Labels["ray.io/node-type"] = "worker" })
	w.set(stranger(), bad("b1"), bad("b2"), worker)
	in(t, w, platform(others("team")), func(s *bubble) {
		s.is("team/vllm-0:8000")
		problem := "platform.kubernetes.discover[0] (app=vllm) in namespace team: pod team/b1 (and 1 more) names no port: left out; " +
			"set port, or have the selector leave it out"
		require.Equal(t, []string{problem}, s.Problems(), "a worker is none")
		require.Contains(t, s.log.String(), "pod team/worker is a worker of a Ray cluster")
		w.set(bad("b3"))
		s.after(time.Second)
		require.Equal(t, []string{problem}, s.Problems())
		require.Equal(t, 2, strings.Count(s.log.String(), "left out;")+strings.Count(s.log.String(), "to its head"))
		w.remove(bad("b1"), bad("b2"), bad("b3"))
		s.after(time.Second)
		require.Empty(t, s.Problems())
	})
}

func TestServicesAreEndpointsWhileSomethingIsBehindThem(t *testing.T) {
	w := newWorld()
	behind := func(name string, ready, serving bool) *discoveryv1.EndpointSlice {
		return slice(name, "chat", discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: new(ready), Serving: new(serving)}})
	}
	headless := service(func(s *corev1.Service) { s.Name, s.Spec.ClusterIP = "bare", corev1.ClusterIPNone })
	w.set(service(), headless, behind("chat-1", false, false))
	entry := others("team")
	entry.By = "services"
	in(t, w, platform(entry), func(s *bubble) {
		s.is()
		require.Len(t, s.Problems(), 1)
		require.Contains(t, s.Problems()[0], "service team/bare is headless")
		w.set(behind("chat-1", true, true))
		s.is("chat.team:80")
		w.set(behind("chat-2", true, true))
		w.set(behind("chat-1", false, false))
		s.is("chat.team:80")
		w.set(behind("chat-2", false, true))
		s.is("chat.team:80 drains")
		w.remove(behind("chat-2", false, true))
		s.is()
		w.set(behind("chat-1", true, true))
		s.is("chat.team:80")
		w.remove(service())
		s.is()
	})
}

func TestTheSuccessorOfAReplicaIsItsEndpoint(t *testing.T) {
	replica := func(p *corev1.Pod) { p.Labels[kube.LabelReplica] = "r1" }
	w := newWorld()
	w.set(own("z", replica))
	in(t, w, platform(), func(s *bubble) {
		s.is("r1")
		w.set(own("z", replica, deleted))
		s.is("r1 drains")
		w.set(own("zz", replica))
		s.is("r1")
		w.set(own("a", replica, deleted))
		s.is("r1")
		w.remove(own("z"), own("a"))
		s.is("r1")
	})
}

func TestUpdate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte("one"), 0o600))
	withKey := others("team")
	withKey.APIKeyFile = file
	w := newWorld()
	w.set(own("a"), stranger(), stranger(named("x", "y")))
	in(t, w, platform(withKey), func(s *bubble) {
		s.is("a", "team/vllm-0:8000")
		source, _ := s.get()
		require.Equal(t, mobula.Secret("one"), source.queries[1].key)

		require.NoError(t, s.Update("chat", platform(withKey)))
		s.after(time.Minute)
		require.Equal(t, 2, w.called("list pods"), "nothing has changed")

		require.NoError(t, os.WriteFile(file, []byte("two"), 0o600))
		require.NoError(t, s.Update("chat", platform(withKey)))
		s.after(time.Minute)
		require.Equal(t, 3, w.called("list pods"), "the key has")
		source, _ = s.get()
		require.Equal(t, mobula.Secret("two"), source.queries[1].key)

		bad := withKey
		bad.Selector = "a in"
		require.ErrorContains(t, s.Update("chat", platform(bad)), "platform.kubernetes.discover[0].selector")
		bad.Selector = ""
		require.ErrorContains(t, s.Update("chat", platform(bad)), "selects everything")
		bad = withKey
		bad.Port = "70000"
		require.ErrorContains(t, s.Update("chat", platform(bad)), "platform.kubernetes.discover[0].port: 70000")
		bad.Port, bad.By = "http", "nodes"
		require.ErrorContains(t, s.Update("chat", platform(bad)), "platform.kubernetes.discover[0].by: want pods or services")
		require.ErrorContains(t, s.Update("chat", platform(others(""))), "platform.kubernetes.discover[0].namespaces")
		bad = withKey
		bad.APIKeyFile = "/nowhere"
		require.ErrorIs(t, s.Update("chat", platform(bad)), os.ErrNotExist)
		require.Error(t, s.Update("chat", mobula.Platform{}))
		s.is("a", "team/vllm-0:8000")

		require.NoError(t, s.Update("chat", platform(others("x"))))
		s.is("a", "x/y:8000")
		require.NoError(t, s.Update("chat", platform()))
		s.is("a")
		require.ErrorContains(t, s.Update("nobody's", platform()), "can't be a label")
		require.NoError(t, s.Update("nobodys", platform()))
		s.is()
		require.Len(t, s.states()[1:], 4, "the new key is a state, and nothing is gone for a moment: %v", s.states())
	})
}

func TestFormerSettingsHoldUntilTheNewOnesHaveAnswered(t *testing.T) {
	w := newWorld()
	w.set(own("a"), stranger(), stranger(named("x", "y")))
	in(t, w, platform(others("team")), func(s *bubble) {
		s.is("a", "team/vllm-0:8000")
		w.failing(func(_, _, namespace string) error {
			if namespace == "x" {
				return errors.New("http2: client connection lost")
			}
			return nil
		})
		require.NoError(t, s.Update("chat", platform(others("x"))))
		require.Equal(t, []string{"a", "team/vllm-0:8000"}, s.after(10*time.Minute))
		w.remove(stranger())
		s.is("a") // no zombie either
		w.set(stranger())
		s.is("a", "team/vllm-0:8000")
		w.failing(nil)
		require.Equal(t, []string{"a", "x/y:8000"}, s.after(time.Minute))
		w.set(stranger(named("team", "another")))
		s.is("a", "x/y:8000")
		require.Len(t, w.streams, 2, "who is not asked for is not watched")
	})
}

func TestARunThatEndsLeavesNothing(t *testing.T) {
	w := newWorld()
	w.set(own("a"))
	in(t, w, platform(others("team")), func(s *bubble) {
		s.is("a")
		s.end()
		require.Empty(t, w.streams)
		require.Empty(t, s.Problems())
		require.Empty(t, s.lookings())
		w.set(own("b"))
		s.begin()
		s.is("a", "b")
		w.down() // to end while it waits for the next try
		s.after(time.Minute)
	})
}
