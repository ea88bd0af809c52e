package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ErrNotJoined is of a folder that has no credentials.
var ErrNotJoined = errors.New("this host has not joined a control plane")

// Credentials are what a process has of the fleet: its certificate and key, and the authority that signed it and its
// peers. The certificate may be replaced while the TLS configurations made from them are in use. They may be used by
// many goroutines at once.
type Credentials struct {
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	cert atomic.Pointer[tls.Certificate]
	now  func() time.Time
}

// NewCredentials puts together what a join gave: the PEM of the authority and of the certificate, and the
// key of the request. It fails when they don't belong together; an expired certificate is taken, since its holder must learn of it.
func NewCredentials(caPEM, certPEM, keyPEM []byte) (*Credentials, error) {
	ca, err := parseCA(caPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	c := &Credentials{ca: ca, key: key, now: time.Now}
	if err := c.Replace(certPEM); err != nil {
		return nil, err
	}
	return c, nil
}

// Credentials makes a key and issues a certificate for it, for the processes that have the authority at hand.
func (ca *CA) Credentials(role Role, name string, addresses []string, ttl time.Duration) (*Credentials, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c := &Credentials{ca: ca.cert, key: key, now: ca.now}
	csr, err := c.Request()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Issue(csr, role, name, addresses, ttl)
	if err != nil {
		return nil, err
	}
	return c, c.Replace(cert)
}

// Knows tells whether a token is of the control plane that they belong to.
func (c *Credentials) Knows(t Token) bool { return fingerprint(c.ca) == t.fingerprint }

// Request makes a PEM certificate request of the same key, by which the certificate is renewed.
func (c *Credentials) Request() ([]byte, error) { return request(c.key) }

// Replace takes a new PEM certificate of the same key and authority. Connections made from now on use it.
func (c *Credentials) Replace(certPEM []byte) error {
	certs, err := parseCerts(certPEM)
	if err != nil {
		return err
	}
	leaf := certs[0]
	if !c.key.PublicKey.Equal(leaf.PublicKey) {
		return fmt.Errorf("certificate of %q is not of this key: %s", leaf.Subject.CommonName, joinHint)
	}
	if err := leaf.CheckSignatureFrom(c.ca); err != nil {
		return otherControl(controlOf(leaf), controlOf(c.ca))
	}
	if _, err := IdentityOf(leaf); err != nil {
		return err
	}
	// The authority goes along in the handshake: a host that joins knows it by its fingerprint only.
	c.cert.Store(&tls.Certificate{Certificate: [][]byte{leaf.Raw, c.ca.Raw}, PrivateKey: c.key, Leaf: leaf})
	return nil
}

// Identity tells whose they are.
func (c *Credentials) Identity() Identity {
	id, _ := IdentityOf(c.leaf()) // Replace has made sure of it
	return id
}

// Expires is when the certificate ends.
func (c *Credentials) Expires() time.Time { return c.leaf().NotAfter }

// RenewAt is when two thirds of the certificate's life are over, and it is time for another one.
func (c *Credentials) RenewAt() time.Time {
	leaf := c.leaf()
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 3 * 2)
}

// Valid fails with ErrExpired or ErrNotYetValid when this host's clock is outside of the certificate's life.
func (c *Credentials) Valid() error {
	if now := c.now(); now.Before(c.leaf().NotBefore) || now.After(c.leaf().NotAfter) {
		return badTime(c.leaf(), now)
	}
	return nil
}

// CAPEM gives the authority's certificate.
func (c *Credentials) CAPEM() []byte { return certPEM(c.ca.Raw) }

// ServerTLS gives the TLS of a server. With roles, clients must have a certificate of one of them; without, they
// may have none, and PeerIdentity tells; one that they do show must be of this fleet.
func (c *Credentials) ServerTLS(roles ...Role) *tls.Config {
	clients := x509.NewCertPool()
	clients.AddCert(c.ca)
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.cert.Load(), nil },
		ClientCAs:      clients,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		Time:           c.now,
		// crypto/tls has checked the chain by then, so that a client hears an alert that tells what is wrong with it.
		VerifyConnection: verifier{ca: c.ca, now: c.now, usage: x509.ExtKeyUsageClientAuth, roles: roles}.check,
	}
	if len(roles) > 0 {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config
}

// ClientTLS gives the TLS of a client: the server must be of this fleet and have one of the roles. A certificate of our
// own that is out of date fails here, with what to do about it.
func (c *Credentials) ClientTLS(roles ...Role) *tls.Config {
	config := clientTLS(verifier{ca: c.ca, now: c.now, usage: x509.ExtKeyUsageServerAuth, roles: roles}.check)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return c.cert.Load(), c.Valid()
	}
	return config
}

func (c *Credentials) leaf() *x509.Certificate { return c.cert.Load().Leaf }

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}
