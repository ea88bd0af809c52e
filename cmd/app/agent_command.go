package app

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/agent/daemon"
	"github.com/mobula-serve/mobula/agent/fetch"
	"github.com/mobula-serve/mobula/agent/gpu"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/trust"
)

// agentOptions are the flags of `mobula agent`.
type agentOptions struct {
	join      string
	token     string
	tokenFile string
	name      string
	listen    string
	address   string
	data      string
	metrics   string
	slots     int
	labels    map[string]string
	log       mobula.Log
}

func (a *app) agentCommand() *cobra.Command {
	o := agentOptions{}
	cmd := &cobra.Command{
		Use:                   "agent [--join URL --token TOKEN]",
		DisableFlagsInUseLine: true,
		Short:                 "Run engines on this host for a control plane",
		Long: `Runs on each host of a fleet: tells the control plane which GPUs there are, and runs the engines that it
wants here. Engines are processes of their own: they go on while the agent is restarted or killed, and it takes
them over again when it is back.

The first start joins a control plane, with the URL and the token that mobula token prints there. What it gets in return,
a certificate that it renews by itself, stays in the data folder: later starts need neither.`,
		Example: `  # Once, as mobula token printed it
  mobula agent --join https://control:8100 --token mobula.k3j...

  # From then on
  mobula agent

  # A host without GPUs that may run four engines
  mobula agent --slots 4 --label pool=cpu`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("slots") {
				o.slots = -1
			}
			return a.agent(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.join, "join", "", "URL of the control plane to join")
	f.StringVar(&o.token, "token", "", "join token (others on this host see it in the process list: --token-file hides it)")
	f.StringVar(&o.tokenFile, "token-file", "", "file with the join token")
	f.StringVar(&o.name, "name", "", "name of this host in the fleet (default its host name)")
	f.StringVar(&o.listen, "listen", ":8200", "address to listen on, host:port")
	f.StringVar(&o.address, "address", "", "IP or host name where the control plane and routers reach this host (default the address that leads to the control plane)")
	f.StringVar(&o.metrics, "metrics", "", "address of GET /metrics for Prometheus, host:port, without TLS (default none)")
	f.StringVar(&o.data, "data", dataFolder("agent"), "folder for certificates, logs and downloaded models")
	f.IntVar(&o.slots, "slots", 0, "engines without a GPU that may run here (default none on a host with GPUs, else one for every 4 cores)")
	f.StringToStringVar(&o.labels, "label", nil, "label of this host, NAME=VALUE; may be repeated")
	logFlags(cmd, &o.log)
	cmd.MarkFlagsMutuallyExclusive("token", "token-file")
	return cmd
}

// membership is what an agent remembers of its fleet beside its certificate.
type membership struct {
	Control string `json:"control"` // name of the control plane
	URL     string `json:"url"`
	Name    string `json:"name"`
}

// member is an agent that has joined.
type member struct {
	membership
	creds   *trust.Credentials
	folder  string // for the certificates
	address string
	logger  *slog.Logger
}

func (a *app) agent(ctx context.Context, o agentOptions) error {
	defer outliveReaders()()
	logger, err := newLogger(a.stderr, o.log)
	if err != nil {
		return &usageError{err}
	}
	l, err := listen(ctx, o.listen, "--listen")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	m, err := joined(ctx, o, l.Addr(), logger)
	if err != nil {
		return err
	}
	gpus, err := gpu.Open(gpu.Options{Logger: logger})
	if err != nil {
		return err
	}
	defer func() { _ = gpus.Close() }()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(thisBuild().Version, ""))
	host, _, _ := net.SplitHostPort(m.address)
	d, err := newDaemon(ctx, m.Name, m.Control, host, o, gpus, logger, registry)
	if err != nil {
		return err
	}
	var scraped net.Listener
	if o.metrics != "" {
		if scraped, err = listen(ctx, o.metrics, "--metrics"); err != nil {
			return err
		}
		defer func() { _ = scraped.Close() }()
	}
	_, _ = fmt.Fprintf(a.stdout, "agent of host %s listening on %s\n", m.Name, m.address)
	srv := &http.Server{
		Handler: d.Handler(), ReadHeaderTimeout: adminHeader, IdleTimeout: adminIdle,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return m.announce(ctx) })
	if scraped != nil {
		g.Go(func() error { return serveMetrics(ctx, scraped, registry) })
	}
	g.Go(func() error {
		if err := srv.Serve(tls.NewListener(l, m.creds.ServerTLS(trust.RoleControl))); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the agent: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close() // what waits for news of this host asks again
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serveMetrics answers GET /metrics until ctx ends.
func serveMetrics(ctx context.Context, l net.Listener, from prometheus.Gatherer) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: adminHeader, IdleTimeout: adminIdle}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the agent's metrics: %w", err)
	}
	return nil
}

