package kube

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/engine"
)

// maxMessage cuts what Kubernetes says, in bytes.
const maxMessage = 400

// field is how people find a setting of the model.
func (e Engine) field(name string) string { return "models[" + e.Model.Name + "]." + name }

// unscheduled tells why a pod has no node.
func (e Engine) unscheduled(pod *corev1.Pod) fare {
	f := fare{state: mobula.StatePending, since: pod.CreationTimestamp.Time, reason: "it has not been given to a node yet"}
	c := condition(pod, corev1.PodScheduled)
	if c == nil || c.Status != corev1.ConditionFalse {
		return f
	}
	if c.Reason == "SchedulingGated" {
		f.reason = "something of the cluster holds it back (a scheduling gate): see spec.schedulingGates of pod " + pod.Name
		return f
	}
	f.reason = "no node can take it: " + clip(cmp.Or(c.Message, c.Reason))
	lower := strings.ToLower(c.Message)
	f.noRoom = strings.Contains(lower, "insufficient ") || strings.Contains(lower, "too many pods") || strings.Contains(lower, "free ports")
	if advice := e.advice(pod, lower); advice != "" {
		f.reason += "; " + advice
	}
	return f
}

// advice says what to do about what the scheduler says, in lower case.
func (e Engine) advice(pod *corev1.Pod, said string) string {
	for _, a := range []struct{ sign, advice string }{
		{"persistentvolumeclaim", "see " + e.field("kubernetes.data") + " and kubectl get pvc"},
		{"volume node affinity conflict", "its volume is bound to other nodes: see " + e.field("kubernetes.data")},
		{"insufficient ", "it asks for " + demand(pod) + ": free some, add nodes, or ask for less (" + e.field("resources") + ", kubernetes); if nodes have it, see that kubectl describe node lists it as allocatable"},
		{"untolerated taint", "tolerate the taint with " + e.field("kubernetes.pod.spec.tolerations")},
		{"affinity/selector", "nodes need what resources.hostLabels, resources.gpuMemory (label " + gpuMemoryLabel + ") and kubernetes.pod of the model ask for"},
	} {
		if strings.Contains(said, a.sign) {
			return a.advice
		}
	}
	return ""
}

// demand says what a pod's containers ask for: "8 nvidia.com/gpu, 2 cpu, 8Gi memory".
func demand(pod *corev1.Pod) string {
	var all []string
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.Name != Container {
			continue
		}
		for name, q := range c.Resources.Requests {
			all = append(all, q.String()+" "+string(name))
		}
		for name, q := range c.Resources.Limits { // GPUs have no request of their own
			if _, both := c.Resources.Requests[name]; !both && strings.Contains(string(name), "/") {
				all = append(all, q.String()+" "+string(name))
			}
		}
	}
	slices.Sort(all)
	return cmp.Or(strings.Join(all, ", "), "little")
}

// initializing tells why the engine's container has to wait for others of the pod, empty when it has not.
func (e Engine) initializing(pod *corev1.Pod) string {
	for i := range pod.Status.InitContainerStatuses {
		s := &pod.Status.InitContainerStatuses[i]
		name := "its init container " + s.Name
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0, s.Started != nil && *s.Started && s.State.Running != nil && sidecar(pod, s.Name):
			continue
		case s.State.Running != nil:
			return name + " runs"
		case s.State.Terminated != nil:
			return name + " ended with " + exit(s.State.Terminated)
		case s.LastTerminationState.Terminated != nil:
			return name + " ended with " + exit(s.LastTerminationState.Terminated)
		case s.State.Waiting != nil && stuck(s.State.Waiting.Reason):
			return name + ": " + e.waiting(pod, s.Image, s.State.Waiting)
		default:
			return name + " has not run yet"
		}
	}
	return ""
}

