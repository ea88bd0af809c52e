package app

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/kubernetes/resources"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/api"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/control/leader"
	"github.com/mobula-serve/mobula/kube"
	"github.com/mobula-serve/mobula/state"
	"github.com/mobula-serve/mobula/trust"
)

// controlObjects runs the control plane of a fleet of objects, when it is this one's turn.
func (a *app) controlObjects(ctx context.Context, o controlOptions) error {
	defer outliveReaders()()
	logger, err := newLogger(a.stderr, o.log)
	if err != nil {
		return &usageError{err}
	}
	klog.SetSlogLogger(logger)
	c, err := o.objects.connect(logger)
	if err != nil {
		return err
	}
	probes, err := a.serveProbes(ctx, o.health)
	if err != nil {
		return err
	}
	defer probes.close()
	who := o.objects.identity()
	_, _ = fmt.Fprintf(a.stdout, "control plane of the fleet %s in namespace %s: %s stands for the lease %s\n", o.objects.fleet, c.Namespace, who, o.lease)
	if err = awaitRights(ctx, o, c, probes, logger); err == nil {
		err = markLeader(ctx, c, logger, false) // what a former life of this pod has left
	}
	if err == nil {
		err = leader.Lead(ctx, leader.Options{Client: c.Client, Namespace: c.Namespace, Lease: o.lease, Identity: who, Logger: logger}, func(ctx context.Context) error {
			probes.leads.Store(true)
			return a.leadObjects(ctx, o, c, probes, logger)
		})
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// awaitRights waits until this process may do what it takes to lead, and to say in the objects what else is missing.
func awaitRights(ctx context.Context, o controlOptions, c *kubernetes.Connection, probes *probes, logger *slog.Logger) error {
	rule := func(group, resource, name string, verbs ...string) rbacv1.PolicyRule {
		r := rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
		if name != "" {
			r.ResourceNames = []string{name}
		}
		return r
	}
	rules := []rbacv1.PolicyRule{
		rule("coordination.k8s.io", "leases", o.lease, "get", "update"),
		rule("", "secrets", o.state, "get", "update"),
		rule("", "pods", "", "patch"),
	}
	for _, secret := range []string{o.objects.controlSecret, o.routerSecret} {
		if secret != "" {
			rules = append(rules, rule("", "secrets", secret, "get", "update"))
		}
	}
	for _, resource := range []string{"fleets", "models", "loras"} {
		rules = append(rules, rule(kube.Group, resource, "", "list", "watch"), rule(kube.Group, resource+"/status", "", "patch"))
	}
	defer probes.leads.Store(false)
	for said := ""; ; {
		err := kubernetes.Permitted(ctx, c, rules)
		if err == nil || errors.Is(err, adapters.ErrUnavailable) { // who stands for election waits for the API server too
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		probes.leads.Store(true) // and is not ready
		if all := kubernetes.Permitted(ctx, c, append(kubernetes.Rules(), rules...)); all != nil {
			err = all
		}
		if said != err.Error() {
			said = err.Error()
			logger.ErrorContext(ctx, "rights are missing, waiting for them", "err", err)
		}
		pause(ctx, objectsPause)
	}
}

// objectsRouterStart: the pod of a leader whose node has died keeps its label, and routers dial it, until Kubernetes takes the node for
// lost, which it does after 40 s.
const objectsRouterStart = 45 * time.Second

// leadObjects is the control plane while it leads.
func (a *app) leadObjects(ctx context.Context, o controlOptions, c *kubernetes.Connection, probes *probes, logger *slog.Logger) error {
	store, err := leader.OpenStore(ctx, c.Client, c.Namespace, o.state)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	who, err := storedIdentity(store)
	if err != nil {
		return err
	}
	l, err := listen(ctx, o.listen, "--listen")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	var objects *resources.Source // made once it is known what was applied last, before anything runs
	var backend *objectPlane
	var p *plane
	p, access, err := who.plane(l, o.address, planeOptions{
		Logger: logger, RouterStart: objectsRouterStart,
		Kubernetes: kubernetes.Options{
			Client: c.Client, Dynamic: c.Dynamic, Namespace: c.Namespace, OwnImage: o.image,
			Owner: func(model string) *metav1.OwnerReference { return objects.Owner(model) },
			Tell: func(e kubernetes.Event) {
				p.control.Tell(control.Event{Warning: e.Warning, Object: "model/" + e.Model, Reason: e.Reason, Message: e.Message})
			},
		},
		Backend: func(c *control.Control) api.Backend {
			backend = &objectPlane{Control: c}
			return backend
		},
	})
	if err != nil {
		return err
	}
	previous, err := p.control.Fleet(ctx)
	if err != nil && !errors.Is(err, control.ErrNotFound) { // nothing has been applied before
		return err
	}
	told, err := p.lastEvent(ctx)
	if err != nil {
		return err
	}
	wrong := func(e resources.Event) {
		p.control.Tell(control.Event{Warning: e.Warning, Object: e.Object, Reason: e.Reason, Message: e.Message})
	}
	if objects, err = o.objects.source(c, resources.Options{Previous: previous, Wrong: wrong, Came: p.pods.Poke}, logger); err != nil {
		return err
	}
	backend.objects = objects
	forRouters := access
	forRouters.Token = who.routerToken()
	for secret, access := range map[string]client.Config{o.objects.controlSecret: access, o.routerSecret: forRouters} {
		if secret == "" {
			continue
		}
		if err := publishAccess(ctx, c, secret, access); err != nil {
			return err
		}
	}
	_, _ = fmt.Fprintf(a.stdout, "control plane listening on %s\n", access.URL)
	handler := p.api.Handler()
	probes.api.Store(&handler)
	events := resources.NewEvents(ctx, objects, c.Client)
	defer events.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return objects.Run(ctx) })
	g.Go(func() error { return p.run(ctx) })
	g.Go(func() error { return p.applyObjects(ctx, objects, previous) })
	g.Go(func() error { return p.showObjects(ctx, objects) })
	g.Go(func() error { return p.tellObjects(ctx, events, told) })
	g.Go(func() error { return markLeader(ctx, c, logger, true) })
	g.Go(func() error { return store.Taken(ctx) })
	return g.Wait()
}

// labelLeader is on the pod of the control plane that leads: its Service selects it.
const labelLeader = kube.Group + "/leader"

// markLeader labels the pod that this process runs in, or takes the label away, as soon as the API server can be asked. Outside of a
// pod there is nothing to label.
func markLeader(ctx context.Context, c *kubernetes.Connection, logger *slog.Logger, leads bool) error {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		return nil
	}
	value := "null"
	if leads {
		value = `"true"`
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, labelLeader, value)
	for said := false; ; said = true {
		_, err := c.Client.CoreV1().Pods(c.Namespace).Patch(ctx, pod, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: kube.FieldManager})
		switch err = kubernetes.Explain(err); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, adapters.ErrUnavailable):
			return fmt.Errorf("label the pod %s that leads: %w", pod, err)
		case !said:
			logger.WarnContext(ctx, "waiting for the API server", "err", err)
		}
		pause(ctx, followPause)
	}
}

