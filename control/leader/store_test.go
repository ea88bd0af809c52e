package leader

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/state"
)

func open(t require.TestingT, c *kubetest.Cluster) *Store {
	s, err := OpenStore(context.Background(), c.Client(), "n", "state")
	require.NoError(t, err)
	return s
}

// all gives what a store has, as bucket/key=value.
func all(t require.TestingT, s state.Store, buckets ...string) (got []string) {
	for _, b := range buckets {
		require.NoError(t, s.Each(b, func(key string, value []byte) error {
			got = append(got, b+"/"+key+"="+string(value))
			return nil
		}))
	}
	return got
}

// Any history of writes and restarts gives what a store in memory has.
func TestAStoreIsLikeTheOneInMemory(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := kubetest.New(kubetest.Options{})
		defer c.Close()
		s, model := open(r, c), state.NewInMemory()
		names := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			if rapid.IntRange(0, 4).Draw(r, "what") == 0 {
				require.NoError(r, s.Close())
				s = open(r, c)
			}
			var changes []state.Change
			for range rapid.IntRange(1, 4).Draw(r, "changes") {
				change := state.Change{Bucket: rapid.SampledFrom(names).Draw(r, "bucket"), Key: rapid.SampledFrom(names).Draw(r, "key")}
				if rapid.Bool().Draw(r, "set") {
					change.Value = []byte(rapid.String().Draw(r, "value"))
				}
				changes = append(changes, change)
			}
			require.NoError(r, s.Write(changes...))
			require.NoError(r, model.Write(changes...))
			require.Equal(r, all(r, model, names...), all(r, s, names...))
			for _, b := range names {
				want, there, _ := model.Get(b, "a")
				got, ok, err := s.Get(b, "a")
				require.NoError(r, err)
				require.Equal(r, there, ok)
				require.Equal(r, want, got)
			}
		}
		require.Equal(r, all(r, model, names...), all(r, open(r, c), names...))
	})
}

func set(key, value string) state.Change {
	return state.Change{Bucket: "b", Key: key, Value: []byte(value)}
}

func TestWhoNoLongerLeadsCanNotWrite(t *testing.T) {
	c := cluster(t)
	old := open(t, c)
	require.NoError(t, old.Write(set("k", "1")))
	next := open(t, c)
	require.NoError(t, next.Write(set("k", "2")))
	require.ErrorIs(t, old.Write(set("k", "3")), ErrTaken)
	_, _, err := old.Get("b", "k")
	require.ErrorIs(t, err, ErrTaken, "what it knows is of no use any more")
	require.NoError(t, next.Write(set("l", "4")))
	require.Equal(t, []string{"b/k=2", "b/l=4"}, all(t, open(t, c), "b"))
}

