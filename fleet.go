// Package mobula holds the nouns of the serving stack: the fleet file and the endpoints,
// models and roles that the router, the control plane and the platforms speak about.
package mobula

//go:generate go run ./cmd/fleetdoc

// APIVersion and Kind open every fleet file.
const (
	APIVersion = "mobula/v1"
	Kind       = "Fleet"
)

// Fleet is one serving fleet: what runs where, and how the router treats it. The same file
// serves every platform; only the platform section differs.
//
// The comments of the fields, here and in model.go, are the user's reference: cmd/fleetdoc turns them into
// docs/fleet.md and docs/fleet.schema.json. It knows these sentences: "Required.", "Always X.",
// "One of a, b or c.", "N to M.", "At least N.", "Default X." (a literal) and "Default: ..." (in words).
type Fleet struct {
	// Always mobula/v1. Required.
	APIVersion string `yaml:"apiVersion"`
	// Always Fleet. Required.
	Kind string `yaml:"kind"`
	// Name of the fleet, used in logs and metrics. Lower-case letters, digits and dashes, at most 63. Default default.
	Name string `yaml:"name"`
	// Where the engines are. Exactly one platform is set. Required.
	Platform Platform `yaml:"platform"`
	// Models of the fleet. Models that engines list and that are not named here are served too.
	Models []Model `yaml:"models"`
	// Services of others that take requests when the fleet's own engines can't, in the order in which they are asked.
	Providers []Provider `yaml:"providers"`
	// The router's data plane.
	Router Router `yaml:"router"`
	// The KV-cache network.
	KV KV `yaml:"kv"`
}

// Platform places or finds engines. Exactly one of its fields is set.
type Platform struct {
	// Engines on hosts without an orchestrator: ones that already run at known addresses, and ones that mobula agent runs.
	Static *Static `yaml:"static"`
	// A Ray cluster that already runs, without Kubernetes.
	Ray *Ray `yaml:"ray"`
	// A Kubernetes cluster.
	Kubernetes *Kubernetes `yaml:"kubernetes"`
	// A Kubernetes cluster with the KubeRay operator.
	KubeRay *KubeRay `yaml:"kuberay"`
}

// Static has engines that already run, hosts that may run models with replicas, or both.
type Static struct {
	// Engines that already run.
	Endpoints []StaticEndpoint `yaml:"endpoints"`
	// Names of the hosts that may run this fleet's models; * stands for any part of a name. A host has joined by mobula agent. Default: every host that has joined.
	Hosts []string `yaml:"hosts"`
	// A host that does not answer for so long is given up: its replicas are placed elsewhere. 1s to 24h. Default 1m.
	HostTimeout Duration `yaml:"hostTimeout"`
}

// StaticEndpoint is one engine that already runs.
type StaticEndpoint struct {
	// Scheme, host and port: http://vllm:8000, https://[::1]:8443. Single-label hosts and IPv6 work; without a port it is
	// 80 or 443. No path, query or user; no URL twice. Required.
	URL string `yaml:"url"`
	// Model ids to route here. Default: all that the engine lists at /v1/models.
	Models []string `yaml:"models"`
	// What the engine does when prefill and decode run apart. One of prefill, decode or both. Default: both.
	Role Role `yaml:"role"`
	// Free labels, shown with the endpoint.
	Labels map[string]string `yaml:"labels"`
	// File that holds the engine's API key (vllm serve --api-key), read again on reload. A relative path starts at the
	// working directory. Exclusive with apiKeyEnv.
	APIKeyFile string `yaml:"apiKeyFile"`
	// Environment variable that holds the engine's API key. Exclusive with apiKeyFile.
	APIKeyEnv string `yaml:"apiKeyEnv"`
	// Skips certificate verification for https. Default false.
	InsecureSkipVerify bool `yaml:"insecureSkipVerify"`
	// Takes the endpoint out of service: running requests finish, no new ones come. Default false.
	Drain bool `yaml:"drain"`
}

