package sim

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Why a request ended, as request_success_total labels it.
const (
	finishStop = iota
	finishLength
	finishAbort
	finishError
	finishRepetition
	finishReasons
)

// metrics counts what vLLM's /metrics shows.
type metrics struct {
	requests, prompt, cached, generated, preemptions, rejected atomic.Int64
	// forgotten are requests that a client or a fault put an end to: like vLLM, /metrics
	// never counts them as ended.
	forgotten                                             atomic.Int64
	finished                                              [finishReasons]atomic.Int64
	ttft, itl, e2e, queue, promptTokens, generationTokens *histogram
}

func newMetrics() *metrics {
	long := []float64{0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	tokens := []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000}
	return &metrics{
		ttft:             newHistogram(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
		itl:              newHistogram(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80),
		e2e:              newHistogram(long...),
		queue:            newHistogram(long...),
		promptTokens:     newHistogram(tokens...),
		generationTokens: newHistogram(tokens...),
	}
}

// admitted counts a request whose prompt is computed.
func (m *metrics) admitted(s *seq) {
	m.prompt.Add(int64(len(s.prompt)))
	m.cached.Add(int64(s.cached))
}

// token counts a generated token, due at now.
func (m *metrics) token(first bool, arrived, now time.Time) {
	m.generated.Add(1)
	if first {
		m.ttft.observe(now.Sub(arrived).Seconds())
	}
}

// done counts a request that has ended; began is when its prompt was computed, or zero.
func (m *metrics) done(s *seq, arrived, began time.Time, err error) {
	now := time.Now()
	if n := len(s.out) - 1; n > 0 && !began.IsZero() {
		m.itl.observeMany(now.Sub(began).Seconds()/float64(n), int64(n))
	}
	switch {
	case errors.Is(err, errQueueFull):
		m.rejected.Add(1)
		return
	case err != nil:
		m.forgotten.Add(1)
		return
	case s.finish == "abort":
		m.finished[finishAbort].Add(1)
	case s.finish == "length":
		m.finished[finishLength].Add(1)
	default:
		m.finished[finishStop].Add(1)
	}
	m.e2e.observe(now.Sub(arrived).Seconds())
	m.queue.observe(s.waited.Seconds())
	m.promptTokens.observe(float64(len(s.prompt)))
	m.generationTokens.observe(float64(len(s.out)))
}

// histogram counts values by upper bounds.
type histogram struct {
	mu     sync.Mutex
	bounds []float64
	counts []int64 // one more than bounds
	sum    float64
}

func newHistogram(bounds ...float64) *histogram {
	return &histogram{bounds: bounds, counts: make([]int64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) { h.observeMany(v, 1) }

func (h *histogram) observeMany(v float64, n int64) {
	i, _ := slices.BinarySearch(h.bounds, v)
	h.mu.Lock()
	h.counts[i] += n
	h.sum += v * float64(n)
	h.mu.Unlock()
}

// exposition writes the text format.
type exposition struct {
	b     []byte
	model string // the labels that most metrics have
}

func (x *exposition) family(name, kind, help string) {
	x.b = append(x.b, "# HELP vllm:"+name+" "+help+"\n# TYPE vllm:"+name+" "+kind+"\n"...)
}

func (x *exposition) sample(name, labels string, v float64) {
	x.b = append(x.b, "vllm:"+name+"{"+labels+"} "...)
	if math.IsInf(v, 1) {
		x.b = append(x.b, "+Inf\n"...)
		return
	}
	x.b = append(appendFloat(x.b, v), '\n')
}

func (x *exposition) one(name, kind, help string, v float64) {
	x.family(name, kind, help)
	x.sample(name, `engine="0",model_name="`+x.model+`"`, v)
}

func (x *exposition) histogram(name, help string, h *histogram) {
	x.family(name, "histogram", help)
	h.mu.Lock()
	counts, sum := slices.Clone(h.counts), h.sum
	h.mu.Unlock()
	var total int64
	for i, n := range counts {
		total += n
		le := "+Inf"
		if i < len(h.bounds) {
			le = formatFloat(h.bounds[i])
		}
		x.sample(name+"_bucket", `engine="0",le="`+le+`",model_name="`+x.model+`"`, float64(total))
	}
	x.sample(name+"_count", `engine="0",model_name="`+x.model+`"`, float64(total))
	x.sample(name+"_sum", `engine="0",model_name="`+x.model+`"`, sum)
}

// labelValue escapes a label's value.
func labelValue(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}

// getMetrics serves /metrics.
func (c *call) getMetrics() {
	e, m := c.e, c.e.metrics
	running, waiting, usage := e.sched.load()
	x := &exposition{model: labelValue(e.opts.Model)}
	labels := `engine="0",model_name="` + x.model + `"`
	x.one("num_requests_running", "gauge", "Number of requests in model execution batches.", float64(running))
	x.one("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", float64(waiting))
	x.family("engine_sleep_state", "gauge", "Engine sleep state.")
	for level, state := range []string{"awake", "weights_offloaded", "discard_all"} {
		on := 0.0
		if int(e.asleep.Load()) == level {
			on = 1
		}
		x.sample("engine_sleep_state", labels+`,sleep_state="`+state+`"`, on)
	}
	x.one("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", usage)
	x.one("prefix_cache_queries_total", "counter", "Prefix cache queries, in terms of number of queried tokens.", float64(m.prompt.Load()))
	x.one("prefix_cache_hits_total", "counter", "Prefix cache hits, in terms of number of cached tokens.", float64(m.cached.Load()))
	x.one("num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", float64(m.preemptions.Load()))
	x.one("prompt_tokens_total", "counter", "Number of prefill tokens processed.", float64(m.prompt.Load()))
	x.one("prompt_tokens_cached_total", "counter", "Number of cached prompt tokens (local + external).", float64(m.cached.Load()))
	x.one("generation_tokens_total", "counter", "Number of generation tokens processed.", float64(m.generated.Load()))
	x.family("request_success_total", "counter", "Count of successfully processed requests.")
	for i, reason := range []string{"stop", "length", "abort", "error", "repetition"} {
		x.sample("request_success_total", `engine="0",finished_reason="`+reason+`",model_name="`+x.model+`"`, float64(m.finished[i].Load()))
	}
	x.family("admission_rejections_total", "counter", "Count of requests rejected because too many wait.")
	x.sample("admission_rejections_total", `model_name="`+x.model+`",reason="max_num_queued_reqs"`, float64(m.rejected.Load()))
	x.histogram("request_prompt_tokens", "Number of prefill tokens processed.", m.promptTokens)
	x.histogram("request_generation_tokens", "Number of generation tokens processed.", m.generationTokens)
	x.histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", m.ttft)
	x.histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", m.itl)
	x.histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", m.e2e)
	x.histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", m.queue)
	var loras []string
	for _, l := range e.models.list() {
		loras = append(loras, labelValue(l.Name))
	}
	x.family("lora_requests_info", "gauge", "Running stats on lora requests.")
	x.sample("lora_requests_info", `max_lora="`+strconv.Itoa(e.opts.MaxLoRAs)+`",running_lora_adapters="`+strings.Join(loras, ",")+`",waiting_lora_adapters=""`, float64(e.started.Unix()))
	x.family("cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
	x.sample("cache_config_info", cacheConfig(&e.opts), 1)
	h := c.w.Header()
	h["Content-Type"] = []string{"text/plain; version=0.0.4; charset=utf-8"}
	h["Content-Length"] = []string{strconv.Itoa(len(x.b))}
	c.extend()
	_, _ = c.w.Write(x.b)
}

// cacheConfig is the labels of cache_config_info: all that vLLM has, with what is true here.
func cacheConfig(o *Options) string {
	size := strconv.Itoa(o.BlockSize)
	tokens := strconv.Itoa(o.BlockSize * o.Blocks)
	pairs := []string{
		"_block_size_resolved", "True", "block_size", size, "cache_dtype", "auto", "cache_hit_alignment_tokens", "None",
		"effective_attention_block_size", size, "enable_mamba_shared_prefix_checkpoint", "False", "enable_prefix_caching", "True",
		"engine", "0", "gpu_memory_utilization", "0.92", "hash_block_size", "None", "is_attention_free", "False",
		"kv_cache_dtype_skip_layers", "[]", "kv_cache_layout", "None",
		"kv_cache_max_concurrency", formatFloat(float64(o.BlockSize*o.Blocks) / float64(o.MaxModelLen)),
		"kv_cache_memory_bytes", "None", "kv_cache_size_tokens", tokens, "kv_offloading_backend", "native",
		"kv_offloading_size", "None", "kv_sharing_fast_prefill", "False", "mamba_block_size", "None", "mamba_cache_dtype", "auto",
		"mamba_cache_mode", "none", "mamba_page_size_padded", "None", "mamba_ssm_cache_dtype", "float32", "num_cpu_blocks", "None",
		"num_gpu_blocks", strconv.Itoa(o.Blocks), "num_gpu_blocks_override", "None", "prefix_cache_retention_interval", "0",
		"prefix_caching_hash_algo", "simulated", "prefix_match_unit", "None", "replayssm_buffer_len", "16",
		"skip_page_size_padded", "None", "sliding_window", "None", "swa_bounded_replay", "True", "use_kda_recoverssm", "False",
		"use_replayssm", "False", "user_specified_block_size", "True",
	}
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i] + `="` + pairs[i+1] + `"`)
	}
	return b.String()
}
