package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

func TestBadBodiesGetAClearAnswer(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	other := startEngine(t, sim.Options{Model: "n"})
	r := startRouter(t, fleetOf("router: {limits: {body: 1MiB}}\n", e.url, other.url))
	deep := `{"model":"m","messages":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`
	for name, tc := range map[string]struct {
		body    string
		status  int
		message string
	}{
		"not json":       {"hello", 400, "must be a JSON object"},
		"empty":          {"", 400, "empty"},
		"array":          {`[]`, 400, "must be a JSON object"},
		"truncated":      {`{"model":"m","messages":[`, 400, "not closed at byte"},
		"no model":       {`{"messages":[]}`, 400, `"model" is missing`},
		"model a number": {`{"model":1}`, 400, `"model" must be a string`},
		"unknown model":  {`{"model":"nope"}`, 404, "Valid models: m, n."},
		"too large":      {`{"model":"m","messages":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "router.limits.body"},
		"too deep":       {deep, 400, "deeper than 100 levels"},
		"trailing":       {`{"model":"m"}{}`, 400, "goes on after"},
	} {
		t.Run(name, func(t *testing.T) {
			got := requireOpenAIError(t, post(r.url+"/v1/chat/completions", tc.body), tc.status)
			require.Contains(t, got["message"], tc.message)
			anthropic := post(r.url+"/v1/messages", tc.body)
			require.Equal(t, tc.status, anthropic.status)
			require.Equal(t, "error", jsonOf(t, anthropic.body)["type"])
		})
	}
	t.Run("truncated multipart", func(t *testing.T) {
		requireOpenAIError(t, post(r.url+"/v1/audio/transcriptions", "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n", "Content-Type", "multipart/form-data; boundary=b"), 400)
		requireOpenAIError(t, post(r.url+"/v1/audio/transcriptions", "{}"), 400)
	})
	t.Run("compressed body", func(t *testing.T) {
		requireOpenAIError(t, post(r.url+"/v1/chat/completions", "xx", "Content-Encoding", "gzip"), 415)
	})
	t.Run("wrong types and bad UTF-8 are the engine's to judge", func(t *testing.T) {
		for _, body := range []string{`{"model":"m","messages":7}`, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}],\"max_tokens\":1}"} {
			a := post(r.url+"/v1/chat/completions", body)
			require.NoError(t, a.err)
			require.Less(t, a.status, 500, a.body)
		}
		require.Zero(t, r.metric("mobula_router_ejections_total"), "an engine's 4xx never counts against it")
	})
	t.Run("duplicate keys mean what the engine takes them for", func(t *testing.T) {
		a := post(r.url+"/v1/completions", `{"model":"n","model":"m","prompt":"x","max_tokens":1}`)
		require.Equal(t, e.url, a.endpoint())
	})
	r.idle()
}

// raw sends bytes and reads what comes until the connection ends or goes quiet.
func (r *routerUnderTest) raw(text string) string {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	require.NoError(r.t, err)
	defer c.Close()
	require.NoError(r.t, c.SetDeadline(time.Now().Add(5*time.Second)))
	_, _ = io.WriteString(c, text)
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestStrangeRequestsHarmNobody(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("router: {timeouts: {readHeader: 1s, readBody: 1s}, limits: {header: 16KiB}}\n", e.url))
	const body = `{"model":"m","prompt":"x","max_tokens":1}`
	head := func(fields string) string {
		return "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\n" + fields + "\r\n" + body
	}
	length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	for name, tc := range map[string]struct{ request, want string }{
		"as it should be":      {head(length), "HTTP/1.1 200"},
		"two lengths":          {head(length + "Content-Length: 5\r\n"), "HTTP/1.1 400"},
		"length and chunks":    {head(length+"Transfer-Encoding: chunked\r\n") + "\r\n", "HTTP/1.1 400"},
		"injected field":       {head(length + "X-A: b\x00c\r\n"), "HTTP/1.1 400"},
		"space before colon":   {head("Content-Length : 5\r\n"), "HTTP/1.1 400"},
		"head too large":       {head(length + "X-A: " + strings.Repeat("a", 64<<10) + "\r\n"), "HTTP/1.1 431"},
		"slow head":            {"POST /v1/completions HTTP/1.1\r\nHost", ""},
		"slow body":            {"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + length + "\r\n{", "HTTP/1.1 408"},
		"chunked body":         {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body), "HTTP/1.1 200"},
		"not HTTP":             {"\x16\x03\x01\x02\x00\x01\x00", "HTTP/1.1 400"},
		"session of new lines": {head(length + "X-Request-Id: a\tb\r\n"), "HTTP/1.1 200"},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.raw(tc.request)
			require.True(t, strings.HasPrefix(got, tc.want), "got %q", got[:min(len(got), 300)])
		})
	}
	require.Equal(t, http.StatusOK, r.chat("still here").status)
	r.idle()
}

func TestStrangeAnswersHarmNobody(t *testing.T) {
	for name, tc := range map[string]struct {
		fault sim.Fault
		check func(t *testing.T, a answer)
	}{
		"early hints":     {sim.Fault{Kind: sim.FaultEarlyHints}, func(t *testing.T, a answer) { t.Helper(); require.Equal(t, 200, a.status) }},
		"gzip":            {sim.Fault{Kind: sim.FaultGzip}, func(t *testing.T, a answer) { t.Helper(); require.Equal(t, 200, a.status); jsonOf(t, a.body) }},
		"trailing junk":   {sim.Fault{Kind: sim.FaultTrailingJunk}, func(t *testing.T, a answer) { t.Helper(); require.Equal(t, 200, a.status); jsonOf(t, a.body) }},
		"length too long": {sim.Fault{Kind: sim.FaultWrongLength, Size: 16}, func(t *testing.T, a answer) { t.Helper(); require.False(t, a.err == nil && a.status == 200, a.body) }},
		"garbage":         {sim.Fault{Kind: sim.FaultGarbage}, func(t *testing.T, a answer) { t.Helper(); requireOpenAIError(t, a, 502) }},
		"a line of 20 MiB": {sim.Fault{Kind: sim.FaultLongLine, Size: 20 << 20}, func(t *testing.T, a answer) {
			t.Helper()
			require.NoError(t, a.err)
			require.GreaterOrEqual(t, len(a.body), 20<<20)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, sim.Options{Model: "m"})
			r := startRouter(t, fleetOf("router: {health: {ejectAfter: 100}}\n", e.url))
			require.NoError(t, e.SetFault(tc.fault))
			tc.check(t, r.chat("x"))
			e.ClearFault()
			r.eventually("well again", func() bool { return r.chat("x").status == http.StatusOK })
			r.idle()
		})
	}
}

func TestRow10ManyModelNamesMakeNoSeries(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("", e.url))
	r.chat("x")
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	require.NoError(t, err)
	defer c.Close()
	answers := bufio.NewReader(c)
	ask := func(i int) {
		body := fmt.Sprintf(`{"model":"junk-%d"}`, i)
		_, err := fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		require.NoError(t, err)
		resp, err := http.ReadResponse(answers, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusNotFound, resp.StatusCode)
	}
	ask(0)
	before := len(r.families()["mobula_router_requests_total"].GetMetric())
	for i := range 5000 {
		ask(i + 1)
	}
	require.Len(t, r.families()["mobula_router_requests_total"].GetMetric(), before)
}
