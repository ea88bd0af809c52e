package ctl

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

func TestWatchAddsALineForEachChange(t *testing.T) {
	r := newRun()
	stop, done := r.start(t, "get", "replicas", "-w")
	r.waitFor(t, "llama-3fa9c1-xk2p4     llama     Starting")
	r.api.show(func(v *control.View) {
		v.Replicas[2].State, v.Replicas[2].Reason, v.Replicas[2].Since = mobula.StateReady, "", noon()
	})
	r.waitFor(t, "llama-3fa9c1-xk2p4     llama     Ready      gpu-1,gpu-2   0s\n")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, 7, strings.Count(r.out.String(), "\n"), r.out.String())
}

func TestWatchTellsOfAnotherColumn(t *testing.T) {
	r := newRun()
	stop, done := r.start(t, "get", "replicas", "-w")
	r.waitFor(t, "llama-3fa9c1-xk2p4     llama     Starting")
	r.api.show(func(v *control.View) { v.Replicas[2].Detail = "actor 41d2a7c0" })
	r.waitFor(t, "actor 41d2a7c0")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Regexp(t, `(?s)^NAME .*HOST +AGE +REASON\n.*\nNAME .*HOST +AGE +DETAIL +REASON\n.*actor 41d2a7c0`, r.out.String())
}

