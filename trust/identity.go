// Package trust is the fleet's own certificate authority: the identities of its processes, the tokens
// by which hosts join, and TLS between them.
//
// Each process of a fleet has a certificate with an identity such as mobula://prod-k3j9x2ma/agent/gpu-1: the
// control plane, a role and a name. Peers check the identity and not the host name, since hosts move.
package trust

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what the holder of a certificate may do.
type Role string

// Roles of a fleet's processes.
const (
	RoleControl Role = "control"
	RoleAgent   Role = "agent"
	RoleRouter  Role = "router"
)

const scheme = "mobula"

// Identity is whom a certificate was issued to.
type Identity struct {
	// Control is the id of the control plane (CA.ID).
	Control string
	Role    Role
	// Name of the host or process, unique within its role.
	Name string
}

// String gives it as it stands in a certificate: mobula://<control>/<role>/<name>.
func (id Identity) String() string { return id.url().String() }

func (id Identity) url() *url.URL {
	return &url.URL{Scheme: scheme, Host: id.Control, Path: "/" + string(id.Role) + "/" + id.Name}
}

// IdentityOf reads a certificate's identity.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	for _, u := range cert.URIs {
		role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		if u.Scheme == scheme && ok && checkName(u.Host) == nil && checkName(name) == nil && isRole(Role(role)) {
			return Identity{Control: u.Host, Role: Role(role), Name: name}, nil
		}
	}
	return Identity{}, fmt.Errorf("%w: %q has no identity of a Mobula fleet", ErrOtherControl, cert.Subject.CommonName)
}

// PeerIdentity tells who is at the other end of a connection whose TLS came from this package; false
// for a client without a certificate.
func PeerIdentity(conn *tls.ConnectionState) (Identity, bool) {
	if conn == nil || len(conn.PeerCertificates) == 0 {
		return Identity{}, false
	}
	id, err := IdentityOf(conn.PeerCertificates[0])
	return id, err == nil
}

// controlOf gives the id of the control plane that a certificate says it belongs to, its CA's or another one.
func controlOf(cert *x509.Certificate) string {
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			return u.Host
		}
	}
	return ""
}

func isRole(r Role) bool { return slices.Contains([]Role{RoleControl, RoleAgent, RoleRouter}, r) }

// checkName holds names to what is the same in a URL, a path and a log: host names are such.
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("name %q must have 1 to 253 characters", name)
	}
	if name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}) {
		return fmt.Errorf("name %q must be of letters, digits, dots, dashes and underscores, and begin with a letter or digit", name)
	}
	return nil
}
