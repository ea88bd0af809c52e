package main

// ImageOverride names what is another image than Values.Image.
type ImageOverride struct {
	// Registry and repository. Default: that of image.
	Repository string `yaml:"repository"`
	// Tag. Default: that of image.
	Tag string `yaml:"tag"`
	// Digest (sha256:...), in place of the tag. Default: that of image.
	Digest string `yaml:"digest"`
	// When it is pulled: Always, IfNotPresent or Never. Default: that of image.
	PullPolicy string `yaml:"pullPolicy"`
}

// ServiceValues are those of the router's Service.
type ServiceValues struct {
	// One of ClusterIP, NodePort or LoadBalancer. Default ClusterIP.
	Type string `yaml:"type"`
	// Port of the Service. 1 to 65535. Default 80.
	Port int `yaml:"port"`
	// Port of the nodes, for NodePort and LoadBalancer. 0 to 65535. Default 0 (one that is free).
	NodePort int `yaml:"nodePort"`
	// Annotations, which clouds take settings of load balancers from.
	Annotations map[string]string `yaml:"annotations"`
	// Networks that may reach a load balancer, such as 10.0.0.0/8. Default: all.
	LoadBalancerSourceRanges []string `yaml:"loadBalancerSourceRanges"`
	// Class of the load balancer. Default: the cluster's.
	LoadBalancerClass string `yaml:"loadBalancerClass"`
	// Where traffic from outside goes. One of Cluster or Local. Default Cluster.
	ExternalTrafficPolicy string `yaml:"externalTrafficPolicy"`
}

// ControlServiceValues are those of the control plane's Service. It is for the cluster only: kubectl port-forward reaches it.
type ControlServiceValues struct {
	// Port of the Service. 1 to 65535. Default 8100.
	Port int `yaml:"port"`
	// Annotations.
	Annotations map[string]string `yaml:"annotations"`
}

// AutoscalingValues are those of a HorizontalPodAutoscaler.
type AutoscalingValues struct {
	// Installs one. Default false.
	Enabled bool `yaml:"enabled"`
	// Least number of pods. At least 1. Default 2.
	Min int `yaml:"min"`
	// Most number of pods. At least 1. Default 5.
	Max int `yaml:"max"`
	// Mean use of CPU, in percent of what pods ask for, above which pods are added. At least 1. Default 80.
	CPU int `yaml:"cpu"`
	// More metrics, as autoscaling/v2 has them.
	Metrics []Object `yaml:"metrics"`
	// How fast it goes up and down, as autoscaling/v2 has it. Default: the cluster's.
	Behavior Object `yaml:"behavior"`
}

// IngressValues are those of an Ingress.
type IngressValues struct {
	// Installs one. Default false.
	Enabled bool `yaml:"enabled"`
	// Class of the Ingress. Default: the cluster's.
	ClassName string `yaml:"className"`
	// Annotations. Streams need a controller that does not buffer answers and has a long timeout for reading.
	Annotations map[string]string `yaml:"annotations"`
	// Host names. Default: all.
	Hosts []string `yaml:"hosts"`
	// Beginning of the paths that go to the router. Default /.
	Path string `yaml:"path"`
	// How paths are compared. One of Prefix, Exact or ImplementationSpecific. Default Prefix.
	PathType string `yaml:"pathType"`
	// Secrets with certificates, and their hosts.
	TLS []IngressTLSValues `yaml:"tls"`
}

// IngressTLSValues names a certificate of an Ingress.
type IngressTLSValues struct {
	// Secret with the certificate. Required.
	SecretName string `yaml:"secretName"`
	// Hosts that it is for. Default: those of the Ingress.
	Hosts []string `yaml:"hosts"`
}

