package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/control"
)

// Codes of Error.
const (
	CodeInvalid      = "invalid"
	CodeConflict     = "conflict"
	CodeNotFound     = "notfound"
	CodeImpossible   = "impossible"
	CodeUnavailable  = "unavailable"
	CodeUnauthorized = "unauthorized"
	CodeInternal     = "internal"
)

// Is makes an answered error equal to the one that the control plane had: errors.Is(err, control.ErrConflict).
func (e *Error) Is(target error) bool {
	switch e.Code {
	case CodeInvalid:
		return target == control.ErrInvalid
	case CodeConflict:
		return target == control.ErrConflict
	case CodeNotFound:
		return target == control.ErrNotFound
	case CodeImpossible:
		return target == adapters.ErrImpossible
	case CodeUnavailable:
		return target == adapters.ErrUnavailable
	}
	return false
}

// refusal reads an answer that is not a success.
func (c *Client) refusal(resp *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &Error{Status: resp.StatusCode}
	var body ErrorBody
	if json.Unmarshal(raw, &body) == nil && body.Error.Code != "" {
		e.Code, e.Message = body.Error.Code, body.Error.Message
	} else {
		e.Code = codeOf(resp.StatusCode)
		e.Message = fmt.Sprintf("%s answered %s, not as a control plane does: is the URL right?", c.base, resp.Status)
		if strings.Contains(string(raw), "HTTP request to an HTTPS server") {
			e.Message = fmt.Sprintf("the control plane at %s speaks https: write https:// in its URL", c.base)
		}
	}
	if resp.StatusCode == http.StatusUnauthorized {
		e.Message = fmt.Sprintf("the control plane at %s says: %s", c.base, e.Message)
	}
	return e
}

// codeOf gives the nearest code for an answer that has none, as a proxy's.
func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return CodeUnauthorized
	case http.StatusNotFound:
		return CodeNotFound
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return CodeUnavailable
	}
	if status < http.StatusInternalServerError {
		return CodeInvalid
	}
	return CodeInternal
}

// explain makes a transport's error say what to do.
func (c *Client) explain(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err // without the method and the URL
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if why := tlsProblem(err); why != "" {
		return fmt.Errorf("no secure connection to the control plane at %s: %s: %w", c.base, why, err)
	}
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no control plane at %s: is `mobula up` or `mobula control` running? (%w)", c.base, err)
	case errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		return fmt.Errorf("the control plane at %s did not answer in time: %w", c.base, err)
	case cutOff(err):
		return fmt.Errorf("the control plane at %s closed the connection: is it being restarted? (%w)", c.base, err)
	}
	return fmt.Errorf("the control plane at %s can't be reached: %w", c.base, err)
}

// tlsProblem says what to do about an error of TLS, or nothing for other errors.
func tlsProblem(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "its certificate is not valid at this host's time; compare the clocks, then renew the certificate"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is signed by a CA that is not the one given; take the ca of that control plane's config file"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "its certificate is for another name; use a name or address that it has"
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return "it does not speak TLS; write http:// in its URL"
	}
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		return "it refuses this client's certificate; join again, or use the certificate of its own CA"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate can't be trusted"
	}
	return ""
}
