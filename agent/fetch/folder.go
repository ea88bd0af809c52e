package fetch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// folder takes the files of one source. What is written can't leave it, whatever the names and links are, and has bounds.
type folder struct {
	name            string
	root            *os.Root
	bytes, maxBytes int64
	files, maxFiles int
	only            string               // the one file, of a source that is no folder
	sync            func(*os.File) error // makes a file or folder durable
	copying         []byte
}

func newFolder(name string, maxBytes int64, maxFiles int) (*folder, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	return &folder{name: name, root: root, maxBytes: maxBytes, maxFiles: maxFiles, sync: (*os.File).Sync, copying: make([]byte, 256<<10)}, nil
}

// file writes one file, and the folders above it. A later file of a name takes the place of an earlier one.
func (f *folder) file(name string, from io.Reader) error {
	name, err := f.place(name)
	if err != nil {
		return err
	}
	const flags = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	to, err := f.root.OpenFile(name, flags, 0o644)
	if errors.Is(err, fs.ErrExist) {
		if err := f.root.Remove(name); err != nil {
			return unpack(name, err)
		}
		to, err = f.root.OpenFile(name, flags, 0o644)
	}
	if err != nil {
		return unpack(name, err)
	}
	return errors.Join(f.copy(to, from), f.seal(to))
}

func (f *folder) seal(file *os.File) error { return errors.Join(f.sync(file), file.Close()) }

// copy counts what is written, not what a header says there will be.
func (f *folder) copy(to io.Writer, from io.Reader) error {
	// Not by io.Copy alone, which would let a file take from a reader without our buffer.
	n, err := io.CopyBuffer(struct{ io.Writer }{to}, io.LimitReader(from, f.maxBytes-f.bytes+1), f.copying)
	f.bytes += n
	if err != nil {
		return err
	}
	if f.bytes > f.maxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, f.maxBytes)
	}
	return nil
}

// dir makes a folder, and those above it.
func (f *folder) dir(name string) error {
	if path.Clean(name) == "." {
		return nil
	}
	name, err := f.place(name)
	if err != nil {
		return err
	}
	return unpack(name, f.root.MkdirAll(name, 0o755))
}

// symlink makes a link; finish looks where it leads.
func (f *folder) symlink(name, target string) error {
	name, err := f.place(name)
	if err != nil {
		return err
	}
	return unpack(name, f.root.Symlink(target, name))
}

// link makes a second name for a file.
func (f *folder) link(name, target string) error {
	name, err := f.place(name)
	if err != nil {
		return err
	}
	return unpack(name, f.root.Link(path.Clean(target), name))
}

// place counts an entry and makes the folders above it.
func (f *folder) place(name string) (string, error) {
	if f.files++; f.files > f.maxFiles {
		return "", fmt.Errorf("%w: more than %d files", ErrTooLarge, f.maxFiles)
	}
	clean := path.Clean(name)
	if clean == "." || clean == ".." || strings.HasPrefix(clean, "../") || path.IsAbs(clean) || strings.ContainsRune(clean, 0) {
		return "", fmt.Errorf("%w: the name %q leads out of it", ErrArchive, name)
	}
	if strings.Count(clean, "/") > 64 {
		return "", fmt.Errorf("%w: the name %.100q is too deep", ErrArchive, name)
	}
	return clean, unpack(clean, f.root.MkdirAll(path.Dir(clean), 0o755))
}

// finish gives what there is: "" for the folder itself, or the one file or folder that matters in it.
func (f *folder) finish() (string, error) {
	tree := f.root.FS()
	var dirs []string
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, name)
		}
		if d.Type()&fs.ModeSymlink != 0 {
			// Root follows it, as a reader will, and fails where it leaves the folder.
			if _, err := f.root.Stat(name); err != nil {
				return fmt.Errorf("%w: the link %q leads out of it, or nowhere", ErrArchive, name)
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for _, name := range dirs {
		d, err := f.root.Open(name)
		if err != nil {
			return "", fmt.Errorf("sync folder: %w", err)
		}
		if err := f.seal(d); err != nil {
			return "", fmt.Errorf("sync folder: %w", err)
		}
	}
	if f.only != "" {
		return f.only, nil
	}
	entries, err := fs.ReadDir(tree, ".")
	if err != nil {
		return "", fmt.Errorf("read folder: %w", err)
	}
	switch {
	case len(entries) == 0:
		return "", fmt.Errorf("%w: nothing is in it", ErrArchive)
	case len(entries) == 1 && entries[0].IsDir():
		return entries[0].Name(), nil
	}
	return "", nil
}

// unpack tells the archive's faults from the host's.
func unpack(name string, err error) error {
	if err == nil {
		return nil
	}
	if isFull(err) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("write %q: %w", name, err)
	}
	return fmt.Errorf("%w: %q: %w", ErrArchive, name, err)
}
