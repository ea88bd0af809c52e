package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// request is one to try.
type request struct{ path, body string }

// routeCases says for each route which request is good and which are not.
func routeCases() map[string]struct {
	good   request
	told   string    // what the backend hears
	bad    []request // answered with 400
	silent bool      // the backend's error can't show
} {
	join := func(clock time.Time) string {
		return fmt.Sprintf(`{"name":"gpu-1","address":"10.0.0.1:8200","csr":"PEM","clock":%q}`, clock.Format(time.RFC3339))
	}
	long := strings.Repeat("x", maxName+1)
	bad := func(paths ...string) (all []request) {
		for _, p := range paths {
			all = append(all, request{path: p})
		}
		return all
	}
	type route = struct {
		good   request
		told   string
		bad    []request
		silent bool
	}
	return map[string]route{
		"getFleet":       {good: request{path: "/v1/fleet"}, bad: bad("/v1/fleet?after=1", "/v1/fleet?%zz"), silent: true},
		"applyFleet":     {good: request{"/v1/fleet?dry=true&force=true&source=me", "kind: Fleet"}, told: "apply kind: Fleet from me dry true force true", bad: bad("/v1/fleet?dry=maybe", "/v1/fleet?dry=1&dry=1", "/v1/fleet?source=%1b[31m", "/v1/fleet?source="+strings.Repeat("x", 300))},
		"deleteFleet":    {good: request{path: "/v1/fleet"}, told: `delete ""`, bad: bad("/v1/fleet?force=true")},
		"restartFleet":   {good: request{path: "/v1/fleet/restart"}, told: `restart ""`, bad: bad("/v1/fleet/restart?dry=true")},
		"getView":        {good: request{path: "/v1/view"}, bad: bad("/v1/view?after=x", "/v1/view?after=-1", "/v1/view?wait=20", "/v1/view?wait=-1s", "/v1/view?wait=61s"), silent: true},
		"getEvents":      {good: request{path: "/v1/events?after=3"}, bad: bad("/v1/events?after=99999999999999999999")},
		"scaleModel":     {good: request{"/v1/models/llama/scale", `{"replicas":3}`}, told: "scale llama 3", bad: []request{{"/v1/models/llama/scale", ""}, {"/v1/models/llama/scale", `{}`}, {"/v1/models/llama/scale", `{"replicas":1001}`}, {"/v1/models/llama/scale", `{"replicas":-2}`}, {"/v1/models/llama/scale", `{"replica":2}`}, {"/v1/models/llama/scale", `{"replicas":2}{}`}, {"/v1/models/llama/scale", `{"replicas":"2"}`}}},
		"restartModel":   {good: request{path: "/v1/models/llama/restart"}, told: `restart "llama"`, bad: bad("/v1/models/" + long + "/restart")},
		"rollbackModel":  {good: request{path: "/v1/models/llama/rollback"}, told: "rollback llama", bad: bad("/v1/models/a%00b/rollback")},
		"deleteModel":    {good: request{path: "/v1/models/llama"}, told: `delete "llama"`, bad: bad("/v1/models/a%ffb")},
		"drainReplica":   {good: request{path: "/v1/replicas/llama-1/drain"}, told: "drain llama-1 true", bad: bad("/v1/replicas/llama-1/drain?drain=true")},
		"undrainReplica": {good: request{path: "/v1/replicas/llama-1/drain"}, told: "drain llama-1 false", bad: bad("/v1/replicas/%0a/drain")},
		"getLogs":        {good: request{path: "/v1/replicas/llama-1/logs?tail=5"}, told: "logs llama-1 5 false", bad: bad("/v1/replicas/llama-1/logs?tail=-1", "/v1/replicas/llama-1/logs?tail=100001", "/v1/replicas/llama-1/logs?follow=x")},
		"cordonHost":     {good: request{path: "/v1/hosts/gpu-1/cordon?drain"}, told: "cordon gpu-1 true drain true", bad: bad("/v1/hosts/gpu-1/cordon?drain=2")},
		"uncordonHost":   {good: request{path: "/v1/hosts/gpu-1/cordon"}, told: "cordon gpu-1 false drain false", bad: bad("/v1/hosts/gpu-1/cordon?drain=true")},
		"forgetHost":     {good: request{path: "/v1/hosts/gpu-1"}, told: "forget gpu-1", bad: bad("/v1/hosts/" + long)},
		"makeToken":      {good: request{path: "/v1/tokens"}, bad: bad("/v1/tokens?after=1"), silent: true},
		"report":         {good: request{"/v1/reports", `{"router":"r1","at":"2026-11-22T10:00:00Z","endpoints":[],"models":[]}`}, told: "report r1", bad: []request{{"/v1/reports", ""}, {"/v1/reports", "[]"}, {"/v1/reports", `{"router":""}`}, {"/v1/reports", `{"router":"a\nb"}`}}},
		"getEndpoints":   {good: request{path: "/v1/endpoints"}, bad: bad("/v1/endpoints?wait=1h"), silent: true},
		"getSettings":    {good: request{path: "/v1/settings"}, bad: bad("/v1/settings?after=a"), silent: true},
		"join": {good: request{"/v1/join", join(time.Now())}, bad: []request{
			{"/v1/join", ""},
			{"/v1/join", `{"name":"a"}`},
			{"/v1/join", join(time.Now().Add(-time.Hour))},
			{"/v1/join", join(time.Now().Add(time.Hour))},
			{"/v1/join", `{"name":"a","address":"b"}`},
			{"/v1/join", `{"name":"\u001b","address":"b","csr":"c"}`},
		}, silent: true},
		"getDocument": {good: request{path: "/openapi.json"}, bad: bad("/openapi.json?a=b"), silent: true},
		"health":      {good: request{path: "/health"}, bad: bad("/health?a=b"), silent: true},
		"ready":       {good: request{path: "/ready"}, bad: bad("/ready?a=b"), silent: true},
		"metrics":     {good: request{path: "/metrics"}, bad: bad("/metrics?a=b"), silent: true},
		"version":     {good: request{path: "/version"}, bad: bad("/version?a=b"), silent: true},
	}
}

