package static

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/state"
)

// Buckets of the store.
const (
	bucketHosts       = "static/hosts"
	bucketDeployments = "static/deployments"
	bucketReplicas    = "static/replicas"
)

// hostRecord is what is durable of a host.
type hostRecord struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Cordoned bool   `json:"cordoned,omitempty"`
	// Epoch of the last Wish to it. It grows in the same write as what the Wish follows from, so that an agent
	// that has taken this epoch has been told all that is stored.
	Epoch int64 `json:"epoch"`
}

// deploymentRecord is what is asked for. (adapters.Deployment has two fields Model, of which JSON drops one.)
type deploymentRecord struct {
	Key      adapters.Key `json:"key"`
	Model    mobula.Model `json:"model"`
	Replicas int          `json:"replicas"`
	Drain    []string     `json:"drain,omitempty"`
}

// replicaRecord is what is durable of a replica: where it is placed, above all.
type replicaRecord struct {
	ID       string    `json:"id"`
	Fleet    string    `json:"fleet"`
	Model    string    `json:"model"`
	Revision string    `json:"revision"`
	Born     int64     `json:"born"` // grows with each replica
	Made     time.Time `json:"made"`
	// Parts is empty for a replica that has no place.
	Parts      []part `json:"parts,omitempty"`
	Master     string `json:"master,omitempty"`
	MasterPort int    `json:"masterPort,omitempty"`
	// Round of an engine of several parts, and how many rounds it has taken since it was ready.
	Round    int       `json:"round,omitempty"`
	RoundAt  time.Time `json:"roundAt,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	// URL where it serves, empty while it doesn't as far as we know.
	URL string `json:"url,omitempty"`
	// GivenUp is set when its host was silent for too long: Successor replaces it, unless the host comes back first.
	GivenUp   *time.Time `json:"givenUp,omitempty"`
	Successor string     `json:"successor,omitempty"`
}

func (r *replicaRecord) key() adapters.Key {
	return adapters.Key{Fleet: r.Fleet, Model: r.Model, Revision: r.Revision}
}

// task gives the ID of one part on its host.
func (r *replicaRecord) task(rank int) string {
	if len(r.Parts) < 2 {
		return r.ID
	}
	return fmt.Sprintf("%s.%d", r.ID, rank)
}

// on tells whether a part of it is on a host.
func (r *replicaRecord) on(host string) bool {
	return slices.ContainsFunc(r.Parts, func(p part) bool { return p.Host == host })
}

// records are all that is durable, with indices. Whoever changes one says so to mark, and writes all
// changes at once with flush.
type records struct {
	hosts       map[string]*hostRecord
	deployments map[adapters.Key]*deploymentRecord
	replicas    map[string]*replicaRecord

	on      map[string]map[string]*replicaRecord       // by host and ID
	of      map[adapters.Key]map[string]*replicaRecord // by deployment and ID, given-up ones left out
	waiting map[string]*replicaRecord                  // those without a place, by ID
	next    int64                                      // Born of the next replica

	marked  map[[2]string]bool // bucket and key of what has changed since the last flush
	touched map[string]bool    // hosts whose Wish has changed since then
}

// load reads what is stored.
func load(store state.Store) (*records, error) {
	r := &records{
		hosts: map[string]*hostRecord{}, deployments: map[adapters.Key]*deploymentRecord{}, replicas: map[string]*replicaRecord{},
		on: map[string]map[string]*replicaRecord{}, of: map[adapters.Key]map[string]*replicaRecord{},
		waiting: map[string]*replicaRecord{}, next: 1,
		marked: map[[2]string]bool{}, touched: map[string]bool{},
	}
	err := each(store, bucketHosts, func(h *hostRecord) { r.hosts[h.Name] = h })
	if err == nil {
		err = each(store, bucketDeployments, func(d *deploymentRecord) { r.deployments[d.Key] = d })
	}
	if err == nil {
		err = each(store, bucketReplicas, r.index)
	}
	return r, err
}

func each[T any](store state.Store, bucket string, f func(*T)) error {
	return store.Each(bucket, func(key string, value []byte) error {
		v := new(T)
		if err := json.Unmarshal(value, v); err != nil {
			return fmt.Errorf("%s of %s in the control plane's state can't be read: %w", key, bucket, err)
		}
		f(v)
		return nil
	})
}

// index takes up a replica whose parts or whose being given up may have changed.
func (r *records) index(rec *replicaRecord) {
	r.replicas[rec.ID] = rec
	r.next = max(r.next, rec.Born+1)
	for _, p := range rec.Parts {
		put(r.on, p.Host, rec)
	}
	if len(rec.Parts) == 0 {
		r.waiting[rec.ID] = rec
	} else {
		delete(r.waiting, rec.ID)
	}
	if rec.GivenUp == nil {
		put(r.of, rec.key(), rec)
	} else {
		drop(r.of, rec.key(), rec.ID)
	}
}

func put[K comparable](m map[K]map[string]*replicaRecord, k K, rec *replicaRecord) {
	if m[k] == nil {
		m[k] = map[string]*replicaRecord{}
	}
	m[k][rec.ID] = rec
}

func drop[K comparable](m map[K]map[string]*replicaRecord, k K, id string) {
	delete(m[k], id)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// save marks a replica as changed; with told its hosts have to hear of it.
func (r *records) save(rec *replicaRecord, told bool) {
	r.index(rec)
	r.marked[[2]string{bucketReplicas, rec.ID}] = true
	if told {
		for _, p := range rec.Parts {
			r.touch(p.Host)
		}
	}
}

// remove forgets a replica, and those that were given up for it.
func (r *records) remove(rec *replicaRecord) {
	delete(r.replicas, rec.ID)
	delete(r.waiting, rec.ID)
	drop(r.of, rec.key(), rec.ID)
	for _, p := range rec.Parts {
		drop(r.on, p.Host, rec.ID)
		r.touch(p.Host)
	}
	r.marked[[2]string{bucketReplicas, rec.ID}] = true
	for _, old := range r.replicas {
		if old.GivenUp != nil && old.Successor == rec.ID {
			r.remove(old)
		}
	}
}

// touch has a host's Wish get a new epoch at the next flush.
func (r *records) touch(host string) {
	if h := r.hosts[host]; h != nil && !r.touched[host] {
		r.touched[host] = true
		h.Epoch++
		r.marked[[2]string{bucketHosts, host}] = true
	}
}

func (r *records) saveHost(h *hostRecord) {
	r.hosts[h.Name] = h
	r.marked[[2]string{bucketHosts, h.Name}] = true
}

func (r *records) removeHost(name string) {
	delete(r.hosts, name)
	r.marked[[2]string{bucketHosts, name}] = true
}

func (r *records) saveDeployment(d *deploymentRecord) {
	r.deployments[d.Key] = d
	r.marked[[2]string{bucketDeployments, deploymentKey(d.Key)}] = true
}

func (r *records) removeDeployment(key adapters.Key) {
	delete(r.deployments, key)
	r.marked[[2]string{bucketDeployments, deploymentKey(key)}] = true
}

func deploymentKey(k adapters.Key) string {
	return strings.Join([]string{k.Fleet, k.Model, k.Revision}, "\x00")
}

// flush writes all that is marked, or nothing, and gives the hosts that were touched.
func (r *records) flush(store state.Store) (touched []string, err error) {
	if len(r.marked) == 0 {
		return nil, nil
	}
	deployments := make(map[string]*deploymentRecord)
	for key, d := range r.deployments {
		if k := deploymentKey(key); r.marked[[2]string{bucketDeployments, k}] {
			deployments[k] = d
		}
	}
	changes := make([]state.Change, 0, len(r.marked))
	for mark := range r.marked {
		var value []byte
		switch bucket, key := mark[0], mark[1]; bucket {
		case bucketHosts:
			value, err = encode(r.hosts[key])
		case bucketDeployments:
			value, err = encode(deployments[key])
		default:
			value, err = encode(r.replicas[key])
		}
		if err != nil {
			return nil, err
		}
		changes = append(changes, state.Change{Bucket: mark[0], Key: mark[1], Value: value})
	}
	if err := store.Write(changes...); err != nil {
		return nil, err
	}
	touched = slices.Collect(maps.Keys(r.touched))
	clear(r.marked)
	clear(r.touched)
	return touched, nil
}

// encode gives nil, which deletes, for what is not there any more.
func encode[T any](v *T) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	return json.Marshal(v)
}

// wanted gives the replicas of a deployment, oldest first.
func (r *records) wanted(key adapters.Key) []*replicaRecord {
	all := slices.Collect(maps.Values(r.of[key]))
	slices.SortFunc(all, func(a, b *replicaRecord) int { return int(a.Born - b.Born) })
	return all
}

// successor follows the replicas that replaced rec to the one that is wanted now; nil when there is none.
func (r *records) successor(rec *replicaRecord) *replicaRecord {
	for rec != nil && rec.GivenUp != nil {
		rec = r.replicas[rec.Successor]
	}
	return rec
}

// succeed has those that were given up for rec be succeeded by another one.
func (r *records) succeed(rec, by *replicaRecord) {
	for _, old := range r.replicas {
		if old.GivenUp != nil && old.Successor == rec.ID {
			old.Successor = by.ID
			r.save(old, false)
		}
	}
}

// draining tells whether a replica is marked.
func (r *records) draining(rec *replicaRecord) bool {
	d := r.deployments[rec.key()]
	return d != nil && slices.Contains(d.Drain, rec.ID)
}

// model gives how a replica is started.
func (r *records) model(rec *replicaRecord) *mobula.Model {
	if d := r.deployments[rec.key()]; d != nil {
		return &d.Model
	}
	return nil
}
