package raytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// serve is Ray Serve on the cluster.
type serve struct {
	running bool
	http    map[string]any
	where   string // proxy_location
	apps    []*serveApp
}

type serveApp struct {
	name, prefix, status, message, source string
	config                                map[string]any
	foreign                               bool
	deployed                              int64
}

// adopt adds an application that runs, or puts another configuration in its place.
func (s *serve) adopt(config map[string]any, foreign bool) {
	s.begin(nil, "")
	name, _ := config["name"].(string)
	prefix, ok := config["route_prefix"].(string)
	if !ok {
		prefix = "/"
	}
	app := &serveApp{name: name, prefix: prefix, status: "RUNNING", source: "declarative", config: config, foreign: foreign, deployed: now()}
	if i := slices.IndexFunc(s.apps, func(a *serveApp) bool { return a.name == name }); i >= 0 {
		app.foreign = s.apps[i].foreign
		s.apps[i] = app
		return
	}
	s.apps = append(s.apps, app)
}

// begin starts the controller; one that runs keeps its options.
func (s *serve) begin(options map[string]any, where string) {
	if s.running {
		return
	}
	s.running, s.where = true, where
	if s.where == "" {
		s.where = "HeadOnly"
	}
	s.http = map[string]any{
		"host": "0.0.0.0", "port": 8000.0, "root_path": "", "request_timeout_s": nil, "keep_alive_timeout_s": 90.0,
		"ssl_keyfile": nil, "ssl_certfile": nil, "ssl_keyfile_password": nil, "ssl_ca_certs": nil,
	}
	maps.Copy(s.http, options)
}

// ServeApp adds a running application that nobody declared (serve run), or has one fail with a message.
func (c *Cluster) ServeApp(name, prefix, status, message string) {
	defer c.lock()()
	c.serve.adopt(map[string]any{"name": name, "route_prefix": prefix}, true)
	for _, a := range c.serve.apps {
		if a.name == name {
			a.status, a.message, a.source, a.config = status, message, "imperative", nil
		}
	}
}

// ServeOptions starts Ray Serve with these http_options and a proxy on the head only, or on every node.
func (c *Cluster) ServeOptions(options map[string]any, everyNode bool) {
	defer c.lock()()
	c.serve.running = false
	c.serve.begin(options, map[bool]string{true: "EveryNode"}[everyNode])
}

// deploy is PUT /api/serve/applications/: what it does not name ends.
func (c *Cluster) deploy(body []byte) error {
	var config struct {
		Location string           `json:"proxy_location"`
		HTTP     map[string]any   `json:"http_options"`
		Apps     []map[string]any `json:"applications"`
	}
	if err := json.Unmarshal(body, &config); err != nil {
		return err
	}
	for _, app := range config.Apps {
		if path, _ := app["import_path"].(string); path == "" {
			return fmt.Errorf("1 validation error for ServeDeploySchema\napplications.import_path\n  Field required")
		}
	}
	s := &c.serve
	s.begin(config.HTTP, config.Location)
	var kept []*serveApp
	for _, old := range s.apps {
		named := slices.ContainsFunc(config.Apps, func(a map[string]any) bool { return a["name"] == old.name })
		switch {
		case named || old.source != "declarative":
			kept = append(kept, old)
		case old.foreign:
			c.touched = append(c.touched, "Serve application "+old.name)
		}
	}
	s.apps = kept
	for _, app := range config.Apps {
		was := slices.IndexFunc(s.apps, func(a *serveApp) bool { return a.name == app["name"] })
		if was >= 0 && same(s.apps[was].config, app) {
			continue
		}
		if was >= 0 && s.apps[was].foreign {
			c.touched = append(c.touched, "Serve application "+s.apps[was].name)
		}
		s.adopt(app, false)
		for _, a := range s.apps {
			if a.name == app["name"] {
				a.status = "DEPLOYING"
			}
		}
	}
	return nil
}

func same(a, b map[string]any) bool {
	left, err1 := json.Marshal(a)
	right, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && string(left) == string(right)
}

// step has what deploys run.
func (s *serve) step(*Cluster) bool {
	some := false
	for _, a := range s.apps {
		if a.status == "DEPLOYING" {
			a.status, some = "RUNNING", true
		}
	}
	return some
}

// details is GET /api/serve/applications/.
func (c *Cluster) details() map[string]any {
	s := &c.serve
	if !s.running {
		return map[string]any{"controller_info": map[string]any{}, "proxies": map[string]any{}, "applications": map[string]any{}, "target_capacity": nil}
	}
	proxies, apps := map[string]any{}, map[string]any{}
	for _, n := range c.nodes {
		if n.died == "" && (n.head || s.where != "HeadOnly") {
			proxies[n.id] = map[string]any{"node_id": n.id, "node_ip": n.IP, "status": "HEALTHY", "actor_name": "SERVE_PROXY_ACTOR-" + n.id}
		}
	}
	for _, a := range s.apps {
		var config any
		if a.config != nil {
			config = a.config
		}
		apps[a.name] = map[string]any{
			"name": a.name, "route_prefix": a.prefix, "docs_path": nil, "status": a.status, "message": a.message,
			"last_deployed_time_s": float64(a.deployed) / 1000, "deployed_app_config": config, "source": a.source,
		}
	}
	return map[string]any{
		"controller_info": map[string]any{"node_id": c.nodes[0].id, "node_ip": c.nodes[0].IP, "actor_name": "SERVE_CONTROLLER_ACTOR"},
		"proxy_location":  s.where, "http_options": s.http, "grpc_options": map[string]any{"port": 9000},
		"proxies": proxies, "applications": apps, "target_capacity": nil,
	}
}
