package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	caLife = 10 * 365 * 24 * time.Hour
	// clockTolerance is how far clocks may differ: certificates begin so long before they are issued.
	clockTolerance = 5 * time.Minute
	// idLength is the number of base32 characters of the key's hash in a CA's id.
	idLength = 8
)

// CA signs the certificates of one fleet.
type CA struct {
	id   string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time
}

// NewCA makes an authority with a new ECDSA P-256 key, valid for ten years. Its id is the name, a DNS label
// of at most 50 characters, with a part of the key's hash, so that two of one name can be told apart.
func NewCA(name string) (*CA, error) { return newCA(name, time.Now) }

func newCA(name string, now func() time.Time) (*CA, error) {
	if err := checkName(name); err != nil || len(name) > 50 {
		return nil, fmt.Errorf("make certificate authority: %w", errors.Join(err, errLong(name, 50)))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of certificate authority: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("make key of certificate authority: %w", err)
	}
	id := strings.ToLower(name) + "-" + hash32(spki)[:idLength]
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Mobula " + id},
		NotBefore:             now().Add(-clockTolerance),
		NotAfter:              now().Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		URIs:                  []*url.URL{{Scheme: scheme, Host: id, Path: "/ca"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	return &CA{id: id, cert: cert, key: key, now: now}, nil
}

// LoadCA reads an authority from what PEM and KeyPEM gave.
func LoadCA(certPEM, keyPEM []byte) (*CA, error) {
	cert, err := parseCA(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("key of certificate authority: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not that of the certificate authority: restore both files from one backup")
	}
	return &CA{id: controlOf(cert), cert: cert, key: key, now: time.Now}, nil
}

// OpenCA loads the authority that is kept in a folder, as ca.pem and ca-key.pem, or makes one of that name.
func OpenCA(dir, name string) (*CA, error) {
	certFile, keyFile := filepath.Join(dir, caName), filepath.Join(dir, "ca-key.pem")
	certPEM, err := os.ReadFile(certFile)
	if errors.Is(err, fs.ErrNotExist) {
		ca, err := NewCA(name)
		if err != nil {
			return nil, err
		}
		// The certificate comes last: without it there is no authority yet.
		return ca, errors.Join(writeFile(keyFile, ca.KeyPEM()), writeFile(certFile, ca.PEM()))
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	keyPEM, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read key of certificate authority: %w", err)
	}
	ca, err := LoadCA(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return ca, nil
}

// ID names the control plane that the authority belongs to.
func (ca *CA) ID() string { return ca.id }

// PEM gives the certificate, which is no secret.
func (ca *CA) PEM() []byte { return certPEM(ca.cert.Raw) }

// KeyPEM gives the private key.
func (ca *CA) KeyPEM() []byte { return keyPEM(ca.key) }

// Fingerprint gives a part of the certificate's SHA-256, as join tokens carry it: 160 bits in base32.
func (ca *CA) Fingerprint() string { return fingerprint(ca.cert) }

func fingerprint(cert *x509.Certificate) string { return hash32(cert.Raw)[:fingerprintLength] }

// hash32 is SHA-256 in lower-case base32.
func hash32(data []byte) string {
	sum := sha256.Sum256(data)
	return base32Lower(sum[:])
}

func base32Lower(data []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(data))
}

func errLong(name string, limit int) error {
	if len(name) > limit {
		return fmt.Errorf("name %q is longer than %d characters", name, limit)
	}
	return nil
}

func parseCA(data []byte) (*x509.Certificate, error) {
	certs, err := parseCerts(data)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if cert := certs[0]; !cert.IsCA || checkName(controlOf(cert)) != nil {
		return nil, fmt.Errorf("%q is not the certificate authority of a Mobula fleet", cert.Subject.CommonName)
	}
	return certs[0], nil
}

// parseCerts reads one or more PEM certificates.
func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("read certificate: %w", err)
			}
			certs = append(certs, cert)
		}
		data = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return certs, nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM private key in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the private key is not an ECDSA one")
	}
	return ec, nil
}

func certPEM(ders ...[]byte) []byte {
	var all bytes.Buffer
	for _, der := range ders {
		all.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return all.Bytes()
}

func keyPEM(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err) // of a curve that is not P-256, which no key of ours has
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
