package convert

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
)

// vllm converts what becomes arguments of vllm serve.
func (s *stack) vllm(m *model) {
	add := func(flag, value string) {
		if value != "" {
			m.args = append(m.args, flag, value)
		}
	}
	config := m.sub("vllmConfig")
	for _, a := range []struct{ key, flag string }{
		{"maxModelLen", "--max-model-len"},
		{"dtype", "--dtype"},
		{"tensorParallelSize", "--tensor-parallel-size"},
		{"pipelineParallelSize", "--pipeline-parallel-size"},
		{"maxNumSeqs", "--max-num-seqs"},
		{"gpuMemoryUtilization", "--gpu-memory-utilization"},
		{"maxLoras", "--max-loras"},
		{"runner", "--runner"},
		{"convert", "--convert"},
	} {
		if a.key == "pipelineParallelSize" && !m.ray {
			if config.whole(a.key, 0) > 1 {
				s.note(config.at(a.key), Dropped, "it is for raySpec only, there too: set resources.hosts and --pipeline-parallel-size for an engine over several hosts")
			}
			continue
		}
		add(a.flag, config.text(a.key))
	}
	if config.has("enableChunkedPrefill") {
		m.args = append(m.args, map[bool]string{true: "--enable-chunked-prefill", false: "--no-enable-chunked-prefill"}[config.flag("enableChunkedPrefill", false)])
	}
	switch {
	case config.has("enablePrefixCaching") && !config.flag("enablePrefixCaching", false):
		m.args = append(m.args, "--no-enable-prefix-caching")
	case !config.has("enablePrefixCaching") && len(config.values) > 0 && !m.ray:
		s.note(config.at("enablePrefixCaching"), Changed, "their chart switches prefix caching off when it is not set; here vLLM's default, on, holds: routing goes by it")
	}
	if config.text("v0") == "1" || config.text("v1") == "0" {
		s.note(config.path, Dropped, "V0 of vLLM is gone from vLLM itself")
	}
	if m.flag("enableLoRA", false) {
		m.args = append(m.args, "--enable-lora")
	}
	if m.flag("enableTool", false) {
		m.args = append(m.args, "--enable-auto-tool-choice")
	}
	add("--tool-call-parser", m.text("toolCallParser"))
	add("--revision", m.text("modelRevision"))
	s.chatTemplate(m)
	s.extraArgs(m, config)
	if dir := config.text("prometheusMultiprocDir"); dir != "" {
		m.env.keep("PROMETHEUS_MULTIPROC_DIR", dir)
	}
}

// extraArgs takes over arguments but those that are Mobula's.
func (s *stack) extraArgs(m *model, config section) {
	args := config.texts("extraArgs")
	for i := 0; i < len(args); i++ {
		path := config.at("extraArgs") + "[" + strconv.Itoa(i) + "]"
		flag, value, inOne := strings.Cut(args[i], "=")
		var values []string
		if inOne {
			values = []string{value}
		}
		ours := slices.Contains(flagsOfMobula(), strings.ReplaceAll(flag, "_", "-"))
		for ours && !inOne && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			values = append(values, args[i])
		}
		switch strings.ReplaceAll(flag, "_", "-") {
		case "--served-model-name":
			if len(values) > 0 {
				m.name, m.aliases = values[0], values[1:]
			}
		case "--api-key":
			s.secretVariable(m.container, path, "VLLM_API_KEY", "vllm-api-key", "key")
			s.note(path, Action, "the router and the control plane need the key too: servingEngineSpec.vllmApiKey is the place for it, in the values that are converted")
		case "--hf-token":
			s.hubToken(m, path, strings.Join(values, " "))
		case "--enable-sleep-mode":
			m.args = append(m.args, args[i])
			s.note(path, Changed, "models[].scaling.sleep has the autoscaler put engines to sleep; clients can't, /sleep is not passed on")
		default:
			if ours {
				s.note(path, Dropped, "%s is not for the engine: Mobula decides it", clip(flag))
				continue
			}
			m.args = append(m.args, args[i])
		}
	}
}

// flagsOfMobula are arguments of vllm serve that are not taken over as they are.
func flagsOfMobula() []string {
	return []string{
		"--host", "--port", "--uds", "--served-model-name", "--model", "--nnodes", "--node-rank", "--master-addr", "--master-port", "--headless",
		"--api-key", "--hf-token",
	}
}