// newDaemon makes the agent itself.
func newDaemon(ctx context.Context, name, control, host string, o agentOptions, gpus *gpu.Reader, logger *slog.Logger, r prometheus.Registerer) (*daemon.Daemon, error) {
	devices, err := gpus.Devices(ctx)
	if err != nil {
		return nil, err
	}
	slots := o.slots
	if slots < 0 {
		slots = 0
		if len(devices) == 0 {
			slots = max(1, runtime.NumCPU()/4)
		}
	}
	files, err := fetch.New(fetch.Options{Dir: filepath.Join(o.data, "fetched"), Logger: logger})
	if err != nil {
		return nil, err
	}
	return daemon.New(daemon.Options{
		Name: name, Control: control, DataDir: o.data, Host: host, GPUs: gpus.Devices, Slots: slots, Labels: o.labels,
		Fetch: files.Fetch, Logger: logger, Registerer: r, Version: thisBuild().Version,
	})
}

// joined gives this host's place in the fleet: as the data folder has it, or after joining.
func joined(ctx context.Context, o agentOptions, addr net.Addr, logger *slog.Logger) (*member, error) {
	m := &member{folder: filepath.Join(o.data, "tls"), logger: logger}
	creds, err := trust.LoadDir(m.folder)
	if errors.Is(err, trust.ErrNotJoined) {
		return m, m.joinFirst(ctx, o, addr)
	}
	if err != nil {
		return nil, err
	}
	if m.membership, err = readMembership(o.data); err != nil {
		return nil, err
	}
	if o.name != "" && o.name != m.Name {
		return nil, hinted(fmt.Errorf("this host has joined as %s, not as %s", m.Name, o.name), "leave --name out, or remove %s to join anew", o.data)
	}
	if o.join != "" {
		m.URL = o.join // where it is now
	}
	if again, err := m.mayJoinAgain(o, creds); err != nil {
		return nil, err
	} else if again {
		o.name, o.join = m.Name, m.URL
		return m, m.joinFirst(ctx, o, addr)
	}
	m.creds = creds
	m.address, err = addressOf(o.address, addr, m.URL)
	return m, err
}

// mayJoinAgain tells whether the certificate is worth nothing any more and there is a token for another one. A token
// is otherwise left alone: whoever starts the agent may always give the one that it has joined with.
func (m *member) mayJoinAgain(o agentOptions, creds *trust.Credentials) (bool, error) {
	text, err := o.joinToken()
	if text == "" {
		if err != nil {
			m.logger.Debug("no token, and none is needed", "err", err)
		}
		return false, nil
	}
	token, err := trust.ParseToken(text)
	if err != nil {
		return false, err
	}
	if !creds.Knows(token) {
		return false, hinted(fmt.Errorf("this host has joined the control plane %s, and the token is of another one", creds.Identity().Control),
			"leave --token out, or remove %s to join the other one", m.folder)
	}
	return creds.Valid() != nil, nil
}

