package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestIssue(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	csr, _, err := NewRequest()
	require.NoError(t, err)
	data, err := ca.Issue(csr, RoleAgent, "gpu-1", []string{"10.0.0.7", "GPU-1.lan", "fe80::1"}, AgentLife)
	require.NoError(t, err)
	certs, err := parseCerts(data)
	require.NoError(t, err)
	cert := certs[0]
	require.Equal(t, "mobula://"+ca.ID()+"/agent/gpu-1", cert.URIs[0].String())
	require.NoError(t, cert.VerifyHostname("10.0.0.7"))
	require.NoError(t, cert.VerifyHostname("gpu-1.lan"))
	require.NoError(t, cert.VerifyHostname("fe80::1"))
	require.False(t, cert.IsCA)
	require.WithinDuration(t, time.Now().Add(AgentLife), cert.NotAfter, time.Minute)
	require.WithinDuration(t, time.Now().Add(-clockTolerance), cert.NotBefore, time.Minute)
}

func TestIssueNoLongerThanTheAuthority(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	c, err := ca.Credentials(RoleControl, "control", nil, 20*caLife)
	require.NoError(t, err)
	require.Equal(t, ca.cert.NotAfter, c.Expires())

	ca.now = at(caLife + day)
	_, err = ca.Credentials(RoleControl, "control", nil, day)
	require.ErrorIs(t, err, ErrExpired)
}

func TestIssueRefuses(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	good, key, err := NewRequest()
	require.NoError(t, err)
	forged := bytes.Clone(good)
	block, _ := pem.Decode(forged)
	block.Bytes[len(block.Bytes)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	rsaRequest, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	require.NoError(t, err)

	for name, tc := range map[string]struct {
		csr       []byte
		role      Role
		name      string
		addresses []string
		ttl       time.Duration
		says      string
	}{
		"nothing":           {csr: nil, says: "no PEM certificate request"},
		"a key":             {csr: key, says: "no PEM certificate request"},
		"rubbish in PEM":    {csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte("x")}), says: "asn1"},
		"too long":          {csr: bytes.Repeat([]byte("x"), 1<<20), says: "more than"},
		"a wrong signature": {csr: pem.EncodeToMemory(block), says: "verif"},
		"an RSA key":        {csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: rsaRequest}), says: "ECDSA"},
		"an unknown role":   {role: "root", says: `no role "root"`},
		"no name":           {name: "-", says: "name"},
		"a name with slash": {name: "gpu-1/../control", says: "name"},
		"a long name":       {name: strings.Repeat("x", 254), says: "name"},
		"a bad address":     {addresses: []string{"gpu 1"}, says: `"gpu 1"`},
		"many addresses":    {addresses: make([]string, 65), says: "more than"},
		"no life":           {ttl: -1, says: "life"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.csr == nil && name != "nothing" {
				tc.csr = good
			}
			if tc.role == "" {
				tc.role = RoleAgent
			}
			if tc.name == "" {
				tc.name = "gpu-1"
			}
			if tc.ttl == 0 {
				tc.ttl = day
			}
			_, err := ca.Issue(tc.csr, tc.role, tc.name, tc.addresses, tc.ttl)
			require.ErrorIs(t, err, ErrRequest)
			require.ErrorContains(t, err, tc.says)
		})
	}
}

func FuzzIssue(f *testing.F) {
	ca, err := NewCA("prod")
	require.NoError(f, err)
	csr, key, err := NewRequest()
	require.NoError(f, err)
	f.Add(csr, "agent", "gpu-1", "10.0.0.7")
	f.Add(key, "control", "gpu-1/x", "host name")
	f.Add(ca.PEM(), "", "", "")
	f.Add(csr[:len(csr)/2], "router", strings.Repeat("ü", 200), "::1")
	f.Fuzz(func(t *testing.T, csr []byte, role, name, address string) {
		data, err := ca.Issue(csr, Role(role), name, []string{address}, day)
		if err != nil {
			require.ErrorIs(t, err, ErrRequest)
			return
		}
		certs, err := parseCerts(data)
		require.NoError(t, err)
		id, err := IdentityOf(certs[0])
		require.NoError(t, err)
		require.Equal(t, Identity{Control: ca.ID(), Role: Role(role), Name: name}, id)
		require.False(t, certs[0].IsCA)
	})
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "a b", "-x", "ü", strings.Repeat("x", 51)} {
		_, err := NewCA(name)
		require.Error(t, err, name)
	}
}

func TestCAIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "trust")
	first, err := OpenCA(dir, "prod")
	require.NoError(t, err)
	again, err := OpenCA(dir, "other")
	require.NoError(t, err)
	require.Equal(t, first.ID(), again.ID())
	require.Equal(t, first.Fingerprint(), again.Fingerprint())
	require.Empty(t, cmp.Diff(map[string]fs.FileMode{"ca.pem": 0o600, "ca-key.pem": 0o600}, modes(t, dir)))

	other, err := NewCA("prod")
	require.NoError(t, err)
	_, err = LoadCA(first.PEM(), other.KeyPEM())
	require.ErrorContains(t, err, "not that of the certificate authority")
	require.NoError(t, os.Remove(filepath.Join(dir, "ca-key.pem")))
	_, err = OpenCA(dir, "prod")
	require.ErrorContains(t, err, "ca-key.pem", "an authority whose key is lost must not be replaced in silence")

	// Killed before the certificate was written: there was no authority yet.
	require.NoError(t, os.Rename(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")))
	fresh, err := OpenCA(dir, "prod")
	require.NoError(t, err)
	require.NotEqual(t, first.ID(), fresh.ID())
}

func TestCredentialsAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	_, err := LoadDir(dir)
	require.ErrorIs(t, err, ErrNotJoined)

	ca, err := NewCA("prod")
	require.NoError(t, err)
	csr, key, err := NewRequest()
	require.NoError(t, err)
	cert, err := ca.Issue(csr, RoleAgent, "gpu-1", nil, AgentLife)
	require.NoError(t, err)
	c, err := NewCredentials(ca.PEM(), cert, key)
	require.NoError(t, err)
	require.NoError(t, SaveDir(dir, c))
	require.Empty(t, cmp.Diff(map[string]fs.FileMode{"ca.pem": 0o600, "cert.pem": 0o600, "key.pem": 0o600}, modes(t, dir)))

	loaded, err := LoadDir(dir)
	require.NoError(t, err)
	require.Equal(t, c.Identity(), loaded.Identity())
	require.Equal(t, ca.PEM(), loaded.CAPEM())
	control := issued(t, ca, 0, RoleControl, "control")
	_, clientErr, _ := handshake(t, loaded.ServerTLS(RoleControl), control.ClientTLS(RoleAgent))
	require.NoError(t, clientErr)

	for name, file := range map[string]string{"no key": "key.pem", "no certificate": "cert.pem"} {
		t.Run(name, func(t *testing.T) {
			half := t.TempDir()
			require.NoError(t, os.CopyFS(filepath.Join(half, "d"), os.DirFS(dir)))
			require.NoError(t, os.Remove(filepath.Join(half, "d", file)))
			_, err := LoadDir(filepath.Join(half, "d"))
			require.ErrorIs(t, err, ErrNotJoined)
		})
	}
	for name, content := range map[string]string{"empty": "", "rubbish": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "cert.pem"), []byte(content), 0o600))
			_, err := LoadDir(dir)
			require.ErrorContains(t, err, filepath.Join(dir, "cert.pem"))
			require.ErrorContains(t, err, "join again")
		})
	}
}

func TestCredentialsThatDoNotFit(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	other, err := NewCA("staging")
	require.NoError(t, err)
	csr, key, err := NewRequest()
	require.NoError(t, err)
	_, otherKey, err := NewRequest()
	require.NoError(t, err)
	cert, err := ca.Issue(csr, RoleAgent, "gpu-1", nil, day)
	require.NoError(t, err)

	_, err = NewCredentials(ca.PEM(), cert, otherKey)
	require.ErrorContains(t, err, "not of this key")
	_, err = NewCredentials(other.PEM(), cert, key)
	require.ErrorIs(t, err, ErrOtherControl)
	require.ErrorContains(t, err, ca.ID())
	require.ErrorContains(t, err, other.ID())
	_, err = NewCredentials(cert, cert, key)
	require.ErrorContains(t, err, "not the certificate authority")
	_, err = NewCredentials(nil, cert, key)
	require.ErrorContains(t, err, "no PEM certificate")
}

func TestToken(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	token, record, err := NewToken(ca, time.Hour, 2)
	require.NoError(t, err)
	require.Equal(t, token.Hash(), record.Hash)
	require.NotContains(t, record.Hash, token.secret)
	require.NotContains(t, slog.AnyValue(token).Resolve().String(), token.secret)
	parsed, err := ParseToken(" " + token.String() + "\n")
	require.NoError(t, err)
	require.Equal(t, token, parsed)
	other, _, err := NewToken(ca, time.Hour, 2)
	require.NoError(t, err)

	now := time.Now()
	_, err = record.Check(other, now)
	require.ErrorIs(t, err, ErrToken)
	_, err = record.Check(token, now.Add(2*time.Hour))
	require.ErrorIs(t, err, ErrTokenExpired)
	require.ErrorContains(t, err, "mobula token")
	for range 2 {
		record, err = record.Check(token, now)
		require.NoError(t, err)
	}
	_, err = record.Check(token, now)
	require.ErrorIs(t, err, ErrTokenUsed)

	_, forever, err := NewToken(ca, time.Hour, -1)
	require.NoError(t, err)
	require.Negative(t, forever.Uses)
	for _, bad := range []struct {
		ttl  time.Duration
		uses int
	}{{0, 1}, {-time.Hour, 1}, {time.Hour, 0}} {
		_, _, err = NewToken(ca, bad.ttl, bad.uses)
		require.Error(t, err)
	}
}

func FuzzParseToken(f *testing.F) {
	ca, err := NewCA("prod")
	require.NoError(f, err)
	token, _, err := NewToken(ca, time.Hour, 1)
	require.NoError(f, err)
	f.Add(token.String())
	f.Add(strings.ToUpper(token.String()))
	f.Add(token.String() + ".x")
	f.Add("mobula..")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := ParseToken(s)
		if err != nil {
			require.ErrorIs(t, err, ErrToken)
			return
		}
		require.Equal(t, strings.TrimSpace(s), token.String())
	})
}

func TestExplainLeavesTheRest(t *testing.T) {
	require.NoError(t, Explain(nil))
	other := errors.New("connection refused")
	require.Equal(t, other, Explain(other))
	require.Equal(t, "remote error: tls: internal error", Explain(errors.New("remote error: tls: internal error")).Error())
}

func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	got := map[string]fs.FileMode{}
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		got[e.Name()] = info.Mode().Perm()
	}
	return got
}
