package mobula_test

import (
	"encoding/json"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func TestRangesReadWhatTheyWrite(t *testing.T) {
	type ranges struct {
		R mobula.Range
		P mobula.PortRange
	}
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.IntRange(0, mobula.MaxReplicas).Draw(t, "low")
		want := ranges{R: mobula.Range{Min: low, Max: rapid.IntRange(low, mobula.MaxReplicas).Draw(t, "high")}}
		if rapid.Bool().Draw(t, "ports") {
			first := rapid.IntRange(1024, 65535).Draw(t, "first")
			want.P = mobula.PortRange{Min: first, Max: rapid.IntRange(first, 65535).Draw(t, "last")}
		}
		for _, codec := range []struct {
			write func(any) ([]byte, error)
			read  func([]byte, any) error
		}{
			{json.Marshal, json.Unmarshal},
			{yaml.Marshal, func(data []byte, to any) error { return yaml.Unmarshal(data, to) }},
		} {
			data, err := codec.write(want)
			require.NoError(t, err)
			var got ranges
			require.NoError(t, codec.read(data, &got), "%s", data)
			require.Equal(t, want, got)
		}
	})
}

func TestRangesRefuseWhatIsNone(t *testing.T) {
	for _, text := range []string{"", "-", "-1", "1-", "4-1", "1-2-3", "1001", "0-1001", "a", "1 - 2", "99999"} {
		var r mobula.Range
		require.ErrorContains(t, r.UnmarshalText([]byte(text)), "want a number of replicas", text)
		require.Zero(t, r)
	}
	for _, text := range []string{"-", "30000", "30000-", "-30000", "1023-2000", "3000-2000", "1024-65536", "1024-2000-3000", "a-b", " 1024-2000"} {
		var p mobula.PortRange
		require.ErrorContains(t, p.UnmarshalText([]byte(text)), "want a range of ports", text)
		require.Zero(t, p)
	}
}

func TestClampKeepsToTheRange(t *testing.T) {
	r := mobula.Range{Min: 1, Max: 4}
	for n, want := range map[int]int{-1: 1, 0: 1, 1: 1, 3: 3, 4: 4, 9: 4} {
		require.Equal(t, want, r.Clamp(n))
	}
}
