package ctl

import (
	"slices"
	"strings"
)

// minFlex is how wide a flexible column stays unless it says otherwise.
const minFlex = 8

// column is a column of a table.
type column struct {
	name  string
	right bool // numbers stand at the right
	// flex columns are cut when the terminal is too narrow; then those with drop go, the highest first.
	// A flexible column keeps least, or minFlex. In names the middle is cut: they differ at the end.
	flex  bool
	least int
	drop  int
	// clock columns change with time alone.
	clock bool
}

func (c column) floor() int { return max(c.least, minFlex) }

// cell is clean text and its SGR code.
type cell struct{ text, code string }

// table is rows in columns that are aligned by display width.
type table struct {
	columns []column
	rows    [][]cell
	gap     string
	least   []int // widths that columns have at least
}

func newTable(columns ...column) *table { return &table{columns: columns, gap: "   "} }

// add adds a row. Cells are strings or cell values; empty ones become none but in the last column.
func (t *table) add(cells ...any) {
	row := make([]cell, len(cells))
	for i, v := range cells {
		switch v := v.(type) {
		case cell:
			row[i] = cell{clean(v.text), v.code}
		case string:
			row[i].text = clean(v)
		}
		if row[i].text == "" && i < len(cells)-1 {
			row[i].text = none
		}
	}
	t.rows = append(t.rows, row)
}

// lines gives the header, unless bare, and the rows, in at most width columns (0: any number).
func (t *table) lines(width int, bare, colour bool) []string {
	widths := t.fit(t.widths(bare), width)
	var out []string
	if !bare {
		out = append(out, t.head(widths, colour))
	}
	for _, row := range t.rows {
		out = append(out, t.line(row, widths, colour))
	}
	return out
}

// String gives the table as plain text of any width.
func (t *table) String() string { return joined(t.lines(0, false, false)) }

// joined gives lines as text.
func joined(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func (t *table) head(widths []int, colour bool) string {
	row := make([]cell, len(t.columns))
	for i, c := range t.columns {
		row[i] = cell{c.name, dim}
	}
	return t.line(row, widths, colour)
}

func (t *table) line(row []cell, widths []int, colour bool) string {
	last := len(row) - 1
	for last > 0 && (widths[last] < 0 || row[last].text == "") {
		last--
	}
	var b strings.Builder
	for i, c := range row[:last+1] {
		if widths[i] < 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(t.gap)
		}
		text := cut(c.text, widths[i])
		if t.columns[i].name == "NAME" {
			text = cutMiddle(c.text, widths[i])
		}
		painted := paint(colour, c.code, text)
		space := strings.Repeat(" ", max(0, widths[i]-displayWidth(text)))
		switch {
		case t.columns[i].right:
			b.WriteString(space + painted)
		case i == last:
			b.WriteString(painted)
		default:
			b.WriteString(painted + space)
		}
	}
	return b.String()
}

// widths are the columns' natural ones.
func (t *table) widths(bare bool) []int {
	widths := make([]int, len(t.columns))
	copy(widths, t.least)
	for i, c := range t.columns {
		if !bare {
			widths[i] = max(widths[i], displayWidth(c.name))
		}
		for _, row := range t.rows {
			widths[i] = max(widths[i], displayWidth(row[i].text))
		}
	}
	return widths
}

// fit takes columns away (-1) and makes others narrower until they fit width.
func (t *table) fit(widths []int, width int) []int {
	if width <= 0 {
		return widths
	}
	for {
		over := t.total(widths) - width
		if over <= 0 {
			return widths
		}
		shrinkable := 0
		for i, c := range t.columns {
			if c.flex && widths[i] > c.floor() {
				shrinkable += widths[i] - c.floor()
			}
		}
		worst := -1
		for i, c := range t.columns {
			if c.drop > 0 && widths[i] >= 0 && (worst < 0 || c.drop > t.columns[worst].drop) {
				worst = i
			}
		}
		if shrinkable < over && worst >= 0 {
			widths[worst] = -1
			continue
		}
		t.shrink(widths, over)
		return widths
	}
}

// shrink takes over columns from the flexible ones, always from the widest.
func (t *table) shrink(widths []int, over int) {
	for ; over > 0; over-- {
		widest := -1
		for i, c := range t.columns {
			if c.flex && widths[i] > c.floor() && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

func (t *table) total(widths []int) int {
	sum, shown := 0, 0
	for _, w := range widths {
		if w >= 0 {
			sum += w
			shown++
		}
	}
	return sum + max(0, shown-1)*len(t.gap)
}

// keys gives for each row what does not change with time alone.
func (t *table) keys() []string {
	keys := make([]string, len(t.rows))
	for i, row := range t.rows {
		var parts []string
		for j, c := range row {
			if !t.columns[j].clock {
				parts = append(parts, c.text)
			}
		}
		keys[i] = strings.Join(parts, "\x00")
	}
	return keys
}

// only gives the table with some of its rows, as wide as with all.
func (t *table) only(keep func(i int) bool) *table {
	some := &table{columns: t.columns, gap: t.gap, least: t.widths(false)}
	for i, row := range t.rows {
		if keep(i) {
			some.rows = append(some.rows, slices.Clone(row))
		}
	}
	return some
}
