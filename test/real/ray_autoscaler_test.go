//go:build real

package real

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/test/fleet"
)

// TestRayAutoscaler: a replica that fits on no node waits, Ray's own autoscaler brings it a node, and takes the node
// away when the replica has gone.
func TestRayAutoscaler(t *testing.T) {
	c, binary := startRay(t, rayOptions{}), build(t)
	f := c.fleet(t, binary, "")
	large := strings.Replace(simModel(binary, "1", ""), "gpus: 1", "gpus: 4", 1) // no node has more than 2
	require.Contains(t, f.refused(c.file("", large)), "needs 4 GPUs, 1 CPU on one node: ", "nobody is said to bring nodes")

	f.Apply(c.file("autoscaling: true, ", large))
	f.StartRouter()
	f.told("waits for 4 GPUs, 1 CPU on one node", c.head.host.IP+" has 2 GPUs")
	waiting := f.Replicas()
	require.Len(t, waiting, 1)
	require.Equal(t, mobula.StatePending, waiting[0].State)

	head := c.must("nodes")[0].NodeID
	c.autoscale(head, 4)
	f.AwaitReady(fleet.Model, 1)
	require.Equal(t, waiting[0].ID, f.Ready(fleet.Model)[0].ID, "the one that has waited")
	f.AwaitServes("chat", waiting[0].ID)
	came := c.comers(head)
	require.Len(t, came, 1)
	require.Equal(t, came[0].NodeID, f.actor(f.Ready(fleet.Model)[0]).NodeID)

	f.Run("scale", fleet.Model, "0")
	f.Await("rid of actor, placement group and process", func() bool {
		// The job's record stays: it tells a control plane that has lost its data folder of the model.
		return !slices.ContainsFunc(c.left(), func(what string) bool { return !strings.HasPrefix(what, "job ") })
	})
	c.await("the node has gone again", func() bool { return len(c.comers(head)) == 0 })

	f.Run("scale", fleet.Model, "1")
	f.AwaitReady(fleet.Model, 1)
	f.AwaitServes("chat", f.Ready(fleet.Model)[0].ID)
	f.Deleted()
	c.await("the second node has gone, too", func() bool { return len(c.comers(head)) == 0 })
}

// autoscale has the cluster's autoscaler bring up to two nodes with so many GPUs beside the head, whose ID is given, and take away those that are idle for
// seconds. It is the one that every head runs, started again with a configuration, as by ray start --autoscaling-config.
// Ray's provider fake_multinode has the nodes be raylets on the head's machine; cloud providers differ only there.
func (c *rayLab) autoscale(head string, gpus int) {
	t := c.t
	t.Helper()
	file := filepath.Join(c.temp, "autoscaling.yaml")
	address := net.JoinHostPort(c.head.host.IP, "6379")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, autoscaling, head, address, gpus), 0o600))
	monitor := c.head.kill("monitor.py")
	c.head.defaultRoute(c.head.processes(program("gcs_server"))[0].pid)
	monitor.argv = append(monitor.argv, "--autoscaling-config="+file)
	monitor.env = append(monitor.env, "RAY_FAKE_CLUSTER=1", "AUTOSCALER_UPDATE_INTERVAL_S=1")
	c.head.again(monitor)
}

// autoscaling is the configuration: the head's ID, the GCS's address, and the GPUs of a node that comes. The autoscaler
// reads each of its fields, those that this provider has no use for, too.
const autoscaling = `
cluster_name: lab
max_workers: 2
idle_timeout_minutes: 0.2
upscaling_speed: 1.0
provider:
  type: fake_multinode
  head_node_id: %s
  gcs_address: %q
  use_node_id_as_ip: true
  disable_node_updaters: true
  disable_launch_config_check: true
head_node_type: ray.head.default
available_node_types:
  ray.head.default: {resources: {CPU: 4, GPU: 2}, node_config: {}, max_workers: 0}
  large: {resources: {CPU: 2, GPU: %d, object_store_memory: 80000000}, node_config: {}, min_workers: 0, max_workers: 2}
auth: {}
docker: {}
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
`

// comers are the nodes that the autoscaler has brought: all but the head.
func (c *rayLab) comers(head string) []rayThing {
	c.t.Helper()
	return slices.DeleteFunc(c.must("nodes"), func(n rayThing) bool { return n.NodeID == head })
}

// defaultRoute gives the node one, by which Ray finds out its address where it is not told: else it takes the loopback's.
// pid is a process there.
func (n *rayNode) defaultRoute(pid int) {
	t := n.c.t
	t.Helper()
	ns, err := netns.GetFromPid(pid)
	require.NoError(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	require.NoError(t, err)
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	require.NoError(t, err)
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	require.NoError(t, h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all}))
}
