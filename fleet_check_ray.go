package mobula

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what one engine asks of a Ray node.
const (
	leastShare   = 0.0001 // Ray counts resources in these steps
	mostResource = 1e9
	mostCPUs     = 1024
)

// runtimeEnvFields are the fields of a runtime environment that can be given to an actor from afar, as Ray's documentation names them.
func runtimeEnvFields() []string {
	return []string{
		"working_dir", "py_modules", "py_executable", "pip", "uv", "conda", "env_vars", "container", "image_uri",
		"config", "nsight", "rocprof_sys", "worker_process_setup_hook",
	}
}

func checkRay(c *Ray, r *report) {
	const at = "platform.ray"
	const address = "want the URL of the cluster's dashboard such as http://ray-head:8265"
	if c.Address == "" {
		r.bad(at+".address", address+", got nothing")
	} else if _, problem := checkURL(c.Address, address, "tokenFile"); problem != "" {
		r.bad(at+".address", "%s", problem)
	}
	checkKey(at, "token", c.TokenFile, c.TokenEnv, r)
	if len(c.Namespace) > 63 || !only(c.Namespace, letters+digits+"._-") {
		r.bad(at+".namespace", "want at most 63 letters, digits, dots, dashes and underscores, got %s", quote(c.Namespace))
	}
	if c.Owner != "" && (!isLabel(c.Owner) || len(c.Owner) > 20) {
		r.bad(at+".owner", "want at most 20 lower-case letters, digits and dashes, a dash neither first nor last, got %s", quote(c.Owner))
	}
	oneOf(r, at+".mode", c.Mode, "actors", "jobs")
	if strings.TrimSpace(c.Interpreter) != c.Interpreter {
		r.bad(at+".interpreter", "want a command or a path without spaces around it, got %s", quote(c.Interpreter))
	}
	within(r, at+".poll", c.Poll, Duration(100*time.Millisecond), Duration(time.Minute))
	checkRuntimeEnv(at+".runtimeEnv", c.RuntimeEnv, c.RuntimeEnv, r)
	names := map[string]string{}
	for i := range c.Serve {
		checkServe(at+".serve["+strconv.Itoa(i)+"]", &c.Serve[i], names, r)
	}
}

func checkServe(at string, s *RayServe, taken map[string]string, r *report) {
	if s.Name == "" || strings.TrimSpace(s.Name) != s.Name {
		r.bad(at+".name", "want the application's name without spaces around it, got %s", quote(s.Name))
	} else if first, twice := taken[s.Name]; twice {
		r.bad(at+".name", "%s is given twice, first as %s", quote(s.Name), first)
	} else {
		taken[s.Name] = at + ".name"
	}
	checkNames(at+".models", s.Models, map[string]string{}, r)
	if s.Config == nil {
		return
	}
	if path, _ := s.Config["import_path"].(string); path == "" {
		r.bad(at+".config.import_path", "want what Ray Serve imports, such as ray.serve.llm:build_openai_app, got nothing")
	}
	if _, given := s.Config["name"]; given {
		r.bad(at+".config.name", "want no name here: it is %s.name", at)
	}
	if prefix, given := s.Config["route_prefix"]; given && prefix != "/" {
		r.bad(at+".config.route_prefix", "want /, its default: the router asks for /v1 at the root")
	}
	if env, isMap := s.Config["runtime_env"].(map[string]any); isMap {
		checkRuntimeEnv(at+".config.runtime_env", env, env, r)
	}
}

// checkRuntimeEnv notes what Ray would refuse when an engine starts. all is the environment with what is added from elsewhere.
func checkRuntimeEnv(at string, env, all map[string]any, r *report) {
	for _, key := range slices.Sorted(maps.Keys(env)) {
		field := join(at, key)
		switch key {
		case "working_dir":
			checkPackage(field, env[key], r)
		case "py_modules":
			list, ok := env[key].([]any)
			if !ok {
				r.bad(field, "want a list of URIs")
			}
			for i := range list {
				checkPackage(field+"["+strconv.Itoa(i)+"]", list[i], r)
			}
		case "env_vars":
			checkVariables(field, env[key], r)
		default:
			if known := runtimeEnvFields(); !slices.Contains(known, key) {
				r.bad(field, "unknown to Ray, %s", suggest(key, known))
			}
		}
	}
	given := slices.Sorted(maps.Keys(all))
	alone := func(key string) bool { return key == "container" || key == "image_uri" }
	if i := slices.IndexFunc(given, alone); i >= 0 {
		for _, key := range given {
			if key != given[i] && key != "config" && key != "env_vars" {
				r.bad(join(at, given[i]), "Ray takes it beside config and env_vars only, got %s too", key)
			}
		}
	}
	given = slices.DeleteFunc(given, func(key string) bool { return key != "pip" && key != "uv" && key != "conda" })
	if len(given) > 1 {
		r.bad(join(at, given[0]), "Ray takes one of pip, uv and conda, got %s", strings.Join(given, " and "))
	}
}

