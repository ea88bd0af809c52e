package pick

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestLearnerFindsTheCoefficients(t *testing.T) {
	for _, c := range []struct {
		name    string
		a, b, c float64 // s, s per token, s per request
	}{
		{"as the prior", 0.020, 0.0001, 0.0001},
		{"a GPU twice as fast", 0.010, 0.00005, 0.0002},
		{"a CPU", 0.2, 0.004, 0.01},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLearner()
			rnd := rand.New(rand.NewPCG(1, 2))
			for range 500 {
				u, n := rnd.Float64()*4000, rnd.Float64()*20
				s := c.a + c.b*u + c.c*n
				l.learn(u, n, s*(0.9+0.2*rnd.Float64()))
			}
			for _, u := range []float64{1000, 4000} {
				want := c.a + c.b*u + c.c*10
				require.InEpsilon(t, want, l.seconds(u, 10), 0.15)
			}
		})
	}
}

func TestLearnerFollowsAChange(t *testing.T) {
	l := newLearner()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		u := rnd.Float64() * 4000
		s := 0.02 + 0.00005*u
		if i >= 2000 {
			s *= 3
		}
		l.learn(u, 2, s)
	}
	require.InEpsilon(t, 3*(0.02+0.00005*2000), l.seconds(2000, 2), 0.1)
}

func TestLearnerStaysSaneWhateverItIsTold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLearner()
		lo, hi := bounds()
		for range rapid.IntRange(0, 200).Draw(t, "samples") {
			u := rapid.Float64Range(0, 1e6).Draw(t, "uncached")
			n := rapid.Float64Range(0, 1e4).Draw(t, "active")
			l.learn(u, n, rapid.Float64Range(-1, 1e6).Draw(t, "seconds"))
			for i, x := range l.theta {
				require.False(t, math.IsNaN(x))
				require.True(t, x >= lo[i] && x <= hi[i], x)
			}
			require.Positive(t, l.seconds(u, n)+smallest)
		}
	})
}

func TestLearnerDoesNotForgetWithoutVariety(t *testing.T) {
	l := newLearner()
	for range 100_000 { // one kind of prompt for a day
		l.learn(100, 1, 0.03)
	}
	for i := range l.p {
		require.Less(t, l.p[i][i], 2.0*maxP)
	}
	require.Less(t, l.seconds(4000, 1), 5.0)
}
