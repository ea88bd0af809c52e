// Package kubetest plays a Kubernetes cluster in memory: an API server that real clients speak to over HTTP on
// loopback, and of what stands behind it as much as the platforms' tests need: the controllers of workloads, the
// garbage collector, a scheduler, kubelets without containers and the KubeRay operator. All that follows from a write
// has happened when the write is answered, so that tests wait for nothing but their own code. What a test wants to go
// wrong, it says.
package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Options of a cluster. The zero value is one of one big node, on which pods are ready at once.
type Options struct {
	// Nodes of the cluster. Default: node-1 with a million GPUs.
	Nodes []Node
	// Namespaces that are there; objects in others are refused. Default: each namespace that is named.
	Namespaces []string
	// Manual has pods wait for Start and Ready after they are scheduled. Default: they start and are ready at once.
	Manual bool
	// Lingers has deleted pods that run stay, terminating, until Finish or a deletion without grace. Default: they are gone at once.
	Lingers bool
	// PodAddress gives the address of a pod that starts: IP, and if not 0 the port that takes the place of its container port
	// called http. Any address of 127.0.0.0/8 can be listened on. It must not call the cluster. Default: an IP of 10.244.0.0/14.
	PodAddress func(pod *corev1.Pod) (ip string, port int)
	// PodStopped is told of each pod that had an address and ends: crashed, deleted, evicted. It must not call the cluster.
	PodStopped func(pod *corev1.Pod)
	// Now is the clock of all timestamps. Default: time.Now.
	Now func() time.Time
}

// Node is a machine of the cluster.
type Node struct {
	Name string
	// GPUs that pods can ask for, of nvidia.com/gpu unless Resource says so.
	GPUs     int
	Resource string
	// Resources are others that are counted: cpu, memory. Those not named have no bound if they are cpu, memory or storage.
	Resources map[string]string
	Labels    map[string]string
	Taints    []corev1.Taint
}

// Cluster is a Kubernetes cluster in memory. All its methods may be called at any time from any goroutine, but not from the functions of its Options.
type Cluster struct {
	opts      Options
	host      string
	transport *http.Transport
	held      int // socket that holds the port while the API server is down
	serving   sync.WaitGroup

	mu       sync.Mutex
	server   *http.Server // nil while it is down
	closed   bool
	cut      chan struct{} // closed to end all watches
	cutLogs  chan struct{} // closed to break all logs that are followed
	store    *store
	managers map[string]*fieldManager
	play
	faults
}

// New starts a cluster. It panics when it can't listen on loopback.
func New(opts Options) *Cluster {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if len(opts.Nodes) == 0 {
		opts.Nodes = []Node{{Name: "node-1", GPUs: 1_000_000}}
	}
	c := &Cluster{
		opts: opts, transport: &http.Transport{MaxIdleConnsPerHost: 100}, cut: make(chan struct{}), cutLogs: make(chan struct{}),
		store: newStore(opts.Now), managers: map[string]*fieldManager{}, play: newPlay(), faults: newFaults(),
	}
	for _, r := range resources() {
		c.store.register(r)
	}
	c.store.observer = c.observe
	if err := c.hold(); err != nil {
		panic(fmt.Sprintf("kubetest: hold a port on loopback: %v", err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range append([]string{"default", "kube-system"}, opts.Namespaces...) {
		c.namespace(name)
	}
	for _, n := range opts.Nodes {
		c.node(n)
	}
	c.settle()
	if err := c.listen(); err != nil {
		panic(fmt.Sprintf("kubetest: %v", err))
	}
	return c
}

// Close ends the cluster: all connections are cut, and no goroutine is left.
func (c *Cluster) Close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.down()
	c.mu.Unlock()
	c.serving.Wait()
	c.transport.CloseIdleConnections()
	_ = syscall.Close(c.held) // a socket that was never connected
}

// Config gives what clients need to speak to the API server. Their requests are not held back. Connections that clients
// hold are closed by Close.
func (c *Cluster) Config() *rest.Config {
	return &rest.Config{Host: "http://" + c.host, QPS: -1, Transport: c.transport}
}

// Kubeconfig gives a kubeconfig file for the API server with one context, called kubetest, and its namespace.
func (c *Cluster) Kubeconfig(namespace string) []byte {
	config, err := json.Marshal(tree{
		"apiVersion": "v1", "kind": "Config", "current-context": "kubetest",
		"clusters": []any{tree{"name": "kubetest", "cluster": tree{"server": "http://" + c.host}}},
		"users":    []any{tree{"name": "kubetest", "user": tree{}}},
		"contexts": []any{tree{"name": "kubetest", "context": tree{"cluster": "kubetest", "user": "kubetest", "namespace": namespace}}},
	})
	if err != nil {
		panic(err) // strings only
	}
	return config
}

// Client gives a typed client.
func (c *Cluster) Client() *kubernetes.Clientset { return kubernetes.NewForConfigOrDie(c.Config()) }

// Dynamic gives a client of all resources.
func (c *Cluster) Dynamic() *dynamic.DynamicClient { return dynamic.NewForConfigOrDie(c.Config()) }

// Register has the API server serve one more resource; subresources are status and scale.
func (c *Cluster) Register(gvr schema.GroupVersionResource, kind string, namespaced bool, subresources ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.register(Resource{GroupVersionResource: gvr, Kind: kind, Namespaced: namespaced, Subresources: subresources})
}

// Unregister takes a resource away, with its objects, as if its CustomResourceDefinition were deleted.
func (c *Cluster) Unregister(gvr schema.GroupVersionResource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.store.tables[gvr]; t != nil {
		for at := range t.objects {
			c.store.drop(t, at)
		}
		delete(c.store.tables, gvr)
		t.wake()
	}
}

// hold binds a port of loopback for as long as the cluster lives. No other process gets it while the API server is down,
// and since the socket does not listen, connections to it are refused then.
func (c *Cluster) hold() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	syscall.CloseOnExec(fd)
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		_ = syscall.Close(fd)
		return err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		_ = syscall.Close(fd)
		return err
	}
	c.held = fd
	c.host = net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*syscall.SockaddrInet4).Port))
	return nil
}

// listen brings the API server up.
func (c *Cluster) listen() error {
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp4", c.host) // an address of loopback: nothing to wait for
	if err != nil {
		return fmt.Errorf("listen at %s: %w", c.host, err)
	}
	server := &http.Server{Handler: http.HandlerFunc(c.serve), ReadHeaderTimeout: time.Minute}
	c.server = server
	c.serving.Go(func() { _ = server.Serve(l) }) // ends by Close
	return nil
}

// down cuts all connections and refuses new ones.
func (c *Cluster) down() {
	c.endWatches()
	if c.server != nil {
		_ = c.server.Close() // nothing to be done about it
		c.server = nil
		c.transport.CloseIdleConnections() // so that what comes next is refused, not cut
	}
}

func (c *Cluster) endWatches() {
	close(c.cut)
	c.cut = make(chan struct{})
}
