package ray

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
)

// DashboardOptionsFor makes the options of a Dashboard from the settings of a fleet file. It fails when the token or the
// certificates that they name can't be read. A token file is read again when it changes.
func DashboardOptionsFor(r mobula.Ray) (DashboardOptions, error) {
	o := DashboardOptions{Address: r.Address}
	if r.TokenFile != "" || r.TokenEnv != "" {
		t := &dashboardToken{file: r.TokenFile, env: r.TokenEnv}
		o.Token = t.get
		if _, err := t.get(); err != nil {
			return DashboardOptions{}, err
		}
	}
	if r.CAFile == "" && !r.InsecureSkipVerify {
		return o, nil
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: r.InsecureSkipVerify}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return DashboardOptions{}, fmt.Errorf("caFile: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return DashboardOptions{}, fmt.Errorf("caFile: %s holds no certificate in PEM", r.CAFile)
		}
	}
	return o, nil
}

// dashboardToken is a cluster's token from a file or the environment.
type dashboardToken struct {
	file, env string

	mu    sync.Mutex
	of    time.Time // the file's, when token was read
	size  int64
	known bool
	token mobula.Secret
}

func (t *dashboardToken) get() (mobula.Secret, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != "" {
		info, err := os.Stat(t.file)
		if err != nil {
			return "", fmt.Errorf("tokenFile: %w", err)
		}
		if t.known && info.ModTime().Equal(t.of) && info.Size() == t.size {
			return t.token, nil
		}
		t.of, t.size, t.known = info.ModTime(), info.Size(), false
	}
	token, err := adapters.ReadKey(t.file, t.env, os.LookupEnv)
	switch {
	case err == nil:
		t.token, t.known = token, true
		return token, nil
	case errors.Is(err, adapters.ErrNoKey):
		return "", fmt.Errorf("%s holds no token", t.where())
	default: // ReadKey's own prefix names another setting
		return "", fmt.Errorf("%s: %w", t.where(), cmp.Or(errors.Unwrap(err), err))
	}
}

func (t *dashboardToken) where() string {
	if t.file != "" {
		return "tokenFile " + t.file
	}
	return "tokenEnv " + t.env
}
