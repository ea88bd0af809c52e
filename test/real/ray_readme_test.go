//go:build real

package real

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/docpage"
	"github.com/mobula-serve/mobula/test/netns"
)

// TestReadmeRayCluster types in README's section "Existing Ray cluster" as it stands, but for `make`, in a network namespace:
// Ray binds all interfaces.
func TestReadmeRayCluster(t *testing.T) {
	commands := docpage.Commands(t, "../../README.md", "## Existing Ray cluster")
	require.Equal(t, "make", commands[0])
	ray := filepath.Join(installRay(t, "2.60.0"), "venv/bin")
	dir, err := os.MkdirTemp("/tmp", "rd") // short: Ray's sockets are below
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	require.NoError(t, os.Symlink(build(t), filepath.Join(dir, "bin", "mobula")))
	examples, err := filepath.Abs("../../examples")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(examples, filepath.Join(dir, "examples")))

	lab := netns.New(t, "readme")
	reader := docpage.Reader{
		Dir: dir, Start: lab.Host("readme").Start, Patience: 10 * time.Minute,
		Env: []string{"PATH=" + ray + string(os.PathListSeparator) + os.Getenv("PATH"), "RAY_TMPDIR=" + dir},
	}
	said := reader.Type(t, commands[1:])
	require.Contains(t, said, `"choices":[{"index":0,"message":{"role":"assistant","content":"`)
	require.Regexp(t, `(?m)^chat-\w+-\w+ +chat +Ready .*actor [0-9a-f]+ of job`, said, "node and actor of each replica")
	require.Regexp(t, `(?m)^\$ kill [^\n]*statuses \| uniq -c\n +\d+ 200\n\$ `, said, "every answer that the client got is a 200")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		left := engines(reader.Left())
		if len(left) == 0 {
			break
		}
		require.True(t, time.Now().Before(end), "still there: %s\n%s", left, said)
	}
}

// engines are those command lines that are an engine's or an actor's of ours.
func engines(lines map[int]string) (all []string) {
	for _, l := range lines {
		if strings.Contains(l, "mobula sim") || strings.Contains(l, "MobulaEngine") || strings.Contains(l, "mobula_") {
			all = append(all, l)
		}
	}
	return all
}
