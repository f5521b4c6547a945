{{/* The servers of the release as JSON: [{"name": ..., "fullname": ..., "field": ..., "values": {...}}]. `field` is where the
values of the server are, for messages. */}}
{{- define "hush.servers" -}}
{{- $servers := list }}
{{- $defaults := .Values.server }}
{{- if .Values.servers }}
{{- range $name, $own := .Values.servers }}
{{- $values := mustMergeOverwrite (deepCopy $defaults) (deepCopy ($own | default dict)) }}
{{- $fullname := printf "%s-%s" (include "hush.fullname" $) $name }}
{{- $servers = append $servers (dict "name" $name "fullname" $fullname "field" (printf "servers.%s" $name) "values" $values) }}
{{- end }}
{{- else }}
{{- $servers = list (dict "name" .Release.Name "fullname" (include "hush.fullname" .) "field" "server" "values" $defaults) }}
{{- end }}
{{- $enabled := list }}
{{- range $servers }}
{{- if .values.enabled }}
{{- $enabled = append $enabled . }}
{{- end }}
{{- end }}
{{- toJson $enabled }}
{{- end }}

{{/* What selects the pods of one server or app: (dict "root" $ "server" SERVER "component" "server"). */}}
{{- define "hush.server.selectorLabels" -}}
{{ include "hush.selectorLabels" (list .root (.component | default "server")) }}
gpu.hush.dev/name: {{ .server.name | quote }}
{{- end }}

