package control

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
)

type metrics struct {
	replicas *prometheus.GaugeVec
	wanted   *prometheus.GaugeVec
	rollouts *prometheus.CounterVec
	errors   prometheus.Counter
	seconds  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		replicas: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mobula_control_replicas", Help: "Replicas of a model, by state.",
		}, []string{"model", "state"}),
		wanted: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mobula_control_wanted_replicas", Help: "Replicas that a model should have.",
		}, []string{"model"}),
		rollouts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_control_rollouts_total", Help: "Rollouts that came to an end, by outcome: complete, rolledback or failed.",
		}, []string{"model", "outcome"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mobula_control_placer_errors_total", Help: "Calls to the platform that failed.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "mobula_control_reconcile_seconds", Help: "Time of one look at the platform, the plan and the calls.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
	if r != nil {
		r.MustRegister(m.replicas, m.wanted, m.rollouts, m.errors, m.seconds)
	}
	return m
}

// show sets the gauges to a view. Models that are gone since the view before leave no series behind.
func (m *metrics) show(before, v *View) {
	count := make(map[string]*[numStates]int, len(v.Models))
	for i := range v.Models {
		count[v.Models[i].Name] = new([numStates]int)
	}
	for i := range v.Replicas {
		r := &v.Replicas[i]
		for j, state := range states() {
			if n := count[r.Model]; n != nil && r.State == state {
				n[j]++
			}
		}
	}
	for i := range v.Models {
		s := &v.Models[i]
		m.wanted.WithLabelValues(s.Name).Set(float64(s.Wanted))
		for j, state := range states() {
			m.replicas.WithLabelValues(s.Name, string(state)).Set(float64(count[s.Name][j]))
		}
	}
	for i := range before.Models {
		if name := before.Models[i].Name; count[name] == nil {
			m.wanted.DeleteLabelValues(name)
			m.replicas.DeletePartialMatch(prometheus.Labels{"model": name})
			m.rollouts.DeletePartialMatch(prometheus.Labels{"model": name})
		}
	}
}

// numStates is how many states a replica can be shown in.
const numStates = 7

func states() [numStates]mobula.State {
	return [...]mobula.State{
		mobula.StatePending, mobula.StateStarting, mobula.StateReady, mobula.StateAsleep,
		mobula.StateDraining, mobula.StateSuspect, mobula.StateFailed,
	}
}

// outcome counts a rollout's end.
func (m *metrics) outcome(e *Event, model string) {
	switch e.Reason {
	case "RolloutComplete":
		m.rollouts.WithLabelValues(model, "complete").Inc()
	case "RolledBack":
		m.rollouts.WithLabelValues(model, "rolledback").Inc()
	case "RolloutFailed":
		m.rollouts.WithLabelValues(model, "failed").Inc()
	}
}
