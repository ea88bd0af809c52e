package pick

import (
	"math"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const msec = time.Millisecond

func newTestCost() *cost { return newCost(1 << 20) }

func ask(now time.Duration, tokens int, blocks []uint64) *Request {
	return &Request{Model: testModel, Tokens: tokens, Blocks: blocks, Now: now, Depth: 3, Stream: true}
}

func TestCost(t *testing.T) {
	conversation := text(16, "c")
	for _, c := range []struct {
		name   string
		before func(p *cost, g *Group)
		r      *Request
		want   string
		reason string
	}{
		{"idle engines take turns", func(p *cost, g *Group) {
			p.Done(sentTo(p, g.Endpoints[0], 0, nil), Outcome{OK: true})
			p.Done(sentTo(p, g.Endpoints[2], 0, nil), Outcome{OK: true})
		}, ask(time.Minute, 10, nil), "e1", "load"},
		{"where the conversation is", func(p *cost, g *Group) {
			answered(p, g.Endpoints[1], conversation)
		}, ask(time.Second, 4000, conversation), "e1", "prefix"},
		{"not behind a queue that is longer than the prefill", func(p *cost, g *Group) {
			answered(p, g.Endpoints[1], conversation)
			for range 5 {
				p.Sent(ask(time.Second, 4000, nil), g.Endpoints[1], &Ticket{})
			}
		}, ask(time.Second, 4000, conversation), "e0", "load"},
		{"behind a queue that is shorter", func(p *cost, g *Group) {
			answered(p, g.Endpoints[1], conversation)
			p.Sent(ask(time.Second, 200, nil), g.Endpoints[1], &Ticket{})
		}, ask(time.Second, 4000, conversation), "e1", "prefix"},
		{"not where it hangs", func(p *cost, g *Group) {
			answered(p, g.Endpoints[1], conversation)
			p.Sent(ask(time.Second, 200, nil), g.Endpoints[1], &Ticket{})
		}, ask(5*time.Second, 4000, conversation), "e0", "load"},
		{"not where it was refused", func(p *cost, g *Group) {
			for range 3 {
				p.Done(sentTo(p, g.Endpoints[0], time.Second, nil), Outcome{Now: time.Second, Refused: true})
			}
		}, ask(time.Second+10*msec, 100, nil), "e1", "load"},
		{"a client that left is not a refusal", func(p *cost, g *Group) {
			p.Done(sentTo(p, g.Endpoints[1], time.Second, nil), Outcome{Now: time.Second})
			p.Done(sentTo(p, g.Endpoints[2], time.Second, nil), Outcome{Now: time.Second})
			p.Done(sentTo(p, g.Endpoints[0], time.Second, nil), Outcome{Now: time.Second})
		}, ask(time.Minute, 100, nil), "e1", "load"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, g := newTestCost(), testGroup(0, 0, 0)
			c.before(p, g)
			c.r.Explain = &Explanation{}
			got := p.Order(c.r, g, nil)
			require.Equal(t, c.want, got[0].ID, "%+v", c.r.Explain.Scores)
			require.Equal(t, c.reason, c.r.Reason)
			require.Len(t, got, 3)
		})
	}
}

func sentTo(p *cost, e *Endpoint, now time.Duration, blocks []uint64) *Ticket {
	t := &Ticket{}
	p.Sent(ask(now, max(10, len(blocks)*256), blocks), e, t)
	return t
}

// answered has e hold blocks, 20 ms being all that it took.
func answered(p *cost, e *Endpoint, blocks []uint64) {
	t := sentTo(p, e, 0, blocks)
	p.First(t, 20*msec)
	p.Done(t, Outcome{Now: 100 * msec, OK: true, Cached: -1, Completion: 5})
}

func TestTicketsOfUnknownAndVanishedEndpoints(t *testing.T) {
	p, g := newTestCost(), testGroup(0, 0)
	stranger := testEndpoint("stranger")
	blocks := text(5, "w")
	one, two := sentTo(p, stranger, 0, blocks), sentTo(p, g.Endpoints[0], 0, blocks)
	p.Keep(NewSnapshot(g.Endpoints[1:], nil, nil))
	require.Len(t, p.engines.byID, 1)
	three := sentTo(p, g.Endpoints[0], 0, blocks) // it is back, and must not be mixed up with its former self
	p.First(one, msec)
	p.Done(one, Outcome{Now: 2 * msec, OK: true, Prompt: 1280, Cached: 0, Completion: 1 << 20})
	p.Done(two, Outcome{Now: 2 * msec})
	n := p.engines.get(g.Endpoints[0])
	require.Equal(t, 1, n.load.active)
	require.EqualValues(t, 5, p.engines.match(ask(0, 1, blocks))[n.slot].Blocks)
	p.Done(three, Outcome{Now: 3 * msec, OK: true})
	for _, again := range []*Ticket{one, {}, {Seq: 99}, {Seq: 1 << 40}, {Seq: math.MaxUint64}} { // harmless
		p.First(again, 4*msec)
		p.Done(again, Outcome{Now: 4 * msec, OK: true})
	}
	requireIdle(t, p, g.Endpoints)
}

