package convert

import "slices"

// stackRows are all values of the chart vllm-stack 0.1.12, those that only its templates know included.
func stackRows() []row {
	return slices.Concat(engineRows(), modelRows(), cacheRows(), scalingRows(), routerRows(), restRows())
}

const (
	podSpec   = "models[].kubernetes.pod.spec."
	container = podSpec + "containers[engine]."
	noPD      = "prefill and decode that run apart; the engine does both"
	noKV      = "routing by what LMCache's controller knows; policy cost goes by the prefixes that the router has sent"
	ownProbe  = "Mobula's own probes of /health hold"
)

func engineRows() []row {
	const at = "servingEngineSpec."
	return []row{
		{at + "enableEngine", on, mapped, "models", "false: no models", "true"},
		{at + "labels", labels, dropped, "", "their router finds engines by them; labels of yours go into kubernetes.pod.metadata.labels", `{"environment":"test","release":"test"}`},
		{at + "extraPorts", list, dropped, "", "engines have one port; a Service of your own can be in extraObjects", ""},
		{at + "vllmApiKey", secretly, mapped, container + "env, router.env, control.env", "as VLLM_API_KEY, from a Secret; text has to be put into one", ""},
		{at + "containerPort", whole, changed, "", "engines listen on port 8000 of their pods", "8000"},
		{at + "servicePort", whole, changed, "", "models have no Service of their own: clients use the router's", "80"},
		{at + "configs", labels, mapped, "models[].engine.env", "what looks like a secret has to be put into a Secret", ""},
		{at + "env", list, mapped, "models[].engine.env", "as modelSpec[].env", ""},
		{at + "strategy", mapping, mapped, "models[].rollout", "numbers of maxSurge and maxUnavailable; Recreate is surge 0 and unavailable 1, one engine after the other", ""},
		{at + "startupProbe", mapping, mapped, "models[].engine.startTimeout", "the time that it gives, where that is more than the 30m that Mobula gives; else " + ownProbe, ""},
		{at + "livenessProbe", mapping, changed, "", ownProbe, `{"initialDelaySeconds":15,"failureThreshold":3,"periodSeconds":10,"httpGet":{"path":"/health","port":8000}}`},
		{at + "readinessProbe", mapping, changed, "", ownProbe, `{"initialDelaySeconds":15,"failureThreshold":3,"periodSeconds":5,"httpGet":{"path":"/health","port":8000}}`},
		{at + "tolerations", list, mapped, podSpec + "tolerations", "", ""},
		{at + "runtimeClassName", text, mapped, "models[].kubernetes.runtimeClass", "nvidia when it is not set, as their chart has it", ""},
		{at + "schedulerName", text, mapped, podSpec + "schedulerName", "", ""},
		{at + "imagePullPolicy", text, mapped, "models[].kubernetes.pullPolicy", "IfNotPresent when it is not set; their chart's default is Always", ""},
		{at + "securityContext", mapping, mapped, podSpec + "securityContext", "", ""},
		{at + "containerSecurityContext", mapping, mapped, container + "securityContext", "", ""},
		{at + "sidecar.image", text, changed, "", "there is no sidecar: engines get LoRAs of the Hugging Face hub by themselves", `"lmcache/lmstack-sidecar:latest"`},
		{at + "sidecar.imagePullPolicy", text, changed, "", "there is no sidecar", `"Always"`},
		{at + "serviceMonitor.enabled", off, mapped, "podMonitor.enabled", "", ""},
		{at + "serviceMonitor.additionalLabels", labels, mapped, "podMonitor.labels", "", ""},
		{at + "serviceMonitor.interval", text, mapped, "podMonitor.interval", "", ""},
		{at + "serviceMonitor.scrapeTimeout", text, mapped, "podMonitor.scrapeTimeout", "", ""},
		{at + "serviceMonitor.honorLabels", flagged, mapped, "podMonitor.honorLabels", "", ""},
		{at + "serviceMonitor.metricRelabelings", list, mapped, "podMonitor.metricRelabelings", "", ""},
		{at + "serviceMonitor.relabelings", list, mapped, "podMonitor.relabelings", "", ""},
	}
}

