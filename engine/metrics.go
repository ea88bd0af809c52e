package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Names of vLLM's metrics that we read. The old ones are from before 0.9 and from simulators.
const (
	MetricRunning          = "vllm:num_requests_running"
	MetricWaiting          = "vllm:num_requests_waiting"
	MetricKVUsage          = "vllm:kv_cache_usage_perc"
	MetricKVUsageOld       = "vllm:gpu_cache_usage_perc"
	MetricPrefixQueries    = "vllm:prefix_cache_queries_total"
	MetricPrefixHits       = "vllm:prefix_cache_hits_total"
	MetricPrefixQueriesOld = "vllm:gpu_prefix_cache_queries_total"
	MetricPrefixHitsOld    = "vllm:gpu_prefix_cache_hits_total"
	MetricPromptTokens     = "vllm:prompt_tokens_total"
	MetricGenerationTokens = "vllm:generation_tokens_total"
	MetricCacheConfig      = "vllm:cache_config_info"
)

// metricPrefix begins all of them.
const metricPrefix = "vllm:"

// Labels of MetricCacheConfig that we read.
const (
	labelBlocks    = "num_gpu_blocks"
	labelBlockSize = "block_size"
)

// maxCacheTokens is more than any engine has; it keeps nonsense from overflowing.
const maxCacheTokens = 1 << 40

// maxMetricLine is the longest line that is looked at; longer ones are passed over.
const maxMetricLine = 64 << 10

// Metrics is what we read of an engine's /metrics: sums over its data-parallel ranks.
type Metrics struct {
	Running          float64 // requests
	Waiting          float64 // requests
	KVUsage          float64 // share of the KV cache in use, 0 to 1; mean over the ranks
	PrefixQueries    float64 // tokens looked up in the prefix cache since start
	PrefixHits       float64 // of these, tokens found
	PromptTokens     float64 // since start
	GenerationTokens float64 // since start
	CacheTokens      int     // tokens that the KV cache holds; 0 when not said
}

// ParseMetrics reads Prometheus text. Only lines of the metrics above are looked at, so
// that a page costs by its size and not by its histograms. A page without any of them is
// no error, a malformed line of one is ErrMalformed.
func ParseMetrics(r io.Reader) (Metrics, error) {
	lines, err := filterLines(r)
	if err != nil {
		return Metrics{}, fmt.Errorf("read metrics: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(lines)
	if err != nil {
		return Metrics{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	sum := func(names ...string) (total float64, ranks int) {
		for _, name := range names {
			f := families[name]
			if f == nil {
				continue
			}
			for _, m := range f.GetMetric() {
				// Without TYPE lines, which the filter drops, everything is untyped.
				if v := m.GetUntyped().GetValue(); v >= 0 && v < 1e18 { // neither NaN nor Inf
					total += v
				}
			}
			return total, len(f.GetMetric())
		}
		return 0, 0
	}
	var m Metrics
	m.Running, _ = sum(MetricRunning)
	m.Waiting, _ = sum(MetricWaiting)
	m.PrefixQueries, _ = sum(MetricPrefixQueries, MetricPrefixQueriesOld)
	m.PrefixHits, _ = sum(MetricPrefixHits, MetricPrefixHitsOld)
	m.PromptTokens, _ = sum(MetricPromptTokens)
	m.GenerationTokens, _ = sum(MetricGenerationTokens)
	usage, ranks := sum(MetricKVUsage, MetricKVUsageOld)
	m.KVUsage = min(usage/float64(max(ranks, 1)), 1)
	for _, info := range families[MetricCacheConfig].GetMetric() {
		var blocks, size int
		for _, l := range info.GetLabel() {
			switch l.GetName() {
			case labelBlocks:
				blocks = positive(l.GetValue())
			case labelBlockSize:
				size = positive(l.GetValue())
			}
		}
		m.CacheTokens = min(m.CacheTokens+blocks*size, maxCacheTokens)
	}
	return m, nil
}

// positive reads a number small enough to be multiplied by another one, 0 for anything else.
func positive(s string) int {
	n, err := strconv.ParseUint(s, 10, 28)
	if err != nil {
		return 0
	}
	return int(n)
}

// filterLines keeps the sample lines of the metrics that we read.
func filterLines(r io.Reader) (*bytes.Buffer, error) {
	var out bytes.Buffer
	in := bufio.NewReaderSize(r, maxMetricLine)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if err = skipLine(in); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			continue
		}
		if !bytes.HasPrefix(line, []byte(metricPrefix)) {
			line = nil // most lines: HELP, TYPE and what is Python's
		}
		name := line
		if i := bytes.IndexAny(line, "{ \t"); i >= 0 {
			name = line[:i]
		}
		if wanted(name) {
			out.Write(bytes.TrimRight(line, "\r\n"))
			out.WriteByte('\n')
		}
		if errors.Is(err, io.EOF) {
			return &out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func wanted(name []byte) bool {
	switch string(name) {
	case MetricRunning, MetricWaiting, MetricKVUsage, MetricKVUsageOld, MetricPrefixQueries, MetricPrefixHits,
		MetricPrefixQueriesOld, MetricPrefixHitsOld, MetricPromptTokens, MetricGenerationTokens, MetricCacheConfig:
		return true
	}
	return false
}

func skipLine(in *bufio.Reader) error {
	for {
		if _, err := in.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
