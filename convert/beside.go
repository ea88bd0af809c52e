package convert

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// loras gives LoRAs to their models.
func (s *stack) loras(all []any) {
	for i := range all {
		lora := s.root().item("loraAdapters", i)
		if !lora.flag("enabled", true) {
			s.note(lora.at("enabled"), Changed, "left out, as it is disabled there")
			continue
		}
		base := lora.text("baseModel")
		at := slices.IndexFunc(s.models, func(m *model) bool { return m.theirs == base || m.name == base || m.source == base })
		if at < 0 {
			s.note(lora.at("baseModel"), Dropped, "the LoRA is left out: no model %s is converted", shown(base))
			continue
		}
		m, source := s.models[at], lora.sub("adapterSource")
		if sourceOf(source) == "" {
			s.note(source.path, Dropped, "the LoRA is left out: nothing says where it is")
			continue
		}
		o := &object{}
		o.set("name", source.text("adapterName"))
		if o.get("name") == nil {
			o.set("name", lora.text("name"))
		}
		o.set("source", sourceOf(source))
		if n := lora.sub("loraAdapterDeploymentConfig").whole("replicas", 0); n > 0 {
			o.set("replicas", n)
		}
		m.loras = append(m.loras, o)
		if m.pods.get("huggingFaceToken") == nil {
			s.hubToken(m, source.at("credentials"), source.raw("credentials"))
		} else if given(source.raw("credentials")) {
			s.note(source.at("credentials"), Changed, "the model's own token is used: kubernetes.huggingFaceToken")
		}
	}
}

// sourceOf is where a LoRA comes from.
func sourceOf(source section) string {
	repository, path := source.text("repository"), source.text("adapterPath")
	if source.text("type") == "local" || repository == "" {
		return path
	}
	return repository
}

// cacheServer converts cacheserverSpec.
func (s *stack) cacheServer(cache section) {
	if !cache.enabled() {
		return
	}
	if !slices.ContainsFunc(s.models, func(m *model) bool { return m.lmcache }) {
		s.note(cache.path, Action, "no engine uses it: set lmcacheConfig.enabled of a model, there too")
	}
	out := s.out.child("cacheServer")
	out.keep("enabled", true)
	image, to := cache.sub("image"), out.child("image")
	to.set("repository", orElse(image.text("repository"), "lmcache/vllm-openai"))
	to.set("tag", orElse(image.text("tag"), "latest"))
	to.set("pullPolicy", cache.text("imagePullPolicy"))
	out.say("image", "LMCache's version must be the engines'")
	if names := s.names(cache.at("imagePullSecrets"), cache.list("imagePullSecrets")); len(names) > 0 {
		ours := s.out.child("image")
		have, _ := ours.get("pullSecrets").([]string)
		for _, name := range names {
			if !slices.Contains(have, name) {
				have = append(have, name)
			}
		}
		ours.set("pullSecrets", have)
	}
	if n := cache.whole("replicaCount", 1); n != 1 {
		out.keep("replicas", n)
	}
	cache.copyTo(out, "resources", "resources")
	metadata, spec, pod := &object{}, &object{}, &object{}
	cache.copyTo(metadata, "labels", "labels")
	for _, key := range []string{"tolerations", "runtimeClassName", "schedulerName", "securityContext", "priorityClassName", "nodeSelector", "affinity"} {
		cache.copyTo(spec, key, key)
	}
	pod.set("metadata", metadata)
	pod.set("spec", spec)
	out.set("pod", pod)
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// monitoring converts monitors and dashboards.
func (s *stack) monitoring(engines, router section) {
	for _, m := range []struct {
		from section
		to   string
	}{{router.sub("serviceMonitor"), "serviceMonitor"}, {engines.sub("serviceMonitor"), "podMonitor"}} {
		if !m.from.enabled() {
			continue
		}
		m.from.copyTo(
			s.out.child(m.to), "enabled", "enabled", "additionalLabels", "labels", "interval", "interval", "scrapeTimeout", "scrapeTimeout",
			"honorLabels", "honorLabels", "relabelings", "relabelings", "metricRelabelings", "metricRelabelings",
		)
	}
	if d := s.root().sub("grafanaDashboards"); d.enabled() {
		d.copyTo(s.out.child("dashboards"), "enabled", "enabled", "labels", "labels", "annotations", "annotations")
	}
}

// beside converts extraObjects and sub-charts.
func (s *stack) beside() {
	root := s.root()
	for i, object := range root.list("extraObjects") {
		path := root.at("extraObjects") + "[" + strconv.Itoa(i) + "]"
		o, ok := object.(map[string]any)
		if !ok {
			s.bad(path, "want an object of Kubernetes, got %s", shown(object))
			continue
		}
		if o["kind"] == "Secret" {
			s.note(path, Action, "secrets are not copied: kubectl apply it by itself")
			continue
		}
		if text, _ := json.Marshal(o); strings.Contains(string(text), "{{") { //nolint:errchkjson // it came from JSON
			s.note(path, Action, "it has a template: see that what it names is there in Mobula's chart")
		}
		s.objects = append(s.objects, o)
	}
	for _, chart := range []string{"kube-prometheus-stack", "prometheus-adapter"} {
		values := root.mapping(chart)
		if values["enabled"] != true {
			continue
		}
		s.out.child(chart).keep("enabled", true)
		s.note(chart, Action, "a sub-chart of the chart that `make chart` packs. From a checkout take this out, and install it beside (examples/kubernetes/README.md)")
		if len(values) > 1 {
			s.note(chart, Action, "its other values are not copied, as they may have passwords: put them below the same key")
		}
	}
}
