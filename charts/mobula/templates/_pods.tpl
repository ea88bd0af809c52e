{{/* What the pods of router, control plane and caches share. */}}

{{/* Labels of pods: list ROOT COMPONENT. */}}
{{- define "mobula.podLabels" -}}
{{- merge (include "mobula.selector" . | fromYaml) ((index . 0).Values.commonLabels | default dict) | toYaml -}}
{{- end }}

{{- define "mobula.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "mobula.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Those of pods that run the engines' image: ROOT. */}}
{{- define "mobula.enginePullSecrets" -}}
{{- $pods := (include "mobula.kubernetes" . | fromYaml).pods | default dict -}}
{{- include "mobula.pullSecrets" (concat .Values.image.pullSecrets ($pods.pullSecrets | default list)) -}}
{{- end }}

{{- define "mobula.pullSecrets" -}}
{{- with . }}
imagePullSecrets:
  {{- range uniq . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Spread over hosts, and over zones where there are any; never a reason to wait. */}}
{{- define "mobula.spread" -}}
{{- $selector := include "mobula.selector" . -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $selector | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}

{{/* A pod template with the values' part of one over it: list TEMPLATE(YAML) OVERLAY PATH. */}}
{{- define "mobula.overlay" -}}
{{- $overlay := index . 1 | default dict -}}{{- $path := index . 2 -}}
{{- range $key, $_ := $overlay }}{{ if not (has $key (list "metadata" "spec")) }}{{ fail (printf "%s.%s: it is part of a pod template: metadata or spec" $path $key) }}{{ end }}{{ end -}}
{{- range list "containers" "volumes" }}
{{- if hasKey ($overlay.spec | default dict) . }}{{ fail (printf "%s.spec.%s would take the place of the chart's own: use the values beside %s, such as extraArgs" $path . $path) }}{{ end -}}
{{- end -}}
{{- toYaml (mergeOverwrite (index . 0 | fromYaml) (deepCopy $overlay)) -}}
{{- end }}

{{/* The spec of a hook's pod, placed as a component's pods are: list SPEC(YAML) COMPONENT-VALUES. */}}
{{- define "mobula.placed" -}}
{{- $spec := (index . 1).pod.spec | default dict -}}
{{- $placing := pick $spec "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" "securityContext" -}}
{{- toYaml (mergeOverwrite (index . 0 | fromYaml) (deepCopy $placing)) -}}
{{- end }}

{{/* Nine tenths of a container's memory limit in MiB, for Go's garbage collector; empty without a limit. */}}
{{- define "mobula.goMemory" -}}
{{- with (.limits | default dict).memory -}}
{{- $text := toString . -}}
{{- $units := dict "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- if hasKey $units $unit -}}
{{- $bytes := mulf (trimSuffix $unit $text | float64) (index $units $unit) -}}
{{- if ge $bytes 1048576.0 }}{{ printf "%dMiB" (divf (mulf $bytes 0.9) 1048576.0 | floor | int64) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A duration of the fleet file in whole seconds, rounded up. */}}
{{- define "mobula.seconds" -}}
{{- $sum := 0.0 -}}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 -}}
{{- range regexFindAll "[0-9.]+(ms|s|m|h)" (toString .) -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf (trimSuffix $unit . | float64) (index $units $unit)) -}}
{{- end -}}
{{- $sum | ceil | int -}}
{{- end }}

{{/* Environment that both of ours have. */}}
{{- define "mobula.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- with include "mobula.goMemory" (.resources | default dict) }}
- name: GOMEMLIMIT
  value: {{ . }}
{{- end }}
{{- with .env }}
{{ toYaml . }}
{{- end }}
{{- end }}
