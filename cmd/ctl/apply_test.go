package ctl

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// fleetChange is what applying fleetText over richView does.
func fleetChange() *control.Change {
	return &control.Change{
		Fleet: "prod", Generation: 8, Settings: true,
		Models: []control.ModelChange{
			{Name: "llama", Action: "roll", Fields: []string{"engine.args: --max-model-len 4096 → 8192", "replicas: 1-2 → 1-4"}},
			{Name: "tiny", Action: "create"},
			{Name: "elsewhere", Action: "unchanged"},
			{Name: "mixtral", Action: "remove"},
		},
		Warnings: []string{"model mixtral is removed: 1 replica stops"},
	}
}

// applying is a run whose fleet file is there and whose control plane begins the rollout when it is applied.
func applying(t *testing.T) *run {
	t.Helper()
	r := newRun()
	r.api.change = fleetChange()
	r.api.then = func(call string) {
		if !strings.HasPrefix(call, "apply dry=false") {
			return
		}
		r.api.showLocked(func(v *control.View) {
			v.Generation = 8
			v.Models[0].Revision, v.Models[0].Since, v.Models[0].Updated, v.Models[0].Wanted = "777", noon(), 0, 1
			v.Models = append(v.Models[:2:2], control.ModelStatus{Name: "tiny", Revision: "t1", Wanted: 1, Rollout: control.RolloutProgressing, Since: noon()})
			v.Replicas = append(v.Replicas, control.ReplicaStatus{Replica: mobula.Replica{
				ID: "llama-777-xk2p4", Model: "llama", Revision: "777", State: mobula.StateStarting, Hosts: []string{"gpu-1"}, Since: ago(40 * time.Second),
			}})
		})
	}
	return r
}

// settle has a model's rollout end, in this phase.
func settle(name string, phase control.Phase, reason string) func(v *control.View) {
	return func(v *control.View) {
		for i := range v.Models {
			if m := &v.Models[i]; m.Name == name {
				m.Rollout, m.Reason, m.Ready, m.Updated = phase, reason, m.Wanted, m.Wanted
			}
		}
	}
}

func gone(model string) func(v *control.View) {
	return func(v *control.View) {
		var left []control.ReplicaStatus
		for _, r := range v.Replicas {
			if r.Model != model {
				left = append(left, r)
			}
		}
		v.Replicas = left
	}
}

// start runs a command beside the test.
func (r *run) start(t *testing.T, args ...string) (stop func(), done <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	ended := make(chan error, 1)
	go func() { ended <- r.do(ctx, args...) }()
	return cancel, ended
}

func (r *run) waitFor(t *testing.T, text string) {
	t.Helper()
	eventually(t, text, func() bool { return strings.Contains(r.out.String(), text) })
}

func TestApplyShowsHowItComesTrue(t *testing.T) {
	writeFleet(t, fleetText)
	r := applying(t)
	_, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "llama: 0/1 ready replica llama-777-xk2p4 Starting on gpu-1")
	r.waitFor(t, "tiny: 0/1 ready")
	r.waitFor(t, "mixtral: waits until 1 replica is gone")
	r.api.show(settle("llama", control.RolloutComplete, ""))
	r.waitFor(t, "llama: 1/1 ready\n")
	r.api.show(gone("mixtral"))
	r.waitFor(t, "mixtral: removed done")
	r.api.show(settle("tiny", control.RolloutComplete, ""))
	golden(t, "apply-progress", r.all(<-done))
	require.Equal(t, fleetText, string(r.api.fleet))
}

func TestApplyOnATerminalDrawsInPlace(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	writeFleet(t, fleetText)
	r := applying(t)
	r.terminal = true
	_, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "llama    ░░░░░░░░░░░░  0/1 ready  replica llama-777-xk2p4 Starting on gpu-1, 40s\n")
	r.waitFor(t, "tiny     ░░░░░░░░░░░░  0/1 ready")
	r.api.show(settle("llama", control.RolloutComplete, ""))
	r.waitFor(t, "\x1b[3A\r\x1b[Jllama    ████████████  1/1 ready\n")
	r.api.show(settle("tiny", control.RolloutComplete, ""))
	r.api.show(gone("mixtral"))
	require.NoError(t, <-done)
	require.True(t, strings.HasSuffix(r.out.String(), "mixtral  ████████████             removed\ndone in 0s\n"), "%q", r.out.String())
}

