{{/* The operations port over TLS: what servers, controllers and ServiceMonitors have for it, or nothing. */}}

{{/* What certificates of servers are checked against, as JSON: {"kind": "secret", "name": ..., "key": ...}, or {}. */}}
{{- define "hush.opsTls.ca" -}}
{{- $ca := .Values.opsTls.ca }}
{{- if and $ca.secret.name $ca.configMap.name }}
{{- fail "opsTls.ca: give secret.name or configMap.name, not both" }}
{{- else if $ca.secret.name }}
{{- toJson (set (deepCopy $ca.secret) "kind" "secret") }}
{{- else if $ca.configMap.name }}
{{- toJson (set (deepCopy $ca.configMap) "kind" "configMap") }}
{{- else if .Values.opsTls.secretName }}
{{- toJson (dict "kind" "secret" "name" .Values.opsTls.secretName "key" "ca.crt") }}
{{- else }}
{{- toJson dict }}
{{- end }}
{{- end }}

{{- define "hush.opsTls.serverAnnotations" -}}
{{- if .Values.opsTls.secretName -}}
# The controller asks by https, and for the name of this namespace.
gpu.hush.dev/ops-scheme: https
{{- end }}
{{- end }}

{{- define "hush.opsTls.serverArgs" -}}
{{- if .Values.opsTls.secretName -}}
- --ops-tls-cert=/var/run/secrets/hush-ops-tls/tls.crt
- --ops-tls-key=/var/run/secrets/hush-ops-tls/tls.key
{{- end }}
{{- end }}

{{- define "hush.opsTls.serverMount" -}}
{{- if .Values.opsTls.secretName -}}
- {name: ops-tls, mountPath: /var/run/secrets/hush-ops-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "hush.opsTls.serverVolume" -}}
{{- with .Values.opsTls.secretName -}}
- name: ops-tls
  secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
{{- end }}

{{- define "hush.opsTls.controllerArgs" -}}
{{- if include "hush.opsTls.ca" . | fromJson -}}
- --ca-file=/var/run/secrets/hush-servers/ca.crt
{{- end }}
{{- end }}

{{- define "hush.opsTls.controllerMount" -}}
{{- if include "hush.opsTls.ca" . | fromJson -}}
- {name: servers-ca, mountPath: /var/run/secrets/hush-servers, readOnly: true}
{{- end }}
{{- end }}

{{/* The authority alone: the controller never sees the key of a server. */}}
{{- define "hush.opsTls.controllerVolume" -}}
{{- with include "hush.opsTls.ca" . | fromJson -}}
- name: servers-ca
  {{- if eq .kind "secret" }}
  secret: {secretName: {{ .name }}, defaultMode: 0440, items: [{key: {{ .key }}, path: ca.crt}]}
  {{- else }}
  configMap: {name: {{ .name }}, defaultMode: 0444, items: [{key: {{ .key }}, path: ca.crt}]}
  {{- end }}
{{- end }}
{{- end }}

{{/* Of an endpoint of a ServiceMonitor. */}}
{{- define "hush.opsTls.endpoint" -}}
{{- if .Values.opsTls.secretName -}}
{{- $ca := include "hush.opsTls.ca" . | fromJson -}}
scheme: https
tlsConfig:
  serverName: hush-server.{{ include "hush.namespace" . }}.svc
  ca:
    {{ $ca.kind }}: {name: {{ $ca.name }}, key: {{ $ca.key }}}
{{- end }}
{{- end }}
