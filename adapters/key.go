package adapters

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/mobula-serve/mobula"
)

// ErrNoKey is returned when the place that should hold an API key holds none.
var ErrNoKey = errors.New("no API key there")

// maxKeyBytes bounds an API key file.
const maxKeyBytes = 16 << 10

// ReadKey reads an API key from a file (apiKeyFile of the fleet file) or an environment variable
// (apiKeyEnv), found by lookup. With neither there is no key.
func ReadKey(file, env string, lookup func(string) (string, bool)) (mobula.Secret, error) {
	var raw, from string
	switch {
	case file != "":
		from = "apiKeyFile"
		b, err := readKeyFile(file)
		if err != nil {
			return "", fmt.Errorf("%s: %w", from, err)
		}
		raw = string(b)
	case env != "":
		from = "apiKeyEnv " + env
		raw, _ = lookup(env)
	default:
		return "", nil
	}
	key := strings.TrimSpace(raw)
	if key == "" {
		return "", fmt.Errorf("%s: %w", from, ErrNoKey)
	}
	// It becomes a header line: nothing may end the line early.
	if i := strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
		return "", fmt.Errorf("%s: byte %d is not printable ASCII", from, i)
	}
	return mobula.Secret(key), nil
}

func readKeyFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if err == nil && len(b) > maxKeyBytes {
		err = fmt.Errorf("%s: more than %d bytes", name, maxKeyBytes)
	}
	return b, err
}
