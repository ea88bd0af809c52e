package engine

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
)

// Serve describes one `vllm serve` to run on this machine.
type Serve struct {
	// Path of the vllm command. Default "vllm".
	Path string
	// Prefix, if not empty, is the command with what comes before "serve", in place of Path.
	Prefix []string
	// Model is a name on the model hub, or a folder.
	Model string
	// ServedName is the id that it lists at /v1/models. Default: Model.
	ServedName string
	// Host to bind. Default 127.0.0.1.
	Host string
	// Port to bind, 1 to 65535.
	Port int
	// Devices are the GPUs to use, as CUDA_VISIBLE_DEVICES names them. Nil leaves the choice to the environment.
	Devices []string
	// LoRAs and Sleep open the ways to load LoRAs, and to send the engine to sleep, while it runs.
	LoRAs, Sleep bool
	// Nodes is the number of hosts that the engine spans, 0 or 1 for one. Each runs this command with its own
	// NodeRank from 0; they meet at MasterAddr and MasterPort on the host of rank 0, which alone serves.
	Nodes, NodeRank int
	MasterAddr      string
	MasterPort      int
	// Args go to vLLM after ours, so that they win.
	Args []string
	// Env holds environment variables; they win over the inherited ones and ours, but not over Devices
	// and the order in which these are counted.
	Env map[string]string
}

// ForModel gives what a model's engine is started with, but for where: host, port, devices and nodes.
func ForModel(m mobula.Model) Serve {
	return Serve{
		Prefix:     m.Engine.Command,
		Model:      m.From(),
		ServedName: m.Name,
		LoRAs:      len(m.LoRAs) > 0,
		Sleep:      m.Scaling.Sleep,
		Args:       m.Engine.Args,
		Env:        m.Engine.Env,
	}
}

// Addr is the host:port that the engine will listen on.
func (s Serve) Addr() string {
	return net.JoinHostPort(s.host(), strconv.Itoa(s.Port))
}

// Place names where an engine runs, as its command line has it: values, or what stands for them until they are known.
type Place struct{ Host, Port, Master, MasterPort string }

// Command gives the argv and the environment of s. environ is what to inherit, as
// os.Environ gives it; what s decides replaces the same variable in it.
func (s Serve) Command(environ []string) (argv, env []string) {
	argv = s.argv(Place{Host: s.host(), Port: strconv.Itoa(s.Port), Master: s.MasterAddr, MasterPort: strconv.Itoa(s.MasterPort)})
	own := ""
	if ip := net.ParseIP(s.host()); ip != nil && !ip.IsUnspecified() {
		own = s.host()
	}
	env = overlay(overlay(environ, s.variables(own)), s.environment())
	if s.Devices != nil {
		// By default CUDA counts from the fastest device on, and everybody else by bus.
		env = overlay(env, []string{"CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=" + strings.Join(s.Devices, ",")})
	}
	return argv, env
}

// Template gives the argv of each of s.Nodes hosts (at least one), the one that serves first, and the variables that s adds
// to the environment. Host, Port, MasterAddr, MasterPort and Devices of s are left to whoever puts at's values in.
func (s Serve) Template(at Place) (argv [][]string, env map[string]string) {
	for rank := range max(1, s.Nodes) {
		s.NodeRank = rank
		argv = append(argv, s.argv(at))
	}
	env = map[string]string{}
	for _, kv := range s.variables(at.Host) {
		name, value, _ := strings.Cut(kv, "=")
		env[name] = value
	}
	maps.Copy(env, s.Env)
	return argv, env
}

func (s Serve) argv(at Place) []string {
	argv := slices.Clone(s.Prefix)
	if len(argv) == 0 {
		argv = []string{cmp.Or(s.Path, "vllm")}
	}
	argv = append(argv, "serve", s.Model, "--host", at.Host, "--port", at.Port)
	if s.ServedName != "" {
		argv = append(argv, "--served-model-name", s.ServedName)
	}
	// Without it usage says nothing of cached tokens, and the router can't check its predictions.
	argv = append(argv, "--enable-prompt-tokens-details")
	if s.LoRAs {
		argv = append(argv, "--enable-lora")
		if devicesOf(s.Args, "--data-parallel-size", "-dp") > 1 {
			// The default, one for each data-parallel rank, excludes loading LoRAs at run time.
			argv = append(argv, "--api-server-count", "1")
		}
	}
	if s.Sleep {
		argv = append(argv, "--enable-sleep-mode")
	}
	argv = append(argv, s.nodeArgs(at)...)
	return append(argv, s.Args...)
}

// variables are what s itself sets, but for the devices'. host is the address for the engine's own processes, empty for none.
func (s Serve) variables(host string) []string {
	set := []string{"PYTHONUNBUFFERED=1"} // the log is read line by line while the engine starts
	if host != "" {
		set = append(set, "VLLM_HOST_IP="+host) // else they talk to each other over the machine's outward address
	}
	if s.LoRAs {
		set = append(set, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
	}
	if s.Sleep {
		set = append(set, "VLLM_SERVER_DEV_MODE=1") // /sleep and /wake_up are only there with it
	}
	return set
}

// nodeArgs places one host's part in an engine of several.
func (s Serve) nodeArgs(at Place) []string {
	if s.Nodes <= 1 {
		return nil
	}
	args := []string{
		"--nnodes", strconv.Itoa(s.Nodes), "--node-rank", strconv.Itoa(s.NodeRank),
		"--master-addr", at.Master, "--master-port", at.MasterPort,
	}
	if s.NodeRank > 0 {
		args = append(args, "--headless")
	}
	return args
}

// environment gives Env as the environment has it, sorted.
func (s Serve) environment() []string {
	env := make([]string, 0, len(s.Env))
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		env = append(env, name+"="+s.Env[name])
	}
	return env
}

func (s Serve) host() string {
	if s.Host == "" {
		return "127.0.0.1"
	}
	return s.Host
}

// Spreads tells whether these vLLM arguments have vLLM spread its workers over a Ray cluster by itself.
func Spreads(args []string) bool {
	return lastValue(args, []string{"--distributed-executor-backend"}) == "ray"
}

// Devices is how many GPUs one engine with these vLLM arguments takes: the product of its
// tensor, pipeline and data parallel sizes, at least 1. What vLLM itself would refuse counts as 1.
func Devices(args []string) int {
	return devicesOf(args, "--tensor-parallel-size", "-tp") *
		devicesOf(args, "--pipeline-parallel-size", "-pp") *
		devicesOf(args, "--data-parallel-size", "-dp")
}

// devicesOf reads one parallel size, 1 when it is not given or makes no sense.
func devicesOf(args []string, names ...string) int {
	if v, err := strconv.Atoi(lastValue(args, names)); err == nil && v > 0 && v <= 1024 {
		return v
	}
	return 1
}

// lastValue finds the value of the last of these flags, written as "--flag v" or
// "--flag=v", with dashes or underscores as vLLM allows.
func lastValue(args, names []string) string {
	value := ""
	for i, a := range args {
		flag, v, joined := strings.Cut(a, "=")
		if !slices.Contains(names, strings.ReplaceAll(flag, "_", "-")) {
			continue
		}
		switch {
		case joined:
			value = v
		case i+1 < len(args):
			value = args[i+1]
		}
	}
	return value
}

// overlay gives environ with set in place of the same variables.
func overlay(environ, set []string) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(env, set...)
}
