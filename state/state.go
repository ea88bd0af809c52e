// Package state keeps what must survive a kill: a small ordered key-value store in one file, and
// its twin in memory.
package state

import "errors"

// Store holds values by bucket and key. Its methods may be called by many goroutines at once.
type Store interface {
	// Get gives a value; false when there is none. The caller may keep the slice.
	Get(bucket, key string) ([]byte, bool, error)
	// Each calls f for all of a bucket in the order of keys, as they were at one moment; f's error
	// ends it. f may keep value and must not write to the store.
	Each(bucket string, f func(key string, value []byte) error) error
	// Write makes all the changes or none of them. When it returns nil they survive a power failure.
	Write(changes ...Change) error
	// Close gives the file free. Calls after it fail with ErrClosed.
	Close() error
}

// Change sets a value, or deletes it when Value is nil.
type Change struct {
	Bucket, Key string
	Value       []byte
}

// Errors of stores.
var (
	// ErrClosed: the store has been closed.
	ErrClosed = errors.New("state is closed")
	// ErrInUse: another process has the file open.
	ErrInUse = errors.New("state is in use by another process")
	// ErrFull: the store can't hold so much. What it held before stays.
	ErrFull = errors.New("the state is too large")
)
