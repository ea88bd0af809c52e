package chart_test

func controlCases() []valueCase {
	const container = "spec template spec containers 0 "
	return []valueCase{
		{
			name: "control plane's defaults", values: "{}",
			want: []want{
				{control, container + "readinessProbe httpGet port", "health"},
				{control, container + "args 6", "--address=mobula-control.llm.svc:8100"},
				{control, container + "env 2 value", "460MiB"},
				{"Service/mobula-control", "spec ports 0", "appProtocol: https\nname: https\nport: 8100\nprotocol: TCP\ntargetPort: https"},
				{"ClusterRole/llm:mobula:nodes", "rules 0 resources", "- nodes"},
			},
			absent: []string{"ClusterRole/llm:mobula:nodes metadata namespace", "ClusterRole/llm:mobula:discover"},
		},
		{
			name: "no control plane", values: "{control: {enabled: false}, models: [{name: a}]}",
			want:   []want{{router, container + "args", "- router\n- --kubernetes\n- --namespace=llm\n- --fleet=default"}},
			absent: []string{control, "Secret/mobula-control", "Secret/mobula-state", "Lease/mobula-control", "Role/mobula-control", "ClusterRole/llm:mobula:nodes", "Role/mobula-router rules 3"},
			notes:  []string{"control.enabled is false"},
		},
		{
			name: "more of the control plane", values: `
control:
  replicas: 2
  service: {port: 9100, annotations: {a: b}}
  resources: {limits: {memory: 1Gi, cpu: "2"}}
  env: [{name: A, value: b}]
  envFrom: [{configMapRef: {name: c}}]
  extraArgs: [--log-level=debug]
  extraVolumes: [{name: v, emptyDir: {}}]
  extraVolumeMounts: [{name: v, mountPath: /v}]
  pod: {spec: {priorityClassName: high}}`,
			want: []want{
				{control, "spec replicas", "2"},
				{control, container + "args 6", "--address=mobula-control.llm.svc:9100"},
				{control, container + "args 12", "--log-level=debug"},
				{control, container + "env 3 name", "A"},
				{control, container + "envFrom 0 configMapRef name", "c"},
				{control, container + "volumeMounts 1 name", "v"},
				{control, container + "resources limits cpu", "2"},
				{control, "spec template spec volumes 1 name", "v"},
				{control, "spec template spec priorityClassName", "high"},
				{"Service/mobula-control", "metadata annotations a", "b"},
				{"Service/mobula-control", "spec ports 0 port", "9100"},
			},
		},
		{
			name: "accounts of others", values: "{serviceAccount: {create: false, routerName: r, controlName: c}}",
			want: []want{
				{router, "spec template spec serviceAccountName", "r"},
				{control, "spec template spec serviceAccountName", "c"},
				{"RoleBinding/mobula-router", "subjects 0 name", "r"},
			},
			absent: []string{"ServiceAccount/mobula-router", "ServiceAccount/mobula-control"},
		},
		{
			name: "accounts' names", values: "{serviceAccount: {routerName: r, controlName: c, annotations: {role: x}}}",
			want: []want{
				{"ServiceAccount/r", "metadata annotations role", "x"},
				{"ServiceAccount/c", "metadata annotations role", "x"},
				{"RoleBinding/mobula-control", "subjects 0 name", "c"},
			},
		},
		{
			name: "no roles", values: "{rbac: {create: false}}",
			absent: []string{"Role/mobula-router", "RoleBinding/mobula-router", "Role/mobula-control", "ClusterRole/llm:mobula:nodes"},
			notes:  []string{"rbac.create is false"},
		},
		{
			name: "no nodes", values: "{rbac: {nodes: false}}",
			absent: []string{"ClusterRole/llm:mobula:nodes", "ClusterRoleBinding/llm:mobula:nodes"},
		},
		{
			name: "engines in other namespaces", values: "{rbac: {discoverNamespaces: [c]}, platform: {kubernetes: {discover: [{selector: a=b, namespaces: [b, llm, a]}, {selector: c=d, namespaces: [a]}]}}}",
			want: []want{
				{"Role/llm:mobula:discover@a", "rules 0 verbs", "- get\n- list\n- watch"},
				{"Role/llm:mobula:discover@b", "", ""},
				{"Role/llm:mobula:discover@c", "", ""},
				{"RoleBinding/llm:mobula:discover@a", "subjects 0 namespace", "llm"},
				{"RoleBinding/llm:mobula:discover@a", "subjects 1 name", "mobula-control"},
			},
			absent: []string{"Role/llm:mobula:discover"},
		},
		{
			name: "engines in all namespaces", values: "{platform: {kuberay: {kubernetes: {discover: [{selector: a=b, namespaces: ['*']}]}}}}",
			want: []want{{"ClusterRole/llm:mobula:discover", "rules 0 resources", "- pods\n- services"}, {"ClusterRoleBinding/llm:mobula:discover", "roleRef name", "llm:mobula:discover"}},
		},
	}
}