// checkPackage notes what is no package that nodes can fetch: nobody uploads a folder of ours.
func checkPackage(field string, value any, r *report) {
	uri, _ := value.(string)
	scheme, rest, _ := strings.Cut(uri, "://")
	if rest == "" || !slices.Contains([]string{"https", "http", "s3", "gs", "azure", "abfss", "gcs", "file", "local"}, scheme) {
		r.bad(field, "want a URI that the nodes can fetch, such as https://example.org/code.zip or s3://bucket/code.zip: a local folder is not uploaded")
	}
}

func checkVariables(at string, value any, r *report) {
	all, ok := value.(map[string]any)
	if !ok {
		r.bad(at, "want a mapping of environment variables")
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if _, isText := all[name].(string); !isText {
			r.bad(join(at, name), "want text (put it in quotes)")
		}
	}
}

// checkRayModel notes what no Ray cluster can give. The fields count on every platform, as those of resources do.
func checkRayModel(at string, m *Model, r *report) {
	c := &m.Ray
	within(r, at+".cpus", c.CPUs, 0, mostCPUs)
	if f := c.GPUFraction; f != 0 {
		switch gpus := m.Resources.GPUs; {
		case f < leastShare || f >= 1:
			r.bad(at+".gpuFraction", "want 0 (whole GPUs), or at least %v and below 1, got %v", leastShare, f)
		case gpus != nil && *gpus != 1:
			r.bad(at+".gpuFraction", "want resources.gpus 1 or none for a part of one GPU, got %d", *gpus)
		case m.Resources.Hosts != 1:
			r.bad(at+".gpuFraction", "want resources.hosts 1 for a part of one GPU, got %d", m.Resources.Hosts)
		}
	}
	if c.AcceleratorType != "" && !only(c.AcceleratorType, letters+digits+"-_.") {
		r.bad(at+".acceleratorType", "want a type as Ray names it, such as H100 or A100-80G, got %s", quote(c.AcceleratorType))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Resources)) {
		checkRayResource(join(at+".resources", name), name, c.Resources[name], r)
	}
	if c.Node != "" {
		if _, err := netip.ParseAddr(c.Node); err != nil {
			r.bad(at+".node", "want the IP address of a node, got %s", quote(c.Node))
		} else if m.Resources.Hosts > 1 {
			r.bad(at+".node", "want none for an engine of %d hosts", m.Resources.Hosts)
		}
	}
	checkRuntimeEnv(at+".runtimeEnv", c.RuntimeEnv, c.RuntimeEnv, r)
}

func checkRayResource(field, name string, amount float64, r *report) {
	elsewhere := map[string]string{
		"CPU": "ray.cpus", "GPU": "resources.gpus or ray.gpuFraction",
		"memory": "no field: Ray does not enforce it for engines", "object_store_memory": "no field: engines use none",
	}
	prefix, _, _ := strings.Cut(name, ":")
	switch {
	case elsewhere[name] != "":
		r.bad(field, "want a custom resource; for %s there is %s", name, elsewhere[name])
	case prefix == "accelerator_type" || prefix == "node":
		r.bad(field, "want a custom resource; for this one there is ray.%s", map[string]string{"node": "node", "accelerator_type": "acceleratorType"}[prefix])
	case name == "" || strings.TrimSpace(name) != name || !isPrintable(name):
		r.bad(field, "want a resource's name of printable characters, without spaces around it")
	case amount < leastShare || amount > mostResource:
		r.bad(field, "want %v to %v, got %v", leastShare, mostResource, amount)
	}
}

// checkRayModels notes runtime environments of models that don't go with the platform's.
func checkRayModels(f *Fleet, r *report) {
	for i := range f.Models {
		if own := f.Models[i].Ray.RuntimeEnv; len(own) > 0 {
			all := maps.Clone(f.Platform.Ray.RuntimeEnv)
			if all == nil {
				all = map[string]any{}
			}
			maps.Copy(all, own)
			checkRuntimeEnv("models["+strconv.Itoa(i)+"].ray.runtimeEnv", nil, all, r)
		}
	}
}