// RouteValues are those of an HTTPRoute.
type RouteValues struct {
	// Installs one; the cluster has to have the Gateway API. Default false.
	Enabled bool `yaml:"enabled"`
	// Gateways, as Kubernetes has them (name, namespace, sectionName); at least one when it is enabled.
	ParentRefs []Object `yaml:"parentRefs"`
	// Host names. Default: those of the Gateway.
	Hostnames []string `yaml:"hostnames"`
	// What is routed, as Kubernetes has it. Default: every path.
	Matches []Object `yaml:"matches"`
	// Filters, as Kubernetes has them.
	Filters []Object `yaml:"filters"`
	// Bounds on time, as Kubernetes has them (request, backendRequest). Default: request 0s, which is no bound: the router has its own.
	Timeouts Object `yaml:"timeouts"`
	// More rules, as Kubernetes has them, before the router's own.
	AdditionalRules []Object `yaml:"additionalRules"`
	// Annotations.
	Annotations map[string]string `yaml:"annotations"`
	// Labels.
	Labels map[string]string `yaml:"labels"`
}

// BudgetValues are those of a PodDisruptionBudget.
type BudgetValues struct {
	// Installs one where there is more than one pod. Default true.
	Enabled bool `yaml:"enabled"`
	// Pods that a voluntary disruption may take at once: a number or a percentage. Default 1.
	MaxUnavailable string `yaml:"maxUnavailable" takes:"numbers"`
}

// CacheServerValues are those of LMCache's server. Engines use it once it is enabled: those with LMCache in their arguments.
type CacheServerValues struct {
	// Installs it. Default false.
	Enabled bool `yaml:"enabled"`
	// Image with LMCache. Default: that of engines.
	Image ImageOverride `yaml:"image"`
	// Number of servers; they share nothing. At least 0. Default 1.
	Replicas int `yaml:"replicas"`
	// Port. 1 to 65535. Default 8600.
	Port int `yaml:"port"`
	// Requests and limits of the container, as Kubernetes has them: the blocks are in its memory.
	Resources Object `yaml:"resources"`
	// More arguments.
	ExtraArgs []string `yaml:"extraArgs"`
	// Environment variables, as a container has them (name, value, valueFrom).
	Env []Object `yaml:"env"`
	// More volumes of the pod.
	ExtraVolumes []Object `yaml:"extraVolumes"`
	// More mounts of the container.
	ExtraVolumeMounts []Object `yaml:"extraVolumeMounts"`
	// Part of a pod template (metadata and spec) that is merged into ours, as router.pod is.
	Pod Object `yaml:"pod"`
}

// LMCacheValues are those of LMCache's servers in multiprocess mode, a DaemonSet. Engines with LMCacheMPConnector in their arguments, and
// without a server of their own, use the one of their node once it is enabled.
type LMCacheValues struct {
	// Installs them. Engines then see the /dev/shm of their node. Default false.
	Enabled bool `yaml:"enabled"`
	// Image with LMCache. Default: that of engines.
	Image ImageOverride `yaml:"image"`
	// Port for engines. 1 to 65535. Default 5555.
	Port int `yaml:"port"`
	// Port of its health, metrics and administration, which the NetworkPolicy keeps for the node and for networkPolicy.metricsFrom. 1 to 65535. Default 8080.
	HTTPPort int `yaml:"httpPort"`
	// Memory of each node for KV blocks, in GB. At least 1. Default 20.
	L1SizeGB int `yaml:"l1SizeGB"`
	// Tokens of a block. At least 1. Default 256.
	ChunkSize int `yaml:"chunkSize"`
	// The tier below, as LMCache has it (type, and what the type takes). Default: redis, when that is enabled.
	L2Adapters []Object `yaml:"l2Adapters"`
	// Where a coordinator of LMCache is, such as http://coordinator:9300. Default: none.
	CoordinatorURL string `yaml:"coordinatorURL"`
	// Has servers and their engines in the host's IPC namespace, for GPUs whose memory is not shared without it. Default false.
	HostIPC bool `yaml:"hostIPC"`
	// Has servers privileged, where they see no GPU without it. Default false.
	Privileged bool `yaml:"privileged"`
	// RuntimeClass, with which they see GPUs. Default: that of engines.
	RuntimeClass string `yaml:"runtimeClass"`
	// Labels of the nodes that get one. Default: every node.
	NodeSelector map[string]string `yaml:"nodeSelector"`
	// Taints that they run in spite of, as Kubernetes has them. Default: any of nvidia.com/gpu.
	Tolerations []Object `yaml:"tolerations"`
	// Requests and limits of the container, as Kubernetes has them. Default: 2 CPUs, l1SizeGB and 5Gi of memory, and a limit of one and a half times that memory.
	Resources Object `yaml:"resources"`
	// More arguments of lmcache server, which win over the chart's.
	ExtraArgs []string `yaml:"extraArgs"`
	// Environment variables, as a container has them (name, value, valueFrom).
	Env []Object `yaml:"env"`
	// More volumes of the pod.
	ExtraVolumes []Object `yaml:"extraVolumes"`
	// More mounts of the container.
	ExtraVolumeMounts []Object `yaml:"extraVolumeMounts"`
	// Part of a pod template (metadata and spec) that is merged into ours, as router.pod is.
	Pod Object `yaml:"pod"`
}

