package docpage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Commands gives what comes after the prompts of the console blocks below a heading ("## Bare metal") of a file.
func Commands(tb testing.TB, file, heading string) []string {
	tb.Helper()
	content, err := os.ReadFile(file)
	require.NoError(tb, err)
	_, text, found := strings.Cut(string(content), "\n"+heading+"\n")
	require.True(tb, found, heading)
	text, _, _ = strings.Cut(text, "\n## ")
	return commands(text)
}

func commands(text string) []string {
	var all []string
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(text, -1) {
		more := false
		for line := range strings.Lines(block[1]) {
			command, prompt := strings.CutPrefix(line, "$ ")
			switch {
			case more:
				all[len(all)-1] += line
			case prompt:
				all = append(all, command)
			default:
				continue
			}
			more = strings.HasSuffix(line, "\\\n")
		}
	}
	for i := range all {
		all[i] = strings.TrimSuffix(all[i], "\n")
	}
	return all
}

// Reader is who types commands in.
type Reader struct {
	// Dir is where it begins; everything that it starts is found by it, so no two readers have the same.
	Dir string
	// Env is added to this process's.
	Env []string
	// Start starts the shell: in a network namespace, say. Default: its own Start.
	Start func(*exec.Cmd) error
	// Patience bounds it all.
	Patience time.Duration
}

// Type runs commands one after the other and ends with the first that fails. It gives what a terminal would show. What they have
// started and not stopped is killed when the test ends; Left tells of it.
func (r Reader) Type(tb testing.TB, commands []string) string {
	tb.Helper()
	var script strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&script, "cat <<'END'\n$ %s\nEND\n%s\nrc=$?; [ $rc = 0 ] || exit $rc\n", c, c)
	}
	file := filepath.Join(r.Dir, "typed.sh")
	require.NoError(tb, os.WriteFile(file, []byte(script.String()), 0o600))
	ctx, cancel := context.WithTimeout(tb.Context(), r.Patience)
	defer cancel()
	bash := exec.CommandContext(ctx, "bash", file)
	bash.Dir, bash.Env = r.Dir, append(append(os.Environ(), r.Env...), r.mark())
	var out bytes.Buffer
	bash.Stdout, bash.Stderr = &out, &out
	bash.WaitDelay = 10 * time.Second
	bash.Cancel = func() error { r.kill(); return nil }
	tb.Cleanup(r.kill)
	start := r.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	require.NoError(tb, start(bash))
	require.NoError(tb, bash.Wait(), "%s", &out)
	return out.String()
}

// mark is in the environment of all that the reader starts.
func (r Reader) mark() string { return "TMPDIR=" + r.Dir }

// Left gives the pids and command lines of what runs still.
func (r Reader) Left() map[int]string {
	found := map[int]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+r.mark()+"\x00")) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
	}
	return found
}

// kill ends all of it, and what it starts meanwhile.
func (r Reader) kill() {
	for range 100 {
		all := r.Left()
		if len(all) == 0 {
			return
		}
		for pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
