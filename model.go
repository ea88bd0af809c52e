package mobula

// Model is one model of the fleet. One with replicas is placed: the control plane makes engines for
// it exist. One without only names what engines of the platform serve.
type Model struct {
	// The id that engines list at /v1/models. No model twice. Required.
	Name string `yaml:"name"`
	// Other names that clients may use for it, each for one model only and no model's own name.
	Aliases []string `yaml:"aliases"`
	// Where the weights are: a name on the Hugging Face hub, or a folder on the hosts. Default: the model's name.
	Source string `yaml:"source"`
	// How many engines serve it: a number such as 2, or a range such as 1-4 that follows the load; 0-4 goes to zero when nobody asks. At most 1000. Default: none are placed.
	Replicas *Range `yaml:"replicas"`
	// How one engine is started.
	Engine Engine `yaml:"engine"`
	// What one engine takes.
	Resources Resources `yaml:"resources"`
	// What only a Ray cluster can give. Other platforms pass over it.
	Ray RayModel `yaml:"ray"`
	// How its pods are made on Kubernetes and KubeRay. Other platforms pass over it.
	Kubernetes KubernetesPods `yaml:"kubernetes"`
	// LoRAs of the model, loaded into its running engines.
	LoRAs []LoRA `yaml:"loras"`
	// When replicas are added and taken away, for a range of them.
	Scaling Scaling `yaml:"scaling"`
	// How engines are replaced when engine, source, resources, ray or kubernetes change.
	Rollout Rollout `yaml:"rollout"`
}

// Engine is how one engine of a model is started.
type Engine struct {
	// One of vllm or sim. A simulated engine needs no GPU and makes its text up. Default vllm.
	Kind string `yaml:"kind"`
	// The vllm command, with arguments that come before serve; of a simulated engine the mobula command. Default: vllm (or mobula for a simulated engine), as the host's PATH finds it; on hosts of mobula agent a simulated engine is mobula agent's own program.
	Command []string `yaml:"command"`
	// Arguments of vllm serve (or of mobula sim). Where it listens and the model's name are not for them.
	Args []string `yaml:"args"`
	// Environment variables. No secrets: the file is shown to whoever may read the fleet.
	Env map[string]string `yaml:"env"`
	// An engine that is not ready after so long has failed, 1s to 24h. Default 30m.
	StartTimeout Duration `yaml:"startTimeout"`
	// Time from SIGTERM to SIGKILL, 1s to 24h. Default 45s.
	StopTimeout Duration `yaml:"stopTimeout"`
}

// Resources are what one engine takes.
type Resources struct {
	// GPUs, over all of its hosts. 0 to 1024. Default: the product of the parallel sizes in the engine's arguments; 0 for a simulated engine.
	GPUs *int `yaml:"gpus"`
	// Memory that each of its GPUs must have. Ray does not know it: on a Ray cluster use ray.acceleratorType. Default 0.
	GPUMemory Size `yaml:"gpuMemory"`
	// Hosts that one engine spans, each with an equal share of the GPUs (vllm serve --nnodes). 1 to 64. Default 1.
	Hosts int `yaml:"hosts"`
	// Labels that its hosts must have; on a Ray cluster the labels of nodes.
	HostLabels map[string]string `yaml:"hostLabels"`
}

// RayModel says what one engine takes of a Ray cluster beside its resources.
type RayModel struct {
	// CPUs that the engine takes on each of its nodes. 0 to 1024. Default 1.
	CPUs float64 `yaml:"cpus"`
	// Part of one GPU that the engine takes, below 1, for engines that share GPUs (see vLLM's --gpu-memory-utilization). Default 0 (whole GPUs).
	GPUFraction float64 `yaml:"gpuFraction"`
	// Type of the GPUs, as Ray names it: H100, A100-80G. Default: any.
	AcceleratorType string `yaml:"acceleratorType"`
	// Custom resources that the engine takes on each of its nodes, 0.0001 at least.
	Resources map[string]float64 `yaml:"resources"`
	// IP address of the node that it has to run on, as Ray lists it. Default: any.
	Node string `yaml:"node"`
	// Runtime environment of this model's engines; its fields take the place of those in platform.ray.runtimeEnv.
	RuntimeEnv map[string]any `yaml:"runtimeEnv"`
}

