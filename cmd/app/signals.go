package app

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// outliveReaders has writes to a closed pipe fail instead of ending the process, until
// release: in `mobula up | tee log` a Ctrl-C ends tee first, and our streams and engines are
// still to be stopped in order.
func outliveReaders() (release func()) {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	return func() { signal.Stop(broken) }
}

// untilHangup gives a context that also ends when the terminal closes, unless nohup or the
// like asked for that to be survived.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}
