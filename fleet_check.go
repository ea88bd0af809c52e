package mobula

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds on times.
const (
	longest  = Duration(24 * time.Hour)
	shortest = Duration(10 * time.Millisecond) // between two probes
)

// checkHeader reports whether the file is a fleet of this version. Of another one nothing
// else can be said, so its other problems go.
func checkHeader(f *Fleet, r *report) bool {
	if slices.ContainsFunc(r.problems, func(p Problem) bool { return p.Field == "" }) {
		return false // not even a mapping
	}
	foreign := f.APIVersion != "" && f.APIVersion != APIVersion || f.Kind != "" && f.Kind != Kind
	if foreign {
		r.problems, r.more = nil, false
	}
	header(r, "apiVersion", f.APIVersion, APIVersion)
	header(r, "kind", f.Kind, Kind)
	return !foreign
}

func header(r *report, field, got, want string) {
	switch got {
	case want:
	case "":
		r.bad(field, "want %s, got nothing", want)
	default:
		r.bad(field, "want %s, got %s", want, quote(got))
	}
}

// checkFleet notes every value that is out of its documented range.
func checkFleet(f *Fleet, r *report) {
	if !isLabel(f.Name) {
		r.bad("name", "want at most 63 lower-case letters, digits and dashes, a dash neither first nor last, got %s", quote(f.Name))
	}
	checkPlatform(f, r)
	checkModels(f.Models, r)
	checkProviders(f, r)
	checkRouter(&f.Router, r)
	within(r, "kv.index.memory", f.KV.Index.Memory, 1<<20, 1<<40)
}

func checkPlatform(f *Fleet, r *report) {
	placed := slices.ContainsFunc(f.Models, func(m Model) bool { return m.Placed() })
	p := &f.Platform
	if given := p.given(); len(given) != 1 {
		r.bad("platform", "want exactly one platform (static, ray, kubernetes or kuberay), got %s", cmp.Or(strings.Join(given, " and "), "none"))
		return
	}
	switch bare := !placed && len(f.Providers) == 0; {
	case p.Static != nil:
		checkStatic(p.Static, r)
		if len(p.Static.Endpoints) == 0 && bare {
			r.bad("platform.static.endpoints", "want at least 1 engine, or a model with replicas, got none")
		}
	case p.Ray != nil:
		checkRay(p.Ray, r)
		if len(p.Ray.Serve) == 0 && bare {
			r.bad("platform.ray.serve", "want a model with replicas, or at least 1 Ray Serve application, got none")
		}
		checkRayModels(f, r)
	default:
		at := "platform.kubernetes"
		if p.KubeRay != nil {
			at = "platform.kuberay.kubernetes"
			checkKubeRay(p.KubeRay, r)
		} else {
			checkKubernetes(at, p.Kubernetes, r)
		}
		checkKubernetesFleet(f, at, r) // which may be bare: Model objects come and go
	}
}

// given names the platforms that are set.
func (p *Platform) given() []string {
	var out []string
	note := func(name string, is bool) {
		if is {
			out = append(out, name)
		}
	}
	note("static", p.Static != nil)
	note("ray", p.Ray != nil)
	note("kubernetes", p.Kubernetes != nil)
	note("kuberay", p.KubeRay != nil)
	return out
}

func checkStatic(s *Static, r *report) {
	const path = "platform.static.endpoints"
	for i, h := range s.Hosts {
		if !isHostPattern(h) {
			r.bad("platform.static.hosts["+strconv.Itoa(i)+"]", "want the name of a host such as gpu-1 or gpu-*, got %s", quote(h))
		}
	}
	within(r, "platform.static.hostTimeout", s.HostTimeout, Duration(time.Second), longest)
	urls := map[string]int{}
	for i, e := range s.Endpoints {
		at := path + "[" + strconv.Itoa(i) + "]"
		if e.URL == "" {
			r.bad(at+".url", "want a URL such as http://vllm:8000, got nothing")
		} else if key, problem := checkURL(e.URL, "want a URL such as http://vllm:8000", "apiKeyFile"); problem != "" {
			r.bad(at+".url", "%s", problem)
		} else if first, twice := urls[key]; twice {
			r.bad(at+".url", "given twice, first as %s[%d].url", path, first)
		} else {
			urls[key] = i
		}
		checkNames(at+".models", e.Models, map[string]string{}, r)
		for _, key := range slices.Sorted(maps.Keys(e.Labels)) {
			if key == "" || !isPrintable(key) {
				r.bad(join(at+".labels", key), "want a label's name of printable characters")
			}
		}
		checkKey(at, "apiKey", e.APIKeyFile, e.APIKeyEnv, r)
	}
}

