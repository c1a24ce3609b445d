{{- define "fenhe.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}{{ $name := default .Chart.Name .Values.nameOverride -}}
{{ (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Labels that never change: selectors are made of them. Takes {root, component}. */ -}}
{{- define "fenhe.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fenhe.labels" -}}
{{ include "fenhe.selector" . }}
app.kubernetes.io/part-of: fenhe
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "fenhe.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "fenhe.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- /* Runs a template once per group, with {root, group, name, component}: the values of the group over the others. */ -}}
{{- define "fenhe.each" -}}
{{- $root := index . 0 }}{{ $template := index . 1 }}
{{- $full := include "fenhe.fullname" $root }}
{{- if not $root.Values.groups }}
{{- include $template (dict "root" $root "group" $root.Values "name" $full "component" "server") }}
{{- end }}
{{- range $key, $own := $root.Values.groups }}
{{- $group := mustMergeOverwrite (deepCopy $root.Values) (deepCopy (default dict $own)) }}
---
{{- include $template (dict "root" $root "group" $group "name" (printf "%s-%s" $full $key) "component" $key) }}
{{- end }}
{{- end }}

{{- /* The Service that gets the requests from outside. */ -}}
{{- define "fenhe.entry" -}}
{{- include "fenhe.fullname" . }}{{ if .Values.groups }}-{{ .Values.entryGroup }}{{ end }}
{{- end }}

{{- define "fenhe.image" -}}
{{- if not .group.image.repository }}
{{- fail "\n\nimage.repository is not set: there is no image of fenhe that everybody can pull. Build one in a clone,\n  make image\nand load it into kind,\n  kind load docker-image localhost/fenhe:0.1.0-full\nor push it to your registry; then\n  --set image.repository=localhost/fenhe\n(docs/kubernetes.md)\n" }}
{{- end }}
{{- if .group.image.digest }}{{ .group.image.repository }}@{{ .group.image.digest }}
{{- else }}{{ .group.image.repository }}:{{ default (printf "%s-full" .root.Chart.AppVersion) .group.image.tag }}
{{- end }}
{{- end }}