func TestWatchOfAllPrintsAllAgain(t *testing.T) {
	r := newRun()
	stop, done := r.start(t, "get", "-w")
	r.waitFor(t, "llama-3fa9c1-zzzzz")
	r.api.show(settle("llama", control.RolloutComplete, ""))
	r.waitFor(t, "llama               3/3     1-4        Complete")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestWatchOnATerminalDrawsInPlace(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	r := newRun()
	r.terminal = true
	stop, done := r.start(t, "get", "hosts", "-w")
	r.waitFor(t, "gpu-3")
	r.api.show(func(v *control.View) { v.Hosts = v.Hosts[:1] })
	eventually(t, "one host", func() bool {
		_, last, _ := strings.Cut(r.out.String(), "\x1b[4A\r\x1b[J")
		return strings.Contains(last, "gpu-1") && !strings.Contains(last[strings.LastIndex(last, "NAME"):], "gpu-3")
	})
	r.api.fail(errors.New("connection refused"))
	r.waitFor(t, "the control plane is away for 0s: connection refused")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestWatchEndsWhenItIsRefused(t *testing.T) {
	r := newRun()
	_, done := r.start(t, "get", "-w")
	r.waitFor(t, "llama")
	r.api.fail(&client.Error{Status: 401, Code: "unauthorized", Message: "the token has changed"})
	require.EqualError(t, <-done, "the token has changed")
}

func TestWatchNeedsAFirstView(t *testing.T) {
	r := newRun()
	r.api.err = errors.New("no control plane at http://127.0.0.1:8100")
	for _, args := range [][]string{{"get", "-w"}, {"events", "-w"}, {"top"}, {"get"}} {
		require.EqualError(t, r.do(t.Context(), args...), "no control plane at http://127.0.0.1:8100")
	}
}

func TestEventsAsTheyHappen(t *testing.T) {
	r := newRun()
	stop, done := r.start(t, "events", "-w")
	r.waitFor(t, "ReplicaReady")
	r.api.mu.Lock()
	r.api.events = append(r.api.events, control.Event{At: noon(), Object: "host/gpu-3", Reason: "HostBack", Message: "it answers", Seq: 10})
	r.api.mu.Unlock()
	r.api.show(func(*control.View) {})
	r.waitFor(t, "HostBack")
	r.api.fail(errors.New("connection reset"))
	eventually(t, "the warning", func() bool {
		return strings.Contains(r.err.String(), "the control plane is away: connection reset")
	})
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, 1, strings.Count(r.out.String(), "MESSAGE"))
	require.Equal(t, 1, strings.Count(r.out.String(), "HostBack"))
}

func TestLogs(t *testing.T) {
	const colourful = "\x1b[32mINFO\x1b[0m ready\nLoading 1%\rLoading 100%\nno line end"
	t.Run("of a replica, as they are", func(t *testing.T) {
		r := newRun()
		r.api.logs["mixtral-001122-ccccc"] = colourful
		require.Equal(t, colourful+"\n", r.must(t, "logs", "mixtral-001122-ccccc", "--tail", "7"))
		require.Equal(t, []string{"logs mixtral-001122-ccccc tail=7 follow=false"}, r.api.did())
	})
	t.Run("on a terminal", func(t *testing.T) {
		r := newRun()
		r.terminal = true
		r.api.logs["mixtral-001122-ccccc"] = colourful
		require.Equal(t, "INFO ready\nLoading 1%\nLoading 100%\nno line end\n", r.must(t, "logs", "mixtral"))
	})
	t.Run("of a model", func(t *testing.T) {
		r := newRun()
		for _, p := range r.api.view.Replicas {
			r.api.logs[p.ID] = "one\ntwo\n"
		}
		out := r.must(t, "logs", "llama")
		require.Equal(t, 8, strings.Count(out, "\n"))
		require.True(t, strings.HasPrefix(out, "llama-3fa9c1-aaaaa | one\nllama-3fa9c1-aaaaa | two\nllama-1b2c3d-bbbbb | one\n"), out)
	})
	t.Run("of a model, as they are printed", func(t *testing.T) {
		r := newRun()
		for _, p := range r.api.view.Replicas {
			r.api.logs[p.ID] = strings.Repeat("a line\n", 100)
		}
		stop, done := r.start(t, "logs", "llama", "-f")
		eventually(t, "all lines", func() bool { return strings.Count(r.out.String(), "\n") == 400 })
		stop()
		require.ErrorIs(t, <-done, context.Canceled)
		for line := range strings.Lines(r.out.String()) {
			require.Regexp(t, `^llama-[a-z0-9-]+ \| a line\n$`, line)
		}
	})
	t.Run("a very long line", func(t *testing.T) {
		r := newRun()
		r.api.logs["mixtral-001122-ccccc"] = strings.Repeat("x", 3*maxLogLine) + "\n"
		require.Equal(t, 3*maxLogLine, strings.Count(r.must(t, "logs", "mixtral"), "x"))
	})
	t.Run("of a model without replicas", func(t *testing.T) {
		r := newRun()
		require.Empty(t, r.must(t, "logs", "Qwen/Qwen2.5-0.5B"))
		require.Equal(t, "no replicas of Qwen/Qwen2.5-0.5B: mobula describe Qwen/Qwen2.5-0.5B shows why\n", r.err.String())
	})
	t.Run("of nobody", func(t *testing.T) {
		require.EqualError(t, newRun().do(t.Context(), "logs", "nobody"), `no replica or model is named "nobody"`)
	})
	t.Run("a negative tail", func(t *testing.T) {
		code, _ := ExitCode(newRun().do(t.Context(), "logs", "llama", "--tail", "-1"))
		require.Equal(t, 2, code)
	})
}

func TestDeleteAsksOnATerminal(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	for answer, want := range map[string][]string{
		"y\n": {`delete "llama"`}, "YES\n": {`delete "llama"`}, "n\n": {}, "\n": {}, "": {},
	} {
		r := newRun()
		r.terminal, r.stdin = true, strings.NewReader(answer)
		err := r.do(t.Context(), "delete", "gpt-4o-mini")
		require.Equal(t, len(want) == 0, err != nil, "%q: %v", answer, err)
		require.Equal(t, want, r.api.did())
		require.Contains(t, r.out.String(), "Delete model llama with 4 replicas? [y/N] ")
	}
}

func TestCtrlCAtTheQuestionDeletesNothing(t *testing.T) {
	r := newRun()
	in, keyboard := io.Pipe()
	r.terminal, r.stdin = true, in
	stop, done := r.start(t, "delete", "llama")
	r.waitFor(t, "[y/N]")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, keyboard.Close())
	require.Empty(t, r.api.did())
}

