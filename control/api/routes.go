package api

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// Bounds on bodies, in bytes.
const (
	maxReport  = 8 << 20
	maxRequest = 64 << 10 // of the others
)

// route is one operation. Gin's routes and the OpenAPI document are both made from it.
type route struct {
	method, path string // {name} stands for one segment
	id, about    string
	access       access
	query        []string // names of params
	takes        content
	status       int // of success
	gives        content
	run          func(c *gin.Context, q query) error
}

// content is a body: of JSON like a Go value, or of another kind as it is.
type content struct {
	kind string // "" for none
	like any    // a value of the type, for JSON
}

func jsonOf(like any) content { return content{"application/json", like} }

const (
	yamlKind = "application/yaml"
	textKind = "text/plain"
)

// readyAnswer is the body of /ready.
type readyAnswer struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

// versionAnswer is the body of /version.
type versionAnswer struct {
	Version string `json:"version"`
	Server  string `json:"server"`
}

// routes lists all that the API does.
func (s *Server) routes() []route {
	const (
		get, put, post, del = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete
		ok, made, done      = http.StatusOK, http.StatusCreated, http.StatusNoContent
	)
	none := content{}
	yaml, text := content{kind: yamlKind}, content{kind: textKind}
	wait := []string{"after", "wait"}
	return []route{
		{get, "/v1/fleet", "getFleet", "The fleet file as it was applied last.", forPeople, nil, none, ok, yaml, s.getFleet},
		{
			put, "/v1/fleet", "applyFleet", "Make a fleet file what is wanted, or tell what would change.",
			forPeople,
			[]string{"dry", "force", "source"},
			yaml, ok, jsonOf(control.Change{}), s.applyFleet,
		},
		{del, "/v1/fleet", "deleteFleet", "Drain and stop all replicas and forget the fleet.", forPeople, nil, none, done, none, s.deleteFleet},
		{post, "/v1/fleet/restart", "restartFleet", "Replace all replicas of all models, one after the other.", forPeople, nil, none, done, none, s.restartFleet},
		{get, "/v1/view", "getView", "All that is known; waits for a change of after's version.", forPeople, wait, none, ok, jsonOf(control.View{}), s.getView},
		{get, "/v1/events", "getEvents", "Events beyond after, oldest first.", forPeople, wait, none, ok, jsonOf(client.EventList{}), s.getEvents},
		{
			put, "/v1/models/{model}/scale", "scaleModel", "Set the wanted number of replicas; -1 gives it back to the fleet file.",
			forPeople, nil, jsonOf(client.ScaleRequest{}), done, none, s.scaleModel,
		},
		{post, "/v1/models/{model}/restart", "restartModel", "Replace all replicas of the model, one after the other.", forPeople, nil, none, done, none, s.named("model", s.backend.Restart)},
		{post, "/v1/models/{model}/rollback", "rollbackModel", "Make the last good revision the wanted one.", forPeople, nil, none, done, none, s.named("model", s.backend.Rollback)},
		{del, "/v1/models/{model}", "deleteModel", "Remove the model: its replicas are drained and stopped.", forPeople, nil, none, done, none, s.named("model", s.backend.Delete)},
		{put, "/v1/replicas/{replica}/drain", "drainReplica", "Have the replica get no new requests.", forPeople, nil, none, done, none, s.drain(true)},
		{del, "/v1/replicas/{replica}/drain", "undrainReplica", "Have the replica get requests again.", forPeople, nil, none, done, none, s.drain(false)},
		{get, "/v1/replicas/{replica}/logs", "getLogs", "What the replica's engine has printed.", forPeople, []string{"tail", "follow"}, none, ok, text, s.getLogs},
		{put, "/v1/hosts/{host}/cordon", "cordonHost", "Have the host get no new replicas.", forPeople, []string{"drain"}, none, done, none, s.cordon(true)},
		{del, "/v1/hosts/{host}/cordon", "uncordonHost", "Have the host get replicas again.", forPeople, nil, none, done, none, s.cordon(false)},
		{del, "/v1/hosts/{host}", "forgetHost", "Remove a host that is gone for good.", forPeople, nil, none, done, none, s.named("host", s.backend.Forget)},
		{post, "/v1/tokens", "makeToken", "Make a join token for agents.", forPeople, nil, none, made, jsonOf(client.TokenAnswer{}), s.makeToken},
		{post, "/v1/reports", "report", "How a router fares.", forRouter, nil, jsonOf(mobula.Report{}), done, none, s.report},
		{get, "/v1/endpoints", "getEndpoints", "All endpoints, for routers; with the engines' API keys.", forRouter, wait, none, ok, jsonOf(client.EndpointList{}), s.getEndpoints},
		{get, "/v1/settings", "getSettings", "What routers need of the fleet.", forRouter, wait, none, ok, jsonOf(control.Settings{}), s.getSettings},
		{
			post, "/v1/join", "join", "Take an agent in, with a join token as bearer or the certificate it has got before.",
			forAgent, nil, jsonOf(agent.Join{}), ok, jsonOf(agent.Joined{}), s.join,
		},
		{get, "/openapi.json", "getDocument", "This document.", forAll, nil, none, ok, content{kind: "application/json"}, s.getDocument},
		{get, "/health", "health", "Whether the process lives.", forAll, nil, none, ok, none, s.health},
		{get, "/ready", "ready", "Whether routers can be served: 503 while not.", forAll, nil, none, ok, jsonOf(readyAnswer{}), s.ready},
		{get, "/metrics", "metrics", "Metrics for Prometheus.", forAll, nil, none, ok, text, s.getMetrics},
		{get, "/version", "version", "The version of mobula.", forAll, nil, none, ok, jsonOf(versionAnswer{}), s.getVersion},
	}
}
