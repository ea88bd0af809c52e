package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// AgentLife is how long agents' certificates are valid.
const AgentLife = 90 * 24 * time.Hour

const (
	maxRequest   = 16 << 10 // bytes of a certificate request
	maxAddresses = 64
)

// ErrRequest is of a certificate request that can't be granted.
var ErrRequest = errors.New("bad certificate request")

// Issue signs a PEM certificate request, of which only the key is used: role, name and addresses are what the
// caller has found right. Addresses are host names and IPs, for clients that check them (browsers). The
// answer is a PEM certificate, valid from five minutes ago for ttl, and no longer than the authority itself.
// What can't be granted fails with ErrRequest.
func (ca *CA) Issue(csrPEM []byte, role Role, name string, addresses []string, ttl time.Duration) ([]byte, error) {
	key, err := requestedKey(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	template, err := ca.template(role, name, addresses, ttl)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", name, err)
	}
	return certPEM(der), nil
}

func (ca *CA) template(role Role, name string, addresses []string, ttl time.Duration) (*x509.Certificate, error) {
	if !isRole(role) {
		return nil, fmt.Errorf("there is no role %q", role)
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	now := ca.now()
	switch {
	case ttl <= 0:
		return nil, fmt.Errorf("a life of %s is none", ttl)
	case !now.Before(ca.cert.NotAfter):
		return nil, fmt.Errorf("%w: the certificate authority's own, on %s: make another one and let the hosts join again", ErrExpired, stamp(ca.cert.NotAfter))
	case len(addresses) > maxAddresses:
		return nil, fmt.Errorf("%d addresses are more than %d", len(addresses), maxAddresses)
	}
	id := Identity{Control: ca.id, Role: role, Name: name}
	template := &x509.Certificate{
		// 64 characters are the bound of a common name; the identity is what counts.
		Subject:     pkix.Name{CommonName: name[:min(len(name), 64)], OrganizationalUnit: []string{string(role)}},
		NotBefore:   now.Add(-clockTolerance),
		NotAfter:    now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.url()},
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if err := checkName(a); err == nil {
			template.DNSNames = append(template.DNSNames, strings.ToLower(a))
		} else {
			return nil, fmt.Errorf("address %q is no host name and no IP", a)
		}
	}
	return template, nil
}

// requestedKey takes the public key out of a request whose sender has shown that the private one is his.
func requestedKey(csrPEM []byte) (any, error) {
	if len(csrPEM) > maxRequest {
		return nil, fmt.Errorf("%d bytes are more than %d", len(csrPEM), maxRequest)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM certificate request in it")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch csr.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default: // RSA keys come in sizes that are too small, and in ones that keep us busy
		return nil, fmt.Errorf("its key must be an ECDSA or Ed25519 one, not %s", csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	return csr.PublicKey, nil
}

// NewRequest makes a new ECDSA P-256 key and a certificate request for it, both PEM.
func NewRequest() (csr, key []byte, err error) {
	private, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err = request(private)
	return csr, keyPEM(private), err
}

func request(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
