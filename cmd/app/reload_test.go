package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
)

func TestReloadAppliesAFileThatIsWrittenInPlace(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	for _, name := range []string{"two", "three"} { // a half-written one may be seen, and comes to nothing
		require.NoError(t, os.WriteFile(r.path, []byte(fleetNamed(name)), 0o600))
		r.waitFor(func() bool { return r.last() == name })
	}
	r.wantApplied("two", "three")
	r.waitFor(func() bool { return r.metric("mobula_config_last_reload_successful", "") == 1 })
}

func TestReloadAppliesAFileThatIsRenamedIntoPlace(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	for _, name := range []string{"two", "three"} { // twice: the first file's inode is gone by then
		write(t, r.path, fleetNamed(name))
		r.waitFor(func() bool { return r.last() == name })
	}
	r.wantApplied("two", "three")
}

// Kubernetes mounts a ConfigMap as fleet.yaml -> ..data/fleet.yaml, ..data -> ..TIME.
func TestReloadAppliesASwappedConfigMap(t *testing.T) {
	dir := t.TempDir()
	swap := func(name string) {
		folder := filepath.Join(dir, "..2026_"+name)
		require.NoError(t, os.Mkdir(folder, 0o700))
		write(t, filepath.Join(folder, "fleet.yaml"), fleetNamed(name))
		old, _ := os.Readlink(filepath.Join(dir, "..data"))
		require.NoError(t, os.Symlink(filepath.Base(folder), filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		if old != "" {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, old)))
		}
	}
	swap("one")
	path := filepath.Join(dir, "fleet.yaml")
	require.NoError(t, os.Symlink(filepath.Join("..data", "fleet.yaml"), path))
	r := startReloader(t, path)
	for _, name := range []string{"two", "three"} {
		swap(name)
		r.waitFor(func() bool { return r.last() == name })
	}
	r.wantApplied("two", "three")
	r.wantMetrics(1, 2, 0)
}

func TestReloadFollowsASymlinkToAnotherFolder(t *testing.T) {
	target := writeFleet(t, t.TempDir(), "one")
	path := filepath.Join(t.TempDir(), "link.yaml")
	require.NoError(t, os.Symlink(target, path))
	r := startReloader(t, path)
	write(t, target, fleetNamed("two"))
	r.wantApplied("two")

	other := writeFleet(t, t.TempDir(), "three")
	require.NoError(t, os.Symlink(other, path+".new"))
	require.NoError(t, os.Rename(path+".new", path))
	r.wantApplied("two", "three")
	write(t, other, fleetNamed("four"))
	r.wantApplied("two", "three", "four")
}

func TestReloadKeepsTheRunningFleetWhenTheFileIsBad(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	write(t, r.path, "apiVersion: mobula/v1\nkind: Fleet\nrouter: {polcy: {}}\n")
	r.waitFor(func() bool { return r.metric("mobula_config_reloads_total", "failure") == 1 })
	require.Zero(t, r.metric("mobula_config_last_reload_successful", ""))
	require.Contains(t, r.log.String(), "level=WARN")
	require.Contains(t, r.log.String(), `router.polcy: unknown field, did you mean \"policy\"?`)
	require.Empty(t, r.names())

	write(t, r.path, fleetNamed("one")) // as before: all is well again
	r.waitFor(func() bool { return r.metric("mobula_config_last_reload_successful", "") == 1 })
	require.Equal(t, 1, strings.Count(r.log.String(), "level=WARN"))
}

func TestReloadWaitsForAFileThatIsGone(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	require.NoError(t, os.Remove(r.path))
	r.waitFor(func() bool { return r.metric("mobula_config_reloads_total", "failure") == 1 })
	write(t, r.path, fleetNamed("two"))
	r.wantApplied("two")
}

func TestReloadSaysSoWhenApplyFails(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	r.refuse(errors.New("no such policy"))
	write(t, r.path, fleetNamed("two"))
	r.waitFor(func() bool { return strings.Contains(r.log.String(), "no such policy") })
	r.wantMetrics(0, 0, 1)
	require.Empty(t, r.names())

	r.refuse(nil)
	r.Trigger()
	r.wantApplied("two")
	r.wantMetrics(1, 1, 1)
}

