package kubetest

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// discovery answers what is no resource: what the API server serves, its version and health.
func (c *Cluster) discovery(w http.ResponseWriter, r *http.Request) bool {
	path := strings.TrimSuffix(r.URL.Path, "/")
	switch path {
	case "/version":
		writeJSON(w, http.StatusOK, tree{"major": "1", "minor": "37", "gitVersion": "v1.37.2", "platform": "linux/amd64"})
	case "/healthz", "/livez", "/readyz":
		_, _ = w.Write([]byte("ok"))
	case "/api":
		writeJSON(w, http.StatusOK, tree{"kind": "APIVersions", "versions": []string{"v1"}})
	case "/apis":
		writeJSON(w, http.StatusOK, c.groups())
	case "/openapi/v3":
		writeJSON(w, http.StatusOK, tree{"paths": tree{}})
	default:
		gv, rest, ok := apiPath(path)
		if !ok || len(rest) > 0 {
			return false
		}
		resources := c.resourcesOf(gv)
		if len(resources) == 0 {
			return false
		}
		writeJSON(w, http.StatusOK, tree{
			"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv.String(), "resources": resources,
		})
	}
	return true
}

func (c *Cluster) groups() tree {
	c.mu.Lock()
	defer c.mu.Unlock()
	versions := map[string][]string{}
	for gvr := range c.store.tables {
		if gvr.Group != "" && !slices.Contains(versions[gvr.Group], gvr.Version) {
			versions[gvr.Group] = append(versions[gvr.Group], gvr.Version)
		}
	}
	groups := []any{}
	for _, group := range slices.Sorted(maps.Keys(versions)) {
		slices.Sort(versions[group])
		var served []any
		for _, version := range versions[group] {
			served = append(served, tree{"groupVersion": group + "/" + version, "version": version})
		}
		groups = append(groups, tree{"name": group, "versions": served, "preferredVersion": served[len(served)-1]})
	}
	return tree{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
}

func (c *Cluster) resourcesOf(gv schema.GroupVersion) []any {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []any
	for _, gvr := range slices.SortedFunc(maps.Keys(c.store.tables), func(a, b schema.GroupVersionResource) int {
		return strings.Compare(a.Resource, b.Resource)
	}) {
		if gvr.GroupVersion() != gv {
			continue
		}
		r := c.store.tables[gvr].Resource
		out = append(out, tree{
			"name": gvr.Resource, "singularName": strings.ToLower(r.Kind), "namespaced": r.Namespaced, "kind": r.Kind,
			"shortNames": r.ShortNames,
			"verbs":      []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
		})
		for _, s := range r.Subresources {
			entry := tree{
				"name": gvr.Resource + "/" + s, "singularName": "", "namespaced": r.Namespaced, "kind": r.Kind,
				"verbs": []string{"get", "patch", "update"},
			}
			if s == "scale" {
				entry["group"], entry["version"], entry["kind"] = "autoscaling", "v1", "Scale"
			}
			out = append(out, entry)
		}
	}
	return out
}
