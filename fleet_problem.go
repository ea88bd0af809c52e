package mobula

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxProblems bounds how many problems of one file are told, maxShown how many characters of a bad value.
const (
	maxProblems = 20
	maxShown    = 60
)

// Problem is one thing that is wrong with a fleet file.
type Problem struct {
	// Line and Column count from 1; columns count characters.
	Line, Column int
	// Field is the path of the field, such as router.timeouts.connect, empty for the file as a whole.
	Field string
	// Message says what was expected and what was found.
	Message string
}

// String gives the problem as "12:7: router.timeouts.connect: want ...".
func (p Problem) String() string {
	s := strconv.Itoa(p.Line) + ":" + strconv.Itoa(p.Column) + ": "
	if p.Field != "" {
		s += p.Field + ": "
	}
	return s + p.Message
}

// FileError says what is wrong with a fleet file.
type FileError struct {
	// Name of the file, as it was given to Load.
	Name string
	// Problems in the order of the file, at least one.
	Problems []Problem
	// More tells that the file has further problems.
	More bool
}

// Error gives one line for each problem: "fleet.yaml:12:7: router.timeouts.connect: want ...".
func (e *FileError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Name + ":" + p.String())
	}
	if e.More {
		b.WriteString("\n" + e.Name + ": there are more problems; these are the first " + strconv.Itoa(len(e.Problems)))
	}
	return b.String()
}

// place is where something stands in a file.
type place struct{ line, column int }

// report collects the problems of one file, and where its fields stand.
type report struct {
	problems []Problem
	more     bool
	places   map[string]place // by field path
}

// add notes a problem at a place.
func (r *report) add(at place, field, format string, args ...any) {
	if len(r.problems) == maxProblems {
		r.more = true
		return
	}
	r.problems = append(r.problems, Problem{Line: at.line, Column: at.column, Field: field, Message: fmt.Sprintf(format, args...)})
}

// bad notes a problem with a field's value, unless something at, in or around the field was
// wrong already: then the value is not what the file says.
func (r *report) bad(field, format string, args ...any) {
	for _, p := range r.problems {
		if inside(p.Field, field) || inside(field, p.Field) {
			return
		}
	}
	r.add(r.find(field), field, format, args...)
}

// inside tells whether a field is another one or lies in it.
func inside(field, outer string) bool {
	rest, ok := strings.CutPrefix(field, outer)
	return ok && outer != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// find gives the place of a field or, when the file doesn't have it, of what it would be in.
func (r *report) find(field string) place {
	for {
		if at, ok := r.places[field]; ok {
			return at
		}
		if field == "" {
			return place{1, 1}
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
}

func (r *report) fileError(name string) *FileError {
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &FileError{Name: name, Problems: r.problems, More: r.more}
}

// quote shows a value of the file, shortened.
func quote(s string) string {
	if short := clip(s); len(short) < len(s) {
		return strconv.Quote(short) + "..."
	}
	return strconv.Quote(s)
}

// clip shortens a value of the file.
func clip(s string) string {
	if len(s) <= maxShown {
		return s
	}
	end := maxShown
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// join appends a key of the file to a field path; odd keys are quoted.
func join(path, key string) string {
	odd := func(c rune) bool {
		return !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("_-./", c)
	}
	if key == "" || len(key) > maxShown || strings.ContainsFunc(key, odd) {
		key = quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}
