package convert

import (
	"encoding/json"
	"slices"
	"strings"
)

// placement converts where pods run.
func (s *stack) placement(m *model, engines section) {
	spec := &object{}
	tolerations := engines.list("tolerations")
	if own := m.list("tolerations"); len(own) > 0 {
		if m.text("tolerationsPolicy") == "override" {
			tolerations = own
		} else {
			tolerations = slices.Concat(tolerations, own)
		}
	}
	spec.set("tolerations", tolerations)
	spec.set("nodeName", m.text("nodeName"))
	switch {
	case len(m.mapping("affinity")) > 0 && !m.ray: // their RayClusters pass over it
		spec.set("affinity", m.mapping("affinity"))
	case m.text("nodeName") == "":
		spec.set("affinity", nodeAffinity(m.list("nodeSelectorTerms")))
	}
	spec.set("schedulerName", engines.text("schedulerName"))
	spec.set("securityContext", engines.mapping("securityContext"))
	if len(spec.pairs) > 0 {
		into := m.pod.child("spec")
		into.pairs = append(into.pairs, spec.pairs...)
	}
	metadata := &object{}
	metadata.set("annotations", m.labels("podAnnotations"))
	metadata.set("labels", m.labels("podLabels"))
	if len(metadata.pairs) > 0 {
		m.pod.pairs = slices.Insert(m.pod.pairs, 0, pair{key: "metadata", value: metadata})
	}
}

// nodeAffinity is what their chart makes of terms.
func nodeAffinity(terms []any) *object {
	o := &object{}
	if len(terms) > 0 {
		o.child("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution").set("nodeSelectorTerms", terms)
	}
	return o
}

// containers converts what belongs to the engine's container, and what runs before it.
func (s *stack) containers(m *model, engines section) {
	if security := engines.mapping("containerSecurityContext"); !within(security, standard(`{"runAsNonRoot":false}`)) {
		m.container.set("securityContext", security)
	}
	from, path := m.mapping("initContainer"), m.at("initContainer")
	if head := m.sub("raySpec").sub("headNode"); m.ray && len(from) == 0 {
		from, path = head.mapping("initContainer"), head.at("initContainer")
	} else if m.ray && len(head.mapping("initContainer")) > 0 {
		s.note(head.at("initContainer"), Dropped, "the head is made as the workers are: modelSpec[].initContainer holds for all")
	}
	if len(from) > 0 {
		s.initContainer(m, engines, path, from)
	}
}

func (s *stack) initContainer(m *model, engines section, path string, from map[string]any) {
	text, _ := json.Marshal([]any{from["command"], from["args"]}) //nolint:errchkjson // it came from JSON
	if strings.Contains(string(text), "cache-server-service") {
		s.note(path, Changed, "it waits for their cache server: LMCache connects by itself once the server is there")
		return
	}
	o := &object{}
	for _, key := range []string{"name", "image", "command", "args"} {
		o.set(key, from[key])
	}
	if name := m.labels("envFromSecret")["name"]; given(name) {
		o.set("envFrom", []any{map[string]any{"secretRef": map[string]any{"name": name}}})
	}
	for _, name := range []string{"RELEASE_NAME", "LMCACHE_SERVER_SERVICE_PORT"} {
		if strings.Contains(string(text), name) {
			s.note(path, Action, "their chart sets %s for it, Mobula's doesn't: put what it stands for in its place", name)
		}
	}
	if env := listOf(from["env"]); len(env) > 0 {
		o.set("env", s.environmentOf(path+".env", env, slug(m.theirs)+"-env"))
	}
	o.set("resources", from["resources"])
	mounts := renamed(listOf(from["extraVolumeMounts"]))
	if from["mountPvcStorage"] == true && m.has("pvcStorage") {
		mount := &object{}
		mount.set("name", "data")
		mount.set("mountPath", "/data")
		mounts = append([]any{mount}, mounts...)
	}
	o.set("volumeMounts", mounts)
	if security := engines.mapping("containerSecurityContext"); !within(security, standard(`{"runAsNonRoot":false}`)) {
		o.set("securityContext", security)
	}
	m.pod.child("spec").set("initContainers", []any{o})
}
