package mobula

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
)

// MaxFileSize bounds a fleet file, in bytes.
const MaxFileSize = 4 << 20

// LoadFile loads the fleet file at path. The error is a *FileError when the file could be read.
func LoadFile(path string) (*Fleet, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read fleet file: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileSize+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read fleet file: %w", err)
	}
	return Load(data, path)
}

// Load decodes a fleet file strictly, fills in the defaults and checks every value. name
// stands for the file in messages. A file with problems gives a *FileError that has all of
// them, up to a bound, with line and column.
func Load(data []byte, name string) (*Fleet, error) {
	root, problem := parse(data)
	if problem != nil {
		return nil, &FileError{Name: name, Problems: []Problem{*problem}}
	}
	f := Default()
	f.APIVersion, f.Kind = "", ""
	d := newDecoder(root)
	d.value("", root, reflect.ValueOf(&f).Elem())
	if checkHeader(&f, &d.report) {
		checkFleet(&f, &d.report)
	}
	if len(d.problems) > 0 {
		return nil, d.fileError(name)
	}
	return &f, nil
}
