//go:build unix

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/shim"
)

// How often devices are asked for, and how long that may take.
const (
	devicesPause   = 10 * time.Second
	devicesTimeout = 8 * time.Second
)

// Tell is agent.API's.
func (d *Daemon) Tell(_ context.Context, w agent.Wish) (agent.State, error) {
	if err := w.Check(); err != nil {
		return agent.State{}, err
	}
	d.telling.Lock()
	defer d.telling.Unlock()
	last := d.lastWish()
	if control := cmp.Or(d.o.Control, last.Control); control != "" && control != w.Control {
		return agent.State{}, fmt.Errorf("%w: %s, not %s", agent.ErrOtherControl, control, w.Control)
	}
	if w.Epoch <= last.Epoch {
		return agent.State{}, fmt.Errorf("%w: epoch %d after %d", agent.ErrOldWish, w.Epoch, last.Epoch)
	}
	b, err := json.Marshal(w)
	if err != nil {
		return agent.State{}, fmt.Errorf("wish: %w", err)
	}
	var own agent.Wish // shares nothing with the caller's
	if err := json.Unmarshal(b, &own); err != nil {
		return agent.State{}, fmt.Errorf("wish: %w", err)
	}
	if err := shim.WriteFile(d.wishPath(), b, true); err != nil {
		return agent.State{}, diskError(fmt.Errorf("keep the wish: %w", err))
	}
	d.metrics.wishes.Inc()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wish = own
	d.converge()
	d.bump()
	return d.snapshot(), nil
}

func (d *Daemon) lastWish() agent.Wish {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wish
}

// diskError makes a full disk an agent.ErrNoSpace.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", agent.ErrNoSpace, err)
	}
	return err
}

// State is agent.API's.
func (d *Daemon) State(ctx context.Context, after int64, wait time.Duration) (agent.State, error) {
	timer := time.NewTimer(min(wait, agent.MaxWait))
	defer timer.Stop()
	for over := wait <= 0; ; {
		d.mu.Lock()
		if d.seq != after || over { // one beyond ours is of another instance
			s := d.snapshot()
			d.mu.Unlock()
			return s, nil
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			return agent.State{}, ctx.Err()
		}
	}
}

// snapshot is the State. Its caller holds mu.
func (d *Daemon) snapshot() agent.State {
	s := agent.State{
		Seq: d.seq, Instance: d.instance, Epoch: d.wish.Epoch,
		Name: d.o.Name, Version: d.o.Version, Labels: maps.Clone(d.o.Labels),
		Devices: slices.Clone(d.devices), Slots: d.o.Slots,
		Tasks: make([]agent.TaskStatus, 0, len(d.tasks)),
		Clock: time.Now(), Disk: freeDisk(d.o.DataDir),
	}
	for _, t := range d.tasks {
		s.Tasks = append(s.Tasks, t.status)
	}
	slices.SortFunc(s.Tasks, func(a, b agent.TaskStatus) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// bump tells all that wait of a change. Its caller holds mu.
func (d *Daemon) bump() {
	d.seq++
	close(d.changed)
	d.changed = make(chan struct{})
	d.metrics.count(d.tasks)
}

func freeDisk(path string) mobula.Size {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return 0
	}
	return mobula.Size(int64(fs.Bavail) * int64(fs.Bsize)) //nolint:unconvert // its types differ between systems
}

// Fetch is agent.API's.
func (d *Daemon) Fetch(ctx context.Context, source string) (string, error) {
	if source == "" {
		return "", fmt.Errorf("%w: no source", agent.ErrInvalid)
	}
	if d.o.Fetch == nil {
		return "", fmt.Errorf("%w: this agent brings no files", agent.ErrInvalid)
	}
	path, err := d.o.Fetch(ctx, source)
	return path, diskError(err)
}

// Logs is agent.API's.
func (d *Daemon) Logs(ctx context.Context, id string, tail int, follow bool) (io.ReadCloser, error) {
	d.mu.Lock()
	_, ok := d.tasks[id]
	d.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%w: %s", agent.ErrUnknownTask, id)
	}
	return openLog(ctx, shim.Dir(filepath.Join(d.tasksFolder(), id)).LogPath(), tail, follow)
}

// watchDevices keeps the devices fresh. What wakes waiting control planes is only a change of what can be used.
func (d *Daemon) watchDevices(ctx context.Context) {
	said := ""
	for {
		asking, cancel := context.WithTimeout(ctx, devicesTimeout)
		devices, err := d.o.GPUs(asking)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
			d.setDevices(devices)
		case err.Error() != said:
			said = err.Error()
			d.o.Logger.Warn("GPUs can't be asked, their last state stays", "cause", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(devicesPause):
		}
	}
}

func (d *Daemon) setDevices(devices []mobula.Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := slices.EqualFunc(d.devices, devices, func(a, b mobula.Device) bool {
		a.Used, a.Utilization, b.Used, b.Utilization = 0, 0, 0, 0
		return a == b
	})
	d.devices = slices.Clone(devices)
	if !same {
		d.bump()
	}
}
