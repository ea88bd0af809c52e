package kuberay

import (
	"encoding/base64"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

func object(apiVersion, kind, name string, more map[string]any) *unstructured.Unstructured {
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": name, "namespace": "ml"}}}
	maps.Copy(o.Object, more)
	return o
}

func rayCluster(name string, spec, status map[string]any) *unstructured.Unstructured {
	if spec == nil {
		spec = map[string]any{}
	}
	if spec["headGroupSpec"] == nil {
		spec["headGroupSpec"] = map[string]any{"rayStartParams": map[string]any{}, "template": map[string]any{}}
	}
	return object("ray.io/v1", "RayCluster", name, map[string]any{"spec": spec, "status": status})
}

func secret(name, token string) *unstructured.Unstructured {
	return object("v1", "Secret", name, map[string]any{"data": map[string]any{"auth_token": base64.StdEncoding.EncodeToString([]byte(token))}})
}

func tokens(more map[string]any) map[string]any {
	auth := map[string]any{"mode": "token"}
	maps.Copy(auth, more)
	return map[string]any{"authOptions": auth}
}

func newClient(objects ...runtime.Object) *fake.FakeDynamicClient {
	return fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		resource("rayclusters"): "RayClusterList", resource("rayservices"): "RayServiceList", {Version: "v1", Resource: "secrets"}: "SecretList",
	}, objects...)
}

func TestHead(t *testing.T) {
	long := "a-fat-" + strings.Repeat("x", 49) // 55 characters, of which KubeRay takes the last 50
	for _, c := range []struct {
		name    string
		objects []runtime.Object
		shared  mobula.KubeRayShared
		address string
		token   mobula.Secret
	}{
		{"a cluster without tokens", []runtime.Object{rayCluster("big", nil, map[string]any{"head": map[string]any{"serviceName": "big-head-svc"}})}, mobula.KubeRayShared{Cluster: "big"}, "http://big-head-svc.ml.svc:8265", ""},
		{"the head's address", []runtime.Object{rayCluster("big", nil, map[string]any{"head": map[string]any{"serviceName": "big-head-svc", "serviceIP": "10.96.0.7", "podIP": "10.0.0.9"}})}, mobula.KubeRayShared{Cluster: "big"}, "http://10.96.0.7:8265", ""},
		{"a Service without an address", []runtime.Object{rayCluster("big", nil, map[string]any{"head": map[string]any{"serviceIP": "None", "podIP": "fd00::9"}})}, mobula.KubeRayShared{Cluster: "big"}, "http://[fd00::9]:8265", ""},
		{"a cluster that has just begun", []runtime.Object{rayCluster("big", nil, nil)}, mobula.KubeRayShared{Cluster: "big"}, "http://big-head-svc.ml.svc:8265", ""},
		{"KubeRay's token", []runtime.Object{rayCluster("big", tokens(nil), nil), secret("big", "t0k")}, mobula.KubeRayShared{Cluster: "big"}, "http://big-head-svc.ml.svc:8265", "t0k"},
		{"a long name", []runtime.Object{rayCluster(long, tokens(nil), nil), secret("r"+long[6:], "t0k")}, mobula.KubeRayShared{Cluster: long}, "http://" + long + "-head-svc.ml.svc:8265", "t0k"},
		{"a token of one's own", []runtime.Object{rayCluster("big", tokens(map[string]any{"secretName": "mine"}), nil), secret("mine", "own")}, mobula.KubeRayShared{Cluster: "big"}, "http://big-head-svc.ml.svc:8265", "own"},
		{"another port and Service", []runtime.Object{rayCluster("big", map[string]any{"headGroupSpec": map[string]any{
			"rayStartParams": map[string]any{"dashboard-port": "9265"}, "template": map[string]any{}, "headService": map[string]any{"metadata": map[string]any{"name": "mine"}},
		}}, nil)}, mobula.KubeRayShared{Cluster: "big"}, "http://mine.ml.svc:9265", ""},
		{"a service", []runtime.Object{
			object("ray.io/v1", "RayService", "llm", map[string]any{"status": map[string]any{"activeServiceStatus": map[string]any{"rayClusterName": "llm-x7k"}}}),
			rayCluster("llm-x7k", nil, nil),
		}, mobula.KubeRayShared{Service: "llm"}, "http://llm-x7k-head-svc.ml.svc:8265", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, token, err := Head(t.Context(), newClient(c.objects...), "ml", c.shared)
			require.NoError(t, err)
			require.Equal(t, c.address, address)
			require.Equal(t, c.token, token)
		})
	}
}

func TestHeadIsNotFound(t *testing.T) {
	service := object("ray.io/v1", "RayService", "llm", map[string]any{"status": map[string]any{}})
	for _, c := range []struct {
		name    string
		objects []runtime.Object
		shared  mobula.KubeRayShared
		is      error
		want    string
	}{
		{"no name", nil, mobula.KubeRayShared{}, nil, "platform.kuberay.shared: want the name of a cluster or service"},
		{"no cluster", nil, mobula.KubeRayShared{Cluster: "big"}, ErrNoCluster, "rayclusters big in namespace ml: no such Ray cluster"},
		{"a service that starts", []runtime.Object{service}, mobula.KubeRayShared{Service: "llm"}, adapters.ErrUnavailable, "RayService ml/llm has no active RayCluster yet"},
		{"no token yet", []runtime.Object{rayCluster("big", tokens(nil), nil)}, mobula.KubeRayShared{Cluster: "big"}, adapters.ErrUnavailable, "secret ml/big with the token of RayCluster big is not there yet"},
		{"no token in the Secret", []runtime.Object{rayCluster("big", tokens(nil), nil), object("v1", "Secret", "big", nil)}, mobula.KubeRayShared{Cluster: "big"}, nil, "secret ml/big has no key auth_token"},
		{"Kubernetes' tokens", []runtime.Object{rayCluster("big", tokens(map[string]any{"enableK8sTokenAuth": true}), nil)}, mobula.KubeRayShared{Cluster: "big"}, nil, "which is not supported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Head(t.Context(), newClient(c.objects...), "ml", c.shared)
			require.ErrorContains(t, err, c.want)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
		})
	}
}

func TestHeadTellsOutagesFromRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		err         error
		unavailable bool
	}{
		"outage":    {errors.New("connection refused"), true},
		"busy":      {apierrors.NewTooManyRequests("slow down", 1), true},
		"forbidden": {apierrors.NewForbidden(schema.GroupResource{Group: group, Resource: "rayclusters"}, "big", errors.New("no")), false},
	} {
		t.Run(name, func(t *testing.T) {
			client := newClient()
			client.PrependReactor("get", "rayclusters", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, c.err })
			_, _, err := Head(t.Context(), client, "ml", mobula.KubeRayShared{Cluster: "big"})
			require.ErrorIs(t, err, c.err)
			require.Equal(t, c.unavailable, errors.Is(err, adapters.ErrUnavailable))
		})
	}
}