func TestCompletion(t *testing.T) {
	models := "llama\tmodel, 2/3 ready\nQwen/Qwen2.5-0.5B\tmodel, 0/0 ready\nmixtral\tmodel, 0/1 ready\n"
	for args, want := range map[string]string{
		"scale ":           models,
		"scale llama ":     "auto\tas the fleet file says\n",
		"restart ":         models,
		"cordon ":          "gpu-1\thost, Ready, 8 GPUs\ngpu-2\thost, Cordoned, 4 GPUs\ngpu-3\thost, Silent, 0 GPUs\n",
		"describe host g":  "gpu-1\thost, Ready, 8 GPUs\ngpu-2\thost, Cordoned, 4 GPUs\ngpu-3\thost, Silent, 0 GPUs\n",
		"get ":             "models\nreplicas\nhosts\nloras\nevents\nfleet\n",
		"get models ":      models,
		"get events ":      "",
		"cordon gpu-1 ":    "",
		"get -o ":          "wide\njson\nyaml\nname\n",
		"drain mixtral-00": "mixtral-001122-ccccc\treplica of mixtral, Failed on gpu-2\n",
		"drain host/gpu-3": "host/gpu-3\thost, Silent, 0 GPUs\n",
		"token ":           "",
	} {
		t.Run(args, func(t *testing.T) {
			r := newRun()
			fields := strings.Fields(args)
			if strings.HasSuffix(args, " ") {
				fields = append(fields, "")
			}
			out := r.must(t, append([]string{"__complete"}, fields...)...)
			got := out[:strings.LastIndex(out, ":")]
			for line := range strings.Lines(want) {
				if strings.HasPrefix(line, fields[len(fields)-1]) {
					require.Contains(t, got, line)
				}
			}
			if want == "" {
				require.Empty(t, got)
			}
		})
	}
}

func TestCompletionIsSilentOnFailure(t *testing.T) {
	r := newRun()
	r.api.err = errors.New("connection refused")
	require.Equal(t, ":4\n", r.must(t, "__complete", "scale", ""))
	require.NotContains(t, r.err.String(), "refused")
}

// slowAPI never answers a question for a view.
type slowAPI struct{ *fakeAPI }

func (slowAPI) View(ctx context.Context, _ int64) (*control.View, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestCompletionDoesNotWaitForLong(t *testing.T) {
	c := newCtl(Options{Client: func() (client.API, error) { return slowAPI{newFake()}, nil }, Stdout: io.Discard, Stderr: io.Discard})
	require.Empty(t, c.completions(t.Context(), nil, kindModel))
}

func TestFollowOutlivesARestartThatCountsAnew(t *testing.T) {
	f := newFake()
	f.view.Version = 1000
	var seen []int64
	err := follow(t.Context(), f, func(s sight) (bool, error) {
		if s.away == nil && (len(seen) == 0 || seen[len(seen)-1] != s.view.Version) {
			seen = append(seen, s.view.Version)
		}
		switch {
		case len(seen) == 1 && s.away == nil:
			f.fail(errors.New("connection refused"))
		case s.away != nil:
			f.mu.Lock()
			f.view.Version = 3
			f.mu.Unlock()
			f.fail(nil)
		}
		return len(seen) == 2, nil
	})
	require.NoError(t, err)
	require.Equal(t, []int64{1000, 3}, seen)
}

func TestDefaults(t *testing.T) {
	c := newCtl(Options{})
	require.Equal(t, os.Stdout, c.Stdout)
	require.Equal(t, "mobula agent --join https://CONTROL-PLANE:8100 --token t", c.JoinCommand("t"))
	width, height := newCtl(Options{Stdout: io.Discard}).Size()
	require.Equal(t, []int{80, 24}, []int{width, height})
	require.False(t, c.IsTerminal(strings.NewReader("")))
	require.WithinDuration(t, time.Now(), c.Now(), time.Hour)
}

func TestDeleteWaitsUntilNothingIsLeft(t *testing.T) {
	r := newRun()
	_, done := r.start(t, "delete", "llama", "--yes", "--wait")
	r.waitFor(t, "llama")
	r.api.show(func(v *control.View) {
		v.Replicas = slices.DeleteFunc(slices.Clone(v.Replicas), func(s control.ReplicaStatus) bool { return s.Model == "llama" })
	})
	require.NoError(t, <-done)
	require.Equal(t, []string{`delete "llama"`}, r.api.did())
	require.Contains(t, r.out.String(), "done in")
}

func TestScaleWaitsUntilNothingIsLeft(t *testing.T) {
	r := newRun()
	_, done := r.start(t, "scale", "--all", "0", "--wait")
	r.waitFor(t, "waits for 4 replicas to end")
	r.api.show(func(v *control.View) {
		v.Replicas = nil
		v.Models = slices.Clone(v.Models)
		for i := range v.Models {
			v.Models[i].Ready = 0
		}
	})
	require.NoError(t, <-done)
	require.Contains(t, r.out.String(), "done in")
}
