{{- /* A table of TOML: scalars first, then tables. JSON's texts, numbers and lists are TOML's. */ -}}
{{- define "fenhe.toml" -}}
{{- range $key, $value := .table }}{{ if and (not (kindIs "map" $value)) (not (kindIs "invalid" $value)) }}
{{ include "fenhe.tomlKey" $key }} = {{ toJson $value }}
{{- end }}{{ end }}
{{- range $key, $value := .table }}{{ if kindIs "map" $value }}

[{{ $.prefix }}{{ include "fenhe.tomlKey" $key }}]
{{- include "fenhe.toml" (dict "prefix" (printf "%s%s." $.prefix $key) "table" $value) }}
{{- end }}{{ end }}
{{- end }}

{{- define "fenhe.tomlKey" -}}
{{ regexMatch "^[A-Za-z0-9_-]+$" . | ternary . (toJson .) }}
{{- end }}

{{- /* fenhe.toml of a group. */ -}}
{{- define "fenhe.settingsFile" -}}
host = "0.0.0.0"
port = 8000
grace_s = {{ .group.drain.graceSeconds }}
allow_no_keys = {{ .root.Values.keys.allowNone }}
{{- $settings := deepCopy .group.settings }}
{{- /* Replicas that each measure what is fastest start later, and may come to different answers. */ -}}
{{- $others := 0 }}{{ range .group.students }}{{ if not .default }}{{ $others = add1 $others }}{{ end }}{{ end }}
{{- if not $others }}
{{- $_ := set $settings "engine" (merge (default dict $settings.engine) (dict "precision" "w8a8-native" "head" "cheap")) }}
{{- end }}
{{- if .root.Values.keys.secretName }}
{{- $keys := mergeOverwrite (default dict $settings.keys) (dict "file" (printf "/etc/fenhe/keys/%s" .root.Values.keys.secretKey)) }}
{{- $_ := set $settings "keys" $keys }}
{{- end }}
{{- include "fenhe.toml" (dict "prefix" "" "table" $settings) }}
{{- range $index, $student := .group.students }}

[[student]]
{{- $table := omit $student "default" "remote" "vllm" }}
{{- with $student.remote }}
{{- $remote := omit . "keySecret" "paths" }}
{{- if .keySecret }}{{ $_ := set $remote "key_env" (list (printf "STUDENT_KEY_%d" $index)) }}{{ end }}
{{- $_ := set $table "remote" $remote }}
{{- end }}
{{- with $student.vllm }}{{ $_ := set $table "vllm" . }}{{ end }}
{{- include "fenhe.toml" (dict "prefix" "student." "table" $table) }}
{{- with (dig "remote" "paths" list $student) }}

[student.remote.paths]
{{- /* In the order of the values: the last one is the full path. */ -}}
{{- range . }}
{{ include "fenhe.tomlKey" .name }} = {{ toJson .model }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
