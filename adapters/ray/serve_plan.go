package ray

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/mobula-serve/mobula"
)

// serveRecord is what is durable of an application that we have deployed.
type serveRecord struct {
	// Config is what was put, canonical. Done tells that Ray has taken it.
	Config json.RawMessage `json:"config"`
	Done   bool            `json:"done,omitempty"`
	// Shown is what Ray said the configuration was when it was looked at first after that, canonical: Ray writes some
	// values in its own way. When it says something else later somebody has changed it.
	Shown json.RawMessage `json:"shown,omitempty"`
}

func (r serveRecord) equal(o serveRecord) bool {
	return r.Done == o.Done && bytes.Equal(r.Config, o.Config) && bytes.Equal(r.Shown, o.Shown)
}

// servePlan is what is to be put.
type servePlan struct {
	config   json.RawMessage        // the whole declarative configuration; nil when all is as it should be
	changed  []string               // the applications that differ in it
	ours     map[string]serveRecord // what is ours once it is put
	problems map[string]string      // by application
}

// intended is what is ours until it is known whether Ray has taken the plan.
func (p *servePlan) intended(before map[string]serveRecord) map[string]serveRecord {
	switch {
	case len(p.changed) == 0:
		return p.ours
	case p.config == nil:
		return before
	}
	all := maps.Clone(p.ours)
	for _, name := range p.changed {
		if r, put := all[name]; put {
			r.Done = false
			all[name] = r
		} else if r, was := before[name]; was {
			all[name] = r // not gone yet
		}
	}
	return all
}

// blame has the plan's changes be what err is about.
func (p *servePlan) blame(found map[string]string, err error) {
	if err == nil {
		return
	}
	for _, name := range p.changed {
		found[name] = "it could not be deployed: " + serveLine(err.Error())
	}
}

// planServe compares what is deployed with what the fleet wants. Ray replaces the whole set of declarative applications
// at once, so the others are in the plan just as they are; those that serve run has made are not Ray's to replace.
func planServe(at *ServeState, want []mobula.RayServe, ours map[string]serveRecord) *servePlan {
	p := &servePlan{ours: map[string]serveRecord{}, problems: map[string]string{}}
	apps, wanted := map[string]*ServeApp{}, map[string]bool{}
	for i := range at.Apps {
		if a := &at.Apps[i]; at.Running {
			apps[a.Name] = a
		}
	}
	for i := range want {
		wanted[want[i].Name] = true
	}
	put := map[string]json.RawMessage{}
	for name := range ours {
		if a := apps[name]; !wanted[name] && a.declared() {
			p.changed = append(p.changed, name) // it is left out
		}
	}
	prefixes := p.others(apps)
	for i := range want {
		if want[i].Config == nil {
			continue // it is somebody else's to deploy, from now on at least
		}
		p.take(&want[i], apps[want[i].Name], ours, prefixes, put)
	}
	if len(p.changed) > 0 {
		p.compose(at, apps, put)
	}
	slices.Sort(p.changed)
	return p
}

// declared tells whether an application is one that Ray replaces or removes with the next configuration.
func (a *ServeApp) declared() bool {
	return a != nil && a.Source == serveDeclarative && a.Status != serveDeleting
}

// others gives whose route prefixes are taken.
func (p *servePlan) others(apps map[string]*ServeApp) map[string]string {
	taken := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(apps)) {
		a := apps[name]
		if a.Status == serveDeleting || slices.Contains(p.changed, name) {
			continue
		}
		prefix := a.RoutePrefix
		if a.Source == serveDeclarative && !empty(a.Config) {
			prefix = routePrefix(a.Config)
		}
		if prefix != "" {
			taken[prefix] = name
		}
	}
	return taken
}

