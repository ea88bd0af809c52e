package proxy

import (
	"fmt"
	"net/http"

	"github.com/mobula-serve/mobula/router/pick"
)

// statusError is an answer that is not passed on.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("status %d", int(e)) }

// enter counts the request as in flight at the first endpoint of the list from there on that takes it,
// and makes that the one at hand. It reports false when there is none.
//
// It counts before it looks whether the endpoint drains. So one that is marked as draining and then has
// nothing in flight stays without: whoever comes later sees the mark and goes.
func (t *task) enter(from int) bool {
	for i := t.following(from); i >= 0; i = t.following(i + 1) {
		e := t.x.List[i]
		n := e.Live.InFlight.Add(1)
		if t.drains(e) || e.Provider != nil && n > int64(e.Provider.InFlight) {
			e.Live.InFlight.Add(-1)
			continue
		}
		t.at = i
		return true
	}
	return false
}

// following is the first place in the list from there on whose endpoint takes requests now, -1 for none.
func (t *task) following(from int) int {
	for i := from; i < len(t.x.List); i++ {
		e := t.x.List[i]
		if t.drains(e) || e.Provider != nil && (t.x.Outside == nil || e.Live.InFlight.Load() >= int64(e.Provider.InFlight)) {
			continue
		}
		return i
	}
	return -1
}

func (t *task) drains(e *pick.Endpoint) bool { return e.Live.Draining.Load() && !t.x.Owned }

// refusal is why enter found nobody.
func (t *task) refusal() *Error {
	for _, e := range t.x.List {
		if !t.drains(e) {
			t.endpoint = e
			return &Error{Cause: CauseBusy}
		}
	}
	return &Error{Cause: CauseDraining}
}

// refusesUs tells of a provider's status that it is about our key, our account or our name for its model. The
// client can't mend that, and what is said of the key is not for it.
func refusesUs(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden, http.StatusNotFound:
		return true
	}
	return false
}

// ours tells whether the answer at hand, a fault that is not tried elsewhere, is kept from the client.
func (t *task) ours(c Cause) bool {
	t.over = c == CauseMissing || c == CauseStatus && t.endpoint.Provider != nil && refusesUs(t.head.status)
	return t.over
}

// strip takes out of a provider's fields what is meant for its own clients.
func strip(fields []byte) []byte {
	return dropNamed(fields, [][]byte{
		[]byte("set-cookie"), []byte("alt-svc"), []byte("strict-transport-security"), []byte("openai-organization"),
		[]byte("openai-project"), []byte("anthropic-organization-id"),
	})
}
