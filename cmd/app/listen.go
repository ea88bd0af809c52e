package app

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// loopback is where `mobula up` binds everything.
const loopback = "127.0.0.1"

// listen binds addr. flag is the one that chooses another address, for the hint.
func listen(ctx context.Context, addr, flag string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		owner := ""
		if _, port, err := net.SplitHostPort(addr); err == nil {
			owner = portOwner("/proc", port)
		}
		return nil, hinted(fmt.Errorf("%s is in use%s", addr, owner), "stop what uses it, or choose another with %s", flag)
	case errors.Is(err, syscall.EACCES):
		return nil, hinted(fmt.Errorf("not allowed to listen on %s", addr), "choose a port above 1023 with %s", flag)
	}
	return nil, err
}

// listenFrom binds the first n free ports of the loopback from port first on. The caller closes them.
func listenFrom(ctx context.Context, first, n int) ([]net.Listener, error) {
	var all []net.Listener
	for port := first; len(all) < n; port++ {
		if port > first+1000 || port > 65535 {
			closeAll(all)
			return nil, fmt.Errorf("no %d free ports from %d on", n, first)
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err == nil {
			all = append(all, l)
		} else if ctx.Err() != nil {
			closeAll(all)
			return nil, err
		}
	}
	return all, nil
}

func closeAll(all []net.Listener) {
	for _, l := range all {
		_ = l.Close()
	}
}

// portOf gives the port that l listens on.
func portOf(l net.Listener) int {
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// portOwner names the process that listens on a TCP port, as " by process 7 (nginx)". It
// is empty when that can't be seen: on other systems than Linux, or for other users' processes.
func portOwner(proc, port string) string {
	inodes := map[string]bool{}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		listeners(filepath.Join(proc, table), port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		return fmt.Sprintf(" by process %s (%s)", filepath.Base(dir), printable(strings.TrimSpace(string(name)), 40))
	}
	return ""
}

// listeners adds the inodes of the sockets in a table of /proc/net that listen on port.
func listeners(table, port string, inodes map[string]bool) {
	f, err := os.Open(table)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return
	}
	const listening = "0A"
	suffix := ":" + strings.ToUpper(hex.EncodeToString([]byte{byte(number >> 8), byte(number)}))
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if field := strings.Fields(lines.Text()); len(field) > 9 && field[3] == listening && strings.HasSuffix(field[1], suffix) {
			inodes[field[9]] = true
		}
	}
}
