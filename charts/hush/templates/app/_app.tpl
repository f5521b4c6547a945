{{/* The apps of the release as JSON, in the form of "hush.servers", so that the helpers of servers take them too. */}}
{{- define "hush.apps" -}}
{{- $apps := list }}
{{- range $index, $own := .Values.apps }}
{{- $values := mustMergeOverwrite (deepCopy $.Values.app) (omit (deepCopy $own) "name") }}
{{- if $values.serviceAccount.create }}
{{- $_ := set $values.serviceAccount "name" ($values.serviceAccount.name | default (include "hush.appName" $)) }}
{{- end }}
{{- $fullname := printf "%s-%s" (include "hush.fullname" $) $own.name }}
{{- $apps = append $apps (dict "name" $own.name "fullname" $fullname "field" (printf "apps[%d]" $index) "values" $values) }}
{{- end }}
{{- toJson $apps }}
{{- end }}

{{- define "hush.app.image" -}}
{{ include "hush.image" (list .root .server.values.sidecar.image "") }}
{{- end }}

{{/* Not empty: the sidecar starts the app, in the container of the app. */}}
{{- define "hush.app.isStarted" -}}
{{- if or (eq .server.values.mode "process") .server.values.startApp }}true{{ end }}
{{- end }}

{{/* The configuration file of hush-sidecar: a model by its name alone, or with what differs from the others. */}}
{{- define "hush.app.config" -}}
models:
{{- range .server.values.models }}
- {{ kindIs "string" . | ternary (dict "name" .) . | toYaml | nindent 2 | trim }}
{{- end }}
{{- with .server.values.parameters }}
parameters: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hush.app.annotations" -}}
# A change of the configuration replaces the pod.
gpu.hush.dev/config: {{ printf "%s%s" (include "hush.app.config" .) .server.values.description | sha256sum | trunc 16 | quote }}
kubectl.kubernetes.io/default-container: app
{{- with include "hush.opsTls.serverAnnotations" .root }}
{{ . }}
{{- end }}
{{- if eq .root.Values.controller.scope "pod" }}
{{- with include "hush.controller.podAnnotations" .root | trim }}
{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.app.args" -}}
{{- $values := .server.values -}}
{{- if $values.description }}
- --app=/etc/hush/app.yaml
{{- else }}
- {{ printf "--app=%s" ($values.kind | default "process") | quote }}
{{- end }}
- --mode={{ $values.mode }}
{{- if $values.startApp }}
- --unload={{ $values.unload }}
{{- end }}
- --upstream=http://127.0.0.1:{{ $values.port }}
- --config=/etc/hush/config.yaml
- --listen={{ .root.Values.listenAddress }}:9000
- --ops-listen={{ .root.Values.listenAddress }}:9001
- --spool-dir=/var/spool/hush
- --drain-timeout={{ $values.drainSeconds }}s
{{- if $values.readyPath }}
- {{ printf "--ready=%s" $values.readyPath | quote }}
{{- end }}
{{- with include "hush.server.accounts" . | fromJsonArray }}
- --admin-token-review=true
{{- range . }}
- --admin-account={{ . }}
{{- end }}
{{- end }}
{{- if $values.admin.tokenSecret.name }}
- {{ printf "--admin-token-file=/var/run/secrets/hush-admin/%s" $values.admin.tokenSecret.key | quote }}
{{- end }}
{{- if $values.tls.name }}
- --tls-cert=/var/run/secrets/hush-tls/tls.crt
- --tls-key=/var/run/secrets/hush-tls/tls.key
{{- end }}
{{- with include "hush.opsTls.serverArgs" .root }}
{{ . }}
{{- end }}
- --log-format=json
{{- end }}

{{/* Of the container in which hush-sidecar runs. */}}
{{- define "hush.app.sidecarEnv" -}}
{{- if include "hush.server.accounts" . | fromJsonArray }}
# A token that commands this sidecar must be made for this pod.
- {name: HUSH_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: HUSH_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
{{- end }}
{{- end }}

{{- define "hush.app.sidecarMounts" -}}
- {name: config, mountPath: /etc/hush, readOnly: true}
- {name: spool, mountPath: /var/spool/hush}
{{- if include "hush.server.accounts" . | fromJsonArray }}
{{ include "hush.apiMount" .root }}
{{- end }}
{{- if .server.values.admin.tokenSecret.name }}
- {name: admin, mountPath: /var/run/secrets/hush-admin, readOnly: true}
{{- end }}
{{- if .server.values.tls.name }}
- {name: tls, mountPath: /var/run/secrets/hush-tls, readOnly: true}
{{- end }}
{{- with include "hush.opsTls.serverMount" .root }}
{{ . }}
{{- end }}
{{- end }}

{{- define "hush.app.volumes" -}}
- name: config
  configMap: {name: {{ .server.fullname }}}
- name: spool
  emptyDir: {sizeLimit: {{ .server.values.spool.sizeLimit }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .server.values.tmp.sizeLimit }}}
{{- if include "hush.app.isStarted" . }}
- name: hush-sidecar
  emptyDir: {sizeLimit: 256Mi}
{{- end }}
{{- if include "hush.server.accounts" . | fromJsonArray }}
{{ include "hush.apiVolume" .root }}
{{- end }}
{{- with .server.values.admin.tokenSecret.name }}
- name: admin
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with .server.values.tls.name }}
- name: tls
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with include "hush.opsTls.serverVolume" .root }}
{{ . }}
{{- end }}
{{- end }}