func TestEveryRouteAnswersGoodAndBadRequests(t *testing.T) {
	h := start(t)
	h.fake.change(func(f *fake) { f.file = []byte("kind: Fleet") })
	cases := routeCases()
	routes := h.routes()
	require.Len(t, cases, len(routes))
	for _, r := range routes {
		t.Run(r.id, func(t *testing.T) {
			c, ok := cases[r.id]
			require.True(t, ok)
			credential := "Bearer " + secret
			if r.access == forAgent {
				credential = "Bearer good"
			}
			h.fake.takeCalls()
			status, answer := h.doAs(t, credential, r.method, c.good.path, c.good.body)
			require.Equal(t, r.status, status, answer)
			if c.told != "" {
				require.Equal(t, []string{c.told}, h.fake.takeCalls())
			}
			for _, bad := range c.bad {
				status, answer := h.doAs(t, credential, r.method, bad.path, bad.body)
				require.Equal(t, http.StatusBadRequest, status, "%v: %s", bad, answer)
				require.Equal(t, client.CodeInvalid, errorOf(t, answer).Code)
				require.Empty(t, h.fake.takeCalls(), "%v", bad)
			}
			if r.access != forAll {
				for _, wrong := range []string{"", "Bearer", "Bearer wrong", "Basic " + secret, secret, "Bearer " + secret + "x"} {
					status, answer := h.doAs(t, wrong, r.method, c.good.path, c.good.body)
					require.Equal(t, http.StatusUnauthorized, status, "%q: %s", wrong, answer)
					require.Equal(t, client.CodeUnauthorized, errorOf(t, answer).Code)
					require.Empty(t, h.fake.takeCalls())
				}
			}
			if !c.silent {
				h.fake.fail(fmt.Errorf("model %q: %w", "llama", control.ErrNotFound))
				status, answer := h.doAs(t, credential, r.method, c.good.path, c.good.body)
				h.fake.fail(nil)
				require.Equal(t, http.StatusNotFound, status)
				require.Equal(t, client.ErrorDetail{Code: client.CodeNotFound, Message: `model "llama": not found`}, errorOf(t, answer))
			}
		})
	}
	require.NotContains(t, h.log.String(), "level=ERROR")
}

