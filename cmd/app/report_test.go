package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReportPauses(t *testing.T) {
	for name, tc := range map[string]struct {
		endpoints   int
		least, rest time.Duration
	}{
		"none":           {0, 0, time.Second},
		"a few":          {20, time.Millisecond, 999 * time.Millisecond},
		"many":           {5000, 250 * time.Millisecond, 1750 * time.Millisecond},
		"more than that": {100_000, time.Second, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			least, rest := reportPauses(tc.endpoints)
			require.Equal(t, tc.least, least)
			require.Equal(t, tc.rest, rest)
		})
	}
}
