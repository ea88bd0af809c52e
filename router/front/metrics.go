package front

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// register exports the counters, which are plain atomics: a request costs one addition.
func (s *Server) register(r prometheus.Registerer) {
	counter := func(name, help string, labels prometheus.Labels, v *atomic.Uint64) {
		r.MustRegister(prometheus.NewCounterFunc(
			prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(v.Load()) },
		))
	}
	r.MustRegister(prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "mobula_front_connections", Help: "Open client connections."},
		func() float64 { return float64(s.open.Load()) },
	))
	counter("mobula_front_requests_total", "Requests served by the front's own loop.", nil, &s.requests)
	counter("mobula_front_handovers_total", "Connections handed to net/http.", nil, &s.handovers)
	counter("mobula_front_rejected_connections_total", "Connections refused above the limit.", nil, &s.rejected)
	counter("mobula_front_panics_total", "Panics of the handler.", nil, &s.panics)
	const help = "Requests that did not arrive in time."
	counter("mobula_front_slow_requests_total", help, prometheus.Labels{"part": "header"}, &s.slowHeads)
	counter("mobula_front_slow_requests_total", help, prometheus.Labels{"part": "body"}, &s.slowBodies)
}