// RedisValues are those of a Redis of one pod.
type RedisValues struct {
	// Installs it: for engines when cacheServer is off, and as the tier below lmcache. Default false.
	Enabled bool `yaml:"enabled"`
	// Image of Redis. Default: the official one.
	Image ImageOverride `yaml:"image"`
	// Most memory for data, as Redis writes it (4gb); what was used least goes first. Default 4gb.
	MaxMemory string `yaml:"maxMemory"`
	// Secret with the password; its key is password unless given. Default: none, all pods of the namespace may use it.
	Password SecretRef `yaml:"password"`
	// Size of a volume for what outlives the pod, such as 20Gi. It and storageClass can be changed only after the StatefulSet is deleted. Default: none, data are in memory only.
	Storage string `yaml:"storage"`
	// StorageClass of that volume. Default: the cluster's.
	StorageClass string `yaml:"storageClass"`
	// Requests and limits of the container, as Kubernetes has them.
	Resources Object `yaml:"resources"`
	// Arguments of redis-server after ours. Default: none.
	ExtraArgs []string `yaml:"extraArgs"`
	// Part of a pod template (metadata and spec) that is merged into ours, as router.pod is.
	Pod Object `yaml:"pod"`
}

// SecretRef is one value of a Secret.
type SecretRef struct {
	// Name of the Secret.
	Name string `yaml:"name"`
	// Key in it. Default: the usual one for what it is.
	Key string `yaml:"key"`
}

// ServiceAccountValues are those of both service accounts.
type ServiceAccountValues struct {
	// Makes them; where it is false, both names are required. Default true.
	Create bool `yaml:"create"`
	// The router's. Default: the name of its Deployment.
	RouterName string `yaml:"routerName"`
	// The control plane's. Default: the name of its Deployment.
	ControlName string `yaml:"controlName"`
	// Annotations, such as those that clouds tie roles to.
	Annotations map[string]string `yaml:"annotations"`
}

// RBACValues are those of roles.
type RBACValues struct {
	// Makes roles and bindings. Default true.
	Create bool `yaml:"create"`
	// Other namespaces in which the router may look for engines (platform discover); * is all, by a ClusterRole. Default: those that discover names.
	DiscoverNamespaces []string `yaml:"discoverNamespaces"`
	// Lets the control plane see the nodes and cordon them, by a ClusterRole: for mobula hosts, and for messages about GPUs that no node has. Default true.
	Nodes bool `yaml:"nodes"`
}

// NetworkPolicyValues are those of NetworkPolicies.
type NetworkPolicyValues struct {
	// Installs them: engines and caches are then reached by routers, the control plane and each other only. Default false.
	Enabled bool `yaml:"enabled"`
	// Who may reach the router, as Kubernetes has peers. Default: all.
	RouterFrom []Object `yaml:"routerFrom"`
	// Who may reach the control plane beside routers, as Kubernetes has peers. Default: the namespace.
	ControlFrom []Object `yaml:"controlFrom"`
	// Who may read metrics, as Kubernetes has peers: of engines and LMCache's servers, and of routers and the control plane where routerFrom and controlFrom don't have them. Default: none but ours.
	MetricsFrom []Object `yaml:"metricsFrom"`
}

