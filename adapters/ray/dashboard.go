package ray

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/tidwall/gjson"

	"github.com/mobula-serve/mobula"
)

const (
	dashboardTimeout    = 10 * time.Second // of a call with its retries
	dashboardConnect    = 3 * time.Second
	dashboardRetries    = 2
	dashboardPause      = 100 * time.Millisecond // before the first retry
	dashboardLongPause  = time.Second
	dashboardMaxAnswer  = 1 << 20
	dashboardMaxState   = 64 << 20 // 10,000 actors are some 15 MB
	dashboardMaxRefusal = 64 << 10 // of an answer that is an error; what it says is at its end
	dashboardMaxText    = 300      // of Ray's own words in an error
)

// oldestMajor and oldestMinor are the oldest Ray that is taken on: 2.49, of which the routes and fields read here are
// known. Selecting nodes by label needs a placement group's bundle_label_selector, which the launcher looks for itself.
// 2.60 and 2.59 are tested.
const oldestMajor, oldestMinor = 2, 49

// DashboardOptions of a Dashboard.
type DashboardOptions struct {
	// Address of the dashboard: http://ray-head:8265. Required.
	Address string
	// Token gives the cluster's token for each request, empty for none. Default: none.
	Token func() (mobula.Secret, error)
	// Locate gives address and token of a cluster that moves: Address is but its name then, and Token is not asked. What it gives is kept
	// while the cluster answers there, for half a minute. Default: none.
	Locate func(ctx context.Context) (address string, token mobula.Secret, err error)
	// TLS for https; nil takes the system's roots.
	TLS *tls.Config
	// Timeout of a call with its retries, 0 for 10s. A log that is followed has none.
	Timeout time.Duration
	// Logger tells what is asked again, at level debug. Default: slog.DiscardHandler's.
	Logger *slog.Logger
}

// Dashboard is a Ray cluster's dashboard over HTTP. Its methods may be called at once; Close it at the end.
type Dashboard struct {
	base    string // scheme, host and port; of one that moves its name
	place   *dashboardPlace
	timeout time.Duration
	log     *slog.Logger
	http    *http.Client

	lists [3]dashboardList // actors, groups, nodes, as they were last read
	seed  maphash.Seed

	mu     sync.Mutex
	pieces int // polls for which actors are still asked by state
}

// NewDashboard makes a client. Nothing is contacted yet.
func NewDashboard(o DashboardOptions) (*Dashboard, error) {
	base := o.Address
	if o.Locate == nil {
		var err error
		if base, err = dashboardBase(o.Address); err != nil {
			return nil, err
		}
	}
	d := &Dashboard{
		base: base, place: newDashboardPlace(base, o), timeout: cmp.Or(o.Timeout, dashboardTimeout), log: o.Logger, seed: maphash.MakeSeed(),
		http: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: dashboardConnect}).DialContext,
				TLSClientConfig:       o.TLS,
				TLSHandshakeTimeout:   dashboardConnect,
				ExpectContinueTimeout: time.Second,
				MaxIdleConnsPerHost:   4,
				IdleConnTimeout:       time.Minute,
				DisableCompression:    true,
			},
			// A dashboard sends nobody elsewhere; the token must not follow who claims so.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

