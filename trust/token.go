package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Errors of join tokens.
var (
	// ErrToken: it is no token, or not one of this control plane.
	ErrToken = errors.New("wrong join token")
	// ErrTokenExpired: it was one.
	ErrTokenExpired = errors.New("the join token has expired")
	// ErrTokenUsed: as many hosts have joined with it as may.
	ErrTokenUsed = errors.New("the join token is used up")
)

const (
	tokenPrefix       = "mobula"
	fingerprintLength = 32 // base32 characters, 160 bits
	secretLength      = 32 // likewise
	base32Alphabet    = "abcdefghijklmnopqrstuvwxyz234567"
	newTokenHint      = "make another one with `mobula token` on the control plane"
)

// Token lets a host join: it proves the host to the control plane by its secret, and the control plane to
// the host by the fingerprint of its certificate authority.
type Token struct {
	fingerprint, secret string
}

// TokenRecord is what the control plane keeps of a token: nothing that lets anybody join.
type TokenRecord struct {
	// Hash is Token.Hash.
	Hash    string    `json:"hash"`
	Expires time.Time `json:"expires"`
	// Uses is how often it may still be used; below 0 for any number of times.
	Uses int `json:"uses"`
}

// NewToken makes a token that is good for ttl and so many uses (below 0: any number).
func NewToken(ca *CA, ttl time.Duration, uses int) (Token, TokenRecord, error) {
	if ttl <= 0 || uses == 0 {
		return Token{}, TokenRecord{}, fmt.Errorf("a token for %s and %d uses is none", ttl, uses)
	}
	secret := make([]byte, secretLength*5/8)
	if _, err := rand.Read(secret); err != nil {
		return Token{}, TokenRecord{}, fmt.Errorf("make token: %w", err)
	}
	t := Token{fingerprint: ca.Fingerprint(), secret: base32Lower(secret)}
	return t, TokenRecord{Hash: t.Hash(), Expires: ca.now().Add(ttl), Uses: uses}, nil
}

// ParseToken reads what String gave. Space around it is no matter.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) != 3 || parts[0] != tokenPrefix || !isBase32(parts[1], fingerprintLength) || !isBase32(parts[2], secretLength) {
		return Token{}, fmt.Errorf("%w: it looks like mobula.<%d characters>.<%d characters>; copy it whole, or %s", ErrToken, fingerprintLength, secretLength, newTokenHint)
	}
	return Token{fingerprint: parts[1], secret: parts[2]}, nil
}

func isBase32(s string, length int) bool {
	return len(s) == length && strings.Trim(s, base32Alphabet) == ""
}

// String gives the token itself, secret and all: mobula.<fingerprint>.<secret>.
func (t Token) String() string { return tokenPrefix + "." + t.fingerprint + "." + t.secret }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.StringValue(tokenPrefix + "." + t.fingerprint + ".…")
}

// Hash names the token without telling it: the SHA-256 of its secret, in hex.
func (t Token) Hash() string {
	sum := sha256.Sum256([]byte(t.secret))
	return hex.EncodeToString(sum[:])
}

// Check tells whether a token is the record's and still good, and gives the record with one use fewer. The
// errors are ErrToken, ErrTokenExpired and ErrTokenUsed.
func (r TokenRecord) Check(t Token, now time.Time) (TokenRecord, error) {
	switch {
	case subtle.ConstantTimeCompare([]byte(r.Hash), []byte(t.Hash())) != 1:
		return r, fmt.Errorf("%w: %s", ErrToken, newTokenHint)
	case !now.Before(r.Expires):
		return r, fmt.Errorf("%w, on %s: %s", ErrTokenExpired, stamp(r.Expires), newTokenHint)
	case r.Uses == 0:
		return r, fmt.Errorf("%w: %s", ErrTokenUsed, newTokenHint)
	case r.Uses > 0:
		r.Uses--
	}
	return r, nil
}
