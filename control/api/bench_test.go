package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

const many = 10_000 // replicas

func ask(b *testing.B, s *Server, path string) {
	b.Helper()
	b.ReportAllocs()
	size := 0
	for b.Loop() {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+secret)
		s.Handler().ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code, w.Body)
		}
		size = w.Body.Len()
	}
	b.ReportMetric(float64(size), "bytes/answer")
}

func BenchmarkView(b *testing.B) {
	f := newFake()
	for i := range many {
		f.view.Replicas = append(f.view.Replicas, control.ReplicaStatus{
			Replica: mobula.Replica{
				ID: fmt.Sprintf("llama-3fa9c1-%05d", i), Model: "llama", Revision: "3fa9c1aaaa", State: mobula.StateReady,
				Since: time.Unix(1e9, 0), URL: "http://10.0.0.1:8701", Hosts: []string{"gpu-17"}, Devices: []string{"0,1"},
			},
			Load: &mobula.EndpointReport{ID: "x", State: "up"},
		})
	}
	ask(b, New(Options{Backend: f, Endpoints: mute{}, Token: secret}), "/v1/view")
}

func BenchmarkEndpoints(b *testing.B) {
	endpoints := make([]mobula.Endpoint, many)
	for i := range endpoints {
		endpoints[i] = mobula.Endpoint{
			ID: fmt.Sprintf("llama-3fa9c1-%05d", i), URL: "http://10.0.0.1:8701",
			Labels: map[string]string{"model": "llama", "revision": "3fa9c1aaaa"},
		}
	}
	s := New(Options{Backend: newFake(), Endpoints: mute{}, Token: secret})
	b.Run("change", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.endpoints.set(endpointBody(endpoints))
		}
	})
	b.Run("answer", func(b *testing.B) { ask(b, s, "/v1/endpoints") })
}
