package raycluster

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
)

// Longest names that KubeRay uses as they are, with what it appends.
const (
	maxName      = 50 // of a RayCluster: from a longer one it cuts the beginning off for the Secret of the token
	maxOwnerName = 44 // of a RayService or RayJob, whose RayClusters have six characters more
)

// fitting shortens a name and keeps it unlike others.
func fitting(name string, most int) string {
	if len(name) <= most {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimRight(name[:most-9], "-") + "-" + hex.EncodeToString(sum[:4])
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
