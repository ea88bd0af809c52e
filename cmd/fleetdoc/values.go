package main

import "github.com/mobula-serve/mobula"

// Values is what charts/mobula takes: the fleet, and how the router, the control plane and what is beside them are installed.
// No value is required: without any there is a router and a control plane, and no model.
//
// The comments are the user's reference, as those of the fleet file are: they are charts/mobula/values.schema.json and
// docs/values.md. Defaults that they state are those of charts/mobula/values.yaml.
type Values struct {
	// The models, as a fleet file has them. Each becomes a Model object.
	Models []mobula.Model `yaml:"models"`
	// Where engines run. It is left empty for a cluster without KubeRay. Default: kubernetes with nothing set.
	Platform PlatformValues `yaml:"platform"`
	// What else a fleet file has. It becomes the Fleet object.
	Fleet FleetValues `yaml:"fleet"`
	// The image with mobula, of the router, the control plane and simulated engines.
	Image ImageValues `yaml:"image"`
	// How the router is installed.
	Router RouterValues `yaml:"router"`
	// How the control plane is installed.
	Control ControlValues `yaml:"control"`
	// LMCache's own server, in which engines share KV blocks.
	CacheServer CacheServerValues `yaml:"cacheServer"`
	// LMCache's multiprocess mode: a server on each node, in whose memory that node's engines share KV blocks.
	LMCache LMCacheValues `yaml:"lmcache"`
	// A Redis for KV blocks, of one pod.
	Redis RedisValues `yaml:"redis"`
	// The service accounts of the router and the control plane.
	ServiceAccount ServiceAccountValues `yaml:"serviceAccount"`
	// What the router and the control plane may do.
	RBAC RBACValues `yaml:"rbac"`
	// NetworkPolicies of the router, the control plane, engines and caches.
	NetworkPolicy NetworkPolicyValues `yaml:"networkPolicy"`
	// Has the Prometheus operator scrape the router and the control plane.
	ServiceMonitor MonitorValues `yaml:"serviceMonitor"`
	// Has the Prometheus operator scrape the engines.
	PodMonitor MonitorValues `yaml:"podMonitor"`
	// Grafana dashboards as ConfigMaps, which Grafana's sidecar takes up.
	Dashboards DashboardsValues `yaml:"dashboards"`
	// Alert rules.
	Alerts AlertsValues `yaml:"alerts"`
	// ScaledObjects of KEDA that set the replicas of models.
	KEDA KEDAValues `yaml:"keda"`
	// A ConfigMap with rules for a prometheus-adapter, for HorizontalPodAutoscalers on metrics of the router and the engines.
	PrometheusAdapter PrometheusAdapterValues `yaml:"prometheusAdapter"`
	// More objects to install. Text in them may be templates.
	ExtraObjects []Object `yaml:"extraObjects"`
	// Labels of all objects.
	CommonLabels map[string]string `yaml:"commonLabels"`
	// Annotations of all objects.
	CommonAnnotations map[string]string `yaml:"commonAnnotations"`
	// In place of the chart's name in the names of objects.
	NameOverride string `yaml:"nameOverride"`
	// In place of the release's and the chart's name in the names of objects: with mobula the router's Service is mobula-router. Default: the release's name, followed by the chart's unless it has it, cut at 40 characters.
	FullnameOverride string `yaml:"fullnameOverride"`
	// Values that Helm hands to sub-charts. Mobula's own templates take none of them.
	Global Object `yaml:"global"`
	// Values of the sub-chart kube-prometheus-stack. With enabled it is installed too. Default: off. Only the chart that `make chart` packs has it.
	KubePrometheusStack Object `yaml:"kube-prometheus-stack"`
	// Values of the sub-chart prometheus-adapter. With enabled it is installed too. Default: off. Only the chart that `make chart` packs has it.
	PrometheusAdapterChart Object `yaml:"prometheus-adapter"`
}

// Object is anything that Kubernetes knows the form of, as Kubernetes has it.
type Object map[string]any

// PlatformValues says where engines run. At most one of its fields is set.
type PlatformValues struct {
	// A Kubernetes cluster, without namespace, kubeconfig and context: engines run in the release's namespace.
	Kubernetes *mobula.Kubernetes `yaml:"kubernetes"`
	// A Kubernetes cluster with the KubeRay operator.
	KubeRay *mobula.KubeRay `yaml:"kuberay"`
}

// FleetValues are the sections of a fleet file that are neither platform nor models.
type FleetValues struct {
	// Name of the fleet and its Fleet object. Two fleets in a namespace need two names. Lower-case letters, digits and dashes, at most 63. Default default.
	Name string `yaml:"name"`
	// The router's data plane. On Kubernetes timeouts.lameduck is 5s and timeouts.drain 5m unless given.
	Router mobula.Router `yaml:"router"`
	// The KV-cache network.
	KV mobula.KV `yaml:"kv"`
	// Services of others that take requests when the fleet's own engines can't.
	Providers []mobula.Provider `yaml:"providers"`
}