// Where a store has who the control plane is.
const (
	identityBucket = "identity"
	identityCert   = "ca.crt"
	identityKey    = "ca.key"
	identityToken  = "token"
)

// storedIdentity gives the identity that a store holds, made at the first start.
func storedIdentity(s state.Store) (identity, error) {
	id, err := control.ID(s)
	if err != nil {
		return identity{}, err
	}
	get := func(key string) []byte {
		value, _, getErr := s.Get(identityBucket, key)
		err = cmp.Or(err, getErr)
		return value
	}
	cert, key, token := get(identityCert), get(identityKey), get(identityToken)
	if err != nil {
		return identity{}, fmt.Errorf("read who the control plane is: %w", err)
	}
	if len(cert) > 0 {
		ca, err := trust.LoadCA(cert, key)
		return identity{s, id, ca, mobula.Secret(token)}, err
	}
	ca, err := trust.NewCA("mobula-" + id)
	if err != nil {
		return identity{}, err
	}
	made := identity{s, id, ca, randomToken()}
	set := func(key string, value []byte) state.Change {
		return state.Change{Bucket: identityBucket, Key: key, Value: value}
	}
	return made, s.Write(set(identityCert, ca.PEM()), set(identityKey, ca.KeyPEM()), set(identityToken, []byte(string(made.token))))
}

