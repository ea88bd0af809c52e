package kubernetes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/mobula-serve/mobula/adapters"
)

// Explain makes of a client's error one that says what to do. It wraps adapters.ErrUnavailable when the API server did not answer or could
// not: network, certificates, timeouts, 5xx, 429, and 401, which is also what API servers say that have lost their own store. A refusal (403),
// what is not there (404), conflicts and invalid objects are answers. The end of the caller's own context stays as it is.
func Explain(err error) error {
	switch {
	case err == nil, errors.Is(err, adapters.ErrUnavailable), errors.Is(err, context.Canceled):
		return err
	case isCertificate(err):
		return fmt.Errorf("%w: the API server's certificate is not trusted: look at certificate-authority and server in the kubeconfig: %w", adapters.ErrUnavailable, err)
	}
	var status apierrors.APIStatus
	answered := errors.As(err, &status)
	switch {
	case !answered && isOutage(err):
		return fmt.Errorf("%w: the API server does not answer: %w", adapters.ErrUnavailable, err)
	case !answered:
		return err
	}
	switch code := status.Status().Code; {
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: the API server does not know us (401): renew the credentials of the kubeconfig, or the service account's token: %w", adapters.ErrUnavailable, err)
	case code == http.StatusForbidden:
		return forbidden(status.Status().Message, err)
	case code == http.StatusTooManyRequests, code >= http.StatusInternalServerError,
		apierrors.IsTimeout(err), apierrors.IsServerTimeout(err):
		return fmt.Errorf("%w: the API server can't answer (%d): %w", adapters.ErrUnavailable, code, err)
	}
	return err
}

// refused tells of an error that is an answer: asking again changes nothing until somebody changes the cluster.
func refused(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && !errors.Is(Explain(err), adapters.ErrUnavailable) && !expired(err)
}

// refusal is a RefusedError's way of putting it: the authorizer's message in a Status.
var refusal = regexp.MustCompile(`User "([^"]*)" cannot (\S+) resource "([^"]*)" in API group "([^"]*)" (?:in the namespace "([^"]*)"|at the cluster scope)`)

// RefusedError is a right that we lack.
type RefusedError struct {
	// Who lacks it: "service account ns/name", or a user.
	Who string
	// Verb and Resource, "pods" or "deployments.apps".
	Verb, Resource string
	// Namespace is empty for the whole cluster.
	Namespace string

	cause error
}

// Error tells how to get the right.
func (e *RefusedError) Error() string {
	where := "in the whole cluster"
	if e.Namespace != "" {
		where = "in namespace " + e.Namespace
	}
	return fmt.Sprintf("%s may not %s %s %s: grant it (charts/mobula's role does)", e.Who, e.Verb, e.Resource, where)
}

// Unwrap gives the API server's answer.
func (e *RefusedError) Unwrap() error { return e.cause }

// forbidden reads a 403: a missing right, or an admission's no (quota, policy), which says itself what is wrong.
func forbidden(message string, err error) error {
	m := refusal.FindStringSubmatch(message)
	if m == nil {
		return err
	}
	e := &RefusedError{Who: "user " + m[1], Verb: m[2], Resource: m[3], Namespace: m[5], cause: err}
	if account, ok := strings.CutPrefix(m[1], "system:serviceaccount:"); ok {
		e.Who = "service account " + strings.Replace(account, ":", "/", 1)
	}
	if m[4] != "" {
		e.Resource += "." + m[4]
	}
	return e
}

func isCertificate(err error) bool {
	var (
		chain     *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	return errors.As(err, &chain) || errors.As(err, &authority) || errors.As(err, &host) || errors.As(err, &invalid)
}

// isOutage tells of errors on the way to the API server and back.
func isOutage(err error) bool {
	var way *url.Error
	return errors.As(err, &way) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		utilnet.IsTimeout(err) || utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) ||
		utilnet.IsHTTP2ConnectionLost(err) || utilnet.IsProbableEOF(err)
}

// contexts lists what a kubeconfig has, for people.
func contexts(all map[string]*api.Context) string {
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(all)), ", ")
}
