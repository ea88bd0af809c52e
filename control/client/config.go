package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mobula-serve/mobula"
)

// maxConfig bounds a config file, in bytes.
const maxConfig = 1 << 20

// Config is how the commands find their control plane.
type Config struct {
	URL   string
	Token mobula.Secret
	// CA is the PEM of the control plane's certificate authority, empty for http.
	CA string
}

// configFile is a Config as it is written: with its token.
type configFile struct {
	URL   string `json:"url"`
	Token string `json:"token,omitempty"`
	CA    string `json:"ca,omitempty"`
}

// DefaultConfigPath gives mobula/control.json in the user's folder for settings ($XDG_CONFIG_HOME, ~/.config).
func DefaultConfigPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("no folder for settings: %w", err)
	}
	return filepath.Join(dir, "mobula", "control.json"), nil
}

// LoadConfig reads a Config. The error wraps fs.ErrNotExist when there is no file.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the control plane's config: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return Config{}, fmt.Errorf("read the control plane's config: %w", err)
	}
	c, err := DecodeConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: want an object with url, token and ca: %w", path, err)
	}
	return c, nil
}

// DecodeConfig reads what Encode gave, strictly.
func DecodeConfig(data []byte) (Config, error) {
	var c configFile
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("there is more after the object")
	}
	if c.URL == "" {
		return Config{}, errors.New("url is missing")
	}
	return Config{URL: c.URL, Token: mobula.Secret(c.Token), CA: c.CA}, nil
}

// SaveConfig writes a Config for its owner only (mode 0600), all of it or nothing. Missing folders are made.
func SaveConfig(path string, c Config) error {
	data, err := c.Encode()
	if err != nil {
		return err
	}
	if err := replaceFile(path, data); err != nil {
		return fmt.Errorf("write the control plane's config: %w", err)
	}
	return nil
}

// Encode gives c as it is written: JSON, with its token.
func (c Config) Encode() ([]byte, error) {
	data, err := json.MarshalIndent(configFile{URL: c.URL, Token: string(c.Token), CA: c.CA}, "", "  ")
	return append(data, '\n'), err
}

// replaceFile puts a new file in place of an old one in one step.
func replaceFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".control-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
