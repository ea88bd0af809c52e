package pick

import (
	"container/heap"
	"container/list"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/kv"
)

// The simulator: engines with a serial prefill and an LRU prefix cache, users, and the policy
// under test, in virtual time. It does what the measurements of docs/performance.md did with
// processes, but without noise: one seed, one result.

const (
	simPrefill  = 20 * time.Millisecond
	simPerToken = 50 * time.Microsecond
	simITL      = 5 * time.Millisecond
	simBlock    = 256 // bytes: 64 tokens of 4; blocks of 16 give the same and take four times as long
	simToken    = 4   // bytes
)

// simFault is what goes wrong with an engine.
type simFault struct {
	after   time.Duration // it takes requests and fails them after so long
	restart bool          // it loses its cache
}

// simEngine computes one prompt after the other; answers are generated beside them.
type simEngine struct {
	endpoint *Endpoint
	slowness float64
	free     time.Duration // when its prefill is idle
	capacity int           // blocks, 0 for no limit
	blocks   map[uint64]*list.Element
	order    *list.List // most recent first
	requests int
	prompt   int
	cached   int
	fault    simFault
	from, to time.Duration // of the fault
}

func (e *simEngine) lookup(blocks []uint64) (n int) {
	for n < len(blocks) && e.blocks[blocks[n]] != nil {
		n++
	}
	return n
}

func (e *simEngine) insert(blocks []uint64) {
	for _, h := range slices.Backward(blocks) {
		if el := e.blocks[h]; el != nil {
			e.order.MoveToFront(el)
		} else {
			e.blocks[h] = e.order.PushFront(h)
		}
	}
	for e.capacity > 0 && e.order.Len() > e.capacity {
		delete(e.blocks, e.order.Remove(e.order.Back()).(uint64))
	}
}

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

type sim struct {
	policy  Policy
	group   *Group
	engines []*simEngine
	now     time.Duration
	queue   events
	seq     int
	rand    *rand.Rand
	warm    int
	ttft    []time.Duration
	plain   bool
	usage   bool // engines say how many tokens were cached
	retries int
}

// simMix is one kind of traffic, and what cost must make of it.
type simMix struct {
	name   string
	cfg    simConfig
	factor float64 // of cost's hit rate over round robin's, at least; 0 where there is nothing to win
	ofMost float64 // of cost's hit rate over the bound, at least
}

type simConfig struct {
	engines  int
	capacity int // tokens
	slow     int // engines at half speed
	users    int // of chats
	rounds   int
	system   int // tokens shared by all users of a group
	groups   int
	history  int // tokens of each user
	question int // tokens of each round
	output   int // tokens
	rate     float64
	closed   int // users at once that answer at once, instead of rate
	sessions bool
	plain    bool
	usage    bool
	instant  bool // prefill takes no time
	total    int  // requests
	warm     int  // of these, the first ones that are not measured
}

func newSim(p Policy, c simConfig) *sim {
	s := &sim{policy: p, rand: rand.New(rand.NewPCG(1, 2)), plain: c.plain, usage: c.usage, warm: c.warm}
	var endpoints []*Endpoint
	for i := range c.engines {
		e := testEndpoint(fmt.Sprint("engine-", i))
		e.CacheTokens = c.capacity
		endpoints = append(endpoints, e)
		n := &simEngine{endpoint: e, slowness: 1, capacity: c.capacity * simToken / simBlock, blocks: map[uint64]*list.Element{}, order: list.New()}
		if i < c.slow {
			n.slowness = 2
		}
		if c.instant {
			n.slowness = 0
		}
		s.engines = append(s.engines, n)
	}
	snapshot := NewSnapshot(endpoints, nil, nil)
	s.group = snapshot.Lookup(testModel)
	if o, ok := p.(Observer); ok {
		o.Keep(snapshot)
	}
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + d, s.seq, do})
}

func (s *sim) run() {
	for len(s.queue) > 0 {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
	}
}

// request sends a prompt and calls done when all is answered.
func (s *sim) request(text []byte, session string, output int, done func()) {
	r := &Request{
		Model: testModel, Session: session, Tokens: len(text)/simToken + 1, Output: output, Stream: !s.plain,
		Now: s.now, Rand: s.rand.Uint64(), Depth: 3,
	}
	if s.policy.Needs().Blocks {
		r.Blocks = kv.Blocks(nil, 1, BlockBytes, text)
	}
	list := s.policy.Order(r, s.group, nil)
	s.attempt(r, list, kv.Blocks(nil, 0, simBlock, text), s.now, output, done)
}

