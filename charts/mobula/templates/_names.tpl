{{/* Names, labels and images. */}}

{{- define "mobula.chart" -}}{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{/* What all names begin with: short enough for what is appended. */}}
{{- define "mobula.fullname" -}}
{{- $chart := include "mobula.chart" . -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $chart .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $chart | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "mobula.fleet" -}}{{ .Values.fleet.name | default "default" }}{{- end }}

{{/* Labels by which pods are selected. Call with list ROOT COMPONENT. */}}
{{- define "mobula.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "mobula.chart" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "mobula.labels" -}}
{{- $root := index . 0 -}}
{{ include "mobula.selector" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: mobula
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
mobula.dev/fleet: {{ include "mobula.fleet" $root | quote }}
{{- end }}

{{/* metadata of an object: list ROOT COMPONENT NAME [LABELS [ANNOTATIONS]]. */}}
{{- define "mobula.metadata" -}}
{{- $root := index . 0 -}}
{{- $labels := include "mobula.labels" (list $root (index . 1)) | fromYaml -}}
{{- $annotations := deepCopy ($root.Values.commonAnnotations | default dict) -}}
{{- if gt (len .) 3 }}{{ $labels = mergeOverwrite $labels (index . 3 | default dict) }}{{ end -}}
{{- if gt (len .) 4 }}{{ $annotations = mergeOverwrite $annotations (index . 4 | default dict) }}{{ end -}}
name: {{ index . 2 | quote }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- toYaml (merge $labels ($root.Values.commonLabels | default dict)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "mobula.account" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}
{{- $accounts := $root.Values.serviceAccount -}}
{{- index $accounts (printf "%sName" $component) | default (printf "%s-%s" (include "mobula.fullname" $root) $component) -}}
{{- end }}

{{/* The reference of an image: dict root image (repository, tag, digest). */}}
{{- define "mobula.reference" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end }}

{{/* The image of a component of ours as YAML, image with the component's over it. */}}
{{- define "mobula.ownImage" -}}
{{- $root := index . 0 -}}
{{- $over := dict -}}
{{- range $key, $value := index . 1 | default dict }}{{ if $value }}{{ $_ := set $over $key $value }}{{ end }}{{ end -}}
{{- $image := deepCopy $root.Values.image -}}
{{- if $over.tag }}{{ $_ := set $image "digest" "" }}{{ end -}}
{{- $image = mergeOverwrite $image $over -}}
{{- if not $image.tag }}{{ $_ := set $image "tag" $root.Chart.AppVersion }}{{ end -}}
{{- toYaml $image -}}
{{- end }}

{{/* Names of what the control plane keeps: made empty by the chart, so that its rights are by name. */}}
{{- define "mobula.controlSecret" -}}{{ include "mobula.fullname" . }}-control{{- end }}
{{- define "mobula.routerSecret" -}}{{ include "mobula.fullname" . }}-router{{- end }}
{{- define "mobula.stateSecret" -}}{{ include "mobula.fullname" . }}-state{{- end }}
{{- define "mobula.lease" -}}{{ include "mobula.fullname" . }}-control{{- end }}

{{/* Address of the control plane within the cluster. */}}
{{- define "mobula.controlAddress" -}}
{{ include "mobula.fullname" . }}-control.{{ .Release.Namespace }}.svc:{{ .Values.control.service.port | int }}
{{- end }}
