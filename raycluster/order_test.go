package raycluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestNamesAreReadAsTheyWereMade(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,40}`)
		owner, replica, rank := id.Draw(t, "owner"), id.Draw(t, "replica"), rapid.IntRange(0, 63).Draw(t, "rank")
		o, r, n, ok := ParseName(PartName(ActorName(owner, replica), rank))
		require.True(t, ok)
		require.Equal(t, []any{owner, replica, rank}, []any{o, r, n})
	})
}

func TestNamesOfOthersAreNotOurs(t *testing.T) {
	for _, name := range []string{
		"", "mobula", "mobula/", "mobula/a", "mobula/a/", "mobula//b", "mobula/a/b/c", "other/a/b", "mobula/a/b.", "mobula/a/b.0",
		"mobula/a/b.01", "mobula/a/b.x", "mobula/a/b.-1", "mobula/a/.1", "mobula/a/b.1.2", "SERVE_REPLICA::x",
	} {
		_, _, _, ok := ParseName(name)
		require.False(t, ok, name)
	}
}

func TestAnOrderIsReadAsItWasWritten(t *testing.T) {
	want := Order{
		Version: OrderVersion, Namespace: "mobula", Detached: true,
		Start: []Start{{
			Name: ActorName("ab", "llama-1"), Fleet: "f", Model: "m", Revision: "r", Replica: "llama-1",
			Argv: [][]string{{"vllm", "serve", "--port", "{port}"}}, Env: map[string]string{"A": "{host}"},
			Bundle: map[string]float64{"CPU": 1, "GPU": 2}, Labels: map[string]string{"zone": "in(a,b)"},
			RuntimeEnv: json.RawMessage(`{"pip":["x"]}`), PortMin: 1, PortMax: 2, StartTimeout: 1800, StopTimeout: 45,
			Attempts: 3, Backoff: 1, MaxBackoff: 60, Stable: 60,
		}},
		Stop: []Stop{{Name: ActorName("ab", "llama-2"), Timeout: 45}},
	}
	text, err := json.Marshal(want)
	require.NoError(t, err)
	var got Order
	require.NoError(t, json.Unmarshal(text, &got))
	require.Empty(t, cmp.Diff(want, got))
}

func TestAPublicationIsRead(t *testing.T) {
	p, ok := ParsePublication(`mobula {"v":1,"url":"http://10.77.0.2:46127","fleet":"f","model":"m","revision":"r","replica":"llama-1",` +
		`"rank":0,"gen":2,"pid":77,"devices":"0,1","readyAt":1795388952.208}`)
	require.True(t, ok)
	require.Empty(t, cmp.Diff(Publication{
		Version: 1, URL: "http://10.77.0.2:46127", Fleet: "f", Model: "m", Revision: "r", Replica: "llama-1", Generation: 2, PID: 77,
		Devices: "0,1", ReadyAt: 1795388952.208,
	}, p))
	require.Equal(t, time.UnixMilli(1795388952208), p.Ready())
}

func TestReprsOfOthersAreNoPublications(t *testing.T) {
	for _, repr := range []string{"", "mobula", "mobula ", "mobula {}", `mobula {"v":2,"replica":"x"}`, `mobula {"v":1}`, `{"v":1,"replica":"x"}`, "<Other object>"} {
		_, ok := ParsePublication(repr)
		require.False(t, ok, repr)
	}
}

func FuzzParseName(f *testing.F) {
	for _, seed := range []string{"mobula/ab/llama-1", "mobula/ab/llama-1.1", "mobula/a/b.01", "mobula//", "", "mobula/a/b.9999999999999999999"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		owner, replica, rank, ok := ParseName(name)
		if ok && PartName(ActorName(owner, replica), rank) != name {
			t.Fatalf("%q is read as %q, %q, %d", name, owner, replica, rank)
		}
	})
}

func FuzzParsePublication(f *testing.F) {
	f.Add(`mobula {"v":1,"url":"http://10.77.0.2:46127","replica":"llama-1","gen":2,"pid":77,"readyAt":1795388952.208}`)
	f.Add(`mobula {"v":1,"replica":"x","readyAt":1e308}`)
	f.Add("mobula {")
	f.Fuzz(func(t *testing.T, repr string) {
		p, ok := ParsePublication(repr)
		if !ok {
			return
		}
		text, err := json.Marshal(p)
		require.NoError(t, err)
		again, ok := ParsePublication(publicationPrefix + string(text))
		require.True(t, ok)
		require.Equal(t, p, again)
		require.NotPanics(t, func() { _ = p.Ready() })
	})
}

func ExamplePartName() {
	fmt.Println(strings.Join([]string{PartName("mobula/ab/llama-1", 0), PartName("mobula/ab/llama-1", 1)}, " "))
	// Output: mobula/ab/llama-1 mobula/ab/llama-1.1
}
