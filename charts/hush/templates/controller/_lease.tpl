{{/* What the controllers of this release write into the lease that they hold. */}}
{{- define "hush.controller.installation" -}}
{{ include "hush.namespace" . }}/{{ include "hush.controllerName" . }}
{{- end }}

{{/* Another installation of a controller for the whole cluster, as NAMESPACE/NAME; empty where there is none, and where
helm has no cluster to look into. Either a release has bound its account to the right to write the lease, or controllers
that were installed otherwise hold it and have renewed it within the last ten minutes. */}}
{{- define "hush.controller.otherInstallation" -}}
{{- $controller := .Values.controller }}
{{- $own := include "hush.controller.installation" . }}
{{- $found := "" }}
{{- if and (eq $controller.scope "cluster") (not $controller.dryRun) .Values.rbac.create }}
{{- $lease := lookup "coordination.k8s.io/v1" "Lease" $controller.lease.namespace $controller.lease.name }}
{{- if $lease }}
{{- $renewed := dig "spec" "renewTime" "" $lease }}
{{- if and (dig "spec" "holderIdentity" "" $lease) $renewed }}
{{- $age := sub (now | unixEpoch | int64) (toDate "2006-01-02T15:04:05Z07:00" $renewed | unixEpoch | int64) }}
{{- if lt $age 600 }}
{{- $found = dig "metadata" "annotations" "gpu.hush.dev/installation" "" $lease }}
{{- end }}
{{- end }}
{{- end }}
{{- if or (not $found) (eq $found $own) }}
{{- $found = "" }}
{{- $bindings := lookup "rbac.authorization.k8s.io/v1" "RoleBinding" $controller.lease.namespace "" }}
{{- range (dig "items" list $bindings) }}
{{- if eq (dig "metadata" "labels" "gpu.hush.dev/scope" "" .) "cluster" }}
{{- $installation := dig "metadata" "annotations" "gpu.hush.dev/installation" "" . }}
{{- if and $installation (ne $installation $own) }}
{{- $found = $installation }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $found }}
{{- end }}