func checkNames(path string, names []string, taken map[string]string, r *report) {
	for i, name := range names {
		checkName(path+"["+strconv.Itoa(i)+"]", name, taken, r)
	}
}

// checkName notes an empty name and one that is taken; taken holds the field that took it.
func checkName(field, name string, taken map[string]string, r *report) {
	if name == "" || strings.TrimSpace(name) != name {
		r.bad(field, "want a model's name without spaces around it, got %s", quote(name))
		return
	}
	if first, twice := taken[name]; twice {
		r.bad(field, "%s is given twice, first as %s", quote(name), first)
		return
	}
	taken[name] = field
}

func checkRouter(c *Router, r *report) {
	if problem := checkListen(c.Listen); problem != "" {
		r.bad("router.listen", "%s", problem)
	}
	p := &c.Policy
	oneOf(r, "router.policy.name", p.Name, "cost", "roundrobin", "random", "p2c", "leastload", "session", "prefix")
	if !isToken(p.SessionHeader) {
		r.bad("router.policy.sessionHeader", "want a header's name, got %s", quote(p.SessionHeader))
	}
	if !only(p.SessionField, letters+digits+"_-") {
		r.bad("router.policy.sessionField", "want a top-level field's name of letters, digits, _ and -, got %s", quote(p.SessionField))
	}
	within(r, "router.policy.loadFactor", p.LoadFactor, 1, 1000)
	checkTimeouts(&c.Timeouts, r)
	within(r, "router.retries.attempts", c.Retries.Attempts, 0, 10)
	within(r, "router.retries.budget", c.Retries.Budget, 0, 1)
	within(r, "router.retries.maxRetryAfter", c.Retries.MaxRetryAfter, 0, longest)
	within(r, "router.health.interval", c.Health.Interval, shortest, longest)
	within(r, "router.health.timeout", c.Health.Timeout, shortest, longest)
	within(r, "router.health.ejectAfter", c.Health.EjectAfter, 1, 1000)
	within(r, "router.health.modelsInterval", c.Health.ModelsInterval, shortest, longest)
	within(r, "router.health.metricsInterval", c.Health.MetricsInterval, shortest, longest)
	within(r, "router.limits.body", c.Limits.Body, 1<<10, 4<<30)
	within(r, "router.limits.header", c.Limits.Header, 1<<10, 16<<20)
	atLeast(r, "router.limits.inFlight", c.Limits.InFlight, 1)
	atLeast(r, "router.limits.connections", c.Limits.Connections, 1)
	atLeast(r, "router.limits.idleConnections", c.Limits.IdleConnections, 1)
	within(r, "router.limits.depth", c.Limits.Depth, 1, 1000)
	oneOf(r, "router.log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf(r, "router.log.format", c.Log.Format, "text", "json")
}

func checkTimeouts(t *Timeouts, r *report) {
	for _, f := range []struct {
		name string
		d    Duration
	}{
		{"connect", t.Connect},
		{"firstByte", t.FirstByte},
		{"plain", t.Plain},
		{"idle", t.Idle},
		{"total", t.Total},
		{"readHeader", t.ReadHeader},
		{"readBody", t.ReadBody},
		{"write", t.Write},
		{"keepAlive", t.KeepAlive},
		{"drain", t.Drain},
	} {
		if f.d <= 0 || f.d > longest {
			r.bad("router.timeouts."+f.name, "want more than 0s and at most %v, got %v", longest, f.d)
		}
	}
	within(r, "router.timeouts.lameduck", t.Lameduck, 0, longest)
}

// within notes a value outside of low to high.
func within[T cmp.Ordered](r *report, field string, got, low, high T) {
	if got < low || got > high {
		r.bad(field, "want %v to %v, got %v", low, high, got)
	}
}

func atLeast(r *report, field string, got, low int) {
	if got < low {
		r.bad(field, "want at least %d, got %d", low, got)
	}
}

func oneOf(r *report, field, got string, want ...string) {
	if !slices.Contains(want, got) {
		last := len(want) - 1
		r.bad(field, "want %s or %s, got %s", strings.Join(want[:last], ", "), want[last], quote(got))
	}
}
