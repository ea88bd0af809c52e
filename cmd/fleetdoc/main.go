// Command fleetdoc writes docs/fleet.md and docs/fleet.schema.json from the comments of
// fleet.go, model.go and kubernetes.go. Run it by go generate ./... in the repository's root.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
)

// The examples on the page: a fleet, and the platform section of one on Ray.
var (
	//go:embed example.yaml
	example string
	//go:embed example_ray.yaml
	exampleRay string
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "fleetdoc:", err)
		os.Exit(1)
	}
}

// run writes both files of the repository at root.
func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate gives the files' contents by their names below the root.
func generate(root string) (map[string][]byte, error) {
	types, err := readTypes(filepath.Join(root, "fleet.go"), filepath.Join(root, "model.go"), filepath.Join(root, "kubernetes.go"))
	if err != nil {
		return nil, err
	}
	schema, err := writeSchema(types)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"docs/fleet.md":          []byte(writeReference(types)),
		"docs/fleet.schema.json": schema,
	}, nil
}
