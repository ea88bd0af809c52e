package app

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mobula-serve/mobula"
)

// reloadDelay is how long a file must rest before it is read: editors write in several steps.
const reloadDelay = 200 * time.Millisecond

// Reloader applies a fleet file again when it changes. A file that doesn't load or can't be
// applied leaves the running fleet as it is; one log line and the metrics say so.
type Reloader struct {
	path    string
	apply   func(*mobula.Fleet) error
	logger  *slog.Logger
	metrics *reloadMetrics
	trigger chan struct{}
	running *mobula.Fleet // applied last, nil while unknown
	failed  string        // why the last attempt failed, empty if it didn't
}

// NewReloader makes a Reloader for the file at path, which holds what is running now. apply
// is called by one goroutine at a time; with an error it must have changed nothing. The
// error is the registry's.
func NewReloader(path string, apply func(*mobula.Fleet) error, logger *slog.Logger, registry prometheus.Registerer) (*Reloader, error) {
	metrics, err := newReloadMetrics(registry)
	if err != nil {
		return nil, err
	}
	r := &Reloader{path: path, apply: apply, logger: logger, metrics: metrics, trigger: make(chan struct{}, 1)}
	if fleet, err := mobula.LoadFile(path); err == nil { // if it is bad by now, Run tells
		r.running = fleet
	}
	return r, nil
}

// Trigger has Run load and apply the file even if it has not changed, say because a key file
// that it names has. It doesn't wait, and triggers that come before Run gets to it are one.
func (r *Reloader) Trigger() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}

// Run watches the file until ctx ends and returns ctx's error. It watches the folder, so
// that renamed files and swapped symlinks (a mounted ConfigMap) count as changes. Where the
// system can't watch, as on network file systems, only Trigger reloads.
func (r *Reloader) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		r.logger.Warn("fleet file is not watched, only a signal reloads it", "file", r.path, "err", err)
		w = &fsnotify.Watcher{} // its channels are nil: nothing comes
	} else {
		defer func() { _ = w.Close() }()
	}
	target := r.watch(w, "")
	r.reload(false) // it may have changed before it was watched
	var rested <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.trigger:
			rested = nil
			target = r.watch(w, target)
			r.reload(true)
		case e := <-w.Events:
			if r.concerns(e.Name, target) {
				rested = time.After(reloadDelay)
			}
		case <-w.Errors: // events were lost
			rested = time.After(reloadDelay)
		case <-rested:
			rested = nil
			target = r.watch(w, target)
			r.reload(false)
		}
	}
}

// watch has w watch the file's folder and, if the file is a symlink, the folder of what it
// means, which it returns. old is what it meant before.
func (r *Reloader) watch(w *fsnotify.Watcher, old string) (target string) {
	if w.Events == nil {
		return ""
	}
	folder := filepath.Dir(r.path)
	if err := w.Add(folder); err != nil {
		r.logger.Warn("fleet file is not watched, only a signal reloads it", "file", r.path, "err", err)
	}
	target, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		target = r.path // gone for now; its folder tells when it is back
	}
	if old != "" && filepath.Dir(old) != filepath.Dir(target) && filepath.Dir(old) != folder {
		_ = w.Remove(filepath.Dir(old)) // fails if the folder is gone, and its watch with it
	}
	if filepath.Dir(target) != folder {
		_ = w.Add(filepath.Dir(target)) // the symlink itself is watched in any case
	}
	return target
}

// concerns tells whether an event of a file may have changed ours. Kubernetes swaps "..data".
func (r *Reloader) concerns(name, target string) bool {
	name = filepath.Base(name)
	return name == filepath.Base(r.path) || name == filepath.Base(target) || strings.HasPrefix(name, "..")
}

// reload loads and applies the file; unless force is set, only if it says something else than
// what is running, and it doesn't tell the same problem twice.
func (r *Reloader) reload(force bool) {
	fleet, err := mobula.LoadFile(r.path)
	if err == nil {
		if !force && r.failed == "" && reflect.DeepEqual(fleet, r.running) {
			return
		}
		err = r.apply(fleet)
	}
	if err != nil {
		if force || err.Error() != r.failed {
			r.failed = err.Error()
			r.metrics.failure()
			r.logger.Warn("fleet file is not applied, the running fleet stays", "file", r.path, "err", err)
		}
		return
	}
	r.running, r.failed = fleet, ""
	r.metrics.success(time.Now())
	r.logger.Info("fleet file applied", "file", r.path)
}

// reloadMetrics tell how reloading goes. They start as after a success: the start was one.
type reloadMetrics struct {
	successful  prometheus.Gauge
	successTime prometheus.Gauge
	reloads     *prometheus.CounterVec
}

func newReloadMetrics(registry prometheus.Registerer) (*reloadMetrics, error) {
	m := &reloadMetrics{
		successful: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mobula_config_last_reload_successful", Help: "Whether the fleet file was applied when it was last loaded.",
		}),
		successTime: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mobula_config_last_reload_success_timestamp_seconds", Help: "When a fleet file was last applied, in Unix time.",
		}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mobula_config_reloads_total", Help: "Loads of a changed fleet file, by result.",
		}, []string{"result"}),
	}
	for _, c := range []prometheus.Collector{m.successful, m.successTime, m.reloads} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register reload metrics: %w", err)
		}
	}
	m.reloads.WithLabelValues("success")
	m.reloads.WithLabelValues("failure")
	m.successful.Set(1)
	m.successTime.SetToCurrentTime()
	return m, nil
}

func (m *reloadMetrics) success(now time.Time) {
	m.successful.Set(1)
	m.successTime.Set(float64(now.UnixMilli()) / 1000)
	m.reloads.WithLabelValues("success").Inc()
}

func (m *reloadMetrics) failure() {
	m.successful.Set(0)
	m.reloads.WithLabelValues("failure").Inc()
}
