package main

// Patterns of text that the fleet's own check knows more about; all allow nothing, which is as if the field was left out.
const (
	quantityPattern  = `^(([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?)?$`
	sharePattern     = `^([0-9]+%?)?$`
	portPattern      = `^[a-z0-9-]*$`
	namePattern      = `^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$`
	keyPattern       = `^[A-Za-z0-9._-]*$`
	namespacePattern = `^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$`
	folderPattern    = `^(/.*)?$`
	resourcePattern  = `^([a-z0-9.-]+/[A-Za-z0-9._-]+)?$`
	variablePattern  = `^([A-Za-z_][A-Za-z0-9_]*)?$`
)

// patterns gives those of fields by struct and name. They are in schemas only: what they refuse, mobula.Load refuses too, or the API server for values of the chart alone.
func patterns() map[string]string {
	return map[string]string{
		"Fleet.name": namespacePattern, "FleetValues.name": namespacePattern,
		"Values.nameOverride": namespacePattern, "Values.fullnameOverride": namespacePattern, "Kubernetes.namespace": namespacePattern,
		"Provider.name": namespacePattern, "Provider.apiKeyEnv": variablePattern, "StaticEndpoint.apiKeyEnv": variablePattern,
		"Ray.tokenEnv": variablePattern, "KubernetesDiscover.apiKeyEnv": variablePattern, "KubernetesDiscover.port": portPattern,
		"KubernetesPods.cpu": quantityPattern, "KubernetesPods.cpuLimit": quantityPattern,
		"KubernetesPods.memory": quantityPattern, "KubernetesPods.memoryLimit": quantityPattern,
		"KubernetesPods.gpuResource": resourcePattern, "KubernetesPods.runtimeClass": namePattern,
		"KubernetesPods.priorityClass": namePattern, "KubernetesPods.serviceAccount": namePattern,
		"KubernetesPods.maxUnavailable": sharePattern, "BudgetValues.maxUnavailable": sharePattern,
		"KubernetesData.claim": namePattern, "KubernetesData.storageClass": namePattern, "KubernetesData.hostPath": folderPattern,
		"KubeRayShared.cluster": namePattern, "KubeRayShared.service": namePattern,
		"SecretKey.name": namePattern, "SecretKey.key": keyPattern, "SecretRef.name": namePattern, "SecretRef.key": keyPattern,
		"ModelSpec.fleet": namespacePattern, "LoRASpec.model": namePattern,
	}
}
