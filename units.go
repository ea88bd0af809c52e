package mobula

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as "1.5s", "10m".
type Duration time.Duration

// String gives it as it is written, in the fewest units: "2s", "1h", "1m30s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText writes the duration as String does; YAML, JSON and flags use it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`want a duration such as "2s", got %s`, quote(string(text)))
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes written as "64MiB", "1GB" or plain digits. It is never negative.
type Size int64

// unit is a suffix of a Size and what it stands for in bytes.
type unit struct {
	suffix string
	bytes  int64
}

// units lists the suffixes, largest first.
func units() [6]unit {
	return [...]unit{{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"KB", 1e3}}
}

// String gives the size in the largest unit that divides it: "64MiB", "1500".
func (s Size) String() string {
	for _, u := range units() {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText writes the size as String does; YAML, JSON and flags use it.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads whole numbers with or without KiB, MiB, GiB (powers of 1024), KB, MB
// or GB (powers of 1000). It refuses signs, fractions and what doesn't fit 63 bits.
func (s *Size) UnmarshalText(text []byte) error {
	digits, factor := string(text), int64(1)
	for _, u := range units() {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, factor = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n > uint64(math.MaxInt64/factor) {
		return fmt.Errorf(`want a size such as "64MiB", got %s`, quote(string(text)))
	}
	*s = Size(int64(n) * factor)
	return nil
}
