package ray

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

const dashboardServePath = "/api/serve/applications/"

// Serve reads the state of Ray Serve. A cluster without Ray Serve has none running.
func (d *Dashboard) Serve(ctx context.Context) (*ServeState, error) {
	const what = "read the state of Ray Serve"
	body, err := d.get(ctx, what, dashboardServePath, nil, dashboardMaxState)
	if err != nil {
		if strings.Contains(err.Error(), "(HTTP 501)") { // Ray without its serve extra
			return &ServeState{}, nil
		}
		return nil, err
	}
	s, err := decodeServe(body)
	if err != nil {
		return nil, d.failed(what, err)
	}
	return s, nil
}

// DeployServe puts the whole declarative configuration of Ray Serve: applications that it does not name end.
func (d *Dashboard) DeployServe(ctx context.Context, config json.RawMessage) error {
	_, err := d.do(ctx, dashboardCall{
		what: "configure Ray Serve", method: http.MethodPut, path: dashboardServePath, body: config, kind: "application/json", most: dashboardMaxAnswer,
	})
	return err
}

// serveDetails is what Ray says of Serve, as far as it is needed.
type serveDetails struct {
	Controller map[string]json.RawMessage `json:"controller_info"`
	Location   json.RawMessage            `json:"proxy_location"`
	HTTP       json.RawMessage            `json:"http_options"`
	GRPC       json.RawMessage            `json:"grpc_options"`
	Capacity   json.RawMessage            `json:"target_capacity"`
	Proxies    map[string]struct {
		NodeID string `json:"node_id"`
		NodeIP string `json:"node_ip"`
		Status string `json:"status"`
	} `json:"proxies"`
	Apps map[string]struct {
		Name    string          `json:"name"`
		Prefix  *string         `json:"route_prefix"`
		Status  string          `json:"status"`
		Message string          `json:"message"`
		Source  string          `json:"source"`
		Config  json.RawMessage `json:"deployed_app_config"`
	} `json:"applications"`
}

func decodeServe(body []byte) (*ServeState, error) {
	var v serveDetails
	if err := json.Unmarshal(body, &v); err != nil || v.Apps == nil {
		return nil, fmt.Errorf("%w: %s", errGarbled, dashboardText(body))
	}
	s := &ServeState{Running: len(v.Controller) > 0}
	if !s.Running {
		return s, nil
	}
	var options struct {
		Host string `json:"host"`
		Port int    `json:"port"`
		Cert string `json:"ssl_certfile"`
	}
	if len(v.HTTP) > 0 {
		if err := json.Unmarshal(v.HTTP, &options); err != nil {
			return nil, fmt.Errorf("%w: http_options: %w", errGarbled, err)
		}
	}
	s.Host, s.Port, s.TLS = options.Host, options.Port, options.Cert != ""
	for _, id := range slices.Sorted(maps.Keys(v.Proxies)) {
		if p := v.Proxies[id]; p.Status == "HEALTHY" {
			s.Proxies = append(s.Proxies, ServeProxy{NodeID: cmp.Or(p.NodeID, id), NodeIP: p.NodeIP, Status: p.Status})
		}
	}
	declared := []json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(v.Apps)) {
		a := v.Apps[name]
		app := ServeApp{Name: cmp.Or(a.Name, name), Status: a.Status, Message: shorten(a.Message, 4<<10), Source: a.Source}
		if a.Prefix != nil {
			app.RoutePrefix = *a.Prefix
		}
		if len(a.Config) > 0 && string(a.Config) != "null" {
			app.Config = a.Config
			if a.Source == serveDeclarative {
				declared = append(declared, a.Config)
			}
		}
		s.Apps = append(s.Apps, app)
	}
	config := map[string]any{"applications": declared}
	for name, value := range map[string]json.RawMessage{
		"proxy_location": v.Location, "http_options": v.HTTP, "grpc_options": v.GRPC, "target_capacity": v.Capacity,
	} {
		if len(value) > 0 {
			config[name] = value
		}
	}
	var err error
	s.Config, err = json.Marshal(config)
	return s, err
}
