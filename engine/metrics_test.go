package engine

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestParseMetricsOfRealEngines(t *testing.T) {
	for _, c := range []struct {
		file string
		want Metrics
	}{
		{"testdata/metrics.txt", Metrics{PrefixQueries: 376, PromptTokens: 378, GenerationTokens: 203, CacheTokens: 32768 * 32}},
		{"testdata/metrics_pooling.txt", Metrics{PrefixQueries: 25, PromptTokens: 25, CacheTokens: 8192 * 128}},
	} {
		t.Run(c.file, func(t *testing.T) {
			page, err := os.ReadFile(c.file)
			require.NoError(t, err)
			got, err := ParseMetrics(bytes.NewReader(page))
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, got))
		})
	}
}

// The names are vLLM's: each current one is on a real page.
func TestMetricNamesAreReal(t *testing.T) {
	page, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(t, err)
	for _, name := range []string{
		MetricRunning, MetricWaiting, MetricKVUsage, MetricPrefixQueries, MetricPrefixHits,
		MetricPromptTokens, MetricGenerationTokens, MetricCacheConfig,
	} {
		require.Contains(t, string(page), "\n"+name+"{", name)
	}
}

func TestParseMetrics(t *testing.T) {
	for _, c := range []struct {
		name, page string
		want       Metrics
	}{
		{"an empty page", "", Metrics{}},
		{"somebody else's page", "# HELP up x\n# TYPE up gauge\nup 1\nhttp_requests_total{code=\"200\"} 7\n", Metrics{}},
		{
			"sums over data-parallel ranks, mean of the usage",
			`vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:num_requests_waiting{engine="0"} 1
vllm:num_requests_waiting{engine="1"} 0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:prefix_cache_queries_total{engine="0"} 10
vllm:prefix_cache_queries_total{engine="1"} 10
vllm:prefix_cache_hits_total{engine="0"} 5
vllm:prefix_cache_hits_total{engine="1"} 6
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="500"} 1.0
`,
			Metrics{Running: 7, Waiting: 1, KVUsage: .5, PrefixQueries: 20, PrefixHits: 11, CacheTokens: 24000},
		},
		{
			"old names",
			"vllm:gpu_cache_usage_perc 0.5\nvllm:gpu_prefix_cache_queries_total 8\nvllm:gpu_prefix_cache_hits_total 2\n",
			Metrics{KVUsage: .5, PrefixQueries: 8, PrefixHits: 2},
		},
		{
			"a new name wins over its old one",
			"vllm:gpu_cache_usage_perc 0.5\nvllm:kv_cache_usage_perc 0.1\n",
			Metrics{KVUsage: .1},
		},
		{
			"no capacity that is none",
			"vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"None\"} 1\nvllm:cache_config_info{num_gpu_blocks=\"-5\",block_size=\"16\"} 1\nvllm:cache_config_info{num_gpu_blocks=\"7\"} 1\n",
			Metrics{},
		},
		{
			"nonsense does not overflow",
			strings.Repeat("vllm:cache_config_info{block_size=\"268435455\",num_gpu_blocks=\"268435455\"} 1\n", 1000),
			Metrics{CacheTokens: maxCacheTokens},
		},
		{"neither NaN nor infinities", "vllm:num_requests_running NaN\nvllm:num_requests_waiting +Inf\nvllm:kv_cache_usage_perc -1\n", Metrics{}},
		{"a longer name is another metric", "vllm:num_requests_running_by_x 5\nvllm:num_requests_waiting_by_reason{reason=\"capacity\"} 4\n", Metrics{}},
		{"a line too long is passed over", "vllm:num_requests_running{x=\"" + strings.Repeat("y", 1<<20) + "\"} 5\nvllm:num_requests_waiting 2\n", Metrics{Waiting: 2}},
		{"no final line break, CRLF, tab", "vllm:num_requests_running\t1\r\nvllm:num_requests_waiting 2", Metrics{Running: 1, Waiting: 2}},
		{"a timestamp and an odd label value", "vllm:num_requests_running{model_name=\"a \\\"{b} \\n\"} 5 1395066363000\n", Metrics{Running: 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseMetrics(strings.NewReader(c.page))
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(c.want, got))
		})
	}
}

func TestParseMetricsRefusesJunk(t *testing.T) {
	for _, page := range []string{
		"vllm:num_requests_running five\n",
		"vllm:num_requests_running{engine=\"0\" 1\n",
	} {
		_, err := ParseMetrics(strings.NewReader(page))
		require.ErrorIs(t, err, ErrMalformed, page)
	}
}

func FuzzParseMetrics(f *testing.F) {
	page, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(f, err)
	f.Add(page[:8<<10])
	f.Add([]byte("vllm:num_requests_running{engine=\"0\"} 3\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\"} 1\n"))
	f.Add([]byte("vllm:kv_cache_usage_perc NaN\n# TYPE vllm:num_requests_running histogram\nvllm:num_requests_running{le=\"1\"} 1\n"))
	f.Fuzz(func(t *testing.T, page []byte) {
		m, err := ParseMetrics(bytes.NewReader(page))
		if err != nil {
			return
		}
		for _, v := range []float64{m.Running, m.Waiting, m.KVUsage, m.PrefixQueries, m.PrefixHits, m.PromptTokens, m.GenerationTokens, float64(m.CacheTokens)} {
			if !(v >= 0) || math.IsInf(v, 0) {
				t.Fatalf("%+v", m)
			}
		}
		if m.KVUsage > 1 || m.CacheTokens > maxCacheTokens {
			t.Fatalf("%+v", m)
		}
	})
}

func BenchmarkParseMetrics(b *testing.B) {
	page, err := os.ReadFile("testdata/metrics.txt")
	require.NoError(b, err)
	b.Run(fmt.Sprintf("%dKiB", len(page)>>10), func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(page)))
		for b.Loop() {
			if _, err := ParseMetrics(bytes.NewReader(page)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
