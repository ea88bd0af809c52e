package mobula

import (
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

const (
	lower   = "abcdefghijklmnopqrstuvwxyz"
	letters = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

// only tells whether s has one character or more and all of them in set.
func only(s, set string) bool { return s != "" && strings.Trim(s, set) == "" }

// isLabel tells whether s can be a DNS label.
func isLabel(s string) bool {
	return only(s, lower+digits+"-") && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
}

// isHostPattern tells whether s can be a host's name with * for any part of it.
func isHostPattern(s string) bool {
	return only(s, letters+digits+"-_.*") && len(s) <= 253
}

// isToken tells whether s can name a header (RFC 9110, token).
func isToken(s string) bool { return only(s, letters+digits+"!#$%&'*+-.^_`|~") }

// isVariable tells whether s can name an environment variable.
func isVariable(s string) bool {
	return only(s, letters+digits+"_") && !strings.Contains(digits, s[:1])
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isHost tells whether s is an IP address without brackets or a host name. A name whose last
// part is a number would be read as an IPv4 address.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(s, "."), ".")
	for _, label := range labels {
		if !only(label, letters+digits+"-_") || len(label) > 63 {
			return false
		}
	}
	return len(s) <= 253 && !only(labels[len(labels)-1], digits)
}

// checkURL says what is wrong with the URL of a server, else a key that is the same for equal servers. want begins
// what is said, secret is the field that a password goes to: one in the URL is not shown.
func checkURL(raw, want, secret string) (key, problem string) {
	if strings.Contains(raw, "@") {
		return "", want + ", without user and password (see " + secret + ")"
	}
	got := ", got " + quote(raw)
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return "", want + got
	case !strings.HasPrefix(raw, "http://") && !strings.HasPrefix(raw, "https://"):
		return "", want + ", with scheme http or https" + got
	case u.Path != "" || strings.ContainsAny(raw, "?#"):
		return "", want + ", without a path, query or fragment" + got
	case !isHost(u.Hostname()):
		return "", want + ", with a host name or IP address ([::1] for IPv6)" + got
	}
	port := u.Port()
	switch {
	case port == "" && strings.HasSuffix(u.Host, ":"), port != "" && !isPort(port, 1):
		return "", want + ", with a port from 1 to 65535" + got
	case port == "" && u.Scheme == "http":
		port = "80"
	case port == "":
		port = "443"
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port), ""
}

// checkListen says what is wrong with an address to listen on.
func checkListen(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || !isPort(port, 0) || host != "" && !isHost(host) {
		return "want host:port such as 127.0.0.1:8000 or :8000, got " + quote(address)
	}
	return ""
}

// isPort tells whether s is a port from low to 65535, in digits only.
func isPort(s string, low uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= low
}
