// Package agent is how the control plane speaks with the agent of a host: the messages, a client,
// and an agent in memory that stands in for a real one.
//
// An agent serves JSON over HTTP/1.1 with mutual TLS, on port 8200 unless told otherwise:
//
//	PUT  /v1/tasks                      Wish → State     what this host is to run, all of it
//	GET  /v1/state?after=SEQ&wait=20s   State            at once when Seq is beyond after, else after the wait
//	GET  /v1/tasks/{id}/logs?tail=&follow=  text/plain   what an engine printed
//	POST /v1/fetch                      FetchRequest → FetchAnswer
//
// Errors are {"error": "..."}: 400 for what makes no sense, 403 for a control plane that is not the agent's,
// 404 for an unknown task, 409 for a Wish older than one seen, 507 when the disk is full.
package agent

import (
	"time"

	"github.com/mobula-serve/mobula"
)

// Task is one process that a host is to run: an engine, or one host's part of it.
type Task struct {
	// ID is unique on the host: the replica's ID, for an engine of several hosts with ".0", ".1" … after it.
	ID      string `json:"id"`
	Replica string `json:"replica"`
	Fleet   string `json:"fleet"`
	// Model says how the engine is started; Revision is of it.
	Model    mobula.Model `json:"model"`
	Revision string       `json:"revision"`
	// Devices to use, as Device.ID; empty for the CPU.
	Devices []string `json:"devices,omitempty"`
	// Rank of this part and the number of Parts (0 or 1 for an engine on one host). Rank 0 serves.
	Rank  int `json:"rank,omitempty"`
	Parts int `json:"parts,omitempty"`
	// Master is the address of rank 0's host, MasterPort the port on which vLLM's ranks meet there.
	Master     string `json:"master,omitempty"`
	MasterPort int    `json:"masterPort,omitempty"`
	// Round tells apart attempts of an engine of several parts: when one part dies all are started again in the next round.
	Round int `json:"round,omitempty"`
	// Draining tasks get no new requests, so an agent that stops one need not wait for any.
	Draining bool `json:"draining,omitempty"`
}

// Wish is all that a host is to run. The agent makes it durable before it answers, starts what is
// missing, stops what is not in it, and leaves alone what is running as wished.
type Wish struct {
	// Control names the control plane. An agent that has joined another one refuses it.
	Control string `json:"control"`
	// Epoch grows with each Wish to this host. An agent refuses one that is not above the last.
	Epoch int64  `json:"epoch"`
	Tasks []Task `json:"tasks"`
}

// TaskState is where a task is in its life.
type TaskState string

// States of a task.
const (
	TaskStarting TaskState = "starting" // runs, not ready
	TaskReady    TaskState = "ready"    // /health answers; a part that does not serve: its process runs
	TaskWaiting  TaskState = "waiting"  // died; starts again after a back-off
	TaskFailed   TaskState = "failed"   // died too often, or was not ready in time; not started again until the wish changes
	TaskStopping TaskState = "stopping" // no longer wished, or of an older round
)

// TaskStatus is how a task fares.
type TaskStatus struct {
	ID       string    `json:"id"`
	Replica  string    `json:"replica"`
	Fleet    string    `json:"fleet"`
	Model    string    `json:"model"`
	Revision string    `json:"revision"`
	Round    int       `json:"round,omitempty"`
	State    TaskState `json:"state"`
	Since    time.Time `json:"since"`
	// Reason of waiting and failed: the exit status and the line of the engine's log that says why.
	Reason string `json:"reason,omitempty"`
	// URL where the engine listens, for rank 0, as soon as its port is known.
	URL      string   `json:"url,omitempty"`
	Devices  []string `json:"devices,omitempty"`
	Restarts int      `json:"restarts"`
	PID      int      `json:"pid,omitempty"`
}

// State is all that a host has to tell.
type State struct {
	// Seq grows with each change and starts anew with Instance, which is another one for each start of the agent.
	Seq      int64  `json:"seq"`
	Instance string `json:"instance"`
	// Epoch is that of the last Wish taken, 0 for none.
	Epoch   int64             `json:"epoch"`
	Name    string            `json:"name"`
	Version string            `json:"version"`
	Labels  map[string]string `json:"labels,omitempty"`
	Devices []mobula.Device   `json:"devices,omitempty"`
	// Slots are engines without a GPU that the host may run at once.
	Slots int          `json:"slots"`
	Tasks []TaskStatus `json:"tasks"`
	// Clock is the agent's when it answered: a control plane warns of one that is far from its own.
	Clock time.Time `json:"clock"`
	// Disk is what is free for logs and models, in bytes.
	Disk mobula.Size `json:"disk"`
}

// FetchRequest asks for files on the host.
type FetchRequest struct {
	// Source is a folder on the host, or an http, https or s3 URL of an archive or a folder.
	Source string `json:"source"`
}

// FetchAnswer tells where they are.
type FetchAnswer struct {
	Path string `json:"path"`
}

// Join is what an agent sends to the control plane's POST /v1/join, with a join token as bearer.
type Join struct {
	// Name the host has, unique in the fleet; Address where its agent listens, host:port.
	Name    string `json:"name"`
	Address string `json:"address"`
	// CSR is a PEM certificate request for the agent's key.
	CSR string `json:"csr"`
	// Clock is the agent's; one more than five minutes off is refused, for its certificates would be worth nothing.
	Clock time.Time `json:"clock"`
}

// Joined is the answer.
type Joined struct {
	// Control names the control plane; Certificate and CA are PEM.
	Control     string `json:"control"`
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
}