func errorOf(t *testing.T, answer string) client.ErrorDetail {
	t.Helper()
	var body client.ErrorBody
	require.NoError(t, json.Unmarshal([]byte(answer), &body), answer)
	require.NotEmpty(t, body.Error.Message)
	return body.Error
}

func TestErrorsGetTheirStatusAndCode(t *testing.T) {
	h := start(t)
	_, fileError := mobula.Load([]byte("apiVersion: nonsense"), "fleet.yaml")
	require.Error(t, fileError)
	for name, tc := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"invalid":         {control.ErrInvalid, 400, client.CodeInvalid},
		"file":            {fmt.Errorf("apply: %w", fileError), 400, client.CodeInvalid},
		"conflict":        {control.ErrConflict, 409, client.CodeConflict},
		"not found":       {control.ErrNotFound, 404, client.CodeNotFound},
		"unknown replica": {adapters.ErrUnknownReplica, 404, client.CodeNotFound},
		"unknown host":    {adapters.ErrUnknownHost, 404, client.CodeNotFound},
		"not supported":   {adapters.ErrUnsupported, 400, client.CodeInvalid},
		"impossible":      {adapters.ErrImpossible, 422, client.CodeImpossible},
		"unavailable":     {adapters.ErrUnavailable, 503, client.CodeUnavailable},
		"any other":       {errors.New("disk full"), 500, client.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			h.fake.fail(tc.err)
			status, answer := h.do(t, http.MethodPut, "/v1/fleet", "x: y")
			require.Equal(t, tc.status, status)
			require.Equal(t, client.ErrorDetail{Code: tc.code, Message: tc.err.Error()}, errorOf(t, answer))
		})
	}
	require.Equal(t, 1, strings.Count(h.log.String(), "level=ERROR"), "only what is our own fault is logged")
}

func TestUnknownRoutesAndMethods(t *testing.T) {
	h := start(t)
	for path, want := range map[string]int{"/v1/nothing": 404, "/": 404, "/v1/view/": 404, "/v1/models/": 404, "/v1//view": 404} {
		status, answer := h.do(t, http.MethodDelete, path, "")
		require.Equal(t, want, status, path)
		require.Equal(t, client.CodeNotFound, errorOf(t, answer).Code)
	}
	status, answer := h.do(t, http.MethodPost, "/v1/view", "")
	require.Equal(t, http.StatusMethodNotAllowed, status)
	require.Equal(t, client.CodeInvalid, errorOf(t, answer).Code)
}

func TestModelNamesMayHaveSlashesAndSigns(t *testing.T) {
	h := start(t)
	for _, tc := range []struct{ method, path, told string }{
		{http.MethodPut, "/v1/models/Qwen%2FQwen2.5/scale", "scale Qwen/Qwen2.5 2"},
		{http.MethodPut, "/v1/models/Qwen/Qwen2.5/scale", "scale Qwen/Qwen2.5 2"},
		{http.MethodPut, "/v1/models/a%2Fb/c/scale", "scale a/b/c 2"},
		{http.MethodPut, "/v1/models/a+b%2Fc%20d/scale", "scale a+b/c d 2"},
		{http.MethodPut, "/v1/models/a%252Fb/scale", "scale a%2Fb 2"},
		{http.MethodPut, "/v1/models/x/scale/scale", "scale x/scale 2"},
		{http.MethodPost, "/v1/models/Qwen/Qwen2.5/restart", `restart "Qwen/Qwen2.5"`},
		{http.MethodPost, "/v1/models/Qwen%2FQwen2.5/rollback", "rollback Qwen/Qwen2.5"},
		{http.MethodDelete, "/v1/models/Qwen/Qwen2.5", `delete "Qwen/Qwen2.5"`},
		{http.MethodDelete, "/v1/models/a/scale", `delete "a/scale"`},
		{http.MethodDelete, "/v1/models/%E6%A8%A1%E5%9E%8B", `delete "模型"`},
		{http.MethodDelete, "/v1/hosts/rack%2F1", "forget rack/1"},
	} {
		status, answer := h.do(t, tc.method, tc.path, `{"replicas":2}`)
		require.Equal(t, http.StatusNoContent, status, "%s: %s", tc.path, answer)
		require.Equal(t, []string{tc.told}, h.fake.takeCalls())
	}
}

