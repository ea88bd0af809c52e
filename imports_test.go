package mobula_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	module       = "github.com/mobula-serve/mobula"
	maxFileLines = 800
)

// rooms lists, per room, what its files may import beside the standard library and the
// room itself: other rooms by their folder ("." is the root package), and modules of others
// by the beginning of their path. Each folder with Go files needs an entry; all under test share one.
var rooms = map[string][]string{
	".":                             {"github.com/goccy/go-yaml"},
	"adapters":                      {".", "golang.org/x/sync/"},
	"adapters/conformance":          {".", "adapters", "github.com/google/go-cmp/"},
	"adapters/providers":            {".", "adapters"},
	"adapters/ray":                  {".", "adapters", "engine", "raycluster", "state", "github.com/hashicorp/go-retryablehttp", "github.com/tidwall/", "golang.org/x/sync/"},
	"adapters/ray/raytest":          {"raycluster"},
	"adapters/kubernetes":           {".", "adapters", "engine", "kube", "golang.org/x/sync/", "k8s.io/"},
	"adapters/kubernetes/kubetest":  {"kube", "k8s.io/"},
	"adapters/kubernetes/resources": {".", "kube", "github.com/goccy/go-yaml", "k8s.io/", "sigs.k8s.io/yaml"},
	"adapters/kuberay":              {".", "adapters", "kube", "raycluster", "k8s.io/", "github.com/ray-project/kuberay/"},
	"convert":                       {".", "github.com/goccy/go-yaml", "sigs.k8s.io/yaml"},
	"control/leader":                {"state", "k8s.io/"},
	"kube":                          {".", "engine", "k8s.io/", "sigs.k8s.io/yaml"},
	"raycluster":                    {".", "kube", "k8s.io/", "github.com/ray-project/kuberay/"},
	"adapters/static":               {".", "adapters", "agent", "engine", "state", "golang.org/x/sync/"},
	"agent":                         {"."},
	"agent/daemon":                  {".", "agent", "agent/fetch", "agent/gpu", "agent/shim", "engine", "golang.org/x/sys/", "golang.org/x/sync/", "github.com/prometheus/"},
	"agent/fetch":                   {".", "github.com/minio/minio-go/"},
	"agent/gpu":                     {".", "github.com/NVIDIA/go-nvml/"},
	"agent/shim":                    {".", "engine", "golang.org/x/sys/"},
	"control":                       {".", "adapters", "control/lora", "control/scale", "engine", "state", "golang.org/x/sync/", "github.com/prometheus/", "github.com/goccy/go-yaml"},
	"control/api": {
		".", "adapters", "agent", "control", "control/client", "trust",
		"github.com/gin-gonic/", "github.com/getkin/kin-openapi/", "github.com/prometheus/",
	},
	"control/client": {".", "adapters", "agent", "control", "github.com/hashicorp/go-retryablehttp"},
	"control/lora":   {"."},
	"control/scale":  {"."},
	"state":          {"go.etcd.io/bbolt"},
	"trust":          {},
	"router/flow":    {".", "router/pick", "router/proxy", "github.com/prometheus/"},
	"cmd/ctl": {
		".", "control", "control/client", "github.com/goccy/go-yaml", "github.com/spf13/",
		"charm.land/", "golang.org/x/term",
	},
	"engine":         {".", "github.com/prometheus/", "github.com/tidwall/"},
	"engine/sim":     {".", "engine", "github.com/tidwall/", "github.com/hashicorp/golang-lru/"},
	"kv":             {".", "github.com/cespare/xxhash/"},
	"router/pick":    {".", "kv", "github.com/cespare/xxhash/"},
	"router/proxy":   {".", "router/pick"},
	"router/front":   {".", "router/proxy", "github.com/prometheus/", "golang.org/x/sys/"},
	"router/health":  {".", "adapters", "engine", "router/pick", "router/proxy", "github.com/prometheus/", "golang.org/x/sync/"},
	"router/metrics": {".", "router/pick", "router/proxy", "router/health", "engine", "kv", "github.com/prometheus/"},
	"router/openai": {
		".", "engine", "kv", "router/flow", "router/front", "router/health", "router/metrics", "router/pick", "router/proxy",
		"github.com/gin-gonic/", "github.com/tidwall/", "github.com/prometheus/", "github.com/cespare/xxhash/", "github.com/hashicorp/golang-lru/", "golang.org/x/sync/",
	},
	"cmd/app": {
		".", "adapters", "adapters/kuberay", "adapters/kubernetes", "adapters/kubernetes/resources", "adapters/providers", "adapters/ray", "adapters/static", "agent", "agent/daemon", "agent/gpu", "agent/fetch", "agent/shim", "cmd/ctl", "control", "control/api", "control/client",
		"control/leader", "convert", "engine", "engine/sim", "kube", "kv", "state", "trust", "router/flow",
		"router/front", "router/health", "router/metrics", "router/openai", "router/pick", "router/proxy",
		"github.com/spf13/", "github.com/prometheus/", "github.com/fsnotify/", "github.com/goccy/go-yaml", "golang.org/x/term", "golang.org/x/sync/", "k8s.io/",
	},
	"cmd/mobula":   {"cmd/app"},
	"cmd/fleetdoc": {"."},
	"test":         {"*"},
}

