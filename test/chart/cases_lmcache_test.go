package chart_test

// lmcacheCases are those of LMCache's multiprocess mode.
func lmcacheCases() []valueCase {
	const (
		set       = "DaemonSet/mobula-lmcache"
		pod       = "spec template spec "
		container = pod + "containers 0 "
		uses      = `engine: {args: [--max-model-len, "8192", --kv-transfer-config, '{"kv_connector":"LMCacheMPConnector","kv_role":"kv_both"}']}`
		tied      = `{"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.heartbeat_interval":2,"lmcache.mp.host":"tcp://mobula-lmcache.llm.svc","lmcache.mp.mq_timeout":5,"lmcache.mp.port":5555},"kv_role":"kv_both"}`
		image     = "lmcache: {enabled: true, image: {repository: lm, tag: v1}}\n"
		shm       = "hostPath:\n  path: /dev/shm\n  type: Directory\nname: "
	)
	return []valueCase{
		{
			name: "LMCache on each node", values: image + "models: [{name: a, replicas: 1, " + uses + "}, {name: b, replicas: 1}]",
			want: []want{
				{set, container + "image", "lm:v1"},
				{set, container + "args", "- --host\n- 0.0.0.0\n- --port\n- \"5555\"\n- --http-host\n- 0.0.0.0\n- --http-port\n- \"8080\"\n" +
					"- --l1-size-gb\n- \"20\"\n- --eviction-policy\n- LRU\n- --chunk-size\n- \"256\""},
				{set, container + "env 0", "name: LMCACHE_TRACK_USAGE\nvalue: \"false\""},
				{set, container + "resources", "limits:\n  memory: 38Gi\nrequests:\n  cpu: \"2\"\n  memory: 25Gi"},
				{set, container + "securityContext", "allowPrivilegeEscalation: false\ncapabilities:\n  drop:\n  - ALL"},
				{set, container + "readinessProbe httpGet", "path: /healthcheck\nport: http"},
				{set, pod + "volumes 0", shm + "shm"},
				{set, pod + "tolerations 0 key", "nvidia.com/gpu"},
				{"Service/mobula-lmcache", "spec internalTrafficPolicy", "Local"},
				{"Service/mobula-lmcache", "spec ports 0 port", "5555"},
				{"Model/a", "spec engine args 3", tied},
				{"Model/a", "spec engine env", "LMCACHE_TRACK_USAGE: \"false\"\nPYTHONHASHSEED: \"0\""},
				{"Model/a", "spec kubernetes pod spec containers", "- name: engine\n  volumeMounts:\n  - mountPath: /dev/shm\n    name: node-shm"},
				{"Model/a", "spec kubernetes pod spec volumes 0", shm + "node-shm"},
			},
			absent: []string{"Model/b spec engine", "Model/b spec kubernetes", set + " " + pod + "hostIPC", set + " " + pod + "nodeSelector", set + " " + pod + "runtimeClassName", "Model/a spec kubernetes pod spec hostIPC"},
			notes:  []string{"can run code in them", "lmcache.nodeSelector is empty", "pod-security.kubernetes.io/enforce=privileged"},
		},
		{
			name: "LMCache's settings", values: "models: [{name: a, replicas: 1, " + uses + `}]
image: {pullSecrets: [s]}
lmcache:
  enabled: true
  image: {repository: lm, digest: "sha256:abc", pullPolicy: Always}
  port: 6555
  httpPort: 6556
  l1SizeGB: 7
  chunkSize: 512
  l2Adapters: [{type: fs, base_path: /kv}, {type: mock}]
  coordinatorURL: http://c:9300
  hostIPC: true
  privileged: true
  runtimeClass: nvidia
  nodeSelector: {gpu: "true"}
  tolerations: [{key: x, operator: Exists}]
  resources: {limits: {memory: 9Gi}}
  extraArgs: [--max-workers, "4"]
  env: [{name: A, value: b}]
  extraVolumes: [{name: kv, hostPath: {path: /mnt/kv}}]
  extraVolumeMounts: [{name: kv, mountPath: /kv}]
  pod: {spec: {priorityClassName: p}}`,
			want: []want{
				{set, container + "image", "lm@sha256:abc"},
				{set, container + "imagePullPolicy", "Always"},
				{set, pod + "imagePullSecrets", "- name: s"},
				{set, container + "args 3", "6555"},
				{set, container + "args 7", "6556"},
				{set, container + "args 9", "7"},
				{set, container + "args 13", "512"},
				{set, container + "args 15", "retain"},
				{set, container + "args 17", `{"base_path":"/kv","type":"fs"}`},
				{set, container + "args 19", `{"type":"mock"}`},
				{set, container + "args 21", "http://c:9300"},
				{set, container + "args 23", "$(POD_IP)"},
				{set, container + "args 25", "4"},
				{set, container + "ports", "- containerPort: 6555\n  name: zmq\n  protocol: TCP\n- containerPort: 6556\n  name: http\n  protocol: TCP"},
				{set, container + "env 5 name", "A"},
				{set, container + "resources", "limits:\n  memory: 9Gi"},
				{set, container + "securityContext", "privileged: true"},
				{set, container + "volumeMounts 1 name", "kv"},
				{set, pod + "securityContext seccompProfile type", "Unconfined"},
				{set, pod + "volumes 1 name", "kv"},
				{set, pod + "hostIPC", "true"},
				{set, pod + "runtimeClassName", "nvidia"},
				{set, pod + "nodeSelector gpu", "true"},
				{set, pod + "tolerations", "- key: x\n  operator: Exists"},
				{set, pod + "priorityClassName", "p"},
				{"Service/mobula-lmcache", "spec ports 0 port", "6555"},
				{"Model/a", "spec kubernetes pod spec hostIPC", "true"},
			},
		},
		{
			name: "LMCache as the engines have it", values: "lmcache: {enabled: true}\nplatform: {kubernetes: {pods: {image: 'lmcache/vllm-openai:v1', runtimeClass: nvidia, pullSecrets: [e]}}}",
			want:  []want{{set, container + "image", "lmcache/vllm-openai:v1"}, {set, pod + "runtimeClassName", "nvidia"}, {set, pod + "imagePullSecrets", "- name: e"}},
			notes: []string{"No engine uses LMCache's servers"},
		},
		{
			name: "LMCache over Redis", values: image + "redis: {enabled: true, password: {name: s, key: k}}\nnetworkPolicy: {enabled: true, metricsFrom: [{podSelector: {matchLabels: {m: o}}}]}\npodMonitor: {enabled: true, labels: {release: kps}}\nmodels: [{name: a, replicas: 1, " + uses + "}]",
			want: []want{
				{set, container + "args 17", `{"host":"mobula-redis.llm.svc","port":6379,"shared":true,"type":"resp"}`},
				{set, container + "env 5", "name: LMCACHE_RESP_PASSWORD\nvalueFrom:\n  secretKeyRef:\n    key: k\n    name: s"},
				{"NetworkPolicy/mobula-redis", "spec ingress 0 from 1 podSelector matchLabels app.kubernetes.io/component", "lmcache"},
				{"NetworkPolicy/mobula-lmcache", "spec ingress 0 ports", "- port: zmq\n  protocol: TCP"},
				{"NetworkPolicy/mobula-lmcache", "spec ingress 0 from 0 podSelector matchLabels app.kubernetes.io/name", "mobula-engine"},
				{"NetworkPolicy/mobula-lmcache", "spec ingress 1 ports", "- port: http\n  protocol: TCP"},
				{"NetworkPolicy/mobula-lmcache", "spec ingress 1 from 0 podSelector matchLabels m", "o"},
				{"PodMonitor/mobula-lmcache", "spec podMetricsEndpoints 0 port", "http"},
				{"PodMonitor/mobula-lmcache", "metadata labels release", "kps"},
			},
			absent: []string{"NetworkPolicy/mobula-lmcache spec ingress 2", "Model/a spec engine env LMCACHE_REMOTE_URL"},
		},
		{
			name: "a server of the engine's own stays", values: image + `models: [{name: a, replicas: 1, engine: {args: ['--kv-transfer-config={"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.host":"tcp://localhost"}}']}}]`,
			want:   []want{{"Model/a", "spec engine args 0", `--kv-transfer-config={"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.host":"tcp://localhost"}}`}},
			absent: []string{"Model/a spec kubernetes", "Model/a spec engine env"},
		},
		{
			name: "LMCache among several connectors", values: image + `models: [{name: a, replicas: 1, engine: {args: ['--kv-transfer-config={"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":[{"kv_connector":"NixlConnector"},{"kv_connector":"LMCacheMPConnector"}]}}']}}]`,
			want: []want{{"Model/a", "spec engine args 0", `--kv-transfer-config={"kv_connector":"MultiConnector","kv_connector_extra_config":{"connectors":[{"kv_connector":"NixlConnector"},` +
				`{"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.heartbeat_interval":2,"lmcache.mp.host":"tcp://mobula-lmcache.llm.svc","lmcache.mp.mq_timeout":5,"lmcache.mp.port":5555}}]}}`}},
		},
		{
			name: "an engine's own patience", values: image + `models: [{name: a, replicas: 1, engine: {args: ['--kv-transfer-config={"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":{"lmcache.mp.mq_timeout":60}}']}}]`,
			want: []want{{"Model/a", "spec engine args 0", `--kv-transfer-config={"kv_connector":"LMCacheMPConnector","kv_connector_extra_config":` +
				`{"lmcache.mp.heartbeat_interval":2,"lmcache.mp.host":"tcp://mobula-lmcache.llm.svc","lmcache.mp.mq_timeout":60,"lmcache.mp.port":5555}}`}},
		},
		{
			name: "arguments that are no configuration", values: image + `models: [{name: a, replicas: 1, engine: {args: ["--kv-transfer-config={LMCacheMPConnector", "--kv-transfer-config.kv_connector=LMCacheMPConnector"]}}]`,
			want: []want{{"Model/a", "spec engine args", "- --kv-transfer-config={LMCacheMPConnector\n- --kv-transfer-config.kv_connector=LMCacheMPConnector"}},
		},
		{
			name: "LMCache beside a pod's own parts", values: image + "platform: {kubernetes: {pods: {pod: {spec: {volumes: [{name: x, emptyDir: {}}], containers: [{name: side, image: s}, {name: engine, env: [{name: A, value: b}]}]}}}}}\nmodels: [{name: a, replicas: 1, " + uses + "}, {name: b, replicas: 1, " +
				uses + ", kubernetes: {pod: {spec: {containers: [{name: engine, volumeMounts: [{name: mine, mountPath: /dev/shm/}]}], volumes: [{name: mine, emptyDir: {}}]}}}}]",
			want: []want{
				{"Model/a", "spec kubernetes pod spec volumes 0 name", "x"},
				{"Model/a", "spec kubernetes pod spec volumes 1 name", "node-shm"},
				{"Model/a", "spec kubernetes pod spec containers 0 name", "side"},
				{"Model/a", "spec kubernetes pod spec containers 1 env 0 name", "A"},
				{"Model/a", "spec kubernetes pod spec containers 1 volumeMounts 0 name", "node-shm"},
				{"Model/b", "spec kubernetes pod spec containers", "- name: engine\n  volumeMounts:\n  - mountPath: /dev/shm/\n    name: mine"},
				{"Model/b", "spec kubernetes pod spec volumes", "- emptyDir: {}\n  name: mine"},
			},
		},
		{
			name: "labels of caches' pods", values: image + "commonLabels: {team: a}\nredis: {enabled: true}\ncacheServer: {enabled: true, image: {repository: lm, tag: v1}}",
			want: []want{
				{set, "spec template metadata labels team", "a"},
				{"StatefulSet/mobula-redis", "spec template metadata labels team", "a"},
				{"Deployment/mobula-cache-server", "spec template metadata labels team", "a"},
			},
		},
	}
}
