package kube

import (
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mobula-serve/mobula"
)

const (
	// lookAway is the time from a pod's deletion to SIGTERM, for routers to see it: from then on an engine refuses new requests.
	lookAway = 5 * time.Second
	// userID is the user of pods whose image names none, as in distroless images.
	userID = 65532

	defaultStart = 30 * time.Minute
	defaultStop  = 45 * time.Second
)

// Pod gives the pod template of an engine of one pod. The error names the first field of the model's kubernetes section that is wrong.
func (e Engine) Pod() (corev1.PodTemplateSpec, error) { return e.template(nil) }

// Member gives the template of one pod of an engine of several, Resources.Hosts, and shares the GPUs among them equally.
func (e Engine) Member(m Member) (corev1.PodTemplateSpec, error) { return e.template(&m) }

// template makes a pod; member is nil for an engine's only one.
func (e Engine) template(member *Member) (corev1.PodTemplateSpec, error) {
	a, err := e.ask(member)
	if err != nil {
		return corev1.PodTemplateSpec{}, err
	}
	serves := member == nil || member.Rank == 0 && member.RankVar == ""
	pod := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: e.Labels(), Annotations: map[string]string{AnnotationModel: e.Model.Name}},
		Spec:       e.spec(&a),
	}
	if serves {
		pod.Labels[LabelServes] = "true"
		pod.Spec.TopologySpreadConstraints = e.spread()
	}
	if member != nil {
		pod.Labels[LabelReplica] = member.Replica
	}
	pod.Spec.Containers = []corev1.Container{e.container(&a, member, serves)}
	return e.overlaid(pod)
}

// spec gives what belongs to the pod and not to its container.
func (e Engine) spec(a *ask) corev1.PodSpec {
	p := &e.Model.Kubernetes
	spec := corev1.PodSpec{
		ServiceAccountName: p.ServiceAccount,
		PriorityClassName:  p.PriorityClass,
		// The GPUs' usual taint, named as the resource, is tolerated by the ExtendedResourceToleration admission where that is on.
		NodeSelector:                  maps.Clone(e.Model.Resources.HostLabels),
		Affinity:                      a.affinity(&e.Model),
		TerminationGracePeriodSeconds: new(seconds(lookAway + e.drain() + e.stop())),
		AutomountServiceAccountToken:  new(false), // an engine has no business with the API server
		EnableServiceLinks:            new(false), // VLLM_PORT of a Service called vllm is no setting of vLLM's
		SecurityContext:               e.podSecurity(),
		Volumes:                       e.volumes(),
	}
	if !e.simulated() && e.Workload() != KindRayCluster {
		// As PID 1 vLLM would not end at SIGTERM until it has a handler for it, tens of seconds after its start. Ray's pods have their supervisor.
		spec.ShareProcessNamespace = new(true)
	}
	if p.RuntimeClass != "" {
		spec.RuntimeClassName = new(p.RuntimeClass)
	}
	for _, name := range p.PullSecrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return spec
}

// rayUser is who Ray's images run as, which has to write to /data; for root it changes nothing.
const rayUser = 1000

// podSecurity: vLLM's image runs as root, ours and Ray's do not.
func (e Engine) podSecurity() *corev1.PodSecurityContext {
	s := &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	switch {
	case e.simulated():
		s.RunAsNonRoot, s.RunAsUser, s.RunAsGroup, s.FSGroup = new(true), new(int64(userID)), new(int64(userID)), new(int64(userID))
	case e.Workload() == KindRayCluster:
		s.FSGroup, s.FSGroupChangePolicy = new(int64(rayUser)), new(corev1.FSGroupChangeOnRootMismatch)
	}
	return s
}

// spread asks for the engines of a model on hosts of their own, where there is a choice.
func (e Engine) spread() []corev1.TopologySpreadConstraint {
	return []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
		LabelSelector: &metav1.LabelSelector{MatchLabels: e.servingLabels()},
	}}
}

// servingLabels select the pods that serve the model, of all its revisions.
func (e Engine) servingLabels() map[string]string {
	return map[string]string{LabelFleet: e.Fleet, LabelModel: Label(e.Model.Name), LabelServes: "true"}
}

func (e Engine) start() time.Duration { return either(e.Model.Engine.StartTimeout, defaultStart) }
func (e Engine) stop() time.Duration  { return either(e.Model.Engine.StopTimeout, defaultStop) }
func (e Engine) drain() time.Duration { return time.Duration(e.Model.Rollout.Drain) }

func either(d mobula.Duration, otherwise time.Duration) time.Duration {
	if d > 0 {
		return time.Duration(d)
	}
	return otherwise
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