// publishAccess writes how the control plane is reached where routers and people look.
func publishAccess(ctx context.Context, c *kubernetes.Connection, name string, access client.Config) error {
	data, err := access.Encode()
	if err != nil {
		return err
	}
	secrets := c.Client.CoreV1().Secrets(c.Namespace)
	now, err := secrets.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{secretKey: data}}, metav1.CreateOptions{})
	case err == nil && string(now.Data[secretKey]) != string(data):
		if now.Data == nil {
			now.Data = map[string][]byte{}
		}
		now.Data[secretKey] = data
		_, err = secrets.Update(ctx, now, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write the Secret %s: %w", name, kubernetes.Explain(err))
	}
	return nil
}

// applyObjects has the control plane want what the objects say. What they said when it was applied last is left alone at the start: a roll-back has
// happened since, or a command.
func (p *plane) applyObjects(ctx context.Context, objects *resources.Source, previous []byte) error {
	said := ""
	if s, err := p.control.Settings(ctx, 0); err != nil || len(s.Deleted) > 0 { // the objects were gone, and may be back
		previous = nil
	}
	for version := int64(0); ctx.Err() == nil; {
		state := objects.Next(ctx, version)
		if ctx.Err() != nil {
			break
		}
		version = state.Version
		if state.File == nil {
			p.logger.WarnContext(ctx, "no fleet to look after", "why", state.Why)
			if state.Gone { // without Models nobody could delete what is made anew
				previous = nil
				if err := p.control.Delete(ctx, ""); err != nil && !errors.Is(err, control.ErrNotFound) {
					p.logger.ErrorContext(ctx, "the fleet can't be deleted, tried again", "err", err)
					pause(ctx, objectsPause)
					version = 0
				}
			}
			continue
		}
		fleet, err := mobula.Load(state.File, "objects")
		if err != nil { // composed files are right
			return err
		}
		if bytes.Equal(state.File, previous) {
			previous = nil
			objects.Took(version, 0, nil)
			continue
		}
		previous = nil
		if impossible := p.impossible(ctx, fleet); len(impossible) > 0 {
			objects.Refuse(version, impossible) // a state without them follows
			continue
		}
		change, err := p.control.Apply(ctx, state.File, sourceOfObjects(fleet.Name), false, true)
		if err == nil {
			objects.Took(version, change.Generation, nil)
			said = ""
			continue
		}
		objects.Took(version, 0, err)
		if ctx.Err() == nil {
			if said != err.Error() {
				said = err.Error()
				p.control.Tell(control.Event{Warning: true, Object: "fleet", Reason: "Refused", Message: said})
				p.logger.ErrorContext(ctx, "the objects can't be applied, what was applied before stays", "err", err)
			}
			pause(ctx, objectsPause)
			version = 0 // look again
		}
	}
	return ctx.Err()
}

// objectsPause is waited before objects that were refused are tried again.
const objectsPause = 5 * time.Second

// impossible finds the models that the platform could never run, so that they hold up no others.
func (p *plane) impossible(ctx context.Context, fleet *mobula.Fleet) map[string]string {
	why := map[string]string{}
	if err := p.platforms.Configure(ctx, fleet.Name, fleet.Platform, true); err != nil {
		return why // Apply will say so
	}
	for _, m := range fleet.Models {
		if !m.Placed() {
			continue
		}
		check := func(d adapters.Deployment) error { return p.platforms.Check(ctx, d) }
		if fleet.Platform.OnKubernetes() != nil && !fleet.Platform.KubeRay.Shares() { // which may not be in use yet
			check = func(d adapters.Deployment) error { return p.pods.Possible(fleet.Platform, d) }
		}
		d := adapters.Deployment{Key: adapters.Key{Fleet: fleet.Name, Model: m.Name, Revision: "check"}, Model: fleet.Engine(m), Replicas: 1}
		if err := check(d); err != nil && !errors.Is(err, adapters.ErrUnavailable) {
			why[m.Name] = strings.ReplaceAll(err.Error(), "models["+m.Name+"].", "spec.") // as the object has it
		}
	}
	return why
}

