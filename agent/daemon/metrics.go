//go:build unix

package daemon

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula/agent"
)

// metrics of an agent.
type metrics struct {
	tasks    *prometheus.GaugeVec
	restarts prometheus.Counter
	wishes   prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		tasks: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mobula_agent_tasks", Help: "Tasks of the host, by their state.",
		}, []string{"state"}),
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mobula_agent_engine_restarts_total", Help: "Engines of the host that were started again after they had died.",
		}),
		wishes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mobula_agent_wishes_total", Help: "Wishes of the control plane that the agent has taken.",
		}),
	}
	m.count(nil)
	if r != nil {
		r.MustRegister(m.tasks, m.restarts, m.wishes)
	}
	return m
}

// count sets the number of tasks in each state.
func (m *metrics) count(tasks map[string]*task) {
	byState := map[agent.TaskState]int{
		agent.TaskStarting: 0, agent.TaskReady: 0, agent.TaskWaiting: 0, agent.TaskFailed: 0, agent.TaskStopping: 0,
	}
	for _, t := range tasks {
		byState[t.status.State]++
	}
	for state, n := range byState {
		m.tasks.WithLabelValues(string(state)).Set(float64(n))
	}
}
