// Command fleetdoc writes what people and programs are told of the fleet file, of the chart's values and of the custom
// resources: docs/fleet.md and values.md, their JSON Schemas and charts/mobula/crds. All of it comes from the comments of
// fleet.go, model.go and kubernetes.go and of this folder's values.go, values_parts.go and objects.go. Run it by go generate ./...
// in the repository's root.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
)

// The examples on the page: a fleet, and the platform sections of ones on Ray, on Kubernetes and with KubeRay.
var (
	//go:embed example.yaml
	example string
	//go:embed example_ray.yaml
	exampleRay string
	//go:embed example_kubernetes.yaml
	exampleKubernetes string
	//go:embed example_kuberay.yaml
	exampleKubeRay string
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "fleetdoc:", err)
		os.Exit(1)
	}
}

// run writes all files of the repository at root.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, data := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate gives the files' contents by their names below the root.
func generate(root string) (map[string][]byte, error) {
	fleet, err := readTypes(fleetSources(root)...)
	if err != nil {
		return nil, err
	}
	all, err := readTypes(append(fleetSources(root), ownSources(root)...)...)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{
		"docs/fleet.md":  []byte(writeReference(fleet)),
		"docs/values.md": []byte(writeValues(all)),
	}
	if out["docs/fleet.schema.json"], err = writeSchema(fleet, "Fleet", "Mobula fleet file"); err != nil {
		return nil, err
	}
	inCluster := withoutConnection(all)
	if out["charts/mobula/values.schema.json"], err = writeSchema(inCluster, "Values", "Values of the chart mobula"); err != nil {
		return nil, err
	}
	for _, r := range resources() {
		if out["charts/mobula/crds/"+r.plural+".yaml"], err = writeDefinition(inCluster, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// fleetSources are the files with the structs of a fleet file.
func fleetSources(root string) []string {
	return []string{filepath.Join(root, "fleet.go"), filepath.Join(root, "model.go"), filepath.Join(root, "kubernetes.go")}
}

// ownSources are those with the structs of the chart's values and of custom resources.
func ownSources(root string) []string {
	const here = "cmd/fleetdoc"
	return []string{filepath.Join(root, here, "values.go"), filepath.Join(root, here, "values_parts.go"), filepath.Join(root, here, "objects.go")}
}
