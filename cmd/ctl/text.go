package ctl

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"charm.land/lipgloss/v2"

	"github.com/mobula-serve/mobula"
)

// none stands for a value that there is not, so that columns stay countable for scripts.
const none = "-"

// clean gives s as one line without anything that would drive a terminal: escape sequences and control
// characters go, line ends and tabs become spaces, what is not UTF-8 becomes U+FFFD.
func clean(s string) string {
	if !strings.ContainsFunc(s, unprintable) && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\x1b':
			size = escapeSequence(s)
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case !unprintable(r):
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

// escapeSequence gives the length of the escape sequence that s begins with.
func escapeSequence(s string) int {
	if len(s) < 2 {
		return 1
	}
	switch s[1] {
	case '[': // CSI: parameters, then one final byte
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
			if s[i] < 0x20 || s[i] > 0x7e {
				return i
			}
		}
		return len(s)
	case ']': // OSC: text up to BEL or ST
		for i := 2; i < len(s); i++ {
			if s[i] == 7 {
				return i + 1
			}
			if s[i] == 0x1b {
				return min(i+2, len(s))
			}
			if s[i] == '\n' {
				return i
			}
		}
		return len(s)
	}
	if s[1] >= 0x30 && s[1] < 0x7f {
		return 2
	}
	return 1
}

// unprintable tells whether r is a control character of ASCII or Latin-1, a line separator, or one that turns
// the direction of what is written.
func unprintable(r rune) bool {
	switch {
	case r < ' ', r >= 0x7f && r < 0xa0:
		return true
	case r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
		return true
	}
	return false
}

// cut gives s in at most width columns, with an ellipsis when something is missing.
func cut(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if displayWidth(s) <= width {
		return s
	}
	used := 0
	for i, r := range s {
		w := displayWidth(string(r))
		if used+w > width-1 {
			return s[:i] + "…"
		}
		used += w
	}
	return s
}

// cutMiddle gives s in at most width columns; what is missing is missing before its last third.
func cutMiddle(s string, width int) string {
	if displayWidth(s) <= width {
		return s
	}
	tail, from := width/3, len(s)
	for from > 0 {
		_, size := utf8.DecodeLastRuneInString(s[:from])
		if displayWidth(s[from-size:]) > tail {
			break
		}
		from -= size
	}
	return cut(s, width-tail) + s[from:]
}

// displayWidth is how many columns s takes.
func displayWidth(s string) int {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return lipgloss.Width(s)
		}
	}
	return len(s)
}

// pad gives s filled up to width columns.
func pad(s string, width int, right bool) string {
	space := strings.Repeat(" ", max(0, width-displayWidth(s)))
	if right {
		return space + s
	}
	return s + space
}

// age gives d as 5s, 3m, 2h or 4d.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(max(0, d)/time.Second)) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 24*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

// since gives the age of t, none when it never was.
func (c *ctl) since(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return age(c.Now().Sub(t))
}

// seconds gives a latency as 350ms, 1.23s or 45s, none for 0.
func seconds(s float64) string {
	switch {
	case s <= 0:
		return none
	case s < 0.0095:
		return fmt.Sprintf("%.1fms", s*1000)
	case s < 0.9995:
		return fmt.Sprintf("%.0fms", s*1000)
	case s < 9.995:
		return fmt.Sprintf("%.2fs", s)
	}
	return fmt.Sprintf("%.0fs", s)
}

// percent gives a share as 42%, none when it is not known.
func percent(share float64) string {
	if share < 0 {
		return none
	}
	return fmt.Sprintf("%.0f%%", share*100)
}

// memory gives bytes as 80GiB or 512MiB.
func memory(s mobula.Size) string {
	if s >= 1<<30 {
		return strconv.FormatFloat(float64(s)/(1<<30), 'f', 0, 64) + "GiB"
	}
	return strconv.FormatFloat(float64(s)/(1<<20), 'f', 0, 64) + "MiB"
}

// rate gives a number a second.
func rate(perSecond float64) string {
	if perSecond >= 100 {
		return fmt.Sprintf("%.0f", perSecond)
	}
	return fmt.Sprintf("%.1f", perSecond)
}

// count gives "1 model", "2 models".
func count(n int, noun string) string {
	s := strconv.Itoa(n) + " " + noun
	if n != 1 {
		s += "s"
	}
	return s
}

// bar draws a share of 1 in width columns.
func bar(share float64, width int) string {
	full := int(min(max(share, 0), 1)*float64(width) + 0.5)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// list joins names, none for no names.
func list(names []string) string {
	if len(names) == 0 {
		return none
	}
	return strings.Join(names, ",")
}
