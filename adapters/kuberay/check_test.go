package kuberay

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/mobula-serve/mobula/adapters"
)

// apiServer answers discovery with what is given; with a status where the text is empty.
func apiServer(t *testing.T, answers map[string]string, otherwise int) discovery.DiscoveryInterface {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(otherwise)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := discovery.NewDiscoveryClientForConfigAndClient(&rest.Config{Host: server.URL}, &http.Client{Transport: transport})
	require.NoError(t, err)
	return client.WithLegacy()
}

const (
	noGroups    = `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}]}]}`
	rayV1       = `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"ray.io","versions":[{"groupVersion":"ray.io/v1alpha1","version":"v1alpha1"},{"groupVersion":"ray.io/v1","version":"v1"}]}]}`
	rayAlpha    = `{"kind":"APIGroupList","apiVersion":"v1","groups":[{"name":"ray.io","versions":[{"groupVersion":"ray.io/v1alpha1","version":"v1alpha1"}]}]}`
	resources   = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"ray.io/v1","resources":[{"name":"rayclusters","kind":"RayCluster","namespaced":true,"verbs":["get"]}]}`
	noResources = `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"ray.io/v1","resources":[]}`
	openapi     = `{"paths":{"apis/ray.io/v1":{"serverRelativeURL":"/openapi/v3/apis/ray.io/v1?hash=1"}}}`
	schemaNew   = `{"components":{"schemas":{"io.ray.v1.RayCluster":{"properties":{"spec":{"properties":{"authOptions":{},"upgradeStrategy":{},"gcsFaultToleranceOptions":{}}}}}}}}`
	schemaOld   = `{"components":{"schemas":{"io.ray.v1.RayCluster":{"properties":{"spec":{"properties":{"suspend":{}}}}}}}}`
	legacyGroup = `{"kind":"APIVersions","versions":["v1"]}`
)

func TestCheck(t *testing.T) {
	const schemaPath = "/openapi/v3/apis/ray.io/v1"
	for _, c := range []struct {
		name    string
		answers map[string]string
		is      error
		want    string
	}{
		{"all is well", map[string]string{"/apis": rayV1, "/apis/ray.io/v1": resources, "/openapi/v3": openapi, schemaPath: schemaNew}, nil, ""},
		{"no schemas published", map[string]string{"/apis": rayV1, "/apis/ray.io/v1": resources}, nil, ""},
		{"not installed", map[string]string{"/apis": noGroups}, ErrNotInstalled, "KubeRay is not installed in this cluster: helm install kuberay-operator"},
		{"only v1alpha1", map[string]string{"/apis": rayAlpha}, ErrTooOld, "it serves ray.io/[v1alpha1] and not ray.io/v1: upgrade the operator and its custom resource definitions to 1.5.1 or newer"},
		{"no RayClusters", map[string]string{"/apis": rayV1, "/apis/ray.io/v1": noResources}, ErrNotInstalled, "its RayClusters are missing"},
		{"no tokens", map[string]string{"/apis": rayV1, "/apis/ray.io/v1": resources, "/openapi/v3": openapi, schemaPath: schemaOld}, ErrTooOld, "its RayClusters have no spec.authOptions"},
		{"a schema that is none", map[string]string{"/apis": rayV1, "/apis/ray.io/v1": resources, "/openapi/v3": openapi, schemaPath: "<html>"}, nil, "read the schema of ray.io/v1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.answers["/api"] = legacyGroup
			err := Check(t.Context(), apiServer(t, c.answers, http.StatusNotFound))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
		})
	}
}

func TestCheckWithoutAnAPIServer(t *testing.T) {
	err := Check(t.Context(), apiServer(t, nil, http.StatusBadGateway))
	require.ErrorIs(t, err, adapters.ErrUnavailable)
}

func FuzzReadSpecFields(f *testing.F) {
	f.Add([]byte(schemaNew))
	f.Add([]byte(`{"components":{"schemas":{"io.ray.v1.RayCluster":null}}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = readSpecFields(text) })
}
