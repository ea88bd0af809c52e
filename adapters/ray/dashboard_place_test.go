package ray

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/ray/raytest"
)

// moving is a cluster that is elsewhere from time to time.
type moving struct {
	address string
	token   mobula.Secret
	err     error
	asked   int
}

func (m *moving) locate(context.Context) (string, mobula.Secret, error) {
	m.asked++
	return m.address, m.token, m.err
}

func (m *moving) dashboard(t *testing.T) *Dashboard {
	t.Helper()
	d, err := NewDashboard(DashboardOptions{Address: "kuberay://ml/service/llm", Locate: m.locate})
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

func TestDashboardOfAClusterThatMoves(t *testing.T) {
	first, second := raytest.New(t, raytest.Options{Token: "one"}), raytest.New(t, raytest.Options{Token: "two"})
	second.Restart() // so that its session is another one
	m := &moving{address: first.URL(), token: "one"}
	d := m.dashboard(t)
	session := func() string {
		v, err := d.Version(t.Context())
		require.NoError(t, err)
		return v.Session
	}
	was := session()
	require.Equal(t, was, session())
	require.Equal(t, 1, m.asked, "it is asked for once while it answers")

	m.address, m.token = second.URL(), "two"
	require.Equal(t, was, session(), "the first one still answers")
	first.Cut(true)
	_, err := d.Version(t.Context())
	require.ErrorIs(t, err, adapters.ErrUnavailable)
	require.ErrorContains(t, err, "Ray cluster at kuberay://ml/service/llm: ")
	require.NotEqual(t, was, session())
	require.Equal(t, 2, m.asked)

	m.address = first.URL()
	first.Cut(false)
	now := time.Now()
	d.place.now = func() time.Time { return now.Add(2 * placeAge) }
	_, err = d.Version(t.Context())
	require.ErrorIs(t, err, ErrDenied, "the token of another cluster")
	require.ErrorContains(t, err, "the Secret which KubeRay keeps")
	m.token = "one"
	require.Equal(t, was, session(), "after a refusal it is asked for anew")
}

func TestDashboardOfAClusterThatCannotBeFound(t *testing.T) {
	broken := errors.New("no such RayCluster")
	m := &moving{err: broken}
	d := m.dashboard(t)
	_, err := d.Version(t.Context())
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, adapters.ErrUnavailable)
	_, err = d.Logs(t.Context(), "a", 1, false)
	require.ErrorIs(t, err, broken)
	m.err, m.address = nil, "head:8265"
	_, err = d.Version(t.Context())
	require.ErrorContains(t, err, "want http://HOST:8265")

	hang := &moving{}
	d, err = NewDashboard(DashboardOptions{Address: "kuberay://ml/service/llm", Timeout: 10 * time.Millisecond, Locate: func(ctx context.Context) (string, mobula.Secret, error) {
		<-ctx.Done()
		return hang.address, "", ctx.Err()
	}})
	require.NoError(t, err)
	defer d.Close()
	_, err = d.Version(t.Context())
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
