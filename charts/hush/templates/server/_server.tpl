{{/* The servers of the release as JSON: [{"name": ..., "fullname": ..., "values": {...}}]. */}}
{{- define "hush.servers" -}}
{{- $servers := list }}
{{- $defaults := .Values.server }}
{{- if .Values.servers }}
{{- range $name, $own := .Values.servers }}
{{- $values := mustMergeOverwrite (deepCopy $defaults) (deepCopy ($own | default dict)) }}
{{- $servers = append $servers (dict "name" $name "fullname" (printf "%s-%s" (include "hush.fullname" $) $name) "values" $values) }}
{{- end }}
{{- else }}
{{- $servers = list (dict "name" .Release.Name "fullname" (include "hush.fullname" .) "values" $defaults) }}
{{- end }}
{{- $enabled := list }}
{{- range $servers }}
{{- if .values.enabled }}
{{- $enabled = append $enabled . }}
{{- end }}
{{- end }}
{{- toJson $enabled }}
{{- end }}

{{/* What selects the pods of one server: (dict "root" $ "server" SERVER). */}}
{{- define "hush.server.selectorLabels" -}}
{{ include "hush.selectorLabels" (list .root "server") }}
gpu.hush.dev/name: {{ .server.name }}
{{- end }}

{{/* Those who may use the admin API, as JSON. */}}
{{- define "hush.server.accounts" -}}
{{- $accounts := .server.values.admin.accounts | default list }}
{{- if ne .root.Values.controller.scope "none" }}
{{- $accounts = prepend $accounts (printf "%s:%s" .root.Release.Namespace (include "hush.controllerAccount" .root)) }}
{{- end }}
{{- toJson (uniq $accounts) }}
{{- end }}

{{- define "hush.server.claim" -}}
{{- $cache := .server.values.cache }}
{{- if $cache.existingClaim }}
{{- $cache.existingClaim }}
{{- else if $cache.name }}
{{- printf "%s-%s" (include "hush.fullname" .root) $cache.name }}
{{- else }}
{{- printf "%s-models" .server.fullname }}
{{- end }}
{{- end }}

{{- define "hush.server.image" -}}
{{ include "hush.image" (list .root .server.values.image (.server.values.gpu.enabled | ternary "-cuda" "-cpu")) }}
{{- end }}

{{/* The configuration file: the models without what only their install needs. */}}
{{- define "hush.server.config" -}}
models:
{{- range .server.values.models }}
- {{ omit . "source" "revision" | toYaml | nindent 2 | trim }}
{{- else }} []
{{- end }}
{{- end }}

{{/* Fails where a GPU is asked for by name with a precision that CUDA does not take: the server would refuse to start. */}}
{{- define "hush.server.checkPrecision" -}}
{{- $values := .server.values }}
{{- range $model := $values.models | default (list dict) }}
{{- $device := coalesce $model.device $values.settings.device ($values.gpu.enabled | ternary "cuda" "cpu") }}
{{- $precision := coalesce $model.precision $values.settings.precision "auto" }}
{{- if and (hasPrefix "cuda" $device) (has $precision (list "fp32" "int8")) }}
{{- $whose := $model.name | empty | ternary "" (printf "model %v: " $model.name) }}
{{- fail (printf "server.models, server.settings: %sprecision %s does not run on device %s (CUDA takes fp16 only; gpu.enabled asks for it): set precision: fp16 or leave it out, or device: cpu" $whose $precision $device) }}
{{- end }}
{{- end }}
{{- end }}

{{/* One step for each model that comes from the hub. */}}
{{- define "hush.server.install" -}}
{{- $values := .server.values }}
{{- range $index, $model := $values.models }}
{{- if not $model.path }}
{{- /* What the server takes by itself on that device. */}}
{{- $device := coalesce $model.device $values.settings.device ($values.gpu.enabled | ternary "cuda" "cpu") }}
{{- $best := and $values.gpu.enabled (ne $device "cpu") | ternary "fp16" "int8" }}
{{- $precision := coalesce $model.precision $values.settings.precision $best }}
- name: install-{{ $index }}
  image: {{ include "hush.server.image" $ }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  args:
  - install
  - {{ $model.source | default $model.name | quote }}
  {{- if $model.source }}
  - --name={{ $model.name }}
  {{- end }}
  {{- with $model.revision }}
  - --revision={{ . }}
  {{- end }}
  - --precision={{ eq $precision "auto" | ternary $best $precision }}
  - --models-dir=/models
  - --log-format=json
  env:
  - {name: HOME, value: /tmp}
  {{- with $values.install.endpoint }}
  - {name: HF_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- with $values.install.tokenSecret }}
  {{- if .name }}
  - name: HF_TOKEN
    valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
  {{- end }}
  {{- end }}
  {{- with $.root.Values.securityContext }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.install.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
  - {name: models, mountPath: /models}
  - {name: tmp, mountPath: /tmp}
{{ end }}
{{- end }}
{{- end }}

{{/* Each option has its variable: idleTimeout is HUSH_IDLE_TIMEOUT. */}}
{{- define "hush.server.settings" -}}
{{- range $key, $value := .server.values.settings }}
- name: HUSH_{{ snakecase $key | upper }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}
         {{- else if kindIs "float64" $value }}{{ printf "%.0f" $value | quote }}
         {{- else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}
