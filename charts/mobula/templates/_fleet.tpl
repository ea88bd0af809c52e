{{/* The fleet and its models as objects. */}}

{{/* platform.kubernetes, wherever it is. */}}
{{- define "mobula.kubernetes" -}}
{{- $platform := .Values.platform | default dict -}}
{{- if $platform.kuberay }}{{ toYaml ($platform.kuberay.kubernetes | default dict) }}{{ else }}{{ toYaml ($platform.kubernetes | default dict) }}{{ end -}}
{{- end }}

{{/* Fleet.spec */}}
{{- define "mobula.fleetSpec" -}}
{{- $spec := deepCopy (omit .Values.fleet "name") -}}
{{- $platform := .Values.platform -}}
{{- if hasKey $platform "kuberay" -}}
{{- $platform = dict "kuberay" (deepCopy ($platform.kuberay | default dict)) -}}
{{- else -}}
{{- $platform = dict "kubernetes" (deepCopy ($platform.kubernetes | default dict)) -}}
{{- end -}}
{{- range list $platform.kubernetes (dig "kuberay" "kubernetes" nil $platform) -}}
{{- if . }}{{ include "mobula.quoteDecimals" .pods }}{{ end -}}
{{- end -}}
{{- $_ := set $spec "platform" $platform -}}
{{- $router := $spec.router | default dict -}}
{{- $timeouts := merge ($router.timeouts | default dict) (dict "lameduck" "5s" "drain" "5m") -}}
{{- $_ := set $router "timeouts" $timeouts -}}
{{- $_ := set $spec "router" $router -}}
{{- toYaml $spec -}}
{{- end }}

{{/* Has half a CPU (0.5) be text: an API server takes whole numbers and text. It changes what it is given and writes nothing. */}}
{{- define "mobula.quoteDecimals" -}}
{{- $pods := . -}}
{{- range $key, $value := $pods -}}
{{- if kindIs "float64" $value -}}
{{- if ne $value (floor $value) }}{{ $_ := set $pods $key (toString $value) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Seconds that a router takes to stop at most. */}}
{{- define "mobula.drainTime" -}}
{{- $timeouts := ((.Values.fleet.router | default dict).timeouts | default dict) -}}
{{- add (include "mobula.seconds" ($timeouts.drain | default "5m")) (include "mobula.seconds" (get $timeouts "lameduck" | default "5s")) -}}
{{- end }}

{{- define "mobula.grace" -}}
{{- $own := .Values.router.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $own }}{{ add (include "mobula.drainTime" .) 15 }}{{ else }}{{ int $own }}{{ end -}}
{{- end }}

{{/* A model's name as the name of its object: mobula apply has the same rule (adapters/kubernetes/resources, ObjectName). */}}
{{- define "mobula.slug" -}}
{{- $name := regexReplaceAllLiteral "[^a-z0-9]+" (lower .) "-" | trimAll "-" -}}
{{- if gt (len $name) 50 }}{{ $name = printf "%s-%s" ($name | trunc 41 | trimSuffix "-") (sha256sum . | trunc 8) }}{{ end -}}
{{- $name -}}
{{- end }}

{{/* replicas of a fleet file as replicas or range of a Model. */}}
{{- define "mobula.replicas" -}}
{{- $text := toString . -}}
{{- $ends := splitList "-" $text -}}
{{- $min := first $ends | atoi -}}{{- $max := last $ends | atoi -}}
{{- if or (not (mustRegexMatch "^[0-9]{1,4}(-[0-9]{1,4})?$" $text)) (gt $min $max) (gt $max 1000) }}Error: true
{{- else if eq (len $ends) 1 }}replicas: {{ $min }}
{{- else }}range: {min: {{ $min }}, max: {{ $max }}}
{{- end -}}
{{- end }}

{{/* Address of the pool of KV blocks, empty when there is none. */}}
{{- define "mobula.pool" -}}
{{- if .Values.cacheServer.enabled -}}
lm://{{ include "mobula.fullname" . }}-cache-server.{{ .Release.Namespace }}.svc:{{ .Values.cacheServer.port | int }}
{{- else if .Values.redis.enabled -}}
redis://{{ include "mobula.fullname" . }}-redis.{{ .Release.Namespace }}.svc:6379
{{- end -}}
{{- end }}

{{/*
The replicas that an autoscaler (HorizontalPodAutoscaler, KEDA) or kubectl scale has set by the scale subresource of the Model there is, so
that an upgrade doesn't take them back; empty when none has. What a person has set holds for as long as the values' replicas stay what they were.
At an install there may be no such kind yet.
*/}}
{{- define "mobula.scaled" -}}
{{- if .root.Release.IsUpgrade -}}
{{- $there := lookup "mobula.dev/v1alpha1" "Model" .root.Release.Namespace (include "mobula.slug" .model.name) | default dict -}}
{{- if and (mustRegexMatch "^[0-9]+$" (toString .model.replicas)) (hasKey ($there.spec | default dict) "replicas") -}}
{{- $scaled := false -}}
{{- $same := eq (dig "metadata" "annotations" "mobula.dev/replicas" "" $there) (toString .model.replicas) -}}
{{- range dig "metadata" "managedFields" list $there -}}
{{- if and (eq (dig "subresource" "" .) "scale") (or $same (not (hasPrefix "kubectl" .manager))) (hasKey (dig "fieldsV1" "f:spec" dict .) "f:replicas") }}{{ $scaled = true }}{{ end -}}
{{- end -}}
{{- if $scaled }}{{ int $there.spec.replicas }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Model.spec of an entry of models: dict root model. */}}
{{- define "mobula.modelSpec" -}}
{{- $root := .root -}}{{- $model := .model -}}
{{- $spec := deepCopy (omit $model "replicas") -}}
{{- $_ := set $spec "fleet" (include "mobula.fleet" $root) -}}
{{- if not (kindIs "invalid" $model.replicas) -}}
{{- $spec = merge $spec (include "mobula.replicas" $model.replicas | fromYaml) -}}
{{- end -}}
{{- include "mobula.quoteDecimals" $spec.kubernetes -}}
{{- with include "mobula.scaled" . }}{{ $_ := set $spec "replicas" (int .) }}{{ end -}}
{{- $pool := include "mobula.pool" $root -}}
{{- $engine := $spec.engine | default dict -}}
{{- if and $pool (contains "LMCacheConnectorV1" (join " " $engine.args)) (not (hasKey ($engine.env | default dict) "LMCACHE_REMOTE_URL")) -}}
{{- if and (hasPrefix "redis://" $pool) $root.Values.redis.password.name }}{{ fail (printf "models: %s: the pool has a password, which engine.env can't hold: set LMCACHE_REMOTE_URL by kubernetes.pod, or take redis.password out and set networkPolicy.enabled" $model.name) }}{{ end -}}
{{- $_ := set $engine "env" (merge ($engine.env | default dict) (dict "LMCACHE_REMOTE_URL" $pool "LMCACHE_REMOTE_SERDE" "naive" "LMCACHE_TRACK_USAGE" "false" "PYTHONHASHSEED" "0")) -}}
{{- $_ := set $spec "engine" $engine -}}
{{- end -}}
{{- if $root.Values.lmcache.enabled }}{{ include "mobula.withLMCache" (dict "root" $root "spec" $spec) }}{{ end -}}
{{- toYaml $spec -}}
{{- end }}
