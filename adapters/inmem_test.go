package adapters_test

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestInMemoryConforms(t *testing.T) {
	conformance.Discoverer(t, func(testing.TB) conformance.Subject {
		first := []mobula.Endpoint{{ID: "a", URL: "http://a:1"}, {ID: "b", URL: "http://b:1", Labels: map[string]string{"zone": "x"}}}
		m := adapters.NewInMemory(first...)
		n := 0
		return conformance.Subject{
			Discoverer: m,
			Want:       first,
			Change: func(testing.TB) []mobula.Endpoint {
				n++
				next := []mobula.Endpoint{{ID: fmt.Sprint("c", n), URL: "http://c:1"}}
				m.Set(next...)
				return next
			},
		}
	})
}

func TestInMemoryWithoutEndpointsSaysSo(t *testing.T) {
	conformance.Discoverer(t, func(testing.TB) conformance.Subject {
		m := adapters.NewInMemory()
		n := 0
		return conformance.Subject{Discoverer: m, Change: func(testing.TB) []mobula.Endpoint {
			n++
			next := make([]mobula.Endpoint, n%3)
			for i := range next {
				next[i] = mobula.Endpoint{ID: fmt.Sprint(n, i)}
			}
			m.Set(next...)
			return next
		}}
	})
}
