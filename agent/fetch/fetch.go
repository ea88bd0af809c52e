// Package fetch brings files onto a host: archives and single files over HTTP, archives and folders from S3.
package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// Errors of Fetch.
var (
	// ErrSource: it is neither a folder of this host nor a URL that can be fetched.
	ErrSource = errors.New("bad source")
	// ErrNotFound: there is nothing at the source.
	ErrNotFound = errors.New("not found")
	// ErrForbidden: the source wants other credentials, or has them for nobody.
	ErrForbidden = errors.New("access denied")
	// ErrUnavailable: the source does not answer, or not as it should.
	ErrUnavailable = errors.New("source is unavailable")
	// ErrStalled: the source stopped sending.
	ErrStalled = errors.New("source stopped sending")
	// ErrArchive: the archive is damaged, or holds what must not be unpacked.
	ErrArchive = errors.New("bad archive")
	// ErrTooLarge: it has more bytes or files than are allowed.
	ErrTooLarge = errors.New("too large")
	// ErrNoSpace: the disk is full.
	ErrNoSpace = errors.New("disk is full")
)

const (
	defaultMaxBytes = 64 << 30
	defaultMaxFiles = 100_000
	defaultIdle     = time.Minute
	maxDownloads    = 4
)

// Options of a Fetcher.
type Options struct {
	// Dir is where the files go; it is made when it isn't there. Required. One Fetcher has it for itself.
	Dir string
	// MaxBytes is what one source may have, unpacked. Default 64 GiB.
	MaxBytes int64
	// MaxFiles is how many files and folders one source may have. Default 100,000.
	MaxFiles int
	// Idle is how long a source may send nothing. Default one minute.
	Idle time.Duration
	// HTTP is the client for http, https and s3. Its Timeout must be 0. Default one with the usual proxies.
	HTTP *http.Client
	// Logger takes warnings. Default: nowhere.
	Logger *slog.Logger
}

// Fetcher keeps a copy of each source. Its methods may be called by many goroutines at once.
type Fetcher struct {
	o     Options
	slots chan struct{} // as many as may download at once

	mu      sync.Mutex
	flights map[string]*flight
}

// flight is a download that callers share. It ends when it is done or the last of them has left.
type flight struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	callers int // of the Fetcher's mutex, as is leaving
	leaving bool
	path    string
	err     error
}

// New makes a Fetcher, and removes what a killed one left half done in Dir.
func New(o Options) (*Fetcher, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = defaultMaxFiles
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Transport: http.DefaultTransport}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil || o.Dir == "" {
		return nil, fmt.Errorf("folder for downloads %q: %w", o.Dir, errors.Join(err, fs.ErrInvalid))
	}
	o.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for downloads: %w", err)
	}
	f := &Fetcher{o: o, slots: make(chan struct{}, maxDownloads), flights: map[string]*flight{}}
	if err := f.sweep(); err != nil {
		return nil, err
	}
	return f, nil
}

