package app

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/state"
	"github.com/mobula-serve/mobula/trust"
)

const (
	tokenBucket = "tokens"
	tokenLife   = 24 * time.Hour
	maxSkew     = 5 * time.Minute // between an agent's clock and ours; certificates would be worth nothing
)

// gate takes hosts into the fleet.
type gate struct {
	id    string // of the control plane
	ca    *trust.CA
	store state.Store
	hosts *static.Hosts
}

// New makes a join token: good for a day, for any number of hosts.
func (g *gate) New(context.Context) (string, error) {
	t, record, err := trust.NewToken(g.ca, tokenLife, -1)
	if err != nil {
		return "", err
	}
	value, err := json.Marshal(record)
	if err != nil {
		return "", err
	}
	changes := append(g.expired(), state.Change{Bucket: tokenBucket, Key: record.Hash, Value: value})
	if err := g.store.Write(changes...); err != nil {
		return "", fmt.Errorf("keep the token: %w", err)
	}
	return t.String(), nil
}

// expired are the changes that forget tokens which are good for nothing.
func (g *gate) expired() []state.Change {
	var gone []state.Change
	_ = g.store.Each(tokenBucket, func(key string, value []byte) error {
		var r trust.TokenRecord
		if json.Unmarshal(value, &r) != nil || time.Now().After(r.Expires) {
			gone = append(gone, state.Change{Bucket: tokenBucket, Key: key})
		}
		return nil
	})
	return gone
}

// Check uses a join token once.
func (g *gate) Check(_ context.Context, token string) error {
	t, err := trust.ParseToken(token)
	if err != nil {
		return err
	}
	value, ok, err := g.store.Get(tokenBucket, t.Hash())
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: this control plane has not made it, or has forgotten it; make one with mobula token", trust.ErrToken)
	}
	var record trust.TokenRecord
	if err := json.Unmarshal(value, &record); err != nil {
		return err
	}
	left, err := record.Check(t, time.Now())
	if err != nil || left == record {
		return err
	}
	if value, err = json.Marshal(left); err != nil {
		return err
	}
	return g.store.Write(state.Change{Bucket: tokenBucket, Key: record.Hash, Value: value})
}

// Join gives a host its certificate and remembers where its agent is.
func (g *gate) Join(ctx context.Context, j agent.Join, peer *x509.Certificate) (agent.Joined, error) {
	if peer != nil {
		id, err := trust.IdentityOf(peer)
		if err != nil || id.Role != trust.RoleAgent || id.Name != j.Name {
			return agent.Joined{}, fmt.Errorf("%w: the certificate is not that of host %s's agent", control.ErrInvalid, j.Name)
		}
	}
	if skew := time.Since(j.Clock); skew.Abs() > maxSkew {
		return agent.Joined{}, fmt.Errorf("%w: the clock of host %s is %s off ours (%s there, %s here): set it right, then join again",
			control.ErrInvalid, j.Name, skew.Abs().Round(time.Second), j.Clock.UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
	}
	host, _, err := net.SplitHostPort(j.Address)
	if err != nil {
		return agent.Joined{}, fmt.Errorf("%w: address %q: want host:port", control.ErrInvalid, j.Address)
	}
	cert, err := g.ca.Issue([]byte(j.CSR), trust.RoleAgent, j.Name, []string{host}, trust.AgentLife)
	if err != nil {
		return agent.Joined{}, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	if err := g.hosts.Join(ctx, j.Name, j.Address); err != nil {
		return agent.Joined{}, fmt.Errorf("%w: %w", control.ErrConflict, err)
	}
	return agent.Joined{Control: g.id, Certificate: string(cert), CA: string(g.ca.PEM())}, nil
}
