package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

// objectFlags say which fleet of a Kubernetes cluster is meant: one that is there as Fleet and Model objects.
type objectFlags struct {
	on                  bool
	namespace, fleet    string
	kubeconfig, context string
	controlSecret       string
}

// flags adds those that a router and a control plane have in common.
func (o *objectFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.on, "kubernetes", false, "follow the Fleet and Model objects of a Kubernetes cluster")
	f.StringVar(&o.namespace, "namespace", "", "with --kubernetes: namespace of the objects and the engines (default this pod's, or the kubeconfig's)")
	f.StringVar(&o.fleet, "fleet", resources.DefaultFleet, "with --kubernetes: name of the Fleet object")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "with --kubernetes: kubeconfig file (default this pod's service account, or what kubectl takes)")
	f.StringVar(&o.context, "context", "", "with --kubernetes: context of the kubeconfig file")
	f.StringVar(&o.controlSecret, "control-secret", "", "with --kubernetes: Secret that says how the control plane is reached")
	_ = cmd.MarkFlagFilename("kubeconfig")
}

// check refuses flags that mean nothing without --kubernetes.
func (o *objectFlags) check(cmd *cobra.Command, names ...string) error {
	if o.on {
		return nil
	}
	for _, name := range append(names, "namespace", "fleet", "kubeconfig", "context", "control-secret") {
		if cmd.Flags().Changed(name) {
			return usagef("--%s goes with --kubernetes", name)
		}
	}
	return nil
}

// identity tells this process from others that do the same.
func (o *objectFlags) identity() string {
	host, _ := os.Hostname()
	return cmp.Or(os.Getenv("POD_NAME"), host, "mobula")
}

// connect makes the connection.
func (o *objectFlags) connect(logger *slog.Logger) (*kubernetes.Connection, error) {
	return kubernetes.Connect(
		mobula.Kubernetes{Namespace: o.namespace, Kubeconfig: o.kubeconfig, Context: o.context},
		kubernetes.ConnectOptions{Version: thisBuild().Version, Logger: logger},
	)
}

// source makes a Source of the fleet; more are the options that a control plane and a router have each of their own.
func (o *objectFlags) source(c *kubernetes.Connection, more resources.Options, logger *slog.Logger) (*resources.Source, error) {
	more.Client, more.Namespace, more.Fleet, more.Logger = c.Dynamic, c.Namespace, o.fleet, logger
	return resources.New(more)
}

// objectLink is what a router needs of a fleet of objects: its settings, and whom to report to.
type objectLink struct {
	objects *resources.Source
	reports *secretPlane // nil without a control plane
}

// Settings gives the fleet file that the objects make. Why there is none is the error.
func (l objectLink) Settings(ctx context.Context, after int64) (*control.Settings, error) {
	s := l.objects.Next(ctx, after)
	if s.File == nil {
		return nil, errors.New(s.Why)
	}
	return &control.Settings{Version: s.Version, File: string(s.File)}, nil
}

// Report tells the control plane, if there is one.
func (l objectLink) Report(ctx context.Context, r mobula.Report) error {
	if l.reports == nil {
		return nil
	}
	return l.reports.Report(ctx, r)
}

// secretKey is where a Secret has what client.Config is.
const secretKey = "client.json"

// secretPlane reports to the control plane that a Secret names. It reads the Secret again when that fails: another control plane may
// have written itself there.
type secretPlane struct {
	connection *kubernetes.Connection
	secret     string

	mu       sync.Mutex
	plane    *client.Client
	replaced context.CancelFunc // ends what uses plane
	living   context.Context    // until plane is replaced
}

// Report implements planeLink.
func (p *secretPlane) Report(ctx context.Context, r mobula.Report) error {
	plane, living, err := p.get(ctx)
	if err != nil {
		return err
	}
	err = plane.Report(ctx, r)
	if err != nil { // in time or not: a client tries for as long as it may
		p.drop(living)
	}
	return err
}

// applied gives the fleet file that the control plane has applied last.
func (p *secretPlane) applied(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*reportEvery)
	defer cancel()
	plane, living, err := p.get(ctx)
	if err != nil {
		return nil, err
	}
	s, err := plane.Settings(ctx, 0)
	if err != nil {
		p.drop(living)
		return nil, err
	}
	return []byte(s.File), nil
}

// Run implements adapters.Discoverer: the endpoints as the control plane knows them. While it is away nothing is sent.
func (p *secretPlane) Run(ctx context.Context, up chan<- []mobula.Endpoint) error {
	for ctx.Err() == nil {
		if plane, living, err := p.get(ctx); err == nil {
			one, stop := context.WithCancel(ctx)
			end := context.AfterFunc(living, stop)
			_ = plane.Discoverer().Run(one, up) // it ends with one only
			end()
			stop()
		}
		pause(ctx, followPause)
	}
	return ctx.Err()
}

// get gives a client, and what ends when it is replaced.
func (p *secretPlane) get(ctx context.Context) (*client.Client, context.Context, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plane == nil {
		ctx, cancel := context.WithTimeout(ctx, 5*reportEvery)
		defer cancel()
		plane, err := p.open(ctx)
		if err != nil {
			return nil, nil, err
		}
		p.plane = plane
		p.living, p.replaced = context.WithCancel(context.Background())
	}
	return p.plane, p.living, nil
}

