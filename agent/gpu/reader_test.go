package gpu

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mobula-serve/mobula"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replay is a library that says what it is told to.
type replay struct {
	mu     sync.Mutex
	now    snapshot
	err    error
	hang   chan struct{} // read waits for it when it is there
	events chan xidEvent
	closed bool
}

func newReplay(s snapshot) *replay { return &replay{now: s, events: make(chan xidEvent, 8)} }

func (r *replay) say(s snapshot, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now, r.err = s, err
}

func (r *replay) read() (snapshot, error) {
	if r.hang != nil {
		<-r.hang
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.err
}

func (r *replay) wait(timeout time.Duration) ([]xidEvent, error) {
	select {
	case e := <-r.events:
		if e.uuid == "" {
			return nil, errors.New("no events")
		}
		return []xidEvent{e}, nil
	case <-time.After(timeout):
		return nil, nil
	}
}

func (r *replay) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return nil
}

func TestReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lib := newReplay(recorded(t, "a100-pcie-8"))
		r := newReader(Options{Environ: []string{"CUDA_VISIBLE_DEVICES=3,2"}, Logger: slog.New(slog.DiscardHandler)}, lib)
		read := func() []mobula.Device {
			all, err := r.Devices(t.Context())
			require.NoError(t, err)
			return all
		}
		require.Equal(t, []string{"3", "2"}, collect(read(), func(d mobula.Device) string { return d.ID }))
		unhealthy := func() []bool { return collect(read(), func(d mobula.Device) bool { return d.Unhealthy != "" }) }
		require.Equal(t, []bool{false, false}, unhealthy())

		third := lib.now.GPUs[3].UUID
		lib.events <- xidEvent{third, 31} // an application's
		lib.events <- xidEvent{}          // watching fails, and goes on
		lib.events <- xidEvent{third, 74}
		lib.events <- xidEvent{third, 45}
		time.Sleep(time.Minute)
		require.Equal(t, []bool{true, false}, unhealthy())
		require.Contains(t, read()[0].Unhealthy, "XID 74")

		lost := recorded(t, "a100-pcie-8")
		lost.GPUs[2] = gpuInfo{Index: 2, Lost: "ERROR_GPU_IS_LOST"}
		lib.say(lost, nil)
		require.Equal(t, []bool{true, true}, unhealthy())
		require.Equal(t, "NVIDIA A100 80GB PCIe", read()[1].Name)

		lib.say(snapshot{}, ErrNVML)
		_, err := r.Devices(t.Context())
		require.ErrorIs(t, err, ErrNVML)
		lib.say(recorded(t, "a100-pcie-8"), nil)
		require.Equal(t, []bool{true, false}, unhealthy())

		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		require.True(t, lib.closed)
		_, err = r.Devices(t.Context())
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestReaderOfAHungDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lib := newReplay(recorded(t, "h200-1"))
		lib.hang = make(chan struct{})
		r := newReader(Options{}, lib)
		var callers sync.WaitGroup
		for range 3 {
			callers.Go(func() {
				_, err := r.Devices(t.Context())
				if !errors.Is(err, ErrSilent) {
					t.Errorf("want ErrSilent, got %v", err)
				}
			})
		}
		callers.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := r.Devices(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, r.Close(), ErrSilent)
		close(lib.hang)
		synctest.Wait()
	})
}

func TestHostWithoutNVML(t *testing.T) {
	dev := t.TempDir()
	for _, name := range []string{"nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"} {
		require.NoError(t, os.WriteFile(filepath.Join(dev, name), nil, 0o600))
	}
	empty := t.TempDir()
	listed := func() []string {
		return parseList([]byte("GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: NVIDIA L4 (UUID: GPU-2)\n  MIG 1g.5gb\n"))
	}
	none := func() []string { return nil }
	for name, tc := range map[string]struct {
		environ []string
		dev     string
		listed  func() []string
		want    []string
	}{
		"nothing":                         {dev: empty, listed: none},
		"device files, counted from 0":    {dev: dev, listed: none, want: []string{"0", "1"}},
		"nvidia-smi":                      {dev: empty, listed: listed, want: []string{"0", "1"}},
		"the variable counts for more":    {environ: []string{"CUDA_VISIBLE_DEVICES=4, 5"}, dev: dev, listed: listed, want: []string{"4", "5"}},
		"the variable allows none":        {environ: []string{"CUDA_VISIBLE_DEVICES="}, dev: dev, listed: listed},
		"it ends at -1":                   {environ: []string{"CUDA_VISIBLE_DEVICES=1,-1,2"}, dev: dev, listed: listed, want: []string{"1"}},
		"it ends at what it names again":  {environ: []string{"CUDA_VISIBLE_DEVICES=1,2,1,3"}, dev: dev, listed: listed, want: []string{"1", "2"}},
		"set twice, the last one counts":  {environ: []string{"CUDA_VISIBLE_DEVICES=1", "CUDA_VISIBLE_DEVICES=2"}, dev: dev, listed: listed, want: []string{"2"}},
		"another variable is no business": {environ: []string{"XCUDA_VISIBLE_DEVICES=7"}, dev: dev, listed: listed, want: []string{"0", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			all := bare(visibleIn(tc.environ), tc.dev, tc.listed)
			require.Equal(t, tc.want, collect(all, func(d mobula.Device) string { return d.ID }))
		})
	}

	r := newReader(Options{Environ: []string{"CUDA_VISIBLE_DEVICES=0"}, Dev: empty}, nil)
	all, err := r.Devices(t.Context())
	require.NoError(t, err)
	require.Equal(t, []mobula.Device{{ID: "0", Name: "GPU"}}, all)
	require.NoError(t, r.Close())
}

func TestVisible(t *testing.T) {
	mig := devices(recorded(t, "a100-mig"), nil)
	eight := devices(recorded(t, "h100-sxm-8"), nil)
	for name, tc := range map[string]struct {
		all  []mobula.Device
		list string
		want []string
	}{
		"indices in their order":      {eight, "5,1", []string{"5", "1"}},
		"a UUID":                      {eight, eight[2].UUID, []string{"2"}},
		"the beginning of a UUID":     {eight, eight[7].UUID[:12], []string{"7"}},
		"a MIG instance":              {mig, mig[1].UUID, []string{mig[1].ID}},
		"one that isn't there ends":   {eight, "0,9,1", []string{"0"}},
		"a word is no device":         {eight, "NoDevFiles", nil},
		"an index is no UUID's start": {eight, "GPU", nil},
		"none":                        {eight, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := visibleIn([]string{"CUDA_VISIBLE_DEVICES=" + tc.list}).filter(tc.all)
			require.Equal(t, tc.want, collect(got, func(d mobula.Device) string { return d.ID }))
		})
	}
}

// TestThisHost reads whatever is here: real GPUs, or none.
func TestThisHost(t *testing.T) {
	r, err := Open(Options{})
	require.NoError(t, err)
	all, err := r.Devices(t.Context())
	require.NoError(t, err)
	for _, d := range all {
		require.NotEmpty(t, d.ID)
		t.Logf("%+v", d)
	}
	require.NoError(t, r.Close())
}
