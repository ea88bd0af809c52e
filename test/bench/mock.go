package main

// Mock vLLM engines: several engines in one process, one port each.

import (
	"bufio"
	"bytes"
	"container/list"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const blockBytes = 64 // 16 tokens of 4 bytes

type mockCfg struct {
	model               string
	ttft, itl, perToken time.Duration
	tokens, slots       int
	kvBlocks            int
	chunk, last         []byte // prepared bytes
}

type engine struct {
	cfg              *mockCfg
	name             string
	running, waiting atomic.Int64
	requests, aborts atomic.Int64
	prompt, cached   atomic.Int64
	slots            chan struct{}
	prefill          sync.Mutex // prefill is one serial resource, as on one GPU

	mu     sync.Mutex
	blocks map[uint64]*list.Element
	lru    *list.List // front = most recent
}

func runMock(args []string) error {
	fs := flag.NewFlagSet("mock", flag.ExitOnError)
	n := fs.Int("n", 4, "engines")
	port := fs.Int("port", 9000, "first port")
	c := &mockCfg{}
	fs.StringVar(&c.model, "model", "mock-model", "served model")
	fs.DurationVar(&c.ttft, "ttft", 0, "base time to first token")
	fs.DurationVar(&c.itl, "itl", 0, "inter-token latency")
	fs.DurationVar(&c.perToken, "per-token", 0, "prefill cost per uncached prompt token")
	fs.IntVar(&c.tokens, "tokens", 16, "output tokens when the request has no max_tokens")
	fs.IntVar(&c.slots, "slots", 4096, "concurrent requests per engine")
	fs.IntVar(&c.kvBlocks, "kv-blocks", 0, "prefix cache capacity in 16-token blocks; 0 = no cache simulation")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ended := make(chan error, *n)
	sse := func(s string) []byte { return fmt.Appendf(nil, "%x\r\n%s\r\n", len(s), s) }
	c.chunk = sse(`data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1760000000,"model":"` + c.model + `","choices":[{"index":0,"delta":{"content":" tok"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	c.last = append(sse("data: [DONE]\n\n"), "0\r\n\r\n"...)
	for i := range *n {
		e := &engine{cfg: c, name: strconv.Itoa(*port + i), slots: make(chan struct{}, c.slots), blocks: map[uint64]*list.Element{}, lru: list.New()}
		l, err := net.Listen("tcp", "127.0.0.1:"+e.name)
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					ended <- err
					return
				}
				go e.serve(conn)
			}
		}()
	}
	return <-ended
}

func (e *engine) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReaderSize(conn, 16<<10)
	var h Head
	var body, out []byte
	for {
		if ReadHead(br, &h) != nil {
			return
		}
		body = body[:0]
		if scanBody(br, &h, false, nil, func(p []byte) { body = append(body, p...) }) != nil {
			return
		}
		f := bytes.Fields(h.Line)
		if len(f) < 3 {
			return
		}
		path, _, _ := bytes.Cut(f[1], []byte("?"))
		var err error
		if bytes.HasSuffix(path, []byte("/completions/render")) {
			err = render(conn, body, bytes.Contains(path, []byte("/chat/")))
		} else if bytes.HasSuffix(path, []byte("/completions")) {
			out, err = e.complete(conn, body, out)
		} else {
			err = e.other(conn, string(path))
		}
		if err != nil || h.Close || bytes.Equal(f[2], []byte("HTTP/1.0")) {
			return
		}
	}
}

func (e *engine) other(conn net.Conn, path string) error {
	ct, s, code := "application/json", "{}", "200 OK"
	switch path {
	case "/v1/models":
		s = `{"object":"list","data":[{"id":"` + e.cfg.model + `","object":"model","created":1760000000,"owned_by":"vllm","root":"` + e.cfg.model + `","parent":null,"max_model_len":131072}]}`
	case "/health", "/health_generate", "/ping":
		s = ""
	case "/version":
		s = `{"version":"0.13.0"}`
	case "/model_info", "/get_model_info":
		s = `{"model_path":"` + e.cfg.model + `","is_generation":true}`
	case "/server_info", "/get_server_info":
		s = `{"model_path":"` + e.cfg.model + `","served_model_name":"` + e.cfg.model + `"}`
	case "/metrics":
		ct = "text/plain; version=0.0.4"
		e.mu.Lock()
		usage := 0.0
		if e.cfg.kvBlocks > 0 {
			usage = float64(len(e.blocks)) / float64(e.cfg.kvBlocks)
		}
		e.mu.Unlock()
		m := func(n string, v any) string {
			return fmt.Sprintf("# TYPE vllm:%s gauge\nvllm:%s{model_name=%q} %v\n", n, n, e.cfg.model, v)
		}
		s = m("num_requests_running", e.running.Load()) + m("num_requests_waiting", e.waiting.Load()) +
			m("kv_cache_usage_perc", usage) + m("gpu_cache_usage_perc", usage) +
			fmt.Sprintf("# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"%d\"} 1\n", e.cfg.kvBlocks) +
			m("prefix_cache_queries_total", e.prompt.Load()) + m("prefix_cache_hits_total", e.cached.Load())
	case "/stats":
		s = fmt.Sprintf(`{"requests":%d,"aborts":%d,"prompt":%d,"cached":%d}`, e.requests.Load(), e.aborts.Load(), e.prompt.Load(), e.cached.Load())
	default:
		code = "404 Not Found"
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", code, ct, len(s), s)
	return err
}

// render answers vLLM's render call (prompt to token ids), which vllm-router
// 0.1.17 makes for cache_aware and kv_aware. One token is four bytes.
func render(conn net.Conn, body []byte, chat bool) error {
	t := promptText(body)
	out := []byte(`{"request_id":"r","token_ids":[1`)
	for ; len(t) >= 4; t = t[4:] {
		out = strconv.AppendUint(append(out, ','), uint64(t[0])<<10^uint64(t[1])<<5^uint64(t[2]), 10)
	}
	out = append(out, `],"sampling_params":{},"model":null,"stream":false}`...)
	if !chat {
		out = append(append([]byte{'['}, out...), ']')
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(out), out)
	return err
}

// field finds a scalar JSON member by text search: the workloads are ours, so
// the name never occurs inside a string.
func field(body []byte, name string) []byte {
	i := bytes.LastIndex(body, []byte(`"`+name+`"`))
	if i < 0 {
		return nil
	}
	b := bytes.TrimLeft(body[i+len(name)+2:], " :")
	if j := bytes.IndexAny(b, ",}"); j >= 0 {
		b = b[:j]
	}
	return bytes.TrimSpace(b)
}

func (e *engine) complete(conn net.Conn, body, out []byte) ([]byte, error) {
	c := e.cfg
	e.requests.Add(1)
	n := c.tokens
	if v, err := strconv.Atoi(string(field(body, "max_completion_tokens"))); err == nil {
		n = v // sglang-router renames it
	} else if v, err := strconv.Atoi(string(field(body, "max_tokens"))); err == nil {
		n = v
	}
	stream := string(field(body, "stream")) == "true"
	select {
	case e.slots <- struct{}{}:
	default:
		e.waiting.Add(1)
		e.slots <- struct{}{}
		e.waiting.Add(-1)
	}
	e.running.Add(1)
	defer func() { e.running.Add(-1); <-e.slots }()
	var text []byte
	ptoks, hit := len(body)/4, 0
	if c.kvBlocks > 0 {
		text = promptText(body)
		ptoks = len(text) / 4
		e.prefill.Lock()
		hit = e.lookup(text)
		time.Sleep(c.ttft + time.Duration(ptoks-hit)*c.perToken)
		e.insert(text)
		e.prefill.Unlock()
	} else if d := c.ttft + time.Duration(ptoks)*c.perToken; d > 0 {
		time.Sleep(d)
	}
	e.prompt.Add(int64(ptoks))
	e.cached.Add(int64(hit))
	var err error
	if stream {
		out = append(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"...)
		start := time.Now()
		for i := range n {
			if i > 0 && c.itl > 0 {
				time.Sleep(time.Until(start.Add(time.Duration(i) * c.itl)))
			}
			out = append(out, c.chunk...)
			if _, err = conn.Write(out); err != nil {
				break
			}
			out = out[:0]
		}
		if err == nil {
			_, err = conn.Write(c.last)
		}
	} else {
		if c.itl > 0 {
			time.Sleep(time.Duration(n) * c.itl)
		}
		out = append(out[:0], `{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","created":1760000000,"model":"`...)
		out = append(append(out, c.model...), `","choices":[{"index":0,"message":{"role":"assistant","content":"`...)
		for range n {
			out = append(out, " tok"...)
		}
		out = fmt.Appendf(out, `"},"text":"","logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}}`, ptoks, n, ptoks+n, hit)
		_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(out), out)
	}
	if err != nil {
		e.aborts.Add(1)
	} else if c.kvBlocks > 0 { // the answer's blocks are cached too
		text = append(text, "<assistant>"...)
		for range n {
			text = append(text, " tok"...)
		}
		e.insert(text)
	}
	return out, err
}

func promptText(body []byte) []byte {
	var r struct {
		Prompt   string
		Messages []struct{ Role, Content string }
	}
	if json.Unmarshal(body, &r) != nil {
		return nil
	}
	t := []byte(r.Prompt)
	for _, m := range r.Messages {
		t = append(append(append(append(t, '<'), m.Role...), '>'), m.Content...)
	}
	return t
}

func chain(text []byte, f func(uint64) bool) {
	h := uint64(14695981039346656037)
	for len(text) >= blockBytes {
		for _, b := range text[:blockBytes] {
			h = (h ^ uint64(b)) * 1099511628211
		}
		if !f(h) {
			return
		}
		text = text[blockBytes:]
	}
}

// lookup returns the number of prompt tokens found in the prefix cache.
func (e *engine) lookup(text []byte) (toks int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	chain(text, func(h uint64) bool {
		if e.blocks[h] == nil {
			return false
		}
		toks += 16
		return true
	})
	return
}

// insert stores all full blocks; the head of the prompt becomes the most
// recently used, so tails are evicted first, as in vLLM.
func (e *engine) insert(text []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var hs []uint64
	chain(text, func(h uint64) bool { hs = append(hs, h); return true })
	for _, h := range slices.Backward(hs) {
		if el := e.blocks[h]; el != nil {
			e.lru.MoveToFront(el)
		} else {
			e.blocks[h] = e.lru.PushFront(h)
		}
	}
	for e.lru.Len() > e.cfg.kvBlocks {
		b := e.lru.Back()
		e.lru.Remove(b)
		delete(e.blocks, b.Value.(uint64))
	}
}