func modelRows() []row {
	const at, pods = "servingEngineSpec.modelSpec[].", "models[].kubernetes."
	return []row{
		{at + "name", text, mapped, "", "there it names objects; models[].name is what clients ask for: --served-model-name of extraArgs, or modelURL", ""},
		{at + "enabled", on, mapped, "", "false: left out", "true"},
		{at + "annotations", labels, dropped, "", "of their Deployment; Mobula makes the engines' workloads", ""},
		{at + "labels", labels, dropped, "", "of their Deployment; Mobula makes the engines' workloads", ""},
		{at + "podAnnotations", labels, mapped, pods + "pod.metadata.annotations", "", ""},
		{at + "podLabels", labels, mapped, pods + "pod.metadata.labels", "", ""},
		{at + "serviceAnnotations", labels, dropped, "", "models have no Service of their own: clients use the router's", ""},
		{at + "serviceAccountName", text, mapped, pods + "serviceAccount", "", ""},
		{at + "priorityClassName", text, mapped, pods + "priorityClass", "", ""},
		{at + "runtimeClassName", text, mapped, pods + "runtimeClass", "", ""},
		{at + "repository", text, mapped, pods + "image", "for lmcache/vllm-openai engine.command is /opt/venv/bin/vllm, as in their chart", ""},
		{at + "tag", text, mapped, pods + "image", "", ""},
		{at + "imagePullPolicy", text, dropped, "", "their chart passes over it: it is servingEngineSpec.imagePullPolicy there", ""},
		{at + "imagePullSecret", text, mapped, pods + "pullSecrets", "", ""},
		{at + "modelURL", text, mapped, "models[].name, models[].source", "", ""},
		{at + "modelRevision", text, mapped, "models[].engine.args", "--revision", ""},
		{at + "chatTemplate", text, mapped, "models[].engine.args", "--chat-template, from the volume that their chart has at /templates", ""},
		{at + "chatTemplateConfigMap", text, mapped, "extraObjects", "a ConfigMap, which is mounted at /templates", ""},
		{at + "enableTool", flagged, mapped, "models[].engine.args", "--enable-auto-tool-choice", ""},
		{at + "toolCallParser", text, mapped, "models[].engine.args", "--tool-call-parser", ""},
		{at + "enableLoRA", flagged, mapped, "models[].engine.args", "--enable-lora; it comes with models[].loras too", ""},
		{at + "replicaCount", whole, mapped, "models[].replicas", "with raySpec: resources.hosts", ""},
		{at + "resources", mapping, mapped, "models[].resources.gpus, " + pods + "cpu, cpuLimit, memory, memoryLimit, gpuResource", "others: " + container + "resources", ""},
		{at + "requestCPU", number, mapped, pods + "cpu", "", ""},
		{at + "requestMemory", text, mapped, pods + "memory", "", ""},
		{at + "requestGPU", number, mapped, "models[].resources.gpus", "", ""},
		{at + "requestGPUType", text, mapped, pods + "gpuResource", "", ""},
		{at + "requestGPUMem", text, mapped, container + "resources", "nvidia.com/gpumem, for HAMi", ""},
		{at + "requestGPUMemPercentage", text, mapped, container + "resources", "nvidia.com/gpumem-percentage, for HAMi", ""},
		{at + "requestGPUCores", text, mapped, container + "resources", "nvidia.com/gpucores, for HAMi", ""},
		{at + "limitCPU", text, mapped, pods + "cpuLimit", "", ""},
		{at + "limitMemory", text, mapped, pods + "memoryLimit", "", ""},
		{at + "limitGPUMem", text, mapped, container + "resources", "nvidia.com/gpumem, for HAMi", ""},
		{at + "limitGPUMemPercentage", text, mapped, container + "resources", "nvidia.com/gpumem-percentage, for HAMi", ""},
		{at + "limitGPUCores", text, mapped, container + "resources", "nvidia.com/gpucores, for HAMi", ""},
		{at + "pvcStorage", either, mapped, pods + "data.size", "a claim of the model's own, which is empty at first; emptyDir is what an engine has without data", ""},
		{at + "pvcAccessMode", texts, mapped, pods + "data.accessMode", "one of them, ReadWriteMany if it is there", ""},
		{at + "storageClass", text, mapped, pods + "data.storageClass", "", ""},
		{at + "pvcMatchLabels", labels, mapped, pods + "data.claim", "a claim with a selector is made by hand", ""},
		{at + "pvcLabels", labels, dropped, "", "label the claim by hand", ""},
		{at + "pvcAnnotations", labels, dropped, "", "annotate the claim by hand", ""},
		{at + "pvcExistingClaimName", text, mapped, pods + "data.claim", "with HF_HOME=/data, where their engines have the weights", ""},
		{at + "extraVolumes", list, mapped, podSpec + "volumes", "", ""},
		{at + "extraVolumeMounts", list, mapped, container + "volumeMounts", "", ""},
		{at + "shmSize", text, mapped, pods + "sharedMemory", "8GiB when it is not set", ""},
		{at + "initContainer", mapping, mapped, podSpec + "initContainers", "one that waits for their cache server is left out", ""},
		{at + "hf_token", secretly, mapped, pods + "huggingFaceToken", "text has to be put into a Secret", ""},
		{at + "envFromSecret", labels, mapped, container + "envFrom", "", ""},
		{at + "env", list, mapped, "models[].engine.env", "with valueFrom or $(…): " + container + "env; what looks like a secret has to be put into a Secret", ""},
		{at + "affinity", mapping, mapped, podSpec + "affinity", "", ""},
		{at + "nodeSelectorTerms", list, mapped, podSpec + "affinity.nodeAffinity", "", ""},
		{at + "nodeName", text, mapped, podSpec + "nodeName", "", ""},
		{at + "tolerations", list, mapped, podSpec + "tolerations", "", ""},
		{at + "tolerationsPolicy", text, mapped, podSpec + "tolerations", "append or override", ""},
		{at + "vllmConfig.v0", text, mapped, "", "1 is dropped: vLLM has no V0 any more", ""},
		{at + "vllmConfig.v1", text, mapped, "", "0 is dropped: vLLM has no V0 any more", ""},
		{at + "vllmConfig.enablePrefixCaching", flagged, mapped, "models[].engine.args", "false: --no-enable-prefix-caching; when it is not set there it is off, here vLLM's default, on, holds", ""},
		{at + "vllmConfig.enableChunkedPrefill", flagged, mapped, "models[].engine.args", "--enable-chunked-prefill or --no-enable-chunked-prefill", ""},
		{at + "vllmConfig.maxModelLen", whole, mapped, "models[].engine.args", "--max-model-len", ""},
		{at + "vllmConfig.dtype", text, mapped, "models[].engine.args", "--dtype", ""},
		{at + "vllmConfig.tensorParallelSize", whole, mapped, "models[].engine.args", "--tensor-parallel-size", ""},
		{at + "vllmConfig.pipelineParallelSize", whole, mapped, "models[].engine.args", "--pipeline-parallel-size, with raySpec only, as there", ""},
		{at + "vllmConfig.maxNumSeqs", whole, mapped, "models[].engine.args", "--max-num-seqs", ""},
		{at + "vllmConfig.maxLoras", whole, mapped, "models[].engine.args", "--max-loras", ""},
		{at + "vllmConfig.gpuMemoryUtilization", number, mapped, "models[].engine.args", "--gpu-memory-utilization", ""},
		{at + "vllmConfig.runner", text, mapped, "models[].engine.args", "--runner", ""},
		{at + "vllmConfig.convert", text, mapped, "models[].engine.args", "--convert", ""},
		{at + "vllmConfig.extraArgs", texts, mapped, "models[].engine.args", "but for --served-model-name (name, aliases), keys (Secrets), and where the engine listens", ""},
		{at + "vllmConfig.prometheusMultiprocDir", text, mapped, "models[].engine.env", "PROMETHEUS_MULTIPROC_DIR", ""},
	}
}