{{/* Name, namespace and labels of an object of one server or app, indented by two. */}}
{{- define "hush.server.metadata" -}}
name: {{ .server.fullname }}
namespace: {{ include "hush.namespace" .root }}
labels: {{- include "hush.labels" (list .root (.component | default "server")) | nindent 2 }}
  gpu.hush.dev/name: {{ .server.name | quote }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hush.server.account" -}}
{{- .server.values.serviceAccount.name | default (include "hush.serverName" .root) }}
{{- end }}

{{/* The accounts that may use the admin API, as JSON. A controller beside a server or an app has the account of its pod. */}}
{{- define "hush.server.accounts" -}}
{{- $accounts := .server.values.admin.accounts | default list }}
{{- $names := include "hush.controllerAccounts" .root | fromJsonArray }}
{{- if eq .root.Values.controller.scope "pod" }}
{{- $names = list (include "hush.server.account" .) }}
{{- end }}
{{- range $names }}
{{- $accounts = prepend $accounts (printf "%s:%s" (include "hush.namespace" $.root) .) }}
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

{{/* The Secrets that the server reads, as JSON: [{"volume": ..., "secret": ...}]. */}}
{{- define "hush.server.secrets" -}}
{{- $values := .server.values }}
{{- $secrets := list }}
{{- range $volume, $name := dict "admin" $values.admin.tokenSecret.name "keys" $values.apiKeys.name "tls" $values.tls.name }}
{{- if $name }}
{{- $secrets = append $secrets (dict "volume" $volume "secret" $name) }}
{{- end }}
{{- end }}
{{- toJson $secrets }}
{{- end }}

{{/* An init container for each model that is downloaded from the hub. */}}
{{- define "hush.server.install" -}}
{{- $values := .server.values }}
{{- range $index, $model := $values.models }}
{{- if not $model.path }}
{{- /* The precision that the server chooses on that device. */}}
{{- $device := coalesce $model.device ($values.settings).device ($values.gpu.enabled | ternary "cuda" "cpu") }}
{{- $best := and $values.gpu.enabled (ne $device "cpu") | ternary "fp16" "int8" }}
{{- $precision := coalesce $model.precision ($values.settings).precision "auto" }}
- name: install-{{ $index }}
  image: {{ include "hush.server.image" $ }}
  imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
  args:
  - install
  - {{ $model.source | default $model.name | quote }}
  {{- if $model.source }}
  - {{ printf "--name=%s" $model.name | quote }}
  {{- end }}
  {{- with $model.revision }}
  - {{ printf "--revision=%s" . | quote }}
  {{- end }}
  - --precision={{ eq $precision "auto" | ternary $best $precision }}
  - --models-dir=/models
  - --log-format=json
  {{- include "hush.containerSettings" (dict "root" $.root "field" (printf "%s.install" $.server.field) "values" $values.install
      "securityContext" $values.containerSecurityContext
      "env" (include "hush.server.installEnv" $) "volumeMounts" (include "hush.server.installMounts" $)) | nindent 2 }}
{{ end }}
{{- end }}
{{- end }}

{{- define "hush.server.installEnv" -}}
{{- $install := .server.values.install -}}
- {name: HOME, value: /tmp}
{{- with $install.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with $install.tokenSecret }}
{{- if .name }}
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.server.installMounts" -}}
- {name: models, mountPath: /models}
- {name: tmp, mountPath: /tmp}
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

{{- define "hush.server.args" -}}
{{- $values := .server.values -}}
- serve
- --config=/etc/hush/config.yaml
- --models-dir=/models
# The init containers have installed them.
- --install-missing=false
- --listen={{ .root.Values.listenAddress }}:9000
- --ops-listen={{ .root.Values.listenAddress }}:9001
- --spool-dir=/tmp
- --drain-timeout={{ $values.drainSeconds }}s
{{- with include "hush.server.accounts" . | fromJsonArray }}
- --admin-token-review=true
{{- range . }}
- --admin-account={{ . }}
{{- end }}
{{- end }}
{{- if $values.admin.tokenSecret.name }}
- {{ printf "--admin-token-file=/var/run/secrets/hush-admin/%s" $values.admin.tokenSecret.key | quote }}
{{- end }}
{{- if $values.apiKeys.name }}
- {{ printf "--api-keys-file=/var/run/secrets/hush-keys/%s" $values.apiKeys.key | quote }}
{{- end }}
{{- if $values.tls.name }}
- --tls-cert=/var/run/secrets/hush-tls/tls.crt
- --tls-key=/var/run/secrets/hush-tls/tls.key
{{- end }}
{{- with include "hush.opsTls.serverArgs" .root }}
{{ . }}
{{- end }}
{{- if not ($values.settings).device }}
# By name, so that a GPU that cannot be had is an error and not a slow server.
- --device={{ $values.gpu.enabled | ternary "cuda" "cpu" }}
{{- end }}
{{- if not ($values.settings).logFormat }}
- --log-format=json
{{- end }}
{{- end }}

{{- define "hush.server.env" -}}
{{- $gpu := .server.values.gpu -}}
- {name: HOME, value: /tmp}
{{- if include "hush.server.accounts" . | fromJsonArray }}
# A token that commands this server must be made for this pod.
- {name: HUSH_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: HUSH_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
{{- end }}
{{- if $gpu.enabled }}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: {{ $gpu.driverCapabilities | quote }}}
{{- if and (not $gpu.count) $gpu.visibleDevices }}
- {name: NVIDIA_VISIBLE_DEVICES, value: {{ $gpu.visibleDevices | quote }}}
{{- end }}
{{- end }}
{{- include "hush.server.settings" . }}
{{- end }}

{{- define "hush.server.mounts" -}}
- {name: config, mountPath: /etc/hush, readOnly: true}
- {name: models, mountPath: /models}
- {name: tmp, mountPath: /tmp}
{{- if include "hush.server.accounts" . | fromJsonArray }}
{{ include "hush.apiMount" .root }}
{{- end }}
{{- range include "hush.server.secrets" . | fromJsonArray }}
- {name: {{ .volume }}, mountPath: /var/run/secrets/hush-{{ .volume }}, readOnly: true}
{{- end }}
{{- with include "hush.opsTls.serverMount" .root }}
{{ . }}
{{- end }}
{{- end }}

{{- define "hush.server.container" -}}
{{- $values := .server.values }}
{{- $scheme := empty $values.tls.name | ternary "HTTP" "HTTPS" }}
{{- $resources := deepCopy ($values.resources | default dict) }}
{{- if and $values.gpu.enabled $values.gpu.count }}
{{- $_ := set $resources "limits" (merge (dict $values.gpu.resource $values.gpu.count) ($resources.limits | default dict)) }}
{{- end -}}
- name: server
  image: {{ include "hush.server.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: {{- include "hush.args" (dict "field" (printf "%s.extraArgs" .server.field) "own" (include "hush.server.args" .)
      "more" $values.extraArgs) | nindent 2 }}
  ports:
  - {name: http, containerPort: 9000}
  # The controller looks for this name.
  - {name: ops, containerPort: 9001}
  startupProbe:
    httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
    periodSeconds: 2
    failureThreshold: 60
  # A busy server answers at once too; two minutes without an answer are a failure.
  livenessProbe:
    httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 6
  # A server whose model is not loaded, or is busy, is ready.
  readinessProbe:
    httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 3
  # Requests still come until the endpoints are without the pod.
  lifecycle: {preStop: {sleep: {seconds: 5}}}
  {{- include "hush.containerSettings" (dict "root" .root "field" .server.field "values" (set (deepCopy $values) "resources" $resources)
      "securityContext" $values.containerSecurityContext
      "env" (include "hush.server.env" .) "volumeMounts" (include "hush.server.mounts" .)) | nindent 2 }}
{{- end }}

