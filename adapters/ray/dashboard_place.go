package ray

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// placeAge is how long a place is taken for granted: a cluster that is replaced (a RayService's, at each upgrade) may answer for a while.
const placeAge = 30 * time.Second

// dashboardPlace is where a dashboard is: always the same, or asked for when it does not answer there any more.
type dashboardPlace struct {
	base   string
	token  func() (mobula.Secret, error)
	locate func(ctx context.Context) (string, mobula.Secret, error) // nil for one that stays

	turn  chan struct{} // holds one while what is below is used
	now   func() time.Time
	found string // empty while it has to be asked for
	key   mobula.Secret
	since time.Time
}

func newDashboardPlace(base string, o DashboardOptions) *dashboardPlace {
	p := &dashboardPlace{base: base, token: o.Token, locate: o.Locate, turn: make(chan struct{}, 1), now: time.Now}
	if p.token == nil {
		p.token = func() (mobula.Secret, error) { return "", nil }
	}
	return p
}

// get gives scheme, host and port, and the token, empty for none.
func (p *dashboardPlace) get(ctx context.Context) (base string, token mobula.Secret, err error) {
	if p.locate == nil {
		if token, err = p.token(); err != nil {
			err = fmt.Errorf("%w: its token: %w", adapters.ErrUnavailable, err)
		}
		return p.base, token, err
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return "", "", fmt.Errorf("%w: it is being looked for: %w", adapters.ErrUnavailable, ctx.Err())
	}
	defer func() { <-p.turn }()
	if p.found != "" && p.now().Sub(p.since) < placeAge {
		return p.found, p.key, nil
	}
	address, token, err := p.locate(ctx)
	if err == nil {
		address, err = dashboardBase(address)
	}
	if err != nil {
		return "", "", err
	}
	p.found, p.key, p.since = address, token, p.now()
	return address, token, nil
}

// answered has the place be asked for again after an answer, nil for none, that the cluster would not give there. One that comes late is
// of no account: it is asked for once more than needed.
func (p *dashboardPlace) answered(resp *http.Response) {
	if p.locate == nil {
		return
	}
	if resp != nil {
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		default:
			return
		}
	}
	p.turn <- struct{}{}
	p.found = ""
	<-p.turn
}

// advice says where the token comes from.
func (p *dashboardPlace) advice() string {
	if p.locate != nil {
		return "the token is that of the Secret which KubeRay keeps for the RayCluster"
	}
	return "give the cluster's token with platform.ray.tokenFile"
}

// what says which address is meant.
func (p *dashboardPlace) what() string {
	if p.locate != nil {
		return "the dashboard of the RayCluster's head is meant, port 8265 unless rayStartParams say otherwise"
	}
	return "platform.ray.address is the dashboard's, port 8265 by default"
}
