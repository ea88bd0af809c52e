package app

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine/sim"
)

// firstEnginePort is where engines' ports begin.
const firstEnginePort = 8701

// simDefaults are the rates of a simulated engine unless flags say otherwise: those of a
// small model on one GPU, so that an answer streams at a speed that one can watch.
func simDefaults() sim.Options {
	return sim.Options{
		Model:       "mobula-sim",
		PrefillBase: 10 * time.Millisecond,
		PrefillRate: 20000,
		ITL:         10 * time.Millisecond,
	}
}

// runSim serves until ctx ends, which is no error.
func runSim(ctx context.Context, e *sim.Engine, l net.Listener) error {
	defer func() { _ = l.Close() }()
	if err := e.Run(ctx, l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// simFlags are the flags of `mobula sim` that are not in sim.Options as they are.
type simFlags struct {
	host    string
	port    int
	loras   []string
	keyFile string
}

func (a *app) simCommand() *cobra.Command {
	o, flags := simDefaults(), simFlags{}
	cmd := &cobra.Command{
		Use:                   "sim [--port P] [--model NAME]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a simulated vLLM engine",
		Long: `Runs a simulated vLLM engine. It answers as vLLM does and takes its time as vLLM does, with
a prefix cache, a queue and a bounded batch, but it runs no model: the text is made up.
/version and the model card say so.`,
		Example: `  mobula sim --port 8701

  # A slow engine with a small cache
  mobula sim --port 8702 --model my-model --prefill-rate 2000 --itl 50ms --blocks 512

  # As fast as it can be, for tests
  mobula sim --prefill-base 0 --prefill-rate 0 --itl 0

  # An engine for embeddings
  mobula sim --model my-embeddings --embedding`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.sim(cmd.Context(), o, flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.host, "host", loopback, "address to listen on")
	f.IntVar(&flags.port, "port", firstEnginePort, "port to listen on, 0 for a free one")
	f.StringVar(&o.Model, "model", o.Model, "model id")
	f.StringArrayVar(&o.Aliases, "alias", nil, "another id for the model; may be repeated")
	f.StringArrayVar(&flags.loras, "lora", nil, "LoRA that is loaded from the start, NAME or NAME=PATH; may be repeated")
	f.StringVar(&flags.keyFile, "api-key-file", "", "file with a key that requests must carry")
	f.Uint64Var(&o.Seed, "seed", 0, "engines with the same seed give the same texts")
	f.DurationVar(&o.PrefillBase, "prefill-base", o.PrefillBase, "least time of a prefill")
	f.Float64Var(&o.PrefillRate, "prefill-rate", o.PrefillRate, "uncached prompt tokens computed in a second, 0 for no bound")
	f.DurationVar(&o.ITL, "itl", o.ITL, "time between two tokens of a request")
	f.IntVar(&o.BlockSize, "block-size", 16, "tokens of a KV block")
	f.IntVar(&o.Blocks, "blocks", 4096, "KV cache in blocks")
	f.IntVar(&o.MaxModelLen, "max-model-len", 0, "context length in tokens (default all of the KV cache)")
	f.IntVar(&o.MaxNumSeqs, "max-num-seqs", 256, "requests that run at once")
	f.IntVar(&o.MaxQueue, "max-queue", 16384, "requests that may wait")
	f.IntVar(&o.MinAnswer, "min-answer", 60, "least tokens of a chat answer that ends by itself")
	f.IntVar(&o.MaxAnswer, "max-answer", 200, "most tokens of a chat answer that ends by itself")
	f.BoolVar(&o.Embedding, "embedding", false, "be a pooling engine: embeddings, score and rerank instead of text")
	f.BoolVar(&o.Classify, "classify", false, "give a pooling engine /classify too")
	f.IntVar(&o.Dimensions, "dimensions", 64, "dimensions of an embedding")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 0, "how long running requests may go on when it stops")
	return cmd
}

func (a *app) sim(ctx context.Context, o sim.Options, flags simFlags) error {
	if flags.port < 0 || flags.port > 65535 {
		return usagef("--port %d: want 0 to 65535", flags.port)
	}
	for _, l := range flags.loras {
		name, path, _ := strings.Cut(l, "=")
		if name == "" {
			return usagef("--lora %q: want NAME or NAME=PATH", l)
		}
		o.LoRAs = append(o.LoRAs, sim.LoRA{Name: name, Path: path})
	}
	key, err := readKey(flags.keyFile)
	if err != nil {
		return err
	}
	o.APIKey = key
	if o.Logger, err = newLogger(a.stderr, mobula.Log{}); err != nil {
		return err
	}
	e, err := sim.New(o)
	if err != nil {
		return &usageError{err}
	}
	l, err := listen(ctx, net.JoinHostPort(flags.host, strconv.Itoa(flags.port)), "--port")
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.stdout, "simulated engine of %s listening on %s\n", o.Model, baseURL(l.Addr()))
	done := make(chan error, 1)
	go func() { done <- runSim(ctx, e, l) }()
	select {
	case err := <-done:
		return err
	case <-forced(ctx):
		return nil
	}
}