{{/* The install, and with `scope: pod` the controller. */}}
{{- define "hush.server.initContainers" -}}
{{- if .server.values.install.enabled }}
{{- include "hush.server.install" . | trim }}
{{- end }}
{{- if eq .root.Values.controller.scope "pod" }}
{{ include "hush.controller.container" .root }}
  # A sidecar: it starts before the server and ends after it.
  restartPolicy: Always
{{- end }}
{{- end }}

{{/* With `scope: pod` also those of the controller. */}}
{{- define "hush.server.volumes" -}}
{{- if eq .root.Values.controller.scope "pod" }}
{{- $own := printf "%s\n%s" (include "hush.server.ownVolumes" .) (include "hush.controller.volumes" .root) }}
{{- include "hush.append" (dict "field" "controller.volumes" "key" "name" "own" $own "more" .root.Values.controller.volumes) }}
{{- else }}
{{- include "hush.server.ownVolumes" . }}
{{- end }}
{{- end }}

{{- define "hush.server.ownVolumes" -}}
{{- $cache := .server.values.cache -}}
- name: config
  configMap: {name: {{ .server.fullname }}}
- name: models
  {{- if eq $cache.kind "claim" }}
  persistentVolumeClaim: {claimName: {{ include "hush.server.claim" . | quote }}}
  {{- else if eq $cache.kind "ephemeral" }}
  ephemeral:
    volumeClaimTemplate:
      metadata:
        labels: {{- include "hush.server.selectorLabels" . | nindent 10 }}
        {{- with $cache.annotations }}
        annotations: {{- toYaml . | nindent 10 }}
        {{- end }}
      spec: {{- include "hush.claimSpec" $cache | nindent 8 }}
  {{- else if eq $cache.kind "hostPath" }}
  hostPath: {path: {{ $cache.path | quote }}, type: DirectoryOrCreate}
  {{- else }}
  emptyDir: {sizeLimit: {{ $cache.size }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ .server.values.spool.sizeLimit }}}
{{- if include "hush.server.accounts" . | fromJsonArray }}
{{ include "hush.apiVolume" .root }}
{{- end }}
{{- range include "hush.server.secrets" . | fromJsonArray }}
- name: {{ .volume }}
  secret: {secretName: {{ .secret | quote }}, defaultMode: 0440}
{{- end }}
{{- with include "hush.opsTls.serverVolume" .root }}
{{ . }}
{{- end }}
{{- end }}

{{- define "hush.claimSpec" -}}
accessModes: [{{ .accessMode }}]
{{- with .storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}

{{- define "hush.server.annotations" -}}
# A change of the configuration replaces the pod.
gpu.hush.dev/config: {{ include "hush.server.config" . | sha256sum | trunc 16 | quote }}
kubectl.kubernetes.io/default-container: server
{{- with include "hush.opsTls.serverAnnotations" .root }}
{{ . }}
{{- end }}
{{- if eq .root.Values.controller.scope "pod" }}
{{- with include "hush.controller.podAnnotations" .root | trim }}
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.server.podLabels" -}}
# By this the controller finds it.
gpu.hush.dev/server: "true"
{{- if eq .root.Values.controller.scope "pod" }}
{{ include "hush.controller.podLabels" .root }}
{{- end }}
{{- end }}

{{- define "hush.server.pod" -}}
{{- $values := .server.values }}
{{- include "hush.pod" (dict "root" .root "component" .server.field "values" $values
    "selector" (include "hush.server.selectorLabels" .)
    "labels" (include "hush.server.podLabels" .)
    "annotations" (include "hush.server.annotations" .)
    "account" (include "hush.server.account" .)
    "runtimeClassName" $values.gpu.runtimeClassName
    "gracePeriodSeconds" (add $values.drainSeconds 30)
    "tolerations" ($values.gpu.enabled | ternary ($values.gpu.tolerations | default list) list)
    "initContainers" (include "hush.server.initContainers" .)
    "containers" (include "hush.server.container" .)
    "volumes" (include "hush.server.volumes" .)) }}
{{- end }}
