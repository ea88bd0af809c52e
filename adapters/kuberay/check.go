package kuberay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
)

// Errors of Check.
var (
	// ErrNotInstalled: the cluster doesn't know RayClusters.
	ErrNotInstalled = errors.New("KubeRay is not installed")
	// ErrTooOld: the cluster's RayClusters lack what is asked of them.
	ErrTooOld = errors.New("KubeRay is too old")
)

const install = "helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm/ --version 1.6.2 --namespace kuberay --create-namespace"

// Check tells whether the cluster has KubeRay's custom resources in a version that will do, 1.5.1 or newer. It doesn't tell whether the
// operator runs. It reads what every account may read. The error wraps ErrNotInstalled or ErrTooOld and says what to do, or
// adapters.ErrUnavailable.
func Check(ctx context.Context, client discovery.DiscoveryInterface) error {
	if err := served(ctx, discovery.ToDiscoveryInterfaceWithContext(client)); err != nil {
		return err
	}
	fields, err := specFields(ctx, discovery.ToDiscoveryInterfaceWithContext(client))
	if err != nil || fields == nil { // nil: an API server that doesn't publish it
		return err
	}
	for _, field := range []string{"authOptions", "upgradeStrategy", "gcsFaultToleranceOptions"} {
		if _, ok := fields[field]; !ok {
			return fmt.Errorf("%w: its RayClusters have no spec.%s: upgrade the operator and its custom resource definitions to 1.5.1 or newer (1.6.2 is tested; helm leaves definitions "+
				"as they are, so: kubectl apply --server-side --force-conflicts -k 'github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.6.2')", ErrTooOld, field)
		}
	}
	return nil
}

// served looks for rayclusters in ray.io/v1.
func served(ctx context.Context, client discovery.DiscoveryInterfaceWithContext) error {
	groups, err := client.ServerGroupsWithContext(ctx)
	if err != nil {
		return explain("list the API groups of the cluster", err)
	}
	var versions []string
	for i := range groups.Groups {
		if groups.Groups[i].Name != group {
			continue
		}
		for _, v := range groups.Groups[i].Versions {
			versions = append(versions, v.Version)
		}
	}
	switch {
	case len(versions) == 0:
		return fmt.Errorf("%w in this cluster: %s", ErrNotInstalled, install)
	case !slices.Contains(versions, version):
		return fmt.Errorf("%w: it serves %s/%v and not %s/%s: upgrade the operator and its custom resource definitions to 1.5.1 or newer (1.6.2 is tested)", ErrTooOld, group, versions, group, version)
	}
	resources, err := client.ServerResourcesForGroupVersionWithContext(ctx, group+"/"+version)
	if err != nil && !apierrors.IsNotFound(err) {
		return explain("list the resources of "+group+"/"+version, err)
	}
	if resources != nil {
		for i := range resources.APIResources {
			if resources.APIResources[i].Name == "rayclusters" {
				return nil
			}
		}
	}
	return fmt.Errorf("%w in this cluster, its RayClusters are missing: %s", ErrNotInstalled, install)
}

// specFields gives the names of a RayCluster's fields in spec, as the API server publishes them; nil when it doesn't.
func specFields(ctx context.Context, client discovery.DiscoveryInterfaceWithContext) (map[string]json.RawMessage, error) {
	paths, err := client.OpenAPIV3WithContext(ctx).PathsWithContext(ctx)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("read the API server's schemas", err)
	}
	entry, ok := paths["apis/"+group+"/"+version]
	if !ok {
		return nil, nil
	}
	text, err := entry.SchemaWithContext(ctx, "application/json")
	if err != nil {
		return nil, explain("read the schema of "+group+"/"+version, err)
	}
	return readSpecFields(text)
}

func readSpecFields(text []byte) (map[string]json.RawMessage, error) {
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties struct {
					Spec struct {
						Properties map[string]json.RawMessage `json:"properties"`
					} `json:"spec"`
				} `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read the schema of %s/%s: %w", group, version, err)
	}
	return doc.Components.Schemas["io.ray.v1.RayCluster"].Properties.Spec.Properties, nil
}
