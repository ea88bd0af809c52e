package sim

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"
)

// ask generates in-process, without HTTP, and gives the time of the first token and the end.
func ask(ctx context.Context, t *testing.T, e *Engine, prompt []int32, n int) (s *seq, first, end time.Duration, err error) {
	t.Helper()
	begun := time.Now()
	s = e.newSeq(&input{ids: prompt}, &sampling{n: 1, max: n, logprobs: -1, ignoreEOS: true}, 0, nil)
	err = e.generate(ctx, s, func(int) error { return nil }, func(s *seq, _ *step) error {
		if len(s.out) == 1 {
			first = time.Since(begun)
		}
		return nil
	})
	return s, first, time.Since(begun), err
}

func TestTimesOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{PrefillBase: 10 * time.Millisecond, PrefillRate: 1000, ITL: 20 * time.Millisecond})
		require.NoError(t, err)
		_, first, end, err := ask(t.Context(), t, e, run(100, 300), 5)
		require.NoError(t, err)
		require.Equal(t, 110*time.Millisecond, first, "base + 100 tokens")
		require.Equal(t, 190*time.Millisecond, end, "and four more tokens")
		_, first, _, err = ask(t.Context(), t, e, run(100, 300), 1)
		require.NoError(t, err)
		require.Equal(t, 14*time.Millisecond, first, "96 of the tokens are cached")
	})
}

func TestPromptsAreComputedOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{PrefillRate: 1000, ITL: time.Millisecond})
		require.NoError(t, err)
		firsts := make([]time.Duration, 4)
		var wg sync.WaitGroup
		for i := range firsts {
			wg.Go(func() {
				_, first, _, err := ask(t.Context(), t, e, run(100, int32(1000*i+300)), 3)
				require.NoError(t, err)
				firsts[i] = first
			})
			synctest.Wait()
		}
		wg.Wait()
		for i, first := range firsts {
			require.Equal(t, time.Duration(i+1)*100*time.Millisecond, first)
		}
	})
}

func TestTheBatchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{MaxNumSeqs: 2, MaxQueue: 3, ITL: 10 * time.Millisecond})
		require.NoError(t, err)
		var wg sync.WaitGroup
		ends := make([]time.Duration, 5)
		for i := range ends {
			wg.Go(func() {
				_, _, end, err := ask(t.Context(), t, e, run(8, 300), 11)
				require.NoError(t, err)
				ends[i] = end
			})
			synctest.Wait()
		}
		st := e.Stats()
		require.Equal(t, 2, st.Running)
		require.Equal(t, 3, st.Waiting)
		_, _, _, err = ask(t.Context(), t, e, run(8, 300), 1)
		require.ErrorIs(t, err, errQueueFull)
		wg.Wait()
		for i, end := range ends {
			require.Equal(t, time.Duration(i/2+1)*100*time.Millisecond, end)
		}
		require.Equal(t, 0, e.Stats().Running)
	})
}

func TestACancelledRequestGivesEverythingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{MaxNumSeqs: 2, PrefillRate: 100, ITL: time.Hour})
		require.NoError(t, err)
		var wg sync.WaitGroup
		var cancels []context.CancelFunc
		for i := range 4 { // one decodes, one is prefilled, two wait
			ctx, cancel := context.WithCancel(t.Context())
			cancels = append(cancels, cancel)
			wg.Go(func() {
				_, _, _, err := ask(ctx, t, e, run(100, int32(300*i)), 10)
				require.ErrorIs(t, err, context.Canceled)
			})
			synctest.Wait()
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, Stats{Requests: 4, Running: 2, Waiting: 2, Prompt: 100, Generated: 1}, e.Stats())
		for _, cancel := range slices.Backward(cancels) {
			cancel()
			synctest.Wait()
		}
		wg.Wait()
		st := e.Stats()
		require.Zero(t, st.Running+st.Waiting)
		require.Equal(t, int64(4), st.Aborted)
		_, _, usage := e.sched.load()
		require.Zero(t, usage)
		require.False(t, e.sched.busy)
	})
}

// A cache too small for all that run lets them finish all the same, and with the same text.
func TestPreemption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		roomy, err := New(Options{BlockSize: 4, Blocks: 1024, MaxModelLen: 64})
		require.NoError(t, err)
		tight, err := New(Options{BlockSize: 4, Blocks: 16, MaxModelLen: 64, ITL: time.Millisecond})
		require.NoError(t, err)
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				prompt := run(10, int32(300+20*i))
				want, _, _, err := ask(t.Context(), t, roomy, prompt, 50)
				require.NoError(t, err)
				got, _, _, err := ask(t.Context(), t, tight, prompt, 50)
				require.NoError(t, err)
				require.Equal(t, want.out, got.out)
			})
		}
		wg.Wait()
		require.Positive(t, tight.metrics.preemptions.Load())
		_, _, usage := tight.sched.load()
		require.Zero(t, usage)
	})
}

