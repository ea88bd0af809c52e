package trust

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// handshake connects two sides over loopback, and gives what each thinks of the other once a byte went both ways.
func handshake(t *testing.T, server, client *tls.Config) (peer *tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	var both sync.WaitGroup
	both.Go(func() {
		raw, err := listener.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		serverErr = echo(conn)
		state := conn.ConnectionState()
		peer = &state
	})
	both.Go(func() {
		raw, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			clientErr = err
			return
		}
		defer raw.Close()
		conn := tls.Client(raw, client)
		clientErr = ping(conn)
	})
	both.Wait()
	return peer, clientErr, serverErr
}

func echo(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := io.ReadFull(conn, b); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}

func ping(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return err
	}
	// The server's answer to our certificate comes after the handshake, and is read even when the server has gone.
	_, _ = conn.Write([]byte("x"))
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func at(offset time.Duration) func() time.Time {
	return func() time.Time { return time.Now().Add(offset) }
}

const day = 24 * time.Hour

// issued makes credentials as they were made at another time, by a clock that is right for the test.
func issued(t *testing.T, ca *CA, ago time.Duration, role Role, name string) *Credentials {
	t.Helper()
	then := *ca
	then.now = at(-ago)
	c, err := then.Credentials(role, name, []string{"127.0.0.1", "gpu-1.lan"}, AgentLife)
	require.NoError(t, err)
	c.now = time.Now
	return c
}

func TestHandshake(t *testing.T) {
	fleet, err := newCA("prod", at(-200*day))
	require.NoError(t, err)
	other, err := NewCA("staging")
	require.NoError(t, err)
	twin, err := NewCA("prod")
	require.NoError(t, err)
	control := issued(t, fleet, 0, RoleControl, "control")
	agent := issued(t, fleet, 0, RoleAgent, "gpu-1")
	old := issued(t, fleet, AgentLife+day, RoleAgent, "gpu-1")
	early := issued(t, fleet, -time.Hour, RoleAgent, "gpu-1")
	stranger := issued(t, other, 0, RoleAgent, "gpu-1")
	namesake := issued(t, twin, 0, RoleAgent, "gpu-1")
	// A peer that doesn't look at its own certificate first.
	careless := func(c *Credentials) *tls.Config {
		config := c.ClientTLS(RoleControl)
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert.Load(), nil }
		config.VerifyConnection = nil
		return config
	}
	tls12 := func(config *tls.Config) *tls.Config {
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return config
	}
	wrongClock := func(c *Credentials, offset time.Duration) *Credentials {
		off := issued(t, fleet, 0, c.Identity().Role, c.Identity().Name)
		off.now = at(offset)
		return off
	}
	verify := func(ca *CA, roles ...Role) *tls.Config {
		config, err := VerifyTLS(ca.PEM(), roles...)
		require.NoError(t, err)
		return config
	}

	for name, tc := range map[string]struct {
		server, client         *tls.Config
		clientSees, serverSees error
		says                   []string // in the client's error
	}{
		"control to agent": {server: agent.ServerTLS(RoleControl), client: control.ClientTLS(RoleAgent)},
		"agent to control": {server: control.ServerTLS(), client: agent.ClientTLS(RoleControl)},
		"no certificate where none is needed": {
			server: control.ServerTLS(), client: verify(fleet, RoleControl),
		},
		"no certificate where one is needed": {
			server: agent.ServerTLS(RoleControl), client: verify(fleet, RoleAgent),
			clientSees: ErrNoCertificate, says: []string{"join again"},
		},
		"an agent is no control plane": {
			server: agent.ServerTLS(RoleControl), client: agent.ClientTLS(RoleAgent),
			clientSees: ErrRole, serverSees: ErrRole,
		},
		"the server is no agent": {
			server: control.ServerTLS(), client: agent.ClientTLS(RoleAgent),
			clientSees: ErrRole, says: []string{"control is control, expected [agent]"},
		},
		"the server's certificate has expired": {
			server: old.ServerTLS(RoleControl), client: control.ClientTLS(RoleAgent),
			clientSees: ErrExpired, says: []string{"gpu-1", "ended at", "this host's clock says", "join again"},
		},
		"the client's certificate has expired": {
			server: control.ServerTLS(), client: old.ClientTLS(RoleControl),
			clientSees: ErrExpired, says: []string{"gpu-1", "ended at", "join again"},
		},
		"the server says that the client's certificate has expired": {
			server: control.ServerTLS(), client: careless(old),
			clientSees: ErrExpired, serverSees: ErrExpired, says: []string{"join again"},
		},
		"the server's certificate is not valid yet": {
			server: early.ServerTLS(RoleControl), client: control.ClientTLS(RoleAgent),
			clientSees: ErrNotYetValid, says: []string{"begins at", "this host's clock says", "set the clock"},
		},
		"the client's clock is behind": {
			server: control.ServerTLS(), client: wrongClock(agent, -day).ClientTLS(RoleControl),
			clientSees: ErrNotYetValid, says: []string{"begins at", "this host's clock says", "set the clock"},
		},
		"the client's clock is a little behind": {
			server: control.ServerTLS(), client: wrongClock(agent, -4*time.Minute).ClientTLS(RoleControl),
		},
		"the client's clock is ahead": {
			server: control.ServerTLS(), client: wrongClock(agent, AgentLife+day).ClientTLS(RoleControl),
			clientSees: ErrExpired, says: []string{"if the clock is right"},
		},
		"the server's clock is ahead": {
			server: wrongClock(control, AgentLife+day).ServerTLS(), client: careless(agent),
			clientSees: ErrExpired, serverSees: ErrExpired, says: []string{"or its clock is ahead"},
		},
		"an agent of another control plane": {
			server: stranger.ServerTLS(RoleControl), client: control.ClientTLS(RoleAgent),
			clientSees: ErrOtherControl, says: []string{fleet.ID(), other.ID()},
		},
		"an agent of a control plane of the same name": {
			server: namesake.ServerTLS(RoleControl), client: control.ClientTLS(RoleAgent),
			clientSees: ErrOtherControl, says: []string{fleet.ID(), twin.ID()},
		},
		"the server refuses an agent of another control plane": {
			server: control.ServerTLS(), client: careless(stranger),
			clientSees: ErrOtherControl, serverSees: ErrOtherControl, says: []string{"join again"},
		},
		"TLS 1.2": {
			server: control.ServerTLS(), client: tls12(careless(agent)),
			clientSees: ErrNoTLS,
		},
	} {
		t.Run(name, func(t *testing.T) {
			peer, clientErr, serverErr := handshake(t, tc.server, tc.client)
			clientErr, serverErr = Explain(clientErr), Explain(serverErr)
			if tc.clientSees == nil {
				require.NoError(t, clientErr)
				require.NoError(t, serverErr)
				id, ok := PeerIdentity(peer)
				require.Equal(t, len(peer.PeerCertificates) > 0, ok)
				require.True(t, !ok || id.Control == fleet.ID())
				return
			}
			require.ErrorIs(t, clientErr, tc.clientSees)
			require.Error(t, serverErr)
			if tc.serverSees != nil {
				require.ErrorIs(t, serverErr, tc.serverSees)
			}
			for _, words := range tc.says {
				require.ErrorContains(t, clientErr, words)
			}
		})
	}
}

