package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// maxSkew is how far an agent's clock may be from ours.
const maxSkew = 5 * time.Minute

func (s *Server) getFleet(c *gin.Context, _ query) error {
	ctx, cancel := call(c)
	defer cancel()
	file, err := s.backend.Fleet(ctx)
	if err != nil {
		return err
	}
	if len(file) == 0 {
		return fmt.Errorf("%w: no fleet has been applied yet; do so with mobula apply -f fleet.yaml", control.ErrNotFound)
	}
	c.Data(http.StatusOK, yamlKind, file)
	return nil
}

func (s *Server) applyFleet(c *gin.Context, q query) error {
	file, err := readBody(c, mobula.MaxFileSize)
	if err != nil {
		return err
	}
	ctx, cancel := call(c)
	defer cancel()
	change, err := s.backend.Apply(ctx, file, q.source, q.dry, q.force)
	if err != nil {
		return err
	}
	answer := *change
	answer.Models = list(answer.Models)
	c.JSON(http.StatusOK, answer)
	return nil
}

// list makes an empty list of none, as JSON tells them apart.
func list[T any](all []T) []T {
	if all == nil {
		return []T{}
	}
	return all
}

// act answers a call that only does something.
func act(c *gin.Context, do func(ctx context.Context) error) error {
	ctx, cancel := call(c)
	defer cancel()
	if err := do(ctx); err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

// named makes the handler of what is done to the one that the path names.
func (s *Server) named(what string, do func(ctx context.Context, name string) error) func(*gin.Context, query) error {
	return func(c *gin.Context, _ query) error {
		name, err := pathValue(c, what)
		if err != nil {
			return err
		}
		return act(c, func(ctx context.Context) error { return do(ctx, name) })
	}
}

func (s *Server) deleteFleet(c *gin.Context, _ query) error {
	return act(c, func(ctx context.Context) error { return s.backend.Delete(ctx, "") })
}

func (s *Server) restartFleet(c *gin.Context, _ query) error {
	return act(c, func(ctx context.Context) error { return s.backend.Restart(ctx, "") })
}

func (s *Server) scaleModel(c *gin.Context, q query) error {
	var r client.ScaleRequest
	if err := body(c, maxRequest, &r, true); err != nil {
		return err
	}
	if r.Replicas == nil || *r.Replicas < -1 || *r.Replicas > mobula.MaxReplicas {
		return fmt.Errorf("%w: replicas: want a number from 0 to %d, or -1 to give it back to the fleet file", control.ErrInvalid, mobula.MaxReplicas)
	}
	scale := func(ctx context.Context, model string) error { return s.backend.Scale(ctx, model, *r.Replicas) }
	return s.named("model", scale)(c, q)
}

func (s *Server) drain(on bool) func(*gin.Context, query) error {
	return s.named("replica", func(ctx context.Context, replica string) error { return s.backend.Drain(ctx, replica, on) })
}

func (s *Server) cordon(on bool) func(*gin.Context, query) error {
	return func(c *gin.Context, q query) error {
		cordon := func(ctx context.Context, host string) error { return s.backend.Cordon(ctx, host, on, q.drain) }
		return s.named("host", cordon)(c, q)
	}
}

func (s *Server) getView(c *gin.Context, q query) error {
	ctx, cancel := call(c)
	defer cancel()
	v, err := s.backend.View(ctx, 0)
	if err == nil && q.wait > 0 && v.Version == q.after {
		err = s.await(c, q, func(ctx context.Context) error {
			_, err := s.backend.View(ctx, q.after)
			return err
		})
		if err == nil {
			v, err = s.backend.View(c.Request.Context(), 0)
		}
	}
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, withLists(v))
	return nil
}

// withLists gives a View whose lists are never null.
func withLists(v *control.View) *control.View {
	full := *v
	full.Models, full.Replicas = list(slices.Clone(full.Models)), list(full.Replicas)
	full.Hosts, full.Routers = list(full.Hosts), list(full.Routers)
	for i := range full.Models {
		m := &full.Models[i]
		m.LoRAs = slices.Clone(m.LoRAs)
		for j := range m.LoRAs {
			m.LoRAs[j].Loaded = list(m.LoRAs[j].Loaded)
		}
	}
	return &full
}

// await has a call wait until f returns, which is told to when the wait is over. It fails when the server stops.
func (s *Server) await(c *gin.Context, q query, f func(ctx context.Context) error) error {
	ctx, release, err := s.hold(c, q.wait)
	if err != nil {
		return err
	}
	defer release()
	err = f(ctx)
	writeWithin(c, writeTimeout)
	switch {
	case s.life.Err() != nil:
		return errStopping
	case ctx.Err() != nil: // the wait is over, or the client has left
		return c.Request.Context().Err()
	}
	return err
}

