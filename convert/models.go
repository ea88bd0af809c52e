package convert

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
)

// model is one model of ours that is being put together.
type model struct {
	section
	// name is what clients ask for, theirs what loraAdapters call it.
	name, theirs string
	source       string
	aliases      []string
	// low and high are the ends of replicas; scaled tells that it is a range, at is the path that says so.
	low, high int
	scaled    bool
	ray, pd   bool
	lmcache   bool

	command, args []string
	env           *object
	startTimeout  string
	resources     *object
	pods          *object
	pod           *object
	container     *object
	loras         []any
	scaling       *object
	rollout       *object
	keda          *object
}

// engines converts servingEngineSpec.
func (s *stack) engines(engines section) {
	if !engines.flag("enableEngine", true) {
		return
	}
	for i := range engines.list("modelSpec") {
		item := engines.item("modelSpec", i)
		if !item.flag("enabled", true) {
			s.note(item.at("enabled"), Changed, "left out, as it is disabled there")
			continue
		}
		s.add(s.model(engines, item))
	}
}

// add takes a model in. Mobula makes all engines of a model alike, so that a second entry for it adds to the first.
func (s *stack) add(m *model) {
	i := slices.IndexFunc(s.models, func(other *model) bool { return other.name == m.name })
	if i < 0 {
		s.models = append(s.models, m)
		return
	}
	first := s.models[i]
	first.low, first.high, first.scaled = first.low+m.low, first.high+m.high, first.scaled || m.scaled
	s.note(m.path, Changed, "it is %s once more, as %s is: its replicas are added there, and what else it says is left out; for engines of another kind give it a name of its own", m.name, first.path)
}

// model converts an entry of modelSpec.
func (s *stack) model(engines, item section) *model {
	m := &model{
		section: item, theirs: item.text("name"), source: item.text("modelURL"),
		env: &object{}, resources: &object{}, pods: &object{}, pod: &object{}, container: &object{},
		scaling: &object{}, rollout: &object{}, keda: &object{},
	}
	m.container.set("name", "engine")
	m.name = m.source
	m.ray = item.sub("raySpec").enabled()
	m.pd = item.sub("lmcacheConfig").enabled() && item.sub("lmcacheConfig").flag("enablePD", false)
	if m.source == "" {
		s.bad(item.at("modelURL"), "want the model, such as facebook/opt-125m, got nothing")
	}
	s.image(m, engines)
	s.vllm(m)
	s.lmcache(m)
	s.environment(m, engines)
	s.asks(m)
	s.scale(m)
	s.overRay(m)
	s.storage(m)
	s.placement(m, engines)
	s.containers(m, engines)
	s.start(m, engines)
	s.budget(m)
	return m
}

func (s *stack) image(m *model, engines section) {
	if repository := m.text("repository"); repository != "" {
		image := repository
		if tag := m.text("tag"); tag != "" {
			image += ":" + tag
		}
		m.pods.set("image", image)
		if repository == "lmcache/vllm-openai" && !m.ray {
			m.command = []string{"/opt/venv/bin/vllm"}
		}
	}
	m.pods.set("pullPolicy", engines.text("imagePullPolicy"))
	if name := m.text("imagePullSecret"); name != "" {
		m.pods.set("pullSecrets", []string{name})
	}
	runtime := engines.text("runtimeClassName")
	comment := ""
	if !engines.has("runtimeClassName") {
		runtime, comment = "nvidia", "their chart's default; leave it out where the cluster has no such RuntimeClass"
	}
	if m.has("runtimeClassName") {
		runtime, comment = m.text("runtimeClassName"), ""
	}
	m.pods.set("runtimeClass", runtime)
	m.pods.say("runtimeClass", comment)
	m.pods.set("serviceAccount", m.text("serviceAccountName"))
	m.pods.set("priorityClass", m.text("priorityClassName"))
}

// scale converts replicaCount and keda.
func (s *stack) scale(m *model) {
	m.low = m.whole("replicaCount", 1)
	m.high = m.low
	keda := m.sub("keda")
	if !keda.enabled() {
		return
	}
	if m.ray {
		s.note(keda.path, Dropped, "with raySpec there is nothing that it scales, there either: replicas can be a range here")
		return
	}
	low, high := keda.whole("minReplicaCount", 0), keda.whole("maxReplicaCount", 100) // KEDA's defaults
	if idle := keda.at("idleReplicaCount"); keda.text("idleReplicaCount") == "0" && low > 0 {
		low = 0
		s.note(idle, Changed, "0 is the least number of replicas: one comes with the first request, not %s", keda.text("minReplicaCount"))
	} else if keda.whole("idleReplicaCount", 0) > 0 {
		s.note(idle, Dropped, "the least number of replicas is %d", low)
	}
	high = max(low, high, 1)
	if triggers := triggersOf(keda); len(triggers) > 0 {
		s.withKEDA(m, keda, low, high, triggers)
		return
	}
	m.low, m.high, m.scaled = low, high, true
	s.note(keda.path, Changed, "Mobula's own autoscaler follows the load: it needs neither KEDA nor Prometheus; keda.models of the chart is for KEDA")
	for _, key := range []string{"fallback", "advanced"} {
		if given(keda.raw(key)) {
			s.note(keda.at(key), Dropped, "Mobula's own autoscaler asks no metrics of others")
		}
	}
	if seconds := keda.whole("cooldownPeriod", 0); seconds > 0 && low == 0 {
		m.scaling.set("zeroAfter", mobula.Duration(time.Duration(min(seconds, 86400))*time.Second).String())
	}
}

