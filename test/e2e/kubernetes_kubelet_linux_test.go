package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

const (
	kubeletTick = 50 * time.Millisecond
	// kubeletSleep is the most that a preStop hook sleeps: time goes faster here.
	kubeletSleep = time.Second
	// From one start of a container to the next one, doubled each time.
	kubeletBackOff, kubeletMostBackOff = 200 * time.Millisecond, 2 * time.Second

	ownCommand = "/mobula" // of our image
)

// kubelet runs the engines of a cluster's pods as processes, each pod at a loopback address of its own. It does not need the API server.
type kubelet struct {
	cluster *kubetest.Cluster
	command func(args ...string) *exec.Cmd
	subnet  string
	stop    context.CancelFunc
	ending  context.Context
	wg      sync.WaitGroup

	mu    sync.Mutex
	pods  map[types.UID]*podUnderTest
	where map[types.UID]string // addresses
	lost  map[string]bool      // nodes
}

// podUnderTest is a pod that runs here.
type podUnderTest struct {
	namespace, name, node string
	uid                   types.UID
	leave                 context.CancelFunc // it is being deleted
	leaving               context.Context
	grace                 time.Duration // set before leave

	mu      sync.Mutex
	process *exec.Cmd // nil while none runs
	dead    bool      // nothing runs any more, and nobody is left to tell of it
}

// newCluster starts a cluster whose pods the kubelet runs once begin is called.
func newCluster(t *testing.T, nodes ...kubetest.Node) (*kubetest.Cluster, *kubelet) {
	t.Helper()
	k := &kubelet{
		subnet: fmt.Sprintf("127.%d.%d.", 16+rand.IntN(200), rand.IntN(256)), pods: map[types.UID]*podUnderTest{},
		where: map[types.UID]string{}, lost: map[string]bool{},
	}
	k.ending, k.stop = context.WithCancel(context.Background())
	k.cluster = kubetest.New(kubetest.Options{Nodes: nodes, Manual: true, Lingers: true, PodAddress: k.address, PodStopped: k.stopped})
	t.Cleanup(k.cluster.Close)
	t.Cleanup(k.end)
	return k.cluster, k
}

// begin runs pods from now on.
func (k *kubelet) begin(command func(args ...string) *exec.Cmd) {
	k.command = command
	k.wg.Go(func() {
		for {
			k.look()
			select {
			case <-k.ending.Done():
				return
			case <-time.After(kubeletTick):
			}
		}
	})
}

// end kills all and waits.
func (k *kubelet) end() {
	k.stop()
	k.mu.Lock()
	for _, p := range k.pods {
		p.kill(true)
	}
	k.mu.Unlock()
	k.wg.Wait()
}

// address gives a pod its address, and a port where that of engines is taken.
func (k *kubelet) address(pod *corev1.Pod) (ip string, port int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at, ok := k.where[pod.UID]; ok {
		host, text, _ := net.SplitHostPort(at)
		port, _ = strconv.Atoi(text)
		return host, port
	}
	ip = k.subnet + strconv.Itoa(1+len(k.where)%250)
	for _, port := range []string{"8000", "0"} {
		if l, err := net.Listen("tcp", net.JoinHostPort(ip, port)); err == nil {
			k.where[pod.UID] = l.Addr().String()
			_ = l.Close()
			return ip, l.Addr().(*net.TCPAddr).Port
		}
	}
	return ip, 0 // its engine will say what is wrong
}

// stopped kills what a pod leaves behind: it was evicted, or deleted by force.
func (k *kubelet) stopped(pod *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.pods[pod.UID]; p != nil {
		p.kill(false)
	}
}

// look brings the pods that run in line with those that the cluster has.
func (k *kubelet) look() {
	for _, pod := range k.cluster.Pods("", "") {
		k.mu.Lock()
		p, gone := k.pods[pod.UID], k.lost[pod.Spec.NodeName]
		k.mu.Unlock()
		switch {
		case gone, pod.Spec.NodeName == "":
		case pod.DeletionTimestamp != nil && p == nil:
			_ = k.cluster.Finish(pod.Namespace, pod.Name)
		case pod.DeletionTimestamp != nil:
			p.depart(pod)
		case p == nil && runnable(pod):
			k.adopt(pod)
		}
	}
}

