package ray

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula/adapters"
)

const (
	dashboardMaxLine = 64 << 10
	// dashboardRaysLines is how many lines of Ray's own are expected among the last ones: one at the start of an actor and one when it is named.
	dashboardRaysLines = 2
	dashboardInterval  = "0.5" // seconds between Ray's looks at a file that is followed
)

// Logs reads what an actor has printed: the last tail lines, at least one and at most two more, and with follow what comes until ctx ends.
// Lines that Ray writes for itself are left out.
func (d *Dashboard) Logs(ctx context.Context, actorID string, tail int, follow bool) (io.ReadCloser, error) {
	what := "read the output of actor " + actorID
	media := "file"
	// Ray takes 0 lines for all of them, and counts its own.
	query := url.Values{"actor_id": {actorID}, "lines": {strconv.Itoa(max(tail, 1) + dashboardRaysLines)}, "suffix": {"out"}}
	if follow {
		media = "stream"
		query.Set("interval", dashboardInterval)
	}
	looking, found := context.WithTimeout(ctx, d.timeout)
	base, token, err := d.place.get(looking)
	found()
	if err != nil {
		return nil, d.failed(what, err)
	}
	streaming, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(streaming, http.MethodGet, base+"/api/v0/logs/"+media+"?"+query.Encode(), nil)
	if err != nil {
		cancel()
		return nil, d.failed(what, err)
	}
	authorize(req, token)
	late := time.AfterFunc(d.timeout, cancel) // the head of an answer has to come in time, its body may take as long as it likes
	resp, err := d.http.Do(req)
	inTime := late.Stop()
	d.place.answered(resp)
	if err != nil {
		cancel()
		if !inTime && ctx.Err() == nil {
			err = context.DeadlineExceeded
		}
		return nil, d.unreachable(ctx, what, err)
	}
	if resp.StatusCode != http.StatusOK {
		said, _ := readTail(resp.Body, dashboardMaxRefusal)
		_ = resp.Body.Close()
		cancel()
		return nil, d.noLog(what, resp, said)
	}
	return newDashboardLog(ctx, cancel, resp.Body), nil
}

// noLog tells a log that is not there from a cluster that is away: Ray answers 500 to both.
func (d *Dashboard) noLog(what string, resp *http.Response, said []byte) error {
	for _, mark := range []string{"not found", "not scheduled", "Could not find"} {
		if resp.StatusCode == http.StatusInternalServerError && bytes.Contains(said, []byte(mark)) {
			return d.failed(what, errors.New(shorten(string(bytes.TrimSpace(said)), dashboardMaxText)))
		}
	}
	err := d.refused(what, resp, said)
	if errors.Is(err, errNoRoute) {
		return fmt.Errorf("%w: %w", adapters.ErrUnavailable, err)
	}
	return err
}

// dashboardLog gives a log's lines without those of Ray's.
type dashboardLog struct {
	ctx    context.Context // the stream's life
	cancel context.CancelFunc
	body   io.ReadCloser
	lines  *bufio.Reader
	rest   []byte // of a line, until the next read of lines
	within bool   // a line that is longer than the buffer
	drops  bool   // such a line that is Ray's
	err    error
}

func newDashboardLog(ctx context.Context, cancel context.CancelFunc, body io.ReadCloser) *dashboardLog {
	return &dashboardLog{ctx: ctx, cancel: cancel, body: body, lines: bufio.NewReaderSize(body, dashboardMaxLine)}
}

// Read gives whole lines as they come. It ends with ctx as at the log's end.
func (l *dashboardLog) Read(p []byte) (int, error) {
	for len(l.rest) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		l.next()
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// next reads one line, or a buffer full of it.
func (l *dashboardLog) next() {
	line, err := l.lines.ReadSlice('\n')
	if !l.within {
		l.drops = isRaysLine(line)
	}
	l.within = errors.Is(err, bufio.ErrBufferFull)
	if !l.drops {
		l.rest = line
	}
	switch {
	case err == nil || l.within:
	case l.ctx.Err() != nil:
		l.err = io.EOF
	default:
		l.err = err
	}
}

func isRaysLine(line []byte) bool {
	for _, mark := range []string{":job_id:", ":actor_name:", ":task_name:"} {
		if bytes.HasPrefix(line, []byte(mark)) {
			return true
		}
	}
	return false
}

// Close ends the stream.
func (l *dashboardLog) Close() error {
	l.cancel()
	return l.body.Close()
}