// joinToken is the token that was given, empty if none was.
func (o agentOptions) joinToken() (string, error) {
	if o.tokenFile == "" {
		return strings.TrimSpace(o.token), nil
	}
	data, err := os.ReadFile(o.tokenFile)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// joinFirst joins with a token.
func (m *member) joinFirst(ctx context.Context, o agentOptions, addr net.Addr) error {
	text, err := o.joinToken()
	if err != nil {
		return err
	}
	if o.join == "" || text == "" {
		return hinted(errors.New("this host has not joined a control plane yet, as "+o.data+" tells"),
			"run `mobula token` where the control plane is: it prints the command to run here")
	}
	token, err := trust.ParseToken(text)
	if err != nil {
		return err
	}
	name := o.name
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return hinted(fmt.Errorf("this host's name: %w", err), "give it one with --name")
		}
	}
	if m.address, err = addressOf(o.address, addr, o.join); err != nil {
		return err
	}
	csr, key, err := trust.NewRequest()
	if err != nil {
		return err
	}
	answer, err := client.Join(ctx, o.join, trust.PinnedTLS(token), mobula.Secret(token.String()), agent.Join{Name: name, Address: m.address, CSR: string(csr), Clock: time.Now()})
	if err != nil {
		return fmt.Errorf("join %s: %w", o.join, trust.Explain(err))
	}
	if m.creds, err = trust.NewCredentials([]byte(answer.CA), []byte(answer.Certificate), key); err != nil {
		return err
	}
	m.membership = membership{Control: answer.Control, URL: o.join, Name: name}
	data, err := json.Marshal(m.membership)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	// The certificates come last: without them the host has not joined.
	if err := os.WriteFile(membershipPath(o.data), data, 0o600); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return trust.SaveDir(m.folder, m.creds)
}

func membershipPath(data string) string { return filepath.Join(data, "agent.json") }

func readMembership(data string) (m membership, err error) {
	file, err := os.ReadFile(membershipPath(data))
	if err == nil {
		err = json.Unmarshal(file, &m)
	}
	if err == nil && (m.Control == "" || m.Name == "") {
		err = errors.New("control and name are missing")
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("agent.json is missing")
		}
		return m, hinted(fmt.Errorf("what this host knows of its fleet can't be read: %w", err), "remove %s and join anew", data)
	}
	return m, nil
}

// addressOf is where the control plane and routers reach an agent that listens on addr.
func addressOf(wanted string, addr net.Addr, controlURL string) (string, error) {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "", err
	}
	if wanted != "" {
		return net.JoinHostPort(strings.Trim(wanted, "[]"), port), nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return net.JoinHostPort(host, port), nil
	}
	u, err := url.Parse(controlURL)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("--join %q: want a URL such as https://control:8100", controlURL)
	}
	target := u.Host
	if u.Port() == "" {
		target = net.JoinHostPort(u.Hostname(), "443")
	}
	// Nothing is sent: the kernel only says which of our addresses it would use.
	c, err := net.DialTimeout("udp", target, 5*time.Second)
	if err != nil {
		return "", hinted(fmt.Errorf("which of this host's addresses leads to %s: %w", target, err), "give it with --address")
	}
	defer func() { _ = c.Close() }()
	host, _, err = net.SplitHostPort(c.LocalAddr().String())
	return net.JoinHostPort(host, port), err
}

// Pace of an agent's calls to its control plane.
const (
	announceRetry = 5 * time.Second
	renewLook     = time.Hour
)

// announce tells the control plane where the agent is, once, and has the certificate renewed in time, until ctx ends.
func (m *member) announce(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		wait := renewLook
		if !told || time.Now().After(m.creds.RenewAt()) {
			if err := m.renew(ctx); err != nil {
				m.logger.Warn("the control plane could not be told where this agent is", "control", m.URL, "err", trust.Explain(err))
				wait = announceRetry
			} else {
				told = true
			}
		}
		pause(ctx, wait)
	}
	return ctx.Err()
}

// renew joins again, by the certificate that there is.
func (m *member) renew(ctx context.Context) error {
	csr, err := m.creds.Request()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := client.Join(ctx, m.URL, m.creds.ClientTLS(trust.RoleControl), "", agent.Join{Name: m.Name, Address: m.address, CSR: string(csr), Clock: time.Now()})
	if err != nil {
		return err
	}
	if err := m.creds.Replace([]byte(answer.Certificate)); err != nil {
		return err
	}
	return trust.SaveDir(m.folder, m.creds)
}
