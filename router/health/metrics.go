package health

import "github.com/prometheus/client_golang/prometheus"

// metrics are labelled by endpoints of the fleet, whose series go when they go.
type metrics struct {
	ejections *prometheus.CounterVec
	up        *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		ejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_router_ejections_total",
			Help: "Times an endpoint was taken out of service, by what was wrong with it.",
		}, []string{"endpoint", "reason"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mobula_router_endpoint_up",
			Help: "Whether an endpoint is in service: 1, or 0 while it is ejected or has never answered.",
		}, []string{"endpoint"}),
	}
	if r != nil {
		r.MustRegister(m.ejections, m.up)
	}
	return m
}

func (m *metrics) setUp(endpoint string, up bool) {
	v := 0.0
	if up {
		v = 1
	}
	m.up.WithLabelValues(endpoint).Set(v)
}

func (m *metrics) remove(endpoint string) {
	m.ejections.DeletePartialMatch(prometheus.Labels{"endpoint": endpoint})
	m.up.DeleteLabelValues(endpoint)
}
