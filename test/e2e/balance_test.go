package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/engine/sim"
)

// TestRow01SharedSystemPromptSpreads plays 200 users with 5 rounds each and one shared system
// prompt of about 1,000 tokens on four engines: no engine may get over 35 % of the
// requests, whoever the policy finds the prefix on, and the prefix must be found.
func TestRow01SharedSystemPromptSpreads(t *testing.T) {
	system := strings.Repeat("You are a helpful and careful ray. ", 4000/35)
	hits := map[string]float64{}
	for _, policy := range []string{"roundrobin", "cost", "prefix"} {
		for _, concurrent := range []int{16, 128} {
			for _, sessions := range []bool{true, false} {
				if policy == "roundrobin" && (concurrent != 16 || sessions) {
					continue // the base line, once
				}
				t.Run(fmt.Sprintf("%s/%d/sessions=%t", policy, concurrent, sessions), func(t *testing.T) {
					share, hit := playUsers(t, policy, concurrent, sessions, system)
					t.Logf("largest share %.3f, prefix hits %.3f", share, hit)
					hits[policy] = max(hits[policy], hit)
					if policy != "roundrobin" {
						require.LessOrEqual(t, share, 0.35)
					}
				})
			}
		}
	}
	require.Greater(t, hits["cost"], hits["roundrobin"])
	require.Greater(t, hits["prefix"], hits["roundrobin"])
}

func playUsers(t *testing.T, policy string, concurrent int, sessions bool, system string) (share, hit float64) {
	t.Helper()
	const users, rounds, engines = 200, 5, 4
	var all []*engineUnderTest
	var urls []string
	for range engines {
		// one user's last round is some 2,000 tokens; an engine holds about 60 users
		e := startEngine(t, sim.Options{Model: "m", Blocks: 8192, PrefillBase: time.Millisecond, PrefillRate: 200_000, MinAnswer: 8, MaxAnswer: 8})
		all, urls = append(all, e), append(urls, e.url)
	}
	r := startRouter(t, fleetOf("router:\n  policy: {name: "+policy+"}\n", urls...))
	var failed atomic.Pointer[answer]
	turns := make(chan func(), users)
	var wg sync.WaitGroup
	for range concurrent {
		wg.Go(func() {
			for turn := range turns {
				turn()
			}
		})
	}
	// rounds in waves, so that a user's next turn follows the answer to the last one
	histories := make([]string, users)
	for round := range rounds {
		var wave sync.WaitGroup
		// in another order each time: else round robin would always send a user to one engine
		for _, u := range rand.New(rand.NewPCG(1, uint64(round))).Perm(users) {
			wave.Add(1)
			turns <- func() {
				defer wave.Done()
				question := fmt.Sprintf("user %d asks in round %d: %s", u, round, strings.Repeat(fmt.Sprintf("word%d-%d ", u, round), 60))
				histories[u] += fmt.Sprintf(`,{"role":"user","content":%q}`, question)
				body := fmt.Sprintf(`{"model":"m","messages":[{"role":"system","content":%q}%s],"max_tokens":8}`, system, histories[u])
				var header []string
				if sessions {
					header = []string{"X-Session-Id", fmt.Sprint("user-", u)}
				}
				a := post(r.url+"/v1/chat/completions", body, header...)
				if a.err != nil || a.status != http.StatusOK {
					failed.Store(&a)
				}
				histories[u] += `,{"role":"assistant","content":"ok"}`
			}
		}
		wave.Wait()
	}
	close(turns)
	wg.Wait()
	if a := failed.Load(); a != nil {
		t.Fatalf("a request failed: %d %v %s", a.status, a.err, a.body)
	}
	r.idle()
	var requests, most, prompt, cached float64
	for _, e := range all {
		s := e.Stats()
		requests += float64(s.Requests)
		most = max(most, float64(s.Requests))
		prompt += float64(s.Prompt)
		cached += float64(s.Cached)
	}
	require.EqualValues(t, users*rounds, requests)
	return most / requests, cached / prompt
}
