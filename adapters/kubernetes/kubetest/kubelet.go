package kubetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// errNoPod is returned for a pod that is not there, or not in a state for what a test asks.
var errNoPod = errors.New("kubetest: no such pod")

// grace gives for how long a pod may go on after it is deleted; asked is -1 for its own period.
func (c *Cluster) grace(pod *object, asked int64) int64 {
	switch {
	case text(pod.tree, "spec", "nodeName") == "" || ended(pod):
		return 0
	case asked >= 0:
		return asked
	}
	return number(pod.tree, 30, "spec", "terminationGracePeriodSeconds")
}

// pod does what scheduler and kubelet do for a pod.
func (c *Cluster) pod(o *object) {
	node := text(o.tree, "spec", "nodeName")
	nodes := c.store.core("", "v1", "nodes")
	machine := nodes.objects[key{name: node}]
	switch {
	case o.deleting():
		if !c.opts.Lingers && !c.lost[node] || node == "" || machine == nil {
			c.finish(o)
		}
	case ended(o):
	case node == "":
		if text(o.tree, "status", "phase") == "Pending" {
			c.schedule(o)
		}
	case machine == nil:
		if !c.adopted[ref{c.pods(), o.key}] {
			c.finish(o)
		}
	case c.lost[node], text(o.tree, "status", "phase") != "Pending":
	default:
		c.pulled(o)
	}
}

// pulled brings a pod that has its node on its way.
func (c *Cluster) pulled(o *object) {
	reason, message := c.obstacle(o)
	waits := false
	for _, s := range trees(list(o.tree, "status", "containerStatuses")) {
		waits = waits || text(s, "state", "waiting", "reason") == "ContainerCreating"
	}
	switch {
	case reason != "":
		c.status(c.pods(), o, c.podStatus(o, "Pending", func(s tree) { s["state"] = waitingFor(reason, message) }))
	case !c.opts.Manual:
		c.start(o, true)
	case !waits:
		c.status(c.pods(), o, c.podStatus(o, "Pending", func(s tree) { s["state"] = waitingFor("ContainerCreating", "") }))
	}
}

// obstacle tells why the containers of a pod can't be made.
func (c *Cluster) obstacle(o *object) (reason, message string) {
	for _, container := range containers(sub(o.tree, "spec")) {
		image := text(container, "image")
		if why, bad := c.badImages[image]; bad {
			return "ImagePullBackOff", fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %s", image, why)
		}
		for _, e := range trees(list(container, "env")) {
			from := sub(e, "valueFrom", "secretKeyRef")
			if from == nil || flag(from, "optional") {
				continue
			}
			secret := c.store.core("", "v1", "secrets").objects[key{o.namespace, text(from, "name")}]
			if secret == nil {
				return "CreateContainerConfigError", fmt.Sprintf("secret %q not found", text(from, "name"))
			}
			if at(secret.tree, "data", text(from, "key")) == nil {
				return "CreateContainerConfigError", fmt.Sprintf("couldn't find key %s in Secret %s/%s", text(from, "key"), o.namespace, text(from, "name"))
			}
		}
	}
	return "", ""
}

func waitingFor(reason, message string) tree {
	out := tree{"reason": reason}
	if message != "" {
		out["message"] = message
	}
	return tree{"waiting": out}
}

// podStatus makes the next status of a pod: each says how a container fares.
func (c *Cluster) podStatus(o *object, phase string, each func(status tree)) tree {
	was := sub(o.tree, "status")
	status := maps.Clone(was)
	if status == nil {
		status = tree{}
	}
	status["phase"] = phase
	statuses := make([]any, 0, 1)
	ready := true
	for i, container := range trees(list(o.tree, "spec", "containers")) {
		s := tree{"name": container["name"], "image": container["image"], "imageID": "", "ready": false, "started": false, "restartCount": int64(0)}
		if before := trees(list(was, "containerStatuses")); i < len(before) {
			s = maps.Clone(before[i])
		}
		each(s)
		ready = ready && flag(s, "ready")
		statuses = append(statuses, s)
	}
	status["containerStatuses"] = statuses
	c.initStatuses(o, status, phase != "Pending")
	conditions := list(was, "conditions")
	yes := map[bool]string{true: "True", false: "False"}
	reason, message := "", ""
	if !ready {
		reason, message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", names(o))
	}
	status["conditions"] = []any{
		c.condition(conditions, "PodScheduled", "True", "", ""),
		c.condition(conditions, "Initialized", yes[phase != "Pending" || len(list(o.tree, "spec", "initContainers")) == 0], "", ""),
		c.condition(conditions, "ContainersReady", yes[ready], reason, message),
		c.condition(conditions, "Ready", yes[ready], reason, message),
	}
	return status
}

