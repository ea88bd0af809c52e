// Package raytest is the in-memory twin of a Ray cluster: an HTTP server that answers as the dashboard of Ray 2.60
// does, and carries out the launcher's orders without running anything.
//
// Nothing in it takes time. Things get on by one step after each request that was answered: a job that was submitted
// runs at the next one, an actor that it made is alive at the one after.
package raytest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mobula-serve/mobula/raycluster"
)

// Options set up a cluster. The zero value is one of two nodes of 8 GPUs and 16 CPUs, without a token, where engines
// get ready by themselves.
type Options struct {
	// Token that requests must carry; none if empty.
	Token string
	// Nodes of the cluster, the first one its head. Default: 10.77.0.1 and 10.77.0.2, 8 GPUs and 16 CPUs each.
	Nodes []Node
	// Manual has an engine get ready only when Ready tells so.
	Manual bool
	// Engine is asked to run an engine and gives its URL, and what ends it. It must not call the cluster. Default: a
	// URL on 127.0.0.1 at which nothing listens.
	Engine func(raycluster.Start) (url string, stop func())
	// Version of Ray. Default 2.60.0.
	Version string
	// Namespace is the Ray namespace that Foreign puts things of others into. Default mobula.
	Namespace string
	// SourceLimit is Ray's RAY_MAX_LIMIT_FROM_DATA_SOURCE: no more objects of a kind are looked at. Default 10000.
	SourceLimit int
	// TLS serves https, with the certificate of httptest.
	TLS bool
}

// Node is a machine of the cluster.
type Node struct {
	IP         string
	CPUs, GPUs float64
	// Resources beside CPU, GPU, memory (64 GiB) and node:IP.
	Resources map[string]float64
	// Labels beside ray.io/node-id.
	Labels map[string]string
}

// Cluster is a twin of a Ray cluster. Its methods may be called at once.
type Cluster struct {
	opts   Options
	server *httptest.Server

	mu       sync.Mutex
	changed  chan struct{} // closed at the next change
	serial   int           // of IDs, ports, pids
	epoch    int           // of sessions
	jobSeq   int
	requests int
	down     bool
	cut      bool
	hold     bool
	fuse     int // steps after which the next launcher job dies; 0 for none

	nodes    []*node
	actors   []*actor
	groups   []*group
	jobs     []*job
	packages map[string]int // bytes by name
	serve    serve
	touched  []string
}

type node struct {
	Node
	id, died   string
	head       bool
	start, end int64 // ms
}

// New starts a cluster, which ends with tb.
func New(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	if o.Nodes == nil {
		o.Nodes = []Node{{IP: "10.77.0.1", CPUs: 16, GPUs: 8}, {IP: "10.77.0.2", CPUs: 16, GPUs: 8}}
	}
	if o.Version == "" {
		o.Version = "2.60.0"
	}
	if o.Namespace == "" {
		o.Namespace = "mobula"
	}
	if o.SourceLimit == 0 {
		o.SourceLimit = 10_000
	}
	c := &Cluster{opts: o, changed: make(chan struct{})}
	c.begin()
	c.server = httptest.NewUnstartedServer(c.handler())
	c.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of clients that fail as they are to
	if o.TLS {
		c.server.StartTLS()
	} else {
		c.server.Start()
	}
	tb.Cleanup(c.close)
	return c
}

// begin is the start of a session: nothing but nodes.
func (c *Cluster) begin() {
	c.epoch++
	c.nodes, c.actors, c.groups, c.jobs, c.jobSeq = nil, nil, nil, nil, 0
	c.packages, c.serve = map[string]int{}, serve{}
	for _, n := range c.opts.Nodes {
		c.addNode(n)
	}
}

func (c *Cluster) addNode(n Node) {
	c.nodes = append(c.nodes, &node{Node: n, id: c.id("node", 56), head: len(c.nodes) == 0, start: now()})
}

func (c *Cluster) close() {
	c.server.CloseClientConnections() // logs that are followed
	c.server.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endAll()
}

func (c *Cluster) endAll() {
	for _, a := range c.actors {
		a.stopEngine()
	}
}

// URL is the dashboard's address.
func (c *Cluster) URL() string { return c.server.URL }

// Server is the HTTP server itself, for its certificate.
func (c *Cluster) Server() *httptest.Server { return c.server }

// Requests counts the HTTP requests so far.
func (c *Cluster) Requests() int {
	defer c.lock()()
	return c.requests
}

// Down makes the cluster one whose GCS is away: the dashboard answers with errors.
func (c *Cluster) Down(on bool) {
	defer c.lock()()
	c.down = on
}

// Cut makes the dashboard one that can't be reached: connections break.
func (c *Cluster) Cut(on bool) {
	defer c.lock()()
	c.cut = on
}

// Restart has the cluster start anew, with another session and nothing but its nodes.
func (c *Cluster) Restart() {
	defer c.lock()()
	c.endAll()
	c.begin()
}

