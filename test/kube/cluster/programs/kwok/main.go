// Command kwok has nodes with the annotation kwok.x-k8s.io/node=fake, and the pods on them, be ready without a kubelet.
// It is kwok without the server that makes up logs and metrics, for that needs another Kubernetes than this one.
// Usage: kwok KUBECONFIG STAGES_FILE
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/kwok/pkg/apis/internalversion"
	"sigs.k8s.io/kwok/pkg/client/clientset/versioned"
	"sigs.k8s.io/kwok/pkg/config"
	"sigs.k8s.io/kwok/pkg/kwok/controllers"
	"sigs.k8s.io/kwok/pkg/utils/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "kwok:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, stagesFile string) error {
	objects, err := config.Load(ctx, stagesFile)
	if err != nil {
		return err
	}
	stages := map[internalversion.StageResourceRef][]*internalversion.Stage{}
	for _, s := range config.FilterWithType[*internalversion.Stage](objects) {
		stages[s.Spec.ResourceRef] = append(stages[s.Spec.ResourceRef], s)
	}
	c, err := configure(kubeconfig, config.GetKwokConfiguration(ctx).Options)
	if err != nil {
		return err
	}
	c.LocalStages = stages
	controller, err := controllers.NewController(c)
	if err != nil {
		return err
	}
	if err := controller.Start(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func configure(kubeconfig string, o internalversion.KwokConfigurationOptions) (c controllers.Config, err error) {
	c = controllers.Config{
		Clock:                             clock.RealClock{},
		ManageNodesWithAnnotationSelector: "kwok.x-k8s.io/node=fake",
		CIDR:                              o.CIDR,
		NodeIP:                            o.NodeIP,
		PodPlayStageParallelism:           o.PodPlayStageParallelism,
		NodePlayStageParallelism:          o.NodePlayStageParallelism,
		NodeLeaseParallelism:              o.NodeLeaseParallelism,
		NodeLeaseDurationSeconds:          o.NodeLeaseDurationSeconds,
		PodsOnNodeSyncParallelism:         o.PodsOnNodeSyncParallelism,
		EnablePodsOnNodeSyncListPager:     o.EnablePodsOnNodeSyncListPager,
		EnablePodsOnNodeSyncStreamWatch:   o.EnablePodsOnNodeSyncStreamWatch,
	}
	if c.ID, err = controllers.Identity(); err != nil {
		return c, err
	}
	clients, err := client.NewClientset("", kubeconfig)
	if err != nil {
		return c, err
	}
	c.ImpersonatingDynamicClient = clients.ToImpersonatingDynamicClient()
	c.ImpersonatingTypedClient = clients.ToImpersonatingTypedClient()
	if c.DynamicClient, err = clients.ToDynamicClient(); err != nil {
		return c, err
	}
	if c.RESTMapper, err = clients.ToRESTMapper(); err != nil {
		return c, err
	}
	access, err := clients.ToRESTConfig()
	if err != nil {
		return c, err
	}
	if c.RESTClient, err = rest.RESTClientFor(access); err != nil {
		return c, err
	}
	if c.TypedKwokClient, err = versioned.NewForConfig(access); err != nil {
		return c, err
	}
	c.TypedClient, err = kubernetes.NewForConfig(access)
	return c, err
}