// runnable tells of a pod that is to be started, of an image that we have.
func runnable(pod *corev1.Pod) bool {
	begun := slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.State.Waiting != nil && s.State.Waiting.Reason == "ContainerCreating"
	})
	command := pod.Spec.Containers[0].Command
	return begun && pod.Status.Phase == corev1.PodPending && len(command) > 0 && strings.HasPrefix(command[0], "/")
}

func (k *kubelet) adopt(pod *corev1.Pod) {
	p := &podUnderTest{namespace: pod.Namespace, name: pod.Name, node: pod.Spec.NodeName, uid: pod.UID}
	p.leaving, p.leave = context.WithCancel(k.ending)
	k.mu.Lock()
	k.pods[pod.UID] = p
	k.mu.Unlock()
	k.wg.Go(func() {
		k.live(p)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.pods, p.uid)
	})
}

// depart has a pod end as its deletion says.
func (p *podUnderTest) depart(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leaving.Err() == nil {
		p.grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
		p.leave()
	}
}

// kill ends the process at once; for good, no other one follows.
func (p *podUnderTest) kill(forGood bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = p.dead || forGood
	if p.process != nil {
		_ = p.process.Process.Kill()
	}
}

// live runs a pod's engine, again and again, until it is deleted.
func (k *kubelet) live(p *podUnderTest) {
	for wait := kubeletBackOff; ; wait = min(2*wait, kubeletMostBackOff) {
		code, words := k.once(p)
		p.mu.Lock()
		dead := p.dead
		p.mu.Unlock()
		pod := k.cluster.Pod(p.namespace, p.name)
		switch {
		case dead, k.ending.Err() != nil, pod == nil, pod.UID != p.uid, pod.Status.Phase == corev1.PodFailed:
			return
		case p.leaving.Err() != nil:
			_ = k.cluster.Finish(p.namespace, p.name)
			return
		}
		if k.cluster.Crash(p.namespace, p.name, code, words) != nil {
			return
		}
		select {
		case <-p.leaving.Done():
			if k.ending.Err() == nil {
				_ = k.cluster.Finish(p.namespace, p.name)
			}
			return
		case <-time.After(wait):
		}
	}
}

// once runs the engine once, and gives how it ended and its last words.
func (k *kubelet) once(p *podUnderTest) (code int, words string) {
	if err := k.cluster.Start(p.namespace, p.name); err != nil {
		return 1, err.Error()
	}
	pod := k.cluster.Pod(p.namespace, p.name)
	if pod == nil || pod.UID != p.uid {
		return 1, "it is gone"
	}
	cmd, at := k.process(pod)
	out := &podOutput{log: func(text string) { k.cluster.Log(p.namespace, p.name, text) }}
	cmd.Stdout, cmd.Stderr = out, out
	if err := p.start(cmd); err != nil {
		return 128, err.Error()
	}
	ended := make(chan struct{})
	k.wg.Go(func() {
		defer close(ended)
		_ = cmd.Wait()
		p.mu.Lock()
		p.process = nil
		p.mu.Unlock()
	})
	k.wg.Go(func() { k.probe(p, at, ended) })
	select {
	case <-ended:
		return cmd.ProcessState.ExitCode(), out.last()
	case <-p.leaving.Done():
	}
	deadline := time.After(p.grace)
	select { // the preStop hook
	case <-ended:
	case <-deadline:
	case <-time.After(min(sleepOf(pod), kubeletSleep)):
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-deadline:
		_ = cmd.Process.Kill()
		<-ended
	}
	return 0, ""
}

var errDead = errors.New("the pod is dead")

func (p *podUnderTest) start(cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errDead
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.process = cmd
	return nil
}

