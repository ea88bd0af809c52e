package app

import (
	"testing"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
)

func TestKeyedEndpointsConform(t *testing.T) {
	conformance.Discoverer(t, func(testing.TB) conformance.Subject {
		m := adapters.NewInMemory(mobula.Endpoint{ID: "a"})
		n := 0
		return conformance.Subject{
			Discoverer: withKey(m, "k"),
			Want:       []mobula.Endpoint{{ID: "a", APIKey: "k"}},
			Change: func(testing.TB) []mobula.Endpoint {
				n++
				id := string(rune('a' + n))
				m.Set(mobula.Endpoint{ID: id})
				return []mobula.Endpoint{{ID: id, APIKey: "k"}}
			},
		}
	})
}