func TestApplyThatFailsTellsWhy(t *testing.T) {
	writeFleet(t, fleetText)
	r := applying(t)
	_, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "tiny: 0/1 ready")
	r.api.show(gone("mixtral"))
	r.api.show(settle("tiny", control.RolloutComplete, ""))
	r.api.show(settle("llama", control.RolloutRolledBack, "replica llama-777-xk2p4: CUDA out of memory"))
	err := <-done
	require.EqualError(t, err, "llama: RolledBack: replica llama-777-xk2p4: CUDA out of memory")
	code, quiet := ExitCode(err)
	require.Equal(t, 1, code)
	require.False(t, quiet)
}

// TestApplyDoesNotTakeTheOldStateForTheNew has the view of before the apply say Complete.
func TestApplyDoesNotTakeTheOldStateForTheNew(t *testing.T) {
	writeFleet(t, fleetText)
	r := applying(t)
	r.api.view.Models[0].Rollout = control.RolloutComplete
	old := r.api.view.Models[0]
	r.api.then = func(string) {
		r.api.showLocked(func(v *control.View) {
			v.Generation, v.Models, v.Replicas = 8, []control.ModelStatus{old, {Name: "tiny", Rollout: control.RolloutComplete}}, nil
		})
	}
	_, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "llama: waits for the control plane")
	r.waitFor(t, "mixtral: removed done")
	r.api.show(func(v *control.View) { v.Models[0].Revision = "777" })
	require.NoError(t, <-done)
}

func TestApplyThatTakesTooLong(t *testing.T) {
	writeFleet(t, fleetText)
	synctest.Test(t, func(t *testing.T) {
		r := applying(t)
		err := r.do(t.Context(), "apply", "-f", "fleet.yaml")
		require.EqualError(t, err, "the apply is not complete within 30m: llama 0/1 ready replica llama-777-xk2p4 Starting on gpu-1; tiny 0/1 ready; mixtral waits until 1 replica is gone")
		require.Equal(t, "the apply stays in force; mobula get shows how it goes on", Hint(err))
	})
}

func TestCtrlCLeavesTheApplyInForce(t *testing.T) {
	writeFleet(t, fleetText)
	r := applying(t)
	stop, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "tiny: 0/1 ready")
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Contains(t, r.err.String(), "the apply stays in force")
}

func TestApplyOutlastsTheControlPlane(t *testing.T) {
	writeFleet(t, fleetText)
	r := applying(t)
	_, done := r.start(t, "apply", "-f", "fleet.yaml")
	r.waitFor(t, "tiny: 0/1 ready")
	r.api.fail(errors.New("connection refused"))
	r.api.show(func(*control.View) {})
	r.waitFor(t, "the control plane is away: connection refused")
	r.api.fail(nil)
	r.api.show(gone("mixtral"))
	r.api.show(settle("llama", control.RolloutComplete, ""))
	r.api.show(settle("tiny", control.RolloutComplete, ""))
	require.NoError(t, <-done)
}

func TestApplyFromStandardInput(t *testing.T) {
	r := newRun()
	r.api.change = fleetChange()
	r.stdin = strings.NewReader(fleetText)
	r.must(t, "apply", "-f", "-", "--wait=false", "--force")
	require.Equal(t, []string{"apply dry=false force=true"}, r.api.did())
	require.Equal(t, fleetText, string(r.api.fleet))
}