// HoldJobs keeps jobs PENDING.
func (c *Cluster) HoldJobs(on bool) {
	defer c.lock()()
	c.hold = on
}

// Interrupt has the next launcher job die after n steps: a placement group made, an actor made, a replica stopped,
// a group removed. Of an order with fewer steps all are done and the job fails none the less. 0 has it die at once.
func (c *Cluster) Interrupt(n int) {
	defer c.lock()()
	c.fuse = n + 1
}

// Settle lets time go by until nothing more happens by itself.
func (c *Cluster) Settle() {
	defer c.lock()()
	for c.step() {
	}
}

// Ready has the engine of a replica be ready, now that it is told (Options.Manual). It tells whether one waited for it.
func (c *Cluster) Ready(replica string) bool {
	defer c.lock()()
	c.step()
	parts := c.parts(replica, func(a *actor) bool { return a.waiting() && a.node != nil })
	for _, a := range parts {
		c.alive(a)
	}
	return len(parts) > 0
}

// Crash ends the engine of a replica: its actors restart, or end where they are not detached.
func (c *Cluster) Crash(replica string) {
	defer c.lock()()
	for _, a := range c.parts(replica, (*actor).exists) {
		if a.detached {
			a.restart()
		} else {
			c.kill(a, died("the engine ended with exit code 1"))
		}
	}
	c.endJobs()
}

// Fail has the launcher of a replica give up, with a reason.
func (c *Cluster) Fail(replica, reason string) {
	defer c.lock()()
	for _, a := range c.parts(replica, (*actor).exists) {
		c.kill(a, gaveUp(a, reason))
	}
	c.endJobs()
}

// LoseNode ends a node and all that runs on it; what is detached comes up elsewhere when there is room.
func (c *Cluster) LoseNode(ip string) {
	defer c.lock()()
	for _, n := range c.nodes {
		if n.IP != ip || n.died != "" {
			continue
		}
		n.died, n.end = "Unexpected termination: health check failed due to missing too many heartbeats", now()
		for _, g := range c.groups {
			g.lose(n)
		}
		for _, a := range c.actors {
			if a.node == n && a.exists() {
				c.loseActor(a)
			}
		}
	}
	c.endJobs()
}

// loseActor is of an actor whose node is gone: all parts of its replica start again.
func (c *Cluster) loseActor(lost *actor) {
	for _, a := range c.parts(lost.replica(), (*actor).exists) {
		if a.detached {
			a.restart()
		} else {
			c.kill(a, died("Health check failed due to missing too many heartbeats."))
		}
	}
}

// AddNode has a node join.
func (c *Cluster) AddNode(n Node) {
	defer c.lock()()
	c.addNode(n)
}

// Running gives the ID of each replica whose engine runs, ready or not, sorted; one that runs twice is there twice.
func (c *Cluster) Running() []string {
	defer c.lock()()
	ids := []string{}
	for _, a := range c.actors {
		if _, replica, rank, _ := raycluster.ParseName(a.name); a.stop != nil && rank == 0 {
			ids = append(ids, replica)
		}
	}
	slices.Sort(ids)
	return ids
}

// Actors names our actors that are not dead, sorted.
func (c *Cluster) Actors() []string {
	defer c.lock()()
	names := []string{}
	for _, a := range c.actors {
		if !a.foreign && a.exists() {
			names = append(names, a.name)
		}
	}
	slices.Sort(names)
	return names
}

// Groups names our placement groups that are not removed, sorted.
func (c *Cluster) Groups() []string {
	defer c.lock()()
	names := []string{}
	for _, g := range c.groups {
		if !g.foreign && g.state != groupRemoved {
			names = append(names, g.name)
		}
	}
	slices.Sort(names)
	return names
}

// Jobs gives the submission IDs of our jobs that the cluster knows, sorted.
func (c *Cluster) Jobs() []string {
	defer c.lock()()
	ids := []string{}
	for _, j := range c.jobs {
		if !j.foreign {
			ids = append(ids, j.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// lock locks, and gives what unlocks and tells that something may have changed.
func (c *Cluster) lock() (unlock func()) {
	c.mu.Lock()
	return func() {
		c.tell()
		c.mu.Unlock()
	}
}

func (c *Cluster) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// parts gives the actors of a replica, whoever owns it.
func (c *Cluster) parts(replica string, which func(*actor) bool) []*actor {
	var parts []*actor
	for _, a := range c.actors {
		if a.replica() == replica && which(a) {
			parts = append(parts, a)
		}
	}
	return parts
}

// id makes an ID of so many hexadecimal digits.
func (c *Cluster) id(kind string, digits int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, c.next()))
	return hex.EncodeToString(sum[:])[:digits]
}

func (c *Cluster) next() int {
	c.serial++
	return c.serial
}

func now() int64 { return time.Now().UnixMilli() }

func (c *Cluster) session() string {
	return "session_2026-11-22_14-07-16_751819_" + strings.Repeat("8", c.epoch)
}