func (c *Cluster) initStatuses(o *object, status tree, done bool) {
	var out []any
	for _, container := range trees(list(o.tree, "spec", "initContainers")) {
		state := waitingFor("PodInitializing", "")
		sidecar := text(container, "restartPolicy") == "Always"
		switch {
		case done && sidecar:
			state = tree{"running": tree{"startedAt": c.store.timestamp()}}
		case done:
			state = tree{"terminated": tree{"exitCode": int64(0), "reason": "Completed", "finishedAt": c.store.timestamp()}}
		}
		out = append(out, tree{
			"name": container["name"], "image": container["image"], "imageID": "", "restartCount": int64(0), "state": state,
			"ready": done, "started": done && sidecar,
		})
	}
	if len(out) > 0 {
		status["initContainerStatuses"] = out
	}
}

func names(o *object) []string {
	var out []string
	for _, container := range trees(list(o.tree, "spec", "containers")) {
		out = append(out, text(container, "name"))
	}
	return out
}

// start runs the containers of a pod, ready or not yet.
func (c *Cluster) start(o *object, ready bool) {
	if _, ok := c.running[o.key]; !ok {
		o = c.address(o)
	}
	was := map[string]tree{}
	for _, s := range trees(list(o.tree, "status", "containerStatuses")) {
		was[text(s, "name")] = s
	}
	probed := map[string]bool{}
	for _, container := range trees(list(o.tree, "spec", "containers")) {
		probed[text(container, "name")] = container["startupProbe"] != nil
	}
	status := c.podStatus(o, "Running", func(s tree) {
		if sub(s, "state", "running") == nil {
			s["state"] = tree{"running": tree{"startedAt": c.store.timestamp()}}
			s["containerID"] = "containerd://" + o.uid()
		}
		s["ready"] = ready
		s["started"] = ready || !probed[text(s, "name")]
	})
	c.status(c.pods(), o, status)
}

// address gives a pod an address, as Options.PodAddress says.
func (c *Cluster) address(o *object) *object {
	c.addresses++
	n := c.addresses
	ip, port := fmt.Sprintf("10.%d.%d.%d", 244+n>>16&3, n>>8&0xff, n&0xff), 0
	if c.opts.PodAddress != nil {
		ip, port = c.opts.PodAddress(typedPod(o))
	}
	next := o.draft()
	if port != 0 {
		spec := copyTree(sub(o.tree, "spec"))
		for _, container := range containers(spec) {
			for _, p := range trees(list(container, "ports")) {
				if text(p, "name") == "http" {
					p["containerPort"] = int64(port)
				}
			}
		}
		next["spec"] = spec
	}
	status := maps.Clone(sub(o.tree, "status"))
	status["podIP"], status["podIPs"] = ip, []any{tree{"ip": ip}}
	status["hostIP"], status["startTime"] = "10.0.0.1", c.store.timestamp()
	next["status"] = status
	stored := c.store.put(c.pods(), next)
	c.running[o.key] = stored
	return stored
}

// stopped tells the test that the processes of a pod are no more.
func (c *Cluster) stopped(at key) {
	o, ok := c.running[at]
	if !ok {
		return
	}
	delete(c.running, at)
	if c.opts.PodStopped != nil {
		c.opts.PodStopped(typedPod(o))
	}
}

// finish ends a pod that is deleted.
func (c *Cluster) finish(o *object) {
	c.stopped(o.key)
	if len(list(o.tree, "metadata", "finalizers")) == 0 {
		c.store.drop(c.pods(), o.key)
	}
}

// forget ends what is kept of a pod that is gone.
func (c *Cluster) forget(pod key) {
	c.stopped(pod)
	delete(c.waiting, pod)
	if l := c.logged[pod]; l != nil {
		delete(c.logged, pod)
		l.now.end(c.store.now())
	}
}

func typedPod(o *object) *corev1.Pod {
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.tree, pod); err != nil {
		panic(err) // it was checked when it was stored
	}
	return pod
}

// onPod does something to a pod that is there, and all that follows.
func (c *Cluster) onPod(namespace, name string, do func(o *object)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.pods().objects[key{namespace, name}]
	if o == nil {
		return fmt.Errorf("%w: %s/%s", errNoPod, namespace, name)
	}
	do(o)
	c.settle()
	return nil
}

// Start runs the containers of a pod that has a node, not ready yet.
func (c *Cluster) Start(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) { c.start(o, false) })
}

// Ready has the containers of a pod answer their probes; it starts them if they don't run.
func (c *Cluster) Ready(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) { c.start(o, true) })
}

// Unready has the containers of a pod that runs fail their readiness probes.
func (c *Cluster) Unready(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) {
		c.status(c.pods(), o, c.podStatus(o, "Running", func(s tree) { s["ready"] = false }))
	})
}

