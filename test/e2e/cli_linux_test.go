package e2e

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: what is written to it is typed.
type terminal struct {
	t      *testing.T
	master *os.File
	name   string
	screen *screen
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 400}))
	return &terminal{t, master, "/dev/pts/" + strconv.Itoa(n), &screen{}}
}

// run starts the binary on the terminal, in a session of its own.
func (term *terminal) run(env []string, args ...string) *cli {
	term.t.Helper()
	tty, err := os.OpenFile(term.name, os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(term.t, err)
	c := runCLI(term.t, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		cmd.Env = append(os.Environ(), append([]string{"TERM=xterm", "NO_COLOR="}, env...)...)
	}, args...)
	c.stdout, c.stderr = term.screen, term.screen
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(term.screen, term.master) // until nobody has the terminal open
	}()
	term.t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		_ = tty.Close()
		<-copied
		_ = term.master.Close()
	})
	return c
}

func (term *terminal) keys(s string) {
	term.t.Helper()
	_, err := io.WriteString(term.master, s)
	require.NoError(term.t, err)
}

// raw tells whether the terminal is in raw mode.
func (term *terminal) raw() bool {
	term.t.Helper()
	state, err := unix.IoctlGetTermios(int(term.master.Fd()), unix.TCGETS)
	require.NoError(term.t, err)
	return state.Lflag&unix.ICANON == 0
}

func TestCtrlCOnATerminalStopsUp(t *testing.T) {
	term := newTerminal(t)
	c := term.run(nil, "up", "--port", "0")
	term.screen.await(t, "Ctrl-C stops everything.")
	require.Contains(t, term.screen.String(), "\x1b[1mmobula\x1b[0m", "colours on a terminal")
	engines := c.engines()
	term.keys("\x03")
	require.Zero(t, c.exit())
	term.screen.await(t, "stopped\r\n")
	requireClosed(t, engines...)
}

func TestNoColourWhenAskedFor(t *testing.T) {
	term := newTerminal(t)
	term.run([]string{"NO_COLOR=1"}, "up", "--port", "0")
	term.screen.await(t, "Ctrl-C stops everything.")
	require.NotRegexp(t, `\x1b\[[\d;]*m`, term.screen.String())
}

func TestChatOnATerminal(t *testing.T) {
	_, url := up(t, nil)
	term := newTerminal(t)
	c := term.run(nil, "chat", "--url", url)
	term.screen.await(t, "/help lists commands")
	require.True(t, term.raw())
	term.keys("Hello!\r")
	term.screen.await(t, "s, mobula-sim-") // under the answer: how long it took, and who gave it
	term.keys("/models\r")
	term.screen.await(t, "* mobula-sim")
	term.keys("\x03")
	require.Zero(t, c.exit())
	require.False(t, term.raw(), "the terminal is as it was")
}
