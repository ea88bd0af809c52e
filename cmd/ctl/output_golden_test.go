package ctl

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

// TestOutput compares what commands print on a pipe with files.
func TestOutput(t *testing.T) {
	empty := func(f *fakeAPI) { f.view, f.events = &control.View{Version: 1}, nil }
	onRay := func(f *fakeAPI) { f.view, f.events = rayView(), nil }
	for name, tc := range map[string]struct {
		args   []string
		before func(*fakeAPI)
	}{
		"get":                      {args: []string{"get"}},
		"get-wide":                 {args: []string{"get", "-o", "wide"}},
		"get-json":                 {args: []string{"get", "-o", "json"}},
		"get-yaml":                 {args: []string{"get", "-o", "yaml"}},
		"get-name":                 {args: []string{"get", "-o", "name"}},
		"get-bad-output":           {args: []string{"get", "-o", "xml"}},
		"get-bad-kind":             {args: []string{"get", "pods"}},
		"get-model":                {args: []string{"get", "model", "gpt-4o-mini"}},
		"get-model-json":           {args: []string{"get", "model", "Qwen/Qwen2.5-0.5B", "-o", "json"}},
		"get-model-unknown":        {args: []string{"get", "models", "gemma"}},
		"get-replicas":             {args: []string{"get", "replicas"}},
		"get-replicas-no-headers":  {args: []string{"get", "replicas", "--no-headers"}},
		"get-replicas-of-model":    {args: []string{"get", "replicas", "mixtral", "-o", "wide"}},
		"get-hosts":                {args: []string{"get", "hosts"}},
		"get-hosts-wide":           {args: []string{"get", "hosts", "-o", "wide"}},
		"get-hosts-name":           {args: []string{"get", "hosts", "-o", "name"}},
		"get-loras":                {args: []string{"get", "loras"}},
		"get-loras-json":           {args: []string{"get", "loras", "-o", "json"}},
		"get-events":               {args: []string{"get", "events"}},
		"get-fleet":                {args: []string{"get", "fleet"}, before: func(f *fakeAPI) { f.fleet = []byte(fleetText) }},
		"get-fleet-json":           {args: []string{"get", "fleet", "-o", "json"}, before: func(f *fakeAPI) { f.fleet = []byte(fleetText) }},
		"get-fleet-none":           {args: []string{"get", "fleet"}},
		"get-stale":                {args: []string{"get", "models"}, before: func(f *fakeAPI) { f.view.Stale, f.view.StaleSince = "no answer", ago(90*1e9) }},
		"empty-get":                {args: []string{"get"}, before: empty},
		"empty-get-json":           {args: []string{"get", "-o", "json"}, before: empty},
		"empty-hosts":              {args: []string{"get", "hosts"}, before: empty},
		"empty-loras":              {args: []string{"get", "loras"}, before: empty},
		"empty-events":             {args: []string{"events"}, before: empty},
		"empty-top":                {args: []string{"top"}, before: empty},
		"ray-get":                  {args: []string{"get"}, before: onRay},
		"ray-get-replicas-wide":    {args: []string{"get", "replicas", "-o", "wide"}, before: onRay},
		"ray-get-hosts-wide":       {args: []string{"get", "hosts", "-o", "wide"}, before: onRay},
		"ray-describe-replica":     {args: []string{"describe", "llama-3fa9c1-aaaaa"}, before: onRay},
		"ray-describe-pending":     {args: []string{"describe", "llama-3fa9c1-bbbbb"}, before: onRay},
		"ray-describe-failed":      {args: []string{"describe", "llama-3fa9c1-ccccc"}, before: onRay},
		"ray-describe-host":        {args: []string{"describe", "10.77.0.2"}, before: onRay},
		"ray-describe-lost-host":   {args: []string{"describe", "10.77.0.3"}, before: onRay},
		"describe-model":           {args: []string{"describe", "llama"}},
		"describe-model-failed":    {args: []string{"describe", "model", "mixtral"}},
		"describe-replica":         {args: []string{"describe", "llama-3fa9c1-aaaaa"}},
		"describe-replica-pending": {args: []string{"describe", "replica/llama-3fa9c1-zzzzz"}},
		"describe-host":            {args: []string{"describe", "host", "gpu-2"}},
		"describe-unknown":         {args: []string{"describe", "nobody"}},
		"describe-ambiguous":       {args: []string{"describe", "gpu-1"}, before: func(f *fakeAPI) { f.view.Models[0].Name = "gpu-1" }},
		"events":                   {args: []string{"events"}},
		"events-json":              {args: []string{"events", "-o", "json"}},
		"events-name":              {args: []string{"events", "-o", "name"}},
		"scale":                    {args: []string{"scale", "llama", "2"}},
		"scale-auto":               {args: []string{"scale", "gpt-4o-mini", "auto"}},
		"scale-bad":                {args: []string{"scale", "llama", "many"}},
		"scale-all":                {args: []string{"scale", "--all", "0"}},
		"scale-both":               {args: []string{"scale", "llama", "0", "--all"}},
		"scale-what":               {args: []string{"scale", "0"}},
		"scale-auto-waits":         {args: []string{"scale", "llama", "auto", "--wait"}},
		"drain-replica":            {args: []string{"drain", "llama-3fa9c1-aaaaa"}},
		"drain-host":               {args: []string{"drain", "host/gpu-1"}},
		"drain-host-off":           {args: []string{"drain", "host/gpu-1", "--off"}},
		"drain-unknown":            {args: []string{"drain", "host/nowhere"}},
		"cordon":                   {args: []string{"cordon", "gpu-1"}},
		"cordon-off":               {args: []string{"cordon", "gpu-1", "--off"}},
		"forget":                   {args: []string{"forget", "gpu-3"}},
		"restart":                  {args: []string{"restart", "llama"}},
		"restart-all":              {args: []string{"restart", "--all"}},
		"restart-what":             {args: []string{"restart"}},
		"restart-both":             {args: []string{"restart", "llama", "--all"}},
		"rollback":                 {args: []string{"rollback", "llama"}},
		"delete-unasked":           {args: []string{"delete", "llama"}},
		"delete-yes":               {args: []string{"delete", "llama", "--yes"}},
		"delete-all":               {args: []string{"delete", "--all", "--yes"}},
		"token":                    {args: []string{"token"}},
		"top":                      {args: []string{"top"}},
		"refused": {args: []string{"scale", "llama", "9"}, before: func(f *fakeAPI) {
			f.err = &client.Error{Status: 400, Code: "invalid", Message: "9 is\x1b[2J outside of 1-4"}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRun()
			if tc.before != nil {
				tc.before(r.api)
			}
			err := r.do(t.Context(), tc.args...)
			text := r.all(err)
			if calls := r.api.did(); len(calls) > 0 {
				text += "--- asked: " + strings.Join(calls, "; ") + "\n"
			}
			golden(t, name, text)
		})
	}
}

// TestTerminalOutput compares what commands print on a terminal, colours and all.
func TestTerminalOutput(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	for name, args := range map[string][]string{
		"terminal-get":      {"get"},
		"terminal-describe": {"describe", "llama"},
		"terminal-events":   {"events"},
		"terminal-once":     {"top", "--once"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRun()
			r.terminal, r.width = true, 90
			golden(t, name, strings.ReplaceAll(r.must(t, args...), "\x1b", "^["))
		})
	}
}

func TestNoColourIsAsked(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	r := newRun()
	r.terminal = true
	require.NotContains(t, r.must(t, "get"), "\x1b")
}

func TestHelp(t *testing.T) {
	for _, cmd := range newRun().root().Commands() {
		t.Run(cmd.Name(), func(t *testing.T) {
			r := newRun()
			golden(t, "help/"+cmd.Name(), r.must(t, cmd.Name(), "--help"))
			require.NotEmpty(t, cmd.Example)
			require.NotContains(t, strings.TrimSuffix(cmd.Short, "."), ". ")
		})
	}
}

// TestGoldenFilesAreUsed finds files of tests that are no more.
func TestGoldenFilesAreUsed(t *testing.T) {
	src, err := os.ReadFile("output_golden_test.go")
	require.NoError(t, err)
	files, err := os.ReadDir("testdata")
	require.NoError(t, err)
	for _, f := range files {
		name, isText := strings.CutSuffix(f.Name(), ".txt")
		if isText && !strings.HasPrefix(name, "frame-") && !strings.HasPrefix(name, "apply-") && !strings.HasPrefix(name, "diff-") {
			require.Contains(t, string(src), `"`+name+`"`)
		}
	}
}

