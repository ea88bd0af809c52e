package state_test

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/state"
)

// stores are all that must behave as Store says.
func stores() map[string]func(testing.TB) state.Store {
	return map[string]func(testing.TB) state.Store{
		"memory": func(testing.TB) state.Store { return state.NewInMemory() },
		"file": func(tb testing.TB) state.Store {
			tb.Helper()
			db, err := state.Open(filepath.Join(tb.TempDir(), "state.db"))
			require.NoError(tb, err)
			return db
		},
	}
}

func TestStore(t *testing.T) {
	tests := map[string]func(t *testing.T, s state.Store){
		"nothing there": func(t *testing.T, s state.Store) {
			t.Helper()
			_, ok, err := s.Get("b", "k")
			require.NoError(t, err)
			require.False(t, ok)
			require.Empty(t, all(t, s, "b"))
		},
		"what was written is read": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "k", "1"), set("c", "k", "2")))
			require.Equal(t, "1", get(t, s, "b", "k"))
			require.Equal(t, "2", get(t, s, "c", "k"))
		},
		"an empty value is a value": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "k", "")))
			value, ok, err := s.Get("b", "k")
			require.NoError(t, err)
			require.True(t, ok)
			require.Empty(t, value)
			require.Equal(t, []string{"k="}, all(t, s, "b"))
		},
		"delete, also of what is not there": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "k", "1"), set("b", "l", "2")))
			require.NoError(t, s.Write(state.Change{Bucket: "b", Key: "k"}, state.Change{Bucket: "none", Key: "k"}))
			require.Equal(t, []string{"l=2"}, all(t, s, "b"))
		},
		"the last change of a key counts": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "k", "1"), state.Change{Bucket: "b", Key: "k"}, set("b", "k", "2"), set("b", "l", "3"), state.Change{Bucket: "b", Key: "l"}))
			require.Equal(t, []string{"k=2"}, all(t, s, "b"))
		},
		"a bad change changes nothing": func(t *testing.T, s state.Store) {
			t.Helper()
			require.Error(t, s.Write(set("b", "k", "1"), set("b", "", "2")))
			require.Error(t, s.Write(set("b", "k", "1"), set("", "k", "2")))
			require.Error(t, s.Write(set("b", "k", "1"), set("b", strings.Repeat("x", 40000), "2")))
			require.Empty(t, all(t, s, "b"))
		},
		"keys are in order": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "b", "2"), set("b", "a", "1"), set("b", "a\x00", "3"), set("b", "\xff", "4")))
			require.Equal(t, []string{"a=1", "a\x00=3", "b=2", "\xff=4"}, all(t, s, "b"))
		},
		"f's error ends Each": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "a", "1"), set("b", "b", "2")))
			enough := errors.New("enough")
			calls := 0
			require.ErrorIs(t, s.Each("b", func(string, []byte) error { calls++; return enough }), enough)
			require.Equal(t, 1, calls)
		},
		"values belong to the caller": func(t *testing.T, s state.Store) {
			t.Helper()
			mine := []byte("1")
			require.NoError(t, s.Write(state.Change{Bucket: "b", Key: "k", Value: mine}))
			mine[0] = 'x'
			got, _, err := s.Get("b", "k")
			require.NoError(t, err)
			got[0] = 'y'
			require.NoError(t, s.Each("b", func(_ string, value []byte) error { value[0] = 'z'; return nil }))
			require.Equal(t, "1", get(t, s, "b", "k"))
		},
		"Each sees one moment": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "a", "1"), set("b", "b", "1")))
			var seen []string
			require.NoError(t, s.Each("b", func(key string, value []byte) error {
				var other sync.WaitGroup
				var err error
				other.Go(func() { err = s.Write(set("b", "b", "2"), set("b", "c", "2")) })
				other.Wait()
				seen = append(seen, key+"="+string(value))
				return err
			}))
			require.Equal(t, []string{"a=1", "b=1"}, seen)
		},
		"after Close": func(t *testing.T, s state.Store) {
			t.Helper()
			require.NoError(t, s.Write(set("b", "k", "1")))
			require.NoError(t, s.Close())
			require.NoError(t, s.Close())
			_, _, err := s.Get("b", "k")
			require.ErrorIs(t, err, state.ErrClosed)
			require.ErrorIs(t, s.Write(set("b", "k", "1")), state.ErrClosed)
			require.ErrorIs(t, s.Each("b", func(string, []byte) error { return nil }), state.ErrClosed)
		},
		"many at once": func(t *testing.T, s state.Store) {
			t.Helper()
			var all sync.WaitGroup
			errs := make(chan error, 8)
			for w := range 8 {
				all.Go(func() { errs <- countUp(s, strconv.Itoa(w)) })
			}
			all.Wait()
			for range 8 {
				require.NoError(t, <-errs)
			}
			require.Equal(t, "9", get(t, s, "b", "7"))
		},
	}
	for kind, open := range stores() {
		for name, test := range tests {
			t.Run(kind+"/"+name, func(t *testing.T) {
				s := open(t)
				test(t, s)
				require.NoError(t, s.Close())
			})
		}
	}
}

