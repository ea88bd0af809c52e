package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
)

func richTop(width, height int) topModel {
	m := newTop(false)
	m.width, m.height = width, height
	return m.see(topSight{sight{view: richView()}, richEvents(), noon()})
}

// press gives the keys of a word, or one key by its name.
func press(m topModel, keys ...string) topModel {
	named := map[string]tea.Key{
		"tab": {Code: tea.KeyTab}, "shift+tab": {Code: tea.KeyTab, Mod: tea.ModShift}, "enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "backspace": {Code: tea.KeyBackspace},
		"up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown}, "pgup": {Code: tea.KeyPgUp}, "pgdown": {Code: tea.KeyPgDown}, "home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd},
	}
	for _, name := range keys {
		key, ok := named[name]
		if !ok {
			r, _ := utf8.DecodeRuneInString(name)
			key = tea.Key{Code: r, Text: name}
		}
		next, _ := m.Update(tea.KeyPressMsg(key))
		m = next.(topModel)
	}
	return m
}

func TestTopFrames(t *testing.T) {
	away := topSight{sight{view: richView(), away: errors.New("dial tcp 127.0.0.1:8100: connect: connection refused")}, richEvents(), noon()}
	away.view.Stale, away.view.StaleSince = "no agent answers", ago(3*time.Minute)
	later := away
	later.now = noon().Add(75 * time.Second)
	for name, m := range map[string]topModel{
		"frame-80x24":    richTop(80, 24),
		"frame-160x50":   richTop(160, 50),
		"frame-60x10":    richTop(60, 10),
		"frame-replicas": press(richTop(120, 24), "tab", "s", "j", "j"),
		"frame-events":   press(richTop(100, 16), "shift+tab", "G"),
		"frame-filter":   press(richTop(100, 30), "/", "g", "p", "u", "-", "2", "enter"),
		"frame-typing":   press(richTop(100, 30), "/", "l", "x", "backspace", "l", "a"),
		"frame-paused":   press(richTop(100, 30), "p").see(away),
		"frame-away":     richTop(100, 30).see(away).see(later),
		"frame-empty":    newTop(false).see(topSight{sight{view: &control.View{}}, nil, noon()}).sized(80, 24),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name, strings.Join(m.frame(), "\n")+"\n")
		})
	}
}

func (m topModel) sized(width, height int) topModel {
	next, _ := m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	return next.(topModel)
}

func TestTopKeys(t *testing.T) {
	m := richTop(80, 24)
	require.Equal(t, paneEvents, press(m, "shift+tab").pane)
	require.Equal(t, paneModels, press(m, "tab", "tab", "tab", "tab").pane)
	require.Equal(t, 2, press(m, "down", "j", "down", "j").cursor[paneModels], "it stays on the last row")
	require.Equal(t, 0, press(m, "j", "up", "k").cursor[paneModels])
	require.Equal(t, 4, press(m, "tab", "pgdown").cursor[paneReplicas])
	require.Equal(t, 0, press(m, "tab", "end", "pgup").cursor[paneReplicas])
	require.Equal(t, 0, press(m, "tab", "end", "home").cursor[paneReplicas])
	require.Equal(t, "missing", press(m, "s").orderName(paneModels))
	require.Equal(t, "name", press(m, "s", "s", "s", "s", "s", "s").orderName(paneModels), "it goes round")
	require.Equal(t, "utilization", press(m, "tab", "tab", "s").orderName(paneHosts))
	require.Empty(t, press(m, "/", "x", "esc").filter)
	require.Equal(t, "q", press(m, "/", "q").filter, "while it is typed q is a letter")
	require.Empty(t, press(m, "/", "q", "enter", "esc").filter)
	require.False(t, press(m, "p", "p").paused)
}

func TestTopLeaves(t *testing.T) {
	for name, msg := range map[string]tea.Msg{
		"q": tea.KeyPressMsg{Code: 'q', Text: "q"}, "ctrl+c": tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl}, "failed": topError{io.EOF},
	} {
		_, cmd := richTop(80, 24).Update(msg)
		require.NotNil(t, cmd, name)
		require.Equal(t, tea.QuitMsg{}, cmd(), name)
	}
	typing := press(richTop(80, 24), "/")
	_, cmd := typing.Update(tea.KeyPressMsg{Code: 'c', Mod: tea.ModCtrl})
	require.NotNil(t, cmd)
}

func TestTopShowsWhatCameWhilePaused(t *testing.T) {
	m := press(richTop(80, 24), "p")
	v := richView()
	v.Fleet = "other"
	m = m.see(topSight{sight{view: v}, nil, noon()})
	require.Equal(t, "prod", m.view().Fleet)
	require.Equal(t, "other", press(m, "p").view().Fleet)
}