func (s *sim) attempt(r *Request, order []*Endpoint, blocks []uint64, start time.Duration, output int, done func()) {
	i := slices.Index(s.group.Endpoints, order[0])
	e := s.engines[i]
	live := e.endpoint.Live
	live.InFlight.Add(1)
	live.Tokens.Add(int64(r.Tokens))
	o, _ := s.policy.(Observer)
	t := &Ticket{}
	if o != nil {
		o.Sent(r, e.endpoint, t)
	}
	end := func(out Outcome) {
		live.InFlight.Add(-1)
		live.Tokens.Add(-int64(r.Tokens))
		out.Now = s.now
		if o != nil {
			o.Done(t, out)
		}
	}
	if wait := e.fault.after; wait > 0 && s.now >= e.from && s.now < e.to {
		s.retries++
		s.after(wait, func() {
			end(Outcome{Cached: -1, Refused: true})
			r.Now = s.now
			s.attempt(r, order[1:], blocks, start, output, done)
		})
		return
	}
	// the prompt waits for its turn, then finds what is cached by then
	begin := max(s.now, e.free)
	if e.fault.restart && begin >= e.from {
		clear(e.blocks)
		e.order.Init()
		e.fault.restart = false
	}
	hit := e.lookup(blocks)
	e.insert(blocks)
	service := time.Duration(e.slowness * float64(simPrefill+simPerToken*time.Duration(r.Tokens-hit*simBlock/simToken)))
	e.free = begin + service
	measured := s.warm <= 0
	s.warm--
	if measured {
		e.requests++
		e.prompt += len(blocks)
		e.cached += hit
	}
	s.after(e.free-s.now, func() {
		if measured {
			s.ttft = append(s.ttft, s.now-start)
		}
		if o != nil && !s.plain {
			o.First(t, s.now)
		}
	})
	s.after(e.free-s.now+time.Duration(output)*simITL, func() {
		out := Outcome{OK: true, Cached: -1, Completion: output}
		if s.usage {
			out.Prompt, out.Cached = r.Tokens, hit*simBlock/simToken
		}
		e.insert(kv.Blocks(nil, uint64(s.seq), simBlock, make([]byte, output*simToken)))
		end(out)
		done()
	})
}

