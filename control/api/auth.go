package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"
)

// access says who may use a route.
type access int

const (
	forAll    access = iota // no token
	forPeople               // the token, or a certificate of the control plane
	forRouter               // also the token or a certificate of a router
	forAgent                // a join token, or a certificate of an agent
)

// Refusals.
var (
	errNoToken = errors.New("no token: send the control plane's token as \"Authorization: Bearer TOKEN\"; " +
		"mobula up and mobula control write it to their config file (commands: --token-file)")
	errWrongToken = errors.New("wrong token: this control plane has another one; take it from the config file that its " +
		"mobula up or mobula control has written (commands: --token-file)")
	errNoJoinToken = errors.New("no join token: make one with mobula token")
	errForbidden   = errors.New("this certificate may not do that")
	errRouterToken = errors.New("this token may not do that: it is the routers', which only report and read")
)

// roles that certificates need for a route.
func (a access) roles() []string {
	switch a {
	case forPeople:
		return []string{RoleControl}
	case forRouter:
		return []string{RoleControl, RoleRouter}
	case forAgent:
		return []string{RoleAgent}
	default:
		return nil
	}
}

// secretSum is by what a token is known; none is the empty one.
type secretSum [sha256.Size]byte

func sumOf(token string) secretSum { return sha256.Sum256([]byte(token)) }

// is compares in a time that tells nothing.
func (s secretSum) is(token string) bool {
	sum := sumOf(token)
	return subtle.ConstantTimeCompare(sum[:], s[:]) == 1 && token != ""
}

// bearer gives the token that a request shows.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// allowed checks who asks. Join tokens are checked by the route itself, when the rest of the request is good.
func (s *Server) allowed(c *gin.Context, a access) bool {
	if a == forAll || a == forAgent {
		return true
	}
	role := ""
	if c.Request.TLS != nil {
		role = s.role(c.Request.TLS)
	}
	token := bearer(c.Request)
	routers := s.routerToken.is(token)
	switch {
	case s.token.is(token) || routers && a == forRouter || role != "" && slices.Contains(a.roles(), role):
		return true
	case routers:
		s.fail(c, errRouterToken, http.StatusForbidden)
	case token != "":
		s.refuse(c, errWrongToken)
	case role != "":
		s.fail(c, fmt.Errorf("%w: its role is %s", errForbidden, role), http.StatusForbidden)
	default:
		s.refuse(c, errNoToken)
	}
	return false
}

// refuse answers 401.
func (s *Server) refuse(c *gin.Context, err error) {
	c.Header("WWW-Authenticate", `Bearer realm="mobula"`)
	s.fail(c, err, http.StatusUnauthorized)
}

// agentCert gives the certificate of an agent that has joined before, nil for anybody else.
func (s *Server) agentCert(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || s.role(r.TLS) != RoleAgent {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}
