package mobula

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"

	"github.com/goccy/go-yaml"
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

// YAML writes the fleet as a file from which Load gives the same fleet, with all defaults.
func (f *Fleet) YAML() ([]byte, error) {
	file, err := yaml.MarshalWithOptions(f, yaml.CustomMarshaler(writeNumber), yaml.CustomMarshaler(writeText))
	if err != nil {
		return nil, fmt.Errorf("write the fleet: %w", err)
	}
	return file, nil
}

// writeNumber is in place of the library's 1e+06, which it reads as text.
func writeNumber(n float64) ([]byte, error) { return strconv.AppendFloat(nil, n, 'f', -1, 64), nil }

// writeText quotes what is not a plain word: the library misses some of what it must.
func writeText(s string) ([]byte, error) {
	if only(s, letters+digits+"_-./:@") && only(s[:1], letters+digits+"/") {
		return yaml.Marshal(s)
	}
	return strconv.AppendQuote(nil, s), nil
}
