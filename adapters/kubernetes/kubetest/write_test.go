package kubetest_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	appsapply "k8s.io/client-go/applyconfigurations/apps/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/mobula-serve/mobula/adapters/kubernetes/kubetest"
)

var models = schema.GroupVersionResource{Group: "mobula.dev", Version: "v1alpha1", Resource: "models"}

func model(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "mobula.dev/v1alpha1", "kind": "Model", "metadata": map[string]any{"name": name, "namespace": "default"}, "spec": spec,
	}}
}

func TestObjectsGetWhatTheServerGives(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	maps := c.Client().CoreV1().ConfigMaps("default")
	m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "record-"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Regexp(t, `^record-[a-z0-9]{5}$`, m.Name)
	require.NotEmpty(t, m.UID)
	require.False(t, m.CreationTimestamp.IsZero())
	require.NotEmpty(t, m.ManagedFields)
	_, err = maps.Create(ctx, configMap(m.Name, nil), metav1.CreateOptions{})
	require.True(t, apierrors.IsAlreadyExists(err))

	same, err := maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, m.ResourceVersion, same.ResourceVersion, "what changes nothing is no new version")
	m.Data = map[string]string{"a": "1"}
	next, err := maps.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NotEqual(t, m.ResourceVersion, next.ResourceVersion)
	_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	require.True(t, apierrors.IsConflict(err))
	require.ErrorContains(t, err, "the object has been modified; please apply your changes to the latest version and try again")
}

