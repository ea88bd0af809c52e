package mobula

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxReplicas bounds a Range.
const MaxReplicas = 1000

// Range is a number of replicas, or the least and the most of them: "2", "1-4".
type Range struct{ Min, Max int }

// String gives it as it is written.
func (r Range) String() string {
	if r.Min == r.Max {
		return strconv.Itoa(r.Min)
	}
	return strconv.Itoa(r.Min) + "-" + strconv.Itoa(r.Max)
}

// MarshalText writes the range as String does; YAML and JSON use it.
func (r Range) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads "2" and "1-4", each number from 0 to MaxReplicas.
func (r *Range) UnmarshalText(text []byte) error {
	low, high, isRange := strings.Cut(string(text), "-")
	if !isRange {
		high = low
	}
	least, err := strconv.ParseUint(low, 10, 16)
	most, errHigh := strconv.ParseUint(high, 10, 16)
	if err != nil || errHigh != nil || least > most || most > MaxReplicas {
		return fmt.Errorf("want a number of replicas such as 2 or a range such as 1-4, at most %d, got %s", MaxReplicas, quote(string(text)))
	}
	*r = Range{int(least), int(most)}
	return nil
}

// Clamp gives n, or the bound that it is beyond.
func (r Range) Clamp(n int) int { return min(max(n, r.Min), r.Max) }

// PortRange is a range of ports, 1024 to 65535: "30000-32767". The zero PortRange allows all.
type PortRange struct{ Min, Max int }

// String gives it as it is written.
func (r PortRange) String() string {
	if r == (PortRange{}) {
		return ""
	}
	return strconv.Itoa(r.Min) + "-" + strconv.Itoa(r.Max)
}

// MarshalText writes the range as String does; YAML and JSON use it.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads "30000-32767", and for the zero PortRange nothing.
func (r *PortRange) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = PortRange{}
		return nil
	}
	low, high, _ := strings.Cut(string(text), "-")
	least, err := strconv.ParseUint(low, 10, 16)
	most, errHigh := strconv.ParseUint(high, 10, 16)
	if err != nil || errHigh != nil || least > most || least < 1024 {
		return fmt.Errorf("want a range of ports from 1024 on, such as 30000-32767, got %s", quote(string(text)))
	}
	*r = PortRange{int(least), int(most)}
	return nil
}
