//go:build real

package real

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRealEngines runs all parts against one set of engines, for they take minutes to
// start. The parts are in order: those that kill engines come last.
func TestRealEngines(t *testing.T) {
	s := start(t)
	t.Run("clients", s.testClients)
	t.Run("same as the engine", s.testSameAsEngine)
	t.Run("streams same as the engine", s.testStreamsSameAsEngine)
	t.Run("simulator same as the engine", s.testSimulator)
	t.Run("sampling parameters refused", s.testSamplingRefused)
	t.Run("client leaves", s.testClientLeaves)
	t.Run("counters return to zero", s.testCountersReturnToZero)
	if s.owned() {
		t.Run("engine killed under load", s.testEngineKilled)
		t.Run("engine terminated in a stream", s.testEngineTerminated)
		t.Run("counters return to zero after deaths", s.testCountersReturnToZero)
	} else {
		t.Log("not run: deaths of engines, for the engines were not started here")
	}
	t.Run("router stops cleanly", s.testRouterStops)
}

func (s *stack) testRouterStops(t *testing.T) {
	s.router.signal(t, syscall.SIGTERM)
	eventually(t, time.Minute, "the router ends", s.router.ended)
	require.Equal(t, 0, s.router.cmd.ProcessState.ExitCode(), "exit code (66 is a data race)")
	log := string(s.router.tail(t, 1<<30))
	require.NotContains(t, log, "panic")
	require.NotContains(t, log, "level=ERROR")
}
