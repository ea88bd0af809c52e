package leader

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mobula-serve/mobula/state"
)

// ErrTaken is why a leader has to end: somebody else has written the state since this one has read it.
var ErrTaken = errors.New("another control plane has written the state")

const (
	// shards are the parts that are written apart, so that a change of one model does not compress all of them again.
	shards = 64
	// maxState bounds the Secret's data; the API server refuses more than 1 MiB. Models that are scaled and being rolled take 0.5 to 0.85 KB
	// each, ten applies included: over a thousand fit.
	maxState = 1<<20 - 4<<10
	// maxShard bounds what one shard may hold when it is unpacked.
	maxShard = 64 << 20
	// writeFor bounds one write with what is tried again.
	writeFor = 30 * time.Second
	tryEvery = 500 * time.Millisecond
	tryFor   = 10 * time.Second
	// endFor bounds writes after the leadership's end: others may begin leaseFor - renewWithin after it.
	endFor    = 2 * time.Second
	shardName = "shard-%02d"
	// annotationWrite holds what is unique to the last write, so that one whose answer was lost is known again.
	annotationWrite = "mobula.dev/write"
)

// buckets are values by bucket and key.
type buckets map[string]map[string][]byte

// Store is a state.Store in a Secret. All of it is in memory too; each Write is one update of the Secret that fails if anybody
// else has written, so that a control plane that no longer leads changes nothing. Calls are answered one at a time.
type Store struct {
	client          kubernetes.Interface
	namespace, name string
	leads           func() error    // why leadership is over, nil while it is not
	ending          <-chan struct{} // it is over: nothing is tried again
	ended           <-chan struct{} // endFor later: nothing is written any more
	taken           chan struct{}   // closed after ErrTaken

	mu     sync.Mutex
	err    error // once it can't be used any more
	secret *corev1.Secret
	parts  [shards]buckets
}

// OpenStore reads the Secret, which is made when it is not there. Secrets that hold anything else are an error. Once ctx has ended a Write
// is tried once only and not for long, and not at all after ErrLost: who no longer leads must not linger.
func OpenStore(ctx context.Context, client kubernetes.Interface, namespace, name string) (*Store, error) {
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() { time.AfterFunc(endFor, func() { close(ended) }) })
	s := &Store{
		client: client, namespace: namespace, name: name, taken: make(chan struct{}),
		leads: func() error { return context.Cause(ctx) }, ending: ctx.Done(), ended: ended,
	}
	secret, err := s.read(ctx)
	if apierrors.IsNotFound(err) {
		secret, err = client.CoreV1().Secrets(namespace).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s for the control plane's state: %w", namespace, name, err)
	}
	s.secret = secret
	for i := range shards {
		if s.parts[i], err = unpack(secret.Data[fmt.Sprintf(shardName, i)]); err != nil {
			return nil, fmt.Errorf("secret %s/%s: %s: %w", namespace, name, fmt.Sprintf(shardName, i), err)
		}
	}
	return s, nil
}

func (s *Store) read(ctx context.Context) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	return s.client.CoreV1().Secrets(s.namespace).Get(ctx, s.name, metav1.GetOptions{})
}

// shardOf says where a value is kept.
func shardOf(bucket, key string) int {
	h := fnv.New32a()
	_, _ = io.WriteString(h, bucket+"\x00"+key) // never fails
	return int(h.Sum32() % shards)
}

// Get gives a value.
func (s *Store) Get(bucket, key string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, false, s.err
	}
	value, ok := s.parts[shardOf(bucket, key)][bucket][key]
	return slices.Clone(value), ok, nil
}

// Each calls f for all of a bucket.
func (s *Store) Each(bucket string, f func(key string, value []byte) error) error {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	all := map[string][]byte{}
	for i := range s.parts {
		maps.Copy(all, s.parts[i][bucket])
	}
	s.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if err := f(key, slices.Clone(all[key])); err != nil {
			return err
		}
	}
	return nil
}

