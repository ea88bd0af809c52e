package ctl

import (
	"fmt"
	"io"
	"os"
	"strings"

	"charm.land/lipgloss/v2"
)

// SGR codes.
const (
	strong = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

// console writes for people. On a terminal it has colours and some last lines that are drawn again in
// place; elsewhere its output is plain and stable. It is for one goroutine.
type console struct {
	w        io.Writer
	terminal bool
	colour   bool
	size     func() (width, height int)
	drawn    int // lines of the last live
}

func newConsole(w io.Writer, o Options) *console {
	c := &console{w: w, terminal: o.IsTerminal(w), size: o.Size}
	c.colour = c.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return c
}

// paint colours s, which is clean.
func (c *console) paint(code, s string) string { return paint(c.colour, code, s) }

func paint(colour bool, code, s string) string {
	if !colour || code == "" || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// width is that of a terminal, 0 for no bound.
func (c *console) width() int {
	if !c.terminal {
		return 0
	}
	width, _ := c.size()
	return width
}

// line writes one line or more, above the live ones.
func (c *console) line(format string, args ...any) {
	c.print(fmt.Sprintf(format, args...) + "\n")
}

func (c *console) print(s string) {
	c.erase()
	_, _ = io.WriteString(c.w, s)
}

// live draws lines in place of those it has drawn last. What does not fit the terminal is left out.
func (c *console) live(lines []string) {
	width, height := c.size()
	if n := max(1, height-1); len(lines) > n {
		lines = append(lines[:n-1:n-1], fmt.Sprintf("… and %d more", len(lines)-n+1))
	}
	var b strings.Builder
	b.WriteString(c.erasing())
	for _, line := range lines {
		// A line that reaches the last column would wrap, and take two to erase.
		b.WriteString(lipgloss.NewStyle().MaxWidth(max(1, width-1)).Render(line) + "\n")
	}
	_, _ = io.WriteString(c.w, b.String())
	c.drawn = len(lines)
}

// keep leaves the live lines where they are.
func (c *console) keep() { c.drawn = 0 }

func (c *console) erase() {
	if c.drawn > 0 {
		_, _ = io.WriteString(c.w, c.erasing())
		c.drawn = 0
	}
}

func (c *console) erasing() string {
	if c.drawn == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", c.drawn)
}
