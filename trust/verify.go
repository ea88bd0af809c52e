package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// verifier checks the other side of a connection.
type verifier struct {
	ca    *x509.Certificate
	now   func() time.Time
	usage x509.ExtKeyUsage // what the other side is
	// roles that the other side may have; empty for any.
	roles []Role
}

func (v verifier) check(conn tls.ConnectionState) error {
	if len(conn.PeerCertificates) == 0 {
		return nil // where one is needed, crypto/tls has refused this
	}
	leaf := conn.PeerCertificates[0]
	roots := x509.NewCertPool()
	roots.AddCert(v.ca)
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: v.now(), KeyUsages: []x509.ExtKeyUsage{v.usage},
	})
	if err != nil {
		return v.explain(leaf, err)
	}
	id, err := IdentityOf(leaf)
	if err != nil {
		return err
	}
	if id.Control != controlOf(v.ca) {
		return otherControl(id.Control, controlOf(v.ca))
	}
	if len(v.roles) > 0 && !slices.Contains(v.roles, id.Role) {
		return fmt.Errorf("%w: %s is %s, expected %s", ErrRole, id.Name, id.Role, v.roles)
	}
	return nil
}

func (v verifier) explain(leaf *x509.Certificate, err error) error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return otherControl(controlOf(leaf), controlOf(v.ca))
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return badTime(invalid.Cert, v.now())
	}
	return fmt.Errorf("check the certificate of %q: %w", leaf.Subject.CommonName, err)
}

// VerifyTLS gives the TLS of a client that has no certificate of its own and knows the fleet's certificate
// authority (CA.PEM): the server must have one of the roles.
func VerifyTLS(caPEM []byte, roles ...Role) (*tls.Config, error) {
	ca, err := parseCA(caPEM)
	if err != nil {
		return nil, err
	}
	return clientTLS(verifier{ca: ca, now: time.Now, usage: x509.ExtKeyUsageServerAuth, roles: roles}.check), nil
}

// PinnedTLS gives the TLS of a host's first contact with its control plane: the server must show a
// certificate authority with the token's fingerprint and a control plane's certificate signed by it.
func PinnedTLS(token Token) *tls.Config { return pinnedTLS(token, time.Now) }

func pinnedTLS(token Token, now func() time.Time) *tls.Config {
	return clientTLS(func(conn tls.ConnectionState) error {
		for _, cert := range conn.PeerCertificates {
			if fingerprint(cert) == token.fingerprint && cert.IsCA {
				return verifier{ca: cert, now: now, usage: x509.ExtKeyUsageServerAuth, roles: []Role{RoleControl}}.check(conn)
			}
		}
		seen := ""
		if len(conn.PeerCertificates) > 0 {
			seen = controlOf(conn.PeerCertificates[0])
		}
		return fmt.Errorf("%w: it was not made by %s: check the address, or %s", ErrToken, describe(seen), newTokenHint)
	})
}

// clientTLS replaces the check of host names, which is all that InsecureSkipVerify is for.
func clientTLS(check func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: check}
}
