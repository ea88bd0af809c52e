//go:build tools

// Package programs pins the programs that are mains of their modules.
package programs

import (
	_ "github.com/ray-project/kuberay/ray-operator"
	_ "helm.sh/helm/v4/cmd/helm"
)
