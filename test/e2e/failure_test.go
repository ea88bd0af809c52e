package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

// engineProcess runs `mobula sim` as a process of its own, so that it can be killed.
type engineProcess struct {
	cmd *exec.Cmd
	url string
}

func startEngineProcess(t *testing.T, port string, flags ...string) *engineProcess {
	t.Helper()
	cmd := exec.Command(binary(t), append([]string{"sim", "--port", port, "--model", "m"}, flags...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if i := strings.Index(lines.Text(), "http://"); i >= 0 {
			url := strings.Fields(lines.Text()[i:])[0]
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return &engineProcess{cmd, strings.TrimRight(url, "/.,")}
		}
	}
	t.Fatalf("mobula sim said nothing of its address")
	return nil
}

func TestKilledEngineCostsNoClientAnError(t *testing.T) {
	for _, engines := range []int{4, 2} {
		t.Run(fmt.Sprintf("one of %d", engines), func(t *testing.T) { killOneOf(t, engines) })
	}
}

func killOneOf(t *testing.T, engines int) {
	t.Helper()
	var urls []string
	var victim *engineProcess
	for range engines {
		victim = startEngineProcess(t, "0", "--itl", "50ms")
		urls = append(urls, victim.url)
	}
	r := startRouter(t, fleetOf("router: {policy: {name: leastload}}\n", urls...))
	const clients = 200
	answers := make([]answer, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			answers[i] = post(r.url+"/v1/chat/completions", fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%d"}],"max_tokens":100,"min_tokens":100,"ignore_eos":true}`, i))
		})
	}
	r.eventually("most in flight", func() bool { return r.metric("mobula_router_inflight_requests") > clients/2 })
	require.Positive(t, r.metric("mobula_router_inflight_requests", "endpoint", victim.url))
	require.NoError(t, victim.cmd.Process.Kill())
	wg.Wait()
	for _, a := range answers {
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.EqualValues(t, 100, jsonOf(t, a.body)["usage"].(map[string]any)["completion_tokens"])
	}
	r.idle()

	// recovered: it works again without anybody's help
	_ = victim.cmd.Wait()
	startEngineProcess(t, victim.url[strings.LastIndex(victim.url, ":")+1:])
	r.eventually("used again", func() bool { return r.chat("again").endpoint() == victim.url })
}

func TestRow28HungEngineIsLeftAndTakenBack(t *testing.T) {
	good, hung := startEngine(t, sim.Options{Model: "m"}), startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("router:\n  policy: {name: roundrobin}\n  timeouts: {firstByte: 1s, plain: 1s}\n", good.url, hung.url))
	require.NoError(t, hung.SetFault(sim.Fault{Kind: sim.FaultHangInference}))
	for i := range 40 {
		a := r.chat(strconv.Itoa(i), map[bool]string{true: `,"stream":true`}[i%2 == 0])
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, good.url, a.endpoint())
	}
	timeouts := r.metric("mobula_router_attempts_total", "endpoint", hung.url, "cause", "first_byte_timeout")
	require.Positive(t, timeouts)
	require.LessOrEqual(t, timeouts, 8.0, "an engine that hangs is left, though its /health says 200")
	hung.ClearFault()
	r.eventually("taken back", func() bool { return r.chat("back").endpoint() == hung.url })
	r.idle()
}

// Plain requests have a long timeout, for their first byte comes with their last: what
// finds the engine is that it answers nobody, not even a probe.
func TestHungEngineGivesItsPlainRequestsUp(t *testing.T) {
	good, hung := startEngine(t, sim.Options{Model: "m"}), startEngine(t, sim.Options{Model: "m"})
	r := startRouter(t, fleetOf("router:\n  policy: {name: roundrobin}\n  timeouts: {firstByte: 1s, plain: 10m}\n", good.url, hung.url))
	require.NoError(t, hung.SetFault(sim.Fault{Kind: sim.FaultHangInference}))
	for i := range 10 {
		a := r.chat(strconv.Itoa(i))
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status, a.body)
		require.Equal(t, good.url, a.endpoint())
	}
	require.Positive(t, r.metric("mobula_router_ejections_total", "endpoint", hung.url))
	hung.ClearFault()
	r.eventually("taken back", func() bool { return r.chat("back").endpoint() == hung.url })
	r.idle()
}

func TestFailuresBeforeTheFirstByteReachNoClient(t *testing.T) {
	for name, f := range map[string]sim.Fault{
		"refuse":               {Kind: sim.FaultRefuse},
		"reset before headers": {Kind: sim.FaultResetBeforeHeaders},
		"500":                  {Kind: sim.FaultStatus, Status: 500},
		"503":                  {Kind: sim.FaultStatus, Status: 503},
		"429":                  {Kind: sim.FaultStatus, Status: 429, RetryAfter: "60"},
		"garbage":              {Kind: sim.FaultGarbage},
		"dead engine core":     {Kind: sim.FaultEngineDead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good, bad := startEngine(t, sim.Options{Model: "m"}), startEngine(t, sim.Options{Model: "m"})
			r := startRouter(t, fleetOf("router: {policy: {name: roundrobin}}\n", good.url, bad.url))
			require.NoError(t, bad.SetFault(f))
			for i := range 30 {
				a := r.chat(strconv.Itoa(i), map[bool]string{true: `,"stream":true`}[i%2 == 0])
				require.NoError(t, a.err)
				require.Equal(t, http.StatusOK, a.status, a.body)
				require.Equal(t, good.url, a.endpoint())
			}
			bad.ClearFault()
			r.eventually("taken back", func() bool { return r.chat("back").endpoint() == bad.url })
			r.idle()
		})
	}
}

func TestBrokenStreamsAreToldFromWholeOnes(t *testing.T) {
	for name, f := range map[string]sim.Fault{
		"reset": {Kind: sim.FaultResetMidstream, AfterTokens: 3},
		"eof":   {Kind: sim.FaultEOFMidstream, AfterTokens: 3},
		"stall": {Kind: sim.FaultStallMidstream, AfterTokens: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, sim.Options{Model: "m"})
			r := startRouter(t, fleetOf("router: {timeouts: {idle: 1s, plain: 2s}}\n", e.url))
			require.NoError(t, e.SetFault(f))
			a := r.chat("x", `,"stream":true`)
			require.NotContains(t, a.body, "[DONE]")
			require.Contains(t, a.body, `data: {"error":`, "the client is told")
			plain := r.chat("x")
			require.False(t, plain.err == nil && plain.status == http.StatusOK, "half an answer must not look like one: %s", plain.body)
			r.idle()
		})
	}
}

func TestClientThatLeavesStopsTheEngine(t *testing.T) {
	e := startEngine(t, sim.Options{Model: "m", ITL: 20 * time.Millisecond})
	r := startRouter(t, fleetOf("", e.url))
	for _, stream := range []bool{true, false} {
		before := e.Stats().Aborted
		ctx, leave := context.WithCancel(context.Background())
		body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":3000,"min_tokens":3000,"ignore_eos":true,"stream":%t}`, stream)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := client.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		r.eventually("running", func() bool { return e.Stats().Running == 1 })
		leave()
		<-done
		r.eventually("stopped in the engine", func() bool { return e.Stats().Running == 0 && e.Stats().Aborted == before+1 })
	}
	r.idle()
	require.EqualValues(t, 2, r.metric("mobula_router_requests_total", "code", "499"))
}
