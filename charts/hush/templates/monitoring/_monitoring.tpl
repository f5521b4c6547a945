{{/* What rules and ServiceMonitors share. */}}

{{/* Dashboards choose by node. What the values add comes after it. */}}
{{- define "hush.monitoring.relabelings" -}}
relabelings:
- {sourceLabels: [__meta_kubernetes_pod_node_name], targetLabel: node}
{{- with .Values.monitoring.serviceMonitor.relabelings }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The PrometheusRule of another release with this set of rules, as NAMESPACE/NAME, or nothing: (list $ SET NAME). Where
several releases have one, the first by name keeps it. Without rights in the whole cluster (`rbac.create: false`) only the
namespace of the release is looked at. */}}
{{- define "hush.monitoring.othersRules" -}}
{{- $ := index . 0 }}
{{- $set := index . 1 }}
{{- $own := printf "%s/%s" (include "hush.namespace" $) (index . 2) }}
{{- $all := list }}
{{- $within := $.Values.rbac.create | ternary "" (include "hush.namespace" $) }}
{{- range (lookup "monitoring.coreos.com/v1" "PrometheusRule" $within "").items }}
{{- if eq (dig "gpu.hush.dev/rules" "" (.metadata.labels | default dict)) $set }}
{{- $all = append $all (printf "%s/%s" .metadata.namespace .metadata.name) }}
{{- end }}
{{- end }}
{{- with first (sortAlpha $all) }}
{{- if ne . $own }}{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* A PrometheusRule: (list $ SET NAME FILE). */}}
{{- define "hush.monitoring.rules" -}}
{{- $ := index . 0 }}
{{- $values := $.Values.monitoring.prometheusRule }}
{{- $link := printf "runbook_url: %s#" $values.runbookUrl }}
{{- /* Without the address of the documentation there is no link, but the place in it. */}}
{{- if not $values.runbookUrl }}{{ $link = "runbook: docs/runbooks.md#" }}{{ end -}}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ index . 2 }}
  namespace: {{ include "hush.namespace" $ }}
  labels: {{- include "hush.labels" (list $ "monitoring") | nindent 4 }}
    # By this another release finds them and installs none.
    gpu.hush.dev/rules: {{ index . 1 }}
    {{- with $values.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- /* Of this release alone: controllers of other scopes do not stand in for it. */}}
{{- $ours := printf "absent(hush_controller_acting{namespace=%q, service=%q})" (include "hush.namespace" $) (include "hush.controllerName" $) }}
{{- $text := $.Files.Get (index . 3) | replace "absent(hush_controller_acting)" $ours }}
spec: {{- $text | replace "runbook_url: docs/runbooks.md#" $link | nindent 2 }}
{{- end }}
