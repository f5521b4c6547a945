{{/* Names, labels, images and accounts. */}}

{{- define "hush.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, since names of objects add to it. */}}
{{- define "hush.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "hush.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "hush.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "hush.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* What all servers of the release have in common, such as roles, has this name. */}}
{{- define "hush.serverName" -}}
{{ include "hush.fullname" . }}-server
{{- end }}

{{/* What all apps of the release have in common. */}}
{{- define "hush.appName" -}}
{{ include "hush.fullname" . }}-app
{{- end }}

{{- define "hush.controllerName" -}}
{{ include "hush.fullname" . }}-controller
{{- end }}

{{/* The namespace is part of the names of objects that are not in one. */}}
{{- define "hush.clusterName" -}}
{{ include "hush.namespace" (first .) }}-{{ last . }}
{{- end }}

{{/* What selects the pods of a component: (list $ "server"). */}}
{{- define "hush.selectorLabels" -}}
{{- $ := first . -}}
app.kubernetes.io/name: {{ include "hush.name" $ | quote }}
app.kubernetes.io/instance: {{ $.Release.Name | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Labels of an object: (list $ "server"). */}}
{{- define "hush.labels" -}}
{{- $ := first . -}}
{{ include "hush.selectorLabels" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
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

{{/* The accounts of the servers as JSON, each once: [{"name": ..., "create": ..., "annotations": ...}]. */}}
{{- define "hush.serverAccounts" -}}
{{- $accounts := list }}
{{- range include "hush.servers" . | fromJsonArray }}
{{- $account := .values.serviceAccount }}
{{- $accounts = append $accounts (set (deepCopy $account) "name" ($account.name | default (include "hush.serverName" $))) }}
{{- end }}
{{- toJson (uniq $accounts) }}
{{- end }}

{{/* The accounts of the apps, in the same form. */}}
{{- define "hush.appAccounts" -}}
{{- $accounts := list }}
{{- range include "hush.apps" . | fromJsonArray }}
{{- $accounts = append $accounts .values.serviceAccount }}
{{- end }}
{{- toJson (uniq $accounts) }}
{{- end }}

{{/* The names of the accounts as which controllers of this release send commands, as JSON: one beside a server or an app has that
of its pod. */}}
{{- define "hush.controllerAccounts" -}}
{{- $names := list }}
{{- if eq .Values.controller.scope "pod" }}
{{- range concat (include "hush.serverAccounts" . | fromJsonArray) (include "hush.appAccounts" . | fromJsonArray) }}
{{- $names = append $names .name }}
{{- end }}
{{- else if ne .Values.controller.scope "none" }}
{{- $names = list (.Values.controller.serviceAccount.name | default (include "hush.controllerName" .)) }}
{{- end }}
{{- toJson (uniq $names) }}
{{- end }}

{{- define "hush.controllerAccount" -}}
{{- include "hush.controllerAccounts" . | fromJsonArray | first }}
{{- end }}

{{/* Subjects of a binding: (list $ NAMES). */}}
{{- define "hush.subjects" -}}
{{- $ := first . -}}
{{- range last . }}
- {kind: ServiceAccount, name: {{ . | quote }}, namespace: {{ include "hush.namespace" $ }}}
{{- end }}
{{- end }}

{{/* A ServiceAccount: (list $ COMPONENT {"name", "create", "annotations"}). */}}
{{- define "hush.serviceAccount" -}}
{{- $ := index . 0 }}
{{- $account := index . 2 }}
{{- if $account.create -}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $account.name | quote }}
  namespace: {{ include "hush.namespace" $ }}
  labels: {{- include "hush.labels" (list $ (index . 1)) | nindent 4 }}
  {{- with $account.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
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
  # By number too: not every network plugin knows the names of a sidecar's ports.
  ports: [{port: ops, protocol: TCP}, {port: 9001, protocol: TCP}]
{{- end }}

{{/* The versions of a definition and their fields, by which two definitions are compared. */}}
{{- define "hush.definedVersions" -}}
{{- range .spec.versions }}{{ .name }} {{ toJson .schema }}{{ end }}
{{- end }}
