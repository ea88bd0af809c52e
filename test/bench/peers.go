package main

import (
	"os/exec"
	"path/filepath"
	"strings"
)

// peer is one router under test. Its command and files are made for each run.
type peer struct {
	name string
	// command gives the arguments, nil for no router at all (direct).
	command func(v run) []string
	files   func(v run) map[string]string
}

// run is what a peer's command may refer to.
type run struct {
	port, metrics int
	engines       []string // host:port
	dir           string   // fresh folder
	self          string   // this program
	mobula        string   // the binary under test
	lab           string   // virtual environments of the peers from PyPI
}

// absent says why a peer can't run here, "" when it can.
func (p *peer) absent(v run) string {
	if p.command == nil {
		return ""
	}
	c := p.command(v)[0]
	if _, err := exec.LookPath(c); err != nil {
		return filepath.Base(c) + " is not installed"
	}
	return ""
}

func peers() []peer {
	haproxy := func(balance string) func(run) map[string]string {
		return func(v run) map[string]string {
			var b strings.Builder
			b.WriteString("global\n nbthread 1\n maxconn 8000\ndefaults\n mode http\n timeout connect 5s\n timeout client 600s\n timeout server 600s\n option http-keep-alive\n http-reuse always\n option http-no-delay\nfrontend f\n bind " + v.addr() + "\n default_backend b\nbackend b\n balance " + balance + "\n")
			for i, e := range v.engines {
				b.WriteString(" server e" + string(rune('0'+i)) + " " + e + "\n")
			}
			return map[string]string{"haproxy.cfg": b.String()}
		}
	}
	haproxyCommand := func(v run) []string { return []string{"haproxy", "-f", v.dir + "/haproxy.cfg"} }
	rust := func(path string, args ...string) func(run) []string {
		return func(v run) []string {
			c := append([]string{filepath.Join(v.lab, path)}, args...)
			c = append(c, "--host", "127.0.0.1", "--port", itoa(v.port), "--prometheus-port", itoa(v.metrics), "--worker-urls")
			for _, e := range v.engines {
				c = append(c, "http://"+e)
			}
			return c
		}
	}
	mobula := func(name, policy string) peer {
		return peer{
			name:    name,
			command: func(v run) []string { return []string{v.mobula, "router", "-f", v.dir + "/fleet.yaml"} },
			files: func(v run) map[string]string {
				var b strings.Builder
				b.WriteString("apiVersion: mobula/v1\nkind: Fleet\nplatform:\n  static:\n    endpoints:\n")
				for _, e := range v.engines {
					b.WriteString("      - url: http://" + e + "\n")
				}
				b.WriteString("router:\n  listen: " + v.addr() + "\n  policy:\n    name: " + policy + "\n    sessionHeader: X-Session-Id\n")
				return map[string]string{"fleet.yaml": b.String()}
			},
		}
	}
	return []peer{
		{name: "direct"},
		{name: "raw-go", command: func(v run) []string {
			return []string{v.self, "raw", "-listen", v.addr(), "-backends", strings.Join(v.engines, ",")}
		}},
		mobula("mobula-rr", "roundrobin"), mobula("mobula-cost", "cost"), mobula("mobula-prefix", "prefix"), mobula("mobula-session", "session"),
		{name: "nginx", command: func(v run) []string {
			return []string{"nginx", "-c", v.dir + "/nginx.conf", "-p", v.dir, "-e", v.dir + "/error.log"}
		}, files: nginx},
		{name: "haproxy", command: haproxyCommand, files: haproxy("roundrobin")},
		{name: "haproxy-session", command: haproxyCommand, files: haproxy("hdr(x-session-id)\n hash-type consistent")},
		{name: "vllm-rr", command: rust("vllm-router/bin/vllm-router", "--policy", "round_robin")},
		{name: "vllm-cache", command: rust("vllm-router/bin/vllm-router", "--policy", "cache_aware")},
		{name: "sglang-cache", command: rust("sglang-router/bin/smg", "launch", "--log-level", "warn", "--policy", "cache_aware")},
		{name: "sglang-rr", command: rust("sglang-router/bin/smg", "launch", "--log-level", "warn", "--policy", "round_robin")},
	}
}

func nginx(v run) map[string]string {
	var b strings.Builder
	b.WriteString("daemon off; master_process off; worker_processes 1; pid nginx.pid; worker_rlimit_nofile 20000;\nevents { worker_connections 8192; }\nhttp { access_log off; keepalive_requests 1000000; client_max_body_size 64m; client_body_buffer_size 1m; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\nupstream e { ")
	for _, e := range v.engines {
		b.WriteString("server " + e + "; ")
	}
	b.WriteString("keepalive 2048; keepalive_requests 1000000; }\nserver { listen " + v.addr() + " backlog=4096; location / { proxy_pass http://e; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; proxy_read_timeout 600s; } } }\n")
	return map[string]string{"nginx.conf": b.String()}
}

func (v run) addr() string { return "127.0.0.1:" + itoa(v.port) }