// Fetch gives the path on this host of a source's files. A folder of the host (a path that begins with /) is given back as it
// is. The others are
//
//	https://…, http://…  a .tar, .tar.gz, .tgz or .zip is unpacked, anything else is one file
//	s3://bucket/key      likewise for such an archive; else all the objects under key/, or the one object key
//
// For an archive with one folder at its top the path is that folder's. What has been fetched before is used again as long as
// the source says that it is the same (ETag, Last-Modified), says neither, or can't be asked; another one is a new path. Calls for one source share
// one download, which ends when all of them are cancelled. A failure leaves nothing behind.
func (f *Fetcher) Fetch(ctx context.Context, source string) (string, error) {
	if filepath.IsAbs(source) {
		return local(source)
	}
	from, err := f.parse(source)
	if err != nil {
		return "", err
	}
	for {
		fl, joined := f.join(ctx, source, from)
		if joined {
			return f.await(ctx, source, fl)
		}
		select { // the others have left it; what they left must be gone before it is begun anew
		case <-fl.done:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

func local(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w: this host has no folder %s", ErrNotFound, path)
	case err != nil:
		return "", fmt.Errorf("look for the folder on this host: %w", err)
	case !info.IsDir():
		return "", fmt.Errorf("%w: %s is no folder", ErrSource, path)
	}
	return path, nil
}

// origin is where a source is.
type origin interface {
	// open asks for it, unless it is what known says: then nil.
	open(ctx context.Context, known stamp) (content, error)
}

// content is what a source sends.
type content interface {
	stamp() stamp
	// save writes it into a folder.
	save(ctx context.Context, into *folder) error
	close()
}

func (f *Fetcher) parse(source string) (origin, error) {
	u, err := url.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("%w: it is no URL", ErrSource) // the text may have a password in it
	}
	switch {
	case u.Scheme == "http" || u.Scheme == "https":
		if u.Host != "" {
			return &web{url: u, client: f.o.HTTP, idle: f.o.Idle}, nil
		}
	case u.Scheme == "s3" && u.User == nil:
		// A key is what it is: it has no query, and a % in it stays one.
		name, key, _ := strings.Cut(strings.TrimPrefix(source, "s3://"), "/")
		if err := s3utils.CheckValidBucketName(name); err != nil {
			return nil, fmt.Errorf("%w: %q is no name of a bucket: %w", ErrSource, name, err)
		}
		return &bucket{bucket: name, key: strings.Trim(key, "/"), client: f.o.HTTP, idle: f.o.Idle}, nil
	}
	return nil, fmt.Errorf("%w %q: want a folder of this host (/…), or an https://, http:// or s3:// URL", ErrSource, shown(source))
}

// shown is a source without what is secret in it: passwords, and the signatures in queries.
func shown(source string) string {
	u, err := url.Parse(source)
	if err != nil {
		return "URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// join takes part in a source's flight, or starts one. It gives one that has been left, and false, when that is still ending.
func (f *Fetcher) join(ctx context.Context, source string, from origin) (*flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[source]; fl != nil {
		if fl.leaving {
			return fl, false
		}
		fl.callers++
		return fl, true
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // it serves others too
	fl := &flight{done: make(chan struct{}), cancel: cancel, callers: 1}
	f.flights[source] = fl
	go func() { // its last caller waits for it
		defer cancel(nil)
		fl.path, fl.err = f.get(ctx, source, from)
		f.mu.Lock()
		delete(f.flights, source)
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl, true
}

func (f *Fetcher) await(ctx context.Context, source string, fl *flight) (string, error) {
	select {
	case <-fl.done:
		return fl.path, wrap(source, fl.err)
	case <-ctx.Done():
	}
	f.mu.Lock()
	fl.callers--
	last := fl.callers == 0
	fl.leaving = last
	f.mu.Unlock()
	if last {
		fl.cancel(context.Cause(ctx))
		<-fl.done
	}
	return "", wrap(source, context.Cause(ctx))
}

func wrap(source string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("fetch %s: %w", shown(source), err)
}

// get gives a source's copy, of before or new.
func (f *Fetcher) get(ctx context.Context, source string, from origin) (string, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	sum := sha256.Sum256([]byte(source))
	dir := filepath.Join(f.o.Dir, hex.EncodeToString(sum[:]))
	old, have := readCopy(dir)
	got, err := from.open(ctx, old.Stamp)
	if err != nil {
		if have && ctx.Err() == nil {
			f.o.Logger.Warn("source can't be asked, so its copy is used", "source", shown(source), "err", err)
			return old.path(dir), nil
		}
		return "", err
	}
	if got == nil {
		return old.path(dir), nil
	}
	defer got.close()
	if have && got.stamp() == old.Stamp {
		return old.path(dir), nil
	}
	now, err := f.save(ctx, dir, got)
	if isFull(err) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if err != nil {
		return "", err
	}
	return now.path(dir), nil
}

// isFull tells what a full disk or quota leads to.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
