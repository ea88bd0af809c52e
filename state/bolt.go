package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// ErrDamaged is of a file that is no state of ours, or no longer one.
var ErrDamaged = errors.New("state is damaged")

// lockTimeout is how long Open waits for another process that is about to end.
const lockTimeout = time.Second

// DB is a Store in one file, which it holds locked.
type DB struct {
	path string
	bolt *bbolt.DB
}

// Open opens the store in the file at path, and makes it (0600) and its folders (0700) when they
// aren't there. It waits at most a second for another process to close it, then fails with ErrInUse;
// a file that can't be read as a store fails with ErrDamaged and is left as it is.
func Open(path string) (*DB, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the state: %w", err)
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("open state %s: it is no regular file", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open state: %w", err)
	}
	db := &DB{path: path}
	var file *os.File
	err = guard(func() error {
		return db.open(func(name string, flag int, mode fs.FileMode) (_ *os.File, err error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		})
	})
	if err != nil {
		unlock(file)
		return nil, openError(path, err)
	}
	if info == nil {
		// Without this a power failure may take the new file with all that was written to it.
		if err := syncDir(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("sync the folder of the state: %w", err), db.Close())
		}
	}
	return db, nil
}

// open reads all that the file holds once, so that damage shows now and not in the midst of work.
func (db *DB) open(openFile func(string, int, fs.FileMode) (*os.File, error)) error {
	bolt, err := bbolt.Open(db.path, 0o600, &bbolt.Options{
		Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, OpenFile: openFile,
	})
	if err != nil {
		return err
	}
	db.bolt = bolt
	return bolt.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, bucket *bbolt.Bucket) error {
			if bucket == nil {
				return berrors.ErrInvalid
			}
			var sum byte
			return bucket.ForEach(func(key, value []byte) error {
				for _, b := range [][]byte{key, value} {
					if len(b) > 0 {
						sum ^= b[0] ^ b[len(b)-1] // touched, since the pages are mapped and not read
					}
				}
				return nil
			})
		})
	})
}

// Get gives a value.
func (db *DB) Get(bucket, key string) (value []byte, ok bool, err error) {
	err = db.do("read", db.bolt.View, func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(bucket)); b != nil {
			found := b.Get([]byte(key))
			value, ok = slices.Clone(found), found != nil
		}
		return nil
	})
	return value, ok, err
}

// Each calls f for all of a bucket.
func (db *DB) Each(bucket string, f func(key string, value []byte) error) error {
	var entries []entry
	err := db.do("read", db.bolt.View, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(key, value []byte) error {
			entries = append(entries, entry{string(key), slices.Clone(value)})
			return nil
		})
	})
	if err != nil {
		return err
	}
	return each(entries, f)
}

// Write makes all the changes or none of them.
func (db *DB) Write(changes ...Change) error {
	if err := check(changes); err != nil {
		return err
	}
	return db.do("write", db.bolt.Update, func(tx *bbolt.Tx) error {
		for _, c := range changes {
			if err := apply(tx, c); err != nil {
				return fmt.Errorf("%s/%s: %w", c.Bucket, c.Key, err)
			}
		}
		return nil
	})
}

func apply(tx *bbolt.Tx, c Change) error {
	if c.Value == nil {
		if b := tx.Bucket([]byte(c.Bucket)); b != nil {
			return b.Delete([]byte(c.Key))
		}
		return nil
	}
	b, err := tx.CreateBucketIfNotExists([]byte(c.Bucket))
	if err != nil {
		return err
	}
	return b.Put([]byte(c.Key), c.Value)
}

// Close waits for what is being read and written, and gives the file free; a second call does nothing.
func (db *DB) Close() error {
	if err := db.bolt.Close(); err != nil {
		return fmt.Errorf("close state %s: %w", db.path, err)
	}
	return nil
}

// do runs f in a transaction.
func (db *DB) do(verb string, transact func(func(*bbolt.Tx) error) error, f func(*bbolt.Tx) error) error {
	err := guard(func() error { return transact(f) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return ErrClosed
	default:
		return fmt.Errorf("%s state %s: %w", verb, db.path, err)
	}
}

// guard turns what bbolt does about a damaged file, which is to panic or to read where the file has
// no pages, into an error.
func guard(f func() error) (err error) {
	before := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(before)
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, cause)
		}
	}()
	return f()
}

// unlock gives a file free that bbolt has left open by a panic. Closing alone doesn't: its pages may still be mapped.
func unlock(file *os.File) {
	if file != nil && syscall.Flock(int(file.Fd()), syscall.LOCK_UN) == nil {
		_ = file.Close()
	}
}

func openError(path string, err error) error {
	switch _, isPath := errors.AsType[*fs.PathError](err); {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s: stop the mobula that runs with it, or give this one another folder", ErrInUse, path)
	case isPath:
		return fmt.Errorf("open state: %w", err)
	case errors.Is(err, ErrDamaged):
	default:
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("open %s: %w; move the file away, start again, and apply the fleet file: engines that run are taken over", path, err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

var _ Store = (*DB)(nil)
