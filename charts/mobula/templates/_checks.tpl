{{/* Values that can't be meant, beyond what values.schema.json tells: each fails with where, what and what to do. */}}

{{- define "mobula.checks" -}}
{{- include "mobula.checks.there" . -}}
{{- include "mobula.checks.platform" . -}}
{{- include "mobula.checks.models" . -}}
{{- include "mobula.checks.router" . -}}
{{- include "mobula.checks.rest" . -}}
{{- end }}

{{- define "mobula.checks.platform" -}}
{{- $platform := .Values.platform | default dict -}}
{{- range $key, $_ := $platform }}
{{- if has $key (list "static" "ray") }}{{ fail (printf "platform.%s: the chart runs engines on Kubernetes: set platform.kubernetes or platform.kuberay, or run mobula control elsewhere" $key) }}{{ end -}}
{{- end -}}
{{- if and (hasKey $platform "kubernetes") (hasKey $platform "kuberay") }}{{ fail "platform: both kubernetes and kuberay are set: keep one; what kubernetes has belongs into platform.kuberay.kubernetes then" }}{{ end -}}
{{- $kubernetes := include "mobula.kubernetes" . | fromYaml -}}
{{- range list "namespace" "kubeconfig" "context" -}}
{{- if index $kubernetes . }}{{ fail (printf "platform.kubernetes.%s: engines run in the release's cluster and namespace: leave it out, and use helm's --namespace" .) }}{{ end -}}
{{- end -}}
{{- $shared := (($platform.kuberay | default dict).shared | default dict) -}}
{{- if and $shared.cluster $shared.service }}{{ fail "platform.kuberay.shared: both cluster and service are set: keep one" }}{{ end -}}
{{- end }}

