package convert

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// routing converts what the router does.
func (s *stack) routing(router section) {
	if !router.flag("enableRouter", true) {
		return
	}
	logic, at := router.text("routingLogic"), router.at("routingLogic")
	session := router.text("sessionKey")
	health := &object{}
	if n := router.whole("engineScrapeInterval", 0); n > 0 {
		health.set("metricsInterval", strconv.Itoa(n)+"s")
	}
	rest := &object{}
	for _, f := range s.flags(router) {
		switch f.row.theirs {
		case "--routing-logic":
			logic, at = f.value, f.path
		case "--session-key":
			session = f.value
		case "--engine-stats-interval":
			health.set("metricsInterval", secondsOf(f.value))
		case "--static-backend-health-check-interval":
			health.set("interval", secondsOf(f.value))
		case "--static-backend-health-check-timeout-seconds", "--backend-health-check-timeout-seconds":
			health.set("timeout", secondsOf(f.value))
		case "--max-instance-failover-reroute-attempts":
			n, _ := strconv.Atoi(f.value)
			rest.child("retries").keep("attempts", min(n, 10))
		case "--log-level":
			levels := map[string]string{"critical": "error", "trace": "debug"}
			level := strings.ToLower(f.value)
			if l, ok := levels[level]; ok {
				level = l
			}
			rest.child("log").set("level", strings.Replace(level, "warning", "warn", 1))
		case "--log-format":
			rest.child("log").set("format", f.value)
		case "--static-aliases":
			s.aliases(f)
		}
	}
	fleet := s.out.child("fleet", "router")
	s.policy(fleet, router, logic, at, session)
	fleet.set("health", health)
	fleet.pairs = append(fleet.pairs, rest.pairs...)
	if empty(fleet) {
		s.out.drop("fleet")
	}
	s.discovery(router)
}

func secondsOf(text string) string {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return text + "s"
	}
	return text
}

// policy converts routingLogic.
func (s *stack) policy(fleet *object, router section, logic, at, session string) {
	const cost = "cost"
	name := ""
	switch logic {
	case "":
	case "roundrobin", "session":
		name = logic
	case "prefixaware":
		name = "prefix"
	case "kvaware":
		name = cost
		s.note(at, Dropped, "not there yet: %s", noKV)
	case "disaggregated_prefill", "disaggregated_prefill_orchestrated":
		name = cost
		s.note(at, Dropped, "not there yet: %s", noPD)
	default:
		s.bad(at, "want roundrobin, session, prefixaware, kvaware, disaggregated_prefill or disaggregated_prefill_orchestrated, got %s", shown(logic))
	}
	if name != "" && name != cost { // the default
		fleet.child("policy").set("name", name)
	}
	switch {
	case session == "":
		if logic == "session" {
			s.note(router.at("sessionKey"), Changed, "X-Session-Id when it is not set; their router doesn't start then")
		}
	case name == "session":
		fleet.child("policy").set("sessionHeader", session)
		fleet.child("policy").set("sessionField", session)
	default:
		s.note(router.at("sessionKey"), Dropped, "it is for routingLogic session")
	}
}

// discovery tells what becomes of engines that are not the chart's own.
func (s *stack) discovery(router section) {
	switch mode := router.text("serviceDiscovery"); {
	case mode == "static":
		s.note(router.at("serviceDiscovery"), Dropped, "this chart is for engines in the cluster: put the engines of staticBackends into platform.static.endpoints of a fleet file, and serve it with mobula router -f FILE (docs/bare-metal.md)")
	case given(router.raw("staticBackends")) || given(router.raw("staticModels")):
		s.note(router.at("staticBackends"), Dropped, "it is for serviceDiscovery static, there too")
	}
	if router.text("k8sServiceDiscoveryType") == "service-name" {
		s.note(router.at("k8sServiceDiscoveryType"), Changed, "Mobula's engines are found by their pods; engines of others can be found by Services: platform.kubernetes.discover[].by")
	}
}

// routerFlag is one flag of extraArgs with its value.
type routerFlag struct {
	row         *row
	path, value string
}