func TestLargeBodiesAreRefused(t *testing.T) {
	h := start(t)
	for path, limit := range map[string]int{"/v1/reports": maxReport, "/v1/fleet": mobula.MaxFileSize, "/v1/models/a/scale": maxRequest} {
		method := http.MethodPut
		if path == "/v1/reports" {
			method = http.MethodPost
		}
		status, answer := h.do(t, method, path, strings.Repeat(" ", limit+1))
		require.Equal(t, http.StatusRequestEntityTooLarge, status)
		require.Equal(t, client.CodeInvalid, errorOf(t, answer).Code)
		require.Empty(t, h.fake.takeCalls())
	}
	status, _ := h.do(t, http.MethodPut, "/v1/fleet", strings.Repeat("#", mobula.MaxFileSize))
	require.Equal(t, http.StatusOK, status, "as much as a fleet file may have")
}

// panicky is a backend with a bug.
type panicky struct{ Backend }

func (panicky) Delete(context.Context, string) error { panic("a bug") }

func TestPanicsAreAnswered(t *testing.T) {
	h := start(t, func(o *Options) { o.Backend = panicky{o.Backend} })
	status, answer := h.do(t, http.MethodDelete, "/v1/fleet", "")
	require.Equal(t, http.StatusInternalServerError, status)
	require.Equal(t, client.CodeInternal, errorOf(t, answer).Code)
	require.Contains(t, h.log.String(), "panic")
}

func TestDocumentIsValidAndHasEveryRoute(t *testing.T) {
	h := start(t)
	status, answer := h.doAs(t, "", http.MethodGet, "/openapi.json", "")
	require.Equal(t, http.StatusOK, status)
	doc := loadDocument(t, []byte(answer))
	require.NoError(t, doc.Validate(t.Context()))
	var documented []string
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			documented = append(documented, method+" "+path+" "+operation.OperationID)
		}
	}
	var served []string
	for _, r := range h.routes() {
		served = append(served, r.method+" "+r.path+" "+r.id)
	}
	slices.Sort(documented)
	slices.Sort(served)
	require.Equal(t, served, documented)
	view := doc.Components.Schemas["View"].Value
	require.Contains(t, view.Required, "replicas")
	require.NotContains(t, view.Required, "stale")
	model := view.Properties["models"].Value.Items.Value
	require.True(t, model.Properties["replicas"].Value.Type.Is("string"), "a Range is text")
	replica := view.Properties["replicas"].Value.Items.Value
	require.Contains(t, replica.Properties, "cordoned")
	require.Contains(t, replica.Required, "id", "of the embedded Replica")
}

func TestMetricsCountOperationsNotPaths(t *testing.T) {
	h := start(t)
	h.do(t, http.MethodDelete, "/v1/models/one", "")
	h.do(t, http.MethodGet, "/v1/secret-path", "")
	status, answer := h.doAs(t, "", http.MethodGet, "/metrics", "")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, answer, `mobula_control_api_requests_total{operation="deleteModel",status="204"} 1`)
	require.Contains(t, answer, `mobula_control_api_requests_total{operation="none",status="404"} 1`)
	require.NotContains(t, answer, "secret-path")
}
