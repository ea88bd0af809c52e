package app

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
)

const simCount = 2 // simulated engines of `mobula up` without a model

// upFleet gives the fleet of the file, or an empty one, and the address of its router: on the loopback whatever
// the file says.
func upFleet(o upOptions) (*mobula.Fleet, string, error) {
	fleet := new(mobula.Default())
	if o.file == "" {
		fleet.Router.Log.Level = "warn" // the banner says what there is to know
	} else {
		loaded, err := mobula.LoadFile(o.file)
		if err != nil {
			return nil, "", fleetError(o.file, err)
		}
		fleet = loaded
	}
	port := strconv.Itoa(o.port)
	if o.port < 0 {
		_, listen, err := net.SplitHostPort(fleet.Router.Listen)
		if err != nil {
			return nil, "", fmt.Errorf("router.listen: %w", err)
		}
		port = listen
	}
	return fleet, net.JoinHostPort(loopback, port), nil
}

// withModels gives the fleet with the models that o asks for beside the file's, on a machine with so many GPUs.
func (o upOptions) withModels(f *mobula.Fleet, gpus int) (*mobula.Fleet, error) {
	fleet := *f
	if fleet.Platform.Static == nil {
		return nil, hinted(errors.New("platform.ray: mobula up runs engines on this machine only"),
			"mobula control -f FILE --router :8000 runs a Ray cluster's control plane and router")
	}
	static := *fleet.Platform.Static
	fleet.Platform.Static = &static
	static.Hosts = nil // this machine, whatever it is called
	if len(o.models) == 0 {
		if n := o.simulated(); n > 0 {
			m := mobula.NewModel(simDefaults().Model)
			m.Replicas, m.Engine.Kind = &mobula.Range{Min: n, Max: n}, "sim"
			fleet.Models = append(slices.Clone(fleet.Models), m)
		}
		return &fleet, nil
	}
	path, err := findVLLM(o.vllm)
	if err != nil {
		return nil, err
	}
	counts, err := share(len(o.models), gpus, engine.Devices(o.args), o.engines)
	if err != nil {
		return nil, err
	}
	fleet.Models = slices.Clone(fleet.Models)
	for i, source := range o.models {
		name, args := servedName(o.args)
		if name == "" || len(o.models) > 1 {
			name = source
		}
		m := mobula.NewModel(name)
		m.Source, m.Replicas = source, &mobula.Range{Min: counts[i], Max: counts[i]}
		m.Engine.Command, m.Engine.Args = []string{path}, args
		m.Engine.StartTimeout = max(mobula.Duration(o.startTimeout), m.Engine.StartTimeout)
		fleet.Models = append(fleet.Models, m)
	}
	return &fleet, nil
}

// simulated is how many simulated engines are asked for.
func (o upOptions) simulated() int {
	if o.quick() && o.engines == 0 {
		return simCount
	}
	return o.engines
}

// share says how many engines each model gets: with GPUs one for each group of `each` of them, without one for each
// model; n > 0 asks for another number. Models take turns.
func share(models, gpus, each, n int) ([]int, error) {
	room := models
	if gpus > 0 {
		if room = gpus / each; room == 0 {
			return nil, fmt.Errorf("an engine with these arguments takes %s, this machine has %d", count(each, "GPU"), gpus)
		}
		if n > room {
			return nil, hinted(fmt.Errorf("%s for %s", count(n, "engine"), count(gpus, "GPU")), "at most --engines %d", room)
		}
	}
	if n == 0 {
		n = room
	}
	if n < models {
		return nil, fmt.Errorf("%s need as many engines, there is room for %d", count(models, "model"), n)
	}
	counts := make([]int, models)
	for i := range n {
		counts[i%models]++
	}
	return counts, nil
}

// servedName takes the name under which vLLM serves a model out of its arguments.
func servedName(args []string) (name string, rest []string) {
	for i := 0; i < len(args); i++ {
		flag, value, joined := strings.Cut(args[i], "=")
		if strings.ReplaceAll(flag, "_", "-") != "--served-model-name" {
			rest = append(rest, args[i])
			continue
		}
		if !joined && i+1 < len(args) {
			i++
			value = args[i]
		}
		name = value
	}
	return name, rest
}

// findVLLM gives the path of the vllm command.
func findVLLM(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err == nil {
		return found, nil
	}
	if path != "vllm" {
		return "", fmt.Errorf("--vllm %s: %w", path, err)
	}
	return "", hinted(errors.New("--model needs vLLM, and there is no vllm command on PATH"),
		"install it with `pip install vllm` (or point to it with --vllm PATH); `mobula up` without --model runs simulated engines")
}

// checkEngineArgs refuses arguments that would put an engine where the router does not look.
func checkEngineArgs(args []string) error {
	for _, a := range args {
		flag, _, _ := strings.Cut(a, "=")
		switch strings.ReplaceAll(flag, "_", "-") {
		case "--host", "--port", "--uds":
			return usagef("%s is not for the engine: mobula up chooses where it listens", flag)
		case "--api-key":
			return usagef("%s is not for the engine: put the key into the environment variable VLLM_API_KEY, which the router reads too", flag)
		}
	}
	return nil
}

// fleetYAML writes a fleet as a file, which the control plane takes, and checks it on the way: two models of one name, say.
func fleetYAML(f *mobula.Fleet) ([]byte, error) {
	file, err := f.YAML()
	if err != nil {
		return nil, err
	}
	if _, err := mobula.Load(file, "the fleet of mobula up"); err != nil {
		return nil, err
	}
	return file, nil
}
