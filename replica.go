package mobula

import "time"

// State is where a replica is in its life.
type State string

// States of a replica. Pending → Starting → Ready → Draining → Gone; Suspect and Failed leave the line.
const (
	StatePending  State = "Pending"  // nowhere yet: it waits for room, or for its host
	StateStarting State = "Starting" // its process runs, and does not serve yet
	StateReady    State = "Ready"    // it serves
	StateAsleep   State = "Asleep"   // vLLM's sleep mode: it holds its GPUs and serves nothing until it is woken
	StateDraining State = "Draining" // it finishes what it has, and then goes
	StateSuspect  State = "Suspect"  // its host is silent or its probes fail: it may serve or not
	StateFailed   State = "Failed"   // it has died too often, or was never ready in time
	StateGone     State = "Gone"     // nothing of it is left
)

// Replica is one running engine of a model, as a platform reports it. It may span GPUs and hosts.
type Replica struct {
	// ID is unique in the fleet, for as long as the fleet exists: a replica that replaces another one has another ID.
	ID string `json:"id"`
	// Model and Revision say what it runs.
	Model    string `json:"model"`
	Revision string `json:"revision"`
	// State, since when, and why in a sentence for people; the reason of Pending, Suspect and Failed is never empty.
	State  State     `json:"state"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	// NoRoom tells that a Pending replica waits for resources that others hold, or that nobody has.
	NoRoom bool `json:"noRoom,omitempty"`
	// URL where it serves, empty until that is known.
	URL string `json:"url,omitempty"`
	// Hosts that it runs on (host, node), the one that serves first, and the devices on each of them ("0,1").
	Hosts   []string `json:"hosts,omitempty"`
	Devices []string `json:"devices,omitempty"`
	// Restarts of its processes since it was made; to be moved is one.
	Restarts int `json:"restarts"`
	// Detail is what the platform calls it (process, pod, actor), for people.
	Detail string `json:"detail,omitempty"`
}

// Serving tells whether it can take requests.
func (r *Replica) Serving() bool { return r.State == StateReady }

// Host is a machine (host, node) of a platform.
type Host struct {
	Name    string            `json:"name"`
	Address string            `json:"address,omitempty"` // where its agent listens, host:port; empty without one
	Labels  map[string]string `json:"labels,omitempty"`
	Devices []Device          `json:"devices,omitempty"`
	Slots   int               `json:"slots"` // engines without a GPU that it may run
	// Cordoned hosts get no new replicas.
	Cordoned bool `json:"cordoned,omitempty"`
	// Heard is when it answered last. Silent is why it is thought to be away, empty when it answers.
	Heard  time.Time `json:"heard"`
	Silent string    `json:"silent,omitempty"`
	// Version of the agent, empty without one.
	Version string `json:"version,omitempty"`
}

// Device is a GPU, or a MIG instance of one.
type Device struct {
	// ID is what CUDA_VISIBLE_DEVICES takes: an index such as "0", or a UUID of a MIG instance.
	ID   string `json:"id"`
	UUID string `json:"uuid,omitempty"`
	Name string `json:"name"` // "NVIDIA H200"
	// Memory and Used are in bytes; Utilization is 0 to 1.
	Memory      Size    `json:"memory"`
	Used        Size    `json:"used"`
	Utilization float64 `json:"utilization"`
	// Group is equal for devices that reach each other over NVLink; empty for none.
	Group string `json:"group,omitempty"`
	// Unhealthy says why it must not be used (an XID error, fallen off the bus), empty when it is well.
	Unhealthy string `json:"unhealthy,omitempty"`
}
