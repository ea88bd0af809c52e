//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// engineModel is what the simulated engines serve, think how long each answer takes.
const (
	engineModel = "bench"
	think       = 20 * time.Millisecond
)

// runEngine is an engine that says when it listened and when its first request came: a line each, with its port and
// the time in nanoseconds, at the end of the file TRACE. args are TRACE and those of vllm serve.
func runEngine(args []string) error {
	trace, err := os.OpenFile(args[0], os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	var host, port string
	for i, a := range args[:len(args)-1] {
		switch a {
		case "--host":
			host = args[i+1]
		case "--port":
			port = args[i+1]
		}
	}
	tell := func(what string) {
		_, _ = fmt.Fprintf(trace, "%s %s %d\n", what, port, time.Now().UnixNano())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, fmt.Sprintf(`{"object":"list","data":[{"id":%q,"object":"model","created":1,"owned_by":"bench"}]}`, engineModel))
	})
	var first sync.Once
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		first.Do(func() { tell("first") })
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(think)
		answer(w, `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"bench","choices":[{"index":0,`+
			`"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}`)
	})
	l, err := net.Listen("tcp", net.JoinHostPort(strings.Trim(host, "[]"), port))
	if err != nil {
		return err
	}
	tell("ready")
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	return srv.Serve(l)
}

func answer(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, body)
}
