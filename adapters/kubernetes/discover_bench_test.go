package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
)

// BenchmarkDiscovery looks at ten thousand pods of which one drains and comes back: the time from the change to the state that says so,
// and what a pod takes while it is watched.
func BenchmarkDiscovery(b *testing.B) {
	const pods = 10_000
	w := newWorld()
	for i := range pods {
		w.set(own(fmt.Sprintf("chat-0123456789-%08d", i), heavy))
	}
	d, err := NewDiscovery("chat", platform(), DiscoveryOptions{Client: w.client()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	up, done := make(chan []mobula.Endpoint), make(chan error)
	before := heap()
	go func() { done <- d.Run(ctx, up) }()
	if n := len(<-up); n != pods {
		b.Fatalf("%d endpoints", n)
	}
	after := heap()
	var sum time.Duration
	states := 0
	for b.Loop() {
		drains := states%2 == 0
		time.Sleep(2 * coalesce) // so that it is no burst
		began := time.Now()
		w.set(own("chat-0123456789-00000000", heavy, func(p *corev1.Pod) {
			if drains {
				p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
			}
		}))
		state := <-up
		sum += time.Since(began)
		if state[0].Draining != drains {
			b.Fatal("not as it was changed")
		}
		states++
	}
	b.ReportMetric(float64(after-before)/pods, "B/pod")
	b.ReportMetric(float64(sum)/float64(states), "ns/change")
	cancel()
	<-done
}

// BenchmarkDiscoveryLook is the work of one state of ten thousand pods, without the pause between states.
func BenchmarkDiscoveryLook(b *testing.B) {
	s := &store[*found]{read: query{own: true}.pod, same: sameFound, changed: func() {}}
	all := make([]any, 10_000)
	for i := range all {
		all[i] = own(fmt.Sprintf("chat-0123456789-%08d", i))
	}
	_ = s.Replace(all, "")
	l := newLooking(b.Context(), slog.New(slog.DiscardHandler))
	l.finders = []*finder{{query: query{own: true}, each: each(s)}}
	b.ReportAllocs()
	for b.Loop() {
		if state, _ := l.look(time.Time{}); len(state) != len(all) {
			b.Fatal(len(state))
		}
	}
}

// heavy is what real pods bear that nobody here needs.
func heavy(p *corev1.Pod) {
	p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 4096))}}
	p.Spec.Containers[0].Args = []string{strings.Repeat("x", 2048)}
}

func heap() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
