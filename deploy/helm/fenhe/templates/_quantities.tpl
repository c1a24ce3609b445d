{{- /* Bytes of a quantity such as 512Mi, 2Gi or 1.5G; 0 where there is none. */ -}}
{{- define "fenhe.bytes" -}}
{{- $text := toString (default "0" .) }}
{{- $number := regexFind "^[0-9]+(\\.[0-9]+)?" $text | float64 }}
{{- $unit := regexFind "[A-Za-z]*$" $text }}
{{- $of := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- if not (hasKey $of $unit) }}{{ fail (printf "%s is no quantity of memory: 512Mi, for example" $text) }}{{ end }}
{{- mulf $number (float64 (get $of $unit)) | int64 }}
{{- end }}

{{- /* What a replica of a group may need: process and weights, KV, prefixes, cached answers. */ -}}
{{- define "fenhe.memoryNeeded" -}}
{{- $engine := default dict .group.settings.engine }}{{ $cache := default dict .group.settings.cache }}
{{- $own := 0 }}
{{- range .group.students }}{{ if not (has .engine (list "remote" "vllm")) }}{{ $own = add1 $own }}{{ end }}{{ end }}
{{- $kv := default 2147483648 $engine.kv_bytes | int64 }}
{{- $prefixes := hasKey $engine "prefix_cache_bytes" | ternary (default 0 $engine.prefix_cache_bytes) 536870912 | int64 }}
{{- $answers := default 67108864 $cache.max_bytes | int64 }}
{{- add (include "fenhe.bytes" .group.weightsMemory | int64) (mul $own (add $kv $prefixes)) $answers }}
{{- end }}

{{- define "fenhe.terminationGrace" -}}
{{- $drain := .group.drain }}
{{- default (add $drain.preStopSeconds $drain.graceSeconds 5) $drain.terminationGracePeriodSeconds }}
{{- end }}
