package health

import (
	"context"
	"time"
)

// A provider is not probed: it serves until requests fail, is then left alone for a pause, and after it
// the next request is the probe.

func (m *member) isProvider() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spec.Provider != nil
}

// rest is watch for a provider.
func (m *member) rest(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		m.log(ctx)
		timer.Reset(m.restFor())
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			if m.restFor() <= 0 {
				m.take(input{event: pauseOver}, nil)
			}
		case <-m.wake:
		}
	}
}

// restFor is what is left of its pause; an hour when it has none.
func (m *member) restFor() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.machine.state == stateUp {
		return time.Hour
	}
	return time.Until(m.since.Add(m.machine.pause()))
}
