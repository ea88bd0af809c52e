package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

// TestALogIsGivenOnceHoweverItIsCut reads a log whose connection breaks anywhere, in a time or a line, again and again.
func TestALogIsGivenOnceHoweverItIsCut(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		type line struct {
			at   time.Time
			text string
		}
		var all []line
		var want strings.Builder
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		for range rapid.IntRange(0, 12).Draw(r, "lines") {
			at = at.Add(rapid.SampledFrom([]time.Duration{0, 1, time.Millisecond, time.Second, time.Minute}).Draw(r, "later"))
			text := rapid.StringMatching(`[a-c ]{0,8}`).Draw(r, "text") + "\n"
			all = append(all, line{at, text})
			want.WriteString(text)
		}
		var m mark
		var got strings.Builder
		read := func(bytesLeft int) {
			m.again()
			var sent bytes.Buffer
			for _, l := range all {
				if !l.at.Before(m.at.Truncate(time.Second)) {
					sent.WriteString(l.at.Format("2006-01-02T15:04:05.000000000Z07:00") + " " + l.text)
				}
			}
			in := bufio.NewReaderSize(io.LimitReader(&sent, int64(bytesLeft)), 40)
			for {
				piece, err := in.ReadSlice('\n')
				got.Write(m.take(piece))
				if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
					return
				}
			}
		}
		for range rapid.IntRange(0, 6).Draw(r, "breaks") {
			read(rapid.IntRange(0, 200).Draw(r, "after"))
			require.True(r, strings.HasPrefix(want.String(), got.String()), "%q is no beginning of %q", got.String(), want.String())
		}
		read(1 << 20)
		require.Equal(r, want.String(), got.String())
	})
}

// tailing is a log that is followed.
type tailing struct {
	l     *lab
	log   io.ReadCloser
	lines chan string // closed at its end
	err   error       // then
}

func (l *lab) tail(ctx context.Context, replica string, lines int) *tailing {
	l.t.Helper()
	log, err := l.Logs(ctx, replica, lines, true)
	require.NoError(l.t, err)
	f := &tailing{l: l, log: log, lines: make(chan string, 1000)}
	go func() {
		defer close(f.lines)
		in := bufio.NewScanner(log)
		for in.Scan() {
			f.lines <- in.Text()
		}
		f.err = in.Err()
	}()
	l.t.Cleanup(func() {
		_ = log.Close()
		for range f.lines {
			continue
		}
	})
	return f
}

// next wants these lines, no more and no less, to come next.
func (f *tailing) next(want ...string) {
	f.l.t.Helper()
	for _, w := range want {
		select {
		case got, ok := <-f.lines:
			require.True(f.l.t, ok, "it ended (%v) before %q", f.err, w)
			require.Equal(f.l.t, w, got)
		case <-time.After(deadline):
			require.FailNow(f.l.t, "a line never came", w)
		}
	}
}

func (f *tailing) ends() {
	f.l.t.Helper()
	select {
	case line, more := <-f.lines:
		require.False(f.l.t, more, "another line: %s", line)
	case <-time.After(deadline):
		require.FailNow(f.l.t, "it never ended")
	}
}

// says has a pod's engine print lines.
func (l *lab) says(pod string, lines ...string) {
	for _, line := range lines {
		l.cube.Log(testSpace, pod, line+"\n")
	}
}

func (l *lab) past(replica string, lines int) string {
	l.t.Helper()
	log, err := l.Logs(l.t.Context(), replica, lines, false)
	require.NoError(l.t, err)
	text, err := io.ReadAll(log)
	require.NoError(l.t, err)
	return string(text)
}

func one(tb testing.TB, o kubetest.Options) (*lab, string) {
	tb.Helper()
	l := newLab(tb, o)
	l.apply(deployment("chat", "r1", 1))
	return l, l.ready(1)[0]
}

