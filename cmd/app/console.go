package app

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// console writes lines for people. On a terminal it also has colours and one line of
// progress that the next line replaces; elsewhere its output is plain and stable.
type console struct {
	terminal bool
	colour   bool
	width    int

	mu   sync.Mutex
	w    io.Writer
	busy bool // a progress line is on the screen
}

func newConsole(w io.Writer) *console {
	c := &console{w: w, width: 80, terminal: isTerminal(w)}
	if c.terminal {
		c.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(w.(*os.File).Fd())); err == nil && width > 0 {
			c.width = width
		}
	}
	return c
}

// isTerminal tells whether v is a file that is a terminal.
func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// line writes one line or more.
func (c *console) line(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	_, _ = fmt.Fprintf(c.w, format+"\n", args...)
}

// progress shows text until the next line or progress; only a terminal gets it.
func (c *console) progress(text string) {
	if !c.terminal {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	_, _ = io.WriteString(c.w, printable(text, c.width-1))
	c.busy = true
}

// clear takes the progress line off the screen.
func (c *console) clear() {
	if c.busy {
		_, _ = io.WriteString(c.w, "\r\x1b[K")
		c.busy = false
	}
}

func (c *console) paint(code, s string) string {
	if !c.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (c *console) strong(s string) string { return c.paint("1", s) }
func (c *console) dim(s string) string    { return c.paint("2", s) }
func (c *console) bad(s string) string    { return c.paint("31", s) }
func (c *console) good(s string) string   { return c.paint("32", s) }

// printable gives at most limit characters of s, without those that would move a
// terminal's cursor or change its state.
func printable(s string, limit int) string {
	out := make([]rune, 0, min(len(s), limit))
	for _, r := range s {
		if len(out) == limit {
			break
		}
		if !isControl(r) {
			out = append(out, r)
		}
	}
	return string(out)
}

// isControl tells whether r is a control character, of ASCII or of Latin-1.
func isControl(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }
