package scale

import "time"

// spans is how many parts of a window are told apart.
const spans = 16

// Span is the least or the most that was needed from a time on, until the next Span begins.
type Span struct {
	From     time.Time `json:"from"`
	Replicas int       `json:"replicas"`
}

func lesser(a, b int) int  { return min(a, b) }
func greater(a, b int) int { return max(a, b) }

// remember adds a need to a window, and forgets what is older than the window.
func remember(w []Span, n int, now time.Time, window time.Duration, fold func(a, b int) int) []Span {
	if last := len(w) - 1; last >= 0 && now.Sub(w[last].From) < window/spans {
		w[last].Replicas = fold(w[last].Replicas, n)
	} else {
		w = append(w, Span{From: now, Replicas: n})
	}
	// The oldest one may begin before the window, so that all of it is seen.
	for len(w) > 1 && now.Sub(w[1].From) >= window {
		w = w[1:]
	}
	return w
}

// over gives the least or the most in a window; ok tells that all of the window has been seen.
func over(w []Span, now time.Time, window time.Duration, fold func(a, b int) int) (n int, ok bool) {
	n = w[0].Replicas
	for _, s := range w[1:] {
		n = fold(n, s.Replicas)
	}
	return n, now.Sub(w[0].From) >= window
}
