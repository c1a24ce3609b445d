{{- /* What the schema cannot say. Every message names the value and what to do. */ -}}
{{- define "fenhe.check" -}}
{{- $_ := include "fenhe.each" (list . "fenhe.image") }}
{{- $values := .Values }}
{{- if and (not $values.keys.secretName) (not $values.keys.allowNone) }}
{{- fail "\n\nkeys.secretName is not set, so anybody who reaches the Service could use it. Make a key,\n  fenhe keys make me > keys.toml      # shows the key itself once\n  kubectl create secret generic fenhe-keys --from-file=keys.toml\nand set keys.secretName=fenhe-keys; or set keys.allowNone=true where something else protects it.\n" }}
{{- end }}
{{- if and $values.groups (not (hasKey $values.groups $values.entryGroup)) }}
{{- fail (printf "entryGroup is %q: set it to the group that gets the requests from outside, one of %s" $values.entryGroup (keys $values.groups | sortAlpha | join ", ")) }}
{{- end }}
{{- if and $values.valkey.enabled (not $values.valkey.passwordSecret.name) }}
{{- fail "valkey.passwordSecret.name is not set: kubectl create secret generic fenhe-valkey --from-literal=password=$(openssl rand -hex 24), then valkey.passwordSecret.name=fenhe-valkey" }}
{{- end }}
{{- if and $values.valkey.enabled $values.externalCache.urlSecret.name }}
{{- fail "valkey.enabled and externalCache.urlSecret.name are both set: replicas share one cache; take one of them" }}
{{- end }}
{{- if and $values.ingress.enabled (not $values.ingress.host) }}{{ fail "ingress.host is not set: the name that clients call" }}{{ end }}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs is empty: name the Gateway, [{name: gateway, namespace: gateways}]" }}
{{- end }}
{{- if and (eq $values.monitoring.kind "none") (or $values.monitoring.keySecret.name) }}
{{- fail "monitoring.keySecret.name is set, but monitoring.kind is none: set serviceMonitor or podMonitor" }}
{{- end }}
{{- include "fenhe.each" (list . "fenhe.checkGroup") }}
{{- end }}

{{- define "fenhe.checkGroup" -}}
{{- $group := .group }}{{ $name := .name }}
{{- range $index, $student := $group.students }}{{ include "fenhe.checkStudent" (dict "student" $student "place" (printf "%s: students[%d]" $name $index) "group" $group "root" $.root) }}{{ end }}
{{- $least := add $group.drain.preStopSeconds $group.drain.graceSeconds 5 }}
{{- if lt (include "fenhe.terminationGrace" . | int) (int $least) }}
{{- fail (printf "%s: drain.terminationGracePeriodSeconds=%v is less than preStopSeconds + graceSeconds + 5 = %d: running answers would be cut off; raise it, or leave it out" $name $group.drain.terminationGracePeriodSeconds $least) }}
{{- end }}
{{- if and (eq $group.models.kind "perReplica") (ne $group.workload "StatefulSet") }}
{{- fail (printf "%s: models.kind=perReplica needs workload=StatefulSet: only its replicas have claims of their own" $name) }}
{{- end }}
{{- if and (eq $group.models.kind "claim") (not $group.models.claimName) (eq $group.models.accessMode "ReadWriteOnce") (or (gt (int $group.replicas) 1) (ne $group.autoscaling.kind "none")) }}
{{- fail (printf "%s: models.accessMode=ReadWriteOnce is one node's, but there may be several replicas: set ReadWriteMany or ReadOnlyMany, or models.kind=perReplica with workload=StatefulSet" $name) }}
{{- end }}
{{- if and (eq $group.models.kind "oci") (not $group.models.reference) }}
{{- fail (printf "%s: models.reference is not set: the image that holds the students, registry/name@sha256:..." $name) }}
{{- end }}
{{- if and $group.models.prepare (has $group.models.kind (list "image" "oci")) }}
{{- fail (printf "%s: models.prepare writes into the models, which models.kind=%s does not allow: take emptyDir, claim or perReplica" $name $group.models.kind) }}
{{- end }}
{{- include "fenhe.checkScaling" . }}
{{- $limit := include "fenhe.bytes" (dig "limits" "memory" "0" $group.resources) | int64 }}
{{- $needed := include "fenhe.memoryNeeded" . | int64 }}
{{- if and $limit (lt $limit $needed) }}
{{- fail (printf "%s: resources.limits.memory is %dMi, but weightsMemory and what settings.engine (kv_bytes, prefix_cache_bytes) and settings.cache (max_bytes) may take are %dMi: raise the limit or lower those (docs/sizing.md)" $name (div $limit 1048576) (div $needed 1048576)) }}
{{- end }}
{{- end }}

{{- define "fenhe.checkStudent" -}}
{{- $student := .student }}{{ $remote := eq (default "" $student.engine) "remote" }}{{ $vllm := eq (default "" $student.engine) "vllm" }}
{{- $sources := compact (list (ternary "default" "" (default false $student.default)) (ternary "folder" "" (hasKey $student "folder")) (ternary "remote.urls" "" (and $remote (not (empty (dig "remote" "urls" list $student)))))) }}
{{- if ne (len $sources) 1 }}
{{- fail (printf "%s has %s: give it exactly one of default: true, folder, or engine: remote with remote.urls" .place (empty $sources | ternary "no source" (join " and " $sources))) }}
{{- end }}
{{- if and $vllm (not .group.gpu.count) }}
{{- fail (printf "%s has engine vllm, but gpu.count is 0" .place) }}
{{- end }}
{{- if and $remote .root.Values.networkPolicy.enabled (not .root.Values.networkPolicy.egressTo) }}
{{- fail (printf "%s is remote, but the NetworkPolicy lets nothing out: allow it in networkPolicy.egressTo, or set networkPolicy.enabled=false" .place) }}
{{- end }}
{{- if and $student.default (eq .group.models.kind "image") (hasPrefix "slim" (regexReplaceAll "^.*-" .group.image.tag "")) }}
{{- fail (printf "%s is the default student, which the image :slim does not have: take :full, or models.kind=emptyDir with models.prepare=[[fenhe, pull, smollm2-135m, --build]]" .place) }}
{{- end }}
{{- end }}

{{- define "fenhe.checkScaling" -}}
{{- $scaling := .group.autoscaling }}
{{- if ne $scaling.kind "none" }}
{{- if lt (int $scaling.maxReplicas) (int $scaling.minReplicas) }}
{{- fail (printf "%s: autoscaling.maxReplicas=%d is less than minReplicas=%d" .name (int $scaling.maxReplicas) (int $scaling.minReplicas)) }}
{{- end }}
{{- if and (eq $scaling.kind "keda") (not $scaling.prometheusUrl) }}
{{- fail (printf "%s: autoscaling.prometheusUrl is not set: where KEDA asks for the metrics, http://prometheus.monitoring:9090 for example" .name) }}
{{- end }}
{{- if and (eq $scaling.kind "keda") $scaling.cpuPercent }}
{{- fail (printf "%s: autoscaling.cpuPercent is for kind hpa; inference keeps its CPUs busy from the first request on" .name) }}
{{- end }}
{{- if and $scaling.cpuPercent (not (dig "requests" "cpu" nil .group.resources)) }}
{{- fail (printf "%s: autoscaling.cpuPercent is a share of resources.requests.cpu, which is not set" .name) }}
{{- end }}
{{- end }}
{{- end }}