// TestNothingFromTheServerDrivesTheTerminal puts control characters into every string of the view and looks for
// them in what every command prints.
func TestNothingFromTheServerDrivesTheTerminal(t *testing.T) {
	const evil = "x\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eend\x00\x7f"
	t.Setenv("NO_COLOR", "1")
	for _, args := range [][]string{
		{"get"},
		{"get", "-o", "wide"},
		{"get", "hosts", "-o", "wide"},
		{"get", "loras"},
		{"get", "-o", "json"},
		{"get", "-o", "yaml"},
		{"get", "-o", "name"},
		{"get", "hosts", "-o", "name"},
		{"events"},
		{"events", "-o", "json"},
		{"events", "-o", "yaml"},
		{"events", "-o", "name"},
		{"top", "--once"},
		{"describe", "model", evil},
		{"describe", "replica", evil},
		{"describe", "host", evil},
		{"describe", "nobody"},
		{"scale", evil, "1"},
		{"drain", "host/" + evil},
		{"restart", evil},
		{"rollback", evil},
		{"forget", evil},
		{"delete", "--all", "--yes"},
		{"logs", evil},
		{"get", "fleet"},
		{"__complete", "scale", ""},
	} {
		t.Run(strings.Join(args[:min(2, len(args))], "-"), func(t *testing.T) {
			r := newRun()
			r.terminal, r.width = true, 200
			v := r.api.view
			v.Fleet, v.Stale = evil, evil
			for i := range v.Models {
				m := &v.Models[i]
				m.Name, m.Source, m.Reason, m.ScaleReason, m.Revision, m.Previous, m.Aliases = evil, evil, evil, evil, evil, evil, []string{evil}
				m.Rollout = evil
				for j := range m.LoRAs {
					m.LoRAs[j] = control.LoRAStatus{Name: evil, Source: evil, Error: evil, Loaded: []string{evil}}
				}
			}
			for i := range v.Replicas {
				p := &v.Replicas[i]
				p.ID, p.Model, p.Revision, p.Reason, p.URL, p.Detail = evil, evil, evil, evil, evil, evil
				p.Hosts, p.Devices, p.LoRAs, p.State = []string{evil}, []string{evil}, []string{evil}, evil
				if p.Load != nil {
					p.Load.State, p.Load.Reason = evil, evil
				}
			}
			for i := range v.Hosts {
				h := &v.Hosts[i]
				h.Name, h.Address, h.Silent, h.Version, h.Labels = evil, evil, evil, evil, map[string]string{evil: evil}
				for j := range h.Devices {
					h.Devices[j].ID, h.Devices[j].Name, h.Devices[j].Unhealthy, h.Devices[j].Group = evil, evil, evil, evil
				}
			}
			for i := range r.api.events {
				r.api.events[i].Object, r.api.events[i].Reason, r.api.events[i].Message = "model/"+evil, evil, evil
			}
			r.api.logs[evil], r.api.fleet = evil+"\n"+evil, []byte("# "+evil+"\n")
			err := r.do(t.Context(), args...)
			require.NotContains(t, r.all(err), "panic")
			for i, c := range r.all(err) {
				if c != '\n' && unprintable(c) {
					t.Fatalf("%q drives the terminal: …%q…", c, r.all(err)[max(0, i-30):i+5])
				}
			}
		})
	}
}

func TestErrorsOfTheControlPlaneAreKept(t *testing.T) {
	r := newRun()
	r.api.err = &client.Error{Status: 401, Code: "unauthorized", Message: "wrong\x1b token"}
	err := r.do(t.Context(), "get")
	require.EqualError(t, err, "wrong token")
	require.True(t, hasCode(err, "unauthorized"))
	code, quiet := ExitCode(err)
	require.Equal(t, 1, code)
	require.False(t, quiet)
}

func TestCancelledCommandsGiveTheContextsError(t *testing.T) {
	for _, args := range [][]string{{"get", "-w"}, {"get", "replicas", "-w"}, {"events", "-w"}, {"logs", "llama", "-f"}, {"logs", "llama-3fa9c1-aaaaa", "-f"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			r := newRun()
			for _, p := range r.api.view.Replicas {
				r.api.logs[p.ID] = "a line\n"
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- r.do(ctx, args...) }()
			eventually(t, "output", func() bool { return r.out.String() != "" })
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
		})
	}
}
