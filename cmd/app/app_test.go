package app

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// deadline of conditions: generous, since the machine may be busy.
const deadline = 60 * time.Second

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "vllm" {
		fakeVLLM(os.Args[1:]) // this binary, started through a link of that name
		return
	}
	// And as what agents start: shims and simulated engines.
	if len(os.Args) > 1 && (os.Args[1] == "shim" || os.Args[1] == "sim") {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// result is what a finished command came to.
type result struct {
	code           int
	stdout, stderr string
}

// execute runs a command to its end.
func execute(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// command is a command that runs in the background.
type command struct {
	stdout, stderr *buffer
	cancel, force  context.CancelFunc
	done           chan int
}

// background starts a command.
func background(t *testing.T, stdin io.Reader, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	force, kill := context.WithCancel(context.Background())
	c := &command{&buffer{}, &buffer{}, cancel, kill, make(chan int, 1)}
	a := &app{stdin: stdin, stdout: c.stdout, stderr: c.stderr, route: runRouter}
	go func() { c.done <- a.main(WithForce(ctx, force), args) }()
	t.Cleanup(func() {
		cancel()
		c.wait(t)
		kill()
	})
	return c
}

// wait gives the exit code.
func (c *command) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-c.done:
		c.done <- code // for the next to ask
		return code
	case <-time.After(deadline):
		t.Fatalf("the command does not end\nstdout: %s\nstderr: %s", c.stdout, c.stderr)
		return 0
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the text has come.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(b.String(), text) }, deadline, 5*time.Millisecond,
		"%q does not come", text)
}

func TestWrongCommandLines(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string // on standard error
	}{
		"unknown command":           {[]string{"serve"}, "error: unknown command \"serve\" for \"mobula\"\nhint: mobula --help\n"},
		"misspelt command":          {[]string{"vresion"}, "error: unknown command \"vresion\" for \"mobula\"\nhint: did you mean: mobula version?\n"},
		"unknown flag":              {[]string{"up", "--gpu"}, "error: unknown flag: --gpu\nhint: mobula up --help\n"},
		"flag without value":        {[]string{"up", "--port"}, "error: flag needs an argument: --port\nhint: mobula up --help\n"},
		"flag of another type":      {[]string{"up", "--port", "x"}, "error: invalid argument \"x\" for \"--port\" flag: strconv.ParseInt: parsing \"x\": invalid syntax\nhint: mobula up --help\n"},
		"up with an argument":       {[]string{"up", "model"}, "error: what is \"model\"? arguments for vLLM come after --\nhint: mobula up --help\n"},
		"up with a bad port":        {[]string{"up", "--port", "70000"}, "error: --port 70000: want 0 to 65535\nhint: mobula up --help\n"},
		"up with too many engines":  {[]string{"up", "--engines", "65"}, "error: --engines 65: want 0 to 64\nhint: mobula up --help\n"},
		"up with an unnamed model":  {[]string{"up", "--model", ""}, "error: --model: the name is empty\nhint: mobula up --help\n"},
		"arguments without a model": {[]string{"up", "--", "--dtype", "half"}, "error: arguments for vLLM need a --model; simulated engines take none (mobula sim has flags)\nhint: mobula up --help\n"},
		"engine's own port":         {[]string{"up", "--model", "m", "--", "--port=9"}, "error: --port is not for the engine: mobula up chooses where it listens\nhint: mobula up --help\n"},
		"engine's key":              {[]string{"up", "--model", "m", "--", "--api_key", "x"}, "error: --api_key is not for the engine: put the key into the environment variable VLLM_API_KEY, which the router reads too\nhint: mobula up --help\n"},
		"router without a file":     {[]string{"router"}, "error: which fleet? give its file with -f, its control plane with --config or --control, or --kubernetes\nhint: mobula router --help\n"},
		"router with an argument":   {[]string{"router", "fleet.yaml"}, "error: unknown command \"fleet.yaml\" for \"mobula router\"\nhint: mobula router --help\n"},
		"validate without a file":   {[]string{"validate"}, "error: which fleet? give its file with -f\nhint: mobula validate --help\n"},
		"sim with a bad port":       {[]string{"sim", "--port", "-1"}, "error: --port -1: want 0 to 65535\nhint: mobula sim --help\n"},
		"sim with a nameless LoRA":  {[]string{"sim", "--lora", "=path"}, "error: --lora \"=path\": want NAME or NAME=PATH\nhint: mobula sim --help\n"},
		"sim out of range":          {[]string{"sim", "--blocks", "-1"}, "error: sim: Blocks is out of range\nhint: mobula sim --help\n"},
		"version in a bad format":   {[]string{"version", "-o", "xml"}, "error: -o xml: want text or json\nhint: mobula version --help\n"},
		"chat without a prompt":     {[]string{"chat"}, "error: no prompt: give one as arguments or on standard input\nhint: mobula chat --help\n"},
		"chat without time":         {[]string{"chat", "--timeout", "0", "hi"}, "error: --timeout 0s: want more than 0\nhint: mobula chat --help\n"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, result{exitUsage, "", tc.want}, execute(t, "", tc.args...))
		})
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		if cmd.Hidden {
			return
		}
		require.True(t, cmd.Example != "" || cmd.HasParent() && cmd.Parent().Example != "", cmd.CommandPath())
		got := execute(t, "", append(strings.Fields(cmd.CommandPath())[1:], "--help")...)
		require.Zero(t, got.code)
		require.Contains(t, got.stdout, cmd.Example)
		require.Empty(t, got.stderr)
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).root())
}

func TestWithoutArgumentsHelpIsShown(t *testing.T) {
	got := execute(t, "")
	require.Zero(t, got.code)
	require.Contains(t, got.stdout, "mobula up")
}

func TestVersion(t *testing.T) {
	got := execute(t, "", "version")
	require.Zero(t, got.code)
	require.Regexp(t, `^mobula \S+ .*\(go1\.\S+, \w+/\w+\)\n$`, got.stdout)
	got = execute(t, "", "version", "-o", "json")
	require.Zero(t, got.code)
	require.Contains(t, got.stdout, `"version": "`)
}

func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		got := execute(t, "", "completion", shell)
		require.Zero(t, got.code, shell)
		require.Contains(t, got.stdout, "mobula", shell)
	}
}
