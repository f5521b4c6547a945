{{/* What the network policy keeps out although another value lets it in. */}}
{{- define "hush.notes.exposed" }}
{{- $policy := .Values.networkPolicy }}
{{- if and $policy.enabled (ne $policy.from "anyone") (not $policy.clients) }}
{{- range concat (include "hush.servers" . | fromJsonArray) (include "hush.apps" . | fromJsonArray) }}
{{- $ways := list }}
{{- if ne .values.service.type "ClusterIP" }}
{{- $ways = append $ways (printf "service.type: %s" .values.service.type) }}
{{- end }}
{{- if dig "ingress" "enabled" false .values }}
{{- $ways = append $ways "ingress" }}
{{- end }}
{{- if dig "route" "enabled" false .values }}
{{- $ways = append $ways "route" }}
{{- end }}
{{- with $ways }}

WARNING: {{ $.Release.Name }} has {{ join ", " . }}, and the network policy blocks it: the public API is open to
{{ eq $policy.from "namespace" | ternary (printf "pods of the namespace %s" (include "hush.namespace" $)) "no pod" }} alone. Name who may reach it, an ingress controller's pods or a range of addresses:
  networkPolicy: {clients: [{ipBlock: {cidr: 203.0.113.0/24}}]}
or open it to all with networkPolicy.from: anyone.
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What an uninstall does not remove. */}}
{{- define "hush.notes.kept" }}
{{- $claims := list }}
{{- range include "hush.servers" . | fromJsonArray }}
{{- $cache := .values.cache }}
{{- if and (eq $cache.kind "claim") $cache.keep (not $cache.existingClaim) }}
{{- $claims = append $claims (include "hush.server.claim" (dict "root" $ "server" .)) }}
{{- end }}
{{- end }}
{{- with uniq $claims }}

An uninstall keeps the models (server.cache.keep):
  kubectl --namespace {{ include "hush.namespace" $ }} delete pvc {{ join " " . }}
{{- end }}
{{- end }}

