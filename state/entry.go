package state

import "fmt"

// maxKey is bbolt's bound on a key.
const maxKey = 32768

// entry is one value of a bucket as it was at the moment of reading, so that no lock or
// transaction is held while its reader works.
type entry struct {
	key   string
	value []byte
}

func each(entries []entry, f func(key string, value []byte) error) error {
	for _, e := range entries {
		if err := f(e.key, e.value); err != nil {
			return err
		}
	}
	return nil
}

// check refuses what no store can hold, before anything is changed.
func check(changes []Change) error {
	for _, c := range changes {
		switch {
		case c.Bucket == "" || c.Key == "":
			return fmt.Errorf("write state: bucket %q, key %q: neither may be empty", c.Bucket, c.Key)
		case len(c.Bucket) > maxKey || len(c.Key) > maxKey:
			return fmt.Errorf("write state: a bucket or key of %d bytes is above %d", max(len(c.Bucket), len(c.Key)), maxKey)
		}
	}
	return nil
}