// chatTemplate mounts what their chart has at /templates.
func (s *stack) chatTemplate(m *model) {
	const folder, volume = "/templates", "chat-template"
	file := m.text("chatTemplate")
	if file == "" {
		return
	}
	m.args = append(m.args, "--chat-template", folder+"/"+file)
	from := &object{}
	from.set("name", volume)
	if content := m.text("chatTemplateConfigMap"); content != "" {
		name := slug(m.theirs) + "-chat-template"
		from.child("configMap").set("name", name)
		o := &object{}
		o.set("apiVersion", "v1")
		o.set("kind", "ConfigMap")
		o.child("metadata").set("name", name)
		o.child("data").set(file, strings.ReplaceAll(content, "{{", "{{`{{`}}")) // text in extraObjects is a template
		s.objects = append(s.objects, o)
	} else {
		from.child("persistentVolumeClaim").set("claimName", "vllm-templates-pvc")
	}
	m.volume(from, folder)
}

// volume adds a volume and its mount.
func (m *model) volume(volume *object, path string) {
	spec := m.pod.child("spec")
	volumes, _ := spec.get("volumes").([]any)
	spec.keep("volumes", append(volumes, volume))
	mount := &object{}
	mount.set("name", volume.get("name"))
	mount.set("mountPath", path)
	mounts, _ := m.container.get("volumeMounts").([]any)
	m.container.keep("volumeMounts", append(mounts, mount))
}

// lmcache converts lmcacheConfig.
func (s *stack) lmcache(m *model) {
	c := m.sub("lmcacheConfig")
	if !c.enabled() {
		return
	}
	m.lmcache = true
	m.args = append(m.args, "--kv-transfer-config", `{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}`)
	set := func(name, value string) {
		if value != "" {
			m.env.keep(name, value)
		}
	}
	set("LMCACHE_USE_EXPERIMENTAL", "True") // releases before 0.3 ask for it
	set("VLLM_RPC_TIMEOUT", "1000000")
	set("LMCACHE_LOG_LEVEL", c.text("logLevel"))
	if size, err := strconv.ParseFloat(c.text("cpuOffloadingBufferSize"), 64); err == nil && size > 0 {
		set("LMCACHE_LOCAL_CPU", "True")
		set("LMCACHE_MAX_LOCAL_CPU_SIZE", c.text("cpuOffloadingBufferSize"))
	}
	if disk := c.text("diskOffloadingBufferSize"); disk != "" && disk != "0" {
		set("LMCACHE_MAX_LOCAL_DISK_SIZE", disk)
		s.note(c.at("diskOffloadingBufferSize"), Action, "LMCache wants a folder too, which their chart doesn't set: LMCACHE_LOCAL_DISK, such as file:///data/lmcache")
	}
	if !m.pd {
		set("CUDA_VISIBLE_DEVICES", c.text("cudaVisibleDevices"))
	} else if c.has("cudaVisibleDevices") {
		s.note(c.at("cudaVisibleDevices"), Changed, "it was for engines that share a pod's devices: each has GPUs of its own, resources.gpus")
	}
	if cache := s.root().sub("cacheserverSpec"); cache.enabled() {
		set("LMCACHE_REMOTE_SERDE", cache.text("serde"))
	}
}

// start converts what says how long an engine may take, and how engines are replaced.
func (s *stack) start(m *model, engines section) {
	probe := engines.mapping("startupProbe")
	number := func(key string, otherwise int) int {
		if n, err := strconv.Atoi(scalarText(probe[key])); err == nil {
			return n
		}
		return otherwise
	}
	least := time.Duration(number("initialDelaySeconds", 15)+number("periodSeconds", 10)*number("failureThreshold", 60)) * time.Second
	if least > 30*time.Minute {
		m.startTimeout = mobula.Duration(min(least, 24*time.Hour)).String()
	}
	strategy := engines.mapping("strategy")
	if len(strategy) == 0 {
		return
	}
	if strategy["type"] == "Recreate" {
		m.rollout.keep("surge", 0)
		m.rollout.keep("unavailable", 1)
		s.note(engines.at("strategy"), Changed, "engines are replaced one after the other, not all at once")
		return
	}
	rolling, _ := strategy["rollingUpdate"].(map[string]any)
	for _, pair := range [][2]string{{"maxSurge", "surge"}, {"maxUnavailable", "unavailable"}} {
		if n, err := strconv.Atoi(scalarText(rolling[pair[0]])); err == nil {
			m.rollout.keep(pair[1], n)
		} else if rolling[pair[0]] != nil {
			s.note(engines.at("strategy.rollingUpdate."+pair[0]), Changed, "want a number of engines: models[].rollout.%s has its default", pair[1])
		}
	}
}
