package openai

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/mobula-serve/mobula/router/pick"
	"github.com/mobula-serve/mobula/router/proxy"
)

// owner is the endpoint that made a Responses id, nil when that is not known or it is gone.
func (e *Edge) owner(s *pick.Snapshot, id []byte) *pick.Endpoint {
	if len(id) == 0 {
		return nil
	}
	name, ok := e.owners.Get(string(id))
	if !ok {
		return nil
	}
	for _, ep := range s.Endpoints {
		if ep.ID == name {
			return ep
		}
	}
	return nil
}

// maxAsked bounds the endpoints that are asked for an id whose owner is not known, askTime
// what they may take: one that hangs must not hold up what another one knows.
const (
	maxAsked = 32
	askTime  = 5 * time.Second
)

// responseByID sends GET /v1/responses/{id} and its cancel to the engine that owns the id.
// After a restart of the router nobody knows the owner: then the engines are asked.
func (e *Edge) responseByID(c *gin.Context) {
	body, f := e.readBody(c)
	if f != nil {
		e.fail(c, f)
		return
	}
	s := e.fleet.Snapshot()
	id := c.Param("id")
	ep := e.owner(s, []byte(id))
	if ep == nil && validID([]byte(id)) && strings.Trim(id, ".") != "" { // "..", cleaned up, is another path
		if ep = e.ask(c, s, id); ep != nil {
			e.owners.Add(id, ep.ID)
		}
	}
	if ep == nil {
		e.fail(c, &failure{status: http.StatusNotFound, param: "response_id", message: "no engine knows the response " + clip(id)})
		return
	}
	e.end(c, e.forward(c.Request, newGinClient(c), ep, body))
}

// ask finds the engine that knows a response, nil when none says so in time. It asks all of
// them at once, for a copy of the response that nobody reads.
func (e *Edge) ask(c *gin.Context, s *pick.Snapshot, id string) *pick.Endpoint {
	ctx, cancel := context.WithTimeout(c.Request.Context(), askTime)
	defer cancel()
	question := c.Request.Clone(ctx)
	question.Method, question.URL = http.MethodGet, &url.URL{Path: "/v1/responses/" + id}
	answers := make(chan *pick.Endpoint, maxAsked)
	asked := 0
	for _, ep := range s.Endpoints {
		if !ep.Serving || ep.Provider != nil || asked == maxAsked {
			continue
		}
		asked++
		go func() {
			if !e.knows(question, ep) {
				ep = nil
			}
			answers <- ep
		}()
	}
	var owner *pick.Endpoint
	for range asked {
		if ep := <-answers; ep != nil && owner == nil {
			owner = ep
			cancel() // the others
		}
	}
	return owner
}

// knows tells whether an engine has an answer to r other than that there is no such thing.
func (e *Edge) knows(r *http.Request, ep *pick.Endpoint) bool {
	const enough = 64 << 10 // of an answer, whose status is what counts
	answer := &proxy.MemoryClient{LeaveAfter: enough}
	stop := context.AfterFunc(r.Context(), answer.Leave)
	defer stop()
	err := e.forward(r, answer, ep, nil)
	status, _, _, body, _ := answer.Answer()
	if err != nil && len(body) < enough {
		return false
	}
	return status != 0 && status != http.StatusNotFound && status < http.StatusInternalServerError
}

// forward sends the request as it is to one endpoint.
func (e *Edge) forward(r *http.Request, client proxy.Client, ep *pick.Endpoint, body []byte) error {
	var h header
	h.scan(appendHeader(nil, r.Header), "")
	x := &proxy.Exchange{
		Method: r.Method, Target: r.URL.RequestURI(), Fields: h.fields, Body: body,
		Stream: r.URL.Query().Get("stream") == "true", List: []*pick.Endpoint{ep}, Client: client, Hooks: reportOnly{e.fleet},
		Owned: true,
		Outside: func(ep *pick.Endpoint) (string, []byte, []byte) {
			target, fields := outside(ep, r.URL.RequestURI(), h.fields)
			return target, fields, body
		},
		AnswerFields: func(dst []byte, ep *pick.Endpoint) []byte {
			return append(append(append(append(dst, "X-Mobula-Endpoint: "...), ep.ID...), "\r\nX-Request-Id: "...), append(h.id, "\r\n"...)...)
		},
	}
	done := e.proxy.Do(x)
	if done.Err != nil && done.Status == 0 {
		return failureOf(done.Err).send(client, formatOpenAI, nil)
	}
	if done.Cut {
		return done.Err
	}
	return nil
}
