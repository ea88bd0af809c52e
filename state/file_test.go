package state_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula/state"
)

// writerFile makes the test binary a process that writes to the store in this file until it is killed.
const writerFile = "MOBULA_TEST_STATE_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(writerFile); path != "" {
		fmt.Fprintln(os.Stderr, write(path))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// write counts on from what the file holds, two keys in each write, and prints what is acknowledged.
func write(path string) error {
	db, err := state.Open(path)
	if err != nil {
		return err
	}
	last, _, err := db.Get("count", "left")
	if err != nil {
		return err
	}
	i, _ := strconv.Atoi(string(last))
	for {
		i++
		n := strconv.Itoa(i)
		if err := db.Write(set("count", "left", n), set("count", "right", n), set("log", fmt.Sprintf("%08d", i), strings.Repeat(n, 200))); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestKilledWriter kills a writer at any moment. It shows what a killed process leaves, not what a
// power failure does: the kernel keeps what has been written.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	acknowledged := 0
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerFile+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for range 3 + 7*round {
			require.True(t, lines.Scan(), "the writer ended by itself")
			acknowledged, err = strconv.Atoi(lines.Text())
			require.NoError(t, err)
		}
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // what it had printed before it died
			acknowledged, err = strconv.Atoi(lines.Text())
			require.NoError(t, err)
		}
		require.Error(t, cmd.Wait())

		db, err := state.Open(path)
		require.NoError(t, err)
		left := get(t, db, "count", "left")
		require.Equal(t, left, get(t, db, "count", "right"))
		written, err := strconv.Atoi(left)
		require.NoError(t, err)
		require.GreaterOrEqual(t, written, acknowledged)
		require.Len(t, all(t, db, "log"), written)
		require.NoError(t, db.Close())
	}
}

func TestFileIsPrivateAndItsFoldersAreMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	path := filepath.Join(dir, "state.db")
	db, err := state.Open(path)
	require.NoError(t, err)
	defer db.Close()
	for name, mode := range map[string]os.FileMode{path: 0o600, dir: 0o700, filepath.Dir(dir): 0o700} {
		info, err := os.Stat(name)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), name)
	}
}

func TestFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := state.Open(path)
	require.NoError(t, err)
	_, err = state.Open(path)
	require.ErrorIs(t, err, state.ErrInUse)
	require.ErrorContains(t, err, path)
	require.NoError(t, db.Close())
	db, err = state.Open(path)
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func TestDamagedFile(t *testing.T) {
	whole := filled(t)
	damage := map[string][]byte{
		"no store at all":         []byte(strings.Repeat("apiVersion: mobula/v1\n", 1000)),
		"one byte":                {0},
		"cut in its header":       whole[:100],
		"cut after its header":    whole[:8192],
		"cut in the middle":       whole[:len(whole)/2],
		"zeroed after its header": append(whole[:8192:8192], make([]byte, len(whole)-8192)...),
		"header zeroed":           append(make([]byte, 8192), whole[8192:]...),
	}
	for name, content := range damage {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			require.NoError(t, os.WriteFile(path, content, 0o600))
			_, err := state.Open(path)
			require.ErrorIs(t, err, state.ErrDamaged)
			require.ErrorContains(t, err, path)
			require.ErrorContains(t, err, "move the file away")
			left, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, content, left, "the file has been changed")
			require.NoError(t, os.WriteFile(path, whole, 0o600))
			db, err := state.Open(path)
			require.NoError(t, err, "the damaged file is still locked")
			require.NoError(t, db.Close())
		})
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	_, err := state.Open(dir)
	require.ErrorContains(t, err, "no regular file")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	_, err = state.Open(filepath.Join(dir, "file", "state.db"))
	require.ErrorContains(t, err, filepath.Join(dir, "file"))
}

// FuzzOpen damages a file at any place: it opens or it doesn't, and either way the process lives.
func FuzzOpen(f *testing.F) {
	whole := filled(f)
	f.Add(uint32(0), []byte{0xff}, uint32(0))
	f.Add(uint32(16), []byte("mobula"), uint32(5000))
	f.Add(uint32(8192+8), []byte{9, 9, 9, 9}, uint32(0))
	f.Add(uint32(3*4096), make([]byte, 64), uint32(0))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, cut uint32) {
		content := append([]byte(nil), whole...)
		copy(content[int(at)%len(content):], patch)
		content = content[:len(content)-int(cut)%len(content)]
		path := filepath.Join(t.TempDir(), "state.db")
		require.NoError(t, os.WriteFile(path, content, 0o600))
		db, err := state.Open(path)
		if err != nil {
			return
		}
		_ = db.Each("b", func(string, []byte) error { return nil })
		_ = db.Write(set("b", "new", "1"))
		_ = db.Close()
	})
}

// filled gives the bytes of a store that has some pages.
func filled(tb testing.TB) []byte {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "state.db")
	db, err := state.Open(path)
	require.NoError(tb, err)
	for i := range 40 {
		require.NoError(tb, db.Write(set("b", strconv.Itoa(i), strings.Repeat("x", 997)), set("c", strconv.Itoa(i), "y")))
	}
	require.NoError(tb, db.Close())
	file, err := os.Open(path)
	require.NoError(tb, err)
	defer file.Close()
	whole, err := io.ReadAll(file)
	require.NoError(tb, err)
	return whole
}