// dashboardBase gives scheme, host and port of an address.
func dashboardBase(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", fmt.Errorf("address %q of a Ray dashboard: want http://HOST:8265", address)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Close drops idle connections.
func (d *Dashboard) Close() { d.http.CloseIdleConnections() }

// Version tells what answers, and fails with adapters.ErrUnavailable when it has no GCS behind it: /api/version itself
// answers without.
func (d *Dashboard) Version(ctx context.Context) (Version, error) {
	const what = "ask for its version"
	body, err := d.get(ctx, what, "/api/version", nil, dashboardMaxAnswer)
	if errors.Is(err, errNoRoute) || errors.Is(err, errRefused) {
		return Version{}, fmt.Errorf("%w: %w", ErrNotRay, err)
	}
	if err != nil {
		return Version{}, err
	}
	v := Version{Ray: gjson.GetBytes(body, "ray_version").Str, Session: gjson.GetBytes(body, "session_name").Str}
	if !gjson.ValidBytes(body) || v.Ray == "" {
		return Version{}, d.notRay("it answers /api/version with " + dashboardText(body))
	}
	if tooOld(v.Ray) {
		return Version{}, fmt.Errorf("%s: %w: it is %s, and %d.%d is the least", d.base, ErrTooOld, v.Ray, oldestMajor, oldestMinor)
	}
	_, err = d.get(ctx, "ask for its health", "/api/gcs_healthz", nil, dashboardMaxAnswer)
	if err != nil && !errors.Is(err, errNoRoute) {
		return Version{}, err
	}
	return v, nil
}

// tooOld tells whether a version is known to be older than what is needed.
func tooOld(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, err1 := strconv.Atoi(major)
	y, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (x < oldestMajor || x == oldestMajor && y < oldestMinor)
}

// dashboardCall is one request. What says in words what was asked for, for an error's text.
type dashboardCall struct {
	what, method, path string
	query              url.Values
	body               []byte
	kind               string // Content-Type of body
	most               int64  // bytes of the answer
}

func (d *Dashboard) get(ctx context.Context, what, path string, query url.Values, most int64) ([]byte, error) {
	return d.do(ctx, dashboardCall{what: what, method: http.MethodGet, path: path, query: query, most: most})
}

// do makes a call, tries it again where that can help, and gives its body.
func (d *Dashboard) do(ctx context.Context, c dashboardCall) ([]byte, error) {
	var body []byte
	err := d.read(ctx, c, func(resp *http.Response) error {
		var err error
		body, err = readBounded(nil, resp.Body, c.most)
		return err
	})
	return body, err
}

// read makes a call and hands on its answer, which is not an error.
func (d *Dashboard) read(ctx context.Context, c dashboardCall, take func(*http.Response) error) error {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	req, err := d.request(ctx, c)
	if err != nil {
		return d.failed(c.what, err)
	}
	retrier := &retryablehttp.Client{
		HTTPClient: d.http, RetryWaitMin: dashboardPause, RetryWaitMax: dashboardLongPause, RetryMax: dashboardRetries,
		CheckRetry: checkRetry, Backoff: retryablehttp.DefaultBackoff, ErrorHandler: retryablehttp.PassthroughErrorHandler,
		RequestLogHook: func(_ retryablehttp.Logger, _ *http.Request, again int) {
			if again > 0 {
				d.log.DebugContext(ctx, "asking the Ray cluster again", "address", d.base, "what", c.what, "try", again+1)
			}
		},
	}
	resp, err := retrier.Do(req)
	d.place.answered(resp)
	if err != nil {
		return d.unreachable(caller, c.what, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := readTail(resp.Body, dashboardMaxRefusal)
		return d.refused(c.what, resp, said)
	}
	if err := take(resp); err != nil {
		return d.unreachable(caller, c.what, err)
	}
	return nil
}

func (d *Dashboard) request(ctx context.Context, c dashboardCall) (*retryablehttp.Request, error) {
	base, token, err := d.place.get(ctx)
	if err != nil {
		return nil, err
	}
	target := base + c.path
	if len(c.query) > 0 {
		target += "?" + c.query.Encode()
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, c.method, target, c.body)
	if err != nil {
		return nil, err
	}
	if c.kind != "" {
		req.Header.Set("Content-Type", c.kind)
	}
	authorize(req.Request, token)
	return req, nil
}

func authorize(req *http.Request, token mobula.Secret) {
	req.Header.Set("User-Agent", "mobula") // Ray refuses what looks like a browser
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+string(token))
	}
}

// checkRetry takes all calls for idempotent: jobs have their IDs from us. A GET that Ray answers with 500 is not tried
// again, since the next poll asks anyway.
func checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		return !permanent(err), nil
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true, nil
	case http.StatusInternalServerError:
		if resp.Request == nil || resp.Request.Method == http.MethodGet {
			return false, nil
		}
		said, _ := readTail(resp.Body, dashboardMaxRefusal)
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(said))
		return !innerRefusal(said), nil
	default:
		return false, nil
	}
}

// permanent tells of an error of the connection that asking again does not mend.
func permanent(err error) bool { return untrusted(err) || notHTTP(err) }

func untrusted(err error) bool {
	var cert *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.As(err, &cert) || errors.As(err, &authority) || errors.As(err, &name)
}

// notHTTP tells of something else than what the scheme says, such as Ray's GCS port.
func notHTTP(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || slices.ContainsFunc([]string{
		"malformed HTTP", "server gave HTTP response to HTTPS client",
		"readLoopPeekFailLocked: %!w(<nil>)", // it speaks first
	}, func(mark string) bool { return strings.Contains(err.Error(), mark) })
}

var errOverlong = errors.New("the answer is too long")

// readBounded reads all of r behind into, and fails when it is more than most bytes.
func readBounded(into []byte, r io.Reader, most int64) ([]byte, error) {
	b := bytes.NewBuffer(into)
	n, err := b.ReadFrom(io.LimitReader(r, most+1))
	if err == nil && n > most {
		err = fmt.Errorf("%w: more than %d bytes", errOverlong, most)
	}
	return b.Bytes(), err
}

// readTail reads r to its end, or as much as the state of a cluster may be, and keeps its last bytes.
func readTail(r io.Reader, keep int) ([]byte, error) {
	kept, chunk := []byte(nil), make([]byte, 32<<10)
	r = io.LimitReader(r, dashboardMaxState)
	for {
		n, err := r.Read(chunk)
		kept = append(kept, chunk[:n]...)
		if more := len(kept) - keep; more > 0 {
			kept = append(kept[:0], kept[more:]...)
		}
		if err == io.EOF {
			return kept, nil
		}
		if err != nil {
			return kept, err
		}
	}
}