func TestALogThatIsFollowedOutlivesConnections(t *testing.T) {
	l, id := one(t, kubetest.Options{})
	l.says(id, "one", "two", "three")
	f := l.tail(t.Context(), id, 2)
	f.next("two", "three")
	l.says(id, "four")
	f.next("four")

	l.cube.DropLogs()
	l.says(id, "five")
	f.next("five")

	l.cube.CutLogs(3, 60, 75, 0, 110) // in a time, in lines, between them
	l.cube.DropLogs()
	var many []string
	for i := range 50 {
		many = append(many, fmt.Sprintf("a line that is long enough to be cut, number %d", i))
	}
	l.says(id, many...)
	f.next(many...)

	l.cube.Down(true)
	l.says(id, "while the API server is away")
	l.cube.Down(false)
	f.next("while the API server is away")
	l.says(id, "and after")
	f.next("and after")
	l.cube.Fail("get", "pods/log", 500, 3)
	l.cube.DropLogs()
	l.says(id, "a kubelet that does not answer")
	f.next("a kubelet that does not answer")
}

func TestALogThatIsFollowedGoesOnWithTheNextRun(t *testing.T) {
	l, id := one(t, kubetest.Options{})
	l.says(id, "one")
	f := l.tail(t.Context(), id, 10)
	f.next("one")
	l.says(id, "boom")
	require.NoError(t, l.cube.Crash(testSpace, id, 1, "boom"))
	f.next("boom")
	require.NoError(t, l.cube.Ready(testSpace, id))
	l.says(id, "two")
	f.next("two")

	l.cube.Down(true) // the end of a run that nobody saw
	l.says(id, "last words")
	l.cube.Log(testSpace, id, "and half a line")
	require.NoError(t, l.cube.Crash(testSpace, id, 1, "boom"))
	require.NoError(t, l.cube.Ready(testSpace, id))
	l.says(id, "three")
	l.cube.Down(false)
	f.next("last words", "and half a line", "three")

	require.NoError(t, l.cube.DeletePod(testSpace, id))
	f.ends()
	require.NoError(t, f.err)
}

func TestALogThatIsFollowedGoesOnInTheNextPodOfAnEngineOfSeveral(t *testing.T) {
	l := newLab(t, kubetest.Options{})
	d := deployment("big", "r1", 1)
	d.Model.Resources.Hosts, d.Model.Engine.Kind = 2, "vllm"
	l.apply(d)
	id := l.ready(1)[0]
	l.quiet()
	l.says(id+"-0", "one")
	f := l.tail(t.Context(), id, 10)
	f.next("one")
	was := l.cube.Pod(testSpace, id+"-0").UID
	require.NoError(t, l.cube.DeletePod(testSpace, id+"-0"))
	l.await("another pod", func() bool {
		pod := l.cube.Pod(testSpace, id+"-0")
		return pod != nil && pod.UID != was
	})
	l.ready(1)
	l.says(id+"-0", "two")
	f.next("two")
	require.NoError(t, l.Remove(t.Context(), d.Key))
	f.ends()
}

func TestALogThatIsFollowedEndsWithItsContext(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(cancel context.CancelFunc, f *tailing)
	}{
		{"cancelled", func(cancel context.CancelFunc, _ *tailing) { cancel() }},
		{"closed", func(_ context.CancelFunc, f *tailing) { _ = f.log.Close() }},
		{"cancelled while nothing can be read", func(cancel context.CancelFunc, f *tailing) {
			f.l.cube.Down(true)
			cancel()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, id := one(t, kubetest.Options{})
			l.says(id, "one")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			f := l.tail(ctx, id, 0) // nothing of what is there
			l.says(id, "two")
			f.next("two")
			test.end(cancel, f)
			f.ends()
		})
	}
}

func TestALogThatMayNoLongerBeReadSaysSo(t *testing.T) {
	l, id := one(t, kubetest.Options{})
	l.says(id, "one")
	f := l.tail(t.Context(), id, 1)
	f.next("one")
	l.cube.Deny("get", "pods/log")
	l.cube.DropLogs()
	f.ends()
	require.ErrorContains(t, f.err, "may not get pods/log in namespace "+testSpace)
	_, err := l.Logs(t.Context(), id, 1, false)
	require.ErrorContains(t, err, "service account default/mobula may not get pods/log")
}

