package app

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

// access are the flags that say which control plane is meant.
type access struct {
	config    string
	url       string
	tokenFile string
	caFile    string
}

// flags adds them to a command.
func (o *access) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "file that says where the control plane is (default control.json in the user's settings, else that of a running mobula up)")
	f.StringVar(&o.url, "control", "", "URL of the control plane, in place of the file's")
	f.StringVar(&o.tokenFile, "token-file", "", "file with the control plane's token, in place of the file's")
	f.StringVar(&o.caFile, "ca-file", "", "certificate authority of the control plane (PEM), in place of the file's")
	_ = cmd.MarkFlagFilename("config", "json")
}

// given tells whether a flag says which control plane is meant.
func (o *access) given() bool { return o.config != "" || o.url != "" }

// client makes a client of the control plane that is meant.
func (o *access) client(logger *slog.Logger) (*client.Client, error) {
	c, err := o.load()
	if err != nil {
		return nil, err
	}
	options := client.Options{URL: c.URL, Token: c.Token, Logger: logger}
	if c.CA != "" {
		if options.TLS, err = trust.VerifyTLS([]byte(c.CA), trust.RoleControl); err != nil {
			return nil, err
		}
	}
	return client.New(options), nil
}

func (o *access) load() (client.Config, error) {
	c, err := o.file()
	if err != nil {
		return c, err
	}
	if o.url != "" {
		c.URL = o.url
	}
	if o.tokenFile != "" {
		token, err := readKey(o.tokenFile)
		if err != nil {
			return c, fmt.Errorf("--token-file: %w", err)
		}
		c.Token = mobula.Secret(token)
	}
	if o.caFile != "" {
		ca, err := os.ReadFile(o.caFile)
		if err != nil {
			return c, fmt.Errorf("--ca-file: %w", err)
		}
		c.CA = string(ca)
	}
	return c, nil
}

// file reads the settings. Without any, flags have to say all.
func (o *access) file() (client.Config, error) {
	if o.config != "" {
		return client.LoadConfig(o.config)
	}
	var paths []string
	if usual, err := client.DefaultConfigPath(); err == nil {
		paths = append(paths, usual)
	}
	if local, err := localAccess(); err == nil {
		paths = append(paths, local)
	}
	for _, path := range paths {
		c, err := client.LoadConfig(path)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return c, err
		}
	}
	if o.url != "" {
		return client.Config{}, nil
	}
	return client.Config{}, hinted(errors.New("no control plane is known here"),
		"start `mobula up` or `mobula control`, or say with --config or --control where one is")
}

// localAccess is where a running `mobula up` says how it is reached.
func localAccess() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "mobula", "up.json"), nil
}