func TestASleepingEngineStartsNothing(t *testing.T) {
	s := serve(t, Options{})
	s.ok("/v1/completions", `{"prompt":"`+strings.Repeat("word ", 50)+`"}`)
	s.ok("/sleep?level=2", "")
	done := make(chan gjson.Result, 1)
	go func() { done <- s.ok("/v1/completions", `{"prompt":"`+strings.Repeat("word ", 50)+`"}`) }()
	s.until("it waits", func(st Stats) bool { return st.Waiting == 1 })
	_, text := s.get("/metrics")
	require.Contains(t, text, `sleep_state="discard_all"} 1.0`)
	s.ok("/wake_up", "")
	require.Zero(t, (<-done).Get("usage.prompt_tokens_details.cached_tokens").Int(), "sleep forgets the cache")
}

func TestALeavingClientEndsItsWork(t *testing.T) {
	s := serve(t, Options{ITL: patience, MaxNumSeqs: 2})
	for _, more := range []string{``, `,"stream":true`, `,"n":2`} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			res, err := s.start(ctx, "/v1/chat/completions", chatBody("hello", more))
			if err == nil {
				defer res.Body.Close()
				<-ctx.Done()
			}
			done <- nil
		}()
		s.until("it runs", func(st Stats) bool { return st.Running > 0 })
		cancel()
		<-done
		s.until("it is gone", func(st Stats) bool { return st.Running+st.Waiting == 0 })
	}
	s.until("all are counted", func(st Stats) bool { return st.Aborted == 4 })
	_, text := s.get("/metrics")
	for _, reason := range []string{"stop", "length", "abort", "error", "repetition"} {
		require.Contains(t, text, `vllm:request_success_total{engine="0",finished_reason="`+reason+`",model_name="mobula-sim"} 0.0`, "vLLM forgets them")
	}
	for _, name := range []string{"e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens"} {
		require.Contains(t, text, "vllm:"+name+`_count{engine="0",model_name="mobula-sim"} 0.0`)
	}
	require.NotContains(t, text, `vllm:prompt_tokens_total{engine="0",model_name="mobula-sim"} 0.0`, "but not their work")
}

func TestManyStreamsAtOnce(t *testing.T) {
	s := serve(t, Options{ITL: time.Millisecond, MaxNumSeqs: 64})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			events, err := s.stream("/v1/chat/completions", chatBody(strconv.Itoa(i), `,"stream":true,"max_tokens":20`))
			require.NoError(t, err)
			require.Len(t, events, 22)
		})
	}
	wg.Wait()
	st := s.Stats()
	require.Equal(t, int64(200), st.Requests)
	require.Equal(t, int64(4000), st.Generated)
	require.Zero(t, st.Aborted+int64(st.Running+st.Waiting))
	_, load := s.get("/load")
	require.JSONEq(t, `{"server_load":0}`, load)
}

func TestEndingRunAbortsStreams(t *testing.T) {
	s := serve(t, Options{ITL: 10 * time.Millisecond})
	res, err := s.start(t.Context(), "/v1/chat/completions", chatBody("hello", `,"stream":true,"ignore_eos":true`))
	require.NoError(t, err)
	defer res.Body.Close()
	s.until("it speaks", func(st Stats) bool { return st.Generated > 2 })
	go s.stop()
	b := readAll(t, res)
	events := strings.Split(strings.TrimSuffix(b, "\n\n"), "\n\n")
	require.Equal(t, "data: [DONE]", events[len(events)-1])
	require.Equal(t, "abort", gjson.Get(events[len(events)-2][len("data: "):], "choices.0.finish_reason").Str)
	require.Eventually(t, func() bool {
		_, err := http.Get(s.url + "/health") //nolint:noctx,bodyclose // it must be refused
		return err != nil
	}, patience, 10*time.Millisecond)
	s.stop()
	require.Equal(t, int64(1), s.metrics.finished[finishAbort].Load(), "a request ended by a shutdown is counted")
}

func TestDrainLetsStreamsFinish(t *testing.T) {
	s := serve(t, Options{ITL: 10 * time.Millisecond, DrainTimeout: patience})
	res, err := s.start(t.Context(), "/v1/chat/completions", chatBody("hello", `,"stream":true,"max_tokens":50`))
	require.NoError(t, err)
	defer res.Body.Close()
	s.until("it speaks", func(st Stats) bool { return st.Generated > 2 })
	go s.stop()
	require.Contains(t, readAll(t, res), `"finish_reason":"length"`)
	s.stop()
}
