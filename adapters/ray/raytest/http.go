package raytest

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// handler answers as the dashboard does. Things get on by one step after each answer.
func (c *Cluster) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/version", c.version)
	mux.HandleFunc("GET /api/gcs_healthz", c.healthz)
	mux.HandleFunc("GET /api/v0/actors", c.needs(c.listActors))
	mux.HandleFunc("GET /api/v0/placement_groups", c.needs(c.listGroups))
	mux.HandleFunc("GET /api/v0/nodes", c.needs(c.listNodes))
	mux.HandleFunc("GET /api/v0/logs/{media}", c.logs)
	mux.HandleFunc("GET /api/packages/gcs/{name}", c.needs(c.getPackage))
	mux.HandleFunc("PUT /api/packages/gcs/{name}", c.needs(c.putPackage))
	mux.HandleFunc("POST /api/jobs/{$}", c.needs(c.submit))
	mux.HandleFunc("GET /api/jobs/{$}", c.needs(c.listJobs))
	mux.HandleFunc("GET /api/jobs/{id}", c.withJob(func(w http.ResponseWriter, j *job) { reply(w, http.StatusOK, j.shape()) }))
	mux.HandleFunc("GET /api/jobs/{id}/logs", c.withJob(func(w http.ResponseWriter, j *job) { reply(w, http.StatusOK, map[string]any{"logs": j.log}) }))
	mux.HandleFunc("POST /api/jobs/{id}/stop", c.withJob(func(w http.ResponseWriter, j *job) { reply(w, http.StatusOK, map[string]any{"stopped": c.stopJob(j)}) }))
	mux.HandleFunc("DELETE /api/jobs/{id}", c.withJob(c.deleteJob))
	mux.HandleFunc("GET /api/serve/applications/{$}", c.needs(func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, c.details()) }))
	mux.HandleFunc("PUT /api/serve/applications/{$}", c.needs(c.putServe))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.requests++
		cut := c.cut
		c.mu.Unlock()
		if cut {
			panic(http.ErrAbortHandler)
		}
		if !c.allowed(w, r) {
			return
		}
		mux.ServeHTTP(w, r)
		unlock := c.lock()
		c.step()
		unlock()
	})
}

func (c *Cluster) allowed(w http.ResponseWriter, r *http.Request) bool {
	if c.opts.Token == "" || r.URL.Path == "/api/gcs_healthz" {
		return true
	}
	switch r.Header.Get("Authorization") {
	case "Bearer " + c.opts.Token:
		return true
	case "":
		text(w, http.StatusUnauthorized, "Unauthorized: Missing authentication token")
	default:
		text(w, http.StatusForbidden, "Forbidden: Invalid authentication token")
	}
	return false
}

// needs locks, and answers itself while GCS is away.
func (c *Cluster) needs(then http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		defer c.lock()()
		switch {
		case !c.down:
			then(w, r)
		case strings.HasPrefix(r.URL.Path, "/api/v0/"):
			reply(w, http.StatusInternalServerError, map[string]any{
				"result": false, "data": map[string]any{"result": nil},
				"msg": "Failed to query data from GCS. It is due to (1) GCS is unexpectedly failed. (2) GCS is overloaded. " +
					"(3) There's an unexpected network issue. Please check the gcs_server.out log to find the root cause.",
			})
		default:
			text(w, http.StatusInternalServerError, "500 Internal Server Error\n\nServer got itself in trouble")
		}
	}
}

func (c *Cluster) withJob(then func(http.ResponseWriter, *job)) http.HandlerFunc {
	return c.needs(func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		i := slices.IndexFunc(c.jobs, func(j *job) bool { return j.ID == id })
		if i < 0 {
			text(w, http.StatusNotFound, "Job "+id+" does not exist")
			return
		}
		then(w, c.jobs[i])
	})
}

// version answers without GCS, as Ray's does.
func (c *Cluster) version(w http.ResponseWriter, _ *http.Request) {
	defer c.lock()()
	reply(w, http.StatusOK, map[string]any{
		"version": "4", "ray_version": c.opts.Version, "ray_commit": "b7f4259e944bf6959f721b106adc366ddfa0c356", "session_name": c.session(),
	})
}

