//go:build linux && kube

package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// says waits until a command of kubectl prints all of these texts.
func (c *Cluster) says(t *testing.T, what string, args, texts []string) {
	t.Helper()
	c.Await(t, what, func(ctx context.Context) error {
		said, err := c.TryKubectl(ctx, args...)
		for _, text := range texts {
			if err == nil && !strings.Contains(said, text) {
				err = fmt.Errorf("no %q in: %s", text, said)
			}
		}
		return err
	})
}

// testWrong makes mistakes, and looks at what people are told of them.
func (c *Cluster) testWrong(t *testing.T) {
	t.Run("values and objects", c.testWrongObjects)
	t.Run("no rights", c.testNoRights)
}

func (c *Cluster) testWrongObjects(t *testing.T) {
	r := c.install(t)
	r.answered(t, model)
	r.ready(t, 2)
	l := r.load(t, true)
	l.more(10)
	revision, err := r.field(t.Context(), "model/"+model, ".status.revision")
	require.NoError(t, err)
	describe := func(name string) []string { return []string{"--namespace", r.namespace, "describe", "model", name} }

	// It takes minutes until it is given up: the rest goes on meanwhile.
	const image = "127.0.0.1:9/none:v1"
	r.kubectl(t, "patch", "model", model, "--type", "merge", "--patch", `{"spec":{"engine":{"startTimeout":"30m"},"kubernetes":{"image":"`+image+`"}}}`)

	t.Run("the API server refuses what is no Model", func(t *testing.T) {
		for spec, want := range map[string]string{
			`{replicas: two}`:                               `spec.replicas`,
			`{replicas: -1}`:                                `spec.replicas`,
			`{replicas: 1, range: {min: 0, max: 2}}`:        `replicas`,
			`{range: {min: 3, max: 2}}`:                     `range`,
			`{replicas: 1, engine: {kind: tgi}}`:            `spec.engine.kind`,
			`{replicas: 1, resources: {gpus: many}}`:        `spec.resources.gpus`,
			`{replicas: 1, engine: {startTimeout: [1, 2]}}`: `spec.engine.startTimeout`,
		} {
			_, err := c.run(t.Context(), "apiVersion: mobula.dev/v1alpha1\nkind: Model\nmetadata: {name: wrong}\nspec: "+spec, "kubectl", "apply", "--namespace", r.namespace, "--filename", "-")
			require.ErrorContains(t, err, want, spec)
			require.ErrorContains(t, err, "is invalid", spec)
		}
	})
	t.Run("a second release with the Fleet's name", func(t *testing.T) {
		_, err := c.run(t.Context(), "", "helm", "install", "second", chart, "--namespace", r.namespace, "--values", values)
		require.ErrorContains(t, err, `Fleet "default" in namespace "`+r.namespace+`" exists and cannot be imported into the current release`)
	})
	t.Run("a Secret is missing", func(t *testing.T) {
		r.Apply(t, r.namespace, `
apiVersion: mobula.dev/v1alpha1
kind: Model
metadata: {name: secretive}
spec:
  replicas: 1
  engine: {kind: sim}
  kubernetes: {pod: {spec: {containers: [{name: engine, env: [{name: KEY, valueFrom: {secretKeyRef: {name: nowhere, key: k}}}]}]}}}
`)
		c.says(t, "it names the Secret", describe("secretive"), []string{`secret "nowhere" not found`, "make the Secret or ConfigMap that it names, in the pod's namespace, " + r.namespace})
		r.kubectl(t, "delete", "model", "secretive")
	})
	t.Run("a Model of no fleet", func(t *testing.T) {
		r.Apply(t, r.namespace, "apiVersion: mobula.dev/v1alpha1\nkind: Model\nmetadata: {name: lost}\nspec: {fleet: other, replicas: 1, engine: {kind: sim}}\n")
		c.says(t, "it says so", describe("lost"), []string{`there is no Fleet object "other" in namespace ` + r.namespace + `; it has default`})
		r.kubectl(t, "delete", "model", "lost")
	})
	t.Run("a field is changed by hand", func(t *testing.T) {
		deployment := r.kubectl(t, "get", "deployments", "--selector", "mobula.dev/revision="+revision, "--output", "name")
		r.kubectl(t, "patch", strings.TrimSpace(deployment), "--type", "merge", "--patch", `{"spec":{"revisionHistoryLimit":7}}`)
		c.says(t, "the Model says that it is put back", describe(model), []string{"PutBack", "spec.revisionHistoryLimit was changed by kubectl-patch and is put back"})
	})
	t.Run("an image can't be pulled", func(t *testing.T) {
		c.says(t, "it is told of at once", describe(model), []string{"image " + image + " can't be pulled", "models[" + model + "].kubernetes.image"})
		r.awaitField(t, "model/"+model, ".status.phase", "RolledBack")
		r.awaitField(t, "model/"+model, `.status.conditions[?(@.type=="Stalled")].reason`, "RolledBack")
		c.says(t, "and why", describe(model), []string{"RolledBack", "for more than 2m: image " + image + " can't be pulled"})
		mobula := r.mobula(t)
		require.Contains(t, mobula("describe", "model", model), "image "+image+" can't be pulled")
		require.Contains(t, mobula("events"), "RolledBack")
		r.awaitField(t, "model/"+model, ".status.revision", revision)
		r.ready(t, 2)
	})
	l.more(20)
	l.end()
}

func (c *Cluster) testNoRights(t *testing.T) {
	namespace := c.Namespace(t)
	repository, tag, _ := strings.Cut(c.image, ":")
	helm := func(verb string, args ...string) {
		c.Helm(t, append([]string{
			verb, "mobula", chart, "--namespace", namespace, "--values", values, "--set", "image.repository=" + repository, "--set", "image.tag=" + tag,
		}, args...)...)
	}
	helm("install", "--set", "rbac.create=false")
	t.Cleanup(func() {
		if _, err := c.run(context.WithoutCancel(t.Context()), "", "helm", "uninstall", "mobula", "--namespace", namespace, "--ignore-not-found"); err != nil {
			t.Errorf("uninstall: %v", err)
		}
	})
	logs := func(component string) []string {
		return []string{"--namespace", namespace, "logs", "--selector", "app.kubernetes.io/component=" + component, "--tail", "100"}
	}
	c.says(t, "the control plane says what it may not", logs("control"), []string{
		"rights are missing, waiting for them", "missing rights in namespace " + namespace, "get, update leases.coordination.k8s.io/mobula-control", "create, delete, get, list, patch, watch deployments.apps",
		"by a Role and a RoleBinding", "rbac.create",
	})
	c.says(t, "the router says what it may not", logs("router"), []string{"models of namespace " + namespace + " may not be read", "system:serviceaccount:" + namespace + ":mobula-router", "rbac.create"})
	helm("upgrade", "--set", "rbac.create=true", "--wait", "--timeout", deadline.String())
	c.Await(t, "it serves, without a restart of a pod", func(ctx context.Context) error {
		restarts, err := c.TryKubectl(ctx, "--namespace", namespace, "get", "pods", "--selector", "app.kubernetes.io/component=control", "--output", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		if err == nil && restarts != "0" {
			err = fmt.Errorf("the control plane was restarted %s times", restarts)
		}
		if err == nil {
			var ready string
			if ready, err = c.TryKubectl(ctx, "--namespace", namespace, "get", "model/"+model, "--output", "jsonpath={.status.ready}"); err == nil && ready != "2/2" {
				err = fmt.Errorf("%s are ready", ready)
			}
		}
		return err
	})
}