// take says what becomes of one application of the fleet.
func (p *servePlan) take(w *mobula.RayServe, now *ServeApp, ours map[string]serveRecord, prefixes map[string]string, put map[string]json.RawMessage) {
	rec, known := ours[w.Name]
	config, err := serveConfig(w)
	if err != nil {
		p.problems[w.Name] = err.Error()
		if known {
			p.ours[w.Name] = rec
		}
		return
	}
	there := now != nil && now.Status != serveDeleting
	switch {
	case there && now.Source != serveDeclarative:
		p.problems[w.Name] = "the cluster has an application of this name that was started by serve run, not by this fleet: remove it (serve delete), or give ours another name"
		return
	case there && !known && !sameServe(now.Config, config):
		p.problems[w.Name] = "the cluster has an application of this name that this fleet has not deployed: remove it there, leave config out to use it as it is, or give ours another name"
		return
	case there && !known: // a control plane that has lost its memory
		p.ours[w.Name] = serveRecord{Config: config, Done: true, Shown: canonical(now.Config)}
		return
	}
	if there && rec.Done && bytes.Equal(rec.Config, config) {
		shown := canonical(now.Config)
		if rec.Shown == nil {
			rec.Shown = shown
		}
		if bytes.Equal(rec.Shown, shown) {
			p.ours[w.Name] = rec
			return
		}
	}
	prefix := routePrefix(config)
	if other := prefixes[prefix]; other != "" && other != w.Name {
		p.problems[w.Name] = fmt.Sprintf("application %s has the route_prefix %q already, which only one can have: remove it, or use it in place of this one", other, prefix)
		if known {
			p.ours[w.Name] = rec
		}
		return
	}
	prefixes[prefix] = w.Name
	put[w.Name] = config
	p.changed = append(p.changed, w.Name)
	p.ours[w.Name] = serveRecord{Config: config, Done: true}
}

// redacted stands where Ray hides a value from browsers.
const redacted = `"\u003credacted\u003e"`

// compose makes the whole configuration, or says why that can't be done without harm to others.
func (p *servePlan) compose(at *ServeState, apps map[string]*ServeApp, put map[string]json.RawMessage) {
	for _, name := range slices.Sorted(maps.Keys(apps)) {
		a := apps[name]
		if put[name] != nil || !a.declared() || slices.Contains(p.changed, name) {
			continue
		}
		if rec, is := p.ours[name]; is && rec.Done {
			put[name] = rec.Config // not as Ray writes it, which would then be another one
			continue
		}
		if empty(a.Config) || bytes.Contains(canonical(a.Config), []byte(redacted)) {
			p.blame(p.problems, fmt.Errorf("ray does not show the whole configuration of application %s, which has to stay as it is", name))
			return
		}
		put[name] = a.Config
	}
	whole := map[string]json.RawMessage{}
	var settings map[string]json.RawMessage
	if at.Running && json.Unmarshal(at.Config, &settings) == nil {
		for _, name := range []string{"proxy_location", "http_options", "grpc_options", "target_capacity"} {
			if v := settings[name]; !empty(v) {
				whole[name] = v
			}
		}
	}
	list := []json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(put)) {
		list = append(list, put[name])
	}
	var err error
	if whole["applications"], err = json.Marshal(list); err == nil {
		p.config, err = json.Marshal(whole)
	}
	p.blame(p.problems, err)
}

// serveConfig is an application as it is put, canonical.
func serveConfig(w *mobula.RayServe) (json.RawMessage, error) {
	all := maps.Clone(w.Config)
	all["name"] = w.Name
	config, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("its config can't be sent to Ray: %w", err)
	}
	return config, nil
}

// routePrefix gives an application's; empty for none.
func routePrefix(config json.RawMessage) string {
	fields := map[string]any{}
	_ = json.Unmarshal(config, &fields)
	switch prefix, has := fields["route_prefix"]; {
	case !has:
		return "/"
	case prefix == nil:
		return ""
	default:
		return fmt.Sprint(prefix)
	}
}

// sameServe tells whether what Ray shows is what we would put. Ray adds a logging_config of its own.
func sameServe(shown, config json.RawMessage) bool {
	var a, b map[string]any
	if json.Unmarshal(shown, &a) != nil || json.Unmarshal(config, &b) != nil {
		return false
	}
	if _, asked := b["logging_config"]; !asked {
		delete(a, "logging_config")
	}
	return reflect.DeepEqual(a, b)
}

// canonical is JSON that is equal for equal values: sorted keys, no space.
func canonical(config json.RawMessage) json.RawMessage {
	var v any
	d := json.NewDecoder(bytes.NewReader(config))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return config
	}
	b, err := json.Marshal(v)
	if err != nil {
		return config
	}
	return b
}

func empty(v json.RawMessage) bool {
	s := strings.TrimSpace(string(v))
	return s == "" || s == "null" || s == "{}"
}
