package app

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"k8s.io/client-go/dynamic"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kuberay"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/ray"
)

// sharedScheme is that of the address of a Ray cluster which a Kubernetes cluster knows where to find:
// kuberay://NAMESPACE/cluster/NAME or kuberay://NAMESPACE/service/NAME.
const sharedScheme = "kuberay"

// sharedRay has engines run in a RayCluster or RayService of others (platform.kuberay.shared), which is a Ray cluster to us: one that is
// found by its name.
type sharedRay struct {
	client    dynamic.Interface // nil for what the platform's section says
	namespace string
	version   string
	logger    *slog.Logger
}

// platform gives p with platform.ray in place of what is shared. It asks nobody.
func (s sharedRay) platform(p mobula.Platform) (mobula.Platform, error) {
	if !p.KubeRay.Shares() {
		return p, nil
	}
	k, shared := p.KubeRay.Kubernetes, p.KubeRay.Shared
	_, namespace, err := s.connect(k)
	if err != nil {
		return p, fmt.Errorf("platform.kuberay.shared: %w", err)
	}
	at := url.URL{Scheme: sharedScheme, Host: namespace, Path: "/cluster/" + shared.Cluster}
	if shared.Service != "" {
		at.Path = "/service/" + shared.Service
	}
	query := url.Values{}
	for key, value := range map[string]string{"kubeconfig": k.Kubeconfig, "context": k.Context} {
		if value != "" {
			query.Set(key, value)
		}
	}
	at.RawQuery = query.Encode()
	return mobula.Platform{Ray: &mobula.Ray{Address: at.String(), Autoscaling: shared.Autoscaling}}, nil
}

// connect gives a client and the namespace that is meant.
func (s sharedRay) connect(k mobula.Kubernetes) (dynamic.Interface, string, error) {
	if s.client != nil {
		if k.Namespace != "" {
			return s.client, k.Namespace, nil
		}
		return s.client, s.namespace, nil
	}
	c, err := kubernetes.Connect(k, kubernetes.ConnectOptions{Version: s.version, Logger: s.logger})
	if err != nil {
		return nil, "", err
	}
	return c.Dynamic, c.Namespace, nil
}

// dial makes the client of a Ray cluster, also of one that is found by its name.
func (s sharedRay) dial(r mobula.Ray) (ray.API, error) {
	o, err := ray.DashboardOptionsFor(r)
	if err != nil {
		return nil, err
	}
	o.Logger = s.logger
	if at, err := url.Parse(r.Address); err == nil && at.Scheme == sharedScheme {
		query := at.Query()
		client, namespace, err := s.connect(mobula.Kubernetes{Namespace: at.Host, Kubeconfig: query.Get("kubeconfig"), Context: query.Get("context")})
		if err != nil {
			return nil, err
		}
		shared := mobula.KubeRayShared{}
		if name, is := strings.CutPrefix(at.Path, "/service/"); is {
			shared.Service = name
		} else {
			shared.Cluster = strings.TrimPrefix(at.Path, "/cluster/")
		}
		o.Locate = func(ctx context.Context) (string, mobula.Secret, error) {
			return kuberay.Head(ctx, client, namespace, shared)
		}
	}
	return ray.NewDashboard(o)
}
