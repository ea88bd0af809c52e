package openai

import (
	"net/http"

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

// maxAsked bounds the endpoints that are asked for an id whose owner is not known.
const maxAsked = 32

// responseByID sends GET /v1/responses/{id} and its cancel to the engine that owns the id.
// After a restart of the router nobody knows the owner: then the engines are asked one by
// one, and the first that knows the id answers.
func (e *Edge) responseByID(c *gin.Context) {
	body, f := e.readBody(c)
	if f != nil {
		e.fail(c, f)
		return
	}
	s := e.fleet.Snapshot()
	id := c.Param("id")
	if ep := e.owner(s, []byte(id)); ep != nil {
		e.end(c, e.forward(c, newGinClient(c), ep, body))
		return
	}
	asked := 0
	for _, ep := range s.Endpoints {
		if !ep.Serving {
			continue
		}
		if asked++; asked > maxAsked {
			break
		}
		answer := &proxy.MemoryClient{LeaveAfter: int(e.settings.Load().router.Limits.Body)}
		if e.forward(c, answer, ep, body) != nil {
			continue
		}
		status, fields, _, text, _ := answer.Answer()
		if status == http.StatusNotFound || status >= http.StatusInternalServerError {
			continue
		}
		e.owners.Add(id, ep.ID)
		client := newGinClient(c)
		err := client.Head(status, []byte(fields), int64(len(text)))
		if err == nil {
			err = client.Write([]byte(text))
		}
		e.end(c, err)
		return
	}
	e.fail(c, &failure{status: http.StatusNotFound, param: "response_id", message: "no engine knows the response " + clip(id)})
}

// forward sends the request as it is to one endpoint.
func (e *Edge) forward(c *gin.Context, client proxy.Client, ep *pick.Endpoint, body []byte) error {
	var h header
	h.scan(appendHeader(nil, c.Request.Header), "")
	x := &proxy.Exchange{
		Method: c.Request.Method, Target: c.Request.URL.RequestURI(), Fields: h.fields, Body: body,
		Stream: c.Query("stream") == "true", List: []*pick.Endpoint{ep}, Client: client, Hooks: reportOnly{e.fleet},
		AnswerFields: func(dst []byte, ep *pick.Endpoint) []byte {
			return append(append(append(append(dst, "X-Mobula-Endpoint: "...), ep.ID...), "\r\nX-Request-Id: "...), append(h.id, "\r\n"...)...)
		},
	}
	r := e.proxy.Do(x)
	if r.Err != nil && r.Status == 0 {
		return failureOf(r.Err).send(client, formatOpenAI, nil)
	}
	if r.Cut {
		return r.Err
	}
	return nil
}
