// Package lora decides which replica of a model loads which LoRA. It does nothing itself: it goes from what
// is wanted and what is there to the calls that close the gap.
package lora

import (
	"time"

	"github.com/mobula-serve/mobula"
)

// Input is what a plan rests on: one model at one moment.
type Input struct {
	Now time.Time
	// LoRAs that the fleet wants for the model, each name once.
	LoRAs []mobula.LoRA
	// Replicas of the model, each ID once.
	Replicas []Replica
}

// Replica is what is known of one.
type Replica struct {
	ID string
	// Serving replicas take requests. Draining ones take no new ones, so what they have loaded does not count.
	Serving, Draining bool
	// Known tells that the engine's cards have been read since its process started; until then nothing is
	// done to it, and it is taken to have what it had. When they can't be read for a while, what was read last is the best guess.
	Known bool
	// Loaded are the ids of its cards that have a parent.
	Loaded []string
}

// open tells whether LoRAs may be on it.
func (r *Replica) open() bool { return r.Serving && !r.Draining }

// Kind of an action.
type Kind string

// Kinds of actions.
const (
	Load   Kind = "load" // also when the replica has it from another source: it is replaced in place
	Unload Kind = "unload"
)

// Action is one call to one replica's engine. It is the same as long as it is due: one that still runs is not
// begun again. Tell State.Done how it ended.
type Action struct {
	Kind    Kind
	Replica string
	LoRA    string
	Source  string // of a load
}

const (
	// The pause after a failed action doubles with each failure in a row, between these.
	minBackoff = time.Second
	maxBackoff = time.Minute
	// forgetAfter is when a failure that nobody has repeated does not count against the replica any more.
	forgetAfter = 10 * time.Minute
)
