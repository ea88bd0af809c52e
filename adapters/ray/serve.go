package ray

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// bucketServe holds, by owner, the applications that we have deployed.
const bucketServe = "ray/serve"

const (
	serveLookTimeout = 5 * time.Second
	servePutTimeout  = 30 * time.Second // the first one starts Ray Serve itself
	servePause       = 10 * time.Second // before a configuration that could not be put is put again
	serveAbsent      = 2                // looks in a row without Ray Serve until it is believed
	maxServeMessage  = 300
)

// States of Ray Serve's that are looked at.
const (
	serveRunning     = "RUNNING"
	serveUnhealthy   = "UNHEALTHY"
	serveDeploying   = "DEPLOYING"
	serveFailed      = "DEPLOY_FAILED"
	serveDeleting    = "DELETING"
	serveDeclarative = "declarative"
)

// beingDeployed is a problem that passes by itself.
const beingDeployed = "it is being deployed"

// serving takes in a fleet's Ray Serve applications, and keeps those deployed whose configuration the fleet has. It is
// for one goroutine.
type serving struct {
	store state.Store // nil: it only looks
	owner string
	log   *slog.Logger

	ours     map[string]serveRecord       // what we have deployed
	known    map[string][]mobula.Endpoint // of each application, as last seen
	problems []string
	logged   []string
	absent   int    // looks in a row without Ray Serve
	failed   []byte // the configuration that could not be put last, and why
	failure  error
	retryAt  time.Time
}

// newServe reads what the owner has deployed. Without a store nothing is ever deployed.
func newServe(store state.Store, owner string, log *slog.Logger) (*serving, error) {
	s := &serving{store: store, owner: owner, log: log, ours: map[string]serveRecord{}, known: map[string][]mobula.Endpoint{}}
	if log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if store == nil {
		return s, nil
	}
	stored, ok, err := store.Get(bucketServe, owner)
	if err == nil && ok {
		err = json.Unmarshal(stored, &s.ours)
	}
	if err != nil {
		return nil, fmt.Errorf("read the Ray Serve applications of %s: %w", owner, err)
	}
	if s.ours == nil { // stored as null
		s.ours = map[string]serveRecord{}
	}
	return s, nil
}

// round looks at Ray Serve, deploys what differs, and gives the endpoints of the applications that are wanted, one for
// each proxy, and for each application that has none why. With an error the cluster could not be asked, and both are as
// they were last.
func (s *serving) round(ctx context.Context, api API, want []mobula.RayServe) (endpoints []mobula.Endpoint, problems []string, err error) {
	if len(want) == 0 && len(s.ours) == 0 {
		clear(s.known)
		s.tell(ctx, nil)
		return nil, nil, nil
	}
	at, err := s.look(ctx, api)
	if err != nil {
		return s.endpoints(want), slices.Clone(s.problems), err
	}
	found := map[string]string{} // problems by application
	if s.store != nil {
		s.deploy(ctx, api, at, want, found)
	}
	known := map[string][]mobula.Endpoint{}
	for _, w := range want {
		all, problem := serveEndpoints(at, w.Name, s.known[w.Name])
		known[w.Name] = all
		if found[w.Name] == "" && problem != "" {
			found[w.Name] = problem
		}
	}
	s.known = known
	problems = nil
	for _, name := range slices.Sorted(maps.Keys(found)) {
		problems = append(problems, "Ray Serve application "+name+": "+found[name])
	}
	s.tell(ctx, problems)
	return s.endpoints(want), problems, nil
}

var errServeAbsent = errors.New("ray serve does not answer")

// look reads the state of Ray Serve. Ray says that there is none also when it could not find out: it has to say so again.
func (s *serving) look(ctx context.Context, api API) (*ServeState, error) {
	ctx, cancel := context.WithTimeout(ctx, serveLookTimeout)
	defer cancel()
	at, err := api.Serve(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at Ray Serve: %w", err)
	}
	if at.Running {
		s.absent = 0
		return at, nil
	}
	if s.absent++; s.absent < serveAbsent {
		return nil, fmt.Errorf("%w: %w", adapters.ErrUnavailable, errServeAbsent)
	}
	return at, nil
}

// endpoints are those known of the applications that are wanted.
func (s *serving) endpoints(want []mobula.RayServe) []mobula.Endpoint {
	var all []mobula.Endpoint
	for _, w := range want {
		for _, e := range s.known[w.Name] {
			e.Models = w.Models
			all = append(all, e)
		}
	}
	return all
}

// tell logs problems when they are others than before.
func (s *serving) tell(ctx context.Context, problems []string) {
	s.problems = problems
	for _, p := range problems {
		if !slices.Contains(s.logged, p) && !strings.HasSuffix(p, ": "+beingDeployed) {
			s.log.WarnContext(ctx, "a Ray Serve application is not as the fleet wants it", "problem", p)
		}
	}
	s.logged = problems
}