func TestTopSorts(t *testing.T) {
	first := func(m topModel, pane int) string { return m.rows[pane].rows[0][0].text }
	m := richTop(120, 40)
	for presses, want := range []string{"Qwen/Qwen2.5-0.5B", "llama", "llama", "Qwen/Qwen2.5-0.5B", "llama", "llama"} {
		require.Equal(t, want, first(press(m, strings.Split(strings.Repeat("s", presses), "")...), paneModels), presses)
	}
	m = press(m, "tab")
	for presses, want := range []string{"llama-1b2c3d-bbbbb", "mixtral-001122-ccccc", "llama-3fa9c1-aaaaa", "llama-3fa9c1-aaaaa", "llama-1b2c3d-bbbbb", "llama-3fa9c1-zzzzz"} {
		require.Equal(t, want, first(press(m, strings.Split(strings.Repeat("s", presses), "")...), paneReplicas), presses)
	}
}

// TestTopFitsAnyScreen presses keys at random on screens of any size.
func TestTopFitsAnyScreen(t *testing.T) {
	keys := []string{"tab", "shift+tab", "up", "down", "pgup", "pgdown", "home", "end", "s", "p", "/", "g", "esc", "enter", "backspace", "é", "日"}
	rapid.Check(t, func(t *rapid.T) {
		m := richTop(80, 24)
		m.colour = rapid.Bool().Draw(t, "colour")
		for range rapid.IntRange(0, 12).Draw(t, "steps") {
			m = press(m, rapid.SampledFrom(keys).Draw(t, "key"))
			if rapid.IntRange(0, 3).Draw(t, "new") == 0 {
				v := richView()
				v.Replicas = v.Replicas[:rapid.IntRange(0, len(v.Replicas)).Draw(t, "replicas")]
				m = m.see(topSight{sight{view: v}, richEvents()[:rapid.IntRange(0, 5).Draw(t, "events")], noon()})
			}
			m = m.sized(rapid.IntRange(1, 200).Draw(t, "width"), rapid.IntRange(1, 60).Draw(t, "height"))
			frame := m.frame()
			if len(frame) != m.height {
				t.Fatalf("%d lines on a screen of %d", len(frame), m.height)
			}
			for _, line := range frame {
				if w := lipgloss.Width(line); w > m.width {
					t.Fatalf("%q is %d wide on a screen of %d", line, w, m.width)
				}
			}
		}
	})
}

// topRun runs top on a terminal that is a pipe.
func topRun(t *testing.T, f *fakeAPI) (out *output, keys io.Writer, stop func(), done <-chan error) {
	t.Helper()
	t.Setenv("TERM", "xterm-256color")
	in, keyboard := io.Pipe()
	out = &output{}
	c := newCtl(Options{
		Client: func() (client.API, error) { return f, nil }, Stdin: in, Stdout: out, Stderr: io.Discard, Now: noon,
		IsTerminal: func(any) bool { return true }, Size: func() (int, int) { return 100, 30 },
	})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(func() { cancel(); _ = in.Close() })
	ended := make(chan error, 1)
	go func() { ended <- c.top(ctx) }()
	return out, keyboard, cancel, ended
}

func TestTopRuns(t *testing.T) {
	f := newFake()
	out, keys, _, done := topRun(t, f)
	eventually(t, "the first frame", func() bool { return strings.Contains(out.String(), "fleet prod") })
	f.show(func(v *control.View) { v.Models[0].Name = "newcomer" })
	eventually(t, "the next view", func() bool { return strings.Contains(out.String(), "newcomer") })
	_, err := fmt.Fprint(keys, "q")
	require.NoError(t, err)
	require.NoError(t, <-done)
}

func TestTopEndsWithItsContext(t *testing.T) {
	out, _, stop, done := topRun(t, newFake())
	eventually(t, "the first frame", func() bool { return strings.Contains(out.String(), "fleet prod") })
	stop()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestTopEndsWhenItIsRefused(t *testing.T) {
	f := newFake()
	out, _, _, done := topRun(t, f)
	eventually(t, "the first frame", func() bool { return strings.Contains(out.String(), "fleet prod") })
	f.fail(errors.New("connection refused"))
	eventually(t, "the warning", func() bool { return strings.Contains(out.String(), "connection refused") })
	f.fail(&client.Error{Status: 403, Code: "unauthorized", Message: "no"})
	require.EqualError(t, <-done, "no")
}

func BenchmarkTopFrame(b *testing.B) {
	v := richView()
	for i := range 10000 {
		r := v.Replicas[i%5]
		r.ID = fmt.Sprintf("%s-%d", r.ID, i)
		v.Replicas = append(v.Replicas, r)
	}
	for i := range 1000 {
		h := v.Hosts[i%3]
		h.Name = fmt.Sprintf("%s-%d", h.Name, i)
		v.Hosts = append(v.Hosts, h)
	}
	m := newTop(true)
	m.width, m.height = 160, 50
	m = m.see(topSight{sight{view: v}, richEvents(), noon()})
	b.ReportAllocs()
	for b.Loop() {
		m.frame()
	}
}
