package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors of certificates.
var (
	// ErrExpired: a certificate is past its end.
	ErrExpired = errors.New("certificate has expired")
	// ErrNotYetValid: a certificate begins later than this host's clock says it is.
	ErrNotYetValid = errors.New("certificate is not valid yet")
	// ErrOtherControl: a certificate is of another control plane, or of none.
	ErrOtherControl = errors.New("certificate is of another control plane")
	// ErrRole: the peer is of the fleet, and not the one that should be there.
	ErrRole = errors.New("peer has the wrong role")
	// ErrNoCertificate: the other side wants a certificate and this one has none that fits.
	ErrNoCertificate = errors.New("the other side asks for a certificate")
	// ErrNoTLS: the other side doesn't speak TLS, or not TLS 1.3.
	ErrNoTLS = errors.New("the other side speaks no TLS 1.3")
)

const joinHint = "let the host join again, with the command that `mobula token` prints on the control plane"

// Explain turns what crypto/tls and crypto/x509 say into an error of this package that says what to do. What it doesn't
// know, and what is explained already, comes back as it is; nil stays nil.
func Explain(err error) error { return explain(err, time.Now()) }

func explain(err error, now time.Time) error {
	if err == nil || isOurs(err) {
		return err
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return badTime(invalid.Cert, now)
	}
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && unknown.Cert != nil {
		return otherControl(controlOf(unknown.Cert), "")
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%w: check the port, and that the address begins with https: %w", ErrNoTLS, err)
	}
	return explainAlert(err)
}

// explainAlert reads what the other side said when it ended the handshake; crypto/tls gives it as text only.
func explainAlert(err error) error {
	_, alert, ok := strings.Cut(err.Error(), "remote error: tls: ")
	if !ok {
		return err
	}
	switch alert {
	case "expired certificate":
		return fmt.Errorf("%w: the other side says so of this one's, or its clock is ahead: %s", ErrExpired, joinHint)
	case "unknown certificate authority":
		return fmt.Errorf("%w: the other side doesn't know who signed this one's: %s", ErrOtherControl, joinHint)
	case "certificate required":
		return fmt.Errorf("%w: %s", ErrNoCertificate, joinHint)
	case "bad certificate":
		return fmt.Errorf("%w: the other side refuses this one's role or control plane; its log says why", ErrRole)
	case "protocol version not supported":
		return fmt.Errorf("%w: %w", ErrNoTLS, err)
	}
	return err
}

func isOurs(err error) bool {
	for _, ours := range []error{
		ErrExpired, ErrNotYetValid, ErrOtherControl, ErrRole, ErrNoCertificate, ErrNoTLS, ErrToken, ErrTokenExpired, ErrTokenUsed,
	} {
		if errors.Is(err, ours) {
			return true
		}
	}
	return false
}

// badTime says both clocks: the one that issued the certificate and the one that looks at it.
func badTime(cert *x509.Certificate, now time.Time) error {
	name := cert.Subject.CommonName
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("%w: that of %q begins at %s, and this host's clock says %s: set the clocks (NTP)", ErrNotYetValid, name, stamp(cert.NotBefore), stamp(now))
	}
	return fmt.Errorf("%w: that of %q ended at %s, and this host's clock says %s: if the clock is right, %s", ErrExpired, name, stamp(cert.NotAfter), stamp(now), joinHint)
}

func otherControl(theirs, ours string) error {
	if ours == "" {
		return fmt.Errorf("%w: it is of %s: %s", ErrOtherControl, describe(theirs), joinHint)
	}
	return fmt.Errorf("%w: it is of %s, this one belongs to %q: check the address, or %s", ErrOtherControl, describe(theirs), ours, joinHint)
}

func describe(control string) string {
	if control == "" {
		return "something that is no control plane of Mobula"
	}
	return fmt.Sprintf("the control plane %q", control)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
