{{/* The objects of one server or one app. All take (dict "root" $ "server" SERVER "component" "server"). */}}

{{/* `pod` is the template of the pods. */}}
{{- define "hush.server.deployment" }}
{{- $values := .server.values }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{- include "hush.server.metadata" (merge (dict "annotations" $values.annotations) .) | nindent 2 }}
spec:
  {{- /* Left out where it is null: an autoscaler sets it. */}}
  {{- if kindIs "float64" $values.replicas }}
  replicas: {{ $values.replicas }}
  {{- end }}
  {{- with $values.strategy }}
  strategy: {{- toYaml . | nindent 4 }}
  {{- else }}
  # A new pod needs the GPU and the claim of the old one.
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}
  {{- end }}
  selector:
    matchLabels: {{- include "hush.server.selectorLabels" . | nindent 6 }}
  template: {{- .pod | nindent 4 }}
{{- end }}

{{/* `targetPort` is the port of the pods. */}}
{{- define "hush.server.service" }}
{{- $service := .server.values.service }}
---
apiVersion: v1
kind: Service
metadata: {{- include "hush.server.metadata" (merge (dict "labels" $service.labels "annotations" $service.annotations) .) | nindent 2 }}
spec:
  type: {{ $service.type }}
  {{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" "externalTrafficPolicy" "ipFamilyPolicy" }}
  {{- with get $service $key }}
  {{ $key }}: {{ toJson . }}
  {{- end }}
  {{- end }}
  selector: {{- include "hush.server.selectorLabels" . | nindent 4 }}
  ports:
  - {name: http, port: {{ $service.port }}, targetPort: {{ .targetPort }}{{ with $service.nodePort }}, nodePort: {{ . }}{{ end }}}
{{- end }}

{{- define "hush.server.disruptionBudget" }}
{{- $budget := .server.values.podDisruptionBudget }}
{{- if $budget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "hush.server.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ $budget.maxUnavailable }}
  selector:
    matchLabels: {{- include "hush.server.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* The accounts of servers or apps, and their right to ask the API server whose token they were given:
(dict "root" $ "component" "server" "servers" LIST "accounts" LIST "name" NAME). */}}
{{- define "hush.server.rbac" }}
{{- $reviews := false }}
{{- range .servers }}
{{- if include "hush.server.accounts" (dict "root" $.root "server" .) | fromJsonArray }}
{{- $reviews = true }}
{{- end }}
{{- end }}
{{- $names := list }}
{{- range .accounts }}
{{- $names = append $names .name }}
{{ include "hush.serviceAccount" (list $.root $.component .) }}
{{- end }}
{{- if and $reviews .root.Values.rbac.create }}
{{- $name := include "hush.clusterName" (list .root .name) }}
---
# Asks the API server whose token it was given.
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- include "hush.labels" (list .root .component) | nindent 4 }}
rules:
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "hush.labels" (list .root .component) | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects: {{- include "hush.subjects" (list .root $names) }}
{{- end }}
{{- end }}

{{/* Who reaches servers or apps, and by which ports: (dict "root" $ "component" "server" "name" NAME "http" PORT "ops" PORT
"controller" PORT). */}}
{{- define "hush.server.networkPolicy" -}}
{{- $root := .root }}
{{- $policy := $root.Values.networkPolicy }}
{{- $peers := list }}
{{- if has $root.Values.controller.scope (list "cluster" "node") }}
{{- $peers = append $peers (dict "podSelector" (dict "matchLabels" (include "hush.selectorLabels" (list $root "controller") | fromYaml))) }}
{{- else if eq $root.Values.controller.scope "pod" }}
{{- /* A sidecar looks at every server that shares its cards. */}}
{{- $peers = append $peers (dict "namespaceSelector" dict "podSelector" (dict "matchLabels" (dict "gpu.hush.dev/server" "true"))) }}
{{- end }}
{{- $peers = concat $peers ($policy.controllers | default list) ($policy.prometheus | default list) -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ .name }}
  namespace: {{ include "hush.namespace" $root }}
  labels: {{- include "hush.labels" (list $root .component) | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "hush.selectorLabels" (list $root .component) | nindent 6 }}
  policyTypes: [Ingress{{ if $policy.egress.restricted }}, Egress{{ end }}]
  ingress:
  {{- $clients := $policy.clients | default list }}
  {{- if eq $policy.from "namespace" }}
  {{- $clients = prepend $clients (dict "podSelector" dict) }}
  {{- end }}
  {{- if eq $policy.from "anyone" }}
  - ports: [{port: {{ .http }}, protocol: TCP}]
  {{- else if $clients }}
  - ports: [{port: {{ .http }}, protocol: TCP}]
    from: {{- toYaml $clients | nindent 4 }}
  {{- end }}
  {{- with $peers }}
  # The controller commands and looks; Prometheus looks. Who may command, a token decides as well.
  - ports: [{port: {{ $.ops }}, protocol: TCP}]
    from: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq $root.Values.controller.scope "pod" }}
  {{- with include "hush.controller.peers" $root | fromJsonArray }}
  - ports: [{port: {{ $.controller }}, protocol: TCP}]
    from: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- if $policy.egress.restricted }}
  egress: {{- include "hush.egress" $root | nindent 2 }}
  {{- end }}
{{- end }}
