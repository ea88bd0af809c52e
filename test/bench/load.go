package main

// Load generator: closed loop, open loop and multi-round QA.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// result of one request.
type result struct {
	status       int
	first, total time.Duration
	tokens       int
	gaps         []time.Duration // between reads of the body, if asked for
	err          error
}

// client is one persistent connection.
type client struct {
	// chunks counts SSE events of all connections as they arrive, so that long streams
	// count in the window in which they run.
	chunks *atomic.Int64
	addr   string
	conn   net.Conn
	br     *bufio.Reader
	h      Head
	gaps   bool
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// do sends one prepared request. A kept-alive connection that the router has
// closed meanwhile is replaced once.
func (c *client) do(req []byte) (r result) {
	t0 := time.Now()
	for try := 0; ; try++ {
		fresh := c.conn == nil
		if fresh {
			if c.conn, r.err = net.Dial("tcp", c.addr); r.err != nil {
				c.conn = nil
				return
			}
			c.br = bufio.NewReaderSize(c.conn, 32<<10)
		}
		c.conn.SetDeadline(time.Now().Add(60 * time.Second))
		if _, r.err = c.conn.Write(req); r.err == nil {
			r.err = ReadHead(c.br, &c.h)
		}
		if r.err == nil {
			break
		}
		c.close()
		if fresh || try > 0 {
			return
		}
	}
	r.status = c.h.Status()
	var prev byte
	var last time.Time
	r.err = scanBody(c.br, &c.h, true, nil, func(p []byte) {
		if r.first == 0 || c.gaps {
			now := time.Now()
			if r.first == 0 {
				r.first = now.Sub(t0)
			} else if g := now.Sub(last); g > time.Millisecond {
				r.gaps = append(r.gaps, g)
			}
			last = now
		}
		// an SSE event ends with an empty line
		for {
			i := bytes.IndexByte(p, '\n')
			if i < 0 {
				if len(p) > 0 {
					prev = p[len(p)-1]
				}
				break
			}
			if (i == 0 && prev == '\n') || (i > 0 && p[i-1] == '\n') {
				r.tokens++
				c.chunks.Add(1)
			}
			prev, p = '\n', p[i+1:]
		}
	})
	r.total = time.Since(t0)
	if r.err != nil || c.h.Close || (c.h.CL < 0 && !c.h.Chunked) {
		c.close()
	}
	if r.err == nil && r.status != 200 {
		r.err = fmt.Errorf("status %d", r.status)
	}
	return
}

// request builds the bytes of one HTTP request.
func request(host, path string, body []byte, session string) []byte {
	b := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer sk-bench\r\nContent-Length: %d\r\n", path, host, len(body))
	if session != "" { // session header names of the different routers
		for _, n := range []string{"x-user-id", "X-Session-Id", "X-SMG-Routing-Key"} {
			b = fmt.Appendf(b, "%s: %s\r\n", n, session)
		}
	}
	return append(append(b, "\r\n"...), body...)
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func chatBody(model string, msgs []message, stream bool, maxTokens int) []byte {
	b, _ := json.Marshal(struct {
		Model     string    `json:"model"`
		Messages  []message `json:"messages"`
		MaxTokens int       `json:"max_tokens"`
		Stream    bool      `json:"stream"`
	}{model, msgs, maxTokens, stream})
	return b
}

// words makes n "tokens" of four bytes.
func words(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, 0, 4*n)
	for range n {
		x := r.Uint32()
		b = append(b, 'a'+byte(x%26), 'a'+byte(x>>8%26), 'a'+byte(x>>16%26), ' ')
	}
	return string(b)
}

type opts struct {
	addr, path, model, mode  string
	conns, tokens, bodyBytes int
	rate                     float64
	warm, dur                time.Duration
	stream, gaps, unique     bool
	router, mock             int
	users, rounds, sys, hist int
	groups                   int
	anon                     bool
	engines                  string
	seed                     uint64
	chunks                   atomic.Int64
}

// Report is what one run measured.
type Report struct {
	Peer, Workload               string
	Rep                          int
	Reqs, Errors                 int
	Seconds, RPS, ChunksPerSec   float64
	LatP50, LatP95, LatP99       float64 // ms, request sent to body end
	FirstP50, FirstP95, FirstP99 float64 // ms, request sent to first body byte
	FirstMean                    float64
	GapP50, GapP99               float64 // ms between body reads
	RouterCPU, LoadCPU, MockCPU  float64 // cores
	ForeignCPU                   float64 // cores used by everything else
	CPUms, RSS                   float64 // router CPU ms per request, peak RSS MiB
	RSSBefore, RSSAfter          float64 // resident MiB when measuring began and ended
	CPUusChunk                   float64
	Hit                          float64   `json:",omitempty"`
	Share                        []float64 `json:",omitempty"`
	FirstErr                     string    `json:",omitempty"`
}

type recorder struct {
	mu               sync.Mutex
	lat, first, gaps []time.Duration
	errs             int
	firstErr         string
}

func (rec *recorder) add(r *result) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if r.err != nil {
		rec.errs++
		if rec.firstErr == "" {
			rec.firstErr = r.err.Error()
		}
		return
	}
	rec.lat = append(rec.lat, r.total)
	rec.first = append(rec.first, r.first)
	rec.gaps = append(rec.gaps, r.gaps...)
}

