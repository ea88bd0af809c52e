package e2e

import (
	"testing"

	"github.com/mobula-serve/mobula/test/fleet"
)

func TestLifeOfABareMetalFleet(t *testing.T) {
	t.Parallel()
	machines := fleet.Loopback("head", "h1", "h2", "h3")
	fleet.Life(t, fleet.Options{Binary: binary(t), Head: machines[0], Hosts: machines[1:]})
}
