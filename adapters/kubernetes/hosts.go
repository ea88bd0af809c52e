package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/mobula-serve/mobula"
	"github.com/mobula-serve/mobula/adapters"
	"github.com/mobula-serve/mobula/kube"
)

const (
	maxDevices = 1024 // that one node is told to have
	mebibyte   = 1 << 20
	// Labels of NVIDIA's GPU feature discovery.
	labelProduct = "nvidia.com/gpu.product"
	labelMemory  = "nvidia.com/gpu.memory" // MiB
)

// Hosts lists the cluster's nodes, none when we may not list them: Problems says so. Kubernetes tells how many GPUs a node has, not which.
func (c *Cluster) Hosts(ctx context.Context) ([]mobula.Host, error) {
	s, err := c.reach(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.away(lostAfter); err != nil {
		return nil, unavailable(err)
	}
	all := []mobula.Host{}
	if s.nodesOn.refused() {
		return all, nil
	}
	for _, o := range s.nodes.every() {
		if node, ok := o.(*corev1.Node); ok {
			all = append(all, s.host(node))
		}
	}
	slices.SortFunc(all, func(a, b mobula.Host) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func (s *keeper) host(node *corev1.Node) mobula.Host {
	h := mobula.Host{
		Name: node.Name, Labels: node.Labels, Devices: devices(node), Cordoned: node.Spec.Unschedulable,
		Slots: int(node.Status.Allocatable.Cpu().Value()), Silent: "the node has not said yet how it fares",
	}
	for i := range node.Status.Conditions {
		c := &node.Status.Conditions[i]
		if c.Type != corev1.NodeReady {
			continue
		}
		h.Heard, h.Silent = c.LastHeartbeatTime.Time, ""
		if c.Status != corev1.ConditionTrue {
			h.Silent = fmt.Sprintf("Kubernetes says that it is not ready (%s): %s", c.Reason, c.Message)
		}
	}
	return h
}

// devices are a node's GPUs, those that no pod may have left out.
func devices(node *corev1.Node) []mobula.Device {
	name, memory := node.Labels[labelProduct], mobula.Size(0)
	if mib, err := strconv.ParseInt(node.Labels[labelMemory], 10, 64); err == nil && mib > 0 {
		memory = mobula.Size(mib * mebibyte)
	}
	var all []mobula.Device
	for _, resource := range gpuResources(node.Status.Allocatable) {
		count := node.Status.Allocatable[resource]
		for range min(count.Value(), int64(maxDevices-len(all))) {
			d := mobula.Device{ID: strconv.Itoa(len(all)), Name: name, Memory: memory}
			if d.Name == "" || strings.Contains(string(resource), "mig-") {
				d.Name = string(resource)
			}
			all = append(all, d)
		}
	}
	return all
}

// gpuResources are those of a list that GPUs have, sorted.
func gpuResources(list corev1.ResourceList) []corev1.ResourceName {
	var all []corev1.ResourceName
	for name := range list {
		if s := string(name); strings.HasSuffix(s, "/gpu") || strings.Contains(s, "/mig-") {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// Cordon has a node get no new pods, or get them again, as kubectl cordon does.
func (c *Cluster) Cordon(ctx context.Context, host string, on bool) error {
	s, err := c.reach(ctx)
	if err != nil {
		return err
	}
	body := `{"spec":{"unschedulable":` + strconv.FormatBool(on) + `}}`
	_, err = s.link.Client.CoreV1().Nodes().Patch(ctx, host, types.MergePatchType, []byte(body), metav1.PatchOptions{FieldManager: kube.FieldManager})
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("node %s: %w", host, adapters.ErrUnknownHost)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("node %s: %w: use kubectl cordon: %w", host, adapters.ErrUnsupported, Explain(err))
	}
	return explain("cordon", "Node", host, err)
}

// Forget fails: which nodes there are is not for us to say.
func (c *Cluster) Forget(ctx context.Context, host string) error {
	s, err := c.reach(ctx)
	if err != nil {
		return err
	}
	if !s.nodesOn.refused() && s.nodes.get(host) == nil {
		return fmt.Errorf("node %s: %w", host, adapters.ErrUnknownHost)
	}
	return fmt.Errorf("node %s: %w: use kubectl delete node; its pods are made elsewhere then", host, adapters.ErrUnsupported)
}
