package ctl

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

const (
	diffContext = 3
	// maxEdits bounds the search for a shortest difference: beyond it all is shown as replaced.
	maxEdits = 1000
)

// edit is a line that both have (' '), or that only the old ('-') or the new ('+') has.
type edit struct {
	op   byte
	line string
}

// unified gives the difference of two texts as `diff -u` writes it, nothing when they are equal.
func unified(before, after, oldName, newName string) []string {
	if before == after {
		return nil
	}
	edits := difference(textLines(before), textLines(after))
	out := []string{"--- " + oldName, "+++ " + newName}
	oldLine, newLine := 1, 1
	for i := 0; i < len(edits); {
		if edits[i].op == ' ' {
			oldLine++
			newLine++
			i++
			continue
		}
		begin := max(0, i-diffContext)
		end := hunkEnd(edits, i)
		lead := i - begin
		hunk := edits[begin:end]
		dels, adds := 0, 0
		for _, e := range hunk {
			if e.op != '+' {
				dels++
			}
			if e.op != '-' {
				adds++
			}
		}
		out = append(out, fmt.Sprintf("@@ -%s +%s @@", hunkRange(oldLine-lead, dels), hunkRange(newLine-lead, adds)))
		for _, e := range hunk {
			out = append(out, string(e.op)+e.line)
		}
		oldLine += dels - lead
		newLine += adds - lead
		i = end
	}
	return out
}

func hunkRange(line, n int) string {
	if n == 0 {
		line--
	}
	if n == 1 {
		return strconv.Itoa(line)
	}
	return fmt.Sprintf("%d,%d", line, n)
}

// hunkEnd gives the end of the hunk that begins with the change at i: changes that are near share one.
func hunkEnd(edits []edit, i int) int {
	last := i
	for j := i; j < len(edits) && j-last <= 2*diffContext; j++ {
		if edits[j].op != ' ' {
			last = j
		}
	}
	return min(len(edits), last+1+diffContext)
}

// textLines gives the lines of a text. A last line without an end gets the mark of `diff -u`.
func textLines(s string) []string {
	if s == "" {
		return nil
	}
	lines := strings.Split(s, "\n")
	if lines[len(lines)-1] == "" {
		return lines[:len(lines)-1]
	}
	lines[len(lines)-1] += " (no line end)"
	return lines
}

// difference gives a shortest way from a to b.
func difference(a, b []string) []edit {
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	edits := make([]edit, 0, len(a)+len(b)-head-tail)
	for _, line := range a[:head] {
		edits = append(edits, edit{' ', line})
	}
	edits = append(edits, shortest(a[head:len(a)-tail], b[head:len(b)-tail])...)
	for _, line := range a[len(a)-tail:] {
		edits = append(edits, edit{' ', line})
	}
	return edits
}

// shortest is Myers' greedy algorithm: furthest[k] is how far into a the diagonal k (of a minus b) is reached.
func shortest(a, b []string) []edit {
	most := min(len(a)+len(b), maxEdits)
	furthest := make([]int, 2*most+2)
	at := func(k int) int { return k + most }
	var trace [][]int
	for d := 0; d <= most; d++ {
		trace = append(trace, slices.Clone(furthest[at(-d):at(d)+1]))
		for k := -d; k <= d; k += 2 {
			x := 0
			switch {
			case d == 0:
			case k == -d || k != d && furthest[at(k-1)] < furthest[at(k+1)]:
				x = furthest[at(k+1)]
			default:
				x = furthest[at(k-1)] + 1
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			furthest[at(k)] = x
			if x >= len(a) && x-k >= len(b) {
				return backtrack(a, b, trace, d)
			}
		}
	}
	edits := make([]edit, 0, len(a)+len(b))
	for _, line := range a {
		edits = append(edits, edit{'-', line})
	}
	for _, line := range b {
		edits = append(edits, edit{'+', line})
	}
	return edits
}

// backtrack follows the trace from the end; trace[d] holds the diagonals -d to d as they were before round d.
func backtrack(a, b []string, trace [][]int, d int) []edit {
	var edits []edit
	x, y := len(a), len(b)
	for ; d > 0; d-- {
		before := func(k int) int { return trace[d][k+d] }
		k := x - y
		added := k == -d || k != d && before(k-1) < before(k+1)
		from, change := k-1, edit{op: '-'}
		if added {
			from, change = k+1, edit{op: '+'}
		}
		fromX, fromY := before(from), before(from)-from
		start := fromX // where the lines in common begin, after the change
		if added {
			change.line = b[fromY]
		} else {
			change.line = a[fromX]
			start++
		}
		for ; x > start; x-- {
			edits = append(edits, edit{' ', a[x-1]})
		}
		edits = append(edits, change)
		x, y = fromX, fromY
	}
	for ; x > 0; x-- {
		edits = append(edits, edit{' ', a[x-1]})
	}
	slices.Reverse(edits)
	return edits
}
