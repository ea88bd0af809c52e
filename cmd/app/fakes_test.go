package app

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/mobula-serve/mobula/engine/sim"
)

// fakeVLLM is a `vllm serve` in a few lines: a simulated engine with a child that does not
// end by itself, as vLLM's engine core. FAKE_VLLM chooses how it fails.
func fakeVLLM(args []string) {
	how := os.Getenv("FAKE_VLLM")
	if how == "die" {
		fmt.Println("ValueError: the fake was told to die")
		os.Exit(3)
	}
	var port, name string
	for i, a := range args {
		switch a {
		case "serve":
			name = args[i+1]
		case "--port":
			port = args[i+1]
		case "--served-model-name":
			name = args[i+1]
		}
	}
	core := exec.Command("sleep", "1000")
	if err := core.Start(); err != nil {
		panic(err)
	}
	fmt.Println("core", core.Process.Pid)
	ctx := context.Background()
	if how == "ignore" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM)
		defer stop()
	}
	if how == "slow" {
		fmt.Println("Loading weights: 1%")
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Minute):
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(loopback, port))
	if err != nil {
		panic(err)
	}
	e, err := sim.New(sim.Options{Model: name, APIKey: os.Getenv("VLLM_API_KEY")})
	if err != nil {
		panic(err)
	}
	if err := e.Run(ctx, l); err != nil {
		panic(err)
	}
}
