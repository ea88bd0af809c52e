// Package sim is a simulated vLLM engine. It speaks what vLLM 0.32 speaks, checked against
// captures of the real one, and behaves like it where a router or a client can tell: a paged
// prefix cache, a prefill rate, a decode rate, a bounded batch and a queue. The text is made
// up, but the same for the same tokens, so that continuing from token ids gives the same
// rest. Failures can be injected. It runs no model, and says so in /version and /v1/models.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Version is what /version answers, so that nobody takes the simulator for an engine.
const Version = "mobula-sim (simulated vLLM 0.32.0)"

const fingerprint = "mobula-sim-0.32.0"

// LoRA is one that is loaded from the start.
type LoRA struct {
	// Name is the model id that requests use.
	Name string
	// Path is shown as the root of its model card. Default: the name.
	Path string
}

// Options set up an engine. The zero value is an engine as fast as it can be.
type Options struct {
	// Model is the id at /v1/models. Default "mobula-sim".
	Model string
	// Aliases are more ids for the model, as vLLM's --served-model-name gives them.
	Aliases []string
	// LoRAs are loaded from the start. More can be loaded over HTTP unless NoLoRA is set.
	LoRAs []LoRA
	// NoLoRA refuses to load LoRAs, as an engine without --enable-lora does.
	NoLoRA bool
	// MaxLoRAs bounds how many are loaded. Default 256.
	MaxLoRAs int
	// APIKey, if set, must be the bearer token of requests to /v1, /v2 and /inference.
	APIKey string
	// Seed makes another model: engines with the same seed give the same texts. Default 0.
	Seed uint64

	// BlockSize is the tokens of a KV block. Default 16.
	BlockSize int
	// Blocks is the KV cache in blocks. Default 4096.
	Blocks int
	// MaxModelLen is the context length in tokens, at most the KV cache. Default: all of it.
	MaxModelLen int
	// MaxNumSeqs is the requests that run at once; others wait. Default 256.
	MaxNumSeqs int
	// MaxQueue is the requests that may wait; others get 503. Default 16384.
	MaxQueue int

	// PrefillBase is the time that each prefill takes at least. Default 0.
	PrefillBase time.Duration
	// PrefillRate is the uncached prompt tokens computed in a second; one prompt after the
	// other. Default 0: they take no time.
	PrefillRate float64
	// ITL is the time between two tokens of a running request. Default 0.
	ITL time.Duration
	// MinAnswer and MaxAnswer bound the tokens after which a chat answer ends by itself.
	// Default 60 and 200.
	MinAnswer, MaxAnswer int

	// Embedding makes a pooling engine: /v1/embeddings, /score, /rerank, /pooling and none
	// of the generating routes.
	Embedding bool
	// Classify gives a pooling engine /classify too.
	Classify bool
	// Dimensions of an embedding. Default 64.
	Dimensions int

	// ForceUsage adds usage to every chunk of every stream (vLLM's --enable-force-include-usage).
	ForceUsage bool
	// NoAutoTools refuses tool_choice "auto", as an engine without a tool parser does.
	NoAutoTools bool
	// MaxResponses bounds the stored answers of /v1/responses. Default 1024.
	MaxResponses int
	// MaxBody bounds a request's body in bytes. Default 256 MiB.
	MaxBody int64
	// DrainTimeout is how long running requests may go on when Run ends, before they are
	// aborted (vLLM's --shutdown-timeout). Default 0.
	DrainTimeout time.Duration

	// Logger gets what happens to the engine, nothing per request. Default: nowhere.
	Logger *slog.Logger
}

