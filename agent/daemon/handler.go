//go:build unix

package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/mobula-serve/mobula/agent"
)

// Bounds on requests.
const (
	maxWishBytes  = 16 << 20
	maxFetchBytes = 64 << 10
	maxTailLines  = 100_000
	defaultTail   = 100
)

// Handler serves the API of package agent. Who may ask is for the caller's TLS to settle.
func (d *Daemon) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/tasks", d.putTasks)
	mux.HandleFunc("GET /v1/state", d.getState)
	mux.HandleFunc("GET /v1/tasks/{id}/logs", d.getLogs)
	mux.HandleFunc("POST /v1/fetch", d.postFetch)
	return mux
}

func (d *Daemon) putTasks(w http.ResponseWriter, r *http.Request) {
	var wish agent.Wish
	if err := decode(w, r, maxWishBytes, &wish); err != nil {
		answerError(w, err)
		return
	}
	s, err := d.Tell(r.Context(), wish)
	answer(w, s, err)
}

func (d *Daemon) getState(w http.ResponseWriter, r *http.Request) {
	after, wait := int64(0), time.Duration(0)
	var err error
	if s := r.FormValue("after"); s != "" {
		if after, err = strconv.ParseInt(s, 10, 64); err != nil {
			answerError(w, fmt.Errorf("%w: after=%q: want a number", agent.ErrInvalid, s))
			return
		}
	}
	if s := r.FormValue("wait"); s != "" {
		if wait, err = time.ParseDuration(s); err != nil {
			answerError(w, fmt.Errorf("%w: wait=%q: want a duration such as 20s", agent.ErrInvalid, s))
			return
		}
	}
	s, err := d.State(r.Context(), after, wait)
	answer(w, s, err)
}

func (d *Daemon) getLogs(w http.ResponseWriter, r *http.Request) {
	tail, follow := defaultTail, false
	var err error
	if s := r.FormValue("tail"); s != "" {
		if tail, err = strconv.Atoi(s); err != nil || tail < 0 || tail > maxTailLines {
			answerError(w, fmt.Errorf("%w: tail=%q: want 0 to %d", agent.ErrInvalid, s, maxTailLines))
			return
		}
	}
	if s := r.FormValue("follow"); s != "" {
		if follow, err = strconv.ParseBool(s); err != nil {
			answerError(w, fmt.Errorf("%w: follow=%q: want true or false", agent.ErrInvalid, s))
			return
		}
	}
	log, err := d.Logs(r.Context(), r.PathValue("id"), tail, follow)
	if err != nil {
		answerError(w, err)
		return
	}
	defer func() { _ = log.Close() }()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	copyFlushing(w, log)
}

// copyFlushing copies what comes as it comes. Its first flush sends the header, so that a follower of a silent
// engine knows that it is heard.
func copyFlushing(w http.ResponseWriter, log io.Reader) {
	flusher := http.NewResponseController(w)
	buf := make([]byte, 32<<10)
	for {
		if flusher.Flush() != nil {
			return
		}
		n, err := log.Read(buf)
		if _, failed := w.Write(buf[:n]); failed != nil || err != nil {
			return
		}
	}
}

func (d *Daemon) postFetch(w http.ResponseWriter, r *http.Request) {
	var request agent.FetchRequest
	if err := decode(w, r, maxFetchBytes, &request); err != nil {
		answerError(w, err)
		return
	}
	path, err := d.Fetch(r.Context(), request.Source)
	answer(w, agent.FetchAnswer{Path: path}, err)
}

func decode(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return fmt.Errorf("%w: %w", agent.ErrInvalid, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", agent.ErrInvalid, err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		answerError(w, err)
		return
	}
	write(w, http.StatusOK, v)
}

func answerError(w http.ResponseWriter, err error) {
	if err == nil {
		err = errors.New("unknown error")
	}
	write(w, agent.StatusOf(err), agent.Failure{Error: err.Error()})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}