// triggersOf gives the triggers of KEDA; their schema wants one in place of a list.
func triggersOf(keda section) []any {
	if one := keda.mapping("triggers"); len(one) > 0 {
		return []any{one}
	}
	return keda.list("triggers")
}

func (s *stack) withKEDA(m *model, keda section, low, high int, triggers []any) {
	k := m.keda
	k.set("name", m.name)
	k.keep("min", low)
	k.keep("max", high)
	keda.copyTo(k, "pollingInterval", "pollingInterval", "cooldownPeriod", "cooldownPeriod")
	k.set("triggers", triggers)
	keda.copyTo(k, "fallback", "fallback", "advanced", "advanced")
	m.low = min(max(m.low, low, 1), high)
	m.high = m.low
	s.note(keda.at("triggers"), Action, "see that the queries ask for Mobula's pods and metrics (docs/metrics.md): labels of theirs, such as job and deployment, are no longer there")
}

// budget converts pdb.
func (s *stack) budget(m *model) {
	if pdb := m.sub("pdb"); pdb.enabled() {
		m.pods.set("maxUnavailable", s.unavailable(pdb, m.low))
	}
}

// unavailable gives the pods that a disruption may take: theirs may say how many have to stay.
func (s *stack) unavailable(pdb section, replicas int) string {
	if most := pdb.text("maxUnavailable"); given(pdb.raw("maxUnavailable")) {
		return most
	}
	least := pdb.text("minAvailable")
	if percent, ok := strings.CutSuffix(least, "%"); ok {
		if n, err := strconv.Atoi(percent); err == nil && n >= 0 && n <= 100 {
			return strconv.Itoa(100-n) + "%"
		}
	}
	n, err := strconv.Atoi(least)
	if err != nil {
		return ""
	}
	s.note(pdb.at("minAvailable"), Changed, "maxUnavailable is what is left of %d replicas", replicas)
	return strconv.Itoa(max(0, replicas-n))
}

// autoscaling puts keda together.
func (s *stack) autoscaling() {
	var all []any
	for _, m := range s.models {
		if !empty(m.keda) {
			all = append(all, m.keda)
		}
	}
	if len(all) > 0 {
		s.out.child("keda").keep("enabled", true)
		s.out.child("keda").set("models", all)
	}
}

// writeModels puts models, and what all of them have alike into the platform.
func (s *stack) writeModels() {
	pods := s.common()
	all := make([]any, 0, len(s.models))
	kuberay := false
	for _, m := range s.models {
		all = append(all, m.write())
		kuberay = kuberay || m.ray
	}
	s.out.set("models", all)
	at := s.out.child("platform")
	if kuberay {
		at = at.child("kuberay")
		if slices.ContainsFunc(s.models, func(m *model) bool { return m.ray && m.resources.get("headless") != nil }) {
			at.keep("headWithoutGPUs", true)
		}
	}
	if len(pods.pairs) > 0 {
		at.child("kubernetes").set("pods", pods)
	}
	if platform := s.out.child("platform"); len(platform.pairs) == 0 {
		s.out.drop("platform")
	}
}

// common takes what all of several models say of their pods away from them.
func (s *stack) common() *object {
	pods := &object{}
	for _, m := range s.models {
		m.finishPod()
	}
	if len(s.models) < 2 {
		return pods
	}
	for _, p := range slices.Clone(s.models[0].pods.pairs) {
		same := slices.Contains([]string{"image", "pullPolicy", "pullSecrets", "runtimeClass", "priorityClass", "serviceAccount", "huggingFaceToken", "pod"}, p.key)
		same = same && !slices.ContainsFunc(s.models, func(m *model) bool {
			other := &object{}
			other.set(p.key, m.pods.get(p.key))
			return render(other) != render(&object{[]pair{{key: p.key, value: p.value}}})
		})
		if !same {
			continue
		}
		pods.pairs = append(pods.pairs, p)
		for _, m := range s.models {
			m.pods.drop(p.key)
		}
	}
	return pods
}

func render(o *object) string {
	text, _ := write("", o)
	return string(text)
}

// finishPod puts the part of a pod template together.
func (m *model) finishPod() {
	if len(m.container.pairs) > 1 {
		m.pod.child("spec").set("containers", []any{m.container})
	}
	m.pods.set("pod", m.pod)
}

// write gives the entry of models.
func (m *model) write() *object {
	o := &object{}
	o.set("name", m.name)
	if m.theirs != "" && m.theirs != m.name {
		o.say("name", "theirs: "+strings.Join(strings.Fields(m.theirs), " "))
	}
	o.set("aliases", m.aliases)
	if m.source != m.name {
		o.set("source", m.source)
	}
	switch {
	case m.scaled && m.low != m.high:
		o.set("replicas", strconv.Itoa(m.low)+"-"+strconv.Itoa(m.high))
	default:
		o.keep("replicas", m.low)
	}
	engine := &object{}
	engine.set("command", m.command)
	engine.set("args", m.args)
	engine.set("env", m.env)
	engine.set("startTimeout", m.startTimeout)
	o.set("engine", engine)
	m.resources.drop("headless")
	o.set("resources", m.resources)
	o.set("kubernetes", m.pods)
	o.set("loras", m.loras)
	o.set("scaling", m.scaling)
	o.set("rollout", m.rollout)
	return o
}