// deploy has the fleet's configurations deployed, and says in found why one could not be.
func (s *serving) deploy(ctx context.Context, api API, at *ServeState, want []mobula.RayServe, found map[string]string) {
	p := planServe(at, want, s.ours)
	maps.Copy(found, p.problems)
	if p.config != nil && bytes.Equal(p.config, s.failed) && time.Now().Before(s.retryAt) {
		p.blame(found, s.failure)
		return
	}
	before := maps.Clone(s.ours)
	// Ours by name before Ray hears of it: a crash in between must not make them somebody else's.
	if err := s.keep(p.intended(before)); err != nil || p.config == nil {
		p.blame(found, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, servePutTimeout)
	defer cancel()
	s.failed = nil
	if err := api.DeployServe(ctx, p.config); err != nil {
		s.failed, s.failure, s.retryAt = p.config, err, time.Now().Add(servePause)
		if !errors.Is(err, adapters.ErrUnavailable) && ctx.Err() == nil { // else it may have come to pass
			err = errors.Join(err, s.keep(before))
		}
		p.blame(found, err)
		return
	}
	s.log.InfoContext(ctx, "Ray Serve has a new configuration", "changed", p.changed)
	for _, name := range p.changed {
		if _, put := p.ours[name]; put {
			found[name] = beingDeployed
		}
	}
	p.blame(found, s.keep(p.ours))
}

// keep makes durable what is ours.
func (s *serving) keep(ours map[string]serveRecord) error {
	if maps.EqualFunc(ours, s.ours, serveRecord.equal) {
		return nil
	}
	change := state.Change{Bucket: bucketServe, Key: s.owner}
	if len(ours) > 0 {
		var err error
		if change.Value, err = json.Marshal(ours); err != nil {
			return fmt.Errorf("remember the applications: %w", err)
		}
	}
	if err := s.store.Write(change); err != nil {
		return fmt.Errorf("remember the applications: %w", err)
	}
	s.ours = ours
	return nil
}

// serveEndpoints gives the endpoints of an application, given those that it had. An application that was in service
// stays so while it is updated or ails: our own probes find out whether it answers.
func serveEndpoints(at *ServeState, name string, before []mobula.Endpoint) (all []mobula.Endpoint, problem string) {
	if !at.Running {
		return nil, "Ray Serve does not run on the cluster: deploy the application, or give its config in platform.ray.serve"
	}
	i := slices.IndexFunc(at.Apps, func(a ServeApp) bool { return a.Name == name })
	if i < 0 {
		return nil, "the cluster has no such application, it has " + names(at.Apps) + ": deploy it, or correct platform.ray.serve"
	}
	app := &at.Apps[i]
	serves := app.Status == serveRunning || app.Status == serveUnhealthy ||
		len(before) > 0 && (app.Status == serveDeploying || app.Status == serveFailed)
	if app.Status != serveRunning {
		problem = app.complaint()
	}
	if !serves {
		return nil, problem
	}
	if settled := app.Status == serveRunning || app.Status == serveUnhealthy; settled && app.RoutePrefix != "/" {
		return nil, fmt.Sprintf("its route_prefix is %q, and requests come for /v1/…: give it the route_prefix \"/\"", app.RoutePrefix)
	}
	all, why := proxyEndpoints(at, name, before)
	return all, cmp.Or(problem, why)
}

// complaint is what is wrong with an application that is not RUNNING, and what can be done.
func (a *ServeApp) complaint() string {
	said := "it is " + a.Status
	if a.Status == serveDeploying && a.Message == "" {
		return beingDeployed
	}
	if m := serveLine(a.Message); m != "" {
		said += ": " + m
	}
	switch a.Status {
	case serveFailed:
		return said + ": correct its configuration; its log is in Ray's dashboard, page Serve"
	case serveUnhealthy:
		return said + ": its log is in Ray's dashboard, page Serve"
	}
	return said
}

// proxyEndpoints gives an endpoint for each healthy proxy. While there is none the endpoints stay: a new controller does not
// know its proxies at first.
func proxyEndpoints(at *ServeState, app string, before []mobula.Endpoint) (all []mobula.Endpoint, problem string) {
	if len(at.Proxies) == 0 && len(before) > 0 {
		return before, ""
	}
	scheme := "http"
	if at.TLS {
		scheme = "https"
	}
	proxies := slices.Clone(at.Proxies)
	slices.SortFunc(proxies, func(a, b ServeProxy) int { return cmp.Compare(a.NodeIP, b.NodeIP) })
	local := false
	urls := map[string]bool{}
	for _, p := range proxies {
		id := "serve-" + app + "-" + strings.NewReplacer(".", "-", ":", "-").Replace(p.NodeIP)
		host := p.NodeIP
		if !anyAddress(at.Host) {
			host = at.Host
		}
		if loopback(host) && !loopback(p.NodeIP) {
			local = true
			continue
		}
		url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(at.Port))
		if urls[url] { // a proxy of its own address alone
			continue
		}
		urls[url] = true
		all = append(all, mobula.Endpoint{
			ID: id, URL: url,
			Labels: map[string]string{"ray.io/serve": app, "host": p.NodeIP},
		})
	}
	switch {
	case len(all) > 0:
		return all, ""
	case local:
		return nil, "Ray Serve listens on " + at.Host + " only: start it anew for all addresses (serve shutdown, then serve start --http-host 0.0.0.0)"
	}
	return nil, "Ray Serve has no healthy HTTP proxy: see its proxy_location, and the page Serve of Ray's dashboard"
}

func anyAddress(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// names lists applications, the first few.
func names(apps []ServeApp) string {
	var all []string
	for _, a := range apps {
		all = append(all, a.Name)
	}
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	if len(all) > 5 {
		all = append(all[:5], "…")
	}
	return strings.Join(all, ", ")
}

// serveLine is what of a message says it, in a line: Ray sends whole tracebacks, and the several lines of a validation.
func serveLine(message string) string {
	line := lastLine(message)
	if i := strings.Index(message, "validation error"); i >= 0 {
		lines := strings.Split(message[i:], "\n")
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "For further information") })
		line = strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
	}
	return shorten(line, maxServeMessage)
}
