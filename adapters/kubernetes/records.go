package kubernetes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	// labelRecord on a record, and on all that follows from it, is the record's base.
	labelRecord = kube.Group + "/record"
	// recordPrefix comes before the base in a record's name.
	recordPrefix = "mobula-"
	recordKey    = "deployment"

	// labelPart tells the pods of rank 0 from the others.
	labelPart  = kube.Group + "/part"
	partFirst  = "first"
	partOthers = "others"
)

// record is what is durable of a deployment: one ConfigMap. It is not changed once it is in use, but replaced.
type record struct {
	// Base is what the Deployment is called, unique in the namespace: a deployment that is removed and asked for again while
	// its pods still end has another one, and so have the deployments of two fleets that are alike.
	Base     string       `json:"base"`
	Key      adapters.Key `json:"key"`
	Model    mobula.Model `json:"model"`
	Replicas int          `json:"replicas"`
	Drain    []string     `json:"drain,omitempty"`
	// Removed is set until nothing of it is left.
	Removed bool `json:"removed,omitempty"`
	// Kind of workload, and what its objects are made from beside the model, as they were when it was first asked for: neither another
	// version of Mobula nor a setting that makes no revision restarts an engine.
	Kind     string          `json:"kind"`
	Made     *mobula.Model   `json:"made,omitempty"` // if it differs from Model
	KubeRay  *mobula.KubeRay `json:"kubeRay,omitempty"`
	OwnImage string          `json:"ownImage,omitempty"`
	// Print names what its objects are made from, for their annotation. It is kept, since another version of Mobula may find another name for the same.
	Print string `json:"print,omitempty"`
	// Names are the IDs of its replicas, oldest first, if each has objects of its own.
	Names []string `json:"names,omitempty"`
	// Victims are replicas that were taken away, until nothing of them is left.
	Victims []string `json:"victims,omitempty"`
	// Asleep are objects of the replicas that a model without any had last, kept without pods. Taken has the names of those that replicas
	// have taken over since, by their IDs.
	Asleep []sleeper         `json:"asleep,omitempty"`
	Taken  map[string]string `json:"taken,omitempty"`

	version string // of the ConfigMap; empty before it is written
	uid     types.UID
	written string // its text there
	owner   *metav1.OwnerReference
	since   time.Time // when it was made
}

func (r *record) name() string { return recordPrefix + r.Base }

// group is that of the model's records: what is looked after at once.
func (r *record) group() string { return groupOf(r.Key.Fleet, kube.Label(r.Key.Model)) }

func groupOf(fleet, modelLabel string) string { return fleet + "/" + modelLabel }

func fleetOf(group string) string {
	fleet, _, _ := strings.Cut(group, "/")
	return fleet
}

// engine is what its objects are made from.
func (r *record) engine() kube.Engine {
	return kube.Engine{Fleet: r.Key.Fleet, Revision: r.Key.Revision, Model: *cmp.Or(r.Made, &r.Model), KubeRay: r.KubeRay, OwnImage: r.OwnImage}
}

// clone gives a copy to be changed.
func (r *record) clone() *record {
	c := *r
	c.Drain, c.Names, c.Victims = slices.Clone(r.Drain), slices.Clone(r.Names), slices.Clone(r.Victims)
	c.Asleep, c.Taken = slices.Clone(r.Asleep), maps.Clone(r.Taken)
	return &c
}

func (r *record) deployment() adapters.Deployment {
	return adapters.Deployment{Key: r.Key, Model: r.Model, Replicas: r.Replicas, Drain: slices.Clone(r.Drain)}
}

// asks tells whether the same is asked for as in another one of it, whatever has become of that.
func (r *record) asks(other *record) bool {
	return r.Removed == other.Removed && r.Replicas == other.Replicas && slices.Equal(r.Drain, other.Drain) && kube.Hash(r.Model) == kube.Hash(other.Model)
}

// text is what is stored of it.
func (r *record) text() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("record %s: %w", r.name(), err)
	}
	return string(text), nil
}

// configMap is how it is stored.
func (r *record) configMap(namespace string) (*corev1.ConfigMap, error) {
	text, err := r.text()
	if err != nil {
		return nil, err
	}
	e := r.engine()
	labels := e.Labels()
	labels[labelRecord] = r.Base
	labels[kube.LabelName] = "mobula-record"
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: r.name(), Namespace: namespace, ResourceVersion: r.version, Labels: labels, Annotations: annotations(e),
		},
		Data: map[string]string{recordKey: text},
	}
	if r.owner != nil {
		m.OwnerReferences = []metav1.OwnerReference{*r.owner}
	}
	return m, nil
}

// readRecord reads one.
func readRecord(m *corev1.ConfigMap) (*record, error) {
	r := &record{}
	if err := json.Unmarshal([]byte(m.Data[recordKey]), r); err != nil {
		return nil, fmt.Errorf("ConfigMap %s is no record of a deployment, delete it: %w", m.Name, err)
	}
	if r.name() != m.Name || r.Key.Model == "" || r.Key.Revision == "" || r.Kind == "" || r.Replicas < 0 || slices.Contains(r.Names, "") {
		return nil, fmt.Errorf("ConfigMap %s is no record of a deployment, delete it: it says to be %q of %v", m.Name, r.name(), r.Key)
	}
	if r.Model.Name != r.Key.Model || r.engine().Model.Name != r.Key.Model {
		return nil, fmt.Errorf("ConfigMap %s is no record of a deployment, delete it: its model is %q, and %q in its key", m.Name, r.Model.Name, r.Key.Model)
	}
	if r.group() != groupByLabels(m) {
		return nil, fmt.Errorf("ConfigMap %s is no record of a deployment, delete it: it says to be of %s, and its labels of %s", m.Name, r.group(), groupByLabels(m))
	}
	r.version, r.uid, r.written, r.since = m.ResourceVersion, m.UID, m.Data[recordKey], m.CreationTimestamp.Time
	if len(m.OwnerReferences) > 0 {
		r.owner = &m.OwnerReferences[0]
	}
	return r, nil
}

// ownerOf is who the objects of a record belong to: the model's own object, or the record.
func ownerOf(r *record, model *metav1.OwnerReference) metav1.OwnerReference {
	if model != nil {
		return *model
	}
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: r.name(), UID: r.uid}
}

// bases gives names for a deployment, best first, without end.
func bases(key adapters.Key) func(yield func(string) bool) {
	name := kube.Name(key.Model, key.Revision)
	return func(yield func(string) bool) {
		for n := 1; ; n++ {
			base := name
			if n > 1 {
				base += "-" + strconv.Itoa(n)
			}
			if !yield(base) {
				return
			}
		}
	}
}