// sidecar tells of an init container that goes on running beside the engine.
func sidecar(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// stuck tells of a container that waits for something that a person has to mend.
func stuck(reason string) bool {
	switch reason {
	case "", "ContainerCreating", "PodInitializing", "CrashLoopBackOff":
		return false
	}
	return true
}

// Stuck tells of pods that wait for something that a person has to mend: an image that can't be pulled, a Secret that is not there. A registry
// may have hiccups: it counts once it has lasted.
func Stuck(pods []*corev1.Pod) bool {
	return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool {
		if pod.DeletionTimestamp != nil || ended(pod) {
			return false
		}
		waits := func(s corev1.ContainerStatus) bool { return s.State.Waiting != nil && stuck(s.State.Waiting.Reason) }
		if slices.ContainsFunc(pod.Status.InitContainerStatuses, waits) {
			return true
		}
		s := engineStatus(pod)
		return s != nil && waits(*s)
	})
}

// waiting tells what a container waits for.
func (e Engine) waiting(pod *corev1.Pod, image string, w *corev1.ContainerStateWaiting) string {
	if w == nil || !stuck(w.Reason) {
		reason := "node " + pod.Spec.NodeName + " pulls its image and mounts its volumes"
		if d := &e.Model.Kubernetes.Data; d.Size > 0 || d.Claim != "" {
			reason += ", which takes until no other node has its claim, unless that may be mounted by several: kubectl describe pod " + pod.Name + " tells"
		}
		return reason
	}
	said := told(w.Reason, w.Message)
	switch w.Reason {
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
		return "image " + image + " can't be pulled" + said + "; see that " + e.field("kubernetes.image") + " exists, that node " + pod.Spec.NodeName +
			" reaches its registry, and that kubernetes.pullSecrets has what it wants to see"
	case "CreateContainerConfigError":
		return "its container can't be made" + said + "; make the Secret or ConfigMap that it names, in the pod's namespace, " + pod.Namespace
	default:
		return "its container can't be made" + said + "; see kubectl describe pod " + pod.Name
	}
}

// ending tells how the engine's process ended, and what to do.
func (e Engine) ending(pod *corev1.Pod, t *corev1.ContainerStateTerminated) string {
	ran := t.FinishedAt.Sub(t.StartedAt.Time)
	killed := t.ExitCode == 137 || t.ExitCode == 143
	limit := e.start()
	switch {
	case t.Reason == "OOMKilled":
		return "it was killed for the memory that it took (OOMKilled): give it more by " + e.field("kubernetes.memoryLimit") + ", or let its nodes keep more free"
	case t.Reason == "StartError" || t.Reason == "ContainerCannotRun":
		return "its container can't start" + told(t.Reason, t.Message) + "; is " + e.field("kubernetes.image") + " an image with vLLM, and engine.command in it?"
	case killed && !t.StartedAt.IsZero() && ran >= limit && pod.DeletionTimestamp == nil:
		return fmt.Sprintf("it did not answer at /health for %s and was stopped: if it needs longer, raise %s; if it hangs, its log says at what",
			mobula.Duration(ran.Round(time.Second)), e.field("engine.startTimeout"))
	default:
		return "it ended with " + exit(t)
	}
}

// exit says how a container ended: its exit code, and what the end of its log tells.
func exit(t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("exit code %d", t.ExitCode)
	if t.Signal != 0 {
		text = fmt.Sprintf("signal %d", t.Signal)
	}
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		text += " (" + t.Reason + ")"
	}
	return prefixedBy(text, engine.FailureReason(strings.Split(t.Message, "\n")))
}

// leaving says why a pod is being deleted.
func leaving(pod *corev1.Pod) string {
	if c := condition(pod, corev1.DisruptionTarget); c != nil && c.Status == corev1.ConditionTrue {
		return "its pod is being taken from node " + pod.Spec.NodeName + told(c.Reason, c.Message)
	}
	return "its pod is being deleted"
}

// told appends what Kubernetes says to a sentence: ": message", or ": reason" without one.
func told(reason, message string) string {
	return prefixed(": ", clip(cmp.Or(strings.TrimSpace(message), reason)))
}

// clip makes one line of what Kubernetes says, and cuts it.
func clip(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return strings.TrimRight(text, ".:;")
}

// prefixed gives text after prefix, nothing when it is empty.
func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func prefixedBy(first, text string) string { return first + prefixed(": ", text) }
