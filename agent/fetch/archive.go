package fetch

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// kind is what a name's ending says.
type kind int

const (
	plain kind = iota
	tarball
	gzipped
	zipped
)

func kindOf(name string) kind {
	name = strings.ToLower(name)
	switch {
	case strings.HasSuffix(name, ".tar"):
		return tarball
	case strings.HasSuffix(name, ".tar.gz"), strings.HasSuffix(name, ".tgz"):
		return gzipped
	case strings.HasSuffix(name, ".zip"):
		return zipped
	}
	return plain
}

// saveOne writes what one file brings: what is in an archive, or the file itself.
func saveOne(ctx context.Context, name string, from io.Reader, into *folder) error {
	source := &failing{from: from}
	var err error
	switch kindOf(name) {
	case tarball:
		err = untar(source, into)
	case gzipped:
		err = gunzip(source, into)
	case zipped:
		err = unzip(source, into)
	default:
		into.only = base(name)
		err = into.file(into.only, source)
	}
	// What a reader makes of a source that broke off is not the archive's fault.
	if source.err != nil && !errors.Is(source.err, io.EOF) {
		err = fmt.Errorf("%w: it broke off: %w", ErrUnavailable, source.err)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// failing remembers the error of a source.
type failing struct {
	from io.Reader
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.from.Read(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

// base names a single file after its URL.
func base(name string) string {
	b := path.Base(path.Clean("/" + name))
	if b == "/" || len(b) > 200 || !isName(b) || strings.ContainsRune(b, 0) {
		return "file"
	}
	return b
}

func gunzip(from io.Reader, into *folder) error {
	z, err := gzip.NewReader(from)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return untar(z, into)
}

func untar(from io.Reader, into *folder) error {
	archive := tar.NewReader(from)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			// Read on to the end, for a checksum that does not fit or a download that is not whole.
			return broken(into.copy(io.Discard, from))
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			err = broken(into.file(h.Name, archive))
		case tar.TypeDir:
			err = into.dir(h.Name)
		case tar.TypeSymlink:
			err = into.symlink(h.Name, h.Linkname)
		case tar.TypeLink:
			err = into.link(h.Name, h.Linkname)
		case tar.TypeXGlobalHeader: // git archive writes one
		default:
			err = fmt.Errorf("%w: %q is no file, folder or link", ErrArchive, h.Name)
		}
		if err != nil {
			return err
		}
	}
}

// unzip keeps the archive beside what is in it while it is unpacked, since its table is at its end.
func unzip(from io.Reader, into *folder) (err error) {
	file, err := os.CreateTemp(filepath.Dir(into.name), "copy-*.zip")
	if err != nil {
		return fmt.Errorf("keep the archive: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close(), os.Remove(file.Name())) }()
	if err := into.copy(file, from); err != nil {
		return err
	}
	size := into.bytes
	into.bytes = 0 // what counts is what will stay
	archive, err := zip.NewReader(file, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) { // names are our own business
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	for _, entry := range archive.File {
		if err := unzipEntry(entry, into); err != nil {
			return err
		}
	}
	return nil
}

func unzipEntry(entry *zip.File, into *folder) error {
	mode := entry.Mode()
	if mode.IsDir() {
		return into.dir(entry.Name)
	}
	if mode.Type() != 0 && mode.Type() != fs.ModeSymlink {
		return fmt.Errorf("%w: %q is no file, folder or link", ErrArchive, entry.Name)
	}
	from, err := entry.Open()
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrArchive, entry.Name, err)
	}
	defer from.Close()
	if mode.Type() == fs.ModeSymlink {
		target, err := io.ReadAll(io.LimitReader(from, 4096))
		if err != nil {
			return fmt.Errorf("%w: %q: %w", ErrArchive, entry.Name, err)
		}
		return into.symlink(entry.Name, string(target))
	}
	return broken(into.file(entry.Name, from))
}

// broken marks what goes wrong while an archive is read, unless it is the host's fault or has a name already.
func broken(err error) error {
	_, host := errors.AsType[*fs.PathError](err)
	if err == nil || host || isFull(err) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrArchive) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}
