{{/* Names, labels, images and the settings that every pod shares. */}}

{{- define "hush.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Room is left for what is added to it. */}}
{{- define "hush.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "hush.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "hush.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "hush.serverAccount" -}}
{{ include "hush.fullname" . }}-server
{{- end }}

{{- define "hush.controllerName" -}}
{{ include "hush.fullname" . }}-controller
{{- end }}

{{/* Under which account the controller of this release asks and acts. */}}
{{- define "hush.controllerAccount" -}}
{{- eq .Values.controller.scope "pod" | ternary (include "hush.serverAccount" .) (include "hush.controllerName" .) }}
{{- end }}

{{/* What selects the pods of a component: (list $ "server"). */}}
{{- define "hush.selectorLabels" -}}
{{- $ := first . -}}
app.kubernetes.io/name: {{ include "hush.name" $ }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Labels of an object: (list $ "server"). */}}
{{- define "hush.labels" -}}
{{- $ := first . -}}
{{ include "hush.selectorLabels" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list $ IMAGE SUFFIX-OF-THE-TAG) */}}
{{- define "hush.image" -}}
{{- $ := index . 0 }}
{{- $image := index . 1 }}
{{- with $.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}
{{- else }}:{{ $image.tag | default (printf "%s%s" $.Chart.AppVersion (index . 2)) }}
{{- end }}
{{- end }}

{{/* What every pod has; the credential of the API server is mounted where it is needed alone. */}}
{{- define "hush.podSettings" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a pod runs, of anything that has these keys. */}}
{{- define "hush.placement" -}}
{{- range $key := list "nodeSelector" "affinity" "topologySpreadConstraints" "priorityClassName" }}
{{- with get $ $key }}
{{ $key }}: {{- if kindIs "string" . }} {{ . }}{{ else }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The projected volume of a service account, as a pod would have it by itself. */}}
{{- define "hush.apiVolume" -}}
- name: kube-api
  projected:
    defaultMode: 0440
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
    - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}

{{- define "hush.apiMount" -}}
- {name: kube-api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* By this people find a controller's pod, and the token of those who may act. */}}
{{- define "hush.controller.podLabels" -}}
gpu.hush.dev/controller: "true"
{{- end }}

{{- define "hush.controller.podAnnotations" -}}
{{- with .Values.controller.pageToken }}
{{- if .name }}
gpu.hush.dev/page-token: {{ .name }}/{{ .key }}
{{- end }}
{{- end }}
{{- end }}

{{/* Who reaches a controller's listener: Prometheus its metrics, people its page. JSON. */}}
{{- define "hush.controller.peers" -}}
{{- toJson (concat (.Values.networkPolicy.prometheus | default list) (.Values.networkPolicy.apiServer | default list)) }}
{{- end }}

{{/* A rule of a NetworkPolicy for names and what is outside. */}}
{{- define "hush.egress" -}}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- with .Values.networkPolicy.egress.ports }}
- ports:
  {{- range . }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
- to: [{namespaceSelector: {}, podSelector: {matchLabels: {gpu.hush.dev/server: "true"}}}]
  ports: [{port: ops, protocol: TCP}]
{{- end }}

{{/* The versions of a definition and their fields, by which two definitions are compared. */}}
{{- define "hush.definedVersions" -}}
{{- range .spec.versions }}{{ .name }} {{ toJson .schema }}{{ end }}
{{- end }}