// Write makes all the changes or none of them: one update of the Secret, tried again while the API server can't be asked.
// After ErrTaken the store answers nothing any more.
func (s *Store) Write(changes ...state.Change) error {
	if err := check(changes); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if err := s.leads(); errors.Is(err, ErrLost) {
		return fmt.Errorf("write state: %w", err)
	}
	next := s.parts
	touched := map[int]bool{}
	for _, c := range changes {
		i := shardOf(c.Bucket, c.Key)
		if !touched[i] {
			next[i], touched[i] = next[i].clone(), true
		}
		next[i].set(c)
	}
	secret := s.secret.DeepCopy()
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for i := range touched {
		name := fmt.Sprintf(shardName, i)
		if len(next[i]) == 0 {
			delete(secret.Data, name)
			continue
		}
		packed, err := pack(next[i])
		if err != nil {
			return fmt.Errorf("write state: %w", err)
		}
		secret.Data[name] = packed
	}
	if n := size(secret.Data); n > maxState {
		return fmt.Errorf("write state: %w: more than %d bytes: split the fleet in two", state.ErrFull, maxState)
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[annotationWrite] = rand.Text()
	written, err := s.update(secret)
	if err != nil {
		err = fmt.Errorf("write state: secret %s/%s: %w", s.namespace, s.name, err)
		if errors.Is(err, ErrTaken) {
			s.err = err
			close(s.taken)
		}
		return err
	}
	s.secret, s.parts = written, next
	return nil
}

// Taken waits until a Write has failed with ErrTaken, and gives that: whoever leads has to end then, and to read the Secret anew when it
// is its turn again. It gives ctx's error when that ends before.
func (s *Store) Taken(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.taken:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// update tries until the API server has taken or refused it. One whose answer was lost is found by its annotation.
func (s *Store) update(secret *corev1.Secret) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(context.Background(), writeFor)
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-s.ended:
			cancel()
		}
	}()
	for {
		written, err := s.try(ctx, secret)
		if err == nil || !retriable(err) {
			return written, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-s.ending:
			return nil, err
		case <-time.After(tryEvery):
		}
	}
}

func (s *Store) try(ctx context.Context, secret *corev1.Secret) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	written, err := s.client.CoreV1().Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{})
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return written, err
	}
	now, readErr := s.read(ctx)
	switch {
	case apierrors.IsNotFound(readErr):
		return nil, fmt.Errorf("%w: it has been deleted", ErrTaken)
	case readErr != nil:
		return nil, readErr
	case now.Annotations[annotationWrite] == secret.Annotations[annotationWrite]:
		return now, nil
	case now.Annotations[annotationWrite] == s.secret.Annotations[annotationWrite] && equal(now.Data, s.secret.Data):
		// Somebody has labelled or annotated it: the state is still ours.
		secret.ResourceVersion = now.ResourceVersion
		return nil, apierrors.NewTooManyRequests("the Secret's metadata has changed", 0)
	}
	return nil, ErrTaken
}

// retriable tells whether the next try may end otherwise.
func retriable(err error) bool {
	return !errors.Is(err, ErrTaken) && !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) && !apierrors.IsInvalid(err) &&
		!apierrors.IsRequestEntityTooLargeError(err) && !apierrors.IsBadRequest(err)
}

// Close ends the store. What was written stays.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = state.ErrClosed
	return nil
}

func (b buckets) clone() buckets {
	out := make(buckets, len(b))
	for name, values := range b {
		out[name] = maps.Clone(values)
	}
	return out
}

func (b buckets) set(c state.Change) {
	if c.Value == nil {
		if delete(b[c.Bucket], c.Key); len(b[c.Bucket]) == 0 {
			delete(b, c.Bucket)
		}
		return
	}
	if b[c.Bucket] == nil {
		b[c.Bucket] = map[string][]byte{}
	}
	b[c.Bucket][c.Key] = slices.Clone(c.Value)
}

func size(data map[string][]byte) (n int) {
	for key, value := range data {
		n += len(key) + len(value)
	}
	return n
}

func equal(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, bytes.Equal)
}

// pack encodes a shard: JSON of bucket → key → value (base64), compressed by gzip.
func pack(b buckets) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if err := json.NewEncoder(z).Encode(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// unpack reads what pack wrote; nothing is an empty shard.
func unpack(data []byte) (buckets, error) {
	if len(data) == 0 {
		return buckets{}, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrDamaged, err)
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxShard+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrDamaged, err)
	}
	if len(raw) > maxShard {
		return nil, fmt.Errorf("%w: more than %d bytes", state.ErrDamaged, maxShard)
	}
	var b buckets
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, fmt.Errorf("%w: %w", state.ErrDamaged, err)
	}
	if b == nil {
		b = buckets{}
	}
	return b, nil
}

// check refuses what other stores refuse too.
func check(changes []state.Change) error {
	for _, c := range changes {
		if c.Bucket == "" || c.Key == "" {
			return fmt.Errorf("write state: bucket %q, key %q: neither may be empty", c.Bucket, c.Key)
		}
	}
	return nil
}

var _ state.Store = (*Store)(nil)