// flags reads extraArgs of their router, and notes what has a fate of its own.
func (s *stack) flags(router section) []routerFlag {
	var out []routerFlag
	known := newSpec(flagRows())
	args := router.texts("extraArgs")
	for i := 0; i < len(args); i++ {
		path := router.at("extraArgs") + "[" + strconv.Itoa(i) + "]"
		name, value, inOne := strings.Cut(args[i], "=")
		at := known.keys[name]
		if at == nil {
			s.note(path, Dropped, "%s is unknown to production-stack's router too%s", shown(clip(name)), known.like(name))
			for !inOne && i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
				i++
			}
			continue
		}
		if at.row.kind != flagged && !inOne && i+1 < len(args) {
			i++
			value = args[i]
		}
		if want := at.row.kind.wants(value); want != "" && at.row.kind != flagged {
			s.bad(path, "%s: want %s, got %s", name, want, shown(value))
			continue
		}
		if r := *at.row; r.fate != mapped {
			r.text, r.std = name+": "+r.text, ""
			s.tell(&r, path, true)
		}
		out = append(out, routerFlag{at.row, path, value})
	}
	return out
}

// aliases gives models the names that a flag has: alias:model,...
func (s *stack) aliases(f routerFlag) {
	for entry := range strings.SplitSeq(f.value, ",") {
		alias, name, _ := strings.Cut(strings.TrimSpace(entry), ":")
		i := slices.IndexFunc(s.models, func(m *model) bool { return m.name == name })
		if i < 0 {
			s.note(f.path, Dropped, "alias %s: no model %s is converted", shown(alias), shown(name))
			continue
		}
		entries := listOf(s.out.get("models"))
		s.models[i].aliases = append(s.models[i].aliases, alias)
		entries[i] = s.models[i].write()
	}
}

// router converts how the router is installed.
func (s *stack) router(router section) {
	out := s.out.child("router")
	defer func() {
		if empty(out) {
			s.out.drop("router")
		}
	}()
	image := s.out.child("image")
	image.set("pullPolicy", router.text("imagePullPolicy"))
	if image.get("pullPolicy") == "Always" {
		image.drop("pullPolicy") // their chart's default, for tags that move
	}
	image.set("pullSecrets", s.names(router.at("imagePullSecrets"), router.list("imagePullSecrets")))
	if empty(image) {
		s.out.drop("image")
	}
	if !router.flag("enableRouter", true) {
		out.keep("enabled", false)
		return
	}
	if n := router.whole("replicaCount", 1); n != 1 {
		out.keep("replicas", n)
	}
	router.copyTo(out, "resources", "resources")
	if router.has("resources") {
		out.say("resources", "theirs, of a router in Python: Mobula's needs less")
	}
	service := &object{}
	switch kind := router.text("serviceType"); kind {
	case "", "ClusterIP":
	case "NodePort", "LoadBalancer":
		service.set("type", kind)
	default:
		s.note(router.at("serviceType"), Dropped, "want ClusterIP, NodePort or LoadBalancer")
	}
	if n := router.whole("servicePort", 80); n != 80 {
		service.keep("port", n)
	}
	if n := router.whole("nodePort", 0); n > 0 && service.get("type") == "NodePort" {
		service.keep("nodePort", n)
	} else if n > 0 {
		s.note(router.at("nodePort"), Dropped, "it is for serviceType NodePort, there too")
	}
	service.set("annotations", router.labels("serviceAnnotations"))
	out.set("service", service)
	s.routerScale(out, router)
	s.ingress(out, router.sub("ingress"))
	s.routes(out, router)
	router.copyTo(out, "strategy", "strategy")
	out.set("env", s.environmentOf(router.at("env"), router.list("env"), "router-env"))
	router.copyTo(out, "extraVolumes", "extraVolumes", "extraVolumeMounts", "extraVolumeMounts")
	pod := &object{}
	metadata, spec := &object{}, &object{}
	router.copyTo(metadata, "podAnnotations", "annotations", "labels", "labels")
	router.copyTo(spec, "priorityClassName", "priorityClassName", "securityContext", "securityContext", "affinity", "affinity")
	if spec.get("affinity") == nil {
		spec.set("affinity", nodeAffinity(router.list("nodeSelectorTerms")))
	}
	pod.set("metadata", metadata)
	pod.set("spec", spec)
	out.set("pod", pod)
}

// names takes the names out of [{name: a}, ...].
func (s *stack) names(path string, refs []any) []string {
	var out []string
	for i, ref := range refs {
		m, _ := ref.(map[string]any)
		name := scalarText(m["name"])
		if name == "" {
			s.bad(path+"["+strconv.Itoa(i)+"]", "want a mapping with name")
		}
		out = append(out, name)
	}
	return out
}