// Crash ends the containers of a pod with an exit code and, as its last words, a message. They wait in CrashLoopBackOff for
// Start or Ready.
func (c *Cluster) Crash(namespace, name string, exitCode int, message string) error {
	return c.onPod(namespace, name, func(o *object) {
		c.stopped(o.key)
		c.logOf(o.key).next(c.store.now())
		reason := "Error"
		switch exitCode {
		case 0:
			reason = "Completed"
		case 137:
			reason = "OOMKilled"
		}
		end := tree{"terminated": tree{
			"exitCode": int64(exitCode), "reason": reason, "message": message,
			"startedAt": c.store.timestamp(), "finishedAt": c.store.timestamp(),
		}}
		status := c.podStatus(o, "Running", func(s tree) {
			s["restartCount"] = number(s, 0, "restartCount") + 1
			s["ready"], s["started"], s["lastState"] = false, false, end
			s["state"] = waitingFor("CrashLoopBackOff", fmt.Sprintf("back-off 10s restarting failed container=%s pod=%s_%s(%s)", text(s, "name"), o.name, o.namespace, o.uid()))
		})
		c.status(c.pods(), o, status)
	})
}

// Evict has a kubelet end a pod for want of memory, as Failed; who owns it makes another.
func (c *Cluster) Evict(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) {
		c.stopped(o.key)
		c.logOf(o.key).now.end(c.store.now())
		status := c.podStatus(o, "Failed", func(s tree) {
			s["ready"], s["started"] = false, false
			s["state"] = tree{"terminated": tree{"exitCode": int64(137), "reason": "Error"}}
		})
		status["reason"], status["message"] = "Evicted", "The node was low on resource: memory. "
		c.status(c.pods(), o, status)
	})
}

// Finish ends a pod that is being deleted (Options.Lingers, or on a lost node).
func (c *Cluster) Finish(namespace, name string) error {
	return c.onPod(namespace, name, func(o *object) {
		if o.deleting() {
			c.finish(o)
		}
	})
}

// ImagePullFails has no more containers of an image start. ImagePullWorks ends that.
func (c *Cluster) ImagePullFails(image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.badImages[image] = fmt.Sprintf("failed to pull and unpack image %q: not found", image)
}

// ImagePullWorks has the containers of an image start again, those that wait included.
func (c *Cluster) ImagePullWorks(image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.badImages, image)
	for at := range c.pods().objects {
		c.enqueue(ref{c.pods(), at})
	}
	c.settle()
}

// RefusePods has pods be refused by an admission controller, such as a quota's, with a message; empty ends that.
func (c *Cluster) RefusePods(message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.podRefusal = message
	for _, t := range c.store.tables {
		if t.Group == "apps" || t.Group == "ray.io" {
			for at := range t.objects {
				c.enqueue(ref{t, at})
			}
		}
	}
	c.settle()
}

// NodeLost has a node no longer be heard of: its pods are not ready, and stay terminating when they are deleted.
func (c *Cluster) NodeLost(name string) { c.setNode(name, true) }

// NodeBack ends NodeLost; the pods that were not deleted are ready again.
func (c *Cluster) NodeBack(name string) { c.setNode(name, false) }

func (c *Cluster) setNode(name string, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := c.store.core("", "v1", "nodes")
	node := nodes.objects[key{name: name}]
	if node == nil {
		return
	}
	c.lost[name] = lost
	ready := tree{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}
	if lost {
		ready = tree{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped posting node status."}
	}
	c.status(nodes, node, with(sub(node.tree, "status"), []any{ready}, "conditions"))
	for _, at := range slices.SortedFunc(maps.Keys(c.store.onNode[name]), key.compare) {
		o := c.pods().objects[at]
		if text(o.tree, "status", "phase") == "Running" {
			c.status(c.pods(), o, c.nodeCondition(o, lost))
		}
		c.enqueue(ref{c.pods(), at})
	}
	c.settle()
}

// nodeCondition gives a pod's status as its node's loss makes it: not ready, though its containers may be.
func (c *Cluster) nodeCondition(o *object, lost bool) tree {
	was := list(o.tree, "status", "conditions")
	ready := c.condition(was, "Ready", "False", "", "")
	contained := slices.ContainsFunc(trees(was), func(t tree) bool {
		return text(t, "type") == "ContainersReady" && text(t, "status") == "True"
	})
	if contained && !lost {
		ready = c.condition(was, "Ready", "True", "", "")
	}
	out := []any{ready}
	for _, t := range trees(was) {
		if text(t, "type") != "Ready" {
			out = append(out, t)
		}
	}
	return with(sub(o.tree, "status"), out, "conditions")
}
