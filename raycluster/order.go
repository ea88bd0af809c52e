// Package raycluster holds what runs on a Ray cluster for us: the launcher, a small Python program that a Ray job
// runs, and the words in which it is told what to do and in which its actors say where they serve.
package raycluster

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// OrderVersion is the version of Order that the launcher of this binary takes.
const OrderVersion = 1

// OrderVariable is the environment variable in which a launcher job finds its Order, as JSON.
const OrderVariable = "MOBULA_ORDER"

// MaxOrderBytes bounds an encoded Order: Linux takes 128 KiB for one environment variable.
const MaxOrderBytes = 96 << 10

// Order is what one launcher job does. All of it is idempotent: what is there already is left alone.
type Order struct {
	Version   int    `json:"version"`
	Namespace string `json:"namespace"`
	// Detached actors outlive the job, which ends as soon as they are registered. Without it the job has
	// exactly one Start, stays, and ends with its engine: its actors and its placement group end with it.
	Detached bool    `json:"detached"`
	Start    []Start `json:"start,omitempty"`
	// Stop names actors (of part 0) to end with all their parts and their placement groups. Those that are gone are fine.
	Stop []Stop `json:"stop,omitempty"`
}

// Start is one replica to start.
type Start struct {
	// Name of the placement group and of the actor of part 0, made by ActorName; part n has PartName.
	Name string `json:"name"`
	// Fleet, Model, Revision and Replica are published with the endpoint.
	Fleet    string `json:"fleet"`
	Model    string `json:"model"`
	Revision string `json:"revision"`
	Replica  string `json:"replica"`
	// Argv of the engine on each of its nodes, the one that serves first. An argument that is just a
	// placeholder is replaced: {host} and {port} where this part listens, {master} and {masterPort} where
	// the parts meet, on the node of part 0.
	Argv [][]string `json:"argv"`
	// Env is set for the engine, over what the actor has; values may be placeholders.
	Env map[string]string `json:"env,omitempty"`
	// Bundle is what each part takes of its node: CPU, GPU, memory (bytes), custom resources.
	Bundle map[string]float64 `json:"bundle"`
	// Labels selects nodes by Ray's labels; a value may be Ray's in(…), !in(…) or !value.
	Labels map[string]string `json:"labels,omitempty"`
	// RuntimeEnv of the actors, as Ray takes it. Nothing is added to it: an image takes nothing beside it.
	RuntimeEnv json.RawMessage `json:"runtimeEnv,omitempty"`
	// PortMin to PortMax are the ports to choose from; 0 for any.
	PortMin int `json:"portMin,omitempty"`
	PortMax int `json:"portMax,omitempty"`
	// StartTimeout bounds the time until /health answers; StopTimeout is from SIGTERM to SIGKILL. Seconds.
	StartTimeout float64 `json:"startTimeout"`
	StopTimeout  float64 `json:"stopTimeout"`
	// Attempts that may fail in a row before it was ever ready; then the actor gives up with the reason. At least 1.
	Attempts int `json:"attempts"`
	// Backoff before the second start in a row, doubled for each further one up to MaxBackoff. A run of at
	// least Stable lets them count from zero. Seconds.
	Backoff    float64 `json:"backoff"`
	MaxBackoff float64 `json:"maxBackoff"`
	Stable     float64 `json:"stable"`
}

// Stop is one replica to end.
type Stop struct {
	Name string `json:"name"`
	// Timeout in seconds for its engine to stop by itself, before the actor is killed.
	Timeout float64 `json:"timeout"`
}

// namePrefix begins the names of all our actors and placement groups.
const namePrefix = "mobula/"

// ActorName names the actor and the placement group of a replica of an owner.
func ActorName(owner, replica string) string { return namePrefix + owner + "/" + replica }

// PartName names the actor of one part of a replica; rank 0 has the replica's own name.
func PartName(name string, rank int) string {
	if rank == 0 {
		return name
	}
	return name + "." + strconv.Itoa(rank)
}

// ParseName takes a name apart that ActorName or PartName made.
func ParseName(name string) (owner, replica string, rank int, ok bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return "", "", 0, false
	}
	owner, replica, ok = strings.Cut(rest, "/")
	if !ok || owner == "" || replica == "" || strings.Contains(replica, "/") {
		return "", "", 0, false
	}
	if id, part, has := strings.Cut(replica, "."); has {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 || id == "" || strconv.Itoa(n) != part {
			return "", "", 0, false
		}
		replica, rank = id, n
	}
	return owner, replica, rank, true
}

// ActorClass is the class of our actors, as Ray lists it. An actor of ours in name that has another class is
// somebody else's.
const ActorClass = "MobulaEngine"

// Publication is what an actor says of itself in its repr, which Ray's state API gives as repr_name. An actor
// says it when its engine serves, not before.
type Publication struct {
	Version  int    `json:"v"`
	URL      string `json:"url"` // of part 0: "http://10.77.0.2:46127"; empty for other parts
	Fleet    string `json:"fleet"`
	Model    string `json:"model"`
	Revision string `json:"revision"`
	Replica  string `json:"replica"`
	Rank     int    `json:"rank"`
	// Generation grows with each start of the actor, from 0. PID is the actor's own, as Ray lists it too: a
	// Publication whose PID is not the one listed beside it is of a run before.
	Generation int `json:"gen"`
	PID        int `json:"pid"`
	// Devices as CUDA_VISIBLE_DEVICES names them: "0,1".
	Devices string `json:"devices,omitempty"`
	// ReadyAt is the node's clock when the engine got ready, in Unix seconds.
	ReadyAt float64 `json:"readyAt"`
}

// Ready gives ReadyAt as a time.
func (p *Publication) Ready() time.Time { return time.UnixMilli(int64(p.ReadyAt * 1000)) }

// publicationPrefix begins a repr of ours.
const publicationPrefix = "mobula "

// ParsePublication reads an actor's repr_name; false for one that is not ours or that can't be right.
func ParsePublication(repr string) (Publication, bool) {
	var p Publication
	text, ok := strings.CutPrefix(repr, publicationPrefix)
	if !ok || json.Unmarshal([]byte(text), &p) != nil || p.Version != OrderVersion || p.Replica == "" {
		return Publication{}, false
	}
	return p, true
}

// FailureMark begins the line, in an actor's death cause, after which the launcher tells why an engine could
// not be started: the reason, and then the engine's last lines.
const FailureMark = "mobula: engine failed: "
