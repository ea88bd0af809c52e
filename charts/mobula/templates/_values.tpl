{{/*
Keys that have a default in values.yaml. Helm takes a key without a value for the wish to have none, and templates would fail on it with
no word of where. Each line is a mapping and its keys.
*/}}
{{- define "mobula.keys" -}}
.: models platform fleet image nameOverride fullnameOverride commonLabels commonAnnotations router control serviceAccount rbac networkPolicy serviceMonitor podMonitor dashboards alerts cacheServer lmcache redis keda prometheusAdapter extraObjects kube-prometheus-stack prometheus-adapter
image: repository tag digest pullPolicy pullSecrets
router: enabled replicas image resources service autoscaling podDisruptionBudget ingress route strategy env envFrom extraArgs extraVolumes extraVolumeMounts extraContainers pod
router.service: type port nodePort annotations loadBalancerSourceRanges loadBalancerClass externalTrafficPolicy
router.autoscaling: enabled min max cpu metrics behavior
router.podDisruptionBudget: enabled maxUnavailable
router.ingress: enabled className annotations hosts path pathType tls
router.route: enabled parentRefs hostnames matches filters timeouts additionalRules annotations labels
control: enabled replicas image resources service podDisruptionBudget env envFrom extraArgs extraVolumes extraVolumeMounts pod
control.service: port annotations
control.podDisruptionBudget: enabled maxUnavailable
serviceAccount: create routerName controlName annotations
rbac: create discoverNamespaces nodes
networkPolicy: enabled routerFrom controlFrom metricsFrom
serviceMonitor: enabled labels interval scrapeTimeout honorLabels relabelings metricRelabelings
podMonitor: enabled labels interval scrapeTimeout honorLabels relabelings metricRelabelings
dashboards: enabled labels annotations namespace
alerts: enabled kind labels alertLabels disabled
cacheServer: enabled image replicas port resources extraArgs env extraVolumes extraVolumeMounts pod
lmcache: enabled image port httpPort l1SizeGB chunkSize l2Adapters coordinatorURL hostIPC privileged runtimeClass nodeSelector tolerations resources extraArgs env extraVolumes extraVolumeMounts pod
redis: enabled image maxMemory password storage storageClass resources pod
keda: enabled prometheusAddress models
prometheusAdapter: enabled rules
{{- end }}

{{- define "mobula.checks.there" -}}
{{- $values := .Values -}}
{{- range splitList "\n" (include "mobula.keys" .) -}}
{{- $path := splitList ": " . | first -}}
{{- $node := $values -}}
{{- range splitList "." $path }}{{ if . }}{{ $node = index $node . }}{{ end }}{{ end -}}
{{- range splitList " " (splitList ": " . | last) -}}
{{- if kindIs "invalid" (index $node .) }}{{ fail (printf "%s: it has no value: give it one, or leave the key out for its default" (trimPrefix "." (printf "%s.%s" (trimSuffix "." $path) .))) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}