// countUp writes 0 to 9 under a key and its mirror, and reads both back.
func countUp(s state.Store, key string) error {
	for i := range 10 {
		if err := s.Write(set("b", key, strconv.Itoa(i)), set("mirror", key, strconv.Itoa(i))); err != nil {
			return err
		}
		value, _, err := s.Get("b", key)
		if err != nil {
			return err
		}
		if string(value) != strconv.Itoa(i) {
			return fmt.Errorf("key %s: got %s, want %d", key, value, i)
		}
	}
	return nil
}

// TestStoresAgree makes the same random writes to a map and to each store.
func TestStoresAgree(t *testing.T) {
	dir := t.TempDir()
	files := 0
	rapid.Check(t, func(t *rapid.T) {
		files++
		path := filepath.Join(dir, strconv.Itoa(files), "state.db")
		db, err := state.Open(path)
		require.NoError(t, err)
		memory := state.NewInMemory()
		model := map[string]map[string]string{}
		word := rapid.SampledFrom([]string{"a", "b", "c", "d", "ab", "\x00", "ü"})
		for range rapid.IntRange(1, 8).Draw(t, "writes") {
			var changes []state.Change
			for range rapid.IntRange(0, 6).Draw(t, "changes") {
				c := state.Change{Bucket: word.Draw(t, "bucket"), Key: word.Draw(t, "key")}
				if rapid.Bool().Draw(t, "set") {
					c.Value = rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "value")
				}
				changes = append(changes, c)
				if model[c.Bucket] == nil {
					model[c.Bucket] = map[string]string{}
				}
				if c.Value == nil {
					delete(model[c.Bucket], c.Key)
				} else {
					model[c.Bucket][c.Key] = string(c.Value)
				}
			}
			require.NoError(t, db.Write(changes...))
			require.NoError(t, memory.Write(changes...))
		}
		require.NoError(t, db.Close())
		db, err = state.Open(path)
		require.NoError(t, err)
		for bucket, values := range model {
			var want []string
			for _, key := range slices.Sorted(maps.Keys(values)) {
				want = append(want, key+"="+values[key])
			}
			require.Empty(t, cmp.Diff(want, all(t, db, bucket)))
			require.Empty(t, cmp.Diff(want, all(t, memory, bucket)))
		}
		require.NoError(t, db.Close())
	})
}

func set(bucket, key, value string) state.Change {
	return state.Change{Bucket: bucket, Key: key, Value: []byte(value)}
}

func get(t require.TestingT, s state.Store, bucket, key string) string {
	value, ok, err := s.Get(bucket, key)
	require.NoError(t, err)
	require.True(t, ok)
	return string(value)
}

func all(t require.TestingT, s state.Store, bucket string) []string {
	var got []string
	require.NoError(t, s.Each(bucket, func(key string, value []byte) error {
		got = append(got, key+"="+string(value))
		return nil
	}))
	return got
}

func BenchmarkWrite(b *testing.B) {
	for kind, open := range stores() {
		b.Run(kind, func(b *testing.B) {
			s := open(b)
			value := make([]byte, 512)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				require.NoError(b, s.Write(state.Change{Bucket: "b", Key: strconv.Itoa(i % 10000), Value: value}))
			}
			require.NoError(b, s.Close())
		})
	}
}
