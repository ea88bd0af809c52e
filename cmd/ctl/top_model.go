package ctl

import (
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/mobula-serve/mobula/control"
)

// Panes of top.
const (
	paneModels = iota
	paneReplicas
	paneHosts
	paneEvents
	paneCount
)

const (
	pageRows  = 10 // that page up and page down move by
	maxFilter = 64 // characters
)

// topModel is the state of top. Its methods are pure: they give a new one.
type topModel struct {
	colour        bool
	width, height int // height 0: no bound
	shown         topSight
	// held is what came while it was paused.
	held      *topSight
	awaySince time.Time
	pane      int
	cursor    [paneCount]int
	order     [paneCount]int
	filter    string
	typing    bool // the filter is being typed
	paused    bool
	failed    error
	rows      [paneCount]*table // of all that is above
}

func newTop(colour bool) topModel { return topModel{colour: colour, width: 80}.clamped() }

// see shows what is new, or keeps it for the end of the pause.
func (m topModel) see(s topSight) topModel {
	if m.paused {
		m.held = &s
		return m
	}
	switch {
	case s.away == nil:
		m.awaySince = time.Time{}
	case m.awaySince.IsZero():
		m.awaySince = s.now
	}
	m.shown, m.held = s, nil
	return m.clamped()
}

// clamped gives the rows anew, and keeps the cursors on some that there are.
func (m topModel) clamped() topModel {
	m.rows = m.tables()
	for pane, t := range m.rows {
		m.cursor[pane] = max(0, min(m.cursor[pane], len(t.rows)-1))
	}
	return m
}

// Init asks for nothing: what is new is sent.
func (m topModel) Init() tea.Cmd { return nil }

// Update gives the state after a message.
func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case topSight:
		return m.see(msg), nil
	case topError:
		m.failed = msg.error
		return m, tea.Quit
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		return m, nil
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Quit
		}
		if m.typing {
			return m.typed(msg), nil
		}
		if msg.String() == "q" {
			return m, tea.Quit
		}
		return m.pressed(msg.String()), nil
	}
	return m, nil
}

// typed edits the filter.
func (m topModel) typed(key tea.KeyPressMsg) topModel {
	switch key.String() {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(m.filter)
		m.filter = m.filter[:len(m.filter)-size]
	default:
		if text := clean(key.Key().Text); text != "" && utf8.RuneCountInString(m.filter) < maxFilter {
			m.filter += text
		}
	}
	return m.clamped()
}

// pressed moves about.
func (m topModel) pressed(key string) topModel {
	switch key {
	case "tab":
		m.pane = (m.pane + 1) % paneCount
	case "shift+tab":
		m.pane = (m.pane + paneCount - 1) % paneCount
	case "down", "j":
		m.cursor[m.pane]++
	case "up", "k":
		m.cursor[m.pane]--
	case "pgdown":
		m.cursor[m.pane] += pageRows
	case "pgup":
		m.cursor[m.pane] -= pageRows
	case "home", "g":
		m.cursor[m.pane] = 0
	case "end", "G":
		m.cursor[m.pane] = 1 << 30
	case "s":
		m.order[m.pane]++
	case "/":
		m.typing = true
	case "esc":
		m.filter = ""
	case "p", "space":
		m.paused = !m.paused
		if m.held != nil && !m.paused {
			return m.see(*m.held)
		}
	}
	return m.clamped()
}

// View draws the screen.
func (m topModel) View() tea.View {
	v := tea.NewView(strings.Join(m.frame(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "mobula top"
	return v
}

// view is never nil.
func (m topModel) view() *control.View {
	if m.shown.view == nil {
		return &control.View{}
	}
	return m.shown.view
}

var _ tea.Model = topModel{}
