package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
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

// TestReadmeBareMetal types in README's section "Bare metal" as it stands, but for `make`, and for the addresses of the
// loopback: two runs at once don't meet.
func TestReadmeBareMetal(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	commands := consoleCommands(section(t, string(readme), "## Bare metal"))
	require.Equal(t, "make", commands[0])
	script := strings.ReplaceAll(script(commands[1:]), "127.0.18.", fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), 1+rand.IntN(254)))

	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
	require.NoError(t, os.Symlink(binary(t), filepath.Join(dir, "bin", "mobula")))
	examples, err := filepath.Abs("../../examples")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(examples, filepath.Join(dir, "examples")))
	file := filepath.Join(dir, "readme.sh")
	require.NoError(t, os.WriteFile(file, []byte(script), 0o600))

	mark := "TMPDIR=" + dir // in the environment of all that it starts
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	bash := exec.CommandContext(ctx, "bash", file)
	bash.Dir, bash.Env = dir, append(os.Environ(), mark)
	var out bytes.Buffer
	bash.Stdout, bash.Stderr = &out, &out
	bash.WaitDelay = 10 * time.Second
	bash.Cancel = func() error { kill(mark); return nil }
	t.Cleanup(func() { kill(mark) })
	require.NoError(t, bash.Run(), "%s", &out)

	said := out.String()
	require.Contains(t, said, `"choices":[{"index":0,"message":{"role":"assistant","content":"`)
	require.Contains(t, said, "3/3")
	require.Regexp(t, `ReplicaRestarted +its process died and starts again: signal: killed`, said)
	require.Regexp(t, `(?m)^\$ kill [^\n]*statuses \| uniq -c\n +\d+ 200\n\$ `, said, "every answer that the client got is a 200")
	for end := time.Now().Add(90 * time.Second); len(marked(mark)) > 0; time.Sleep(100 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "still there: %s\n%s", marked(mark), said)
	}
}

// section gives the text below a heading.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(page, "\n"+heading+"\n")
	require.True(t, found, heading)
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// consoleCommands gives what comes after the prompts of a page's console blocks.
func consoleCommands(page string) []string {
	var commands []string
	for _, block := range regexp.MustCompile("(?s)```console\n(.*?)```").FindAllStringSubmatch(page, -1) {
		more := false
		for line := range strings.Lines(block[1]) {
			command, prompt := strings.CutPrefix(line, "$ ")
			switch {
			case more:
				commands[len(commands)-1] += line
			case prompt:
				commands = append(commands, command)
			default:
				continue // output
			}
			more = strings.HasSuffix(line, "\\\n")
		}
	}
	for i := range commands {
		commands[i] = strings.TrimSuffix(commands[i], "\n")
	}
	return commands
}

// script runs commands one after the other, shows each, and ends with the first that fails.
func script(commands []string) string {
	var b strings.Builder
	for _, c := range commands {
		fmt.Fprintf(&b, "cat <<'END'\n$ %s\nEND\n%s\nrc=$?; [ $rc = 0 ] || exit $rc\n", c, c)
	}
	return b.String()
}

// marked gives the pids and command lines of processes with a variable in their environment.
func marked(variable string) map[int]string {
	found := map[int]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+variable+"\x00")) {
			continue
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
	}
	return found
}

// kill ends all of them, and what they start meanwhile.
func kill(variable string) {
	for range 100 {
		all := marked(variable)
		if len(all) == 0 {
			return
		}
		for pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
