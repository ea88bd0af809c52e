//go:build unix

package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Bounds on logs.
const (
	maxTailBytes = 4 << 20
	followPause  = 200 * time.Millisecond
)

// logReader reads the end of a log, and then what comes.
type logReader struct {
	ctx    context.Context //nolint:containedctx // io.Reader has none
	path   string
	head   *bytes.Reader
	file   *os.File // where what comes is read, nil when nothing is followed
	follow bool
}

// openLog reads the last lines of the log at path and of the one before it (see engine.Log). A log that is not there yet is empty.
func openLog(ctx context.Context, path string, tail int, follow bool) (io.ReadCloser, error) {
	r := &logReader{ctx: ctx, path: path, follow: follow}
	file, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var text []byte
	if file != nil {
		r.file = file
		if text, err = readEnd(file); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	if before, err := os.Open(path + ".1"); err == nil && bytes.Count(text, []byte("\n")) < tail {
		older, err := readEnd(before)
		_ = before.Close()
		if err == nil {
			text = append(older, text...)
		}
	} else if err == nil {
		_ = before.Close()
	}
	r.head = bytes.NewReader(lastOf(text, tail))
	return r, nil
}

// readEnd reads the end of a file, from the beginning of a line, and leaves the file there.
func readEnd(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	begin := max(0, info.Size()-maxTailBytes)
	if _, err := f.Seek(begin, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTailBytes))
	if err != nil {
		return nil, err
	}
	if begin > 0 {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	return text, nil
}

// lastOf gives the last lines of a text.
func lastOf(text []byte, lines int) []byte {
	if lines <= 0 {
		return nil
	}
	end := len(bytes.TrimSuffix(text, []byte("\n")))
	for range lines {
		if end = bytes.LastIndexByte(text[:end], '\n'); end < 0 {
			return text
		}
	}
	return text[end+1:]
}

// lastLines gives the last lines of the log at path, none when it can't be read.
func lastLines(path string, lines int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	text, err := readEnd(f)
	if err != nil {
		return nil
	}
	return strings.Split(string(lastOf(text, lines)), "\n")
}

// Read gives the end of the log, and then waits for more until ctx ends or the log is gone.
func (r *logReader) Read(p []byte) (int, error) {
	if r.head.Len() > 0 {
		return r.head.Read(p)
	}
	if !r.follow {
		return 0, io.EOF
	}
	for {
		// Whether there is another log is asked before this one is read to its end.
		info, gone := os.Stat(r.path)
		if r.file != nil {
			if n, err := r.file.Read(p); n > 0 || !errors.Is(err, io.EOF) {
				return n, err
			}
		}
		if gone == nil && !r.isOpen(info) {
			if err := r.reopen(); err != nil {
				return 0, err
			}
			continue
		}
		if r.file != nil && errors.Is(gone, fs.ErrNotExist) && folderIsGone(r.path) {
			return 0, io.EOF
		}
		select {
		case <-r.ctx.Done():
			return 0, io.EOF
		case <-time.After(followPause):
		}
	}
}

func (r *logReader) isOpen(info fs.FileInfo) bool {
	if r.file == nil {
		return false
	}
	own, err := r.file.Stat()
	return err == nil && os.SameFile(own, info)
}

func (r *logReader) reopen() error {
	file, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.file != nil {
		_ = r.file.Close()
	}
	r.file = file
	return nil
}

// folderIsGone tells a task that has been removed from a log that is just being replaced.
func folderIsGone(path string) bool {
	_, err := os.Stat(filepath.Dir(path))
	return errors.Is(err, fs.ErrNotExist)
}

// Close ends the reading.
func (r *logReader) Close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}