// LoRA is one LoRA of a model.
type LoRA struct {
	// The id that clients ask for. No model's name. Required.
	Name string `yaml:"name"`
	// Where it is: a folder on the hosts, a name on the Hugging Face hub, or an https://, http:// or s3:// URL of a folder or an archive, which the host's agent downloads. Required.
	Source string `yaml:"source"`
	// How many of the model's engines load it; 0 for all. At least 0. Default 0.
	Replicas int `yaml:"replicas"`
}

// Scaling says when replicas are added and taken away.
type Scaling struct {
	// TTFT that requests should not exceed, 1ms to 24h. Default 2s.
	TTFT Duration `yaml:"ttft"`
	// ITL that requests should not exceed, 1ms to 24h. Default 100ms.
	ITL Duration `yaml:"itl"`
	// Too few replicas for so long: some are added, 0s to 24h. Default 10s.
	UpAfter Duration `yaml:"upAfter"`
	// Too many replicas for so long: some are taken away, 0s to 24h. Default 5m.
	DownAfter Duration `yaml:"downAfter"`
	// No request for so long: all are taken away, if the range begins with 0, 1s to 24h. Default 10m.
	ZeroAfter Duration `yaml:"zeroAfter"`
	// Engines that are not needed sleep (vLLM's sleep mode, level 1) in place of being stopped. They keep their GPUs and free the GPUs' memory; they wake up in seconds. Default false.
	Sleep bool `yaml:"sleep"`
	// Requests that may wait in each router while no engine runs; above it 503 with Retry-After. 0 to 100000. Default 1000.
	Held int `yaml:"held"`
	// A request waits at most so long for an engine, 1s to 24h. Default 10m.
	HeldFor Duration `yaml:"heldFor"`
}

// Rollout says how engines are replaced by ones of a new revision.
type Rollout struct {
	// Replicas above the wanted number while a new revision starts. 0 to 1000. Default 1.
	Surge int `yaml:"surge"`
	// Replicas that may be missing from the wanted number meanwhile. 0 to 1000. Default 0.
	Unavailable int `yaml:"unavailable"`
	// The requests of a replica that goes may run on for so long, 0s to 24h. Default 5m.
	Drain Duration `yaml:"drain"`
	// Back to the last good revision when the new one fails. Default true.
	Rollback bool `yaml:"rollback"`
}

// Provider is a service of others that serves some of the fleet's models.
type Provider struct {
	// Name of the provider, shown with its endpoint. Lower-case letters, digits and dashes, at most 63. Required.
	Name string `yaml:"name"`
	// What it speaks. One of openai, azure or anthropic. Default openai.
	Kind string `yaml:"kind"`
	// What an OpenAI client would have as base URL: https://api.openai.com/v1, https://api.anthropic.com/v1, https://NAME.openai.azure.com/openai/v1. Default: the public one of openai and anthropic; azure needs one.
	URL string `yaml:"url"`
	// The fleet's models that it serves. At least 1. Required.
	Models []ProviderModel `yaml:"models"`
	// File that holds the API key, read again on reload. Exclusive with apiKeyEnv.
	APIKeyFile string `yaml:"apiKeyFile"`
	// Environment variable that holds the API key. Exclusive with apiKeyFile.
	APIKeyEnv string `yaml:"apiKeyEnv"`
	// When it is asked: fallback, when no engine of the fleet can answer; spill, also when the fleet's engines are busy for spillAfter. One of fallback or spill. Default fallback.
	Use string `yaml:"use"`
	// Time to a request's first token, as the router estimates it, above which the request goes to the provider (use: spill), 0s to 24h. Default 10s.
	SpillAfter Duration `yaml:"spillAfter"`
	// Requests in flight to it at once; above it the next provider is asked. At least 1. Default 100.
	InFlight int `yaml:"inFlight"`
}

// ProviderModel is a model that a provider serves.
type ProviderModel struct {
	// The fleet's name for it. Required.
	Name string `yaml:"name"`
	// The provider's name for it (Azure: the deployment). Default: the same name.
	As string `yaml:"as"`
}

// Placed tells whether engines are to be made for the model.
func (m *Model) Placed() bool { return m.Replicas != nil }

// From gives where the weights are.
func (m *Model) From() string {
	if m.Source != "" {
		return m.Source
	}
	return m.Name
}
