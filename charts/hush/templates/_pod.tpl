{{/* What the pods of servers and of the controller have in common. */}}

{{/* A pod template. `component` is `server` or `controller`, as in the values; texts are YAML:
(dict "root" $ "component" COMPONENT "values" VALUES "selector" TEXT "labels" TEXT "annotations" TEXT "account" NAME
      "runtimeClassName" NAME "gracePeriodSeconds" SECONDS "tolerations" LIST "initContainers" TEXT "containers" TEXT "volumes" TEXT) */}}
{{- define "hush.pod" -}}
{{- $values := .values }}
{{- $root := .root -}}
metadata:
  labels: {{- .selector | trim | nindent 4 }}
    {{- .labels | trim | nindent 4 }}
    {{- range $labels := list $root.Values.commonLabels $values.podLabels }}
    {{- with $labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- end }}
  {{- $annotations := trim .annotations }}
  {{- if or $annotations $values.podAnnotations }}
  annotations:
    {{- with $annotations }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ .account | quote }}
  # The credential of the API server is mounted only where it is needed.
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with mergeOverwrite (deepCopy ($root.Values.securityContext | default dict)) ($values.securityContext | default dict) }}
  securityContext: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .gracePeriodSeconds }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with concat .tolerations ($values.tolerations | default list) }}
  tolerations: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $values.topologySpreadConstraints }}
  topologySpreadConstraints: {{- include "hush.spread" (list $.selector .) | nindent 2 }}
  {{- end }}
  {{- with $values.resourceClaims }}
  resourceClaims: {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- $initContainers := include "hush.append" (dict "field" (printf "%s.initContainers" .component) "key" "name"
      "own" .initContainers "more" $values.initContainers "before" true) | trim }}
  {{- with $initContainers }}
  initContainers: {{- . | nindent 2 }}
  {{- end }}
  containers: {{- include "hush.append" (dict "field" (printf "%s.extraContainers" .component) "key" "name"
      "own" .containers "more" $values.extraContainers) | trim | nindent 2 }}
  volumes: {{- include "hush.append" (dict "field" (printf "%s.volumes" .component) "key" "name"
      "own" .volumes "more" $values.volumes) | trim | nindent 2 }}
{{- end }}

{{/* The end of a container: (dict "root" $ "field" "server" "values" VALUES "env" TEXT "volumeMounts" TEXT
"securityContext" OVERRIDES). The keys of `values` are extraEnv, envFrom, resources and volumeMounts. */}}
{{- define "hush.containerSettings" -}}
{{- $values := .values -}}
{{- with include "hush.env" . | trim -}}
env: {{- . | nindent 0 }}
{{- end }}
{{- with $values.envFrom }}
envFrom: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with mergeOverwrite (deepCopy (.root.Values.containerSecurityContext | default dict)) (.securityContext | default dict) }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.resources }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts: {{- include "hush.append" (dict "field" (printf "%s.volumeMounts" .field) "key" "mountPath"
    "own" .volumeMounts "more" $values.volumeMounts) | trim | nindent 0 }}
{{- end }}

{{/* Variables of the chart and those of `extraEnv`, which replace the chart's of the same name. */}}
{{- define "hush.env" -}}
{{- $extra := .values.extraEnv | default list }}
{{- $names := list }}
{{- range $extra }}
{{- $names = append $names .name }}
{{- end }}
{{- $own := list }}
{{- range .env | fromYamlArray }}
{{- if not (has .name $names) }}
{{- $own = append $own . }}
{{- end }}
{{- end }}
{{- $_ := include "hush.refuseRepeated" (dict "field" (printf "%s.extraEnv" .field) "key" "name" "own" list "more" $extra) }}
{{- with concat $own $extra }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* Entries of the chart and of a value: (dict "field" FIELD "key" KEY "own" TEXT "more" LIST "before" BOOLEAN). */}}
{{- define "hush.append" -}}
{{- $more := .more | default list }}
{{- $_ := include "hush.refuseRepeated" (dict "field" .field "key" .key "own" (.own | trim | fromYamlArray) "more" $more) }}
{{- $texts := list (trim .own) (empty $more | ternary "" (toYaml $more)) }}
{{- join "\n" (.before | default false | ternary (reverse $texts) $texts) }}
{{- end }}

{{/* Fails where an entry of a value repeats one of the chart or of itself. */}}
{{- define "hush.refuseRepeated" -}}
{{- $seen := list }}
{{- range .own }}
{{- $seen = append $seen (get . $.key) }}
{{- end }}
{{- range .more }}
{{- $name := get . $.key }}
{{- if has $name $seen }}
{{- fail (printf "%s: the %s %v is there already, by the chart or given twice; choose another one" $.field $.key $name) }}
{{- end }}
{{- $seen = append $seen $name }}
{{- end }}
{{- end }}

{{/* Arguments and those of `extraArgs`, which add options and repeat none: (dict "field" FIELD "own" TEXT "more" LIST). */}}
{{- define "hush.args" -}}
{{- $set := list }}
{{- range .own | fromYamlArray }}
{{- $set = append $set (regexFind "^--[^=]+" (toString .)) }}
{{- end }}
{{- range .more }}
{{- $option := regexFind "^--[^=]+" (toString .) }}
{{- if and $option (has $option $set) }}
{{- fail (printf "%s: %s is an option that the chart sets itself; use the value for it (helm show values)" $.field $option) }}
{{- end }}
{{- end }}
{{- trim .own }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Constraints of the spread: (list SELECTOR-LABELS CONSTRAINTS). */}}
{{- define "hush.spread" -}}
{{- $selector := dict "matchLabels" (first . | fromYaml) }}
{{- $constraints := list }}
{{- range last . }}
{{- $constraints = append $constraints (merge (deepCopy .) (hasKey . "labelSelector" | ternary dict (dict "labelSelector" $selector))) }}
{{- end }}
{{- toYaml $constraints }}
{{- end }}

{{/* The projected volume of a service account, as a pod has it by default. */}}
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
