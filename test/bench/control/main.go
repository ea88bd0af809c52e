//go:build linux

// Command control measures the control plane, the agents and `mobula up` with the real binary, everything on
// loopback. It prints one table; see docs/performance.md.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// options of a run.
type options struct {
	parts, mobula       string
	samples, ups        int
	hosts, models, each int
	steady              time.Duration
	dir                 string // of this run, removed at its end
	self                string
	rows                []row
	keep, reports       bool
}

// row is one line of the table.
type row struct{ what, goal, got string }

func main() {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		fatal(runEngine(os.Args[2:]))
		return
	}
	o := &options{}
	flag.StringVar(&o.parts, "p", "ready,up,large", "parts, comma separated: ready (and dead engines, and memory), up, large")
	flag.StringVar(&o.mobula, "mobula", "bin/mobula", "binary under test")
	flag.IntVar(&o.samples, "n", 20, "engines of part ready")
	flag.IntVar(&o.ups, "ups", 10, "starts of part up")
	flag.IntVar(&o.hosts, "hosts", 1000, "hosts of part large")
	flag.IntVar(&o.models, "models", 100, "models of part large")
	flag.IntVar(&o.each, "each", 100, "replicas of each of them")
	flag.DurationVar(&o.steady, "steady", 30*time.Second, "time over which the CPU of part large is measured")
	flag.BoolVar(&o.reports, "reports", true, "part large: a router that follows the endpoints and reports each second")
	flag.BoolVar(&o.keep, "keep", false, "leave the logs of the run")
	flag.Parse()
	fatal(o.run())
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-control:", err)
		os.Exit(1)
	}
}

func (o *options) run() (err error) {
	if o.mobula, err = filepath.Abs(o.mobula); err != nil {
		return err
	}
	if _, err := exec.LookPath(o.mobula); err != nil {
		return err
	}
	if o.self, err = os.Executable(); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "mobula-bench-"); err != nil {
		return err
	}
	if o.keep {
		fmt.Println("logs:", o.dir)
	} else {
		defer func() { _ = os.RemoveAll(o.dir) }()
	}
	parts := strings.Split(o.parts, ",")
	for _, part := range []struct {
		name string
		run  func() error
	}{{"ready", o.ready}, {"up", o.up}, {"large", o.large}} {
		if slices.Contains(parts, part.name) {
			if err := part.run(); err != nil {
				o.print()
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
	}
	if len(o.rows) == 0 {
		return errors.New("no such part: want ready, up or large")
	}
	o.print()
	return nil
}

func (o *options) add(what, goal, format string, args ...any) {
	o.rows = append(o.rows, row{what, goal, fmt.Sprintf(format, args...)})
	fmt.Fprintf(os.Stderr, "%s: %s\n", what, fmt.Sprintf(format, args...))
}

func (o *options) print() {
	fmt.Println("| | goal | measured |\n|---|---|---|")
	for _, r := range o.rows {
		fmt.Printf("| %s | %s | %s |\n", r.what, r.goal, r.got)
	}
}

// spread says how samples are spread.
func spread(all []time.Duration) string {
	slices.Sort(all)
	if len(all) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("p50 %s, max %s", ms(all[len(all)/2]), ms(all[len(all)-1]))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", d.Seconds()*1000) }