func TestBadObjectsAreRefused(t *testing.T) {
	c := start(t, kubetest.Options{Namespaces: []string{"serving"}})
	ctx := within(t)
	for name, tc := range map[string]struct {
		change func(d *appsv1.Deployment)
		want   string
	}{
		"name":         {func(d *appsv1.Deployment) { d.Name = "Not_A_Name" }, "a lowercase RFC 1123 subdomain"},
		"label":        {func(d *appsv1.Deployment) { d.Labels = map[string]string{"a": "b/c"} }, "a valid label must be"},
		"selector":     {func(d *appsv1.Deployment) { d.Spec.Selector.MatchLabels["b"] = "c" }, "`selector` does not match template `labels`"},
		"no container": {func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers = nil }, "spec.template.spec.containers: Required value"},
		"no image":     {func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "" }, "image: Required value"},
		"mount of no volume": {func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "x", MountPath: "/x"}}
		}, `volumeMounts[0].name: Not found: "x"`},
		"namespace": {func(d *appsv1.Deployment) { d.Namespace = "nowhere" }, `namespaces "nowhere" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			d := deployment("a", 1, "")
			d.Namespace = "serving"
			tc.change(d)
			_, err := c.Client().AppsV1().Deployments(d.Namespace).Create(ctx, d, metav1.CreateOptions{})
			require.ErrorContains(t, err, tc.want)
		})
	}
	d, err := c.Client().AppsV1().Deployments("serving").Create(ctx, func() *appsv1.Deployment {
		d := deployment("a", 1, "")
		d.Namespace = "serving"
		return d
	}(), metav1.CreateOptions{})
	require.NoError(t, err)
	d.Spec.Selector.MatchLabels = map[string]string{"other": "x"}
	d.Spec.Template.Labels = d.Spec.Selector.MatchLabels
	_, err = c.Client().AppsV1().Deployments("serving").Update(ctx, d, metav1.UpdateOptions{})
	require.True(t, apierrors.IsInvalid(err) || apierrors.IsConflict(err), "%v", err)
}

func TestServerSideApply(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	maps := c.Client().CoreV1().ConfigMaps("default")
	mine := metav1.ApplyOptions{FieldManager: "mobula"}
	want := coreapply.ConfigMap("m", "default").WithData(map[string]string{"a": "1", "b": "2"})
	m, err := maps.Apply(ctx, want, mine)
	require.NoError(t, err)
	again, err := maps.Apply(ctx, want, mine)
	require.NoError(t, err)
	require.Equal(t, m.ResourceVersion, again.ResourceVersion, "applying the same twice changes nothing")

	_, err = maps.Apply(ctx, coreapply.ConfigMap("m", "default").WithData(map[string]string{"a": "9"}), metav1.ApplyOptions{FieldManager: "person"})
	require.True(t, apierrors.IsConflict(err), "%v", err)
	require.ErrorContains(t, err, `conflict with "mobula": .data.a`)
	m, err = maps.Apply(ctx, coreapply.ConfigMap("m", "default").WithData(map[string]string{"c": "3"}), metav1.ApplyOptions{FieldManager: "person"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "1", "b": "2", "c": "3"}, m.Data)
	// What a manager no longer wants goes, what others want stays.
	m, err = maps.Apply(ctx, coreapply.ConfigMap("m", "default").WithData(map[string]string{"a": "1"}), mine)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "1", "c": "3"}, m.Data)
	m, err = maps.Apply(ctx, coreapply.ConfigMap("m", "default").WithData(map[string]string{"c": "4"}), metav1.ApplyOptions{FieldManager: "mobula", Force: true})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"c": "4"}, m.Data)
	// Fields that a plain update changes are the updater's.
	m.Data["c"] = "5"
	_, err = maps.Update(ctx, m, metav1.UpdateOptions{FieldManager: "kubectl"})
	require.NoError(t, err)
	_, err = maps.Apply(ctx, coreapply.ConfigMap("m", "default").WithData(map[string]string{"c": "4"}), mine)
	require.ErrorContains(t, err, `conflict with "kubectl" using v1: .data.c`)
}

func TestServerSideApplyOfWorkloads(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	set := map[string]string{"app": "a"}
	want := appsapply.Deployment("a", "default").WithSpec(appsapply.DeploymentSpec().WithReplicas(2).
		WithSelector(metaapply.LabelSelector().WithMatchLabels(set)).
		WithTemplate(coreapply.PodTemplateSpec().WithLabels(set).WithSpec(coreapply.PodSpec().WithContainers(
			coreapply.Container().WithName("engine").WithImage("engine:1").WithPorts(coreapply.ContainerPort().WithName("http").WithContainerPort(8000))))))
	deployments := c.Client().AppsV1().Deployments("default")
	_, err := deployments.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "mobula"})
	require.NoError(t, err)
	d, err := deployments.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "mobula"})
	require.NoError(t, err)
	require.Equal(t, int64(1), d.Generation)
	require.Equal(t, corev1.RestartPolicyAlways, d.Spec.Template.Spec.RestartPolicy)
	// kubectl scale takes the replicas over; the number is then a conflict.
	_, err = deployments.UpdateScale(ctx, "a", &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default"}, Spec: autoscalingv1.ScaleSpec{Replicas: 5},
	}, metav1.UpdateOptions{FieldManager: "kubectl"})
	require.NoError(t, err)
	require.Len(t, c.Pods("default", "app=a"), 5)
	_, err = deployments.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "mobula"})
	require.ErrorContains(t, err, ".spec.replicas")
	d, err = deployments.Apply(ctx, want, metav1.ApplyOptions{FieldManager: "mobula", Force: true})
	require.NoError(t, err)
	require.Equal(t, int32(2), *d.Spec.Replicas)
	require.Len(t, c.Pods("default", "app=a"), 2)
}

func TestCustomResourcesAreReplacedByVersion(t *testing.T) {
	c := start(t, kubetest.Options{})
	client := c.Dynamic().Resource(models).Namespace("default")
	_, err := client.Create(within(t), model("m", map[string]any{}), metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = client.Update(within(t), model("m", map[string]any{}), metav1.UpdateOptions{})
	require.ErrorContains(t, err, "metadata.resourceVersion: Invalid value: 0: must be specified for an update")
}

func TestSecretsAndNamespaces(t *testing.T) {
	c := start(t, kubetest.Options{})
	s, err := c.Client().CoreV1().Secrets("mine").Create(within(t), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"token": "x"},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Equal(t, []byte("x"), s.Data["token"])
	require.Nil(t, s.StringData)
	require.NoError(t, c.Client().CoreV1().Namespaces().Delete(within(t), "mine", metav1.DeleteOptions{}))
	require.Empty(t, c.Objects("secrets", "mine", ""))
}

func TestStatusIsApart(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	client := c.Dynamic().Resource(models).Namespace("default")
	m := model("m", map[string]any{"replicas": int64(2)})
	m.Object["status"] = map[string]any{"phase": "no"}
	m, err := client.Create(ctx, m, metav1.CreateOptions{})
	require.NoError(t, err)
	require.Nil(t, m.Object["status"])
	require.Equal(t, int64(1), m.GetGeneration())

	m.Object["status"] = map[string]any{"replicas": int64(2)}
	require.NoError(t, unstructured.SetNestedField(m.Object, int64(7), "spec", "replicas"))
	m, err = client.UpdateStatus(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(map[string]any{"replicas": int64(2)}, m.Object["spec"]))
	require.Equal(t, int64(1), m.GetGeneration(), "a status is no new generation")
	require.NoError(t, unstructured.SetNestedField(m.Object, int64(3), "spec", "replicas"))
	delete(m.Object, "status")
	m, err = client.Update(ctx, m, metav1.UpdateOptions{})
	require.NoError(t, err)
	require.Equal(t, int64(2), m.GetGeneration())
	require.NotNil(t, m.Object["status"])

	applied, err := client.ApplyStatus(ctx, "m", &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "mobula.dev/v1alpha1", "kind": "Model", "metadata": map[string]any{"name": "m"}, "status": map[string]any{"ready": int64(1)},
	}}, metav1.ApplyOptions{FieldManager: "mobula"})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(map[string]any{"replicas": int64(2), "ready": int64(1)}, applied.Object["status"]))

	_, err = client.Patch(ctx, "m", types.MergePatchType, []byte(`{"spec":{"replicas":9}}`), metav1.PatchOptions{}, "scale")
	require.NoError(t, err)
	m, err = client.Get(ctx, "m", metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(map[string]any{"replicas": int64(9)}, m.Object["spec"]))
}

func TestPatches(t *testing.T) {
	for name, tc := range map[string]struct {
		kind  types.PatchType
		patch string
		want  map[string]string
		err   string
	}{
		"merge":           {types.MergePatchType, `{"metadata":{"annotations":{"a":null,"c":"3"}}}`, map[string]string{"b": "2", "c": "3"}, ""},
		"strategic":       {types.StrategicMergePatchType, `{"metadata":{"annotations":{"a":null,"c":"3"}}}`, map[string]string{"b": "2", "c": "3"}, ""},
		"json":            {types.JSONPatchType, `[{"op":"test","path":"/metadata/annotations/a","value":"1"},{"op":"remove","path":"/metadata/annotations/a"},{"op":"add","path":"/metadata/annotations/x~1y","value":"z"}]`, map[string]string{"b": "2", "x/y": "z"}, ""},
		"json test fails": {types.JSONPatchType, `[{"op":"test","path":"/metadata/annotations/a","value":"2"}]`, nil, "testing value failed"},
		"json no path":    {types.JSONPatchType, `[{"op":"replace","path":"/metadata/annotations/nope","value":"2"}]`, nil, `no field "nope"`},
		"old version":     {types.MergePatchType, `{"metadata":{"resourceVersion":"1"}}`, nil, "the object has been modified"},
		"another's uid":   {types.MergePatchType, `{"metadata":{"uid":"x"}}`, nil, "Precondition failed: UID in precondition"},
		"json copies":     {types.JSONPatchType, `[{"op":"copy","from":"/metadata/annotations/a","path":"/metadata/annotations/c"},{"op":"move","from":"/metadata/annotations/b","path":"/metadata/annotations/d"}]`, map[string]string{"a": "1", "c": "1", "d": "2"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, kubetest.Options{})
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Annotations: map[string]string{"a": "1", "b": "2"}}, Spec: podSpec("")}
			c.Add(pod)
			got, err := c.Client().CoreV1().Pods("default").Patch(within(t), "p", tc.kind, []byte(tc.patch), metav1.PatchOptions{})
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.Equal(t, map[string]string{"a": "1", "b": "2"}, c.Pod("default", "p").Annotations)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got.Annotations)
		})
	}
}

func TestDeletion(t *testing.T) {
	c := start(t, kubetest.Options{Lingers: true})
	ctx := within(t)
	pods := c.Client().CoreV1().Pods("default")
	_, err := pods.Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: podSpec("")}, metav1.CreateOptions{})
	require.NoError(t, err)
	err = pods.Delete(ctx, "p", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("another")})
	require.True(t, apierrors.IsConflict(err))
	require.NoError(t, pods.Delete(ctx, "p", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}))
	require.Nil(t, c.Pod("default", "p").DeletionTimestamp)
	require.NoError(t, pods.Delete(ctx, "p", metav1.DeleteOptions{}))
	require.NotNil(t, c.Pod("default", "p").DeletionTimestamp)
	require.Equal(t, int64(30), *c.Pod("default", "p").DeletionGracePeriodSeconds)
	until := c.Pod("default", "p").DeletionTimestamp.Time
	for _, again := range []struct{ asked, want int64 }{{40, 30}, {12, 12}, {20, 12}} { // it is only shortened, from when it was first asked for
		require.NoError(t, pods.Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &again.asked}))
		require.Equal(t, again.want, *c.Pod("default", "p").DeletionGracePeriodSeconds)
	}
	require.NoError(t, pods.Delete(ctx, "p", metav1.DeleteOptions{}))
	require.Equal(t, int64(12), *c.Pod("default", "p").DeletionGracePeriodSeconds)
	require.Equal(t, until.Add(-18*time.Second), c.Pod("default", "p").DeletionTimestamp.Time)
	require.NoError(t, c.Finish("default", "p"))
	require.Nil(t, c.Pod("default", "p"))

	m := configMap("m", nil)
	m.Finalizers = []string{"mobula.dev/clean"}
	maps := c.Client().CoreV1().ConfigMaps("default")
	_, err = maps.Create(ctx, m, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, maps.Delete(ctx, "m", metav1.DeleteOptions{}))
	left, err := maps.Get(ctx, "m", metav1.GetOptions{})
	require.NoError(t, err)
	require.NotNil(t, left.DeletionTimestamp)
	left.Finalizers = nil
	_, err = maps.Update(ctx, left, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = maps.Get(ctx, "m", metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))

	for _, name := range []string{"a", "b"} {
		_, err = maps.Create(ctx, configMap(name, map[string]string{"gone": "soon"}), metav1.CreateOptions{})
		require.NoError(t, err)
	}
	require.NoError(t, maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "gone=soon"}))
	require.Empty(t, c.Objects("configmaps", "default", "gone=soon"))
}

func TestGarbageCollector(t *testing.T) {
	for name, tc := range map[string]struct {
		policy metav1.DeletionPropagation
		left   int
	}{
		"background": {metav1.DeletePropagationBackground, 0},
		"foreground": {metav1.DeletePropagationForeground, 0},
		"orphan":     {metav1.DeletePropagationOrphan, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, kubetest.Options{})
			ctx := within(t)
			client := c.Dynamic().Resource(models).Namespace("default")
			m, err := client.Create(ctx, model("m", map[string]any{}), metav1.CreateOptions{})
			require.NoError(t, err)
			owner := metav1.OwnerReference{APIVersion: "mobula.dev/v1alpha1", Kind: "Model", Name: "m", UID: m.GetUID()}
			d := deployment("d", 2, "")
			d.OwnerReferences = []metav1.OwnerReference{owner}
			_, err = c.Client().AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{})
			require.NoError(t, err)
			require.NoError(t, client.Delete(ctx, "m", metav1.DeleteOptions{PropagationPolicy: &tc.policy}))
			require.Len(t, c.Objects("deployments", "default", ""), tc.left)
			require.Len(t, c.Objects("replicasets", "default", ""), tc.left)
			require.Len(t, c.Pods("default", ""), 2*tc.left)
		})
	}
	t.Run("owner that never was", func(t *testing.T) {
		c := start(t, kubetest.Options{})
		d := deployment("d", 2, "")
		d.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "x", UID: "nobody"}}
		_, err := c.Client().AppsV1().Deployments("default").Create(within(t), d, metav1.CreateOptions{})
		require.NoError(t, err)
		require.Empty(t, c.Objects("deployments", "default", ""))
	})
	t.Run("one of two owners", func(t *testing.T) {
		c := start(t, kubetest.Options{})
		c.Add(configMap("a", nil), configMap("b", nil))
		m := configMap("child", nil)
		for _, o := range c.Objects("configmaps", "default", "") {
			m.OwnerReferences = append(m.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o.GetName(), UID: o.GetUID()})
		}
		maps := c.Client().CoreV1().ConfigMaps("default")
		_, err := maps.Create(within(t), m, metav1.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, maps.Delete(within(t), "a", metav1.DeleteOptions{}))
		got, err := maps.Get(within(t), "child", metav1.GetOptions{})
		require.NoError(t, err)
		require.Len(t, got.OwnerReferences, 1)
		require.NoError(t, maps.Delete(within(t), "b", metav1.DeleteOptions{}))
		_, err = maps.Get(within(t), "child", metav1.GetOptions{})
		require.True(t, apierrors.IsNotFound(err))
	})
}

func TestAccessReviews(t *testing.T) {
	c := start(t, kubetest.Options{})
	c.Deny("create", "deployments")
	for resource, want := range map[string]bool{"deployments": false, "pods": true} {
		got, err := c.Client().AuthorizationV1().SelfSubjectAccessReviews().Create(within(t), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "create", Resource: resource}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.Equal(t, want, got.Status.Allowed, resource)
	}
	rules, err := c.Client().AuthorizationV1().SelfSubjectRulesReviews().Create(within(t), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	for _, r := range rules.Status.ResourceRules {
		if r.Resources[0] == "deployments" {
			require.NotContains(t, r.Verbs, "create")
		}
	}
}

func TestLeaderElection(t *testing.T) {
	c := start(t, kubetest.Options{})
	ctx := within(t)
	var leaders, most atomic.Int32
	led := make(chan string, 2)
	var all sync.WaitGroup
	cancels := map[string]context.CancelFunc{}
	for _, id := range []string{"a", "b"} {
		mine, cancel := context.WithCancel(ctx)
		cancels[id] = cancel
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta: metav1.ObjectMeta{Name: "control", Namespace: "default"}, Client: c.Client().CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: id},
			},
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 20 * time.Millisecond, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					most.Store(max(most.Load(), leaders.Add(1)))
					led <- id
					<-ctx.Done()
					leaders.Add(-1)
				},
				OnStoppedLeading: func() {},
			},
		})
		require.NoError(t, err)
		all.Go(func() { elector.Run(mine) })
	}
	first := <-led
	cancels[first]()
	second := <-led
	require.NotEqual(t, first, second)
	cancels[second]()
	all.Wait()
	lease, err := c.Client().CoordinationV1().Leases("default").Get(ctx, "control", metav1.GetOptions{})
	require.NoError(t, err)
	require.Empty(t, *lease.Spec.HolderIdentity)
}
