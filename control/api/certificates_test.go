package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control/client"
)

// authority signs the certificates of a test; the role is the organisational unit.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	pair := a.issue(t, "ca", "", true)
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

func (a *authority) issue(t *testing.T, name, role string, isCA bool) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name, OrganizationalUnit: []string{role}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"example.com"}, // httptest's
		IsCA: isCA, BasicConstraintsValid: true,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// roleOf reads the role of a verified certificate.
func roleOf(s *tls.ConnectionState) string {
	if len(s.VerifiedChains) == 0 {
		return ""
	}
	return s.PeerCertificates[0].Subject.OrganizationalUnit[0]
}

func TestARoutersTokenOpensWhatRoutersNeed(t *testing.T) {
	h := start(t, func(o *Options) { o.RouterToken = "of-routers" })
	c := client.New(client.Options{URL: h.http.URL, Token: "of-routers"})
	defer c.Close()
	require.NoError(t, c.Report(t.Context(), mobula.Report{Router: "r", Endpoints: []mobula.EndpointReport{}, Models: []mobula.ModelReport{}}))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.http.URL+"/v1/endpoints", http.NoBody)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer of-routers")
	resp, err := h.http.Client().Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusOK, resp.StatusCode)

	_, err = c.View(t.Context(), 0)
	require.ErrorContains(t, err, "it is the routers', which only report and read")
	require.ErrorContains(t, c.Delete(t.Context(), "m"), "this token may not do that")
}

func TestCertificatesOpenWhatTheirRoleNeeds(t *testing.T) {
	ca := newAuthority(t)
	h := startTLS(t, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientCAs: ca.pool(), ClientAuth: tls.VerifyClientCertIfGiven,
		Certificates: []tls.Certificate{ca.issue(t, "control", RoleControl, false)},
	}, func(o *Options) { o.Role, o.Token = roleOf, "" }) // no token at all: only certificates
	as := func(role string) *tls.Config {
		c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca.pool(), ServerName: "example.com"}
		if role != "" {
			c.Certificates = []tls.Certificate{ca.issue(t, "the-"+role, role, false)}
		}
		return c
	}
	for role, want := range map[string]struct{ view, endpoints int }{
		RoleControl: {http.StatusOK, http.StatusOK},
		RoleRouter:  {http.StatusForbidden, http.StatusOK},
		RoleAgent:   {http.StatusForbidden, http.StatusForbidden},
		"":          {http.StatusUnauthorized, http.StatusUnauthorized},
	} {
		for path, status := range map[string]int{"/v1/view": want.view, "/v1/endpoints": want.endpoints} {
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: as(role)}}
			resp, err := hc.Get(h.http.URL + path)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			hc.CloseIdleConnections()
			require.Equal(t, status, resp.StatusCode, "%q at %s", role, path)
		}
	}
	// The empty tokens of the options are nobody's.
	c := client.New(client.Options{URL: h.http.URL, TLS: as("")})
	defer c.Close()
	_, err := c.View(t.Context(), 0)
	require.ErrorContains(t, err, "no token")

	j := agent.Join{Name: "gpu-1", Address: "a:1", CSR: "PEM", Clock: time.Now()}
	_, err = client.Join(t.Context(), h.http.URL, as(RoleAgent), "", j)
	require.NoError(t, err, "an agent renews with its certificate")
	_, err = client.Join(t.Context(), h.http.URL, as(RoleRouter), "", j)
	require.ErrorContains(t, err, "no join token")
	_, err = client.Join(t.Context(), h.http.URL, as(""), "good", j)
	require.NoError(t, err)
	require.Equal(t, []string{"the-agent", ""}, h.join.peers)

	stranger := as("")
	stranger.RootCAs = newAuthority(t).pool()
	c = client.New(client.Options{URL: h.http.URL, TLS: stranger})
	defer c.Close()
	_, err = c.View(t.Context(), 0)
	require.ErrorContains(t, err, "signed by a CA that is not the one given")
}
