package client

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
)

// Join makes a host known to the control plane at url and gives its certificate. config is what the
// token pins the control plane by; to renew a certificate it holds the old one and token is empty.
// What was sent once is not sent again: a token may be good for one use.
func Join(ctx context.Context, url string, config *tls.Config, token mobula.Secret, j agent.Join) (agent.Joined, error) {
	c := New(Options{URL: url, TLS: config, Token: token})
	defer c.Close()
	var joined agent.Joined
	err := c.exchange(ctx, call{method: http.MethodPost, path: "/v1/join", once: true}, j, &joined)
	return joined, err
}