// drop has the Secret be read again, unless it was since living began.
func (p *secretPlane) drop(living context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plane != nil && p.living == living {
		p.replaced()
		p.plane.Close()
		p.plane = nil
	}
}

func (p *secretPlane) open(ctx context.Context) (*client.Client, error) {
	secret, err := p.connection.Client.CoreV1().Secrets(p.connection.Namespace).Get(ctx, p.secret, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("the control plane's Secret: %w", kubernetes.Explain(err))
	}
	data := secret.Data[secretKey]
	if len(data) == 0 {
		return nil, fmt.Errorf("the control plane has not written %s into the Secret %s yet: %w", secretKey, p.secret, adapters.ErrUnavailable)
	}
	c, err := client.DecodeConfig(data)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %s: %w", p.secret, secretKey, err)
	}
	verify, err := trust.VerifyTLS([]byte(c.CA), trust.RoleControl)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", p.secret, err)
	}
	return client.New(client.Options{URL: c.URL, Token: c.Token, TLS: verify, Logger: slog.New(slog.DiscardHandler)}), nil
}

// Close ends the connections.
func (p *secretPlane) Close() {
	p.mu.Lock()
	living := p.living
	p.mu.Unlock()
	p.drop(living)
}

// followObjects has a router follow objects: it waits for the fleet that they make. stop ends the watching, after the router.
func (a *app) followObjects(ctx context.Context, o objectFlags, r *routerOptions) (stop func(), err error) {
	logger, err := newLogger(a.stderr, mobula.Default().Router.Log) // the fleet's own is not known yet
	if err != nil {
		return nil, err
	}
	klog.SetSlogLogger(logger)
	c, err := o.connect(logger)
	if err != nil {
		return nil, err
	}
	var link objectLink
	var more resources.Options
	if o.controlSecret != "" {
		link.reports = &secretPlane{connection: c, secret: o.controlSecret}
		more.Recall, r.Shared = link.reports.applied, link.reports
	}
	if link.objects, err = o.source(c, more, logger); err != nil {
		return nil, err
	}
	watch, end := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = link.objects.Run(watch) // it ends with watch only
	}()
	stop = func() {
		end()
		<-done
		if link.reports != nil {
			link.reports.Close()
		}
	}
	if r.Fleet, err = a.firstFleet(ctx, link); err != nil {
		stop()
		return nil, err
	}
	r.Plane = link
	r.Kubernetes = kubernetes.DiscoveryOptions{Client: c.Client, Namespace: c.Namespace, Version: thisBuild().Version}
	return stop, nil
}

// objectPlane is a control plane whose fleet is objects: what changes the fleet is written there, and comes back from there.
type objectPlane struct {
	*control.Control
	objects *resources.Source
}

// objectsTimeout bounds the way of a fleet file into objects and back. It is shorter than a client's call, which is to hear why.
const objectsTimeout = 20 * time.Second

// Apply writes the fleet file as objects, and waits until they are applied.
func (p *objectPlane) Apply(ctx context.Context, file []byte, source string, dry, force bool) (*control.Change, error) {
	fleet, err := mobula.Load(file, source)
	if err != nil {
		return nil, err
	}
	whole, err := p.objects.Whole(file)
	if err != nil {
		return nil, err
	}
	change, err := p.Control.Apply(ctx, whole, source, true, true)
	if err != nil || dry {
		return change, err
	}
	if err := p.objects.Write(ctx, file, force); err != nil {
		return nil, conflicting(err)
	}
	ctx, cancel := context.WithTimeout(ctx, objectsTimeout)
	defer cancel()
	for version := int64(0); ; {
		state := p.objects.Next(ctx, version)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the objects are written, and not applied yet: %w", ctx.Err())
		}
		version = state.Version
		if whole, err = p.objects.Whole(file); err != nil { // objects of others may have come and gone
			return nil, err
		}
		got, errGot := mobula.Load(state.File, source)
		want, errWant := mobula.Load(whole, source)
		if errGot == nil && errWant == nil && alike(got, want) {
			break
		}
	}
	if applied, err := p.Control.Apply(ctx, p.objects.Next(ctx, 0).File, sourceOfObjects(fleet.Name), false, true); err == nil {
		change.Generation = applied.Generation
	}
	return change, nil
}

// alike tells whether two fleets are the same but for the order of their models.
func alike(a, b *mobula.Fleet) bool {
	text := func(f *mobula.Fleet) string {
		c := *f
		c.Models = slices.Clone(c.Models)
		if at := c.Platform.OnKubernetes(); at != nil { // where it is goes without saying
			at.Namespace, at.Kubeconfig, at.Context = "", "", ""
		}
		slices.SortFunc(c.Models, func(x, y mobula.Model) int { return cmp.Compare(x.Name, y.Name) })
		data, err := c.YAML()
		if err != nil {
			return err.Error()
		}
		return string(data)
	}
	return text(a) == text(b)
}

// Delete deletes objects, where mobula apply has made them.
func (p *objectPlane) Delete(ctx context.Context, model string) error {
	return conflicting(p.objects.Delete(ctx, model))
}

// conflicting has what belongs to others be a conflict.
func conflicting(err error) error {
	if errors.Is(err, resources.ErrForeign) {
		return fmt.Errorf("%w: %w", control.ErrConflict, err)
	}
	return err
}

// sourceOfObjects says for people where the fleet comes from.
func sourceOfObjects(fleet string) string { return "the Fleet object " + fleet }
