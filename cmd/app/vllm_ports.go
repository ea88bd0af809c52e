package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// firstVLLMPort is where `mobula up` looks for free ports for vLLM engines: away from the
// simulated ones, which another `mobula up` may start while vLLM is still loading.
const firstVLLMPort = 8801

// claimedPort is a port of ours. An engine takes minutes before it listens, so a lock tells
// other `mobula up`s meanwhile that the port is taken; it ends with our process at the latest.
type claimedPort struct {
	number int
	lock   *os.File
}

func (p claimedPort) release() { _ = p.lock.Close() }

func releaseAll(ports []claimedPort) {
	for _, p := range ports {
		p.release()
	}
}

// claimPorts claims n ports that nobody listens on, with lock files in folder.
func claimPorts(ctx context.Context, n int, folder string) ([]claimedPort, error) {
	ports := make([]claimedPort, 0, n)
	for next := firstVLLMPort; len(ports) < n; {
		free, err := listenFrom(ctx, next, 1)
		if err != nil {
			releaseAll(ports)
			return nil, err
		}
		port := portOf(free[0])
		lock, err := tryLock(filepath.Join(folder, fmt.Sprintf("vllm-%d.lock", port)))
		closeAll(free)
		if err != nil {
			releaseAll(ports)
			return nil, err
		}
		if lock != nil {
			ports = append(ports, claimedPort{port, lock})
		}
		next = port + 1
	}
	return ports, nil
}

// tryLock locks the file at path for as long as it is open, nil when another process has it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of an engine's port: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil //nolint:nilnil // documented
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// logFolder is where engines' output goes: the user's cache, or a new temporary folder where
// there is no home or none to write to.
func logFolder() (string, error) {
	if cache, err := os.UserCacheDir(); err == nil {
		folder := filepath.Join(cache, "mobula", "logs")
		const writable = 2 // W_OK of access(2)
		if os.MkdirAll(folder, 0o700) == nil && syscall.Access(folder, writable) == nil {
			return folder, nil
		}
	}
	folder, err := os.MkdirTemp("", "mobula-logs-")
	if err != nil {
		return "", fmt.Errorf("folder for the engines' logs: %w", err)
	}
	return folder, nil
}
