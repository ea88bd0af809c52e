// Command mobula serves OpenAI requests in front of vLLM engines: `mobula help`.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/mobula-serve/mobula/cmd/app"
)

// killed is the exit code after a second signal; killWait is what a command may still use
// to kill its engines then.
const (
	killed   = 130
	killWait = 3 * time.Second
)

// gcPercent is the garbage collector's headroom over what is in use. A full prefix index is
// 64 MiB, and hardly anything is allocated for a request: Go's default of 100 would hold as
// much again for garbage that does not come.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" { // Go's own setting goes first
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run())
}

// run turns signals into contexts: the first SIGINT or SIGTERM asks to drain and stop, the
// second one to stop at once.
func run() int {
	ctx, drain := context.WithCancel(context.Background())
	defer drain()
	force, kill := context.WithCancel(context.Background())
	defer kill()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		drain()
		<-signals
		kill()
		time.Sleep(killWait)
		os.Exit(killed)
	}()

	code := app.Main(app.WithForce(ctx, force), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if force.Err() != nil {
		return killed
	}
	return code
}
