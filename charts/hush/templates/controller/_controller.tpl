{{/* The container of the controller, beside a server or alone. */}}
{{- define "hush.controller.container" -}}
{{- $controller := .Values.controller -}}
- name: controller
  image: {{ include "hush.image" (list . $controller.image "") }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args:
  - run
  - --scope={{ $controller.scope }}
  {{- if ne $controller.scope "cluster" }}
  - --node=$(NODE_NAME)
  {{- end }}
  {{- if eq $controller.scope "pod" }}
  - --pod=$(POD_NAMESPACE)/$(POD_NAME)
  {{- end }}
  - --listen={{ .Values.listenAddress }}:9002
  - --token-file=/var/run/secrets/hush/token
  {{- with $controller.pageToken }}
  {{- if .name }}
  - --page-token-file=/var/run/secrets/hush-page/{{ .key }}
  {{- end }}
  {{- end }}
  - --lease={{ $controller.lease.name }}
  - --lease-namespace={{ $controller.lease.namespace }}
  {{- if ne $controller.scope "cluster" }}
  - --node-lease-namespace={{ $controller.lease.nodeNamespace | default .Release.Namespace }}
  {{- end }}
  - --installation={{ include "hush.controller.installation" . }}
  - --lease-duration={{ $controller.lease.duration }}
  - --interval={{ $controller.interval }}
  - --stale-after={{ $controller.staleAfter }}
  {{- if $controller.dryRun }}
  - --dry-run
  {{- end }}
  - --log-format={{ $controller.logFormat }}
  - --log-level={{ $controller.logLevel }}
  {{- if or (ne $controller.scope "cluster") $controller.env }}
  env:
  {{- if ne $controller.scope "cluster" }}
  - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  {{- end }}
  {{- if eq $controller.scope "pod" }}
  - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  {{- end }}
  {{- with $controller.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
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
  {{- with .Values.securityContext }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $controller.resources }}
  resources: {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
  {{- include "hush.apiMount" . | nindent 2 }}
  - {name: server-token, mountPath: /var/run/secrets/hush, readOnly: true}
  {{- if $controller.pageToken.name }}
  - {name: page-token, mountPath: /var/run/secrets/hush-page, readOnly: true}
  {{- end }}
{{- end }}

{{/* The token that the servers ask for, and nobody else takes; and the one that people show. */}}
{{- define "hush.controller.tokenVolumes" -}}
- name: server-token
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken: {path: token, audience: hush-server, expirationSeconds: 3600}
{{- with .Values.controller.pageToken.name }}
- name: page-token
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* A pod that holds the controller alone. */}}
{{- define "hush.controller.pod" -}}
{{- $controller := .Values.controller -}}
metadata:
  labels: {{- include "hush.selectorLabels" (list . "controller") | nindent 4 }}
    {{- include "hush.controller.podLabels" . | nindent 4 }}
    {{- with $controller.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $annotations := include "hush.controller.podAnnotations" . | trim }}
  {{- if or $annotations $controller.podAnnotations }}
  annotations:
    {{- with $annotations }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $controller.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "hush.controllerName" . }}
  {{- include "hush.podSettings" . | nindent 2 }}
  # Commands under way get 20 s to end.
  terminationGracePeriodSeconds: 30
  {{- $placement := deepCopy $controller }}
  {{- if and (eq $controller.scope "cluster") (not $controller.affinity) }}
  {{- $selector := dict "matchLabels" (include "hush.selectorLabels" (list . "controller") | fromYaml) }}
  {{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector }}
  {{- $apart := dict "preferredDuringSchedulingIgnoredDuringExecution" (list (dict "weight" 100 "podAffinityTerm" $term)) }}
  {{- $_ := set $placement "affinity" (dict "podAntiAffinity" $apart) }}
  {{- end }}
  {{- include "hush.placement" $placement | trim | nindent 2 }}
  {{- $tolerations := eq $controller.scope "node" | ternary .Values.server.gpu.tolerations list }}
  {{- with concat $tolerations $controller.tolerations }}
  tolerations: {{- toYaml . | nindent 2 }}
  {{- end }}
  containers:
  {{- include "hush.controller.container" . | nindent 2 }}
  volumes:
  {{- include "hush.apiVolume" . | nindent 2 }}
  {{- include "hush.controller.tokenVolumes" . | nindent 2 }}
{{- end }}
