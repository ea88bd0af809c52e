package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"reflect"
	"time"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/control/lora"
	"github.com/mobula-serve/mobula/control/scale"
)

// memory is what is remembered of a model beside the fleet file. It is written to the Store before
// anything is done about it, and is never changed once it is in place: plan makes a new one.
type memory struct {
	// Target is the revision that is aimed at; Pin is set while that is not the fleet file's own, after
	// a roll-back. Good served as wanted last, Previous before it.
	Target   string `json:"target,omitempty"`
	Pin      string `json:"pin,omitempty"`
	Good     string `json:"good,omitempty"`
	Previous string `json:"previous,omitempty"`
	// Nonce counts restarts and is part of the revision.
	Nonce int `json:"nonce,omitempty"`
	// Range is the fleet file's at the last apply. Scaled overrules it, Auto is the autoscaler's number within it.
	Range       mobula.Range `json:"range"`
	Scaled      *int         `json:"scaled,omitempty"`
	Auto        int          `json:"auto"`
	ScaleReason string       `json:"scaleReason,omitempty"`
	Scale       *scale.State `json:"scale,omitempty"` // when it came to Auto
	LoRA        lora.State   `json:"lora,omitzero"`
	Phase       Phase        `json:"phase,omitempty"`
	Reason      string       `json:"reason,omitempty"`
	Since       time.Time    `json:"since,omitzero"`
	// Deleted models are unwanted until the next apply.
	Deleted   bool                `json:"deleted,omitempty"`
	Revisions map[string]revision `json:"revisions,omitempty"`
	// Marks are the replicas that are held back, by ID.
	Marks map[string]mark `json:"marks,omitempty"`
}

// revision is one way of starting a model's engines.
type revision struct {
	Model mobula.Model `json:"model"`
	// Live replicas are wanted of it beside those that are marked.
	Live int `json:"live"`
}

// mark holds a replica back: it gets no new requests, and goes or sleeps when it has none left.
type mark struct {
	Revision string    `json:"revision"`
	Since    time.Time `json:"since"`
	Why      string    `json:"why"` // for people
	// Person tells that somebody wants it so, and may take it back.
	Person bool `json:"person,omitempty"`
	// Released replicas no longer count: the platform may stop them.
	Released bool `json:"released,omitempty"`
	// Sleep is for replicas that stay, in vLLM's sleep mode. Asleep tells that it is there, since its process
	// had been restarted Restarts times; Waking that it is on the way back.
	Sleep    bool `json:"sleep,omitempty"`
	Asleep   bool `json:"asleep,omitempty"`
	Waking   bool `json:"waking,omitempty"`
	Restarts int  `json:"restarts,omitempty"`
}

// counts tells whether the marked replica is one more than its revision's Live.
func (m *mark) counts() bool { return !m.Released && !m.Waking }

// clone gives a memory that may be changed.
func (m memory) clone() memory {
	m.Revisions = maps.Clone(m.Revisions)
	if m.Revisions == nil {
		m.Revisions = map[string]revision{}
	}
	m.Marks = maps.Clone(m.Marks)
	if m.Marks == nil {
		m.Marks = map[string]mark{}
	}
	return m
}

// wanted gives how many replicas there should be, but for surge.
func (m *memory) wanted() int {
	switch {
	case m.Deleted:
		return 0
	case m.Scaled != nil:
		return *m.Scaled
	default:
		return m.Range.Clamp(m.Auto)
	}
}

// asks gives how many replicas the platform should have of each revision.
func (m *memory) asks() map[string]int {
	n := make(map[string]int, len(m.Revisions))
	for rev, r := range m.Revisions {
		n[rev] = r.Live
	}
	for _, mk := range m.Marks {
		if mk.counts() {
			n[mk.Revision]++
		}
	}
	return n
}

// revisionLength is how many hex digits of the hash name a revision.
const revisionLength = 10

// revisionOf names what can't be changed in a running engine.
func revisionOf(m *mobula.Model, nonce int) string {
	r := m.Resources
	canonical, err := json.Marshal(struct { // maps come sorted by key
		Source        string
		Kind          string
		Command, Args []string
		Env           map[string]string
		Resources     mobula.Resources
		Nonce         int
		LoRAs, Sleep  bool // they change the engine's arguments
		// Nil as they are by default: revisions from before them stay.
		Ray        *mobula.RayModel       `json:",omitempty"`
		Kubernetes *mobula.KubernetesPods `json:",omitempty"`
	}{m.From(), m.Engine.Kind, m.Engine.Command, m.Engine.Args, m.Engine.Env, r, nonce, len(m.LoRAs) > 0, m.Scaling.Sleep, rayOf(m), podsOf(m)})
	if err != nil { // none of these types can fail
		panic(err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:])[:revisionLength]
}

func rayOf(m *mobula.Model) *mobula.RayModel {
	if reflect.DeepEqual(m.Ray, mobula.NewModel("").Ray) {
		return nil
	}
	return &m.Ray
}

func podsOf(m *mobula.Model) *mobula.KubernetesPods {
	if reflect.DeepEqual(m.Kubernetes, mobula.KubernetesPods{}) {
		return nil
	}
	return &m.Kubernetes
}

// engineModel gives what a platform needs of a model, so that nothing else changes a deployment.
func engineModel(m *mobula.Model) mobula.Model {
	e := mobula.Model{
		Name: m.Name, Source: m.Source, Engine: m.Engine, Resources: m.Resources, Ray: m.Ray, Kubernetes: m.Kubernetes,
		Scaling: mobula.Scaling{Sleep: m.Scaling.Sleep},
		Rollout: mobula.Rollout{Drain: m.Rollout.Drain},
	}
	if d := &e.Kubernetes.Data; d.Size > 0 && d.AccessMode == "" && m.Replicas != nil && m.Replicas.Max > 1 { // one revision at one time may have one replica, and the claim is made once
		d.AccessMode = "ReadWriteMany"
	}
	if len(m.LoRAs) > 0 { // that there are some is all that matters to an engine's start
		e.LoRAs = make([]mobula.LoRA, 1)
	}
	return e
}