func quant(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	return d[min(len(d)-1, int(q*float64(len(d))))].Seconds() * 1000
}

func runLoad(args []string) error {
	fs := flag.NewFlagSet("load", flag.ExitOnError)
	var o opts
	fs.StringVar(&o.addr, "addr", "127.0.0.1:9000", "router address")
	fs.StringVar(&o.path, "path", "/v1/chat/completions", "path")
	fs.StringVar(&o.model, "model", "mock-model", "model")
	fs.StringVar(&o.mode, "mode", "closed", "closed, open or qa")
	fs.IntVar(&o.conns, "c", 32, "connections (closed)")
	fs.IntVar(&o.tokens, "tokens", 16, "max_tokens")
	fs.IntVar(&o.bodyBytes, "body", 200, "prompt bytes")
	fs.Float64Var(&o.rate, "rate", 100, "requests/s (open, qa)")
	fs.DurationVar(&o.warm, "warm", time.Second, "not measured")
	fs.DurationVar(&o.dur, "dur", 5*time.Second, "measured")
	fs.BoolVar(&o.stream, "stream", false, "stream")
	fs.BoolVar(&o.gaps, "gaps", false, "record gaps between body reads")
	fs.BoolVar(&o.anon, "anon", false, "send no session headers (qa)")
	fs.BoolVar(&o.unique, "unique", false, "every prompt differs from its first byte on (closed)")
	fs.IntVar(&o.router, "router-pid", 0, "router process (tree) to account")
	fs.IntVar(&o.mock, "mock-pid", 0, "mock engine process")
	fs.IntVar(&o.users, "users", 48, "concurrent users (qa)")
	fs.IntVar(&o.rounds, "rounds", 6, "rounds per user (qa)")
	fs.IntVar(&o.sys, "sys", 1000, "shared system prompt tokens (qa)")
	fs.IntVar(&o.hist, "hist", 3000, "user history tokens (qa)")
	fs.IntVar(&o.groups, "groups", 1, "different system prompts (qa)")
	fs.StringVar(&o.engines, "engines", "", "engine addresses for /stats (comma separated)")
	fs.Uint64Var(&o.seed, "seed", 1, "seed")
	if err := fs.Parse(args); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o.run())
}

func (o *opts) run() *Report {
	rec := &recorder{}
	var measuring atomic.Bool
	stop := make(chan struct{})
	var wg sync.WaitGroup
	body := chatBody(o.model, []message{{"user", words(o.seed, o.bodyBytes/4)}}, o.stream, o.tokens)
	req := request(o.addr, o.path, body, "")
	switch o.mode {
	case "closed":
		for i := range o.conns {
			wg.Go(func() {
				c := &client{chunks: &o.chunks, addr: o.addr, gaps: o.gaps}
				defer c.close()
				req, seq := slices.Clone(req), uint64(i)<<32
				at := bytes.Index(req, []byte(`"content":"`)) + len(`"content":"`)
				// spread the start of long streams
				if o.gaps {
					time.Sleep(o.warm * time.Duration(i) / time.Duration(o.conns))
				}
				for {
					select {
					case <-stop:
						return
					default:
					}
					if o.unique {
						seq++
						copy(req[at:], fmt.Sprintf("%016x", seq))
					}
					r := c.do(req)
					if measuring.Load() {
						rec.add(&r)
					}
					if r.err != nil {
						time.Sleep(50 * time.Millisecond)
					}
				}
			})
		}
	case "open":
		wg.Go(func() { o.open(req, stop, &measuring, rec, &wg) })
	case "qa":
		for i := range o.users {
			wg.Go(func() { o.user(i, stop, &measuring, rec) })
		}
	}
	time.Sleep(o.warm)
	s0, rss0 := o.stats(), rss(o.router)
	c0 := o.chunks.Load()
	r0, m0, l0, b0, t0 := cpuSeconds(o.router), cpuSeconds(o.mock), cpuSeconds(os.Getpid()), busySeconds(), time.Now()
	measuring.Store(true)
	time.Sleep(o.dur)
	measuring.Store(false)
	sec := time.Since(t0).Seconds()
	nc := float64(o.chunks.Load() - c0)
	rc, mc, lc, bc := cpuSeconds(o.router)-r0, cpuSeconds(o.mock)-m0, cpuSeconds(os.Getpid())-l0, busySeconds()-b0
	s1 := o.stats()
	peak, rss1 := peakRSS(o.router), rss(o.router)
	close(stop)
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for _, d := range [][]time.Duration{rec.lat, rec.first, rec.gaps} {
		slices.Sort(d)
	}
	n := len(rec.lat)
	rep := &Report{
		Reqs: n, Errors: rec.errs, FirstErr: rec.firstErr, Seconds: sec, RPS: float64(n) / sec,
		LatP50: quant(rec.lat, .5), LatP95: quant(rec.lat, .95), LatP99: quant(rec.lat, .99),
		FirstP50: quant(rec.first, .5), FirstP95: quant(rec.first, .95), FirstP99: quant(rec.first, .99),
		GapP50: quant(rec.gaps, .5), GapP99: quant(rec.gaps, .99),
		RouterCPU: rc / sec, MockCPU: mc / sec, LoadCPU: lc / sec, ForeignCPU: max(0, (bc-rc-mc-lc)/sec), RSS: peak, RSSBefore: rss0, RSSAfter: rss1,
	}
	if n > 0 {
		for _, d := range rec.first {
			rep.FirstMean += d.Seconds() * 1000 / float64(n)
		}
		rep.CPUms = rc * 1000 / float64(n)
	}
	if nc > 0 {
		rep.ChunksPerSec = nc / sec
		rep.CPUusChunk = rc * 1e6 / nc
	}
	var prompt, cached, reqs float64
	for i := range s1 {
		prompt += s1[i].Prompt - s0[i].Prompt
		cached += s1[i].Cached - s0[i].Cached
		reqs += s1[i].Requests - s0[i].Requests
	}
	if reqs > 0 {
		rep.Hit = cached / max(1, prompt)
		for i := range s1 {
			rep.Share = append(rep.Share, (s1[i].Requests-s0[i].Requests)/reqs)
		}
	}
	return rep
}

