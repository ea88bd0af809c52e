package kubernetes

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/adapters/conformance"
	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
	"github.com/mobula-serve/mobula/kube"
)

// patient waits after each Apply until Kubernetes has named the pods: only then do their replicas have IDs.
type patient struct{ *lab }

// Logs has the engine print something first: nothing runs in the pods.
func (s patient) Logs(ctx context.Context, replica string, tail int, follow bool) (io.ReadCloser, error) {
	for _, pod := range s.cube.Pods(testSpace, "") {
		if pod.Name == replica || pod.Labels[kube.LabelReplica] == replica {
			s.cube.Log(testSpace, pod.Name, "hello\n")
		}
	}
	return s.Cluster.Logs(ctx, replica, tail, follow)
}

func (s patient) Apply(ctx context.Context, d adapters.Deployment) error {
	if err := s.Cluster.Apply(ctx, d); err != nil {
		return err
	}
	for {
		changed := s.Changed()
		all, err := s.Status(ctx, d.Fleet)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range all {
			if r.Model == d.Key.Model && r.Revision == d.Revision && r.State != mobula.StateDraining {
				n++
			}
		}
		r := s.live(d.Key)
		if n >= d.Replicas || r == nil || r.Replicas != d.Replicas { // or somebody else has applied meanwhile
			return nil
		}
		select {
		case <-changed:
		case <-time.After(100 * time.Millisecond): // what somebody else applies may change no replica
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func subject(tb testing.TB, model mobula.Model, crash func(l *lab, id string)) conformance.PlacerSubject {
	tb.Helper()
	l := newLab(tb, kubetest.Options{Nodes: []kubetest.Node{{Name: "node-a"}, {Name: "node-b"}, {Name: "node-c"}}})
	p := onKubernetes()
	configure := func() {
		require.NoError(tb, l.Configure(tb.Context(), "conformance", p, false))
	}
	configure()
	impossible := simModel("too-odd")
	impossible.Kubernetes.CPU = "two"
	return conformance.PlacerSubject{
		Placer: patient{l}, Discoverer: l.Discoverer(), Model: model, Impossible: &impossible,
		Platform: &p, Refused: &mobula.Platform{Kubernetes: &mobula.Kubernetes{Namespace: "elsewhere"}},
		Crash: func(id string) { crash(l, id) },
		Lose:  l.cube.Down,
		Restart: func() (adapters.Placer, adapters.Discoverer) {
			l.restart()
			configure()
			return patient{l}, l.Discoverer()
		},
		Running: l.running,
	}
}

func TestPlacerConformanceOfDeployments(t *testing.T) {
	conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
		tb.Helper()
		return subject(tb, simModel("chat"), func(l *lab, id string) {
			require.NoError(tb, l.cube.Crash(testSpace, id, 1, "boom"))
			require.NoError(tb, l.cube.Ready(testSpace, id))
		})
	})
}

func TestPlacerConformanceOfStatefulSets(t *testing.T) {
	conformance.Placer(t, func(tb testing.TB) conformance.PlacerSubject {
		tb.Helper()
		model := simModel("org/Chat-72B")
		model.Kubernetes.Workload = kube.KindStatefulSet
		return subject(tb, model, func(l *lab, id string) {
			require.NoError(tb, l.cube.Crash(testSpace, id+"-0", 1, "boom"))
			require.NoError(tb, l.cube.Ready(testSpace, id+"-0"))
		})
	})
}