{{/* The ports of the sidecar, and probes. The kubelet asks the sidecar at the operations port: at the other port the same paths may
be the app's, and its health check may use the GPU. */}}
{{- define "hush.app.endpoints" -}}
{{- $scheme := empty .root.Values.opsTls.secretName | ternary "" ", scheme: HTTPS" -}}
ports:
- {name: http, containerPort: 9000}
# The controller looks for this name.
- {name: ops, containerPort: 9001}
startupProbe:
  httpGet: {path: /healthz, port: ops{{ $scheme }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: ops{{ $scheme }}}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
# A sidecar whose model is not loaded, or is busy, is ready; one that cannot govern its app is not.
readinessProbe:
  httpGet: {path: /readyz, port: ops{{ $scheme }}}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{/* hush-sidecar beside the app: it starts before the app and ends after it. */}}
{{- define "hush.app.sidecar" -}}
{{- $sidecar := .server.values.sidecar }}
{{- $gpu := .server.values.gpu -}}
- name: sidecar
  image: {{ include "hush.app.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  # A sidecar: it starts before the app and ends after it.
  restartPolicy: Always
  args: {{- include "hush.args" (dict "field" (printf "%s.sidecar.extraArgs" .server.field) "own" (include "hush.app.args" .)
      "more" $sidecar.extraArgs) | nindent 2 }}
  {{- include "hush.app.endpoints" . | nindent 2 }}
  {{- $env := include "hush.app.sidecarEnv" . | trim }}
  {{- if $gpu.enabled }}
  {{- $env = printf "%s\n%s" $env (include "hush.app.measureEnv" .) }}
  {{- end }}
  {{- include "hush.containerSettings" (dict "root" .root "field" (printf "%s.sidecar" .server.field) "values" $sidecar
      "env" $env "volumeMounts" (include "hush.app.sidecarMounts" .)) | nindent 2 }}
{{- end }}

{{/* The sidecar measures the app's devices and claims none. */}}
{{- define "hush.app.measureEnv" -}}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
{{- if not .server.values.resourceClaims }}
- {name: NVIDIA_VISIBLE_DEVICES, value: {{ .server.values.gpu.visibleDevices | default "all" | quote }}}
{{- end }}
{{- end }}

{{/* Where the sidecar starts the app the program is copied to where the app's container can start it. */}}
{{- define "hush.app.copy" -}}
- name: copy-sidecar
  image: {{ include "hush.app.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [cp, /usr/local/bin/hush-sidecar, /opt/hush/hush-sidecar]
  {{- include "hush.containerSettings" (dict "root" .root "field" (printf "%s.sidecar" .server.field)
      "values" (dict "resources" .server.values.sidecar.resources) "env" ""
      "volumeMounts" "- {name: hush-sidecar, mountPath: /opt/hush}") | nindent 2 }}
{{- end }}

{{- define "hush.app.initContainers" -}}
{{- if include "hush.app.isStarted" . }}
{{- include "hush.app.copy" . }}
{{- else }}
{{- include "hush.app.sidecar" . }}
{{- end }}
{{- if eq .root.Values.controller.scope "pod" }}
{{ include "hush.controller.container" .root }}
  # A sidecar: it starts before the app and ends after it.
  restartPolicy: Always
{{- end }}
{{- end }}

{{- define "hush.app.env" -}}
{{- $gpu := .server.values.gpu -}}
- {name: HOME, value: /tmp}
{{- if include "hush.app.isStarted" . }}
{{ include "hush.app.sidecarEnv" . | trim }}
{{- end }}
{{- if $gpu.enabled }}
- {name: NVIDIA_DRIVER_CAPABILITIES, value: {{ $gpu.driverCapabilities | quote }}}
{{- if and (not $gpu.count) $gpu.visibleDevices }}
- {name: NVIDIA_VISIBLE_DEVICES, value: {{ $gpu.visibleDevices | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.app.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "hush.app.isStarted" . }}
- {name: hush-sidecar, mountPath: /opt/hush, readOnly: true}
{{ include "hush.app.sidecarMounts" . }}
{{- end }}
{{- end }}

{{- define "hush.app.container" -}}
{{- $values := .server.values }}
{{- $isStarted := include "hush.app.isStarted" . }}
{{- $resources := deepCopy ($values.resources | default dict) }}
{{- if and $values.gpu.enabled $values.gpu.count }}
{{- $_ := set $resources "limits" (merge (dict $values.gpu.resource $values.gpu.count) ($resources.limits | default dict)) }}
{{- end }}
{{- $settings := set (deepCopy $values) "resources" $resources -}}
{{- if $isStarted }}
{{- $_ := set $settings "extraEnv" (concat ($values.sidecar.extraEnv | default list) ($values.extraEnv | default list)) }}
{{- $_ := set $settings "envFrom" (concat ($values.sidecar.envFrom | default list) ($values.envFrom | default list)) }}
{{- $_ := set $settings "volumeMounts" (concat ($values.sidecar.volumeMounts | default list) ($values.volumeMounts | default list)) }}
{{- end -}}
- name: app
  image: {{ $values.image | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- if $isStarted }}
  # hush-sidecar is the container's process; it starts the app and ends it.
  command: [/opt/hush/hush-sidecar]
  args: {{- include "hush.args" (dict "field" (printf "%s.sidecar.extraArgs" .server.field) "own" (include "hush.app.args" .)
      "more" $values.sidecar.extraArgs) | nindent 2 }}
  - --
  {{- range concat $values.command ($values.args | default list) }}
  - {{ . | quote }}
  {{- end }}
  {{- include "hush.app.endpoints" . | nindent 2 }}
  # Requests still come until the endpoints are without the pod; then the sidecar waits for those in flight by itself.
  lifecycle: {preStop: {sleep: {seconds: 5}}}
  {{- else }}
  # The kubelet ends the app before the sidecar, and no app lets requests in flight end: they have this time.
  lifecycle: {preStop: {sleep: {seconds: {{ $values.drainSeconds }}}}}
  {{- with $values.command }}
  command: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.args }}
  args: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- include "hush.containerSettings" (dict "root" .root "field" .server.field "values" $settings
      "securityContext" $values.containerSecurityContext
      "env" (include "hush.app.env" .) "volumeMounts" (include "hush.app.mounts" .)) | nindent 2 }}
{{- end }}

{{/* With `scope: pod` also the volumes of the controller. */}}
{{- define "hush.app.podVolumes" -}}
{{- $own := include "hush.app.volumes" . }}
{{- if eq .root.Values.controller.scope "pod" }}
{{- $own = printf "%s\n%s" $own (include "hush.controller.volumes" .root) }}
{{- $own = include "hush.append" (dict "field" "controller.volumes" "key" "name" "own" $own "more" .root.Values.controller.volumes) }}
{{- end }}
{{- $own }}
{{- end }}

{{- define "hush.app.pod" -}}
{{- $values := .server.values }}
{{- include "hush.pod" (dict "root" .root "component" .server.field "values" $values
    "selector" (include "hush.server.selectorLabels" .)
    "labels" (include "hush.server.podLabels" .)
    "annotations" (include "hush.app.annotations" .)
    "account" (include "hush.server.account" .)
    "runtimeClassName" $values.gpu.runtimeClassName
    "gracePeriodSeconds" (add $values.drainSeconds 30)
    "tolerations" ($values.gpu.enabled | ternary ($values.gpu.tolerations | default list) list)
    "initContainers" (include "hush.app.initContainers" .)
    "containers" (include "hush.app.container" .)
    "volumes" (include "hush.app.podVolumes" .)) }}
{{- end }}