// open sends Poisson arrivals at o.rate whatever the router does.
func (o *opts) open(req []byte, stop chan struct{}, measuring *atomic.Bool, rec *recorder, wg *sync.WaitGroup) {
	rng := rand.New(rand.NewPCG(o.seed, 1))
	idle := make(chan *client, 4096)
	next := time.Now()
	for {
		next = next.Add(time.Duration(rng.ExpFloat64() / o.rate * float64(time.Second)))
		select {
		case <-stop:
			return
		case <-time.After(time.Until(next)):
		}
		var c *client
		select {
		case c = <-idle:
		default:
			c = &client{chunks: &o.chunks, addr: o.addr}
		}
		wg.Go(func() {
			m := measuring.Load()
			r := c.do(req)
			if m {
				rec.add(&r)
			}
			select {
			case idle <- c:
			default:
				c.close()
			}
		})
	}
}

// user plays conversations one after the other, as production-stack's
// multi-round-qa: shared system prompt, own history, growing with each round.
func (o *opts) user(i int, stop chan struct{}, measuring *atomic.Bool, rec *recorder) {
	c := &client{chunks: &o.chunks, addr: o.addr}
	defer c.close()
	gap := time.Duration(float64(o.users) / o.rate * float64(time.Second))
	answer := strings.Repeat(" tok", o.tokens)
	next := time.Now().Add(gap * time.Duration(i) / time.Duration(o.users))
	think := rand.New(rand.NewPCG(o.seed, uint64(i)+1<<50))
	for gen := 0; ; gen++ {
		id := uint64(i + gen*o.users)
		rng := rand.New(rand.NewPCG(o.seed, id))
		group := rng.IntN(o.groups)
		msgs := []message{{"system", words(1000+uint64(group)+o.seed<<32, o.sys)}}
		if o.hist > 0 {
			msgs = append(msgs, message{"user", words(1<<20+id+o.seed<<32, o.hist)}, message{"assistant", "ok"})
		}
		first := 0
		if gen == 0 {
			first = i % o.rounds
		}
		for round := first; round < o.rounds; round++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Until(next)):
			}
			next = next.Add(time.Duration(float64(gap) * (0.5 + think.Float64()))) // a fixed gap would lock users to engines under round robin
			if now := time.Now(); next.Before(now) {
				next = now
			}
			msgs = append(msgs, message{"user", words(1<<40+id*64+uint64(round), 20)})
			m := measuring.Load()
			session := ""
			if !o.anon {
				session = fmt.Sprintf("user-%d-%d", o.seed, id)
			}
			r := c.do(request(o.addr, o.path, chatBody(o.model, msgs, true, o.tokens), session))
			if m {
				rec.add(&r)
			}
			if r.err != nil {
				break
			}
			msgs = append(msgs, message{"assistant", answer})
		}
	}
}

type engineStats struct{ Requests, Aborts, Prompt, Cached float64 }

func (o *opts) stats() (out []engineStats) {
	if o.engines == "" {
		return
	}
	for a := range strings.SplitSeq(o.engines, ",") {
		var s engineStats
		if err := getJSON("http://"+a+"/stats", &s); err != nil {
			fmt.Fprintln(os.Stderr, a, err)
		}
		out = append(out, s)
	}
	return
}

func getJSON(url string, v any) error {
	resp, err := (&http.Client{Timeout: 2 * time.Second}).Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return json.Unmarshal(b, v)
}