// Whoever leads is told, whatever has become of the Secret.
func TestALeaderHearsThatTheStateWasTaken(t *testing.T) {
	for name, take := range map[string]func(t *testing.T, c *kubetest.Cluster){
		"written": func(t *testing.T, c *kubetest.Cluster) {
			t.Helper()
			require.NoError(t, open(t, c).Write(set("k", "2")))
		},
		"deleted": func(t *testing.T, c *kubetest.Cluster) {
			t.Helper()
			require.NoError(t, c.Client().CoreV1().Secrets("n").Delete(t.Context(), "state", metav1.DeleteOptions{}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster(t)
			s := open(t, c)
			require.NoError(t, s.Write(set("k", "1")))
			over, end := context.WithCancel(t.Context())
			end()
			require.ErrorIs(t, s.Taken(over), context.Canceled, "nothing has happened")
			told := make(chan error, 1)
			go func() { told <- s.Taken(t.Context()) }()
			take(t, c)
			require.ErrorIs(t, s.Write(set("k", "3")), ErrTaken)
			require.ErrorIs(t, receive(t, told), ErrTaken)
		})
	}
}

func TestWritesAfterTheLeadDoNotLast(t *testing.T) {
	c := cluster(t)
	begin := func() (*Store, context.CancelCauseFunc) {
		ctx, end := context.WithCancelCause(t.Context())
		s, err := OpenStore(ctx, c.Client(), "n", "state")
		require.NoError(t, err)
		return s, end
	}
	s, end := begin()
	end(nil)
	require.NoError(t, s.Write(set("k", "1")), "the lease is still held")
	s, end = begin()
	c.Slow(8 * time.Second) // less than a write may take while it leads
	end(nil)
	require.ErrorIs(t, s.Write(set("k", "2")), context.Canceled, "it is cut off before its own time is up")
	c.Slow(0)
	s, end = begin()
	end(ErrLost)
	c.ResetCalls()
	require.ErrorIs(t, s.Write(set("k", "3")), ErrLost)
	require.Empty(t, c.Calls(), "it is not even tried")
	require.Equal(t, []string{"b/k=1"}, all(t, open(t, c), "b"))
}

func TestTheSecretMayBeLabelledByOthers(t *testing.T) {
	c := cluster(t)
	s := open(t, c)
	require.NoError(t, s.Write(set("k", "1")))
	secrets := c.Client().CoreV1().Secrets("n")
	secret, err := secrets.Get(t.Context(), "state", metav1.GetOptions{})
	require.NoError(t, err)
	secret.Labels = map[string]string{"backup": "yes"}
	_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NoError(t, s.Write(set("k", "2")))
	require.Equal(t, []string{"b/k=2"}, all(t, open(t, c), "b"))
}

func TestAnAPIServerThatFailsForAWhile(t *testing.T) {
	c := cluster(t)
	s := open(t, c)
	c.Fail("update", "secrets", http.StatusInternalServerError, 2)
	require.NoError(t, s.Write(set("k", "1")))
	require.Equal(t, []string{"b/k=1"}, all(t, open(t, c), "b"))
}

func TestWhatMayNotBeWrittenIsSaid(t *testing.T) {
	c := cluster(t)
	s := open(t, c)
	c.Deny("update", "secrets")
	require.ErrorContains(t, s.Write(set("k", "1")), "forbidden")
	require.Empty(t, all(t, s, "b"), "nothing was written")
	c.Allow("update", "secrets")
	require.NoError(t, s.Write(set("k", "2")))

	require.Error(t, s.Write(state.Change{Bucket: "", Key: "k"}))
	noise := make([]byte, 2<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	require.ErrorIs(t, s.Write(state.Change{Bucket: "b", Key: "big", Value: noise}), state.ErrFull)
	require.Equal(t, []string{"b/k=2"}, all(t, s, "b"))
}

func TestASecretThatIsDamaged(t *testing.T) {
	c := cluster(t)
	_, err := c.Client().CoreV1().Secrets("n").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "state"}, Data: map[string][]byte{"shard-03": []byte("what is this")},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = OpenStore(t.Context(), c.Client(), "n", "state")
	require.ErrorIs(t, err, state.ErrDamaged)
	require.ErrorContains(t, err, "n/state")
}

// FuzzUnpack: what can be read is what is written of it again; what can't is damaged.
func FuzzUnpack(f *testing.F) {
	good, err := pack(buckets{"b": {"k": []byte("v")}})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte{})
	f.Add(slices.Concat(good[:10], []byte("x")))
	for _, text := range []string{"null", "{}", `{"b":null}`, `{"b":{"k":null}}`, `{"b":{"k":"dg=="}} {}`, "[", ""} {
		f.Add(gzipped(f, text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := unpack(data)
		if err != nil {
			require.ErrorIs(t, err, state.ErrDamaged)
			return
		}
		require.NotNil(t, b)
		packed, err := pack(b)
		require.NoError(t, err)
		again, err := unpack(packed)
		require.NoError(t, err)
		require.Equal(t, b, again)
	})
}

func gzipped(tb testing.TB, text string) []byte {
	tb.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write([]byte(text))
	require.NoError(tb, errors.Join(err, z.Close()))
	return out.Bytes()
}

func TestAShardThatIsCutOffIsDamaged(t *testing.T) {
	good, err := pack(buckets{"b": {"k": []byte("v"), "l": []byte("w")}})
	require.NoError(t, err)
	for n := 1; n < len(good); n++ {
		_, err := unpack(good[:n])
		require.ErrorIs(t, err, state.ErrDamaged, "%d of %d bytes", n, len(good))
	}
	_, err = unpack(bytes.Repeat(gzipped(t, strings.Repeat(" ", 1<<20)), maxShard>>20+1)) // members of one stream
	require.ErrorContains(t, err, "more than", "a bomb")
}