func TestApplyWithoutWaiting(t *testing.T) {
	for name, args := range map[string][]string{
		"dry-run": {"--dry-run"}, "no-wait": {"--wait=false"},
	} {
		t.Run(name, func(t *testing.T) {
			writeFleet(t, fleetText)
			r := applying(t)
			golden(t, "apply-"+name, r.all(r.do(t.Context(), append([]string{"apply", "-f", "fleet.yaml"}, args...)...))+"--- asked: "+strings.Join(r.api.did(), "; ")+"\n")
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		args []string
		err  error
		want string
		hint string
		code int
	}{
		"no file named":   {fleetText, []string{"apply"}, nil, "which fleet? give its file with -f", "", 2},
		"a missing file":  {fleetText, []string{"apply", "-f", "none.yaml"}, nil, "none.yaml: there is no such file", "docs/fleet.md shows a complete one; `mobula up` needs none", 1},
		"no timeout":      {fleetText, []string{"apply", "-f", "fleet.yaml", "--timeout", "0s"}, nil, "--timeout 0s: want more than 0", "", 2},
		"a file with bad": {strings.Replace(fleetText, "1-4", "4-1", 1), []string{"apply", "-f", "fleet.yaml"}, nil, "fleet.yaml:11:15: models[0].replicas: want a number of replicas such as 2 or a range such as 1-4, at most 1000, got \"4-1\"", "", 1},
		"a conflict": {
			fleetText,
			[]string{"apply", "-f", "fleet.yaml"},
			&client.Error{Status: 409, Code: "conflict", Message: "the fleet here is stage, not prod"},
			"the fleet here is stage, not prod", "see what it would do with: mobula diff -f fleet.yaml; if that is meant, --force does it", 1,
		},
		"what can't fit": {fleetText, []string{"apply", "-f", "fleet.yaml"}, &client.Error{Status: 422, Code: "impossible", Message: "llama does not fit on any host"}, "llama does not fit on any host", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			writeFleet(t, tc.text)
			r := newRun()
			r.api.err = tc.err
			err := r.do(t.Context(), tc.args...)
			require.EqualError(t, err, tc.want)
			require.Equal(t, tc.hint, Hint(err))
			code, _ := ExitCode(err)
			require.Equal(t, tc.code, code)
			require.Empty(t, r.api.fleet)
		})
	}
}

// TestApplySaysTheSameAsTheLoader: mobula validate prints the loader's message too.
func TestApplySaysTheSameAsTheLoader(t *testing.T) {
	file := writeFleet(t, "apiVersion: mobula/v2\nnope: 1\n")
	_, want := mobula.LoadFile(file)
	r := newRun()
	require.EqualError(t, r.do(t.Context(), "apply", "-f", file), want.Error())
}

func TestDiff(t *testing.T) {
	same := &control.Change{Models: []control.ModelChange{{Name: "llama", Action: "unchanged"}}}
	for name, tc := range map[string]struct {
		inForce string
		change  *control.Change
		err     error
	}{
		"changed":  {strings.Replace(fleetText, "1-4", "1-2", 1), fleetChange(), nil},
		"first":    {"", fleetChange(), nil},
		"same":     {fleetText, same, nil},
		"comments": {"# ours\n" + fleetText, same, nil},
		"refused":  {fleetText, same, &client.Error{Status: 401, Code: "unauthorized", Message: "wrong token"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRun()
			writeFleet(t, fleetText)
			r.api.change, r.api.err = tc.change, tc.err
			if tc.inForce != "" {
				r.api.fleet = []byte(tc.inForce)
			}
			golden(t, "diff-"+name, r.all(r.do(t.Context(), "diff", "-f", "fleet.yaml")))
		})
	}
}

func TestDiffOfABadFileIsNoDifference(t *testing.T) {
	writeFleet(t, "nope: 1\n")
	code, quiet := ExitCode(newRun().do(t.Context(), "diff", "-f", "fleet.yaml"))
	require.Equal(t, 2, code)
	require.False(t, quiet)
}

func TestWaitingCommands(t *testing.T) {
	roll := func(v *control.View) { v.Models[0].Revision, v.Models[0].Since = "888", noon() }
	for name, tc := range map[string]struct {
		args  []string
		said  string
		steps []func(*control.View)
	}{
		"restart":       {[]string{"restart", "llama", "--wait"}, "llama: waits for the control plane", []func(*control.View){roll, settle("llama", control.RolloutComplete, "")}},
		"rollback":      {[]string{"rollback", "gpt-4o-mini", "--wait"}, "llama: waits for the control plane", []func(*control.View){roll, settle("llama", control.RolloutComplete, "")}},
		"drain replica": {[]string{"drain", "llama-3fa9c1-aaaaa", "--wait"}, "llama-3fa9c1-aaaaa: llama-3fa9c1-aaaaa Ready, 12 in flight", []func(*control.View){gone("llama")}},
		"drain host":    {[]string{"drain", "host/gpu-2", "--wait"}, "gpu-2: llama-1b2c3d-bbbbb Draining, 1 in flight; llama-3fa9c1-xk2p4 Starting; mixtral-001122-ccccc Failed", []func(*control.View){gone("llama"), gone("mixtral")}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRun()
			_, done := r.start(t, tc.args...)
			r.waitFor(t, tc.said)
			for _, step := range tc.steps {
				r.api.show(step)
			}
			require.NoError(t, <-done)
			require.Contains(t, r.out.String(), "done in 0s")
		})
	}
}
