package ctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mobula-serve/mobula/control/client"
)

// Exit codes of the commands.
const (
	exitFailed = 1
	exitUsage  = 2
)

// UsageError is a command line that can't be meant.
type UsageError struct{ error }

// Unwrap gives the error itself.
func (e *UsageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// StatusError is an exit code that is an answer, as of mobula diff. Err is nil when there is nothing to print.
type StatusError struct {
	Code int
	Err  error
}

func (e *StatusError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap gives what is to be printed, if anything.
func (e *StatusError) Unwrap() error { return e.Err }

// ExitCode gives the exit code of what a command returned: 0, 1 when it failed, 2 when its command line is
// wrong, or what the command says. quiet tells that there is nothing to print.
func ExitCode(err error) (code int, quiet bool) {
	if err == nil {
		return 0, true
	}
	if e, ok := errors.AsType[*StatusError](err); ok {
		return e.Code, e.Err == nil
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return exitUsage, false
	}
	return exitFailed, false
}

// hintedError is an error with a line on what to do about it.
type hintedError struct {
	error
	hint string
}

// Unwrap gives the error without the hint.
func (e *hintedError) Unwrap() error { return e.error }

func hinted(err error, format string, args ...any) error {
	return &hintedError{err, fmt.Sprintf(format, args...)}
}

// Hint gives the line on what to do about an error of a command, empty for none.
func Hint(err error) string {
	if h, ok := errors.AsType[*hintedError](err); ok {
		return clean(h.hint)
	}
	return ""
}

// shownError is an error whose text may go to a terminal.
type shownError struct {
	error
	text string
}

func (e *shownError) Error() string { return e.text }

// Unwrap gives the error with the text as it came.
func (e *shownError) Unwrap() error { return e.error }

// presentable takes out of an error's text what would drive the terminal: the control plane and the
// engines have written some of it. Its lines stay.
func presentable(err error) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		lines[i] = clean(line)
	}
	if text := strings.Join(lines, "\n"); text != err.Error() {
		return &shownError{err, text}
	}
	return err
}

// hasCode tells whether the control plane has answered with this code.
func hasCode(err error, code string) bool {
	e, ok := errors.AsType[*client.Error](err)
	return ok && e.Code == code
}