func (c *Cluster) healthz(w http.ResponseWriter, _ *http.Request) {
	defer c.lock()()
	if c.down {
		text(w, http.StatusServiceUnavailable, "503: Health check failed: Timed out while waiting for GCS to become available.")
		return
	}
	text(w, http.StatusOK, "success")
}

func (c *Cluster) getPackage(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if _, ok := c.packages[name]; !ok {
		text(w, http.StatusNotFound, "Package gcs://"+name+" does not exist")
	}
}

func (c *Cluster) putPackage(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	name := r.PathValue("name")
	if err != nil || !strings.HasPrefix(name, "_ray_pkg_") {
		text(w, http.StatusInternalServerError, "Traceback (most recent call last):\nValueError: "+name+" is not a valid package name")
		return
	}
	c.packages[name] = len(body)
}

func (c *Cluster) submit(w http.ResponseWriter, r *http.Request) {
	var s struct {
		Entrypoint string            `json:"entrypoint"`
		ID         string            `json:"submission_id"`
		Metadata   map[string]string `json:"metadata"`
		Env        map[string]any    `json:"runtime_env"`
	}
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil || s.Entrypoint == "" {
		text(w, http.StatusBadRequest, "Traceback (most recent call last):\nTypeError: entrypoint must be a string")
		return
	}
	if slices.ContainsFunc(c.jobs, func(j *job) bool { return j.ID == s.ID }) {
		text(w, http.StatusInternalServerError, "Traceback (most recent call last):\nRuntimeError: Request failed with status code 400: "+
			"Traceback (most recent call last):\nValueError: Job with submission_id "+s.ID+" already exists. Please use a different submission_id.\n.\n")
		return
	}
	c.jobs = append(c.jobs, &job{
		ID: s.ID, entrypoint: s.Entrypoint, metadata: s.Metadata, env: s.Env, status: jobPending, message: waitingMessage, start: now(),
	})
	reply(w, http.StatusOK, map[string]any{"job_id": s.ID, "submission_id": s.ID})
}

func (c *Cluster) listJobs(w http.ResponseWriter, _ *http.Request) {
	list := []any{}
	for _, j := range c.jobs {
		list = append(list, j.shape())
	}
	list = append(list, map[string]any{ // a driver that nobody submitted
		"type": "DRIVER", "job_id": "01000000", "submission_id": nil, "status": jobSucceeded, "entrypoint": "python probe.py",
		"message": nil, "start_time": now(), "end_time": now(), "metadata": map[string]any{}, "runtime_env": map[string]any{},
	})
	reply(w, http.StatusOK, list)
}

func (c *Cluster) deleteJob(w http.ResponseWriter, j *job) {
	if j.foreign {
		c.touched = append(c.touched, "job "+j.ID)
	}
	if !j.terminal() {
		text(w, http.StatusInternalServerError, "Traceback (most recent call last):\nRuntimeError: Attempted to delete job '"+j.ID+
			"', but it is in a non-terminal state "+j.status+".")
		return
	}
	c.jobs = slices.DeleteFunc(c.jobs, func(x *job) bool { return x == j })
	reply(w, http.StatusOK, map[string]any{"deleted": true})
}

func (c *Cluster) putServe(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = c.deploy(body)
	}
	if err != nil {
		text(w, http.StatusBadRequest, err.Error())
	}
}

// logs streams what an actor has printed.
func (c *Cluster) logs(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("actor_id")
	lines, _ := strconv.Atoi(r.URL.Query().Get("lines"))
	follow := r.PathValue("media") == "stream"
	sent := -1
	for {
		c.mu.Lock()
		i := slices.IndexFunc(c.actors, func(a *actor) bool { return a.id == id })
		if i < 0 || c.down {
			c.mu.Unlock()
			text(w, http.StatusInternalServerError, "Actor ID ActorID("+id+") not found.")
			return
		}
		log, changed := c.actors[i].log, c.changed
		if sent < 0 {
			sent = 0
			if lines > 0 && lines < len(log) {
				sent = len(log) - lines
			}
		}
		more := slices.Clone(log[min(sent, len(log)):])
		sent = len(log)
		c.mu.Unlock()
		for _, line := range more {
			_, _ = io.WriteString(w, line+"\n")
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		if !follow {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// Print has the engine of a replica print lines.
func (c *Cluster) Print(replica string, lines ...string) {
	defer c.lock()()
	for _, a := range c.parts(replica, (*actor).exists) {
		a.print(lines...)
	}
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body)
}