// showObjects has the objects' status say how the fleet fares.
func (p *plane) showObjects(ctx context.Context, objects *resources.Source) error {
	for version := int64(0); ; {
		view, err := p.control.View(ctx, version)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		version = view.Version
		objects.Report(statusOf(view))
	}
}

// statusOf gives what objects show of a view.
func statusOf(v *control.View) *resources.Status {
	s := &resources.Status{Generation: v.Generation, Models: make(map[string]resources.ModelStatus, len(v.Models)), Routers: len(v.Routers), Stale: v.Stale}
	problems := map[string]string{}
	replicas := map[string]int{}
	for i := range v.Replicas {
		r := &v.Replicas[i]
		replicas[r.Model]++
		if r.State == mobula.StateFailed || problems[r.Model] == "" && r.Reason != "" && (r.State == mobula.StatePending || r.State == mobula.StateSuspect) {
			problems[r.Model] = "replica " + r.ID + ": " + r.Reason
		}
	}
	for i := range v.Models {
		m := &v.Models[i]
		if m.Deleted {
			continue
		}
		one := resources.ModelStatus{
			Wanted: m.Wanted, Replicas: replicas[m.Name], Ready: m.Ready, Revision: m.Revision, Phase: string(m.Rollout), Message: m.Reason,
			Problem: problems[m.Name],
		}
		for _, l := range m.LoRAs {
			one.LoRAs = append(one.LoRAs, resources.LoRAStatus{Name: l.Name, Wanted: l.Wanted, Loaded: len(l.Loaded), Error: l.Error})
		}
		s.Models[m.Name] = one
	}
	return s
}

// lastEvent is the number of the newest event: those before it were told by who led before.
func (p *plane) lastEvent(ctx context.Context) (int64, error) {
	old, err := p.control.Events(ctx, 0, false)
	if err != nil || len(old) == 0 {
		return 0, err
	}
	return old[len(old)-1].Seq, nil
}

// tellObjects has what happens after an event be Events of the objects.
func (p *plane) tellObjects(ctx context.Context, events *resources.Events, after int64) error {
	for {
		list, err := p.control.Events(ctx, after, true)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		view, err := p.control.View(ctx, 0)
		if err != nil {
			return err
		}
		models := make(map[string]string, len(view.Replicas))
		for i := range view.Replicas {
			models[view.Replicas[i].ID] = view.Replicas[i].Model
		}
		for _, e := range list {
			after = max(after, e.Seq)
			if about, ok := objectEvent(e, models); ok {
				events.Tell(about)
			}
		}
	}
}

// objectEvent is what objects tell of an event: what is wrong with a replica is told of its model. That replicas and hosts are well their pods and
// nodes say themselves.
func objectEvent(e control.Event, models map[string]string) (resources.Event, bool) {
	told := resources.Event{Warning: e.Warning, Object: e.Object, Reason: e.Reason, Message: e.Message}
	kind, name, _ := strings.Cut(e.Object, "/")
	if !e.Warning && (kind == "replica" || kind == "host") {
		return told, false
	}
	if model, known := models[name]; known && kind == "replica" {
		told.Object, told.Message = "model/"+model, e.Object+": "+e.Message
	}
	return told, true
}

// View is what the control plane knows, with the models whose objects are not in use as they are: people look for them here too.
func (p *objectPlane) View(ctx context.Context, after int64) (*control.View, error) {
	v, err := p.Control.View(ctx, after)
	if err != nil {
		return nil, err
	}
	why := p.objects.Rejected()
	if len(why) == 0 {
		return v, nil
	}
	more := *v
	more.Models = slices.Clone(v.Models)
	for i := range more.Models {
		m := &more.Models[i]
		if text := why[m.Name]; text != "" {
			m.Reason = strings.TrimSuffix(text+"; "+m.Reason, "; ")
			delete(why, m.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(why)) {
		more.Models = append(more.Models, control.ModelStatus{Name: name, Rollout: control.RolloutFailed, Reason: why[name]})
	}
	return &more, nil
}
