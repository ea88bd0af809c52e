package app

import (
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// upOptions are the flags of `mobula up`.
type upOptions struct {
	file         string
	models       []string
	vllm         string
	port         int // -1 for the fleet file's
	engines      int // 0 for as many as fit
	startTimeout time.Duration
	args         []string // for vLLM
}

// quick tells that there is no fleet file: what does not start is then the user's to hear of at once.
func (o upOptions) quick() bool { return o.file == "" }

func (a *app) upCommand() *cobra.Command {
	o := upOptions{}
	cmd := &cobra.Command{
		Use:                   "up [-f FILE] [--model NAME]... [-- VLLM ARGUMENTS]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a whole fleet on this machine",
		Long: `Runs everything on this machine, reachable from it only, until Ctrl-C: a router, engines, and a control plane that
keeps them running (mobula get, top, scale and their like speak to it).

Without a model or a file: two simulated engines, which need no GPU and make their text up.
With --model: real vLLM engines, one for each GPU, or one on the CPU when there is none.
With -f: the fleet of the file, with the models that have replicas on this machine; --model adds more of them.
The file is applied again when it changes.`,
		Example: `  # Router and two simulated engines
  mobula up

  # vLLM on every GPU of this machine
  mobula up --model Qwen/Qwen2.5-0.5B-Instruct

  # Arguments after -- are vLLM's
  mobula up --model Qwen/Qwen2.5-7B-Instruct -- --tensor-parallel-size 2 --max-model-len 8192

  # A fleet file, on the loopback
  mobula up -f fleet.yaml --port 9000`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash != 0 && len(args) > 0 {
				return usagef("what is %q? arguments for vLLM come after --", args[0])
			}
			o.args = args
			if !cmd.Flags().Changed("port") {
				o.port = -1
			}
			return a.up(cmd.Context(), o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "fleet file")
	f.StringArrayVar(&o.models, "model", nil, "model to serve with vLLM, a name on the hub or a folder; may be repeated")
	f.StringVar(&o.vllm, "vllm", "vllm", "vllm command")
	f.IntVar(&o.port, "port", 8000, "port of the router, 0 for a free one")
	f.IntVar(&o.engines, "engines", 0, "number of engines (default 2 simulated ones, or one for each GPU)")
	f.DurationVar(&o.startTimeout, "start-timeout", 30*time.Minute, "time for the engines to start; a model may have to be downloaded")
	yamlFiles(cmd, "file")
	return cmd
}

func (o upOptions) check() error {
	switch {
	case o.engines < 0 || o.engines > 64:
		return usagef("--engines %d: want 0 to 64", o.engines)
	case o.port > 65535 || o.port < -1:
		return usagef("--port %d: want 0 to 65535", o.port)
	case slices.Contains(o.models, ""):
		return usagef("--model: the name is empty")
	case len(o.args) > 0 && len(o.models) == 0:
		return usagef("arguments for vLLM need a --model; simulated engines take none (mobula sim has flags)")
	}
	return checkEngineArgs(o.args)
}
