{{/* What values.schema.json cannot check. Each refusal names the value and what to write. templates/checks/values/checks.yaml calls it. */}}
{{- define "hush.checks" -}}
{{- include "hush.checks.required" . }}
{{- include "hush.checks.renamed" . }}
{{- include "hush.checks.names" . }}
{{- include "hush.checks.labels" (list "commonLabels" .Values.commonLabels) }}
{{- include "hush.checks.controller" . }}
{{- include "hush.checks.claims" . }}
{{- range include "hush.servers" . | fromJsonArray }}
{{- include "hush.checks.server" (dict "root" $ "server" .) }}
{{- end }}
{{- $seen := list }}
{{- range include "hush.apps" . | fromJsonArray }}
{{- include "hush.checks.app" (dict "root" $ "server" . "seen" $seen) }}
{{- $seen = append $seen .name }}
{{- end }}
{{- range $name, $spec := .Values.policies }}
{{- if and (hasKey $spec "selector") (empty $spec.selector) }}
{{- fail (printf "policies.%s.selector is empty: leave it out for the servers of this release" $name) }}
{{- end }}
{{- end }}
{{- with .Values.monitoring.serviceMonitor }}
{{- if and .scrapeTimeout (gt (include "hush.milliseconds" .scrapeTimeout | int) (include "hush.milliseconds" .interval | int)) }}
{{- fail (printf "monitoring.serviceMonitor.scrapeTimeout (%s) is longer than monitoring.serviceMonitor.interval (%s): Prometheus refuses that" .scrapeTimeout .interval) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.checks.renamed" -}}
{{- range $old, $new := .Files.Get "renamed.yaml" | fromYaml }}
{{- $path := splitList "." $old }}
{{- $places := list (dict "field" "" "values" $.Values) }}
{{- if eq (first $path) "server" }}
{{- range $name, $own := $.Values.servers }}
{{- $places = append $places (dict "field" (printf "servers.%s: " $name) "values" (dict "server" ($own | default dict))) }}
{{- end }}
{{- end }}
{{- range $places }}
{{- $node := .values }}
{{- range initial $path }}
{{- $node = get $node . | default dict }}
{{- end }}
{{- if hasKey $node (last $path) }}
{{- fail (printf "%sthe value %s is renamed: write %s" .field $old $new) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.checks.required" -}}
{{- range $path := .Files.Get "required.yaml" | fromYamlArray }}
{{- $node := $.Values }}
{{- range splitList "." $path }}
{{- $node = kindIs "map" $node | ternary (get $node .) "" }}
{{- end }}
{{- if and (kindIs "string" $node) (not $node) }}
{{- fail (printf "the value %s is null or empty: leave it out for its default; in an upgrade, use --reset-then-reuse-values in place of --reuse-values" $path) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Names of services begin with a letter, and have at most 63 characters. */}}
{{- define "hush.checks.names" -}}
{{- $name := include "hush.fullname" . }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) }}
{{- fail (printf "the name %q cannot be that of a service: give another name to the release, or set fullnameOverride (a to z, 0 to 9 and -, a letter first)" $name) }}
{{- end }}
{{- range concat (include "hush.servers" . | fromJsonArray) (include "hush.apps" . | fromJsonArray) }}
{{- if gt (len .fullname) 63 }}
{{- fail (printf "%s: the name %s has %d characters, and a service has at most 63: shorten it, or set fullnameOverride" .field .fullname (len .fullname)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The chart finds its objects by these labels: (list FIELD LABELS). */}}
{{- define "hush.checks.labels" -}}
{{- range $key, $_ := last . }}
{{- if or (hasPrefix "gpu.hush.dev/" $key) (has $key (list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance"
    "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by")) }}
{{- fail (printf "%s: %s is a label that the chart sets itself; use another name" (first $) $key) }}
{{- end }}
{{- end }}
{{- end }}

{{/* (list FIELD {"create", "name"}) */}}
{{- define "hush.checks.account" -}}
{{- $account := last . }}
{{- if not (or $account.create $account.name) }}
{{- fail (printf "%s.serviceAccount.create is false: name the account that exists in %s.serviceAccount.name" (first .) (first .)) }}
{{- end }}
{{- end }}

{{/* (list FIELD STRATEGY KINDS) */}}
{{- define "hush.checks.strategy" -}}
{{- $field := first . }}
{{- $strategy := index . 1 | default dict }}
{{- $type := $strategy.type | default "RollingUpdate" }}
{{- if not (has $type (last .)) }}
{{- fail (printf "%s.strategy.type is %s: here it must be %s" $field $type (join " or " (last .))) }}
{{- end }}
{{- if and $strategy.rollingUpdate (ne $type "RollingUpdate") }}
{{- fail (printf "%s.strategy.rollingUpdate is only for the type RollingUpdate, not %s: leave it out" $field $type) }}
{{- end }}
{{- end }}

{{- define "hush.checks.controller" -}}
{{- $controller := .Values.controller }}
{{- $own := has $controller.scope (list "cluster" "node") }}
{{- include "hush.checks.labels" (list "controller.podLabels" $controller.podLabels) }}
{{- if $own }}
{{- include "hush.checks.account" (list "controller" $controller.serviceAccount) }}
{{- $kinds := eq $controller.scope "cluster" | ternary (list "RollingUpdate" "Recreate") (list "RollingUpdate" "OnDelete") }}
{{- include "hush.checks.strategy" (list "controller" $controller.strategy $kinds) }}
{{- range include "hush.serverAccounts" . | fromJsonArray }}
{{- if and .create $controller.serviceAccount.create (has .name (include "hush.controllerAccounts" $ | fromJsonArray)) }}
{{- fail (printf "server.serviceAccount.name and controller.serviceAccount.name are both %s: set create: false in one of them" .name) }}
{{- end }}
{{- end }}
{{- if hasKey (.Values.servers | default dict) "controller" }}
{{- fail "servers.controller: the controller has objects of that name; choose another name for the server" }}
{{- end }}
{{- end }}
{{- with $controller.auditLog }}
{{- if and .enabled .existingClaim (or (eq $controller.scope "node") (gt (int $controller.replicas) 1)) }}
{{- $claim := lookup "v1" "PersistentVolumeClaim" (include "hush.namespace" $) .existingClaim }}
{{- if and $claim (not (has "ReadWriteMany" $claim.spec.accessModes)) }}
{{- fail (printf "controller.auditLog.existingClaim: %s has no access mode ReadWriteMany, and several pods of the controller mount it" .existingClaim) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A claim with ReadWriteOnce is for the pods of one node: pods on other nodes would wait for ever. */}}
{{- define "hush.checks.claims" -}}
{{- $pods := dict }}
{{- range include "hush.servers" . | fromJsonArray }}
{{- $values := .values }}
{{- $cache := $values.cache }}
{{- if eq $cache.kind "claim" }}
{{- $name := include "hush.server.claim" (dict "root" $ "server" .) }}
{{- $modes := list $cache.accessMode }}
{{- if $cache.existingClaim }}
{{- $claim := lookup "v1" "PersistentVolumeClaim" (include "hush.namespace" $) $cache.existingClaim }}
{{- $modes = dig "spec" "accessModes" $modes $claim }}
{{- end }}
{{- $node := get ($values.nodeSelector | default dict) "kubernetes.io/hostname" }}
{{- $before := get $pods $name | default (dict "count" 0 "nodes" list) }}
{{- /* Where an autoscaler sets the replicas, there may be several. */}}
{{- $count := add $before.count (kindIs "float64" $values.replicas | ternary $values.replicas 2) }}
{{- $nodes := append $before.nodes $node | uniq }}
{{- $oneNode := and (eq (len $nodes) 1) (first $nodes) (not (has "ReadWriteOncePod" $modes)) }}
{{- if not (or (le $count 1) $oneNode (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes)) }}
{{- $field := eq $before.count 0 | ternary (printf "%s.replicas" .field) (printf "%s.cache.name" .field) }}
{{- fail (printf "%s: several pods would share the claim %s, whose access mode is %s, so pods on other nodes could not start. Write %s.cache.kind: ephemeral or emptyDir (a copy for each pod), or cache.accessMode: ReadWriteMany, or one node in nodeSelector (kubernetes.io/hostname; not with ReadWriteOncePod)" $field $name (join ", " $modes) .field) }}
{{- end }}
{{- $_ := set $pods $name (dict "count" $count "nodes" $nodes) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "hush.checks.server" -}}
{{- $field := .server.field }}
{{- $values := .server.values }}
{{- include "hush.checks.precision" . }}
{{- include "hush.checks.labels" (list (printf "%s.podLabels" $field) $values.podLabels) }}
{{- include "hush.checks.workload" (list $field $values) }}
{{- if and $values.route.enabled (not $values.route.parentRefs) }}
{{- fail (printf "%s.route.parentRefs is empty: name the gateway, as in [{name: GATEWAY, namespace: NAMESPACE}]" $field) }}
{{- end }}
{{- if and $values.ingress.enabled (not $values.ingress.paths) }}
{{- fail (printf "%s.ingress.paths is empty: no request would reach the server; write [/]" $field) }}
{{- end }}
{{- end }}

{{- define "hush.checks.app" -}}
{{- $field := .server.field }}
{{- $name := .server.name }}
{{- $values := .server.values }}
{{- $others := list }}
{{- range include "hush.servers" .root | fromJsonArray }}
{{- $others = append $others .fullname }}
{{- end }}
{{- if has $name .seen }}
{{- fail (printf "%s.name: %s is the name of another app" $field $name) }}
{{- end }}
{{- if or (has .server.fullname $others) (has $name (list "controller" "server" "app")) }}
{{- fail (printf "%s.name: the release has objects of the name %s already; choose another name" $field .server.fullname) }}
{{- end }}
{{- if not $values.image }}
{{- fail (printf "%s.image is empty: write the image of the app with its registry and tag" $field) }}
{{- end }}
{{- if not $values.port }}
{{- fail (printf "%s.port is empty: write the port on which the app listens on 127.0.0.1" $field) }}
{{- end }}
{{- if has (int $values.port) (list 9000 9001 9002) }}
{{- fail (printf "%s.port: %d is a port of hush-sidecar (9000, 9001) or of the controller (9002); have the app listen on another one" $field (int $values.port)) }}
{{- end }}
{{- if not $values.models }}
{{- fail (printf "%s.models is empty: name the models that are governed; for an app that holds one model, any name" $field) }}
{{- end }}
{{- if and $values.kind $values.description }}
{{- fail (printf "%s: kind and description exclude each other" $field) }}
{{- end }}
{{- if and (or (eq $values.mode "process") $values.startApp) (not $values.command) }}
{{- fail (printf "%s.command is empty: with mode: process or startApp the sidecar starts the app, and does not know the command of its image" $field) }}
{{- end }}
{{- if and (eq $values.unload "process") (not $values.startApp) (ne $values.mode "process") }}
{{- fail (printf "%s.unload: process ends the process of the app at an unload, which needs startApp: true or mode: process" $field) }}
{{- end }}
{{- if ne $values.mode "process" }}
{{- if not (or $values.kind $values.description) }}
{{- fail (printf "%s.kind is empty: write which app it is, as in kind: ollama, or a description, or mode: process" $field) }}
{{- end }}
{{- if and $values.readyPath (not $values.startApp) }}
{{- fail (printf "%s.readyPath is only for mode: process and startApp" $field) }}
{{- end }}
{{- end }}
{{- include "hush.checks.labels" (list (printf "%s.podLabels" $field) $values.podLabels) }}
{{- include "hush.checks.workload" (list $field $values) }}
{{- end }}

{{/* What servers and apps have in common: (list FIELD VALUES). */}}
{{- define "hush.checks.workload" -}}
{{- $field := first . }}
{{- $values := last . }}
{{- include "hush.checks.labels" (list (printf "%s.service.labels" $field) $values.service.labels) }}
{{- include "hush.checks.account" (list $field $values.serviceAccount) }}
{{- include "hush.checks.strategy" (list $field $values.strategy (list "RollingUpdate" "Recreate")) }}
{{- with $values.service }}
{{- if and .nodePort (eq .type "ClusterIP") }}
{{- fail (printf "%s.service.nodePort is only for the types NodePort and LoadBalancer, not ClusterIP: set %s.service.type" $field $field) }}
{{- end }}
{{- if and .externalTrafficPolicy (eq .type "ClusterIP") }}
{{- fail (printf "%s.service.externalTrafficPolicy is only for the types NodePort and LoadBalancer: set %s.service.type" $field $field) }}
{{- end }}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if and (get $values.service $key) (ne $values.service.type "LoadBalancer") }}
{{- fail (printf "%s.service.%s is only for the type LoadBalancer: set %s.service.type" $field $key $field) }}
{{- end }}
{{- end }}
{{- end }}
{{- $claims := list }}
{{- range $values.resourceClaims }}
{{- $claims = append $claims .name }}
{{- end }}
{{- range ($values.resources).claims }}
{{- if not (has .name $claims) }}
{{- fail (printf "%s.resources.claims: %v is not in %s.resourceClaims" $field .name $field) }}
{{- end }}
{{- end }}
{{- if and $values.gpu.visibleDevices $values.gpu.enabled $values.gpu.count }}
{{- fail (printf "%s.gpu.visibleDevices is only for %s.gpu.count: 0; otherwise the device plugin chooses the GPU" $field $field) }}
{{- end }}
{{- end }}

{{/* The server refuses to start where CUDA is asked for with a precision that it does not take. */}}
{{- define "hush.checks.precision" -}}
{{- $values := .server.values }}
{{- $field := .server.field }}
{{- range $model := $values.models | default (list dict) }}
{{- $device := coalesce $model.device ($values.settings).device ($values.gpu.enabled | ternary "cuda" "cpu") }}
{{- $precision := coalesce $model.precision ($values.settings).precision "auto" }}
{{- if and (hasPrefix "cuda" $device) (has $precision (list "fp32" "int8")) }}
{{- $whose := $model.name | empty | ternary "" (printf "model %v: " $model.name) }}
{{- fail (printf "%s.models, %s.settings: %sprecision %s does not run on device %s (CUDA takes fp16 only; gpu.enabled asks for it): set precision: fp16 or leave it out, or device: cpu" $field $field $whose $precision $device) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of a duration such as 1m30s. */}}
{{- define "hush.milliseconds" -}}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+(ms|h|m|s)" . -1 }}
{{- $unit := regexFind "[a-z]+" . }}
{{- $sum = add $sum (mul (trimSuffix $unit . | int) (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit)) }}
{{- end }}
{{- $sum }}
{{- end }}