// Ray has engines placed on a Ray cluster that already runs, and takes in Ray Serve applications of it.
type Ray struct {
	// Address of the cluster's dashboard: http://ray-head:8265. No path, query or user. Required.
	Address string `yaml:"address"`
	// File that holds the cluster's token (RAY_AUTH_MODE=token), read again when it changes. Exclusive with tokenEnv.
	TokenFile string `yaml:"tokenFile"`
	// Environment variable that holds the cluster's token. Exclusive with tokenFile.
	TokenEnv string `yaml:"tokenEnv"`
	// File with the certificates (PEM) that an https dashboard is verified with. Default: the system's.
	CAFile string `yaml:"caFile"`
	// Skips certificate verification for https. Default false.
	InsecureSkipVerify bool `yaml:"insecureSkipVerify"`
	// Ray namespace of our actors. Nothing outside it is touched. Letters, digits, dots, dashes and underscores, at most 63. Default mobula.
	Namespace string `yaml:"namespace"`
	// Whose actors they are: a control plane looks after those of its owner only, and leaves others in the namespace alone. Name it when the control plane's data folder may be lost. Lower-case letters, digits and dashes, at most 20. Default: the control plane's own id, which is kept in its data folder.
	Owner string `yaml:"owner"`
	// How engines are run: actors, in one detached actor for each, which Ray itself starts again; jobs, in one Ray job for each, for clusters where detached actors are not allowed. One of actors or jobs. Default actors.
	Mode string `yaml:"mode"`
	// Python on the nodes that has Ray installed. Default: the one that Ray's own processes run with.
	Interpreter string `yaml:"interpreter"`
	// Ports that engines may listen on, as 30000-32767. Default: any that is free.
	Ports PortRange `yaml:"ports"`
	// Runtime environment of all engines, as Ray takes it: pip, uv, conda, env_vars, working_dir, py_modules, image_uri, container, config and others. A local folder is not uploaded: name a URI that the nodes can fetch. No secrets.
	RuntimeEnv map[string]any `yaml:"runtimeEnv"`
	// Tells that nodes come when they are asked for (Ray's autoscaler): what fits on no node then waits, in place of being refused. Default false.
	Autoscaling bool `yaml:"autoscaling"`
	// Time between two looks at the cluster, 100ms to 1m. Default 1s.
	Poll Duration `yaml:"poll"`
	// Ray Serve applications whose HTTP proxies take requests as engines do.
	Serve []RayServe `yaml:"serve"`
}

// RayServe is a Ray Serve application with an OpenAI API, such as one of ray.serve.llm:build_openai_app.
type RayServe struct {
	// Name of the application. Required.
	Name string `yaml:"name"`
	// Model ids to route to it. Default: all that it lists at /v1/models.
	Models []string `yaml:"models"`
	// The application as Ray Serve's configuration has it (import_path, args, route_prefix, runtime_env, deployments), without its name. It is deployed and kept so; applications of others stay as they are. Default: it runs already.
	Config map[string]any `yaml:"config"`
}

// Router sets up the data plane.
type Router struct {
	// Address to listen on, host:port; port 0 takes a free one. Default :8000 (mobula up: 127.0.0.1:8000).
	Listen string `yaml:"listen"`
	// How an engine is chosen.
	Policy Policy `yaml:"policy"`
	// Bounds on time.
	Timeouts Timeouts `yaml:"timeouts"`
	// What is tried again when an engine fails before its first byte.
	Retries Retries `yaml:"retries"`
	// How dead engines are found and recovered ones taken back.
	Health Health `yaml:"health"`
	// Bounds on size and number.
	Limits Limits `yaml:"limits"`
	// Logging.
	Log Log `yaml:"log"`
}

// Policy names how an engine is chosen among those that serve a model.
type Policy struct {
	// One of cost, roundrobin, random, p2c, leastload, session or prefix. Default cost.
	Name string `yaml:"name"`
	// Request header that carries a session id (policy session). Default X-Session-Id.
	SessionHeader string `yaml:"sessionHeader"`
	// Body field that carries a session id when the header is absent: a top-level string such as user. Default user.
	SessionField string `yaml:"sessionField"`
	// An engine may have this many times the mean load before session and prefix pass it over. 1 to 1000. Default 1.25.
	LoadFactor float64 `yaml:"loadFactor"`
}

