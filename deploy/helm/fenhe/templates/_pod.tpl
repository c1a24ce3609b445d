{{- define "fenhe.pod" -}}
serviceAccountName: {{ include "fenhe.serviceAccount" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "fenhe.terminationGrace" . }}
securityContext: {{- toYaml .group.podSecurityContext | nindent 2 }}
{{- with .group.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
{{- end }}{{ end }}
{{- with .group.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .group.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .group.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if kindIs "slice" .group.topologySpreadConstraints }} {{- toYaml .group.topologySpreadConstraints | nindent 2 }}
{{- else }}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "fenhe.selector" $ | nindent 8 }}
{{- end }}
{{- end }}
{{- with .group.models.prepare }}
initContainers:
{{- range $index, $command := . }}
  - name: prepare-{{ $index }}
    image: {{ include "fenhe.image" $ }}
    imagePullPolicy: {{ $.group.image.pullPolicy }}
    command: {{ toJson $command }}
    env: {{- include "fenhe.env" $ | nindent 6 }}
    securityContext: {{- toYaml $.group.securityContext | nindent 6 }}
    resources: {{- toYaml $.group.resources | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: models, mountPath: /models}
{{- end }}
{{- end }}
containers:
  - name: fenhe
    image: {{ include "fenhe.image" . }}
    imagePullPolicy: {{ .group.image.pullPolicy }}
    args: [serve]
    ports:
      - {name: http, containerPort: 8000}
    env: {{- include "fenhe.env" . | nindent 6 }}
    startupProbe:
      httpGet: {path: /startup, port: http}
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: {{ div (add .group.probes.startupSeconds 1) 2 }}
    readinessProbe:
      httpGet: {path: /readyz, port: http}
      periodSeconds: 2
      timeoutSeconds: 2
      failureThreshold: 2
    livenessProbe:
      httpGet: {path: /health, port: http}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
      terminationGracePeriodSeconds: 10   # what does not answer for a minute has nothing to finish
    lifecycle:
      preStop:
        sleep: {seconds: {{ .group.drain.preStopSeconds }}}
    securityContext: {{- include "fenhe.securityContext" . | nindent 6 }}
    resources: {{- include "fenhe.resources" . | nindent 6 }}
    volumeMounts:
      - {name: settings, mountPath: /etc/fenhe/settings, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- if .root.Values.keys.secretName }}
      - {name: keys, mountPath: /etc/fenhe/keys, readOnly: true}
      {{- end }}
      {{- if ne .group.models.kind "image" }}
      - {name: models, mountPath: /models{{ if eq .group.models.kind "oci" }}, readOnly: true{{ end }}}
      {{- end }}
      {{- if .group.gpu.count }}
      - {name: shm, mountPath: /dev/shm}
      {{- end }}
volumes:
  - name: settings
    configMap: {name: {{ .name }}}
  - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
  {{- if .root.Values.keys.secretName }}
  - name: keys
    secret: {secretName: {{ .root.Values.keys.secretName }}}
  {{- end }}
  {{- include "fenhe.modelsVolume" . | nindent 2 }}
  {{- if .group.gpu.count }}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .group.gpu.sharedMemory }}}}
  {{- end }}
{{- end }}

{{- define "fenhe.modelsVolume" -}}
{{- $models := .group.models }}
{{- if eq $models.kind "emptyDir" }}
- {name: models, emptyDir: {sizeLimit: {{ $models.size }}}}
{{- else if eq $models.kind "claim" }}
- {name: models, persistentVolumeClaim: {claimName: {{ default (printf "%s-models" .name) $models.claimName }}}}
{{- else if eq $models.kind "oci" }}
- {name: models, image: {reference: {{ $models.reference | quote }}, pullPolicy: IfNotPresent}}
{{- end }}
{{- end }}

{{- define "fenhe.securityContext" -}}
{{- $context := deepCopy .group.securityContext }}
{{- /* NVIDIA's runtime writes into the container's root. */ -}}
{{- if .group.gpu.count }}{{ $_ := set $context "readOnlyRootFilesystem" false }}{{ end }}
{{- toYaml $context }}
{{- end }}

{{- define "fenhe.resources" -}}
{{- $resources := deepCopy .group.resources }}
{{- if .group.gpu.count }}
{{- $gpus := dict .group.gpu.resource (int .group.gpu.count) }}
{{- $_ := set $resources "limits" (merge $gpus (default dict $resources.limits)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "fenhe.env" -}}
- {name: FENHE_CONFIG, value: /etc/fenhe/settings/fenhe.toml}
- {name: HOME, value: /tmp}
{{- if ne .group.models.kind "image" }}
- {name: FENHE_CACHE, value: /models}
{{- end }}
{{- if or (dig "limits" "cpu" "" .group.resources) (dig "requests" "cpu" "" .group.resources) }}
- name: FENHE_ENGINE__NUM_THREADS   # without a CPU limit: otherwise as many as the node has cores
  valueFrom:
    resourceFieldRef:
      containerName: fenhe
      resource: {{ dig "limits" "cpu" "" .group.resources | empty | ternary "requests.cpu" "limits.cpu" }}
      divisor: "1"
{{- end }}
{{- if .root.Values.valkey.enabled }}
- name: VALKEY_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .root.Values.valkey.passwordSecret.name }}, key: {{ .root.Values.valkey.passwordSecret.key }}}
- name: FENHE_CACHE__URL
  value: redis://:$(VALKEY_PASSWORD)@{{ include "fenhe.fullname" .root }}-valkey:6379/0
{{- end }}
{{- with .root.Values.externalCache.urlSecret }}{{ if .name }}
- name: FENHE_CACHE__URL
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}{{ end }}
{{- range $index, $student := .group.students }}
{{- with (dig "remote" "keySecret" nil $student) }}
- name: STUDENT_KEY_{{ $index }}
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ default "key" .key }}}
{{- end }}
{{- end }}
{{- with .group.extraEnv }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}
