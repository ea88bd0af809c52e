package proxy

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/mobula-serve/mobula"
)

// Options of a Proxy. Zero timeouts stand for the fleet file's defaults.
type Options struct {
	// Connect, FirstByte, Plain, Idle and Total are used.
	Timeouts mobula.Timeouts
	// What is tried again before the first byte.
	Retries mobula.Retries
	// IdleConnections are kept per engine at most. Default 1024.
	IdleConnections int
	// TLS is the base of https connections; nil trusts the system's roots.
	TLS *tls.Config
	// Logger gets retries at debug level; nil drops them.
	Logger *slog.Logger
}

// idleTimeout is how long an unused connection is kept. Engines mostly close theirs first
// (uvicorn after 5 s); the janitor notices.
const idleTimeout = 90 * time.Second

func (o Options) withDefaults() *Options {
	for _, d := range []struct {
		field *mobula.Duration
		value time.Duration
	}{
		{&o.Timeouts.Connect, 2 * time.Second},
		{&o.Timeouts.FirstByte, time.Minute},
		{&o.Timeouts.Plain, 10 * time.Minute},
		{&o.Timeouts.Idle, time.Minute},
		{&o.Timeouts.Total, time.Hour},
	} {
		if *d.field <= 0 {
			*d.field = mobula.Duration(d.value)
		}
	}
	if o.IdleConnections <= 0 {
		o.IdleConnections = 1024
	}
	if o.TLS == nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if o.TLS.ClientSessionCache == nil {
		o.TLS = o.TLS.Clone()
		o.TLS.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &o
}

// firstByte is the time that an engine has for the first byte of an answer.
func (o *Options) firstByte(stream bool) time.Duration {
	if stream {
		return time.Duration(o.Timeouts.FirstByte)
	}
	return time.Duration(o.Timeouts.Plain)
}
