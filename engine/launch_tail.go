package engine

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// maxTailLine cuts a line of a tail, in bytes.
const maxTailLine = 4 << 10

// tail keeps the last lines written to it.
type tail struct {
	mu    sync.Mutex
	lines []string // a ring; next is the oldest once it is full
	next  int
	full  bool
	part  []byte // a line without its end yet
}

func newTail(n int) *tail { return &tail{lines: make([]string, n)} }

// Write takes p in. A carriage return ends a line too: progress bars are written so.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		end := bytes.IndexAny(p, "\r\n")
		if end < 0 {
			t.grow(p)
			break
		}
		t.grow(p[:end])
		t.push()
		p = p[end+1:]
	}
	return n, nil
}

func (t *tail) grow(p []byte) {
	t.part = append(t.part, p[:min(len(p), maxTailLine-len(t.part))]...)
}

func (t *tail) push() {
	line := strings.TrimRight(strings.ToValidUTF8(string(t.part), "?"), " \t")
	t.part = t.part[:0]
	if line == "" {
		return
	}
	t.lines[t.next] = line
	t.next++
	if t.next == len(t.lines) {
		t.next, t.full = 0, true
	}
}

// Reset forgets all lines.
func (t *tail) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next, t.full, t.part = 0, false, t.part[:0]
}

// Lines gives the lines kept, oldest first, with the one being written as the last.
func (t *tail) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []string
	if t.full {
		all = append(all, t.lines[t.next:]...)
	}
	all = append(all, t.lines[:t.next]...)
	if part := strings.TrimSpace(strings.ToValidUTF8(string(t.part), "?")); part != "" {
		all = append(all, part)
	}
	return all
}

// Log is a file for an engine's output. It is bounded: at its limit it becomes PATH.1,
// in place of an older one, and a new file begins.
type Log struct {
	path  string
	limit int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenLog begins a log at path with room for limit bytes, twice that with PATH.1. The
// folder is made if needed; an earlier log at path becomes PATH.1. Only the user can read it.
func OpenLog(path string, limit int64) (*Log, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("folder for the engine's log: %w", err)
	}
	l := &Log{path: path, limit: limit}
	if err := l.begin(); err != nil {
		return nil, err
	}
	return l, nil
}

// Path is where the log is.
func (l *Log) Path() string { return l.path }

// Write appends p.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		_ = l.file.Close()
		if err := l.begin(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// Close ends the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

func (l *Log) begin() error {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("engine's log: %w", err)
	}
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("engine's log: %w", err)
	}
	l.file, l.size = file, 0
	return nil
}
