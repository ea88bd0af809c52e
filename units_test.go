package mobula_test

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula"
)

func TestDurationIsWrittenInTheFewestUnits(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "1ns": 1, "1.5s": 1500 * time.Millisecond, "1m": time.Minute, "1m30s": 90 * time.Second,
		"1h": time.Hour, "1h30m": 90 * time.Minute, "1h0m1s": time.Hour + time.Second, "-2h": -2 * time.Hour, "20h": 20 * time.Hour,
	} {
		require.Equal(t, want, mobula.Duration(d).String())
	}
}

func TestDurationRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"", "abc", "60", "1d", "1 s", "9999999h", "s", "１s"} {
		var d mobula.Duration
		require.ErrorContains(t, d.UnmarshalText([]byte(text)), `want a duration such as "2s"`, text)
	}
}

func TestSizeIsReadWithAndWithoutUnits(t *testing.T) {
	for text, want := range map[string]mobula.Size{
		"0": 0, "1500": 1500, "64MiB": 64 << 20, "1KiB": 1024, "1KB": 1000, "2MB": 2e6, "3GB": 3e9, "4GiB": 4 << 30,
		"9223372036854775807": math.MaxInt64, "8589934591GiB": 8589934591 << 30,
	} {
		var got mobula.Size
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, got, text)
	}
}

func TestSizeRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{
		"", "-1", "+1", "1.5GiB", "MiB", "1 MiB", "1mib", "1TiB", "1B", "0x10", "1_000",
		"9223372036854775808", "8589934592GiB", "9223372036854776KB", "99999999999999999999",
	} {
		var s mobula.Size
		require.ErrorContains(t, s.UnmarshalText([]byte(text)), `want a size such as "64MiB"`, text)
		require.Zero(t, s)
	}
}

func TestSizeIsWrittenInTheLargestUnit(t *testing.T) {
	for want, s := range map[string]mobula.Size{"0": 0, "1023": 1023, "1KiB": 1024, "64MiB": 64 << 20, "1GB": 1e9, "1GiB": 1 << 30, "1025KiB": 1025 << 10} {
		require.Equal(t, want, s.String())
	}
}

func TestRoleReadsBoth(t *testing.T) {
	for text, want := range map[string]mobula.Role{"": mobula.RoleBoth, "both": mobula.RoleBoth, "prefill": mobula.RolePrefill, "decode": mobula.RoleDecode} {
		role := mobula.Role("other")
		require.NoError(t, role.UnmarshalText([]byte(text)))
		require.Equal(t, want, role)
	}
	var role mobula.Role
	require.ErrorContains(t, role.UnmarshalText([]byte("Prefill")), "want prefill, decode or both")
}

// What is written as YAML or JSON is read back as the same.
func TestUnitsRoundTrip(t *testing.T) {
	type units struct {
		D mobula.Duration
		S mobula.Size
	}
	rapid.Check(t, func(t *rapid.T) {
		want := units{mobula.Duration(rapid.Int64().Draw(t, "duration")), mobula.Size(rapid.Int64Min(0).Draw(t, "size"))}
		if rapid.Bool().Draw(t, "round") {
			want.D = want.D / mobula.Duration(time.Minute) * mobula.Duration(time.Minute)
			want.S = want.S >> 20 << 20
		}
		data, err := yaml.Marshal(want)
		require.NoError(t, err)
		var got units
		require.NoError(t, yaml.Unmarshal(data, &got), "%s", data)
		require.Equal(t, want, got)

		data, err = json.Marshal(want)
		require.NoError(t, err)
		got = units{}
		require.NoError(t, json.Unmarshal(data, &got), "%s", data)
		require.Equal(t, want, got)
	})
}

func TestSecretIsNeverShown(t *testing.T) {
	data, err := json.Marshal(map[string]any{"key": mobula.Secret("hunter2")})
	require.NoError(t, err)
	require.JSONEq(t, `{"key":"(secret)"}`, string(data))
	require.Equal(t, "(secret)", mobula.Secret("hunter2").String())
	require.Equal(t, "(secret)", mobula.Secret("hunter2").GoString())
	require.Empty(t, mobula.Secret("").String())
}
