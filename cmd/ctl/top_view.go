package ctl

import (
	"fmt"
	"strings"

	"charm.land/lipgloss/v2"

	"github.com/mobula-serve/mobula"
)

// minRows is how many rows the panes have together at least; on a lower screen only one pane is shown.
const minRows = 4

// frame gives the lines of the screen, none wider than it is.
func (m topModel) frame() []string {
	lines := []string{m.title()}
	lines = append(lines, m.warnings()...)
	tables := m.rows
	panes := []int{paneModels, paneReplicas, paneHosts, paneEvents}
	room := 1 << 30
	if m.height > 0 {
		room = m.height - len(lines) - 1 - overhead(panes)
		if room < minRows {
			panes = []int{m.pane}
			room = m.height - len(lines) - 1 - overhead(panes)
		}
	}
	rows := m.share(tables, panes, room)
	for _, pane := range panes {
		lines = append(lines, m.drawPane(pane, tables[pane], rows[pane])...)
	}
	if m.height > 0 {
		for len(lines) < m.height-1 {
			lines = append(lines, "")
		}
		lines = append(lines[:max(0, min(len(lines), m.height-1))], m.footer())
	}
	for i, line := range lines {
		if displayWidth(line) > m.width {
			lines[i] = lipgloss.NewStyle().MaxWidth(max(1, m.width)).Render(line)
		}
	}
	return lines
}

// overhead is how many lines of panes are not rows: a title each, and a header but for events.
func overhead(panes []int) int {
	n := 0
	for _, pane := range panes {
		n++
		if pane != paneEvents {
			n++
		}
	}
	return n
}

// share gives the panes rows in turn, the one that is looked at first, as long as they have any to show.
func (m topModel) share(tables [paneCount]*table, panes []int, room int) [paneCount]int {
	var rows [paneCount]int
	for room > 0 {
		given := false
		for i := range panes {
			pane := panes[(i+m.first(panes))%len(panes)]
			if room > 0 && rows[pane] < len(tables[pane].rows) {
				rows[pane]++
				room--
				given = true
			}
		}
		if !given {
			break
		}
	}
	return rows
}

func (m topModel) first(panes []int) int {
	for i, pane := range panes {
		if pane == m.pane {
			return i
		}
	}
	return 0
}

func (m topModel) paint(code, s string) string { return paint(m.colour, code, s) }

func (m topModel) title() string {
	v := m.view()
	ready := 0
	for i := range v.Replicas {
		if v.Replicas[i].State == mobula.StateReady {
			ready++
		}
	}
	name := "no fleet"
	if v.Fleet != "" {
		name = fmt.Sprintf("fleet %s generation %d", clean(v.Fleet), v.Generation)
	}
	left := m.paint(strong, name) + fmt.Sprintf("  %d/%d replicas ready  %s  %s",
		ready, len(v.Replicas), count(len(v.Hosts), "host"), count(len(v.Routers), "router"))
	if m.height == 0 {
		return left
	}
	right := m.shown.now.Format("15:04:05")
	if m.paused {
		right = m.paint(yellow, "PAUSED") + " " + right
	}
	return left + strings.Repeat(" ", max(1, m.width-displayWidth(left)-displayWidth(right))) + right
}

// warnings tell what makes the rest old.
func (m topModel) warnings() []string {
	var lines []string
	if m.shown.away != nil {
		lines = append(lines, m.paint(red, cut("the control plane is away for "+m.ago(m.awaySince)+": "+clean(m.shown.away.Error()), m.width)))
	}
	if v := m.view(); v.Stale != "" {
		lines = append(lines, m.paint(yellow, cut("the platform can't be asked for "+m.ago(v.StaleSince)+": "+clean(v.Stale), m.width)))
	}
	return lines
}

// drawPane gives a pane's title, its header and those of its rows that are around the cursor.
func (m topModel) drawPane(pane int, t *table, rows int) []string {
	name := [paneCount]string{"models", "replicas", "hosts", "events"}[pane]
	focused := pane == m.pane && m.height > 0
	start := max(0, min(m.cursor[pane]-rows/2, len(t.rows)-rows))
	label := fmt.Sprintf("%s %d", name, len(t.rows))
	if rows < len(t.rows) {
		label = fmt.Sprintf("%s %d-%d of %d", name, start+1, start+rows, len(t.rows))
	}
	if order := m.orderName(pane); order != "" && m.height > 0 {
		label += " by " + order
	}
	code := dim
	if focused {
		code = cyan
	}
	rule := "── " + label + " "
	lines := []string{m.paint(code, rule+strings.Repeat("─", max(0, m.width-displayWidth(rule))))}
	widths := t.fit(t.widths(false), max(1, m.width-2))
	if pane != paneEvents {
		lines = append(lines, "  "+t.head(widths, m.colour))
	}
	for i := start; i < start+rows; i++ {
		gutter := "  "
		if focused && i == m.cursor[pane] {
			gutter = m.paint(cyan, "› ")
		}
		lines = append(lines, gutter+t.line(t.rows[i], widths, m.colour))
	}
	return lines
}

func (m topModel) footer() string {
	if m.typing {
		return "/" + m.filter + "▏  enter keeps it, esc clears it"
	}
	help := "q quit  tab pane  ↑↓ move  s sort  p pause  / filter"
	if m.paused {
		help = strings.Replace(help, "p pause", "p go on", 1)
	}
	if m.filter != "" {
		help += ": " + m.filter + "  esc clear"
	}
	return m.paint(dim, cut(help, m.width))
}