{{- define "mobula.checks.models" -}}
{{- $names := dict -}}{{- $slugs := dict -}}
{{- range $i, $model := .Values.models -}}
{{- if not $model.name }}{{ fail (printf "models[%d].name: required: the id that clients ask for" $i) }}{{ end -}}
{{- if hasKey $names $model.name }}{{ fail (printf "models[%d].name: %s is there twice: a model is named once" $i $model.name) }}{{ end -}}
{{- $_ := set $names $model.name true -}}
{{- $slug := include "mobula.slug" $model.name -}}
{{- if not $slug }}{{ fail (printf "models[%d].name: %s has no letter or digit to name its Model object by" $i $model.name) }}{{ end -}}
{{- if hasKey $slugs $slug }}{{ fail (printf "models[%d].name: %s and %s would both be the Model object %s: rename one, and give its source" $i $model.name (index $slugs $slug) $slug) }}{{ end -}}
{{- $_ := set $slugs $slug $model.name -}}
{{- if and (hasKey $model "replicas") (ne $model.replicas nil) -}}
{{- if not $.Values.control.enabled }}{{ fail (printf "models[%d].replicas: there is no control plane to make engines: set control.enabled, or leave replicas out for a model that others run" $i) }}{{ end -}}
{{- $replicas := include "mobula.replicas" $model.replicas | fromYaml -}}
{{- if $replicas.Error }}{{ fail (printf "models[%d].replicas: want a number such as 2 or a range such as \"1-4\", at most 1000, got %v" $i $model.replicas) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.models) }}{{ fail "keda.models: required with keda.enabled: [{name: MODEL, min: 0, max: 4}]" }}{{ end -}}
{{- if and .Values.keda.models (not .Values.keda.enabled) }}{{ fail "keda.models: nothing scales them: set keda.enabled" }}{{ end -}}
{{- range $i, $model := .Values.keda.models -}}
{{- if not (hasKey $names ($model.name | default "")) }}{{ fail (printf "keda.models[%d].name: %v is none of models: name one of them" $i $model.name) }}{{ end -}}
{{- range $.Values.models -}}
{{- if and (eq .name $model.name) (contains "-" (toString (.replicas | default ""))) }}{{ fail (printf "keda.models[%d].name: %s has replicas %q, which Mobula's own autoscaler follows: give it the number to begin with, or take it out of keda" $i .name .replicas) }}{{ end -}}
{{- if and (eq .name $model.name) (kindIs "invalid" .replicas) }}{{ fail (printf "keda.models[%d].name: %s has no replicas, so no engines are made for it: give it the number to begin with" $i .name) }}{{ end -}}
{{- end -}}
{{- if and (not $model.triggers) (not $.Values.keda.prometheusAddress) }}{{ fail (printf "keda.models[%d].triggers: there are none, and ours ask keda.prometheusAddress: set it, such as http://prometheus-operated.monitoring:9090" $i) }}{{ end -}}
{{- if gt (int (dig "min" 1 $model)) (int (dig "max" 4 $model)) }}{{ fail (printf "keda.models[%d]: min is above max" $i) }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "mobula.checks.router" -}}
{{- with .Values.router -}}
{{- if ($.Values.fleet.router | default dict).listen }}{{ fail "fleet.router.listen: the router listens on :8000 in its pod: set router.service.port for the port that clients use" }}{{ end -}}
{{- if not .enabled -}}
{{- range list "ingress" "route" "autoscaling" }}{{ if (index $.Values.router .).enabled }}{{ fail (printf "router.%s.enabled: there is no router: set router.enabled" .) }}{{ end }}{{ end -}}
{{- end -}}
{{- if and .route.enabled (not .route.parentRefs) }}{{ fail "router.route.parentRefs: required for an HTTPRoute: [{name: GATEWAY, namespace: NAMESPACE}]" }}{{ end -}}
{{- if and .autoscaling.enabled (gt (int .autoscaling.min) (int .autoscaling.max)) }}{{ fail "router.autoscaling: min is above max" }}{{ end -}}
{{- if eq (.service.type | default "ClusterIP") "ClusterIP" -}}
{{- if int .service.nodePort }}{{ fail "router.service.nodePort: a ClusterIP Service has none: set router.service.type to NodePort or LoadBalancer" }}{{ end -}}
{{- if eq .service.externalTrafficPolicy "Local" }}{{ fail "router.service.externalTrafficPolicy: a ClusterIP Service has no traffic from outside: set router.service.type to NodePort or LoadBalancer" }}{{ end -}}
{{- end -}}
{{- if and (ne .service.type "LoadBalancer") (or .service.loadBalancerClass .service.loadBalancerSourceRanges) }}{{ fail "router.service.loadBalancerClass, loadBalancerSourceRanges: they are for a load balancer: set router.service.type to LoadBalancer" }}{{ end -}}
{{- if lt (int (include "mobula.grace" $)) (int (include "mobula.drainTime" $)) }}{{ fail (printf "router.terminationGracePeriodSeconds: %s is less than fleet.router.timeouts' drain and lameduck together, %s s: streams would be cut off" (include "mobula.grace" $) (include "mobula.drainTime" $)) }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "mobula.checks.rest" -}}
{{- range list "kube-prometheus-stack" "prometheus-adapter" -}}
{{- if and (dig "enabled" false (index $.Values .)) (not (hasKey $.Subcharts .)) }}{{ fail (printf "%s.enabled: this copy of the chart has no sub-charts: install %s beside it, or the chart that `make chart` packs (examples/kubernetes/README.md)" . .) }}{{ end -}}
{{- end -}}
{{- if and .Values.prometheusAdapter.enabled (hasKey .Subcharts "prometheus-adapter") (not (dig "rules" "existing" "" (index .Values "prometheus-adapter"))) }}{{ fail (printf "prometheus-adapter.rules.existing: required with prometheusAdapter.enabled, whose rules are in the ConfigMap %s-prometheus-adapter" (include "mobula.fullname" .)) }}{{ end -}}
{{- range list "router" "control" -}}
{{- if and (index $.Values .).enabled (not $.Values.serviceAccount.create) (not (index $.Values.serviceAccount (printf "%sName" .))) }}{{ fail (printf "serviceAccount.%sName: required with serviceAccount.create false: without a name the account default, and with it each pod of the namespace, would have the rights of mobula %s" . .) }}{{ end -}}
{{- end -}}
{{- if and (not .Values.router.enabled) (not .Values.control.enabled) }}{{ fail "router.enabled, control.enabled: both are off: nothing would run" }}{{ end -}}
{{- range list "cacheServer" "lmcache" -}}
{{- if and (index $.Values .).enabled (not (include "mobula.lmcacheImage" (list $ .))) }}{{ fail (printf "%s.image: name an image with LMCache, of the engines' version: set repository and tag, or platform.kubernetes.pods.image" .) }}{{ end -}}
{{- end -}}
{{- with .Values.lmcache -}}
{{- if eq (int .port) (int .httpPort) }}{{ fail "lmcache.port, httpPort: both listen in one pod: give them two numbers" }}{{ end -}}
{{- range $i, $adapter := .l2Adapters }}{{ if not $adapter.type }}{{ fail (printf "lmcache.l2Adapters[%d].type: required: what kind it is, such as resp, s3 or fs" $i) }}{{ end }}{{ end -}}
{{- end -}}
{{- if and (not .Values.redis.storage) .Values.redis.storageClass }}{{ fail "redis.storageClass: there is no volume: set redis.storage to its size" }}{{ end -}}
{{- end }}
