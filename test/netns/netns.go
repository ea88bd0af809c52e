//go:build linux

// Package netns gives tests a small network of their own: hosts in network namespaces, joined
// by a switch. Nothing of it can be reached from outside, and nothing is left when the test's process is gone: the
// namespaces have no names. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Lab is a switch with its hosts.
type Lab struct {
	ns    netns.NsHandle
	hosts []*Host
}

// Host is one machine of a Lab.
type Host struct {
	Name string
	// IP is its only address beside the loopback's, 10.77.0.1 and so on.
	IP  string
	ns  netns.NsHandle
	lab *Lab
}

// New makes a Lab that ends with the test. It fails the test where namespaces can't be made.
func New(tb testing.TB, names ...string) *Lab {
	tb.Helper()
	l, err := build(names)
	if err != nil {
		tb.Fatalf("network namespaces: %v (these tests need root, or CAP_NET_ADMIN and CAP_SYS_ADMIN)", err)
	}
	tb.Cleanup(l.close)
	return l
}

// Host gives the machine of that name.
func (l *Lab) Host(name string) *Host {
	for _, h := range l.hosts {
		if h.Name == name {
			return h
		}
	}
	panic("no host " + name)
}

func build(names []string) (*Lab, error) {
	l := &Lab{ns: netns.None()}
	var err error
	if l.ns, err = newNamespace(); err != nil {
		return nil, err
	}
	err = in(l.ns, func() error {
		bridge := &netlink.Bridge{LinkAttrs: attrs("br0")}
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("bridge: %w", err)
		}
		return netlink.LinkSetUp(bridge)
	})
	for i, name := range names {
		if err == nil {
			err = l.add(name, i)
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// port is the switch's end of a host's cable.
func (h *Host) port() string { return "p-" + h.IP[len("10.77.0."):] }

func (l *Lab) add(name string, i int) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	h := &Host{Name: name, IP: fmt.Sprintf("10.77.0.%d", i+1), ns: ns, lab: l}
	l.hosts = append(l.hosts, h)
	err = in(l.ns, func() error {
		cable := &netlink.Veth{LinkAttrs: attrs(h.port()), PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns))}
		if err := netlink.LinkAdd(cable); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(cable, bridge), netlink.LinkSetUp(cable))
	})
	if err != nil {
		return err
	}
	return in(ns, func() error {
		for _, name := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name == "eth0" {
				addr, err := netlink.ParseAddr(h.IP + "/24")
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(link, addr); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Lab) close() {
	for _, h := range l.hosts {
		_ = h.ns.Close()
	}
	_ = l.ns.Close()
}

// Start starts a command on the host. It must not have a Pdeathsig: the thread that starts it ends at once.
func (h *Host) Start(cmd *exec.Cmd) error { return in(h.ns, cmd.Start) }

// Dial connects as the host would; addr is an IP address with a port.
func (h *Host) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = in(h.ns, func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// Partition pulls the host's cable out of the switch, or puts it in again.
func (h *Host) Partition(on bool) error {
	return in(h.lab.ns, func() error {
		port, err := netlink.LinkByName(h.port())
		if err != nil {
			return err
		}
		if on {
			return netlink.LinkSetDown(port)
		}
		return netlink.LinkSetUp(port)
	})
}

// Cut loses all packets between two hosts, or no more. All others still reach both.
func (l *Lab) Cut(a, b string, on bool) error {
	return errors.Join(l.Host(a).lose(l.Host(b), on), l.Host(b).lose(l.Host(a), on))
}

// lose sends what is for to where nobody is.
func (h *Host) lose(to *Host, on bool) error {
	return in(h.ns, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		entry := &netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
			IP: net.ParseIP(to.IP), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0},
		}
		if on {
			return netlink.NeighSet(entry)
		}
		return netlink.NeighDel(entry)
	})
}

// newNamespace makes one that lives as long as the handle is open.
func newNamespace() (ns netns.NsHandle, err error) {
	aside(func() { ns, err = netns.New() })
	return ns, err
}

// aside calls f on a thread that no other goroutine gets. It is not the process's first one: that one does not end, and
// what it is in is what /proc tells of the process.
func aside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			aside(f) // gets another thread, since this one is taken
			return
		}
		f()
	}()
	<-done
}

// in calls f on a thread that is in the namespace. What f starts is in it too.
func in(ns netns.NsHandle, f func() error) (err error) {
	aside(func() {
		if err = netns.Set(ns); err == nil {
			err = f()
		}
	})
	return err
}
