//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// up measures the time from the start of `mobula up` to its first answer.
func (o *options) up() error {
	var all []time.Duration
	for range o.ups {
		took, err := o.upOnce()
		if err != nil {
			return err
		}
		all = append(all, took)
	}
	o.add("`mobula up` → first answered request", "< 1 s", "%s of %d", spread(all), len(all))
	return nil
}

func (o *options) upOnce() (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	f := &small{options: o, model: "mobula-sim", url: "http://127.0.0.1:" + port, client: &http.Client{Timeout: patience}}
	defer f.client.CloseIdleConnections()
	cmd := o.command("up", "--port", port)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	p := &proc{cmd: cmd, done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.done) }()
	defer p.stop()
	for time.Since(began) < patience {
		if f.ask(context.Background()) == nil {
			return time.Since(began), nil
		}
		select {
		case <-p.done:
			return 0, fmt.Errorf("mobula up ended: %s", cmd.ProcessState)
		case <-time.After(2 * time.Millisecond):
		}
	}
	return 0, fmt.Errorf("mobula up did not answer in %s", patience)
}
