{{/* The container of the controller, beside a server or alone. */}}
{{- define "hush.controller.container" -}}
{{- $controller := .Values.controller -}}
- name: controller
  image: {{ include "hush.image" (list . $controller.image "") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: {{- include "hush.args" (dict "field" "controller.extraArgs" "own" (include "hush.controller.args" .)
      "more" $controller.extraArgs) | nindent 2 }}
  ports:
  - {name: controller, containerPort: 9002}
  livenessProbe:
    httpGet: {path: /healthz, port: controller}
    periodSeconds: 20
    timeoutSeconds: 5
    failureThreshold: 3
  {{- if ne $controller.scope "pod" }}
  readinessProbe:
    httpGet: {path: /readyz, port: controller}
    periodSeconds: 5
    timeoutSeconds: 5
  {{- else }}
  # No readiness: a server whose controller waits for something serves all the same.
  {{- end }}
  {{- include "hush.containerSettings" (dict "root" . "field" "controller" "values" $controller
      "securityContext" $controller.containerSecurityContext
      "env" (include "hush.controller.env" .) "volumeMounts" (include "hush.controller.mounts" .)) | nindent 2 }}
{{- end }}

{{- define "hush.controller.args" -}}
{{- $controller := .Values.controller -}}
- run
- --scope={{ $controller.scope }}
{{- if ne $controller.scope "cluster" }}
- --node=$(NODE_NAME)
{{- end }}
{{- if eq $controller.scope "pod" }}
- --pod=$(POD_NAMESPACE)/$(POD_NAME)
{{- end }}
- --listen={{ .Values.listenAddress }}:9002
{{- if eq $controller.scope "pod" }}
- --token-file=/var/run/secrets/hush/token
{{- else }}
- {{ printf "--service-account=%s:%s" (include "hush.namespace" .) (include "hush.controllerAccount" .) | quote }}
{{- end }}
# Pods elsewhere are no servers, whatever their labels say.
- --server-namespaces=kubernetes.io/metadata.name={{ include "hush.namespace" . }}
{{- range $controller.serverNamespaces }}
- {{ printf "--server-namespaces=%s" . | quote }}
{{- end }}
{{- with $controller.pageToken }}
{{- if .name }}
- {{ printf "--page-token-file=/var/run/secrets/hush-page/%s" .key | quote }}
{{- end }}
{{- end }}
{{- with include "hush.opsTls.controllerArgs" . }}
{{ . }}
{{- end }}
- --lease={{ $controller.lease.name }}
- --lease-namespace={{ $controller.lease.namespace }}
{{- if ne $controller.scope "cluster" }}
- --node-lease-namespace={{ $controller.lease.nodeNamespace | default (include "hush.namespace" .) }}
{{- end }}
- --installation={{ include "hush.controller.installation" . }}
- --lease-duration={{ $controller.lease.duration }}
- --interval={{ $controller.interval }}
- --stale-after={{ $controller.staleAfter }}
{{- if $controller.auditLog.enabled }}
- --audit-log=/var/log/hush/$(POD_NAME).jsonl
{{- end }}
{{- if $controller.dryRun }}
- --dry-run
{{- end }}
- --log-format={{ $controller.logFormat }}
- {{ printf "--log-level=%s" $controller.logLevel | quote }}
{{- end }}

{{- define "hush.controller.env" -}}
{{- $scope := .Values.controller.scope }}
{{- if ne $scope "cluster" -}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- end }}
{{- if eq $scope "pod" }}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- end }}
{{- if or (eq $scope "pod") .Values.controller.auditLog.enabled }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- end }}
{{- end }}

{{- define "hush.controller.mounts" -}}
{{ include "hush.apiMount" . }}
{{- if eq .Values.controller.scope "pod" }}
- {name: server-token, mountPath: /var/run/secrets/hush, readOnly: true}
{{- end }}
{{- if .Values.controller.pageToken.name }}
- {name: page-token, mountPath: /var/run/secrets/hush-page, readOnly: true}
{{- end }}
{{- with include "hush.opsTls.controllerMount" . }}
{{ . }}
{{- end }}
{{- if .Values.controller.auditLog.enabled }}
- {name: audit-log, mountPath: /var/log/hush}
{{- end }}
{{- end }}

{{/* What the container needs beside the credential of the API server. A controller beside a server has a token of its pod, which
that server alone accepts; other controllers ask for a token for each server. */}}
{{- define "hush.controller.volumes" -}}
{{- $controller := .Values.controller -}}
{{- if eq $controller.scope "pod" }}
- name: server-token
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken: {path: token, audience: hush-server, expirationSeconds: 3600}
{{- end }}
{{- with $controller.pageToken.name }}
- name: page-token
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- with include "hush.opsTls.controllerVolume" . }}
{{ . }}
{{- end }}
{{- if $controller.auditLog.enabled }}
- name: audit-log
  {{- with $controller.auditLog.existingClaim }}
  persistentVolumeClaim: {claimName: {{ . | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $controller.auditLog.sizeLimit }}}
  {{- end }}
{{- end }}
{{- end }}

{{/* By this people find a controller's pod, and the token of those who may act. */}}
{{- define "hush.controller.podLabels" -}}
gpu.hush.dev/controller: "true"
{{- end }}

{{- define "hush.controller.podAnnotations" -}}
{{- with .Values.controller.pageToken }}
{{- if .name }}
gpu.hush.dev/page-token: {{ printf "%s/%s" .name .key | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the pods of a Deployment run by default: on different nodes. */}}
{{- define "hush.controller.affinity" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- include "hush.selectorLabels" (list . "controller") | nindent 10 }}
{{- end }}

{{/* A pod that holds the controller alone. */}}
{{- define "hush.controller.pod" -}}
{{- $controller := deepCopy .Values.controller }}
{{- if and (eq $controller.scope "cluster") (not $controller.affinity) }}
{{- $_ := set $controller "affinity" (include "hush.controller.affinity" . | fromYaml) }}
{{- end }}
{{- include "hush.pod" (dict "root" . "component" "controller" "values" $controller
    "selector" (include "hush.selectorLabels" (list . "controller"))
    "labels" (include "hush.controller.podLabels" .)
    "annotations" (include "hush.controller.podAnnotations" .)
    "account" (include "hush.controllerAccount" .)
    "gracePeriodSeconds" 30
    "tolerations" (eq $controller.scope "node" | ternary (.Values.server.gpu.tolerations | default list) list)
    "initContainers" ""
    "containers" (include "hush.controller.container" .)
    "volumes" (printf "%s\n%s" (include "hush.apiVolume" .) (include "hush.controller.volumes" .))) }}
{{- end }}