func cacheRows() []row {
	const at, env = "servingEngineSpec.modelSpec[].lmcacheConfig.", "models[].engine.env"
	return []row{
		{at + "enabled", off, mapped, "models[].engine.args", "--kv-transfer-config with LMCacheConnectorV1", ""},
		{at + "cpuOffloadingBufferSize", number, mapped, env, "LMCACHE_MAX_LOCAL_CPU_SIZE, in GB", ""},
		{at + "diskOffloadingBufferSize", number, mapped, env, "LMCACHE_MAX_LOCAL_DISK_SIZE, in GB", ""},
		{at + "logLevel", text, mapped, env, "LMCACHE_LOG_LEVEL", ""},
		{at + "cudaVisibleDevices", text, mapped, env, "CUDA_VISIBLE_DEVICES, unless it was for enablePD", ""},
		{at + "kvRole", text, later, "", noPD, `"kv_both"`},
		{at + "enablePD", flagged, later, "", noPD, ""},
		{at + "enableNixl", flagged, later, "", noPD, ""},
		{at + "nixlRole", text, later, "", noPD, ""},
		{at + "nixlPeerHost", text, later, "", noPD, ""},
		{at + "nixlPeerPort", text, later, "", noPD, ""},
		{at + "nixlBufferSize", text, later, "", noPD, ""},
		{at + "nixlBufferDevice", text, later, "", noPD, ""},
		{at + "nixlEnableGc", flagged, later, "", noPD, ""},
		{at + "enableController", flagged, later, "", noKV, ""},
		{at + "instanceId", text, later, "", noKV, ""},
		{at + "controllerPort", text, later, "", noKV, ""},
		{at + "controllerReplyPort", text, later, "", noKV, ""},
		{at + "workerPort", text, later, "", noKV, ""},
		{at + "workerPorts", text, later, "", noKV, ""},
		{at + "workerHeartbeatTime", text, later, "", noKV, ""},
		{at + "p2pHost", text, later, "", "KV blocks from engine to engine; cacheServer or redis is a pool for all", ""},
		{at + "p2pInitPorts", text, later, "", "KV blocks from engine to engine; cacheServer or redis is a pool for all", ""},
	}
}