// Timeouts bound every phase of a request. Each is more than 0 (lameduck: or 0) and at most 24h: there is no "none".
type Timeouts struct {
	// Connecting to an engine. Default 2s.
	Connect Duration `yaml:"connect"`
	// From the request sent to the first byte of a streamed answer. Default 60s.
	FirstByte Duration `yaml:"firstByte"`
	// From the request sent to the first byte of an answer that is not streamed, which an engine sends when all of it is generated. Default 10m.
	Plain Duration `yaml:"plain"`
	// Between two reads of an answer. Default 60s.
	Idle Duration `yaml:"idle"`
	// The whole request with its retries. Default 1h.
	Total Duration `yaml:"total"`
	// Reading a request's header from a client. Default 10s.
	ReadHeader Duration `yaml:"readHeader"`
	// Reading a request's body from a client. Default 60s.
	ReadBody Duration `yaml:"readBody"`
	// A client that takes nothing of its answer for so long is dropped. Default 60s.
	Write Duration `yaml:"write"`
	// An idle client connection is kept so long. Default 120s.
	KeepAlive Duration `yaml:"keepAlive"`
	// On stop, running streams may go on for so long. Default 30s.
	Drain Duration `yaml:"drain"`
	// On stop, /ready fails for so long before the listener closes, so that load balancers look away. Default 0s.
	Lameduck Duration `yaml:"lameduck"`
}

// Retries before the first byte go to the next endpoint of the pick.
type Retries struct {
	// Attempts after the first one. 0 to 10. Default 2.
	Attempts int `yaml:"attempts"`
	// Retries may be at most this share of recent requests (10 in 10 s are always allowed), so that an outage is not multiplied. What an engine that died leaves behind moves to others without counting. 0 to 1. Default 0.2.
	Budget float64 `yaml:"budget"`
	// A Retry-After of an engine longer than this is given to the client instead of being waited for, 0s to 24h. Default 2s.
	MaxRetryAfter Duration `yaml:"maxRetryAfter"`
}

// Health finds dead engines and takes recovered ones back.
type Health struct {
	// Time between two probes of an engine's /health, 10ms to 24h. Default 1s.
	Interval Duration `yaml:"interval"`
	// A probe that takes longer has failed, 10ms to 24h. Default 2s.
	Timeout Duration `yaml:"timeout"`
	// Failures in a row, of requests or probes, that eject an engine; a refused connection ejects at once. 1 to 1000. Default 3.
	EjectAfter int `yaml:"ejectAfter"`
	// Time between two readings of an engine's /v1/models, 10ms to 24h. Default 10s.
	ModelsInterval Duration `yaml:"modelsInterval"`
	// Time between two readings of an engine's /metrics, 10ms to 24h. Default 5s.
	MetricsInterval Duration `yaml:"metricsInterval"`
}

// Limits bound what one client or engine can make the router hold.
type Limits struct {
	// A request body, 1KiB to 4GiB. Default 64MiB.
	Body Size `yaml:"body"`
	// A request's header, 1KiB to 16MiB. Default 64KiB.
	Header Size `yaml:"header"`
	// Requests in flight over all; above it 503 with Retry-After. At least 1. Default 20000.
	InFlight int `yaml:"inFlight"`
	// Client connections over all; above it new ones are closed. At least 1. Default 20000.
	Connections int `yaml:"connections"`
	// Idle connections kept per engine. At least 1. Default 1024.
	IdleConnections int `yaml:"idleConnections"`
	// Nesting depth of a JSON body. 1 to 1000. Default 100.
	Depth int `yaml:"depth"`
}

// Log sets up logging to standard error.
type Log struct {
	// One of debug, info, warn or error. Nothing is logged per request at info. Default info.
	Level string `yaml:"level"`
	// One of text or json. Default text.
	Format string `yaml:"format"`
}

// KV sets up the KV-cache network.
type KV struct {
	// The router's index of prefixes that it has dispatched (policies cost and prefix).
	Index Index `yaml:"index"`
}

// Index bounds the prefix index.
type Index struct {
	// Memory of the index over all engines, 1MiB to 1024GiB. Default 64MiB.
	Memory Size `yaml:"memory"`
}
