package engine

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

// Serve describes one `vllm serve` to run on this machine.
type Serve struct {
	// Path of the vllm command. Default "vllm".
	Path string
	// Model is a name on the model hub, or a folder.
	Model string
	// Host to bind. Default 127.0.0.1.
	Host string
	// Port to bind, 1 to 65535.
	Port int
	// Devices are the GPUs to use, as CUDA_VISIBLE_DEVICES names them. Nil leaves the choice to the environment.
	Devices []string
	// Args go to vLLM after ours, so that they win.
	Args []string
}

// Addr is the host:port that the engine will listen on.
func (s Serve) Addr() string {
	return net.JoinHostPort(s.host(), strconv.Itoa(s.Port))
}

// Command gives the argv and the environment of s. environ is what to inherit, as
// os.Environ gives it; what s decides replaces the same variable in it.
func (s Serve) Command(environ []string) (argv, env []string) {
	path := s.Path
	if path == "" {
		path = "vllm"
	}
	argv = []string{path, "serve", s.Model, "--host", s.host(), "--port", strconv.Itoa(s.Port)}
	// Without it usage says nothing of cached tokens, and the router can't check its predictions.
	argv = append(argv, "--enable-prompt-tokens-details")
	argv = append(argv, s.Args...)

	// The log is read line by line while the engine starts.
	set := []string{"PYTHONUNBUFFERED=1"}
	if loopback(s.host()) {
		// Else the engine's own processes talk to each other over the machine's outward address.
		set = append(set, "VLLM_HOST_IP="+s.host())
	}
	if s.Devices != nil {
		set = append(set, "CUDA_VISIBLE_DEVICES="+strings.Join(s.Devices, ","))
	}
	return argv, overlay(environ, set)
}

func (s Serve) host() string {
	if s.Host == "" {
		return "127.0.0.1"
	}
	return s.Host
}

// Devices is how many GPUs one engine with these vLLM arguments takes: the product of its
// tensor, pipeline and data parallel sizes, at least 1. What vLLM itself would refuse counts as 1.
func Devices(args []string) int {
	n := 1
	for _, names := range [][]string{
		{"--tensor-parallel-size", "-tp"},
		{"--pipeline-parallel-size", "-pp"},
		{"--data-parallel-size", "-dp"},
	} {
		if v, err := strconv.Atoi(lastValue(args, names)); err == nil && v > 0 && v <= 1024 {
			n *= v
		}
	}
	return n
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

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// overlay gives environ with set in place of the same variables.
func overlay(environ, set []string) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(env, set...)
}
