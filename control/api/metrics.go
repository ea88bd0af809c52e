package api

import (
	"strconv"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	waiting  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_control_api_requests_total", Help: "Requests to the control plane's API, by operation and status.",
		}, []string{"operation", "status"}),
		seconds: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "mobula_control_api_request_seconds", Help: "Time to answer requests that don't wait for a change.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"operation"}),
		waiting: f.NewGauge(prometheus.GaugeOpts{
			Name: "mobula_control_api_waiting_requests", Help: "Requests that wait for a change or follow a log.",
		}),
	}
}

const (
	operationKey = "operation" // of a request's context: its route's id
	waitedKey    = "waited"    // it waited
)

// observe counts a request when it has been answered.
func (s *Server) observe(c *gin.Context) {
	start := time.Now()
	defer func() {
		operation := c.GetString(operationKey)
		if operation == "" {
			operation = "none" // no route: what is asked for must not become labels
		}
		s.metrics.requests.WithLabelValues(operation, strconv.Itoa(c.Writer.Status())).Inc()
		if !c.GetBool(waitedKey) {
			s.metrics.seconds.WithLabelValues(operation).Observe(time.Since(start).Seconds())
		}
	}()
	c.Next()
}
