package ray

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// Buckets of the store.
const (
	bucketSettings    = "ray/settings"
	bucketDeployments = "ray/deployments"
	bucketReplicas    = "ray/replicas"
)

// keySettings is the only key of its bucket: one Cluster looks after one cluster.
const keySettings = "cluster"

// settingsRecord is how the cluster is reached, and which of its nodes are kept free.
type settingsRecord struct {
	Fleet string      `json:"fleet"`
	Ray   *mobula.Ray `json:"ray,omitempty"` // nil for none
	// Session of the cluster that was reached last.
	Session  string   `json:"session,omitempty"`
	Cordoned []string `json:"cordoned,omitempty"` // hosts by name, sorted
}

// deploymentRecord is what is asked for. (adapters.Deployment has two fields Model, of which JSON drops one.)
type deploymentRecord struct {
	Key      adapters.Key `json:"key"`
	Model    mobula.Model `json:"model"`
	Replicas int          `json:"replicas"`
	Drain    []string     `json:"drain,omitempty"`
	// GPUs of one replica over all its parts, as decided when it was first asked for: a cluster whose GPU nodes are
	// away for a while must not get engines that run on CPUs.
	GPUs int `json:"gpus"`
	// Removed is set until nothing of its replicas is left, and no job that tells of it.
	Removed bool `json:"removed,omitempty"`
}

// replicaRecord is what is durable of a replica.
type replicaRecord struct {
	ID       string    `json:"id"`
	Fleet    string    `json:"fleet"`
	Model    string    `json:"model"`
	Revision string    `json:"revision"`
	Born     int64     `json:"born"` // grows with each replica
	Made     time.Time `json:"made"`
	// Leaving is set when it was taken away; it is kept until nothing of it is on the cluster.
	Leaving bool `json:"leaving,omitempty"`
	// Starts counts the orders to start it.
	Starts int `json:"starts,omitempty"`
	// URL where it serves and the host there, empty while it doesn't as far as we know.
	URL  string `json:"url,omitempty"`
	Host string `json:"host,omitempty"`
}

func (r *replicaRecord) key() adapters.Key {
	return adapters.Key{Fleet: r.Fleet, Model: r.Model, Revision: r.Revision}
}

// records are all that is durable. Whoever changes one saves it, which marks it, and writes all changes at once with
// flush.
type records struct {
	settings    settingsRecord
	deployments map[adapters.Key]*deploymentRecord
	replicas    map[string]*replicaRecord
	next        int64 // Born of the next replica

	marked map[[2]string]any // by bucket and key: what to write, nil to delete
}

// load reads what is stored.
func load(store state.Store) (*records, error) {
	r := &records{deployments: map[adapters.Key]*deploymentRecord{}, replicas: map[string]*replicaRecord{}, next: 1, marked: map[[2]string]any{}}
	return r, errors.Join(
		each(store, bucketSettings, func(key string, s *settingsRecord) {
			if key == keySettings {
				r.settings = *s
			}
		}),
		each(store, bucketDeployments, func(_ string, d *deploymentRecord) { r.deployments[d.Key] = d }),
		each(store, bucketReplicas, func(_ string, rec *replicaRecord) {
			r.replicas[rec.ID] = rec
			r.next = max(r.next, rec.Born+1)
		}),
	)
}

func each[T any](store state.Store, bucket string, f func(key string, v *T)) error {
	return store.Each(bucket, func(key string, value []byte) error {
		v, err := decodeRecord[T](value)
		if err != nil {
			return fmt.Errorf("%q of %s in the control plane's state can't be read: %w", key, bucket, err)
		}
		f(key, v)
		return nil
	})
}

func decodeRecord[T any](value []byte) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(value, v); err != nil {
		return nil, err
	}
	return v, nil
}

func (r *records) saveSettings() { r.marked[[2]string{bucketSettings, keySettings}] = &r.settings }

func (r *records) saveDeployment(d *deploymentRecord) {
	r.deployments[d.Key] = d
	r.marked[[2]string{bucketDeployments, deploymentKey(d.Key)}] = d
}

func (r *records) dropDeployment(key adapters.Key) {
	delete(r.deployments, key)
	r.marked[[2]string{bucketDeployments, deploymentKey(key)}] = nil
}

func (r *records) save(rec *replicaRecord) {
	if rec.Born == 0 {
		rec.Born = r.next
		r.next++
	}
	r.replicas[rec.ID] = rec
	r.marked[[2]string{bucketReplicas, rec.ID}] = rec
}

func (r *records) drop(rec *replicaRecord) {
	delete(r.replicas, rec.ID)
	r.marked[[2]string{bucketReplicas, rec.ID}] = nil
}

func deploymentKey(k adapters.Key) string {
	return strings.Join([]string{k.Fleet, k.Model, k.Revision}, "\x00")
}

// flush writes all that is marked, or nothing.
func (r *records) flush(store state.Store) error {
	if len(r.marked) == 0 {
		return nil
	}
	changes := make([]state.Change, 0, len(r.marked))
	for mark, v := range r.marked {
		change := state.Change{Bucket: mark[0], Key: mark[1]}
		if v != nil {
			value, err := json.Marshal(v)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", mark[1], mark[0], err)
			}
			change.Value = value
		}
		changes = append(changes, change)
	}
	if err := store.Write(changes...); err != nil {
		return err
	}
	clear(r.marked)
	return nil
}

// of gives the replicas of a deployment that are not leaving, oldest first.
func (r *records) of(key adapters.Key) []*replicaRecord {
	var all []*replicaRecord
	for _, rec := range r.replicas {
		if !rec.Leaving && rec.key() == key {
			all = append(all, rec)
		}
	}
	slices.SortFunc(all, func(a, b *replicaRecord) int { return int(a.Born - b.Born) })
	return all
}

// draining tells whether a replica is marked.
func (r *records) draining(rec *replicaRecord) bool {
	d := r.deployments[rec.key()]
	return d != nil && slices.Contains(d.Drain, rec.ID)
}

// leave has a replica be taken off the cluster.
func (r *records) leave(rec *replicaRecord) {
	rec.Leaving, rec.URL, rec.Host = true, "", ""
	r.save(rec)
}

// holds tells whether anything is asked for, or still on its way out.
func (r *records) holds(fleet string) bool {
	for key := range r.deployments {
		if fleet == "" || key.Fleet == fleet {
			return true
		}
	}
	return false
}
