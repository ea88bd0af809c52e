package flow

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are labelled by models of the fleet.
type metrics struct {
	held     *prometheus.GaugeVec
	total    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	rejected *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mobula_router_held_requests", Help: "Requests that wait because no engine of their model runs.",
		}, []string{"model"}),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_router_held_total", Help: "Requests that had to wait for an engine.",
		}, []string{"model"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mobula_router_held_seconds", Help: "Seconds that requests waited for an engine, however that ended.",
			Buckets: []float64{.05, .25, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640},
		}, []string{"model"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_router_held_rejected_total", Help: "Requests that waited in vain or were not let wait, by reason: full, timeout, draining or gone (the client left).",
		}, []string{"model", "reason"}),
	}
	if r != nil {
		r.MustRegister(m.held, m.total, m.seconds, m.rejected)
	}
	return m
}

func (m *metrics) begin(model string) {
	m.held.WithLabelValues(model).Inc()
	m.total.WithLabelValues(model).Inc()
}

func (m *metrics) end(model string, since time.Time) {
	m.held.WithLabelValues(model).Dec()
	m.seconds.WithLabelValues(model).Observe(time.Since(since).Seconds())
}

func (m *metrics) refused(model string, err error) {
	reason := "gone"
	switch {
	case errors.Is(err, ErrFull):
		reason = "full"
	case errors.Is(err, ErrTimeout):
		reason = "timeout"
	case errors.Is(err, ErrDraining):
		reason = "draining"
	}
	m.rejected.WithLabelValues(model, reason).Inc()
}