func sleepOf(pod *corev1.Pod) time.Duration {
	if l := pod.Spec.Containers[0].Lifecycle; l != nil && l.PreStop != nil && l.PreStop.Sleep != nil {
		return time.Duration(l.PreStop.Sleep.Seconds) * time.Second
	}
	return 0
}

// probe has a pod be ready once its engine answers.
func (k *kubelet) probe(p *podUnderTest, at string, ended <-chan struct{}) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		select {
		case <-ended:
			return
		case <-p.leaving.Done():
			return
		case <-time.After(kubeletTick):
		}
		resp, err := client.Get("http://" + at + "/health")
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			continue
		}
		select {
		case <-ended: // what answered is no more
		default:
			_ = k.cluster.Ready(p.namespace, p.name)
		}
		return
	}
}

// process makes the command of a pod's engine, and the address where it listens.
func (k *kubelet) process(pod *corev1.Pod) (cmd *exec.Cmd, at string) {
	c := pod.Spec.Containers[0]
	port := "8000"
	for _, p := range c.Ports {
		port = strconv.Itoa(int(p.ContainerPort))
	}
	values := map[string]string{}
	var env []string
	for _, e := range c.Env {
		value := expand(e.Value, values)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "status.podIP" {
			value = pod.Status.PodIP
		}
		values[e.Name] = value
		env = append(env, e.Name+"="+value)
	}
	argv := slices.Concat(c.Command, c.Args)
	for i := range argv {
		argv[i] = expand(argv[i], values)
		switch { // a network of its own is what it has not
		case i > 0 && argv[i-1] == "--host":
			argv[i] = pod.Status.PodIP
		case i > 0 && argv[i-1] == "--port":
			argv[i] = port
		}
	}
	cmd = k.command(argv[1:]...)
	if argv[0] != ownCommand {
		own := cmd.Env
		cmd = exec.Command(argv[0], argv[1:]...)
		cmd.Env = own
	}
	cmd.Env = append(cmd.Env, env...)
	return cmd, net.JoinHostPort(pod.Status.PodIP, port)
}

// expand fills in $(NAME), and makes one $ of two, as Kubernetes does.
func expand(text string, values map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		rest := text[i:]
		switch end := strings.IndexByte(rest, ')'); {
		case strings.HasPrefix(rest, "$$"):
			b.WriteByte('$')
			i++
		case strings.HasPrefix(rest, "$(") && end > 0:
			if value, ok := values[rest[2:end]]; ok {
				b.WriteString(value)
				i += end
				continue
			}
			b.WriteByte('$')
		default:
			b.WriteByte(text[i])
		}
	}
	return b.String()
}

// podOutput is what an engine writes.
type podOutput struct {
	log func(string)
	mu  sync.Mutex
	end []byte
}

func (o *podOutput) Write(p []byte) (int, error) {
	o.log(string(p))
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end = append(o.end, p...)
	o.end = o.end[max(0, len(o.end)-2048):]
	return len(p), nil
}

func (o *podOutput) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.end)
}

// crash kills the engine of a pod: it is started again in the same pod.
func (k *kubelet) crash(t *testing.T, pod string) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		if p.name == pod {
			p.kill(false)
			return
		}
	}
	require.Fail(t, "no such pod", pod)
}

// loseNode has a machine lose its power. Kubernetes notices, and after a while has other pods made in place of those that it held.
func (k *kubelet) loseNode(t *testing.T, node string) {
	t.Helper()
	k.mu.Lock()
	k.lost[node] = true
	for _, p := range k.pods {
		if p.node == node {
			p.kill(true)
		}
	}
	k.mu.Unlock()
	k.cluster.NodeLost(node)
	for _, pod := range k.cluster.Pods("", "") {
		if pod.Spec.NodeName == node { // as the node lifecycle controller does
			require.NoError(t, k.cluster.Client().CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}))
		}
	}
}

// returnNode has a machine come back: what was to be deleted there is.
func (k *kubelet) returnNode(node string) {
	k.cluster.NodeBack(node)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.lost, node)
}