// A replica that its platform has moved has the same ID, and nothing of what it held.
func TestAnEngineAtAnotherAddressIsAnotherOne(t *testing.T) {
	for _, name := range []string{"cost", "prefix"} {
		t.Run(name, func(t *testing.T) {
			policy, g := mustNew(t, name), testGroup(0, 0, 0)
			p := policy.(Observer)
			r, other := ask(time.Second, 4000, text(16, "c")), ask(time.Second, 4000, text(16, "d"))
			var done, late Ticket
			p.Sent(r, g.Endpoints[1], &done)
			p.Done(&done, Outcome{Now: time.Second, OK: true, Cached: -1, Completion: 1})
			require.Equal(t, "e1", policy.Order(r, g, nil)[0].ID)
			require.Equal(t, "prefix", r.Reason)
			p.Sent(other, g.Endpoints[1], &late)

			moved := testGroup(0, 0, 0)
			moved.Endpoints[1].URL = "http://10.0.0.8:8000"
			p.Keep(NewSnapshot(moved.Endpoints, nil, nil))
			policy.Order(r, moved, nil)
			require.Equal(t, "load", r.Reason)

			var there Ticket
			p.Sent(other, moved.Endpoints[1], &there)
			p.Done(&there, Outcome{Now: 2 * time.Second, OK: true, Cached: -1, Completion: 1})
			p.Done(&late, Outcome{Now: 2 * time.Second, Cached: -1}) // it failed at the former address
			p.Keep(NewSnapshot(moved.Endpoints, nil, nil))
			require.Equal(t, "e1", policy.Order(other, moved, nil)[0].ID)
			require.Equal(t, "prefix", other.Reason)
		})
	}
}

func TestAbortedPromptsAreNotCountedOn(t *testing.T) {
	p, g := newTestCost(), testGroup(0)
	blocks := text(8, "w")
	answered(p, g.Endpoints[0], blocks[:3])
	held := func() int32 { return p.engines.match(ask(0, 1, blocks))[p.engines.get(g.Endpoints[0]).slot].Blocks }
	ticket := sentTo(p, g.Endpoints[0], time.Second, blocks)
	require.EqualValues(t, 8, held())
	require.InDelta(t, 8*256*3/8.5, ticket.Cached, 1)
	p.Done(ticket, Outcome{Now: time.Second})
	require.EqualValues(t, 3, held(), "no token came")
	ticket = sentTo(p, g.Endpoints[0], time.Second, blocks)
	p.First(ticket, 2*time.Second)
	p.Done(ticket, Outcome{Now: time.Second, Completion: 3})
	require.EqualValues(t, 8, held(), "tokens came, so the prompt was computed")
}

func TestARestartedEngineIsNoticed(t *testing.T) {
	p, g := newTestCost(), testGroup(0)
	e := g.Endpoints[0]
	for i := range 10 {
		answered(p, e, text(8, strconv.Itoa(i)))
	}
	held := func(word string) int32 {
		return p.engines.match(ask(0, 1, text(8, word)))[p.engines.get(e).slot].Blocks
	}
	finish := func(word string, cached int) {
		ticket := sentTo(p, e, time.Minute, text(8, word))
		require.Positive(t, ticket.Cached)
		p.First(ticket, time.Minute+100*msec)
		p.Done(ticket, Outcome{Now: time.Minute + 200*msec, OK: true, Prompt: 2100, Cached: cached, Completion: 1})
	}
	finish("1", 0)
	finish("2", 2000) // it has some after all
	finish("3", 0)
	require.EqualValues(t, 8, held("4"), "one miss proves nothing")
	finish("4", 0)
	require.EqualValues(t, 0, held("5"))
	require.EqualValues(t, 8, held("4"), "but for what it computed just now")
}

func TestPlainAnswersLeaveTheQueueByTime(t *testing.T) {
	p, g := newTestCost(), testGroup(0)
	e := g.Endpoints[0]
	r := ask(0, 1000, nil)
	r.Stream = false
	var first, second Ticket
	p.Sent(r, e, &first)
	p.Sent(r, e, &second)
	l := &p.engines.get(e).load
	late := plainLate * p.plain
	require.InDelta(t, first.Seconds+second.Seconds, p.attempts.wait(l, 0, late), 1e-9)
	require.InDelta(t, second.Seconds, p.attempts.wait(l, duration(first.Seconds), late), 1e-6)
	require.Zero(t, p.attempts.wait(l, time.Second, late), "both are computed, though not yet answered")
	require.InDelta(t, 20, p.attempts.wait(l, duration(late+20), late), 1e-6, "an engine that hangs")
	p.First(&first, time.Minute)
	p.Done(&first, Outcome{Now: time.Minute, OK: true})
	p.Done(&second, Outcome{Now: time.Minute})
	requireIdle(t, p, g.Endpoints)
}

