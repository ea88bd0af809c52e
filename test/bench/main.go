// Command bench measures Mobula's router beside its peers in one run: the router on one
// core, load and engines on another, everything on loopback. It prints ratios, which hold
// from machine to machine; absolute figures do not. See docs/performance.md.
package main

import (
	"fmt"
	"os"
)

func main() {
	run, args := runBench, os.Args[1:]
	if len(args) > 0 {
		switch args[0] {
		case "mock": // engines
			run, args = runMock, args[1:]
		case "load": // load generator
			run, args = runLoad, args[1:]
		case "raw": // reference proxy: the lower bound in Go
			run, args = runRaw, args[1:]
		case "report":
			run, args = runReport, args[1:]
		}
	}
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