func scalingRows() []row {
	const keda, pdb, ray = "servingEngineSpec.modelSpec[].keda.", "servingEngineSpec.modelSpec[].pdb.", "servingEngineSpec.modelSpec[].raySpec."
	return []row{
		{keda + "enabled", off, mapped, "models[].replicas", `without triggers: a range such as "0-4", which Mobula's own autoscaler follows; with triggers: keda.enabled`, ""},
		{keda + "minReplicaCount", whole, mapped, "models[].replicas, keda.models[].min", "", ""},
		{keda + "maxReplicaCount", whole, mapped, "models[].replicas, keda.models[].max", "", ""},
		{keda + "pollingInterval", whole, mapped, "keda.models[].pollingInterval", "", ""},
		{keda + "cooldownPeriod", whole, mapped, "models[].scaling.zeroAfter, keda.models[].cooldownPeriod", "", ""},
		{keda + "idleReplicaCount", whole, mapped, "models[].replicas, keda.models[].min", "0 is the least number of replicas then", ""},
		{keda + "initialCooldownPeriod", whole, dropped, "", "a model that has just started is not taken to zero before zeroAfter or cooldownPeriod either", ""},
		{keda + "fallback", mapping, mapped, "keda.models[].fallback", "with triggers; Mobula's own autoscaler needs no metrics of others", ""},
		{keda + "triggers", some, mapped, "keda.models[].triggers", "a list; queries have to ask for what Mobula's pods are called", ""},
		{keda + "advanced", mapping, mapped, "keda.models[].advanced", "with triggers", ""},
		{pdb + "enabled", off, mapped, "", "every model has a PodDisruptionBudget", ""},
		{pdb + "labels", labels, dropped, "", "Mobula makes the PodDisruptionBudget", ""},
		{pdb + "annotations", labels, dropped, "", "Mobula makes the PodDisruptionBudget", ""},
		{pdb + "minAvailable", text, mapped, "models[].kubernetes.maxUnavailable", "what is left of replicaCount", ""},
		{pdb + "maxUnavailable", text, mapped, "models[].kubernetes.maxUnavailable", "", ""},
		{ray + "enabled", off, mapped, "platform.kuberay, models[].resources.hosts", "one engine over replicaCount workers and the head", ""},
		{ray + "headNode.requestCPU", number, mapped, "", "the head is made as the workers are", ""},
		{ray + "headNode.requestMemory", text, mapped, "", "the head is made as the workers are", ""},
		{ray + "headNode.requestGPU", number, mapped, "models[].resources.gpus", "0: platform.kuberay.headWithoutGPUs", ""},
		{ray + "headNode.requestGPUType", text, mapped, "", "the head is made as the workers are", ""},
		{ray + "headNode.limitCPU", text, mapped, "", "the head is made as the workers are", ""},
		{ray + "headNode.limitMemory", text, mapped, "", "the head is made as the workers are", ""},
		{ray + "headNode.resources", mapping, mapped, "models[].resources.gpus", "its GPUs; else the head is made as the workers are", ""},
		{ray + "headNode.initContainer", mapping, mapped, podSpec + "initContainers", "where modelSpec[].initContainer is not set", ""},
	}
}