func TestReloadAppliesWhatHasNotChangedOnlyWhenTriggered(t *testing.T) {
	r := startReloader(t, writeFleet(t, t.TempDir(), "one"))
	write(t, r.path, "# a comment\n"+fleetNamed("one"))
	write(t, r.path, "# a comment\n"+fleetNamed("two"))
	r.wantApplied("two") // and not "one"
	r.Trigger()
	r.wantApplied("two", "two")
}

func TestReloadNoticesWhatChangedBeforeItRan(t *testing.T) {
	path := writeFleet(t, t.TempDir(), "one")
	r := newReloader(t, path)
	write(t, path, fleetNamed("two"))
	r.start()
	r.wantApplied("two")
}

func TestReloadRefusesARegistryThatHasItsMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	path := writeFleet(t, t.TempDir(), "one")
	_, err := NewReloader(path, nil, slog.New(slog.DiscardHandler), registry)
	require.NoError(t, err)
	_, err = NewReloader(path, nil, slog.New(slog.DiscardHandler), registry)
	require.ErrorContains(t, err, "register reload metrics")
}

// reloader is a Reloader with a recording apply, its log and its metrics.
type reloader struct {
	*Reloader
	t        *testing.T
	registry *prometheus.Registry
	log      *lockedBuffer
	mu       sync.Mutex
	applied  []string
	err      error
}

func startReloader(t *testing.T, path string) *reloader {
	t.Helper()
	r := newReloader(t, path)
	r.start()
	return r
}

func newReloader(t *testing.T, path string) *reloader {
	t.Helper()
	r := &reloader{t: t, registry: prometheus.NewRegistry(), log: &lockedBuffer{}}
	apply := func(f *mobula.Fleet) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil {
			r.applied = append(r.applied, f.Name)
		}
		return r.err
	}
	var err error
	r.Reloader, err = NewReloader(path, apply, slog.New(slog.NewTextHandler(r.log, nil)), r.registry)
	require.NoError(t, err)
	return r
}

// start runs it until the test ends and leaves no goroutine.
func (r *reloader) start() {
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		require.ErrorIs(r.t, <-done, context.Canceled)
		goleak.VerifyNone(r.t, before)
	})
}

func (r *reloader) refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *reloader) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.applied...)
}

func (r *reloader) last() string {
	names := r.names()
	if len(names) == 0 {
		return ""
	}
	return names[len(names)-1]
}

func (r *reloader) waitFor(cond func() bool) {
	r.t.Helper()
	require.Eventually(r.t, cond, 60*time.Second, 5*time.Millisecond, "applied %v, log:\n%s", r.names(), r.log)
}

// wantApplied waits until the last of names is applied, and then wants no others.
func (r *reloader) wantApplied(names ...string) {
	r.t.Helper()
	r.waitFor(func() bool { return len(r.names()) >= len(names) })
	require.Equal(r.t, names, r.names())
}

func (r *reloader) wantMetrics(successful, successes, failures float64) {
	r.t.Helper()
	r.waitFor(func() bool {
		return r.metric("mobula_config_last_reload_successful", "") == successful &&
			r.metric("mobula_config_reloads_total", "success") == successes &&
			r.metric("mobula_config_reloads_total", "failure") == failures
	})
	require.Positive(r.t, r.metric("mobula_config_last_reload_success_timestamp_seconds", ""))
}

// metric reads one value, by its result label if it has one.
func (r *reloader) metric(name, result string) float64 {
	families, err := r.registry.Gather()
	require.NoError(r.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (result == "" || m.GetLabel()[0].GetValue() == result) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	r.t.Errorf("no metric %s %s", name, result)
	return 0
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func fleetNamed(name string) string {
	return "apiVersion: mobula/v1\nkind: Fleet\nname: " + name + "\nplatform: {static: {endpoints: [{url: http://vllm:8000}]}}\n"
}

func writeFleet(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, "fleet.yaml")
	write(t, path, fleetNamed(name))
	return path
}

// write puts a whole file in place at once, as careful editors do.
func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+"~", []byte(text), 0o600))
	require.NoError(t, os.Rename(path+"~", path))
}