// words makes n tokens of text.
func words(seed uint64, n int) []byte {
	b := make([]byte, simToken*n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

// play has users chat, one conversation after the other, until total requests are sent.
func (s *sim) play(c simConfig) {
	sent, people := 0, 0
	gap := time.Duration(0)
	users := c.closed
	if c.closed == 0 {
		users = c.users
		gap = time.Duration(float64(c.users) / c.rate * float64(time.Second))
	}
	answer := words(99, c.output)
	for u := range users {
		think := rand.New(rand.NewPCG(3, uint64(u)))
		first := u % c.rounds // so that conversations are not in step
		var text []byte
		var session string
		round := c.rounds
		var next func()
		due := gap * time.Duration(u) / time.Duration(users)
		next = func() {
			if sent >= c.total {
				return
			}
			if round >= c.rounds {
				if c.closed > 0 && people >= c.users {
					return // all have had their turn
				}
				person := people
				people++
				text = append(words(1000+mix(uint64(person))%uint64(max(1, c.groups)), c.system), words(1<<20+uint64(person), c.history)...)
				session, round = "", first
				if c.sessions {
					session = fmt.Sprint("user-", person)
				}
				if c.closed > 0 {
					round = 0
				}
				first = 0
			}
			text = append(text, words(1<<40+uint64(people)*64+uint64(round)+uint64(u)<<32, c.question)...)
			round++
			sent++
			s.request(text, session, c.output, func() {
				text = append(text, answer...)
				due += time.Duration(float64(gap) * (0.5 + think.Float64()))
				if c.closed > 0 { // nobody types at once, and in step round robin would keep users where they are
					due = s.now + time.Duration(think.Int64N(int64(100*time.Millisecond)))
				}
				due = max(due, s.now)
				s.after(due-s.now, next)
			})
		}
		s.after(due, next)
	}
	s.run()
}

type simResult struct {
	hit, share float64
	mean, p99  time.Duration
}

func (s *sim) result() (r simResult) {
	prompt, cached, requests, most := 0, 0, 0, 0
	for _, e := range s.engines {
		prompt += e.prompt
		cached += e.cached
		requests += e.requests
		most = max(most, e.requests)
	}
	slices.Sort(s.ttft)
	var sum time.Duration
	for _, d := range s.ttft {
		sum += d
	}
	n := len(s.ttft)
	return simResult{float64(cached) / float64(max(1, prompt)), float64(most) / float64(requests), sum / time.Duration(n), s.ttft[n*99/100]}
}

func simulate(t *testing.T, policy string, c simConfig) simResult {
	t.Helper()
	p, err := New(Options{Name: policy})
	require.NoError(t, err)
	s := newSim(p, c)
	s.play(c)
	requireIdle(t, p, s.group.Endpoints)
	return s.result()
}

// bound is the hit rate of one engine with an endless cache and no need of time.
func bound(t *testing.T, c simConfig) float64 {
	t.Helper()
	c.engines, c.capacity, c.slow, c.instant = 1, 0, 0, true
	return simulate(t, "random", c).hit
}

var _ heap.Interface = (*events)(nil)

func qa() simConfig {
	return simConfig{
		engines: 4, capacity: 64_000, users: 48, rounds: 6, system: 1000, history: 3000, question: 20, output: 40,
		rate: 16, total: 1500, warm: 300, usage: true,
	}
}

func change(c simConfig, f func(*simConfig)) simConfig {
	f(&c)
	return c
}

func mixes() []simMix {
	applications := simConfig{
		engines: 4, capacity: 64_000, users: 48, rounds: 1, system: 3000, groups: 24, question: 150, output: 40,
		rate: 30, total: 1500, warm: 200, usage: true,
	}
	return []simMix{
		{"multi-round QA", change(qa(), func(c *simConfig) { c.sessions = true }), 1.9, 0.98},
		{"without session ids", qa(), 1.9, 0.98},
		{"at 2.5 times the rate", change(qa(), func(c *simConfig) { c.rate = 40 }), 1.9, 0.98},
		{"one engine at half speed", change(qa(), func(c *simConfig) { c.slow = 1 }), 1.9, 0.96},
		{"plain answers", change(qa(), func(c *simConfig) { c.plain = true }), 1.9, 0.98},
		{"nothing said of hits", change(qa(), func(c *simConfig) { c.usage = false }), 1.9, 0.98},
		{"caches too small", change(qa(), func(c *simConfig) { c.capacity = 24_000 }), 1.1, 0},
		{"one-shot users of applications", applications, 1.2, 0.96},
		{"hot prefix", change(applications, func(c *simConfig) { c.system, c.groups, c.history = 2000, 2, 800 }), 0, 0.96},
		{"no reuse", change(applications, func(c *simConfig) { c.system, c.history, c.rate = 0, 2000, 20 }), 0, 0},
	}
}

func crowd(concurrent int, sessions bool) simConfig {
	return simConfig{
		engines: 4, capacity: 64_000, users: 200, rounds: 5, system: 1000, question: 300, output: 40,
		closed: concurrent, sessions: sessions, total: 1000,
	}
}

// table plays one traffic with every policy; best is the bound on the hit rate.
func table(t *testing.T, c simConfig) (best float64, results map[string]simResult) {
	t.Helper()
	best = bound(t, c)
	t.Logf("%-10s %5s %9s %9s %6s   (hit bound %.3f)", "policy", "hit", "mean ms", "p99 ms", "share", best)
	results = map[string]simResult{}
	for _, name := range Names() {
		r := simulate(t, name, c)
		results[name] = r
		t.Logf("%-10s %.3f %9.1f %9.1f %6.2f", name, r.hit, ms(r.mean), ms(r.p99), r.share)
	}
	return best, results
}

// noise is what two runs of one policy on other seeds may differ by.
const noise = 1.03

func TestCostBeatsEveryOtherPolicy(t *testing.T) {
	for _, m := range mixes() {
		t.Run(m.name, func(t *testing.T) {
			best, results := table(t, m.cfg)
			cost := results["cost"]
			for name, r := range results {
				require.LessOrEqual(t, ms(cost.mean), ms(r.mean)*noise, name)
			}
			require.GreaterOrEqual(t, cost.hit, m.ofMost*best)
			require.GreaterOrEqual(t, cost.hit, m.factor*results["roundrobin"].hit)
			require.LessOrEqual(t, cost.share, 0.35)
			require.LessOrEqual(t, results["prefix"].share, 0.35)
		})
	}
}

// Row 1 of the defects of production-stack: a shared system prompt sent everything to one engine.
func TestSharedSystemPromptPinsNothing(t *testing.T) {
	for _, concurrent := range []int{16, 128} {
		for _, sessions := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d concurrent/sessions %v", concurrent, sessions), func(t *testing.T) {
				best, results := table(t, crowd(concurrent, sessions))
				for _, name := range []string{"cost", "prefix"} {
					r := results[name]
					require.LessOrEqual(t, r.share, 0.35, name)
					require.GreaterOrEqual(t, r.hit, 0.96*best, name)
					require.GreaterOrEqual(t, r.hit, 1.2*results["roundrobin"].hit, name)
				}
			})
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
