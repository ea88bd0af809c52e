//go:build real

package real

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

// plain asks for a plain answer and returns an error unless all of it came.
func (s *stack) plain(t *testing.T, prompt string, tokens int64) (*answer, error) {
	t.Helper()
	body := fmt.Sprintf(`{"model":"tiny","messages":[{"role":"user","content":%q}],"max_tokens":%d,"ignore_eos":true}`, prompt, tokens)
	a, err := s.ask(t.Context(), s.url, call{path: chat, body: body})
	switch {
	case err != nil:
		return nil, err
	case a.status != http.StatusOK:
		return nil, fmt.Errorf("status %d: %s", a.status, a.body)
	case gjson.GetBytes(a.body, "choices.0.finish_reason").String() != "length",
		gjson.GetBytes(a.body, "usage.completion_tokens").Int() != tokens:
		return nil, fmt.Errorf("not a whole answer: %s", a.body)
	}
	return a, nil
}

// testEngineKilled kills engine A and all its workers while both engines are at work. No
// client may see an error; a restarted A is used again.
func (s *stack) testEngineKilled(t *testing.T) {
	const workers, perWorker, tokens = 8, 5, 200
	a := s.engines[0]
	var byA, answers atomic.Int64
	var killed atomic.Bool
	errs := make(chan error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			// Requests go on until perWorker of them began after the kill.
			for i, after := 0, 0; after < perWorker; i++ {
				if killed.Load() {
					after++
				}
				got, err := s.plain(t, fmt.Sprintf("worker %d request %d", w, i), tokens)
				if err != nil {
					errs <- fmt.Errorf("worker %d, request %d (%d after the kill): %w", w, i, after, err)
					return
				}
				answers.Add(1)
				if s.servedBy(got) == a {
					byA.Add(1)
				}
			}
		})
	}
	defer all.Wait()
	defer killed.Store(true) // whatever fails below, the workers come to an end
	eventually(t, 2*time.Minute, "engine A has answered, and works on more", func() bool {
		return byA.Load() >= 2 && s.running(t, a) >= 2
	})
	before := answers.Load()
	a.process.killGroup()
	killed.Store(true)
	all.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	require.False(t, t.Failed(), "clients saw the death of an engine")
	require.GreaterOrEqual(t, answers.Load()-before, int64(workers*perWorker))
	retries, _ := sum(s.scrape(t, s.url), "mobula_router_retries_total")
	require.Positive(t, retries, "some requests were in flight at the engine that died")
	t.Logf("%d answers, %d of them after the kill, %.0f retries, no errors", answers.Load(), answers.Load()-before, retries)

	eventually(t, time.Minute, "the killed engine is gone", a.process.ended)
	begun := time.Now()
	s.startEngine(t, a)
	s.ready(t, a)
	t.Logf("engine A was up again after %s", time.Since(begun).Round(time.Second))
	s.untilServes(t, a)
}

// testEngineTerminated stops an engine in the middle of a stream, as an orchestrator
// does. vLLM then ends the stream with an "abort", or with an error and [DONE], or sends nothing more and keeps
// the connection. The stream must end, must not look whole, and requests after it go elsewhere.
func (s *stack) testEngineTerminated(t *testing.T) {
	const tokens = 1900
	c := call{path: chat, body: fmt.Sprintf(`{"model":"tiny",`+hello+`,"max_tokens":%d,"ignore_eos":true,"stream":true}`, tokens)}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	res, err := s.send(ctx, s.url, c)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	victim := s.servedBy(&answer{header: res.Header})
	require.NotNil(t, victim)

	var events []string
	terminated := false
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		events = append(events, data)
		if len(events) == 10 {
			victim.process.signal(t, syscall.SIGTERM)
			terminated = true
		}
	}
	require.NoError(t, ctx.Err(), "the stream must end; so far: %s", events[max(0, len(events)-3):])
	require.True(t, terminated, "the stream ended by itself: %s", events)
	all := strings.Join(events, "\n")
	require.NotContains(t, all, `"finish_reason":"length"`, "the stream looks whole")
	aborted := strings.Contains(all, `"finish_reason":"abort"`)
	failed := slices.ContainsFunc(events, func(e string) bool { return gjson.Get(e, "error.message").Exists() })
	require.True(t, aborted || failed, "neither an abort nor an error in the last events: %s", events[max(0, len(events)-3):])
	t.Logf("engine %s: stream of %d events, abort %t, error %t", victim.name, len(events), aborted, failed)

	for i := range 10 {
		got, err := s.plain(t, fmt.Sprintf("afterwards %d", i), 8)
		require.NoError(t, err)
		require.NotEqual(t, victim, s.servedBy(got))
	}
	eventually(t, 2*time.Minute, "the terminated engine is gone", victim.process.ended)
}