// ImageValues names an image.
type ImageValues struct {
	// Registry and repository. Default: that of the release of this chart.
	Repository string `yaml:"repository"`
	// Tag. Default: the chart's appVersion.
	Tag string `yaml:"tag"`
	// Digest (sha256:...), in place of the tag.
	Digest string `yaml:"digest"`
	// When it is pulled. One of Always, IfNotPresent or Never. Default IfNotPresent.
	PullPolicy string `yaml:"pullPolicy"`
	// Names of Secrets to pull it with.
	PullSecrets []string `yaml:"pullSecrets"`
}

// RouterValues says how the router is installed. What it does is in fleet.router.
type RouterValues struct {
	// Installs it. Default true.
	Enabled bool `yaml:"enabled"`
	// Number of routers; with autoscaling it is not used. At least 0. Default 1.
	Replicas int `yaml:"replicas"`
	// Image of the router, field by field in place of image.
	Image ImageOverride `yaml:"image"`
	// Requests and limits of the container, as Kubernetes has them. Default: requests of 500m CPU and 256Mi, a limit of 1Gi memory and none of CPU.
	Resources Object `yaml:"resources"`
	// The Service that clients use.
	Service ServiceValues `yaml:"service"`
	// A HorizontalPodAutoscaler.
	Autoscaling AutoscalingValues `yaml:"autoscaling"`
	// An Ingress.
	Ingress IngressValues `yaml:"ingress"`
	// A route of the Gateway API.
	Route RouteValues `yaml:"route"`
	// A PodDisruptionBudget, for more than one router.
	PodDisruptionBudget BudgetValues `yaml:"podDisruptionBudget"`
	// How pods are replaced, as a Deployment has it. Default: RollingUpdate with maxSurge 1 and maxUnavailable 0.
	Strategy Object `yaml:"strategy"`
	// Environment variables, as a container has them (name, value, valueFrom).
	Env []Object `yaml:"env"`
	// Sources of environment variables, as a container has them (secretRef, configMapRef).
	EnvFrom []Object `yaml:"envFrom"`
	// More arguments of mobula router.
	ExtraArgs []string `yaml:"extraArgs"`
	// More volumes of the pod.
	ExtraVolumes []Object `yaml:"extraVolumes"`
	// More mounts of the container.
	ExtraVolumeMounts []Object `yaml:"extraVolumeMounts"`
	// More containers of the pod.
	ExtraContainers []Object `yaml:"extraContainers"`
	// Model that helm test asks. Default: the first with replicas that is no pooling model.
	TestModel string `yaml:"testModel"`
	// Seconds within which the pod has to stop. Default: what fleet.router.timeouts.lameduck and drain add up to, and 15.
	TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
	// Part of a pod template (metadata and spec) that is merged into ours: mappings field by field, a list in place of ours. For labels, annotations, affinity, nodeSelector, tolerations, topologySpreadConstraints, priorityClassName, securityContext and all else that is not in a container.
	Pod Object `yaml:"pod"`
}

// ControlValues says how the control plane is installed.
type ControlValues struct {
	// Installs it. Without it routers serve what they discover, and no engine is made. Default true.
	Enabled bool `yaml:"enabled"`
	// Number of control planes, of which one leads. At least 0. Default 1.
	Replicas int `yaml:"replicas"`
	// Image of the control plane, field by field in place of image.
	Image ImageOverride `yaml:"image"`
	// Requests and limits of the container, as Kubernetes has them. Default: requests of 100m CPU and 128Mi, a limit of 512Mi memory and none of CPU.
	Resources Object `yaml:"resources"`
	// The Service of its API and console.
	Service ControlServiceValues `yaml:"service"`
	// A PodDisruptionBudget, for more than one control plane.
	PodDisruptionBudget BudgetValues `yaml:"podDisruptionBudget"`
	// Environment variables, as a container has them (name, value, valueFrom).
	Env []Object `yaml:"env"`
	// Sources of environment variables, as a container has them (secretRef, configMapRef).
	EnvFrom []Object `yaml:"envFrom"`
	// More arguments of mobula control.
	ExtraArgs []string `yaml:"extraArgs"`
	// More volumes of the pod.
	ExtraVolumes []Object `yaml:"extraVolumes"`
	// More mounts of the container.
	ExtraVolumeMounts []Object `yaml:"extraVolumeMounts"`
	// Part of a pod template (metadata and spec) that is merged into ours, as router.pod is.
	Pod Object `yaml:"pod"`
}