func TestASlowEngineIsNeverStarved(t *testing.T) {
	l := load{speed: 1}
	for i := range 1000 {
		l.observe(1e9, time.Duration(i)*msec)
	}
	require.LessOrEqual(t, l.speed, speedMax)
	require.Less(t, l.speedNow(time.Second+10*speedSpan), 1.2, "and what is old is forgotten")
	for range 1000 {
		l.refused(0)
	}
	require.LessOrEqual(t, l.penaltyNow(0), maxPenalty)
	require.Less(t, l.penaltyNow(30*time.Second), 0.02)
	l.served()
	require.Zero(t, l.penaltyNow(0))
}

func TestEvictionCosts(t *testing.T) {
	p, g := newTestCost(), testGroup(0, 0)
	for _, e := range g.Endpoints {
		e.CacheTokens = 20 * 256
	}
	p.Keep(NewSnapshot(g.Endpoints, nil, nil))
	for i := range 30 { // e0's prompts come back again and again, e1 has room
		answered(p, g.Endpoints[0], text(8, strconv.Itoa(i%4)))
	}
	x := &Explanation{}
	r := ask(time.Hour, 2048, text(8, "new"))
	r.Explain = x
	p.Order(r, g, nil)
	require.Greater(t, x.Scores[0].Cost, x.Scores[1].Cost)
}

// Whatever the order of events, all counts end at zero and every cost is a finite number.
func TestQueuesReturnToZero(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newTestCost()
		g := testGroup(0, 0, 0)
		type open struct {
			ticket *Ticket
			first  bool
		}
		var tickets []open
		now := time.Duration(0)
		pass := func(t *rapid.T) { now += time.Duration(rapid.IntRange(0, 500).Draw(t, "ms")) * msec }
		done := func(t *rapid.T, i int) {
			p.Done(tickets[i].ticket, Outcome{
				Now: now, OK: rapid.Bool().Draw(t, "ok"), Refused: rapid.Bool().Draw(t, "refused"),
				Prompt: rapid.IntRange(0, 5000).Draw(t, "prompt"), Cached: rapid.IntRange(-1, 5000).Draw(t, "cached"),
				Completion: rapid.IntRange(0, 3000).Draw(t, "completion"),
			})
			tickets = append(tickets[:i:i], tickets[i+1:]...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				pass(t)
				r := ask(now, rapid.IntRange(1, 9000).Draw(t, "tokens"), text(rapid.IntRange(0, 6).Draw(t, "blocks"), rapid.StringMatching("[ab]").Draw(t, "word")))
				r.Stream = rapid.Bool().Draw(t, "stream")
				r.Explain = &Explanation{}
				list := p.Order(r, g, nil)
				for _, s := range r.Explain.Scores {
					require.False(t, math.IsNaN(s.Cost) || math.IsInf(s.Cost, 0) || s.Cost < 0, "%v", s.Cost)
				}
				ticket := &Ticket{}
				p.Sent(r, rapid.SampledFrom(list).Draw(t, "endpoint"), ticket)
				require.True(t, ticket.Cached >= 0 && ticket.Cached < r.Tokens)
				tickets = append(tickets, open{ticket, false})
			},
			"first": func(t *rapid.T) {
				if len(tickets) == 0 {
					t.Skip("none") // before anything is drawn: rapid takes another action then
				}
				pass(t)
				i := rapid.IntRange(0, len(tickets)-1).Draw(t, "i")
				if !tickets[i].first {
					tickets[i].first = true
					p.First(tickets[i].ticket, now)
				}
			},
			"done": func(t *rapid.T) {
				if len(tickets) == 0 {
					t.Skip("none") // before anything is drawn: rapid takes another action then
				}
				pass(t)
				done(t, rapid.IntRange(0, len(tickets)-1).Draw(t, "i"))
			},
			"keep": func(t *rapid.T) {
				n := rapid.IntRange(1, 3).Draw(t, "n")
				p.Keep(NewSnapshot(g.Endpoints[:n], nil, nil))
			},
			"": func(t *rapid.T) {
				for _, n := range p.engines.byID {
					require.GreaterOrEqual(t, n.load.queued, -1e-9)
				}
			},
		})
		for len(tickets) > 0 {
			done(t, 0)
		}
		requireIdle(t, p, g.Endpoints)
	})
}

func TestCostByManyGoroutines(t *testing.T) {
	p, g := newTestCost(), testGroup(0, 0, 0, 0)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				r := ask(time.Duration(i)*msec, 2000, text(i%6, strconv.Itoa(w)))
				ticket := &Ticket{}
				p.Sent(r, p.Order(r, g, nil)[0], ticket)
				if i%3 > 0 {
					p.First(ticket, r.Now+msec)
				}
				p.Done(ticket, Outcome{Now: r.Now + 2*msec, OK: i%5 > 0, Completion: i % 7})
				if i%50 == 0 {
					p.Keep(NewSnapshot(g.Endpoints[:1+i%4], nil, nil))
				}
			}
		})
	}
	wg.Wait()
	requireIdle(t, p, g.Endpoints)
}
