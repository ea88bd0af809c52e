package mobula

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

func checkModels(models []Model, r *report) {
	taken := map[string]string{}
	for i, m := range models {
		checkName("models["+strconv.Itoa(i)+"].name", m.Name, taken, r)
	}
	for i := range models {
		m, at := &models[i], "models["+strconv.Itoa(i)+"]"
		checkNames(at+".aliases", m.Aliases, taken, r)
		if strings.TrimSpace(m.Source) != m.Source {
			r.bad(at+".source", "want a name on the hub or a folder without spaces around it, got %s", quote(m.Source))
		}
		checkEngine(at+".engine", &m.Engine, r)
		checkResources(at+".resources", &m.Resources, r)
		checkRayModel(at+".ray", m, r)
		checkPods(at+".kubernetes", &m.Kubernetes, r)
		checkLoRAs(at+".loras", m, taken, r)
		checkScaling(at+".scaling", &m.Scaling, r)
		within(r, at+".rollout.surge", m.Rollout.Surge, 0, MaxReplicas)
		within(r, at+".rollout.unavailable", m.Rollout.Unavailable, 0, MaxReplicas)
		if m.Rollout.Surge == 0 && m.Rollout.Unavailable == 0 {
			r.bad(at+".rollout.surge", "want surge or unavailable above 0, else no replica can ever be replaced")
		}
		within(r, at+".rollout.drain", m.Rollout.Drain, 0, longest)
	}
}

func checkEngine(at string, e *Engine, r *report) {
	oneOf(r, at+".kind", e.Kind, "vllm", "sim")
	if len(e.Command) > 0 && e.Command[0] == "" {
		r.bad(at+".command[0]", "want a command, got nothing")
	}
	for i, a := range e.Args {
		flag, _, _ := strings.Cut(a, "=")
		switch strings.ReplaceAll(flag, "_", "-") {
		case "--host", "--port", "--uds", "--served-model-name", "--model", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless":
			r.bad(at+".args["+strconv.Itoa(i)+"]", "%s is not for the engine: the control plane decides it", quote(flag))
		case "--api-key":
			r.bad(at+".args["+strconv.Itoa(i)+"]", "a key in the arguments is shown to all who may read the fleet: want none")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Env)) {
		if !isVariable(name) {
			r.bad(join(at+".env", name), "want the name of an environment variable: letters, digits and _, no digit first")
		}
	}
	within(r, at+".startTimeout", e.StartTimeout, Duration(time.Second), longest)
	within(r, at+".stopTimeout", e.StopTimeout, Duration(time.Second), longest)
}

func checkResources(at string, s *Resources, r *report) {
	within(r, at+".hosts", s.Hosts, 1, 64)
	if s.GPUs == nil {
		return
	}
	within(r, at+".gpus", *s.GPUs, 0, 1024)
	if s.Hosts > 1 && *s.GPUs%s.Hosts != 0 {
		r.bad(at+".gpus", "want a multiple of hosts (%d), got %d", s.Hosts, *s.GPUs)
	}
}

func checkLoRAs(at string, m *Model, taken map[string]string, r *report) {
	for i, l := range m.LoRAs {
		field := at + "[" + strconv.Itoa(i) + "]"
		checkName(field+".name", l.Name, taken, r)
		if l.Source == "" || strings.TrimSpace(l.Source) != l.Source {
			r.bad(field+".source", "want a folder, a name on the hub or a URL, got %s", quote(l.Source))
		} else if scheme, _, isURL := strings.Cut(l.Source, "://"); isURL && !slices.Contains([]string{"http", "https", "s3"}, scheme) {
			r.bad(field+".source", "want scheme https, http or s3, got %s", quote(scheme))
		}
		atLeast(r, field+".replicas", l.Replicas, 0)
	}
	if len(m.LoRAs) > 0 && !m.Placed() {
		r.bad(at, "want replicas for a model with LoRAs: only engines of the control plane get them")
	}
}

func checkScaling(at string, s *Scaling, r *report) {
	within(r, at+".ttft", s.TTFT, Duration(time.Millisecond), longest)
	within(r, at+".itl", s.ITL, Duration(time.Millisecond), longest)
	within(r, at+".upAfter", s.UpAfter, 0, longest)
	within(r, at+".downAfter", s.DownAfter, 0, longest)
	within(r, at+".zeroAfter", s.ZeroAfter, Duration(time.Second), longest)
	within(r, at+".held", s.Held, 0, 100000)
	within(r, at+".heldFor", s.HeldFor, Duration(time.Second), longest)
}

func checkProviders(f *Fleet, r *report) {
	names := map[string]string{}
	for i := range f.Providers {
		p, at := &f.Providers[i], "providers["+strconv.Itoa(i)+"]"
		if !isLabel(p.Name) {
			r.bad(at+".name", "want at most 63 lower-case letters, digits and dashes, a dash neither first nor last, got %s", quote(p.Name))
		} else if first, twice := names[p.Name]; twice {
			r.bad(at+".name", "%s is given twice, first as %s", quote(p.Name), first)
		}
		names[p.Name] = at + ".name"
		oneOf(r, at+".kind", p.Kind, "openai", "azure", "anthropic")
		if problem := checkBaseURL(p); problem != "" {
			r.bad(at+".url", "%s", problem)
		}
		if len(p.Models) == 0 {
			r.bad(at+".models", "want at least 1 model, got none")
		}
		taken := map[string]string{}
		for j, m := range p.Models {
			checkName(at+".models["+strconv.Itoa(j)+"].name", m.Name, taken, r)
		}
		checkKey(at, "apiKey", p.APIKeyFile, p.APIKeyEnv, r)
		oneOf(r, at+".use", p.Use, "fallback", "spill")
		within(r, at+".spillAfter", p.SpillAfter, 0, longest)
		atLeast(r, at+".inFlight", p.InFlight, 1)
	}
}

// checkKey notes two places for one key, NAMEFile and NAMEEnv, and a key in place of a variable's name.
func checkKey(at, name, file, env string, r *report) {
	field := at + "." + name + "Env"
	if file != "" && env != "" {
		r.bad(field, "want %sFile or %sEnv, got both", name, name)
	}
	if env != "" && !isVariable(env) { // it may be the key itself, so it isn't shown
		r.bad(field, "want the name of an environment variable: letters, digits and _, no digit first")
	}
}

// checkBaseURL says what is wrong with a provider's URL.
func checkBaseURL(p *Provider) string {
	const want = "want a base URL such as https://api.openai.com/v1"
	if p.URL == "" {
		if p.Kind == "azure" {
			return "want the base URL of the Azure resource such as https://NAME.openai.azure.com/openai/v1, got nothing"
		}
		return ""
	}
	if strings.Contains(p.URL, "@") {
		return want + ", without user and password (see apiKeyFile)"
	}
	u, err := url.Parse(p.URL)
	if err != nil || strings.ContainsAny(p.URL, "?#") {
		return want + ", without query or fragment, got " + quote(p.URL)
	}
	if _, problem := checkURL(u.Scheme+"://"+u.Host, want, "apiKeyFile"); problem != "" {
		return want + ", got " + quote(p.URL)
	}
	return ""
}
