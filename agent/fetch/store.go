package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// A source's folder, named by the SHA-256 of the source, holds folders with copies and a file that tells which one is whole.
const copyFile = "copy.json"

// stamp tells one state of a source from another one; empty for a source that doesn't say.
type stamp struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
}

// copied is what copy.json says.
type copied struct {
	Stamp stamp `json:"stamp"`
	// Folder is the copy's, and Path what Fetch gives, within that.
	Folder string    `json:"folder"`
	Path   string    `json:"path"`
	Time   time.Time `json:"time"`
}

func (c copied) path(dir string) string { return filepath.Join(dir, c.Folder, c.Path) }

// readCopy gives the copy of a source; false when there is none that is whole.
func readCopy(dir string) (copied, bool) {
	data, err := os.ReadFile(filepath.Join(dir, copyFile))
	if err != nil {
		return copied{}, false
	}
	var c copied
	if json.Unmarshal(data, &c) != nil || !isName(c.Folder) || c.Path != "" && !filepath.IsLocal(c.Path) {
		return copied{}, false
	}
	if _, err := os.Stat(c.path(dir)); err != nil {
		return copied{}, false
	}
	return c, true
}

// isName tells whether it is one step of a path.
func isName(s string) bool { return filepath.IsLocal(s) && filepath.Base(s) == s && s != "." }

// save makes a new copy and then, at once, the one that counts.
func (f *Fetcher) save(ctx context.Context, dir string, from content) (_ copied, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, clean(dir))
		}
	}()
	if err := clean(dir); err != nil { // of one that was killed, before it takes the disk that is needed
		return copied{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return copied{}, fmt.Errorf("make folder: %w", err)
	}
	name, err := os.MkdirTemp(dir, "copy-*")
	if err != nil {
		return copied{}, fmt.Errorf("make folder: %w", err)
	}
	into, err := newFolder(name, f.o.MaxBytes, f.o.MaxFiles)
	if err != nil {
		return copied{}, err
	}
	err = from.save(ctx, into)
	path := ""
	if err == nil {
		path, err = into.finish()
	}
	if err = errors.Join(err, into.root.Close()); err != nil {
		return copied{}, err
	}
	c := copied{Stamp: from.stamp(), Folder: filepath.Base(name), Path: path, Time: time.Now()}
	if err := writeCopy(dir, c); err != nil {
		return copied{}, err
	}
	// The copy of before may still be read by an engine that starts: it goes with the next one.
	return c, nil
}

func writeCopy(dir string, c copied) error {
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("write %s: %w", copyFile, err)
	}
	file, err := os.CreateTemp(dir, "copy-*.json")
	if err != nil {
		return fmt.Errorf("write %s: %w", copyFile, err)
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(dir, copyFile))
	}
	if err == nil {
		err = errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", copyFile, err)
	}
	return nil
}

// clean removes from a source's folder all but the copy that counts, and the folder when nothing is left.
func clean(dir string) error {
	c, have := readCopy(dir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !have || e.Name() != c.Folder && e.Name() != copyFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	if !have {
		err = errors.Join(err, os.Remove(dir))
	}
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// sweep cleans all folders of sources, and leaves alone what has another name.
func (f *Fetcher) sweep() error {
	entries, err := os.ReadDir(f.o.Dir)
	if err != nil {
		return fmt.Errorf("read the folder for downloads: %w", err)
	}
	ours := regexp.MustCompile(`^[0-9a-f]{64}$`)
	for _, e := range entries {
		if e.IsDir() && ours.MatchString(e.Name()) {
			if err := clean(filepath.Join(f.o.Dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