// MonitorValues are those of a ServiceMonitor or PodMonitor.
type MonitorValues struct {
	// Installs it; the cluster has to have the Prometheus operator. Default false.
	Enabled bool `yaml:"enabled"`
	// Labels, which a Prometheus may select by (release: kube-prometheus-stack).
	Labels map[string]string `yaml:"labels"`
	// Time between two readings, as Prometheus writes it. Default 15s.
	Interval string `yaml:"interval"`
	// A reading that takes longer has failed. Default 10s.
	ScrapeTimeout string `yaml:"scrapeTimeout"`
	// Keeps labels that metrics have over those of the target. Default false.
	HonorLabels bool `yaml:"honorLabels"`
	// Relabelings of targets, as the operator has them.
	Relabelings []Object `yaml:"relabelings"`
	// Relabelings of metrics, as the operator has them.
	MetricRelabelings []Object `yaml:"metricRelabelings"`
}

// DashboardsValues are those of Grafana dashboards.
type DashboardsValues struct {
	// Installs them. Default false.
	Enabled bool `yaml:"enabled"`
	// Labels that Grafana's sidecar looks for. Default: grafana_dashboard with the value 1.
	Labels map[string]string `yaml:"labels"`
	// Annotations, such as grafana_folder.
	Annotations map[string]string `yaml:"annotations"`
	// Namespace that the sidecar looks in. Default: that of the release.
	Namespace string `yaml:"namespace"`
}

// AlertsValues are those of alert rules.
type AlertsValues struct {
	// Installs them. Default false.
	Enabled bool `yaml:"enabled"`
	// What they are installed as: a PrometheusRule for the Prometheus operator, a ConfigMap with a rule file for others. One of PrometheusRule or ConfigMap. Default PrometheusRule.
	Kind string `yaml:"kind"`
	// Labels, which a Prometheus may select by.
	Labels map[string]string `yaml:"labels"`
	// Labels of every alert, such as team.
	AlertLabels map[string]string `yaml:"alertLabels"`
	// Names of alerts to leave out.
	Disabled []string `yaml:"disabled"`
}

// KEDAValues are those of ScaledObjects.
type KEDAValues struct {
	// Installs them; the cluster has to have KEDA. Default false.
	Enabled bool `yaml:"enabled"`
	// Where KEDA reads metrics, such as http://prometheus-operated.monitoring:9090. Default: none; triggers of the models' own name theirs.
	PrometheusAddress string `yaml:"prometheusAddress"`
	// The models whose replicas KEDA sets.
	Models []KEDAModelValues `yaml:"models"`
}

// KEDAModelValues are those of one model's ScaledObject.
type KEDAModelValues struct {
	// Name of the model, as in models. Its replicas there are a number: where it starts. Required.
	Name string `yaml:"name"`
	// Least replicas; 0 lets it go to zero. At least 0. Default 1.
	Min int `yaml:"min"`
	// Most replicas. At least 1. Default 4.
	Max int `yaml:"max"`
	// Seconds between two looks at the metrics. At least 1. Default 15.
	PollingInterval int `yaml:"pollingInterval"`
	// Seconds without a request after which it goes to zero. At least 0. Default 360.
	CooldownPeriod int `yaml:"cooldownPeriod"`
	// Requests that wait or run per replica, above which replicas are added. At least 1. Default 8.
	RequestsPerReplica int `yaml:"requestsPerReplica"`
	// Triggers, as KEDA has them, in place of ours.
	Triggers []Object `yaml:"triggers"`
	// What happens without metrics, as KEDA has it (failureThreshold, replicas).
	Fallback Object `yaml:"fallback"`
	// What else a ScaledObject has under advanced.
	Advanced Object `yaml:"advanced"`
}

// PrometheusAdapterValues are those of rules for a prometheus-adapter.
type PrometheusAdapterValues struct {
	// Installs the ConfigMap with rules. Default false.
	Enabled bool `yaml:"enabled"`
	// Rules, as prometheus-adapter has them, beside ours.
	Rules []Object `yaml:"rules"`
}