func (o *Options) fill() error {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	if o.Model == "" {
		o.Model = "mobula-sim"
	}
	def(&o.MaxLoRAs, 256)
	def(&o.BlockSize, 16)
	def(&o.Blocks, 4096)
	def(&o.MaxModelLen, o.BlockSize*o.Blocks)
	def(&o.MaxNumSeqs, 256)
	def(&o.MaxQueue, 16384)
	def(&o.MinAnswer, 60)
	def(&o.MaxAnswer, max(200, o.MinAnswer))
	def(&o.Dimensions, 64)
	def(&o.MaxResponses, 1024)
	if o.MaxBody == 0 {
		o.MaxBody = 256 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for _, c := range []struct {
		name string
		bad  bool
	}{
		{"BlockSize", o.BlockSize < 1},
		{"Blocks", o.Blocks < 1},
		{"MaxModelLen", o.MaxModelLen < 2},
		{"MaxNumSeqs", o.MaxNumSeqs < 1},
		{"MaxQueue", o.MaxQueue < 1},
		{"MaxLoRAs", o.MaxLoRAs < len(o.LoRAs)},
		{"PrefillBase", o.PrefillBase < 0},
		{"PrefillRate", !(o.PrefillRate >= 0)},
		{"ITL", o.ITL < 0},
		{"MinAnswer", o.MinAnswer < 1},
		{"MaxAnswer", o.MaxAnswer < o.MinAnswer},
		{"Dimensions", o.Dimensions < 1},
		{"MaxResponses", o.MaxResponses < 1},
		{"MaxBody", o.MaxBody < 1},
		{"DrainTimeout", o.DrainTimeout < 0},
	} {
		if c.bad {
			return fmt.Errorf("sim: %s is out of range", c.name)
		}
	}
	if o.MaxModelLen > o.BlockSize*o.Blocks {
		return fmt.Errorf("sim: MaxModelLen %d is more than the KV cache's %d tokens", o.MaxModelLen, o.BlockSize*o.Blocks)
	}
	return nil
}

// Engine is one simulated engine.
type Engine struct {
	opts    Options
	tok     *tokenizer
	sched   *scheduler
	metrics *metrics
	models  *models
	store   *store
	faults  *faults
	handler http.Handler
	logger  *slog.Logger
	started time.Time

	asleep   atomic.Int32 // level, 0 for awake
	inFlight atomic.Int64 // inference requests, for /load
	aborted  chan struct{}
	abort    sync.Once
}

// New builds an engine. It starts nothing: Handler serves from any server, Run from its own.
func New(o Options) (*Engine, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	e := &Engine{
		opts: o, tok: newTokenizer(), metrics: newMetrics(), faults: newFaults(),
		logger: o.Logger.With("model", o.Model), started: time.Now(), aborted: make(chan struct{}),
	}
	e.sched = &scheduler{
		max: o.MaxNumSeqs, maxQueue: o.MaxQueue, blockSize: o.BlockSize, base: o.PrefillBase, rate: o.PrefillRate,
		aborted: e.aborted, metrics: e.metrics, cache: newCache(o.Blocks),
	}
	e.sched.queue.Init()
	var err error
	if e.models, err = newModels(&o); err != nil {
		return nil, err
	}
	e.store = newStore(o.MaxResponses)
	e.handler = e.routes()
	return e, nil
}

// Handler serves the engine. With it all faults but "refuse" work.
func (e *Engine) Handler() http.Handler { return e.handler }

// Abort ends all running requests as vLLM does on SIGTERM: with finish_reason "abort". The
// engine serves no more after it.
func (e *Engine) Abort() { e.abort.Do(func() { close(e.aborted) }) }

// Stats is what an engine has done so far.
type Stats struct {
	Requests  int64 `json:"requests"` // choices begun; n=2 counts twice
	Aborted   int64 `json:"aborted"`  // of these, ended by the client, a fault or a shutdown
	Running   int   `json:"running"`
	Waiting   int   `json:"waiting"`
	Prompt    int64 `json:"prompt_tokens"`
	Cached    int64 `json:"cached_tokens"` // of these, found in the prefix cache
	Generated int64 `json:"generated_tokens"`
}

// Stats counts since New.
func (e *Engine) Stats() Stats {
	running, waiting, _ := e.sched.load()
	m := e.metrics
	return Stats{
		Requests: m.requests.Load(), Aborted: m.forgotten.Load() + m.finished[finishAbort].Load(), Running: running, Waiting: waiting,
		Prompt: m.prompt.Load(), Cached: m.cached.Load(), Generated: m.generated.Load(),
	}
}

// newSeq readies one choice. answer, if not nil, is what it will say.
func (e *Engine) newSeq(in *input, sp *sampling, choice int, answer []int32) *seq {
	model := chain(chain(start, e.opts.Seed), hashString(in.lora))
	s := &seq{lora: in.lora, prompt: in.ids, sampling: sp}
	s.limit = e.opts.MaxModelLen - len(in.ids)
	if sp.max != unset {
		s.limit = min(s.limit, sp.max)
	}
	s.gen = generator{
		key: sp.key(model, choice), script: answer,
		min: e.opts.MinAnswer, max: e.opts.MaxAnswer, ignoreEOS: sp.ignoreEOS,
	}
	s.begin(e.tok)
	s.kv.chain = chain(chain(start, hashString(in.lora)), hashString(in.salt))
	s.kv.hashes = make([]uint64, 0, (len(s.prompt)+min(s.limit, 256))/e.opts.BlockSize+1)
	for _, id := range s.prompt {
		s.kv.add(id, e.opts.BlockSize)
	}
	return s
}

// input is a prompt ready for the model.
type input struct {
	ids  []int32
	lora string // empty for the base model
	salt string // cache_salt: only requests with the same one share cached blocks
}

// generate runs one choice to its end and gives emit each token's step. fault is asked
// before each.
func (e *Engine) generate(ctx context.Context, s *seq, fault func(said int) error, emit func(*seq, *step) error) (err error) {
	m := e.metrics
	arrived, began := time.Now(), time.Time{}
	m.requests.Add(1)
	defer func() { m.done(s, arrived, began, err) }()
	defer e.sched.stop(s)
	var st step
	if err := e.sched.start(ctx, s); err != nil {
		return e.aborting(err, s, &st, emit)
	}
	s.created = len(s.prompt)/e.opts.BlockSize*e.opts.BlockSize - s.cached
	m.admitted(s)
	began = time.Now()
	next := began
	for first := true; ; first = false {
		if err := fault(len(s.out)); err != nil {
			return e.aborting(err, s, &st, emit)
		}
		s.next(&st)
		m.token(first, arrived, next)
		if err := emit(s, &st); err != nil || st.finish != "" {
			return err
		}
		if err := e.sched.grow(ctx, s, st.id); err != nil {
			return e.aborting(err, s, &st, emit)
		}
		if next, err = e.tick(ctx, next); err != nil {
			return e.aborting(err, s, &st, emit)
		}
	}
}

// tick waits for the time of the next token.
func (e *Engine) tick(ctx context.Context, last time.Time) (time.Time, error) {
	select {
	case <-ctx.Done():
		return last, context.Cause(ctx)
	case <-e.aborted:
		return last, errAborted
	default:
	}
	now := time.Now()
	if e.opts.ITL == 0 {
		return now, nil
	}
	next := last.Add(e.opts.ITL)
	if next.Before(now) {
		return now, nil // late: a batch does not catch up
	}
	return next, sleepUntil(ctx, next, e.aborted)
}

// aborting turns a shutdown into the answer's last step; other errors stay errors.
func (e *Engine) aborting(err error, s *seq, st *step, emit func(*seq, *step) error) error {
	if !errors.Is(err, errAborted) {
		return err
	}
	s.abort(st)
	return emit(s, st)
}

// generateAll runs the choices of a request side by side; emit is called by one at a time.
func (e *Engine) generateAll(c *call, seqs []*seq, emit func(*seq, *step) error) error {
	if err := seqs[0].sampling.accepted(e.tok.size()); err != nil {
		return err
	}
	for i, s := range seqs {
		s.index = i
	}
	ctx := c.context()
	if len(seqs) == 1 {
		return e.generate(ctx, seqs[0], c.midway, emit)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(seqs))
	for i, s := range seqs {
		wg.Go(func() {
			fault := func(said int) error {
				mu.Lock()
				defer mu.Unlock()
				return c.midway(said)
			}
			errs[i] = e.generate(ctx, s, fault, func(s *seq, st *step) error {
				mu.Lock()
				defer mu.Unlock()
				return emit(s, st)
			})
			if errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return context.Cause(ctx)
	}
	return nil
}

func hashString(s string) uint64 {
	h := start
	for i := range len(s) {
		h = chain(h, uint64(s[i]))
	}
	return h
}

// newID makes the end of an id: 16 hexadecimal digits.
func newID() string {
	s := strconv.FormatUint(randomBits(), 16)
	return "0000000000000000"[len(s):] + s
}
