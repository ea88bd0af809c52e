// Command image makes a container image of a static binary without Docker: an archive in the OCI image layout.
//
//	go run ./test/image -name localhost/mobula:dev -out dist/mobula-amd64.tar bin/mobula
//
// Several binaries, of one architecture each, make one image for all of them. Beside the archive comes BINARY.cdx.json, a bill of
// materials of each, in CycloneDX. The image has the binary, this machine's CA
// certificates if it has some, a user and /tmp: what the Dockerfile makes too.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// caFiles are where Linux distributions keep CA certificates in one file.
func caFiles() []string {
	return []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}
}

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	s := spec{}
	var out string
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&s.name, "name", "localhost/mobula:dev", "the image's `name` with a tag")
	flags.StringVar(&s.path, "path", "/mobula", "where the binary lies in the image; it is the entry point")
	flags.IntVar(&s.user, "user", 65532, "the user that it runs as")
	flags.StringVar(&out, "out", "", "`file` to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if out == "" || flags.NArg() == 0 {
		return errors.New("give -out and the binaries to make an image of")
	}
	for _, file := range caFiles() {
		if _, err := os.Stat(file); err == nil {
			s.roots = file
			break
		}
	}
	if err := create(out, func(w io.Writer) error { return s.write(w, flags.Args()...) }); err != nil {
		return err
	}
	for _, binary := range flags.Args() {
		content, err := os.ReadFile(binary)
		if err != nil {
			return err
		}
		sbom, err := materials(content)
		if err != nil {
			return fmt.Errorf("%s: %w", binary, err)
		}
		beside := filepath.Join(filepath.Dir(out), filepath.Base(binary)+".cdx.json")
		if err := create(beside, func(w io.Writer) error { _, err := w.Write(sbom); return err }); err != nil {
			return err
		}
	}
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s, %.1f MB\n", out, s.name, float64(info.Size())/1e6)
	return nil
}

// create writes a file beside its place and moves it there when it is whole.
func create(out string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	defer func() {
		if rest := os.Remove(f.Name()); !errors.Is(rest, fs.ErrNotExist) {
			err = errors.Join(err, rest)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	err = write(w)
	if err = errors.Join(err, w.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}
