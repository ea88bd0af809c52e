package chart_test

import "slices"

type valueCase struct {
	name, values string
	want         []want
	absent       []string // kind/name, or kind/name and a path
	notes        []string
}

func valueCases() []valueCase {
	return slices.Concat(fleetCases(), routerCases(), controlCases(), controlImageCases(), besideCases(), lmcacheCases())
}

func fleetCases() []valueCase {
	return []valueCase{
		{
			name: "nothing set", values: "{}",
			want: []want{
				{"Fleet/default", "spec", "platform:\n  kubernetes: {}\nrouter:\n  timeouts:\n    drain: 5m\n    lameduck: 5s"},
				{router, "spec replicas", "1"},
				{router, "spec template spec containers 0 image", "mobula-serve/mobula:0.1.0"},
				{"Service/mobula-router", "spec ports 0 port", "80"},
				{"Secret/mobula-control", "", ""},
				{"Secret/mobula-router", "", ""},
				{"Secret/mobula-state", "", ""},
				{"Lease/mobula-control", "", ""},
			},
			absent: []string{
				"Secret/mobula-control data", "Lease/mobula-control spec", "PodDisruptionBudget/mobula-router", "Ingress/mobula-router",
				"HorizontalPodAutoscaler/mobula-router", "ServiceMonitor/mobula-router", "NetworkPolicy/mobula-router", "Deployment/mobula-cache-server",
			},
			notes: []string{"There is no model yet", "port-forward svc/mobula-router 30080:80"},
		},
		{
			name: "a model", values: "models: [{name: facebook/opt-125m, replicas: 2, resources: {gpus: 1}}]",
			want: []want{
				{"Model/facebook-opt-125m", "spec", "fleet: default\nname: facebook/opt-125m\nreplicas: 2\nresources:\n  gpus: 1"},
			},
			notes: []string{"with 1 model.", "kubectl -n llm wait model/facebook-opt-125m --for=condition=Ready", `"model": "facebook/opt-125m"`},
		},
		{
			name: "a range", values: `models: [{name: A, replicas: 0-4}, {name: b, replicas: "3"}, {name: c}]`,
			want: []want{
				{"Model/a", "spec range", "max: 4\nmin: 0"},
				{"Model/b", "spec replicas", "3"},
				{"Model/c", "spec", "fleet: default\nname: c"},
			},
			absent: []string{"Model/a spec replicas", "Model/b spec range"},
		},
		{
			name: "none is a number too", values: "models: [{name: a, replicas: 0}]",
			want: []want{{"Model/a", "spec replicas", "0"}},
		},
		{
			name: "what a model's name can have", values: `models: [{name: "Qwen/Qwen3-0.6B_x"}]`,
			want: []want{{"Model/qwen-qwen3-0-6b-x", "spec name", "Qwen/Qwen3-0.6B_x"}},
		},
		{
			name: "the fleet", values: `
fleet:
  name: prod
  router: {policy: {name: prefix}, timeouts: {lameduck: 10s, drain: 2m}, limits: {inFlight: 20000000}}
  kv: {index: {memory: 1GiB}}
  providers: [{name: openai, models: [{name: a}], apiKeyEnv: OPENAI_API_KEY}]`,
			want: []want{
				{"Fleet/prod", "spec router policy name", "prefix"},
				{"Fleet/prod", "spec router timeouts", "drain: 2m\nlameduck: 10s"},
				{"Fleet/prod", "spec router limits inFlight", "20000000"}, // and not 2e+07
				{"Fleet/prod", "spec kv index memory", "1GiB"},
				{"Fleet/prod", "spec providers 0 name", "openai"},
				{router, "spec template spec terminationGracePeriodSeconds", "145"},
				{router, "metadata labels mobula.dev/fleet", "prod"},
			},
			absent: []string{"Fleet/prod spec name"},
		},
		{
			name: "kubernetes", values: "platform: {kubernetes: {pods: {gpuResource: amd.com/gpu}, discover: [{selector: app=vllm}]}}",
			want: []want{
				{"Fleet/default", "spec platform kubernetes pods gpuResource", "amd.com/gpu"},
				{"Fleet/default", "spec platform kubernetes discover 0 selector", "app=vllm"},
			},
			absent: []string{"Role/llm:mobula:discover"},
		},
		{
			name: "kuberay", values: "{platform: {kuberay: {rayVersion: 2.60.0, shared: {cluster: theirs}}}, control: {pod: {spec: {tolerations: [{operator: Exists}], securityContext: {runAsUser: 7}}}}}",
			want: []want{
				{"Fleet/default", "spec platform", "kuberay:\n  rayVersion: 2.60.0\n  shared:\n    cluster: theirs"},
				{"Role/mobula-control", "rules 7 resources", "- rayclusters"},
				{"Role/mobula-control", "rules 9 resourceNames", "- theirs"},
				{"Pod/mobula-uninstall", "metadata annotations helm.sh/hook", "pre-delete"},
				{"Pod/mobula-uninstall", "spec tolerations", "- operator: Exists"},
				{"Pod/mobula-uninstall", "spec securityContext runAsUser", "7"},
				{"Pod/mobula-uninstall", "spec securityContext runAsNonRoot", "true"},
			},
		},
		{
			name: "kuberay with nothing set", values: "platform: {kuberay: {}}",
			want:   []want{{"Fleet/default", "spec platform", "kuberay: {}"}},
			absent: []string{"Fleet/default spec platform kubernetes", "Pod/mobula-uninstall"},
		},
		{
			name:   "names",
			values: "{nameOverride: x, fullnameOverride: z, commonLabels: {team: a}, commonAnnotations: {b: c}}",
			want: []want{
				{"Deployment/z-router", "metadata labels app.kubernetes.io/name", "x"},
				{"Deployment/z-router", "metadata labels team", "a"},
				{"Deployment/z-router", "spec template metadata labels team", "a"},
				{"Fleet/default", "metadata annotations b", "c"},
			},
		},
	}
}

