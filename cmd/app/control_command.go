package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters/kubernetes"
	"github.com/mobula-serve/mobula/adapters/static"
	"github.com/mobula-serve/mobula/agent"
	"github.com/mobula-serve/mobula/control"
	"github.com/mobula-serve/mobula/control/client"
	"github.com/mobula-serve/mobula/state"
	"github.com/mobula-serve/mobula/trust"
)

// controlLife is how long the control plane's own certificate is valid; each start makes a new one.
const controlLife = 5 * 365 * 24 * time.Hour

// controlGC is the garbage collector's headroom in percent (GOGC): Go's own. A router needs less, and main sets that; a
// control plane of many hosts would spend most of its time on collections.
const controlGC = 100

// controlOptions are the flags of `mobula control`.
type controlOptions struct {
	file         string
	listen       string
	address      string
	data         string
	router       string
	objects      objectFlags
	state        string // names of Secrets and of the Lease, with --kubernetes
	lease        string
	routerSecret string
	image        string
	health       string
	log          mobula.Log
}

func (a *app) controlCommand() *cobra.Command {
	o := controlOptions{}
	cmd := &cobra.Command{
		Use:                   "control [-f FILE] [--listen ADDRESS] [--data DIR]",
		DisableFlagsInUseLine: true,
		Short:                 "Run the control plane of hosts that run mobula agent",
		Long: `Runs the control plane: it places a fleet's models on the hosts that have joined, keeps them
running, scales and replaces them, and answers mobula apply, get, describe, scale and their like.

It serves HTTPS with a certificate of its own authority, kept with all else that it has to remember in
the data folder. What runs goes on while the control plane is down.

With -f the file is applied at the start and whenever it changes; without one, mobula apply does it.
With --router a router runs in the same process: enough for a small fleet, while a large one has several of their own.
With --kubernetes the fleet is what the Fleet, Model and LoRA objects of a namespace say, and what has to be remembered is in
a Secret there; of several such control planes one leads and the others stand by.`,
		Example: `  # The control plane of a fleet file
  mobula control -f fleet.yaml --data /var/lib/mobula/control

  # With a router: all that a fleet on a Ray cluster needs
  mobula control -f fleet.yaml --router :8000

  # In a Kubernetes cluster, as the Helm chart runs it
  mobula control --kubernetes --namespace serving

  # For bare metal then: let hosts join, with the command that this prints
  mobula token --config /var/lib/mobula/control/client.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.objects.check(cmd, "router-secret", "state-secret", "lease", "health-listen"); err != nil {
				return err
			}
			if !o.objects.on {
				return a.control(cmd.Context(), o)
			}
			if o.file != "" || o.router != "" || cmd.Flags().Changed("data") {
				return usagef("--kubernetes: the fleet and what has to be remembered are in the cluster: -f, --data and --router don't go with it")
			}
			return a.controlObjects(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "fleet file to apply, at the start and when it changes")
	f.StringVar(&o.listen, "listen", ":8100", "address to listen on, host:port")
	f.StringVar(&o.address, "address", "", "host or host:port where agents, routers and commands reach it (default this host's name, or the address it listens on)")
	f.StringVar(&o.data, "data", dataFolder("control"), "folder for what has to survive a restart")
	f.StringVar(&o.router, "router", "", "run a router too, on this address, host:port")
	o.objects.flags(cmd)
	f.StringVar(&o.routerSecret, "router-secret", "", "with --kubernetes: Secret that says how routers reach it, for what routers do and nothing else")
	f.StringVar(&o.state, "state-secret", "mobula-state", "with --kubernetes: Secret for what has to survive a restart")
	f.StringVar(&o.lease, "lease", "mobula-control", "with --kubernetes: Lease by which one of several control planes leads")
	f.StringVar(&o.health, "health-listen", "", "with --kubernetes: address for /health and /ready without TLS, also while another control plane leads, host:port")
	f.StringVar(&o.image, "image", os.Getenv("MOBULA_IMAGE"), "on Kubernetes: image of this program, for simulated engines ($MOBULA_IMAGE)")
	logFlags(cmd, &o.log)
	yamlFiles(cmd, "file")
	return cmd
}

// logFlags adds the flags of a command without a fleet file.
func logFlags(cmd *cobra.Command, l *mobula.Log) {
	cmd.Flags().StringVar(&l.Level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&l.Format, "log-format", "text", "text or json")
}

// dataFolder is where a daemon keeps its state unless told otherwise: in /var/lib as root, else in the user's home.
func dataFolder(name string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/mobula", name)
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(cmp.Or(os.Getenv("XDG_STATE_HOME"), filepath.Join(home, ".local", "state")), "mobula", name)
	}
	return filepath.Join("mobula-" + name)
}

func (a *app) control(ctx context.Context, o controlOptions) error {
	defer outliveReaders()()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(controlGC)
	}
	logger, err := newLogger(a.stderr, o.log)
	if err != nil {
		return &usageError{err}
	}
	var fleet []byte
	if o.file != "" {
		if fleet, err = readFleet(o.file); err != nil {
			return err
		}
	}
	db, err := state.Open(filepath.Join(o.data, "state.db"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	id, err := control.ID(db)
	if err != nil {
		return err
	}
	ca, err := trust.OpenCA(filepath.Join(o.data, "ca"), "mobula-"+id)
	if err != nil {
		return err
	}
	token, err := adminToken(filepath.Join(o.data, "token"))
	if err != nil {
		return err
	}
	l, err := listen(ctx, o.listen, "--listen")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	var front net.Listener
	if o.router != "" {
		if front, err = listen(ctx, o.router, "--router"); err != nil {
			return err
		}
		defer func() { _ = front.Close() }()
	}
	p, access, err := identity{db, id, ca, token}.plane(l, o.address, planeOptions{Logger: logger, Kubernetes: kubernetes.Options{OwnImage: o.image}})
	if err != nil {
		return err
	}
	path, err := saveAccess(o.data, access)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.stdout, "control plane listening on %s\n", access.URL)
	c := newConsole(a.stderr)
	c.line("%s", c.dim("commands and routers reach it with --config "+path))
	// A router ends first, so that running requests may finish.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, work := errgroup.WithContext(work)
	g.Go(func() error { return p.run(work) })
	if o.file != "" {
		g.Go(func() error { return p.applyFile(work, o.file, fleet, db, logger) })
	}
	g.Go(func() error {
		defer stop()
		if front != nil {
			return a.routeBeside(work, ctx, p, front)
		}
		select {
		case <-ctx.Done():
		case <-work.Done():
		}
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// identity is who a control plane is, and where it keeps what it has to remember.
type identity struct {
	store state.Store
	id    string
	ca    *trust.CA
	token mobula.Secret
}

// routerToken is what routers show that are to do no more than routers do. It follows from the token, and tells nothing of it.
func (i identity) routerToken() mobula.Secret {
	mac := hmac.New(sha256.New, []byte(i.token))
	mac.Write([]byte("router"))
	return mobula.Secret(hex.EncodeToString(mac.Sum(nil)))
}

// plane makes the control plane that serves at l, and how it is reached; o lacks who and where it is.
func (i identity) plane(l net.Listener, address string, o planeOptions) (*plane, client.Config, error) {
	reach := reachable(l.Addr(), address)
	host, _, _ := net.SplitHostPort(reach)
	creds, err := i.ca.Credentials(trust.RoleControl, "control", []string{host, "localhost", loopback}, controlLife)
	if err != nil {
		return nil, client.Config{}, err
	}
	o.Store, o.ID, o.Token, o.RouterToken, o.Gate = i.store, i.id, i.token, i.routerToken(), &gate{id: i.id, ca: i.ca, store: i.store}
	o.EngineKey, o.Version = engineKey(), thisBuild().Version
	o.Listener = tls.NewListener(l, creds.ServerTLS())
	o.Dial = func(_, address string) static.AgentClient {
		return agent.NewClient(address, creds.ClientTLS(trust.RoleAgent))
	}
	p, err := newPlane(o)
	return p, client.Config{URL: "https://" + reach, Token: i.token, CA: string(i.ca.PEM())}, err
}

// routeBeside runs a router of the control plane's fleet until ctx ends, or work, which ends when another part has failed.
func (a *app) routeBeside(work, ctx context.Context, p *plane, l net.Listener) error { //nolint:revive // two contexts: neither is the other's parent
	routing, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(work, stop)()
	fleet, err := a.firstFleet(routing, p.control)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.stdout, "router listening on %s\n", baseURL(l.Addr()))
	done := a.startRouter(routing, routerOptions{
		Fleet: fleet, Listener: l, Logger: p.logger, Version: thisBuild().Version, Plane: p.control, Endpoints: p.endpoints,
	})
	select {
	case err := <-done:
		return err
	case <-forced(ctx):
		return nil
	}
}

// readFleet reads a fleet file that must be right.
func readFleet(path string) ([]byte, error) {
	if _, err := mobula.LoadFile(path); err != nil {
		return nil, fleetError(path, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read fleet file: %w", err)
	}
	return data, nil
}

// adminToken gives the token that commands and routers show, made at the first start.
func adminToken(path string) (mobula.Secret, error) {
	data, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(data))) >= 16 {
		return mobula.Secret(strings.TrimSpace(string(data))), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("token of the control plane: %w", err)
	}
	token := randomToken()
	if err := os.WriteFile(path, []byte(string(token)+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("token of the control plane: %w", err)
	}
	return token, nil
}

func randomToken() mobula.Secret { return mobula.Secret(rand.Text()) }

// reachable is the host:port under which others find a listener.
func reachable(addr net.Addr, wanted string) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if wanted != "" {
		if _, _, err := net.SplitHostPort(wanted); err == nil {
			return wanted
		}
		return net.JoinHostPort(strings.Trim(wanted, "[]"), port)
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = loopback
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// saveAccess writes how the control plane is reached into its data folder, and for the commands of this user where they
// look first, unless that is taken by another control plane. It gives the path to use.
func saveAccess(data string, c client.Config) (string, error) {
	path := filepath.Join(data, "client.json")
	if err := client.SaveConfig(path, c); err != nil {
		return "", err
	}
	usual, err := client.DefaultConfigPath()
	if err != nil {
		return path, nil
	}
	old, err := client.LoadConfig(usual)
	if errors.Is(err, fs.ErrNotExist) || err == nil && old.CA == c.CA {
		if client.SaveConfig(usual, c) == nil {
			return usual, nil
		}
	}
	return path, nil
}

// fileBucket remembers, by the file's source, a hash of what was applied from it last.
const fileBucket = "file"

// applyFile applies a fleet file, and again when it changes. At the start one that says what it said when it was applied last
// is left alone: commands may have changed the fleet since.
func (p *plane) applyFile(ctx context.Context, path string, first []byte, store state.Store, logger *slog.Logger) error {
	source := sourceOf(path)
	apply := func(file []byte) error {
		if _, err := p.control.Apply(ctx, file, source, false, true); err != nil {
			return err
		}
		sum := sha256.Sum256(file)
		return store.Write(state.Change{Bucket: fileBucket, Key: source, Value: sum[:]})
	}
	sum := sha256.Sum256(first)
	if last, _, err := store.Get(fileBucket, source); err != nil || !bytes.Equal(last, sum[:]) {
		if err := apply(first); err != nil {
			return fmt.Errorf("apply %s: %w", path, err)
		}
	}
	w, err := NewReloader(path, func(*mobula.Fleet) error {
		file, err := readFleet(path)
		if err != nil {
			return err
		}
		return apply(file)
	}, logger, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	return reloadOnHangup(ctx, w)
}

// sourceOf says for people where a fleet file comes from.
func sourceOf(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if host, err := os.Hostname(); err == nil {
		path += " on " + host
	}
	return path
}