func controlImageCases() []valueCase {
	const container = "spec template spec containers 0 "
	return []valueCase{
		{
			name: "an image of each", values: "{router: {image: {repository: a, tag: b, pullPolicy: Always}}, control: {image: {repository: c, tag: d}}}",
			want:   []want{{router, container + "image", "a:b"}, {router, container + "imagePullPolicy", "Always"}, {control, container + "image", "c:d"}},
			absent: []string{"PodDisruptionBudget/mobula-control"},
		},
		{
			name: "a digest of the router", values: "{router: {image: {digest: 'sha256:abc'}}}",
			want: []want{{router, container + "image", "mobula-serve/mobula@sha256:abc"}},
		},
		{
			name: "a budget of the control plane", values: "{control: {replicas: 3, podDisruptionBudget: {maxUnavailable: 2}}}",
			want: []want{{"PodDisruptionBudget/mobula-control", "spec maxUnavailable", "2"}},
		},
		{
			name: "no budget of the control plane", values: "{control: {replicas: 3, podDisruptionBudget: {enabled: false}}}",
			absent: []string{"PodDisruptionBudget/mobula-control"},
		},
	}
}

func besideCases() []valueCase {
	const lmcache = `models: [{name: a, replicas: 1, engine: {args: [--kv-transfer-config, '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}'], env: {LMCACHE_CHUNK_SIZE: "256"}}}, {name: b, replicas: 1}]` + "\n"
	return []valueCase{
		{
			name: "monitors", values: "{serviceMonitor: {enabled: true, labels: {release: kps}, interval: 5s, scrapeTimeout: 4s, honorLabels: true, relabelings: [{targetLabel: a, replacement: b}], metricRelabelings: [{regex: c, action: labeldrop}]}, podMonitor: {enabled: true, labels: {release: kps}, interval: 7s, scrapeTimeout: 6s, honorLabels: true, relabelings: [{targetLabel: a, replacement: b}], metricRelabelings: [{regex: c, action: labeldrop}]}}",
			want: []want{
				{"ServiceMonitor/mobula-router", "metadata labels release", "kps"},
				{"ServiceMonitor/mobula-router", "spec endpoints 0", "honorLabels: true\ninterval: 5s\nmetricRelabelings:\n- action: labeldrop\n  regex: c\npath: /metrics\nport: http\nrelabelings:\n- replacement: b\n  targetLabel: a\nscrapeTimeout: 4s"},
				{"ServiceMonitor/mobula-control", "spec endpoints 0 scheme", "https"},
				{"PodMonitor/mobula-engines", "spec podMetricsEndpoints 0", "honorLabels: true\ninterval: 7s\nmetricRelabelings:\n- action: labeldrop\n  regex: c\npath: /metrics\nport: http\nrelabelings:\n- replacement: b\n  targetLabel: a\nscrapeTimeout: 6s"},
				{"PodMonitor/mobula-engines", "spec selector matchLabels", "app.kubernetes.io/managed-by: mobula\napp.kubernetes.io/name: mobula-engine\nmobula.dev/fleet: default\nmobula.dev/serves: \"true\""},
			},
		},
		{
			name: "dashboards", values: "{dashboards: {enabled: true, labels: {grafana_dashboard: null, x: z}, annotations: {grafana_folder: M}, namespace: grafana}}",
			want: []want{
				{"ConfigMap/llm.mobula-dashboard-router@grafana", "metadata labels x", "z"},
				{"ConfigMap/llm.mobula-dashboard-engines@grafana", "metadata annotations grafana_folder", "M"},
				{"ConfigMap/llm.mobula-dashboard-control@grafana", "", ""},
			},
			absent: []string{"ConfigMap/llm.mobula-dashboard-router@grafana metadata labels grafana_dashboard"},
		},
		{
			name: "alerts without a control plane", values: "{control: {enabled: false}, alerts: {enabled: true, disabled: [MobulaRouterErrors]}}",
			want: []want{
				{"PrometheusRule/mobula-alerts", "spec groups 1 rules", "[]"},
				{"PrometheusRule/mobula-alerts", "spec groups 0 rules 0 alert", "MobulaNoEndpoint"},
			},
		},
		{
			name: "alerts", values: "{alerts: {enabled: true, labels: {release: kps}, alertLabels: {team: a}, disabled: [MobulaRouterErrors]}}",
			want: []want{
				{"PrometheusRule/mobula-alerts", "metadata labels release", "kps"},
				{"PrometheusRule/mobula-alerts", "spec groups 0 rules 0 alert", "MobulaNoEndpoint"},
				{"PrometheusRule/mobula-alerts", "spec groups 0 rules 0 labels", "severity: critical\nteam: a"},
			},
		},
		{
			name: "alerts as a file", values: "{alerts: {enabled: true, kind: ConfigMap}}",
			want: []want{{"ConfigMap/mobula-alerts", "", ""}},
		},
		{
			name: "network policies", values: "{networkPolicy: {enabled: true}, cacheServer: {enabled: true, image: {repository: lm, tag: v1}}, redis: {enabled: true}}",
			want: []want{
				{"NetworkPolicy/mobula-router", "spec ingress", "- ports:\n  - port: http\n    protocol: TCP"},
				{"NetworkPolicy/mobula-control", "spec ingress 0 from", "- podSelector: {}"},
				{"NetworkPolicy/mobula-engines", "spec podSelector matchLabels app.kubernetes.io/name", "mobula-engine"},
				{"NetworkPolicy/mobula-engines", "spec ingress 0 from 0 podSelector matchLabels app.kubernetes.io/component", "router"},
				{"NetworkPolicy/mobula-cache-server", "spec ingress 0 ports 0 port", "lm"},
				{"NetworkPolicy/mobula-redis", "spec ingress 0 from 0 podSelector matchLabels app.kubernetes.io/name", "mobula-engine"},
			},
			absent: []string{"NetworkPolicy/mobula-engines spec ingress 1"},
		},
		{
			name: "network policies with peers", values: "{networkPolicy: {enabled: true, routerFrom: [{ipBlock: {cidr: 10.0.0.0/8}}], controlFrom: [{podSelector: {matchLabels: {a: b}}}], metricsFrom: [{namespaceSelector: {matchLabels: {m: o}}}]}}",
			want: []want{
				{"NetworkPolicy/mobula-router", "spec ingress 0 from 0", "ipBlock:\n  cidr: 10.0.0.0/8"},
				{"NetworkPolicy/mobula-router", "spec ingress 0 from 1 namespaceSelector matchLabels m", "o"},
				{"NetworkPolicy/mobula-control", "spec ingress 0 from 0 podSelector matchLabels a", "b"},
				{"NetworkPolicy/mobula-control", "spec ingress 0 from 2 podSelector matchLabels app.kubernetes.io/component", "router"},
				{"NetworkPolicy/mobula-engines", "spec ingress 1 from 0 namespaceSelector matchLabels m", "o"},
			},
		},
		{
			name: "LMCache's server", values: lmcache + "cacheServer: {enabled: true, replicas: 2, port: 9000, image: {repository: lm, tag: v1, pullPolicy: Never}, resources: {limits: {memory: 1Gi}}, extraArgs: [cpu], env: [{name: A, value: b}], extraVolumes: [{name: v, emptyDir: {}}], extraVolumeMounts: [{name: v, mountPath: /v}], pod: {spec: {nodeSelector: {x: z}}}}",
			want: []want{
				{"Deployment/mobula-cache-server", "spec replicas", "2"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 image", "lm:v1"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 imagePullPolicy", "Never"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 args", "- 0.0.0.0\n- \"9000\"\n- cpu"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 env 2 name", "A"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 resources limits memory", "1Gi"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 volumeMounts 1 mountPath", "/v"},
				{"Deployment/mobula-cache-server", "spec template spec volumes 1 name", "v"},
				{"Deployment/mobula-cache-server", "spec template spec nodeSelector x", "z"},
				{"Service/mobula-cache-server", "spec ports 0 port", "9000"},
				{"Model/a", "spec engine env", "LMCACHE_CHUNK_SIZE: \"256\"\nLMCACHE_REMOTE_SERDE: naive\nLMCACHE_REMOTE_URL: lm://mobula-cache-server.llm.svc:9000\nLMCACHE_TRACK_USAGE: \"false\"\nPYTHONHASHSEED: \"0\""},
			},
			absent: []string{"Model/b spec engine"},
			notes:  []string{"cacheServer.replicas is 2"},
		},
		{
			name: "LMCache's server in the engines' image", values: "{image: {pullSecrets: [own]}, cacheServer: {enabled: true}, platform: {kubernetes: {pods: {image: 'lmcache/vllm-openai:v1', pullSecrets: [theirs]}}}}",
			want: []want{
				{"Deployment/mobula-cache-server", "spec template spec containers 0 image", "lmcache/vllm-openai:v1"},
				{"Deployment/mobula-cache-server", "spec template spec imagePullSecrets", "- name: own\n- name: theirs"},
			},
			notes: []string{"No engine uses the pool"},
		},
		{
			name: "Redis", values: lmcache + "redis: {enabled: true, maxMemory: 1gb, storage: 5Gi, storageClass: fast, image: {tag: '7'}, resources: {limits: {memory: 2Gi}}, extraArgs: [--io-threads, '4'], pod: {spec: {priorityClassName: p}}}",
			want: []want{
				{"StatefulSet/mobula-redis", "spec template spec containers 0 image", "redis:7"},
				{"StatefulSet/mobula-redis", "spec template spec containers 0 args", "- --maxmemory\n- 1gb\n- --maxmemory-policy\n- allkeys-lru\n- --protected-mode\n- \"no\"\n- --io-threads\n- \"4\""},
				{"StatefulSet/mobula-redis", "spec template spec containers 0 resources limits memory", "2Gi"},
				{"StatefulSet/mobula-redis", "spec template spec priorityClassName", "p"},
				{"StatefulSet/mobula-redis", "spec volumeClaimTemplates 0 spec", "accessModes:\n- ReadWriteOnce\nresources:\n  requests:\n    storage: 5Gi\nstorageClassName: fast"},
				{"Model/a", "spec engine env LMCACHE_REMOTE_URL", "redis://mobula-redis.llm.svc:6379"},
			},
			absent: []string{"StatefulSet/mobula-redis spec template spec volumes"},
		},
		{
			name: "images of caches", values: "{cacheServer: {enabled: true, image: {repository: lm, digest: 'sha256:abc'}}, redis: {enabled: true, image: {repository: valkey/valkey, digest: 'sha256:def', pullPolicy: Always}}, image: {pullSecrets: [s], pullPolicy: Never}}",
			want: []want{
				{"Deployment/mobula-cache-server", "spec template spec containers 0 image", "lm@sha256:abc"},
				{"Deployment/mobula-cache-server", "spec template spec containers 0 imagePullPolicy", "Never"},
				{"Deployment/mobula-cache-server", "spec template spec imagePullSecrets", "- name: s"},
				{"StatefulSet/mobula-redis", "spec template spec containers 0 image", "valkey/valkey@sha256:def"},
				{"StatefulSet/mobula-redis", "spec template spec containers 0 imagePullPolicy", "Always"},
			},
		},
		{
			name: "a key of Redis' password", values: "{redis: {enabled: true, password: {name: s, key: k}}}",
			want: []want{{"StatefulSet/mobula-redis", "spec template spec containers 0 env 0 valueFrom secretKeyRef key", "k"}},
		},
		{
			name: "Redis with a password", values: "{redis: {enabled: true, password: {name: s}}, models: [{name: a}]}",
			want: []want{
				{"StatefulSet/mobula-redis", "spec template spec containers 0 env 0 valueFrom secretKeyRef", "key: password\nname: s"},
				{"StatefulSet/mobula-redis", "spec template spec containers 0 args 6", "--requirepass"},
				{"StatefulSet/mobula-redis", "spec template spec volumes 0 name", "data"},
			},
		},
		{
			name: "an engine's own pool stays", values: `{redis: {enabled: true}, models: [{name: a, replicas: 1, engine: {args: ["--kv-transfer-config={\"kv_connector\":\"LMCacheConnectorV1\"}"], env: {LMCACHE_REMOTE_URL: "lm://mine:1"}}}]}`,
			want: []want{{"Model/a", "spec engine env", "LMCACHE_REMOTE_URL: lm://mine:1"}},
		},
		{
			name: "KEDA", values: "{models: [{name: x/A, replicas: 1}, {name: b, replicas: 1}], keda: {enabled: true, prometheusAddress: 'http://p:9090', models: [{name: x/A, min: 0, max: 3, requestsPerReplica: 5, pollingInterval: 5, cooldownPeriod: 60, fallback: {failureThreshold: 3, replicas: 1}, advanced: {restoreToOriginalReplicaCount: true}}, {name: b, triggers: [{type: cron, metadata: {timezone: UTC}}]}]}}",
			want: []want{
				{"ScaledObject/x-a", "spec scaleTargetRef", "apiVersion: mobula.dev/v1alpha1\nkind: Model\nname: x-a"},
				{"ScaledObject/x-a", "spec minReplicaCount", "0"},
				{"ScaledObject/x-a", "spec maxReplicaCount", "3"},
				{"ScaledObject/x-a", "spec pollingInterval", "5"},
				{"ScaledObject/x-a", "spec cooldownPeriod", "60"},
				{"ScaledObject/x-a", "spec fallback replicas", "1"},
				{"ScaledObject/x-a", "spec advanced restoreToOriginalReplicaCount", "true"},
				{"ScaledObject/x-a", "spec triggers 0 metadata threshold", "5"},
				{"ScaledObject/x-a", "spec triggers 0 metadata query", `sum(vllm:num_requests_running{namespace="llm",model_name="x/A"} or vector(0)) + sum(vllm:num_requests_waiting{namespace="llm",model_name="x/A"} or vector(0)) + sum(mobula_router_held_requests{namespace="llm",model="x/A"} or vector(0))`},
				{"ScaledObject/x-a", "spec triggers 1 metadata query", `sum(rate(mobula_router_requests_total{namespace="llm",model="x/A"}[2m]) > bool 0)`},
				{"ScaledObject/x-a", "spec triggers 0 metadata serverAddress", "http://p:9090"},
				{"ScaledObject/b", "spec minReplicaCount", "1"},
				{"ScaledObject/b", "spec triggers", "- metadata:\n    timezone: UTC\n  type: cron"},
			},
		},
		{
			name: "prometheus-adapter", values: "{prometheusAdapter: {enabled: true, rules: [{seriesQuery: mine}]}}",
			want: []want{{"ConfigMap/mobula-prometheus-adapter", "", ""}},
		},
		{
			name: "more objects", values: "{extraObjects: [{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-x'}, data: {a: b}}]}",
			want: []want{{"ConfigMap/mobula-x", "data a", "b"}},
		},
		{
			name: "odd values are told", values: `{fleet: {router: {timeouts: {lameduck: 0s}}}, image: {tag: latest}, router: {replicas: 0, resources: {limits: {cpu: "1"}}}, control: {replicas: 0}, networkPolicy: {enabled: true}, podMonitor: {enabled: true}, models: [{name: a, engine: {env: {HF_TOKEN: x}}}]}`,
			notes: []string{
				"lameduck is 0s", "image.tag is latest", "router.replicas is 0", "control.replicas is 0", "throttling", "networkPolicy.metricsFrom is empty", "engine.env has HF_TOKEN in clear",
			},
		},
	}
}