func (s *Server) getEvents(c *gin.Context, q query) error {
	ctx, cancel := call(c)
	defer cancel()
	events, err := s.backend.Events(ctx, q.after, false)
	if err == nil && q.wait > 0 && len(events) == 0 {
		err = s.await(c, q, func(ctx context.Context) (err error) {
			events, err = s.backend.Events(ctx, q.after, true)
			return err
		})
	}
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, client.EventList{Events: list(events)})
	return nil
}

func (s *Server) getEndpoints(c *gin.Context, q query) error {
	return s.latest(c, q, s.endpoints, "endpoints")
}

func (s *Server) getSettings(c *gin.Context, q query) error {
	return s.latest(c, q, s.settings, "settings")
}

// latest answers with what routers wait for. A version that we never had is that of another process: it is answered at once.
func (s *Server) latest(c *gin.Context, q query, l *latest, what string) error {
	if _, version, _ := l.get(); q.wait > 0 && (version == 0 || version == q.after) {
		err := s.await(c, q, func(ctx context.Context) error {
			l.wait(ctx, q.after)
			return nil
		})
		if err != nil {
			return err
		}
	}
	answer, _, _ := l.get()
	if answer == nil {
		return notKnown(what)
	}
	c.Data(http.StatusOK, "application/json", answer)
	return nil
}

func (s *Server) report(c *gin.Context, _ query) error {
	var r mobula.Report
	if err := body(c, maxReport, &r, false); err != nil {
		return err
	}
	if err := checkText(r.Router, maxName); err != nil || r.Router == "" {
		return fmt.Errorf("%w: router: want the name of a router", control.ErrInvalid)
	}
	return act(c, func(ctx context.Context) error { return s.backend.Report(ctx, r) })
}

func (s *Server) makeToken(c *gin.Context, _ query) error {
	if s.tokens == nil {
		return errUnused
	}
	ctx, cancel := call(c)
	defer cancel()
	token, err := s.tokens.New(ctx)
	if err != nil {
		return err
	}
	c.JSON(http.StatusCreated, client.TokenAnswer{Token: token})
	return nil
}

// join takes an agent in. Its token is used up only by a request that makes sense.
func (s *Server) join(c *gin.Context, _ query) error {
	if s.joiner == nil || s.tokens == nil {
		return errUnused
	}
	peer, token := s.agentCert(c.Request), bearer(c.Request)
	if peer == nil && token == "" {
		return fmt.Errorf("%w: %w", errUnauthorized, errNoJoinToken)
	}
	var j agent.Join
	if err := body(c, maxRequest, &j, false); err != nil {
		return err
	}
	if err := checkJoin(&j, time.Now()); err != nil {
		return err
	}
	ctx, cancel := call(c)
	defer cancel()
	if peer == nil {
		if err := s.tokens.Check(ctx, token); err != nil {
			if statusOf(err) != http.StatusInternalServerError {
				return err
			}
			return fmt.Errorf("%w: %w", errUnauthorized, err)
		}
	}
	joined, err := s.joiner.Join(ctx, j, peer)
	if err != nil {
		return err
	}
	c.JSON(http.StatusOK, joined)
	return nil
}

// checkJoin refuses what no agent sends, and one whose certificates would be worth nothing for its clock.
func checkJoin(j *agent.Join, now time.Time) error {
	for _, field := range []struct{ name, value string }{{"name", j.Name}, {"address", j.Address}} {
		if err := checkText(field.value, maxName); err != nil {
			return fmt.Errorf("%w: %s: %w", control.ErrInvalid, field.name, err)
		}
		if field.value == "" {
			return fmt.Errorf("%w: %s is missing", control.ErrInvalid, field.name)
		}
	}
	if j.CSR == "" {
		return fmt.Errorf("%w: csr is missing", control.ErrInvalid)
	}
	if skew := j.Clock.Sub(now).Abs(); skew > maxSkew {
		return fmt.Errorf("%w: the clocks differ: it is %s on the host and %s on the control plane; set them (NTP), then join again",
			control.ErrInvalid, j.Clock.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func (s *Server) getDocument(c *gin.Context, _ query) error {
	c.Data(http.StatusOK, "application/json", s.document)
	return nil
}

func (s *Server) health(c *gin.Context, _ query) error {
	c.Status(http.StatusOK)
	return nil
}

func (s *Server) ready(c *gin.Context, _ query) error {
	answer, status := readyAnswer{Ready: true}, http.StatusOK
	switch {
	case s.life.Err() != nil:
		answer = readyAnswer{Reason: "stopping"}
	case !s.endpoints.known():
		answer = readyAnswer{Reason: "the endpoints are not known yet"}
	case !s.settings.known():
		answer = readyAnswer{Reason: "the fleet is not known yet"}
	}
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	c.JSON(status, answer)
	return nil
}

func (s *Server) getMetrics(c *gin.Context, _ query) error {
	promhttp.HandlerFor(s.gatherer, promhttp.HandlerOpts{}).ServeHTTP(c.Writer, c.Request)
	return nil
}

func (s *Server) getVersion(c *gin.Context, _ query) error {
	c.JSON(http.StatusOK, versionAnswer{Version: s.version, Server: "mobula"})
	return nil
}
