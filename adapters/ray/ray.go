// Package ray places engines on a Ray cluster that already runs, over the REST API of its dashboard alone.
//
// What is wanted is in the store first. Then launcher jobs (package raycluster) make actors and placement groups exist
// or end, until the cluster's state, read in full each time, is what is wanted.
package ray

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"
)

// API is what is asked of a cluster's dashboard. Errors of a cluster that can't be asked right now wrap
// adapters.ErrUnavailable; ErrNotRay, ErrDenied and ErrTooOld tell that asking again will not help. Its methods may be
// called at once.
type API interface {
	// Version tells what answers.
	Version(ctx context.Context) (Version, error)
	// State reads actors of the namespace, all placement groups of ours and all nodes. A part that Ray has cut short is
	// read in pieces until it is whole.
	State(ctx context.Context, namespace string) (*State, error)
	// Dead reads the actors of the namespace that are dead, the last ones first, as many as Ray still knows.
	Dead(ctx context.Context, namespace string) ([]Actor, error)
	// Upload stores a package unless it is there.
	Upload(ctx context.Context, name string, content []byte) error
	// Submit starts a job. One whose ID is known already is submitted: that is no error.
	Submit(ctx context.Context, j Submission) error
	// Jobs lists all submitted jobs whose ID begins with the prefix.
	Jobs(ctx context.Context, prefix string) ([]Job, error)
	// JobLogs gives the end of what a job has printed.
	JobLogs(ctx context.Context, id string) (string, error)
	// StopJob ends a job; DeleteJob forgets one that has ended. One that is unknown is fine.
	StopJob(ctx context.Context, id string) error
	DeleteJob(ctx context.Context, id string) error
	// Logs reads what an actor has printed: the last tail lines, and with follow what comes until ctx ends.
	Logs(ctx context.Context, actorID string, tail int, follow bool) (io.ReadCloser, error)
	// Serve reads the state of Ray Serve; DeployServe puts its whole declarative configuration.
	Serve(ctx context.Context) (*ServeState, error)
	DeployServe(ctx context.Context, config json.RawMessage) error
}

// Errors that asking again does not mend.
var (
	// ErrNotRay: what answers at the address is no dashboard of Ray's.
	ErrNotRay = errors.New("not the dashboard of a Ray cluster")
	// ErrDenied: the cluster wants a token, or another one.
	ErrDenied = errors.New("the Ray cluster denies access")
	// ErrTooOld: the cluster's Ray lacks what is needed.
	ErrTooOld = errors.New("the cluster's Ray is too old")
)

// Version is what a dashboard says of itself.
type Version struct {
	Ray     string // "2.60.0"
	Session string // "session_2026-11-22_14-07-16_751819_8581": another one is another cluster
}

// State is a cluster at one moment. A cluster lists what is gone for a while: Actors has those that are not dead.
type State struct {
	At     time.Time // ours, when it was asked
	Actors []Actor
	Groups []Group
	Nodes  []Node
	// Partial says what Ray could not tell this time, empty for a whole answer: then nothing follows from what is missing.
	Partial string
}

// Actor is an actor, as Ray's state API lists it.
type Actor struct {
	ID, Class, Name string
	// State is DEPENDENCIES_UNREADY, PENDING_CREATION, ALIVE, RESTARTING or DEAD.
	State  string
	JobID  string
	NodeID string
	PID    int
	Repr   string
	// Restarts of all causes.
	Restarts int
	GroupID  string
	// Death says why it died or restarts, empty when Ray does not.
	Death string
}

// Group is a placement group.
type Group struct {
	ID, Name string
	// State is PENDING, PREPARED, CREATED, RESCHEDULING or REMOVED.
	State string
	// Scheduling is why a pending one waits: QUEUED, NO_RESOURCES, INFEASIBLE, FAILED_TO_COMMIT_RESOURCES.
	Scheduling string
	// Nodes of its bundles, "" for one that has none; Bundle is what the first one takes.
	Nodes  []string
	Bundle map[string]float64
	// Labels are what the first one selects nodes by (label_selector), nil if Ray does not tell.
	Labels map[string]string
}

// Node is a node of the cluster.
type Node struct {
	ID, IP, Name string
	Head         bool
	Alive        bool
	Resources    map[string]float64 // in total: CPU, GPU, memory (bytes), custom ones
	Labels       map[string]string
	Died         string // why, if Ray says
}

// Job is a submitted job.
type Job struct {
	ID string // submission_id
	// Status is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
	Status   string
	Message  string
	JobID    string // Ray's own, which its actors carry
	Metadata map[string]string
	Started  time.Time
	Ended    time.Time // zero while it runs
}

// Over tells whether the job has ended.
func (j *Job) Over() bool {
	return j.Status == "SUCCEEDED" || j.Status == "FAILED" || j.Status == "STOPPED"
}

// Submission is a job to start.
type Submission struct {
	ID         string
	Entrypoint string
	Metadata   map[string]string
	RuntimeEnv map[string]any
}

// ServeState is Ray Serve on a cluster.
type ServeState struct {
	// Running tells that there is a Serve controller.
	Running bool
	// Port and Host of the HTTP proxies' options. TLS tells that they speak https.
	Host string
	Port int
	TLS  bool
	// Proxies that are healthy, one on a node.
	Proxies []ServeProxy
	Apps    []ServeApp
	// Config is the declarative configuration that is deployed, with what Ray Serve gave for all applications
	// whose source is declarative: {"proxy_location", "http_options", "applications": […]}.
	Config json.RawMessage
}

// ServeProxy is an HTTP proxy of Ray Serve.
type ServeProxy struct{ NodeID, NodeIP, Status string }

// ServeApp is an application of Ray Serve.
type ServeApp struct {
	Name, RoutePrefix string
	// Status is NOT_STARTED, DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED or DELETING.
	Status, Message string
	// Source is declarative or imperative.
	Source string
	// Config is its deployed_app_config, null for an imperative one.
	Config json.RawMessage
}
