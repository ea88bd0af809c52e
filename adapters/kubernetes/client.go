package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mobula-serve/mobula"
)

// ErrNotConfigured is returned when there is nothing that says where the API server is.
var ErrNotConfigured = errors.New("no Kubernetes configuration")

const (
	// requestTimeout bounds each request but watches and logs that are followed. API servers give up after as long.
	requestTimeout = 60 * time.Second
	// The client's own limit of requests per second is a fuse against a loop gone mad. To share the API server fairly is the work of
	// its priority and fairness, and client-go's default (5) would make a rollout of a thousand models take minutes.
	requestRate  = 500
	requestBurst = 1000
	maxWarnings  = 256 // distinct ones that are logged

	namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
)

// ConnectOptions set up a Connection.
type ConnectOptions struct {
	// Version of Mobula, for the API server's audit log. Default dev.
	Version string
	// Logger gets the API server's warnings, each once. Default: none.
	Logger *slog.Logger
}

// Connection is what is needed to ask a Kubernetes cluster. It may be used at once by many.
type Connection struct {
	Config  *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	// Namespace of the engines.
	Namespace string

	source rest.Config // Config as it was loaded
}

// Connect makes a Connection as the section says: from its kubeconfig, else from the pod's service account, else as kubectl would. It asks
// nobody: that the API server is away or turns us down shows with the first request, and Explain tells what of it. It fails with
// ErrNotConfigured when none of these is there.
func Connect(k mobula.Kubernetes, o ConnectOptions) (*Connection, error) {
	config, namespace, err := load(k)
	if err != nil {
		return nil, fmt.Errorf("connect to Kubernetes: %w", err)
	}
	c := &Connection{Config: config, Namespace: cmp.Or(k.Namespace, namespace, "default"), source: *config}
	if config.BearerTokenFile != "" {
		c.source.BearerToken = "" // it is read from there again and again
	}
	config.UserAgent = "mobula/" + cmp.Or(o.Version, "dev")
	config.QPS, config.Burst = requestRate, requestBurst
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return bounded{next, requestTimeout} })
	config.WarningHandler = rest.NoWarnings{}
	if o.Logger != nil {
		config.WarningHandler = &warnings{log: o.Logger, said: map[string]bool{}}
	}
	builtIn := rest.CopyConfig(config)
	builtIn.ContentType = "application/vnd.kubernetes.protobuf"
	builtIn.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	if c.Client, err = kubernetes.NewForConfig(builtIn); err != nil {
		return nil, fmt.Errorf("connect to Kubernetes at %s: %w", config.Host, err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("connect to Kubernetes at %s: %w", config.Host, err)
	}
	return c, nil
}

// same tells whether both ask the same cluster in the same way.
func (c *Connection) same(o *Connection) bool {
	return c == o || c != nil && o != nil && c.Namespace == o.Namespace && reflect.DeepEqual(c.source, o.source)
}

// load finds the configuration and the namespace that comes with it, empty for none.
func load(k mobula.Kubernetes) (*rest.Config, string, error) {
	var inPod error
	if k.Kubeconfig == "" && k.Context == "" {
		config, err := rest.InClusterConfig()
		if err == nil {
			return config, ownNamespace(), nil
		}
		inPod = err
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.Kubeconfig
	rules.WarnIfAllMissing = false
	files := cmp.Or(k.Kubeconfig, strings.Join(rules.Precedence, " or "))
	raw, err := rules.Load()
	if err != nil {
		return nil, "", fmt.Errorf("platform.kubernetes.kubeconfig: %w", err)
	}
	from := clientcmd.NewNonInteractiveClientConfig(*raw, k.Context, &clientcmd.ConfigOverrides{}, rules)
	config, err := from.ClientConfig()
	name := cmp.Or(k.Context, raw.CurrentContext)
	switch context := raw.Contexts[name]; {
	case err == nil:
	case len(raw.Contexts) == 0 && len(raw.Clusters) == 0 && (inPod == nil || errors.Is(inPod, rest.ErrNotInCluster)):
		return nil, "", fmt.Errorf("%w: this is no pod, and %s says nothing: set platform.kubernetes.kubeconfig", ErrNotConfigured, files)
	case len(raw.Contexts) == 0 && len(raw.Clusters) == 0:
		return nil, "", fmt.Errorf("%w: this pod has no service account's token: set automountServiceAccountToken, or platform.kubernetes.kubeconfig: %w",
			ErrNotConfigured, inPod)
	case context == nil:
		return nil, "", fmt.Errorf("platform.kubernetes.context: %s has no context %q: it has %s", files, name, contexts(raw.Contexts))
	case raw.Clusters[context.Cluster] == nil:
		return nil, "", fmt.Errorf("platform.kubernetes.kubeconfig: %s: context %s is of cluster %q, which is not there", files, name, context.Cluster)
	default:
		return nil, "", fmt.Errorf("platform.kubernetes.kubeconfig: %s: %w", files, err)
	}
	namespace, _, err := from.Namespace()
	return config, namespace, err
}

// ownNamespace is that of the pod that we run in, empty when it does not tell.
func ownNamespace() string {
	if name := os.Getenv("POD_NAMESPACE"); name != "" {
		return name
	}
	name, _ := os.ReadFile(namespaceFile)
	return strings.TrimSpace(string(name))
}

// bounded has each request end in time, but those that go on for as long as somebody listens.
type bounded struct {
	next    http.RoundTripper
	timeout time.Duration
}

// RoundTrip bounds the answer's body too.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if q := r.URL.Query(); isTrue(q.Get("watch")) || isTrue(q.Get("follow")) {
		return b.next.RoundTrip(r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), b.timeout)
	res, err := b.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	res.Body = &endingBody{res.Body, cancel}
	return res, nil
}

// WrappedRoundTripper lets client-go find the transport below.
func (b bounded) WrappedRoundTripper() http.RoundTripper { return b.next }

func isTrue(v string) bool { return v == "true" || v == "1" }

// endingBody ends the request's context when it is closed.
type endingBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *endingBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// warnings logs what the API server warns of: fields that it does not know, pods that a policy will refuse.
type warnings struct {
	log  *slog.Logger
	mu   sync.Mutex
	said map[string]bool
}

// HandleWarningHeader logs a text once.
func (w *warnings) HandleWarningHeader(code int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if code == 299 && text != "" && !w.said[text] && len(w.said) < maxWarnings {
		w.said[text] = true
		w.log.Warn("the Kubernetes API server warns", "warning", text)
	}
}