func (s *stack) routerScale(out *object, router section) {
	if a := router.sub("autoscaling"); a.enabled() {
		to := out.child("autoscaling")
		to.keep("enabled", true)
		least := max(1, a.whole("minReplicas", 1))
		to.keep("min", least)
		to.keep("max", max(least, a.whole("maxReplicas", 3)))
		if n := a.whole("targetCPUUtilizationPercentage", 80); n != 80 {
			to.keep("cpu", max(1, n))
		}
		if a.text("minReplicas") == "0" {
			s.note(a.at("minReplicas"), Changed, "at least 1 router")
		}
	}
	if pdb := router.sub("pdb"); pdb.enabled() {
		if most := s.unavailable(pdb, router.whole("replicaCount", 1)); most != "" {
			out.child("podDisruptionBudget").set("maxUnavailable", most)
		}
	} else if _, off := pdb.raw("enabled").(bool); off {
		out.child("podDisruptionBudget").keep("enabled", false)
	}
}

// ingress converts ingress: ours has one path for all hosts.
func (s *stack) ingress(out *object, in section) {
	if !in.enabled() {
		return
	}
	to := out.child("ingress")
	to.keep("enabled", true)
	in.copyTo(to, "className", "className", "annotations", "annotations")
	var hosts []string
	path, kind := "", ""
	for i := range in.list("hosts") {
		host := in.item("hosts", i)
		if name := host.text("host"); name != "" {
			hosts = append(hosts, name)
		}
		for j := range host.list("paths") {
			p := host.item("paths", j)
			at, of := p.text("path"), p.text("pathType")
			switch {
			case path == "":
				path, kind = at, of
			case at != path || of != kind:
				s.note(p.path, Dropped, "one path for all hosts: %s; more of them are an Ingress of your own, in extraObjects", shown(path))
			}
		}
	}
	to.set("hosts", hosts)
	if path != "/" {
		to.set("path", path)
	}
	if kind != "Prefix" {
		to.set("pathType", kind)
	}
	to.set("tls", in.list("tls"))
}

// routes converts routes of the Gateway API: the first is the chart's, others are objects beside.
func (s *stack) routes(out *object, router section) {
	all := router.mapping("route")
	names := slices.Sorted(maps.Keys(all))
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	first := true
	for _, name := range names {
		path := router.at("route." + name)
		r, ok := all[name].(map[string]any)
		if !ok && all[name] != nil {
			s.bad(path, "want a mapping, got %s", shown(all[name]))
		}
		if r["enabled"] != true {
			continue
		}
		if kind := scalarText(r["kind"]); kind != "" && kind != "HTTPRoute" {
			s.note(path, Dropped, "a %s: write it into extraObjects", clip(kind))
			continue
		}
		for key := range r {
			if !slices.Contains([]string{"enabled", "apiVersion", "kind", "annotations", "labels", "hostnames", "parentRefs", "httpsRedirect", "matches", "filters", "additionalRules"}, key) {
				s.note(path+"."+key, Dropped, "unknown to production-stack's chart too")
			}
		}
		if first && r["httpsRedirect"] != true {
			first = false
			to := out.child("route")
			to.keep("enabled", true)
			for _, key := range []string{"parentRefs", "hostnames", "matches", "filters", "additionalRules", "annotations", "labels"} {
				to.set(key, r[key])
			}
			continue
		}
		s.objects = append(s.objects, routeObject(name, r, router.whole("servicePort", 80)))
	}
}

// rank puts main first.
func rank(name string) int {
	if name == "main" {
		return 0
	}
	return 1
}

// routeObject is an HTTPRoute beside the chart's.
func routeObject(name string, r map[string]any, port int) *object {
	o := &object{}
	o.set("apiVersion", "gateway.networking.k8s.io/v1")
	o.set("kind", "HTTPRoute")
	metadata := o.child("metadata")
	metadata.set("name", `{{ include "mobula.fullname" . }}-router-`+slug(name))
	metadata.set("labels", r["labels"])
	metadata.set("annotations", r["annotations"])
	spec := o.child("spec")
	spec.set("parentRefs", r["parentRefs"])
	spec.set("hostnames", r["hostnames"])
	rules := slices.Clone(listOf(r["additionalRules"]))
	rule := &object{}
	if r["httpsRedirect"] == true {
		filter := &object{}
		filter.set("type", "RequestRedirect")
		filter.child("requestRedirect").set("scheme", "https")
		filter.child("requestRedirect").keep("statusCode", 301)
		rule.set("filters", []any{filter})
	} else {
		backend := &object{}
		backend.set("name", `{{ include "mobula.fullname" . }}-router`)
		backend.keep("port", port)
		rule.set("backendRefs", []any{backend})
		rule.set("filters", r["filters"])
		rule.set("matches", r["matches"])
	}
	spec.set("rules", append(rules, rule))
	return o
}