// inTests is what every room's tests may import beside: tools, and the twins that stand in
// for the world outside.
var inTests = []string{
	"adapters", "adapters/conformance", "adapters/ray/raytest", "adapters/kubernetes/kubetest", "engine/sim", "router/pick", "router/proxy",
	"github.com/stretchr/testify/require", "github.com/google/go-cmp/", "go.uber.org/goleak", "pgregory.net/rapid",
	"github.com/prometheus/client_golang/prometheus", "golang.org/x/sys/", "github.com/tidwall/gjson",
}

// TestImports holds the rooms' arrows (CONTRIBUTING.md).
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	eachGoFile(t, func(t *testing.T, file string, f *ast.File, _ []byte) {
		t.Helper()
		room := roomOf(path.Dir(file))
		if _, ok := rooms[room]; !ok {
			t.Errorf("%s: the room %q is not in the list", file, room)
		}
		seen[room] = true
		allowed := rooms[room]
		if strings.HasSuffix(file, "_test.go") {
			allowed = slices.Concat(allowed, inTests)
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			if !mayImport(room, imp, allowed) {
				t.Errorf("%s must not import %s", file, imp)
			}
		}
	})
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		if _, err := os.Stat(room); err == nil && !seen[room] {
			t.Errorf("the room %s has no Go file", room)
		}
	}
}

// TestFilesAreSmall holds a limit on a source file's lines, and refuses init functions:
// what a package needs is given to it.
func TestFilesAreSmall(t *testing.T) {
	eachGoFile(t, func(t *testing.T, file string, f *ast.File, src []byte) {
		t.Helper()
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		if n := bytes.Count(src, []byte("\n")); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d", file, n, maxFileLines)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", file)
			}
		}
	})
}

func TestMayImport(t *testing.T) {
	for name, tc := range map[string]struct {
		dir, imp string
		want     bool
	}{
		"standard library":         {"kv", "encoding/json", true},
		"own room":                 {"router/pick", module + "/router/pick", true},
		"root":                     {"kv", module, true},
		"allowed room":             {"router/proxy", module + "/router/pick", true},
		"against the arrow":        {"router/pick", module + "/router/proxy", false},
		"root to a room":           {".", module + "/kv", false},
		"adapter to adapter":       {"adapters/static", module + "/adapters/ray", false},
		"router to an adapter":     {"router/openai", module + "/adapters/static", false},
		"anything to the command":  {"router/openai", module + "/cmd/app", false},
		"gin outside the edge":     {"router/proxy", "github.com/gin-gonic/gin", false},
		"gin at the edge":          {"router/openai", "github.com/gin-gonic/gin", true},
		"tests see all":            {"test/e2e", module + "/router/proxy", true},
		"another's similar module": {"kv", module + "-other/kv", false},
	} {
		t.Run(name, func(t *testing.T) {
			room := roomOf(tc.dir)
			require.Equal(t, tc.want, mayImport(room, tc.imp, rooms[room]))
		})
	}
}

func eachGoFile(t *testing.T, check func(*testing.T, string, *ast.File, []byte)) {
	t.Helper()
	tree := os.DirFS(".")
	files := 0
	require.NoError(t, fs.WalkDir(tree, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		src, err := fs.ReadFile(tree, file)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files++
		check(t, file, f, src)
		return nil
	}))
	require.NotZero(t, files)
}

// roomOf gives the room that a folder is: itself, or test for all under test.
func roomOf(dir string) string {
	if strings.HasPrefix(dir, "test/") {
		return "test"
	}
	return dir
}

func mayImport(room, imp string, allowed []string) bool {
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		return true // standard library
	}
	dir, ours := ".", imp == module
	if !ours {
		dir, ours = strings.CutPrefix(imp, module+"/")
	}
	if ours && roomOf(dir) == room {
		return true
	}
	for _, a := range allowed {
		if a == "*" || ours && roomOf(dir) == a || !ours && a != "." && strings.HasPrefix(imp, a) {
			return true
		}
	}
	return false
}
