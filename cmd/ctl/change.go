package ctl

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
)

// Actions of a control.ModelChange.
const (
	actionCreate    = "create"
	actionRoll      = "roll"
	actionUpdate    = "update"
	actionRemove    = "remove"
	actionUnchanged = "unchanged"
)

const stdinName = "standard input"

// fleetFile is a fleet file that is valid.
type fleetFile struct {
	name, source string
	data         []byte
	fleet        *mobula.Fleet
}

// fileFlag adds -f.
func fileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", `fleet file, "-" for standard input`)
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

// readFleet reads and checks a fleet file, as mobula validate does.
func (c *ctl) readFleet(file string) (*fleetFile, error) {
	f := &fleetFile{name: file}
	var err error
	switch file {
	case "":
		return nil, usagef("which fleet? give its file with -f")
	case "-":
		f.name = stdinName
		f.data, err = readBounded(c.Stdin)
	default:
		f.data, err = readPath(file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hinted(fmt.Errorf("%s: there is no such file", file), "docs/fleet.md shows a complete one; `mobula up` needs none")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.name, err)
	}
	f.source = sourceOf(f.name)
	f.fleet, err = mobula.Load(f.data, f.name)
	return f, err
}

func readPath(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := readBounded(f)
	return data, errors.Join(err, f.Close())
}

// readBounded reads one byte more than a fleet file may have, so that the loader sees that it is too large.
func readBounded(r io.Reader) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, mobula.MaxFileSize+1))
}

// sourceOf says where a fleet comes from: two files with one fleet's name are told apart by it.
func sourceOf(name string) string {
	if name != stdinName {
		if abs, err := filepath.Abs(name); err == nil {
			name = abs
		}
	}
	if host, err := os.Hostname(); err == nil {
		name += " on " + host
	}
	if u, err := user.Current(); err == nil {
		name += " by " + u.Username
	}
	return name
}

// showChange prints a line for each model that changes.
func (c *ctl) showChange(ch *control.Change) {
	for _, m := range ch.Models {
		mark, code := " ", ""
		switch m.Action {
		case actionUnchanged:
			continue
		case actionCreate:
			mark, code = "+", green
		case actionRoll:
			mark, code = "~", yellow
		case actionUpdate:
			mark, code = "~", cyan
		case actionRemove:
			mark, code = "-", red
		}
		line := c.out.paint(code, fmt.Sprintf("%s %-6s", mark, clean(m.Action))) + " " + clean(m.Name)
		if len(m.Fields) > 0 {
			line += "  " + c.out.paint(dim, clean(strings.Join(m.Fields, "; ")))
		}
		c.out.line("%s", line)
	}
	if ch.Settings {
		c.out.line("%s settings of the router, the platform or the providers", c.out.paint(cyan, "~ update"))
	}
	if !changes(ch) {
		c.out.line("no change")
	}
	for _, w := range ch.Warnings {
		c.err.line("%s %s", c.err.paint(yellow, "warning:"), clean(w))
	}
}

// changes tells whether anything is different.
func changes(ch *control.Change) bool {
	for _, m := range ch.Models {
		if m.Action != actionUnchanged {
			return true
		}
	}
	return ch.Settings
}
