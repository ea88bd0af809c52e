package control

import (
	"time"

	"github.com/mobula-serve/mobula"
)

// View is all that a control plane knows, at one moment. It is immutable: a new one takes its place.
type View struct {
	// Control names this control plane: made once, kept with its state.
	Control string `json:"control"`
	Version int64  `json:"version"` // grows with each new View
	// Fleet is the name of the fleet, empty before the first apply. Generation grows with each apply.
	Fleet      string          `json:"fleet"`
	Generation int64           `json:"generation"`
	Models     []ModelStatus   `json:"models"`
	Replicas   []ReplicaStatus `json:"replicas"`
	Hosts      []mobula.Host   `json:"hosts"`
	// Routers that have reported lately.
	Routers []RouterStatus `json:"routers"`
	// Stale is why the platform can't be asked, empty when it can; StaleSince since when.
	Stale      string    `json:"stale,omitempty"`
	StaleSince time.Time `json:"staleSince,omitzero"`
}

// ModelStatus is how a placed model fares.
type ModelStatus struct {
	Name    string   `json:"name"`
	Aliases []string `json:"aliases,omitempty"`
	Source  string   `json:"source"`
	// Revision that is wanted, and the one before it that was good.
	Revision string `json:"revision"`
	Previous string `json:"previous,omitempty"`
	// Replicas is the range of the fleet file; Wanted is what is aimed at now and ScaleReason why.
	Replicas    mobula.Range `json:"replicas"`
	Wanted      int          `json:"wanted"`
	ScaleReason string       `json:"scaleReason,omitempty"`
	// Scaled tells that mobula scale has set Wanted.
	Scaled bool `json:"scaled,omitempty"`
	// Deleted tells that nobody wants it any more; it is listed until its replicas are gone.
	Deleted bool `json:"deleted,omitempty"`
	// Numbers of replicas by state, and of those Ready that run Revision.
	Ready    int          `json:"ready"`
	Updated  int          `json:"updated"`
	Starting int          `json:"starting"` // Pending or Starting
	Asleep   int          `json:"asleep,omitempty"`
	Draining int          `json:"draining,omitempty"`
	Failed   int          `json:"failed,omitempty"` // Failed or Suspect
	Rollout  Phase        `json:"rollout"`
	Reason   string       `json:"reason,omitempty"` // of Rollout
	Since    time.Time    `json:"since"`            // of Rollout
	LoRAs    []LoRAStatus `json:"loras,omitempty"`
	// Load over all routers: the sums and the worst quantiles of their reports.
	Load mobula.ModelReport `json:"load"`
}

// Phase of a rollout.
type Phase string

// Phases of a rollout.
const (
	RolloutProgressing Phase = "Progressing" // replicas are being started or replaced
	RolloutComplete    Phase = "Complete"    // as many as wanted are Ready, all of the wanted revision
	RolloutRolledBack  Phase = "RolledBack"  // the new revision failed; the last good one runs
	RolloutFailed      Phase = "Failed"      // there is nothing good to go back to
)

// LoRAStatus is how a LoRA of a model fares.
type LoRAStatus struct {
	Name   string `json:"name"`
	Source string `json:"source"`
	// Wanted replicas and those that have it loaded.
	Wanted int      `json:"wanted"`
	Loaded []string `json:"loaded"`
	// Error of the last attempt that failed, empty when all is well.
	Error string `json:"error,omitempty"`
}

// ReplicaStatus is a replica with what routers say of it. State has what we think: Draining when it
// is marked, Suspect when routers can't reach it although its host says Ready.
type ReplicaStatus struct {
	mobula.Replica
	LoRAs []string `json:"loras,omitempty"`
	// Load over all routers; nil when none has reported it.
	Load *mobula.EndpointReport `json:"load,omitempty"`
	// Held back by mobula drain until mobula drain --off.
	Cordoned bool `json:"cordoned,omitempty"`
}

// RouterStatus is a router that has reported.
type RouterStatus struct {
	Name  string    `json:"name"`
	Heard time.Time `json:"heard"`
}

// Event is something that happened, for people.
type Event struct {
	At time.Time `json:"at"` // the last time
	// Warning tells events that someone should look at.
	Warning bool `json:"warning,omitempty"`
	// Object is "fleet", "model/NAME", "replica/ID" or "host/NAME".
	Object string `json:"object"`
	// Reason is one word in CamelCase, Message a sentence.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Count   int    `json:"count"` // equal ones in a row
	Seq     int64  `json:"seq"`   // grows with each; also when Count does
}

// Change is what an apply would do or has done.
type Change struct {
	// Fleet and its Generation after the change.
	Fleet      string `json:"fleet"`
	Generation int64  `json:"generation"`
	// Models in the order of the new fleet, removed ones last; unchanged ones have Action "unchanged".
	Models []ModelChange `json:"models"`
	// Settings tells that the router's, the KV's or the platform's section or the providers changed.
	Settings bool `json:"settings"`
	// Warnings to show: models that are removed, a scale that is overwritten.
	Warnings []string `json:"warnings,omitempty"`
}

// ModelChange is what changes for one model.
type ModelChange struct {
	Name string `json:"name"`
	// Action is create, roll, update, remove or unchanged. An update needs no new engines.
	Action string `json:"action"`
	// Fields that differ, as "replicas: 1-4 → 2".
	Fields []string `json:"fields,omitempty"`
}
