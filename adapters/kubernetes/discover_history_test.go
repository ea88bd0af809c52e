package kubernetes

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/kube"
)

// TestHistoriesEndAsAFreshListSays has pods and Services come, change and go while watches are dropped, histories forgotten, the API server
// away and settings changed: what is known in the end is what somebody sees who looks then for the first time.
func TestHistoriesEndAsAFreshListSays(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.IntRange(0, 12), 1, 40).Draw(rt, "steps")
		seed := rapid.SliceOfN(rapid.IntRange(0, 1<<16), len(steps), len(steps)).Draw(rt, "with")
		var got, want []string
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			last := platform(others("team"))
			play := func(s *bubble) {
				for i, step := range steps {
					last = move(w, s, last, step, seed[i])
				}
				w.failing(nil)
				got = slices.Clone(s.after(time.Hour))
			}
			live(t, w, last, play)
			live(t, w, last, func(s *bubble) { want = slices.Clone(s.after(time.Minute)) })
		})
		if !slices.Equal(got, want) {
			rt.Fatalf("known %v, a fresh list says %v", got, want)
		}
	})
}

// move does one thing to the world or to what is looked for.
func move(w *world, s *bubble, last mobula.Platform, step, seed int) mobula.Platform {
	name, namespace := fmt.Sprintf("p%d", seed%4), []string{"team", "x", "llm"}[seed/4%3]
	pod := stranger(named(namespace, name))
	switch step {
	case 0, 1:
		w.set(pod)
	case 2:
		w.set(own(name))
	case 3:
		w.set(own(name, deleted))
	case 4, 5:
		w.remove(pod, own(name))
	case 6:
		w.set(stranger(named(namespace, name), func(p *corev1.Pod) { p.Labels = nil })) // no longer selected
	case 7:
		w.drop()
	case 8:
		w.forget()
	case 9:
		w.failing(func(string, string, string) error { return errors.New("http2: client connection lost") })
		w.drop()
	case 10:
		w.failing(nil)
	case 11:
		services := others("team")
		services.By = "services"
		last = []mobula.Platform{platform(), platform(others("team")), platform(others("*")), platform(services, others("team", "x"))}[seed%4]
		if err := s.Update("chat", last); err != nil {
			panic(err)
		}
	case 12:
		yes := seed%2 == 0
		w.set(service(), slice("chat-1", "chat", discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}))
	}
	s.after(time.Duration(seed%50) * time.Millisecond * 40)
	return last
}

// TestStoresEndAsAFreshListSays is the same for what one watch keeps, with many more histories.
func TestStoresEndAsAFreshListSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := query{fleet: "chat", home: "llm", entry: mobula.KubernetesDiscover{}}
		told := 0
		s := &store[*found]{read: q.pod, same: sameFound, changed: func() { told++ }}
		_ = s.Replace(nil, "")
		truth := map[string]*corev1.Pod{}
		list := func() []any {
			all := make([]any, 0, len(truth))
			for _, p := range truth {
				all = append(all, p)
			}
			return all
		}
		before := ""
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			pod := stranger(named("team", rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "name")))
			if rapid.Bool().Draw(t, "starting") {
				pod.Status.Conditions = nil
			}
			if rapid.Bool().Draw(t, "going") {
				pod.DeletionTimestamp = new(metav1.Now())
			}
			if rapid.Bool().Draw(t, "drained") {
				pod.Annotations = map[string]string{kube.AnnotationDrain: "x"}
			}
			unseen := rapid.IntRange(0, 4).Draw(t, "unseen") == 0
			_, had := truth[pod.Name]
			told = 0
			switch gone := rapid.Bool().Draw(t, "gone"); {
			case gone && had:
				delete(truth, pod.Name)
				if !unseen {
					_ = s.Delete(pod)
				}
			case !gone:
				truth[pod.Name] = pod
				switch {
				case unseen:
				case had:
					_ = s.Update(pod)
				default:
					_ = s.Add(pod)
				}
			}
			if unseen {
				_ = s.Replace(list(), "")
			}
			now := describe(s)
			if (now != before) != (told == 1) {
				t.Fatalf("told %d times from %s to %s", told, before, now)
			}
			before = now
		}
		fresh := &store[*found]{read: q.pod, same: sameFound, changed: func() {}}
		_ = fresh.Replace(list(), "")
		if got, want := describe(s), describe(fresh); got != want {
			t.Fatalf("known %s, a fresh list says %s", got, want)
		}
	})
}

func describe(s *store[*found]) string {
	var out strings.Builder
	for _, i := range s.list() {
		fmt.Fprintf(&out, "%s=%s,%t ", i.key, i.value.endpoint.URL, i.value.endpoint.Draining)
	}
	return out.String()
}
