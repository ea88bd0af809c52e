package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files of a folder with credentials.
const (
	caName   = "ca.pem"
	certName = "cert.pem"
	keyName  = "key.pem"
)

// SaveDir writes credentials into a folder: cert.pem (with the authority after it), key.pem, and ca.pem for
// people and other tools. Each file is private and replaced at once; since a renewal keeps the key, a kill at any
// moment leaves credentials that fit, old or new.
func SaveDir(dir string, c *Credentials) error {
	cert := c.cert.Load()
	for _, file := range []struct {
		name string
		data []byte
	}{
		{keyName, keyPEM(c.key)},
		{caName, c.CAPEM()},
		{certName, certPEM(cert.Certificate...)},
	} {
		if err := writeFile(filepath.Join(dir, file.name), file.data); err != nil {
			return err
		}
	}
	return nil
}

// LoadDir reads what SaveDir wrote; ErrNotJoined when there is nothing, or not all of it.
func LoadDir(dir string) (*Credentials, error) {
	chain, err := readFile(dir, certName)
	if err != nil {
		return nil, err
	}
	key, err := readFile(dir, keyName)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Join(dir, certName), err, joinHint)
	}
	c, err := NewCredentials(certPEM(certs[len(certs)-1].Raw), chain, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return c, nil
}

func readFile(dir, name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s: %s", ErrNotJoined, filepath.Join(dir, name), joinHint)
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	return data, nil
}

// writeFile replaces a file at once, so that a kill or a power failure leaves the old one or the new one.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	file, err := os.CreateTemp(dir, ".new-*") // private from the start
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write credentials: %w", errors.Join(err, os.Remove(file.Name())))
	}
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	return errors.Join(folder.Sync(), folder.Close())
}