func TestFirstContact(t *testing.T) {
	fleet, err := NewCA("prod")
	require.NoError(t, err)
	other, err := NewCA("prod")
	require.NoError(t, err)
	token, _, err := NewToken(fleet, time.Hour, 1)
	require.NoError(t, err)
	control := issued(t, fleet, 0, RoleControl, "control")

	// Somebody who shows the right authority, which is no secret, beside a certificate that it has not signed.
	impostor := issued(t, other, 0, RoleControl, "control")
	shown := *impostor.cert.Load()
	shown.Certificate = [][]byte{shown.Certificate[0], fleet.cert.Raw}
	impostor.cert.Store(&shown)

	for name, tc := range map[string]struct {
		server *Credentials
		now    func() time.Time
		want   error
		says   string
	}{
		"its control plane":     {server: control},
		"another control plane": {server: issued(t, other, 0, RoleControl, "control"), want: ErrToken, says: other.ID()},
		"an agent":              {server: issued(t, fleet, 0, RoleAgent, "gpu-1"), want: ErrRole, says: "gpu-1 is agent"},
		"an impostor":           {server: impostor, want: ErrOtherControl, says: other.ID()},
		"a clock behind":        {server: control, now: at(-day), want: ErrNotYetValid, says: "set the clock"},
	} {
		t.Run(name, func(t *testing.T) {
			now := tc.now
			if now == nil {
				now = time.Now
			}
			_, clientErr, _ := handshake(t, tc.server.ServerTLS(), pinnedTLS(token, now))
			clientErr = Explain(clientErr)
			if tc.want == nil {
				require.NoError(t, clientErr)
				return
			}
			require.ErrorIs(t, clientErr, tc.want)
			require.ErrorContains(t, clientErr, tc.says)
		})
	}
}

func TestRenewalInUse(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	control := issued(t, ca, 0, RoleControl, "control")
	agent := issued(t, ca, AgentLife-day, RoleAgent, "gpu-1")
	server, client := agent.ServerTLS(RoleControl), agent.ClientTLS(RoleControl)
	require.True(t, agent.RenewAt().Before(time.Now()))

	csr, err := agent.Request()
	require.NoError(t, err)
	cert, err := ca.Issue(csr, RoleAgent, "gpu-1", nil, AgentLife)
	require.NoError(t, err)
	require.NoError(t, agent.Replace(cert))
	require.True(t, agent.RenewAt().After(time.Now().Add(59*day)))
	require.True(t, agent.RenewAt().Before(time.Now().Add(61*day)))

	for _, pair := range [][2]*tls.Config{{server, control.ClientTLS(RoleAgent)}, {control.ServerTLS(), client}} {
		_, clientErr, serverErr := handshake(t, pair[0], pair[1])
		require.NoError(t, clientErr)
		require.NoError(t, serverErr)
	}
	require.Equal(t, Identity{Control: ca.ID(), Role: RoleAgent, Name: "gpu-1"}, agent.Identity())
}

func TestPlainServer(t *testing.T) {
	ca, err := NewCA("prod")
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	var server sync.WaitGroup
	server.Go(func() {
		if conn, err := listener.Accept(); err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_ = conn.Close()
		}
	})
	defer server.Wait()
	raw, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer raw.Close()
	config, err := VerifyTLS(ca.PEM())
	require.NoError(t, err)
	err = Explain(ping(tls.Client(raw, config)))
	require.ErrorIs(t, err, ErrNoTLS)
	require.ErrorContains(t, err, "check the port")
}
