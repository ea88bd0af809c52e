package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/test/docpage"
)

// TestReadmeBareMetal types in README's section "Bare metal" as it stands, but for `make`, and for the addresses of the
// loopback: two runs at once don't meet.
func TestReadmeBareMetal(t *testing.T) {
	t.Parallel()
	commands := docpage.Commands(t, "../../README.md", "## Bare metal")
	require.Equal(t, "make", commands[0])
	loopback := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), 1+rand.IntN(254))
	for i := range commands {
		commands[i] = strings.ReplaceAll(commands[i], "127.0.18.", loopback)
	}
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	require.NoError(t, os.Symlink(binary(t), filepath.Join(dir, "bin", "mobula")))
	examples, err := filepath.Abs("../../examples")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(examples, filepath.Join(dir, "examples")))

	reader := docpage.Reader{Dir: dir, Patience: 5 * time.Minute}
	said := reader.Type(t, commands[1:])
	require.Contains(t, said, `"choices":[{"index":0,"message":{"role":"assistant","content":"`)
	require.Contains(t, said, "3/3")
	require.Regexp(t, `ReplicaRestarted +its process died and starts again: signal: killed`, said)
	require.Regexp(t, `(?m)^\$ kill [^\n]*statuses \| uniq -c\n +\d+ 200\n\$ `, said, "every answer that the client got is a 200")
	for end := time.Now().Add(90 * time.Second); len(reader.Left()) > 0; time.Sleep(100 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "still there: %s\n%s", reader.Left(), said)
	}
}
