package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// pipeLog gives a log that the test writes; it ends with ctx.
func pipeLog(f *fake) *io.PipeWriter {
	r, w := io.Pipe()
	f.log = func(ctx context.Context) io.ReadCloser {
		context.AfterFunc(ctx, func() { _ = w.CloseWithError(ctx.Err()) })
		return r
	}
	return w
}

func TestFollowedLogsComeLineByLine(t *testing.T) {
	h := start(t)
	w := pipeLog(h.fake)
	log, err := h.client.Logs(t.Context(), "llama-1", 10, true)
	require.NoError(t, err, "before anything was printed")
	lines := bufio.NewScanner(log)
	for _, line := range []string{"first", "second"} {
		_, err = io.WriteString(w, line+"\n")
		require.NoError(t, err)
		require.True(t, lines.Scan())
		require.Equal(t, line, lines.Text())
	}
	require.NoError(t, w.Close())
	require.False(t, lines.Scan())
	require.NoError(t, lines.Err())
	require.NoError(t, log.Close())
	require.Equal(t, []string{"logs llama-1 10 true"}, h.fake.takeCalls())
}

func TestClosingAFollowedLogEndsIt(t *testing.T) {
	h := start(t)
	pipeLog(h.fake)
	log, err := h.client.Logs(t.Context(), "llama-1", 10, true)
	require.NoError(t, err)
	eventually(t, func() bool { return len(h.waiters) == 1 })
	require.NoError(t, log.Close())
	eventually(t, func() bool { return len(h.waiters) == 0 })
}

func TestStopCutsFollowedLogsOffAlsoWhenNobodyReads(t *testing.T) {
	h := start(t)
	w := pipeLog(h.fake)
	log, err := h.client.Logs(t.Context(), "llama-1", 10, true)
	require.NoError(t, err)
	defer log.Close()
	var wg sync.WaitGroup
	wg.Go(func() { // more than the sockets hold: the server's write blocks
		for {
			if _, err := io.WriteString(w, strings.Repeat("x", 64<<10)); err != nil {
				return
			}
		}
	})
	h.stop()
	wg.Wait()
	eventually(t, func() bool { return len(h.waiters) == 0 })
	_, err = io.Copy(io.Discard, log)
	require.Error(t, err, "a log that was cut off must not look whole")
}

func TestLogThatFailsAtOnceIsAnError(t *testing.T) {
	h := start(t)
	w := pipeLog(h.fake)
	require.NoError(t, w.CloseWithError(errors.New("the agent is away")))
	_, err := h.client.Logs(t.Context(), "llama-1", 10, false)
	require.ErrorContains(t, err, "the agent is away")
}

func TestEmptyLogIsEmpty(t *testing.T) {
	h := start(t)
	require.NoError(t, pipeLog(h.fake).Close())
	log, err := h.client.Logs(t.Context(), "llama-1", 0, false)
	require.NoError(t, err)
	defer log.Close()
	b, err := io.ReadAll(log)
	require.NoError(t, err)
	require.Empty(t, b)
}