func routerCases() []valueCase {
	const container = "spec template spec containers 0 "
	return []valueCase{
		{
			name: "router's defaults", values: "{}",
			want: []want{
				{router, "spec strategy", "rollingUpdate:\n  maxSurge: 1\n  maxUnavailable: 0\ntype: RollingUpdate"},
				{router, container + "args", "- router\n- --kubernetes\n- --namespace=llm\n- --fleet=default\n- --control-secret=mobula-router"},
				{router, container + "readinessProbe httpGet path", "/ready"},
				{router, container + "livenessProbe httpGet path", "/health"},
				{router, container + "env 2", "name: GOMEMLIMIT\nvalue: 921MiB"},
				{router, container + "resources", "limits:\n  memory: 1Gi\nrequests:\n  cpu: 500m\n  memory: 256Mi"},
				{router, container + "securityContext", "allowPrivilegeEscalation: false\ncapabilities:\n  drop:\n  - ALL\nreadOnlyRootFilesystem: true"},
				{router, "spec template spec securityContext runAsUser", "65532"},
				{router, "spec template spec terminationGracePeriodSeconds", "320"},
				{router, "spec template spec topologySpreadConstraints 0 topologyKey", "kubernetes.io/hostname"},
				{"Role/mobula-router", "rules 3 resourceNames", "- mobula-router"},
				{"Role/mobula-router", "rules 3 verbs", "- get"},
			},
		},
		{
			name: "no router", values: "{router: {enabled: false}, serviceMonitor: {enabled: true}, networkPolicy: {enabled: true}}",
			absent: []string{router, "Service/mobula-router", "ServiceAccount/mobula-router", "Role/mobula-router", "ServiceMonitor/mobula-router", "NetworkPolicy/mobula-router", "Pod/mobula-test"},
			want:   []want{{control, "", ""}},
		},
		{
			name: "what helm test asks", values: "{router: {testModel: b, pod: {spec: {nodeSelector: {a: b}}}}, models: [{name: a, replicas: 1}, {name: b, replicas: 1}]}",
			want: []want{
				{"Pod/mobula-test", "spec containers 0 args", "- chat\n- --url=http://mobula-router.llm.svc:80\n- --timeout=5m\n- --model=b\n- Say hello."},
				{"Pod/mobula-test", "spec nodeSelector a", "b"},
			},
		},
		{
			name:   "images",
			values: "{image: {repository: r/m, tag: v9, pullPolicy: Always, pullSecrets: [p, q]}, router: {image: {tag: v10}}, control: {image: {digest: 'sha256:abc', pullPolicy: Never}}}",
			want: []want{
				{router, container + "image", "r/m:v10"},
				{router, container + "imagePullPolicy", "Always"},
				{router, "spec template spec imagePullSecrets", "- name: p\n- name: q"},
				{control, container + "image", "r/m@sha256:abc"},
				{control, container + "imagePullPolicy", "Never"},
				{control, container + "args 11", "--image=r/m@sha256:abc"},
			},
		},
		{
			name: "a digest of all, and a tag of one", values: "{image: {digest: 'sha256:abc'}, router: {image: {tag: v10}}}",
			want: []want{{router, container + "image", "mobula-serve/mobula:v10"}, {control, container + "image", "mobula-serve/mobula@sha256:abc"}},
		},
		{
			name: "several routers", values: "{router: {replicas: 3, podDisruptionBudget: {maxUnavailable: 50%}}}",
			want: []want{
				{router, "spec replicas", "3"},
				{"PodDisruptionBudget/mobula-router", "spec maxUnavailable", "50%"},
			},
		},
		{
			name: "a budget as a number", values: `{router: {replicas: 3, podDisruptionBudget: {maxUnavailable: "2"}}, control: {replicas: 2}}`,
			want: []want{{"PodDisruptionBudget/mobula-router", "spec maxUnavailable", "2"}, {"PodDisruptionBudget/mobula-control", "spec maxUnavailable", "1"}},
		},
		{
			name: "no budget", values: "{router: {replicas: 3, podDisruptionBudget: {enabled: false}}}",
			absent: []string{"PodDisruptionBudget/mobula-router"},
		},
		{
			name: "router autoscaling", values: "{router: {autoscaling: {enabled: true, min: 3, max: 9, cpu: 60, metrics: [{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 80}}}], behavior: {scaleDown: {stabilizationWindowSeconds: 9}}}}}",
			want: []want{
				{"HorizontalPodAutoscaler/mobula-router", "spec minReplicas", "3"},
				{"HorizontalPodAutoscaler/mobula-router", "spec maxReplicas", "9"},
				{"HorizontalPodAutoscaler/mobula-router", "spec metrics 0 resource target averageUtilization", "60"},
				{"HorizontalPodAutoscaler/mobula-router", "spec metrics 1 resource name", "memory"},
				{"HorizontalPodAutoscaler/mobula-router", "spec behavior scaleDown stabilizationWindowSeconds", "9"},
				{"PodDisruptionBudget/mobula-router", "", ""},
			},
			absent: []string{router + " spec replicas"},
		},
		{
			name: "a load balancer", values: "{router: {service: {type: LoadBalancer, port: 8080, nodePort: 30080, annotations: {a: b}, loadBalancerClass: nlb, loadBalancerSourceRanges: [10.0.0.0/8], externalTrafficPolicy: Local}}}",
			want: []want{
				{"Service/mobula-router", "metadata annotations a", "b"},
				{"Service/mobula-router", "spec type", "LoadBalancer"},
				{"Service/mobula-router", "spec loadBalancerClass", "nlb"},
				{"Service/mobula-router", "spec loadBalancerSourceRanges", "- 10.0.0.0/8"},
				{"Service/mobula-router", "spec externalTrafficPolicy", "Local"},
				{"Service/mobula-router", "spec ports 0 port", "8080"},
				{"Service/mobula-router", "spec ports 0 nodePort", "30080"},
			},
			notes: []string{"$ADDRESS:8080"},
		},
		{
			name: "an ingress", values: "{router: {ingress: {enabled: true, className: nginx, annotations: {a: b}, hosts: [x.example.com, y.example.com], path: /llm, pathType: Exact, tls: [{secretName: s}, {secretName: u, hosts: [y.example.com]}]}}}",
			want: []want{
				{"Ingress/mobula-router", "spec ingressClassName", "nginx"},
				{"Ingress/mobula-router", "metadata annotations a", "b"},
				{"Ingress/mobula-router", "spec rules 1 host", "y.example.com"},
				{"Ingress/mobula-router", "spec rules 1 http paths 0 path", "/llm"},
				{"Ingress/mobula-router", "spec rules 1 http paths 0 pathType", "Exact"},
				{"Ingress/mobula-router", "spec rules 0 http paths 0 backend service", "name: mobula-router\nport:\n  number: 80"},
				{"Ingress/mobula-router", "spec tls 0 hosts", "- x.example.com\n- y.example.com"},
				{"Ingress/mobula-router", "spec tls 1 hosts", "- y.example.com"},
			},
		},
		{
			name: "an ingress for all hosts", values: "{router: {ingress: {enabled: true}}}",
			want:   []want{{"Ingress/mobula-router", "spec rules 0 http paths 0 path", "/"}},
			absent: []string{"Ingress/mobula-router spec rules 0 host", "Ingress/mobula-router spec rules 1", "Ingress/mobula-router spec tls"},
		},
		{
			name: "a route", values: "{router: {route: {enabled: true, parentRefs: [{name: gw}], hostnames: [x.example.com], annotations: {a: b}, labels: {c: d}, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-team]}}], additionalRules: [{backendRefs: [{name: other, port: 80}]}]}}}",
			want: []want{
				{"HTTPRoute/mobula-router", "spec parentRefs 0 name", "gw"},
				{"HTTPRoute/mobula-router", "spec hostnames 0", "x.example.com"},
				{"HTTPRoute/mobula-router", "metadata annotations a", "b"},
				{"HTTPRoute/mobula-router", "metadata labels c", "d"},
				{"HTTPRoute/mobula-router", "spec rules 0 backendRefs 0 name", "other"},
				{"HTTPRoute/mobula-router", "spec rules 1 matches", "- path:\n    type: PathPrefix\n    value: /"},
				{"HTTPRoute/mobula-router", "spec rules 1 timeouts request", "0s"},
				{"HTTPRoute/mobula-router", "spec rules 1 filters 0 type", "RequestHeaderModifier"},
				{"HTTPRoute/mobula-router", "spec rules 1 backendRefs", "- name: mobula-router\n  port: 80"},
			},
		},
		{
			name: "a route's matches and timeouts", values: "{router: {route: {enabled: true, parentRefs: [{name: gw}], matches: [{path: {type: Exact, value: /v1/models}}], timeouts: {request: 1h}}}}",
			want: []want{
				{"HTTPRoute/mobula-router", "spec rules 0 matches 0 path value", "/v1/models"},
				{"HTTPRoute/mobula-router", "spec rules 0 timeouts", "request: 1h"},
			},
		},
		{
			name: "more of the router's pod", values: `
router:
  strategy: {type: Recreate}
  env: [{name: A, value: b}]
  envFrom: [{secretRef: {name: s}}]
  extraArgs: [--x]
  extraVolumes: [{name: v, emptyDir: {}}]
  extraVolumeMounts: [{name: v, mountPath: /v}]
  extraContainers: [{name: side, image: i}]
  terminationGracePeriodSeconds: 600
  resources: {limits: {memory: 2G}}
  pod:
    metadata: {annotations: {x: z}}
    spec: {nodeSelector: {a: b}, securityContext: {runAsUser: 7}, topologySpreadConstraints: [], automountServiceAccountToken: false}`,
			want: []want{
				{router, "spec strategy", "type: Recreate"},
				{router, container + "env 2", "name: GOMEMLIMIT\nvalue: 1716MiB"},
				{router, container + "env 3", "name: A\nvalue: b"},
				{router, container + "envFrom 0 secretRef name", "s"},
				{router, container + "args 5", "--x"},
				{router, container + "volumeMounts 1 mountPath", "/v"},
				{router, "spec template spec volumes 1 name", "v"},
				{router, "spec template spec containers 1 name", "side"},
				{router, "spec template spec terminationGracePeriodSeconds", "600"},
				{router, "spec template metadata annotations x", "z"},
				{router, "spec template spec nodeSelector a", "b"},
				{router, "spec template spec securityContext runAsUser", "7"},
				{router, "spec template spec securityContext runAsNonRoot", "true"},
				{router, "spec template spec topologySpreadConstraints", "[]"},
				{router, "spec template spec automountServiceAccountToken", "false"},
			},
		},
		{
			name: "a field of the pod taken out, as OpenShift has it", values: "{router: {pod: {spec: {securityContext: {runAsUser: null}}}}}",
			want:   []want{{router, "spec template spec securityContext runAsNonRoot", "true"}},
			absent: []string{router + " spec template spec securityContext runAsUser"},
		},
		{
			name: "no limit of memory", values: "{router: {resources: {limits: null}}}",
			want: []want{{router, container + "env 1 name", "POD_NAMESPACE"}}, absent: []string{router + " " + container + "env 2"},
		},
	}
}
