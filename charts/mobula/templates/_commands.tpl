{{/* What the binary is called with. Only this file knows its flags. */}}

{{- define "mobula.routerArgs" -}}
- router
- --kubernetes
- --namespace={{ .Release.Namespace }}
- --fleet={{ include "mobula.fleet" . }}
{{- if .Values.control.enabled }}
- --control-secret={{ include "mobula.routerSecret" . }}
{{- end }}
{{- with .Values.router.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "mobula.controlArgs" -}}
- control
- --kubernetes
- --namespace={{ .Release.Namespace }}
- --fleet={{ include "mobula.fleet" . }}
- --listen=:8100
- --health-listen=:8101
- --address={{ include "mobula.controlAddress" . }}
- --control-secret={{ include "mobula.controlSecret" . }}
- --router-secret={{ include "mobula.routerSecret" . }}
- --state-secret={{ include "mobula.stateSecret" . }}
- --lease={{ include "mobula.lease" . }}
- --image={{ include "mobula.reference" (include "mobula.ownImage" (list . .Values.control.image) | fromYaml) }}
{{- with .Values.control.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The model to try: the first whose engines are made and that isn't a pooling model, if there is one. */}}
{{- define "mobula.chatModel" -}}
{{- $names := list -}}
{{- range .Values.models -}}
{{- if not (or (kindIs "invalid" .replicas) (contains "pooling" (join " " (.engine | default dict).args))) }}{{ $names = append $names .name }}{{ end -}}
{{- end -}}
{{- .Values.router.testModel | default (first (append $names "")) -}}
{{- end }}

{{/* helm test: whether a model answers through the router. */}}
{{- define "mobula.testArgs" -}}
- chat
- --url=http://{{ include "mobula.fullname" . }}-router.{{ .Release.Namespace }}.svc:{{ .Values.router.service.port | int }}
- --timeout=5m
{{- with include "mobula.chatModel" . }}
- --model={{ . }}
{{- end }}
- Say hello.
{{- end }}

{{/* helm uninstall: all engines end. Helm's own timeout is 5 minutes by default. */}}
{{- define "mobula.uninstallArgs" -}}
- scale
- --config=/etc/mobula/client.json
- --all
- --wait
- --timeout=4m30s
- "0"
{{- end }}