func TestTheEndOfALog(t *testing.T) {
	for _, test := range []struct {
		name string
		does func(l *lab, id string)
		tail int
		want string
	}{
		{"the last lines", func(l *lab, id string) { l.says(id, "one", "two", "three") }, 2, "two\nthree\n"},
		{"no lines", func(l *lab, id string) { l.says(id, "one") }, 0, ""},
		{"of an engine that waits to start again", func(l *lab, id string) {
			l.says(id, "one", "boom")
			_ = l.cube.Crash(testSpace, id, 1, "boom")
		}, 10, "one\nboom\n"},
		{"of an engine that has started again, with its last run", func(l *lab, id string) {
			l.says(id, "one", "boom")
			_ = l.cube.Crash(testSpace, id, 1, "boom")
			_ = l.cube.Ready(testSpace, id)
			l.says(id, "two")
		}, 2, "boom\ntwo\n"},
		{"of an engine that has said enough since it started again", func(l *lab, id string) {
			l.says(id, "boom")
			_ = l.cube.Crash(testSpace, id, 1, "boom")
			_ = l.cube.Ready(testSpace, id)
			l.says(id, "two", "three")
		}, 2, "two\nthree\n"},
		{"of a run that ended in a line", func(l *lab, id string) {
			l.cube.Log(testSpace, id, "bo")
			_ = l.cube.Crash(testSpace, id, 1, "boom")
			_ = l.cube.Ready(testSpace, id)
			l.says(id, "two")
		}, 5, "bo\ntwo\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, id := one(t, kubetest.Options{})
			test.does(l, id)
			l.await("its state is known", func() bool {
				return l.keeper.pods.get(id).GetResourceVersion() == l.cube.Pod(testSpace, id).ResourceVersion
			})
			require.Equal(t, test.want, l.past(id, test.tail))
			f := l.tail(t.Context(), id, test.tail)
			for line := range strings.Lines(test.want) {
				f.next(strings.TrimSuffix(line, "\n"))
			}
		})
	}
}

func TestALogOfAReplicaThatHasNotStarted(t *testing.T) {
	l := newLab(t, kubetest.Options{Manual: true})
	l.apply(deployment("chat", "r1", 1))
	l.await("a pod", func() bool { return len(l.replicas()) == 1 })
	id := l.replicas()[0].ID
	for _, follow := range []bool{false, true} {
		_, err := l.Logs(t.Context(), id, 10, follow)
		require.ErrorContains(t, err, "replica "+id+" has not started")
		require.NotErrorIs(t, err, adapters.ErrUnavailable)
	}
	l.cube.Down(true)
	_, err := l.Logs(t.Context(), id, 10, false)
	require.ErrorIs(t, err, adapters.ErrUnavailable)
}

func TestALogThatIsVeryLong(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789abcde\n"), 3)
	require.Equal(t, "0123456789abcde\n", string(lastLines(text, 1)))
	require.Equal(t, text, lastLines(text, -1))
	require.Equal(t, text, lastLines(text, 99))
	require.Empty(t, lastLines(text, 0))
	l, id := one(t, kubetest.Options{})
	long := strings.Repeat("x", 3*logBuffer) // longer than any buffer on the way
	l.says(id, long, "short")
	require.Equal(t, long+"\nshort\n", l.past(id, 2))
	log, err := l.Logs(t.Context(), id, 2, true)
	require.NoError(t, err)
	defer func() { require.NoError(t, log.Close()) }()
	in := bufio.NewReader(log)
	for _, want := range []string{long, "short"} {
		got, err := in.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want+"\n", got)
	}
	l.cube.CutLogs(logBuffer+100, 2*logBuffer+7)
	l.cube.DropLogs()
	l.says(id, long, "after")
	for _, want := range []string{long, "after"} {
		got, err := in.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want+"\n", got)
	}
}
