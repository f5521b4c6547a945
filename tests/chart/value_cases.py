"""Values of the chart, and where each is found in what is rendered."""

SERVER, CONTROLLER = "Deployment/hush", "Deployment/hush-controller"
POD = "spec.template.spec"
HERE = f"{SERVER} {POD}.containers[server]"
THERE = f"{CONTROLLER} {POD}.containers[controller]"
INSTALL = f"{SERVER} {POD}.initContainers[install-0]"
APP = "Deployment/hush-chat"
APP_HERE = f"{APP} {POD}.containers[app]"
SIDECAR = f"{APP} {POD}.initContainers[sidecar]"
MONITOR = "ServiceMonitor/hush-controller"


class Has:
    """Expected of a list: that it holds these entries."""

    def __init__(self, *entries):
        self.entries = entries


ABSENT = object()

# Values, and where they are found: `KIND/NAME PATH`; `[NAME]` is an entry of a list by its name, `[0]` by its number.
CASES = [
    ("nameOverride: voice", {"Deployment/hush-voice metadata.labels.app\\.kubernetes\\.io/name": "voice"}),
    ("fullnameOverride: talk", {"Deployment/talk metadata.name": "talk", "Deployment/talk-controller metadata.name": "talk-controller"}),
    ("namespaceOverride: elsewhere", {
        f"{SERVER} metadata.namespace": "elsewhere", "ServiceAccount/hush-server metadata.namespace": "elsewhere",
        "ClusterRoleBinding/elsewhere-hush-controller subjects[hush-controller].namespace": "elsewhere",
        f"{HERE}.args": Has("--admin-account=elsewhere:hush-controller"),
        f"{THERE}.args": Has("--installation=elsewhere/hush-controller"),
    }),
    ("commonLabels: {team: media}", {
        f"{SERVER} metadata.labels.team": "media", f"{SERVER} spec.template.metadata.labels.team": "media",
        f"{CONTROLLER} spec.template.metadata.labels.team": "media", "ClusterRole/hush-hush-server metadata.labels.team": "media",
        f"{SERVER} spec.selector.matchLabels.team": ABSENT,
    }),
    ("""
image: {registry: registry.example/a/, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
server: {image: {repository: own-server, tag: v2}}
controller: {image: {repository: own-controller, digest: "sha256:%s"}}
""" % ("0" * 64), {
        f"{HERE}.image": "registry.example/a/own-server:v2", f"{INSTALL}.image": "registry.example/a/own-server:v2",
        f"{THERE}.image": f"registry.example/a/own-controller@sha256:{'0' * 64}",
        f"{HERE}.imagePullPolicy": "Always", f"{THERE}.imagePullPolicy": "Always", f"{INSTALL}.imagePullPolicy": "Always",
        f"{SERVER} {POD}.imagePullSecrets": [{"name": "pull"}], f"{CONTROLLER} {POD}.imagePullSecrets": [{"name": "pull"}],
    }),
    (f"server: {{image: {{digest: 'sha256:{'1' * 64}'}}}}\ncontroller: {{image: {{tag: v3}}}}", {
        f"{HERE}.image": f"hush-server@sha256:{'1' * 64}", f"{THERE}.image": "hush-controller:v3",
    }),
    ("server: {enabled: false}", {f"{SERVER} metadata": ABSENT, "ServiceAccount/hush-server metadata": ABSENT}),
    ("""
server:
  replicas: 2
  models: [{name: calls, source: acme/calls, revision: v2}]
  settings: {idleTimeout: 7m}
  extraArgs: [--asr-engine=faster_whisper]
  extraEnv: [{name: HOME, value: /home}, {name: ONE, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
  envFrom: [{prefix: P_, secretRef: {name: from}}]
  cache: {kind: ephemeral, size: 5Gi, storageClass: fast, annotations: {a: b}}
  spool: {sizeLimit: 3Gi}
  drainSeconds: 90
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  annotations: {reloader: "true"}
  podLabels: {app: speech}
  podAnnotations: {note: pod}
  priorityClassName: high
  nodeSelector: {zone: a}
  tolerations: [{key: mine, operator: Exists}]
  affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
  securityContext: {runAsUser: 1000}
  containerSecurityContext: {readOnlyRootFilesystem: false}
  volumes: [{name: ca, configMap: {name: ca}}]
  volumeMounts: [{name: ca, mountPath: /ca}]
  initContainers: [{name: first, image: first:1}]
  extraContainers: [{name: beside, image: beside:1}]
  resources: {limits: {memory: 9Gi}}
  podDisruptionBudget: {maxUnavailable: 50%}
""", {
        f"{SERVER} spec.replicas": 2,
        f"{INSTALL}.args": Has("acme/calls", "--name=calls", "--revision=v2"),
        "ConfigMap/hush data.config\\.yaml": "models:\n- name: calls\n",
        f"{HERE}.env[HUSH_IDLE_TIMEOUT].value": "7m",
        f"{HERE}.args": Has("--asr-engine=faster_whisper", "--drain-timeout=90s"),
        f"{HERE}.env[HOME].value": "/home", f"{INSTALL}.env[HOME].value": "/tmp",
        f"{HERE}.env[ONE].valueFrom.fieldRef.fieldPath": "metadata.name",
        f"{HERE}.envFrom": [{"prefix": "P_", "secretRef": {"name": "from"}}], f"{INSTALL}.envFrom": ABSENT,
        f"{SERVER} {POD}.volumes[models].ephemeral.volumeClaimTemplate.spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}},
        f"{SERVER} {POD}.volumes[models].ephemeral.volumeClaimTemplate.metadata.annotations": {"a": "b"},
        f"{SERVER} {POD}.volumes[tmp].emptyDir.sizeLimit": "3Gi",
        f"{SERVER} {POD}.terminationGracePeriodSeconds": 120,
        f"{SERVER} spec.strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        f"{SERVER} metadata.annotations": {"reloader": "true"},
        f"{SERVER} spec.template.metadata.labels.app": "speech", f"{SERVER} spec.template.metadata.annotations.note": "pod",
        f"{SERVER} {POD}.priorityClassName": "high", f"{SERVER} {POD}.nodeSelector": {"zone": "a"},
        f"{SERVER} {POD}.tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                                        {"key": "mine", "operator": "Exists"}],
        f"{SERVER} {POD}.affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        f"{SERVER} {POD}.topologySpreadConstraints[0].maxSkew": 1,
        f"{SERVER} {POD}.topologySpreadConstraints[0].labelSelector.matchLabels.gpu\\.hush\\.dev/name": "hush",
        f"{SERVER} {POD}.securityContext.runAsUser": 1000, f"{CONTROLLER} {POD}.securityContext.runAsUser": 65532,
        f"{HERE}.securityContext.readOnlyRootFilesystem": False, f"{THERE}.securityContext.readOnlyRootFilesystem": True,
        f"{SERVER} {POD}.volumes[ca].configMap": {"name": "ca"}, f"{HERE}.volumeMounts": Has({"name": "ca", "mountPath": "/ca"}),
        f"{SERVER} {POD}.initContainers[0].name": "first", f"{SERVER} {POD}.containers[1].name": "beside",
        f"{HERE}.resources.limits": {"memory": "9Gi", "nvidia.com/gpu": 1},
        "PodDisruptionBudget/hush spec.maxUnavailable": "50%",
    }),
    # An autoscaler sets the replicas.
    ("server: {replicas: null, cache: {kind: emptyDir, size: 4Gi}, podDisruptionBudget: {enabled: false}}", {
        f"{SERVER} spec.replicas": ABSENT, f"{SERVER} {POD}.volumes[models].emptyDir.sizeLimit": "4Gi",
        "PodDisruptionBudget/hush metadata": ABSENT,
    }),
    ("server: {cache: {kind: emptyDir}}\nservers: {a: {replicas: null}, b: {replicas: 0}, c: {}}", {
        "Deployment/hush-a spec.replicas": ABSENT, "Deployment/hush-b spec.replicas": 0, "Deployment/hush-c spec.replicas": 1}),
    ("server: {gpu: {resource: nvidia.com/gpu.shared, count: 2, runtimeClassName: nvidia, driverCapabilities: all, tolerations: []}}", {
        f"{HERE}.resources.limits": {"nvidia.com/gpu.shared": 2}, f"{SERVER} {POD}.runtimeClassName": "nvidia",
        f"{HERE}.env[NVIDIA_DRIVER_CAPABILITIES].value": "all", f"{SERVER} {POD}.tolerations": ABSENT,
    }),
    ("server: {gpu: {count: 0, visibleDevices: GPU-a}}", {
        f"{HERE}.env[NVIDIA_VISIBLE_DEVICES].value": "GPU-a", f"{HERE}.resources.limits": ABSENT}),
    ("server: {gpu: {enabled: false}}", {f"{HERE}.args": Has("--device=cpu")}),
    ("""
server:
  gpu: {count: 0}
  resourceClaims: [{name: gpu, resourceClaimTemplateName: one-gpu}, {name: shared, resourceClaimName: the-gpu}]
  resources: {claims: [{name: gpu, request: half}]}
""", {
        f"{SERVER} {POD}.resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"},
                                           {"name": "shared", "resourceClaimName": "the-gpu"}],
        f"{HERE}.resources.claims": [{"name": "gpu", "request": "half"}], f"{HERE}.resources.limits": ABSENT,
    }),
    ("server: {cache: {size: 9Gi, storageClass: fast, accessMode: ReadWriteMany, annotations: {a: b}, keep: true}}", {
        "PersistentVolumeClaim/hush-models spec": {
            "accessModes": ["ReadWriteMany"], "storageClassName": "fast", "resources": {"requests": {"storage": "9Gi"}}},
        "PersistentVolumeClaim/hush-models metadata.annotations": {"a": "b", "helm.sh/resource-policy": "keep"},
    }),
    ("server: {cache: {keep: false, name: models}}", {
        "PersistentVolumeClaim/hush-models metadata.annotations": ABSENT,
        f"{SERVER} {POD}.volumes[models].persistentVolumeClaim.claimName": "hush-models"}),
    ("server: {cache: {existingClaim: theirs}}", {
        "PersistentVolumeClaim/hush-models metadata": ABSENT,
        f"{SERVER} {POD}.volumes[models].persistentVolumeClaim.claimName": "theirs"}),
    ("server: {cache: {kind: hostPath, path: /srv/models}}", {f"{SERVER} {POD}.volumes[models].hostPath.path": "/srv/models"}),
    ("""
server:
  volumes: [{name: ca, secret: {secretName: ca}}]
  install:
    endpoint: https://hub.example
    tokenSecret: {name: hub, key: word}
    extraEnv: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
    envFrom: [{configMapRef: {name: proxies}}]
    volumeMounts: [{name: ca, mountPath: /etc/ca, readOnly: true}]
    resources: {limits: {memory: 2Gi}}
""", {
        f"{INSTALL}.env[HF_ENDPOINT].value": "https://hub.example",
        f"{INSTALL}.env[HF_TOKEN].valueFrom.secretKeyRef": {"name": "hub", "key": "word"},
        f"{INSTALL}.env[HTTPS_PROXY].value": "http://proxy:3128", f"{HERE}.env[HTTPS_PROXY]": ABSENT,
        f"{INSTALL}.envFrom": [{"configMapRef": {"name": "proxies"}}],
        f"{INSTALL}.volumeMounts": Has({"name": "ca", "mountPath": "/etc/ca", "readOnly": True}),
        f"{INSTALL}.resources.limits": {"memory": "2Gi"}, f"{SERVER} {POD}.volumes[ca].secret": {"secretName": "ca"},
    }),
    ("server: {install: {enabled: false}}", {f"{SERVER} {POD}.initContainers": ABSENT}),
    ("""
server:
  apiKeys: {name: keys, key: list}
  tls: {name: cert}
  admin: {accounts: ["ops:robot"], tokenSecret: {name: admin, key: word}}
""", {
        f"{HERE}.args": Has("--api-keys-file=/var/run/secrets/hush-keys/list", "--tls-cert=/var/run/secrets/hush-tls/tls.crt",
                            "--admin-token-file=/var/run/secrets/hush-admin/word", "--admin-account=ops:robot",
                            "--admin-account=hush:hush-controller"),
        f"{SERVER} {POD}.volumes[keys].secret.secretName": "keys", f"{SERVER} {POD}.volumes[tls].secret.secretName": "cert",
        f"{SERVER} {POD}.volumes[admin].secret.secretName": "admin", f"{HERE}.livenessProbe.httpGet.scheme": "HTTPS",
    }),
    ("""
server:
  service:
    type: LoadBalancer
    port: 80
    nodePort: 30900
    labels: {a: b}
    annotations: {c: d}
    loadBalancerClass: example.org/inner
    loadBalancerSourceRanges: [10.0.0.0/8]
    externalTrafficPolicy: Local
    ipFamilyPolicy: PreferDualStack
""", {
        "Service/hush spec.type": "LoadBalancer", "Service/hush spec.ports[http].port": 80,
        "Service/hush spec.ports[http].nodePort": 30900, "Service/hush metadata.labels.a": "b",
        "Service/hush metadata.annotations": {"c": "d"}, "Service/hush spec.loadBalancerClass": "example.org/inner",
        "Service/hush spec.loadBalancerSourceRanges": ["10.0.0.0/8"], "Service/hush spec.externalTrafficPolicy": "Local",
        "Service/hush spec.ipFamilyPolicy": "PreferDualStack",
    }),
    ("""
server:
  ingress:
    enabled: true
    ingressClassName: inner
    labels: {a: b}
    annotations: {c: d}
    hosts: [one.example, two.example]
    paths: [/speech]
    pathType: Exact
    tls: [{secretName: cert, hosts: [one.example]}]
  route:
    enabled: true
    labels: {e: f}
    annotations: {g: h}
    parentRefs: [{name: gate, namespace: edge}]
    hostnames: [three.example]
    matches: [{path: {type: Exact, value: /asr}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x]}}]
    timeouts: {request: 1h, backendRequest: 50m}
    additionalRules: [{backendRefs: [{name: other, port: 80}]}]
""", {
        "Ingress/hush spec.ingressClassName": "inner", "Ingress/hush metadata.labels.a": "b",
        "Ingress/hush metadata.annotations": {"c": "d"}, "Ingress/hush spec.rules[1].host": "two.example",
        "Ingress/hush spec.rules[1].http.paths": [{"path": "/speech", "pathType": "Exact",
                                                   "backend": {"service": {"name": "hush", "port": {"name": "http"}}}}],
        "Ingress/hush spec.tls": [{"secretName": "cert", "hosts": ["one.example"]}],
        "HTTPRoute/hush metadata.labels.e": "f", "HTTPRoute/hush metadata.annotations": {"g": "h"},
        "HTTPRoute/hush spec.parentRefs": [{"name": "gate", "namespace": "edge"}], "HTTPRoute/hush spec.hostnames": ["three.example"],
        "HTTPRoute/hush spec.rules[0]": {"backendRefs": [{"name": "other", "port": 80}]},
        "HTTPRoute/hush spec.rules[1]": {
            "backendRefs": [{"name": "hush", "port": 9000}], "matches": [{"path": {"type": "Exact", "value": "/asr"}}],
            "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x"]}}],
            "timeouts": {"request": "1h", "backendRequest": "50m"}},
    }),
    ("server: {serviceAccount: {name: speaks, annotations: {role: a}}}\ncontroller: {serviceAccount: {name: decides, annotations: {role: b}}}", {
        "ServiceAccount/speaks metadata.annotations": {"role": "a"}, "ServiceAccount/decides metadata.annotations": {"role": "b"},
        f"{SERVER} {POD}.serviceAccountName": "speaks", f"{CONTROLLER} {POD}.serviceAccountName": "decides",
        f"{HERE}.args": Has("--admin-account=hush:decides"),
        "ClusterRoleBinding/hush-hush-server subjects[0].name": "speaks", "ClusterRoleBinding/hush-hush-controller subjects[0].name": "decides",
        "RoleBinding/hush-hush-controller-lease subjects[0].name": "decides",
    }),
    ("server: {serviceAccount: {create: false, name: speaks}}\ncontroller: {serviceAccount: {create: false, name: decides}}", {
        "ServiceAccount/speaks metadata": ABSENT, "ServiceAccount/decides metadata": ABSENT,
        f"{SERVER} {POD}.serviceAccountName": "speaks", f"{CONTROLLER} {POD}.serviceAccountName": "decides",
    }),
    ("servers: {a: {serviceAccount: {name: one}}, b: {}}\ncontroller: {scope: pod}", {
        f"Deployment/hush-a {POD}.serviceAccountName": "one", f"Deployment/hush-b {POD}.serviceAccountName": "hush-server",
        f"Deployment/hush-a {POD}.containers[server].args": Has("--admin-account=hush:one"),
        "ClusterRoleBinding/hush-hush-controller subjects[0].name": "one",
        "ClusterRoleBinding/hush-hush-controller subjects[1].name": "hush-server",
    }),
    # An app that the sidecar knows, and everything of its pod.
    ("""
app:
  kind: ollama
  replicas: 2
  image: docker.io/ollama/ollama:0.17.4
  command: [ollama, serve]
  args: [--verbose]
  port: 11435
  models: [one, two]
  parameters: {kind: x}
  extraEnv: [{name: OLLAMA_HOST, value: "127.0.0.1:11435"}]
  envFrom: [{secretRef: {name: from}}]
  sidecar:
    image: {repository: own-sidecar, tag: v2}
    extraArgs: [--cold-hold=90s]
    extraEnv: [{name: ONE, value: "1"}]
    envFrom: [{configMapRef: {name: settings}}]
    volumeMounts: [{name: ca, mountPath: /ca}]
    resources: {limits: {memory: 128Mi}}
  gpu: {enabled: true, resource: nvidia.com/gpu.shared, count: 2, runtimeClassName: nvidia, driverCapabilities: all, tolerations: []}
  spool: {sizeLimit: 3Gi}
  tmp: {sizeLimit: 4Gi}
  admin: {accounts: ["ops:robot"], tokenSecret: {name: admin, key: word}}
  service:
    type: LoadBalancer
    port: 80
    nodePort: 30900
    labels: {a: b}
    annotations: {c: d}
    loadBalancerClass: example.org/inner
    loadBalancerSourceRanges: [10.0.0.0/8]
    externalTrafficPolicy: Local
    ipFamilyPolicy: PreferDualStack
  drainSeconds: 90
  podDisruptionBudget: {enabled: true, maxUnavailable: 50%}
  serviceAccount: {create: true, name: chats, annotations: {role: a}}
  annotations: {reloader: "true"}
  strategy: {type: Recreate}
  resources: {limits: {memory: 9Gi}}
  nodeSelector: {zone: a}
  tolerations: [{key: mine, operator: Exists}]
  affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: []}}
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
  priorityClassName: high
  podLabels: {tier: chat}
  podAnnotations: {note: pod}
  securityContext: {runAsUser: 1000}
  containerSecurityContext: {readOnlyRootFilesystem: false}
  volumes: [{name: ca, configMap: {name: ca}}, {name: models, emptyDir: {}}]
  volumeMounts: [{name: models, mountPath: /models}]
  initContainers: [{name: first, image: first:1}]
  extraContainers: [{name: beside, image: beside:1}]
apps: [{name: chat}]
""", {
        f"{APP} spec.replicas": 2, f"{APP} spec.strategy": {"type": "Recreate"}, f"{APP} metadata.annotations": {"reloader": "true"},
        f"{APP_HERE}.image": "docker.io/ollama/ollama:0.17.4", f"{APP_HERE}.command": ["ollama", "serve"], f"{APP_HERE}.args": ["--verbose"],
        f"{SIDECAR}.args": Has("--app=ollama", "--upstream=http://127.0.0.1:11435", "--config=/etc/hush/config.yaml", "--cold-hold=90s",
                               "--admin-account=ops:robot", "--admin-account=hush:hush-controller",
                               "--admin-token-file=/var/run/secrets/hush-admin/word", "--drain-timeout=90s"),
        "ConfigMap/hush-chat data.config\\.yaml": "models:\n- name: one\n- name: two\nparameters:\n  kind: x\n",
        f"{APP_HERE}.env[OLLAMA_HOST].value": "127.0.0.1:11435", f"{SIDECAR}.env[OLLAMA_HOST]": ABSENT,
        f"{APP_HERE}.envFrom": [{"secretRef": {"name": "from"}}], f"{SIDECAR}.envFrom": [{"configMapRef": {"name": "settings"}}],
        f"{SIDECAR}.image": "own-sidecar:v2", f"{SIDECAR}.env[ONE].value": "1", f"{SIDECAR}.resources.limits": {"memory": "128Mi"},
        f"{SIDECAR}.volumeMounts": Has({"name": "ca", "mountPath": "/ca"}), f"{APP_HERE}.volumeMounts": Has({"name": "models", "mountPath": "/models"}),
        f"{APP_HERE}.resources.limits": {"memory": "9Gi", "nvidia.com/gpu.shared": 2}, f"{APP} {POD}.runtimeClassName": "nvidia",
        f"{APP_HERE}.env[NVIDIA_DRIVER_CAPABILITIES].value": "all", f"{SIDECAR}.env[NVIDIA_DRIVER_CAPABILITIES].value": "utility",
        f"{APP} {POD}.tolerations": [{"key": "mine", "operator": "Exists"}],
        f"{APP} {POD}.volumes[spool].emptyDir.sizeLimit": "3Gi", f"{APP} {POD}.volumes[tmp].emptyDir.sizeLimit": "4Gi",
        f"{APP} {POD}.volumes[admin].secret.secretName": "admin", f"{APP} {POD}.volumes[models].emptyDir": {},
        "Service/hush-chat spec.type": "LoadBalancer", "Service/hush-chat spec.ports[http].port": 80,
        "Service/hush-chat spec.ports[http].targetPort": 9000, "Service/hush-chat spec.ports[http].nodePort": 30900,
        "Service/hush-chat metadata.labels.a": "b", "Service/hush-chat metadata.annotations": {"c": "d"},
        "Service/hush-chat spec.loadBalancerClass": "example.org/inner", "Service/hush-chat spec.loadBalancerSourceRanges": ["10.0.0.0/8"],
        "Service/hush-chat spec.externalTrafficPolicy": "Local", "Service/hush-chat spec.ipFamilyPolicy": "PreferDualStack",
        f"{APP_HERE}.lifecycle.preStop.sleep.seconds": 90, f"{APP} {POD}.terminationGracePeriodSeconds": 120,
        "PodDisruptionBudget/hush-chat spec.maxUnavailable": "50%",
        "ServiceAccount/chats metadata.annotations": {"role": "a"}, f"{APP} {POD}.serviceAccountName": "chats",
        "ClusterRoleBinding/hush-hush-app subjects[0].name": "chats",
        f"{APP} {POD}.nodeSelector": {"zone": "a"}, f"{APP} {POD}.priorityClassName": "high",
        f"{APP} {POD}.affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        f"{APP} {POD}.topologySpreadConstraints[0].labelSelector.matchLabels.gpu\\.hush\\.dev/name": "chat",
        f"{APP} spec.template.metadata.labels.tier": "chat", f"{APP} spec.template.metadata.annotations.note": "pod",
        f"{APP} {POD}.securityContext.runAsUser": 1000,
        f"{APP_HERE}.securityContext.readOnlyRootFilesystem": False, f"{SIDECAR}.securityContext.readOnlyRootFilesystem": True,
        f"{APP} {POD}.initContainers[0].name": "first", f"{APP} {POD}.containers[1].name": "beside",
    }),
    ("""
app: {image: "x/y:1", port: 8000, models: [m]}
monitoring: {serviceMonitor: {enabled: true, appMetrics: true}}
apps:
- {name: chat, mode: process, command: [serve], readyPath: /up, podDisruptionBudget: {enabled: false}, gpu: {count: 0, visibleDevices: GPU-a}}
- {name: started, kind: vllm, startApp: true, unload: process, command: [serve], readyPath: /up, tls: {name: clients}}
- {name: own, description: "name: own", replicas: null, sidecar: {image: {digest: "sha256:%s"}}, gpu: {enabled: false}}
- {name: claimed, kind: vllm, gpu: {count: 0}, resourceClaims: [{name: gpu, resourceClaimName: the-gpu}, {name: more, resourceClaimTemplateName: t}], resources: {claims: [{name: gpu}]}}
""" % ("2" * 64), {
        f"{APP_HERE}.args": Has("--app=process", "--mode=process", "--ready=/up", "--", "serve"), f"{APP} {POD}.initContainers[copy-sidecar].image": "hush-sidecar:0.1.0",
        f"Deployment/hush-started {POD}.containers[app].args": Has("--app=vllm", "--mode=api", "--unload=process", "--ready=/up", "--", "serve"),
        f"Deployment/hush-started {POD}.volumes[tls].secret.secretName": "clients",
        "ServiceMonitor/hush-app spec.endpoints[1].path": "/app/metrics",
        f"{APP_HERE}.env[NVIDIA_VISIBLE_DEVICES].value": "GPU-a", f"{APP_HERE}.resources.limits": ABSENT,
        "PodDisruptionBudget/hush-chat metadata": ABSENT, "ConfigMap/hush-own data.app\\.yaml": "name: own\n",
        f"Deployment/hush-own {POD}.initContainers[sidecar].image": f"hush-sidecar@sha256:{'2' * 64}", "Deployment/hush-own spec.replicas": ABSENT,
        f"Deployment/hush-own {POD}.containers[app].env[NVIDIA_DRIVER_CAPABILITIES]": ABSENT,
        f"Deployment/hush-own {POD}.initContainers[sidecar].env[NVIDIA_VISIBLE_DEVICES]": ABSENT,
        f"Deployment/hush-claimed {POD}.resourceClaims": [{"name": "gpu", "resourceClaimName": "the-gpu"}, {"name": "more", "resourceClaimTemplateName": "t"}],
        f"Deployment/hush-claimed {POD}.containers[app].resources.claims": [{"name": "gpu"}],
        f"Deployment/hush-claimed {POD}.initContainers[sidecar].env[NVIDIA_VISIBLE_DEVICES]": ABSENT,
    }),
    ("""
controller:
  replicas: 3
  dryRun: true
  interval: 2s
  staleAfter: 20s
  lease: {name: mine, namespace: leases, duration: 30s}
  pageToken: {name: page, key: word}
  auditLog: {enabled: true, sizeLimit: 2Gi}
  logFormat: text
  logLevel: debug
  extraArgs: [--web-ui=false]
  extraEnv: [{name: ONE, value: "1"}]
  envFrom: [{secretRef: {name: from}}]
  resources: {limits: {memory: 1Gi}}
  volumes: [{name: ca, configMap: {name: ca}}]
  volumeMounts: [{name: ca, mountPath: /ca}]
  podDisruptionBudget: {maxUnavailable: 2}
  annotations: {a: b}
  strategy: {type: Recreate}
  nodeSelector: {zone: a}
  tolerations: [{key: mine, operator: Exists}]
  affinity: {podAntiAffinity: {}}
  topologySpreadConstraints: [{maxSkew: 2, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {a: b}}}]
  priorityClassName: system-cluster-critical
  podLabels: {c: d}
  podAnnotations: {e: f}
  securityContext: {fsGroup: 1}
  containerSecurityContext: {runAsUser: 2}
  initContainers: [{name: first, image: first:1}]
  extraContainers: [{name: beside, image: beside:1}]
""", {
        f"{CONTROLLER} spec.replicas": 3,
        f"{THERE}.args": Has("--dry-run", "--interval=2s", "--stale-after=20s", "--lease=mine", "--lease-namespace=leases",
                             "--lease-duration=30s", "--page-token-file=/var/run/secrets/hush-page/word", "--log-format=text",
                             "--log-level=debug", "--web-ui=false", "--audit-log=/var/log/hush/$(POD_NAME).jsonl"),
        "Role/hush-hush-controller-lease metadata.namespace": "leases",
        f"{THERE}.volumeMounts": Has({"name": "audit-log", "mountPath": "/var/log/hush"}, {"name": "ca", "mountPath": "/ca"}),
        f"{THERE}.env[POD_NAME].valueFrom.fieldRef.fieldPath": "metadata.name",
        f"{CONTROLLER} {POD}.volumes[audit-log].emptyDir.sizeLimit": "2Gi",
        f"{THERE}.env[ONE].value": "1", f"{THERE}.envFrom": [{"secretRef": {"name": "from"}}],
        f"{THERE}.resources.limits": {"memory": "1Gi"}, f"{CONTROLLER} {POD}.volumes[ca].configMap": {"name": "ca"},
        "PodDisruptionBudget/hush-controller spec.maxUnavailable": 2, f"{CONTROLLER} metadata.annotations": {"a": "b"},
        f"{CONTROLLER} spec.strategy": {"type": "Recreate"}, f"{CONTROLLER} {POD}.nodeSelector": {"zone": "a"},
        f"{CONTROLLER} {POD}.tolerations": [{"key": "mine", "operator": "Exists"}], f"{CONTROLLER} {POD}.affinity": {"podAntiAffinity": {}},
        f"{CONTROLLER} {POD}.topologySpreadConstraints[0].labelSelector": {"matchLabels": {"a": "b"}},
        f"{CONTROLLER} {POD}.priorityClassName": "system-cluster-critical",
        f"{CONTROLLER} spec.template.metadata.labels.c": "d", f"{CONTROLLER} spec.template.metadata.annotations.e": "f",
        f"{CONTROLLER} {POD}.securityContext.fsGroup": 1, f"{THERE}.securityContext.runAsUser": 2,
        f"{CONTROLLER} {POD}.initContainers[0].name": "first", f"{CONTROLLER} {POD}.containers[1].name": "beside",
    }),
    ("controller: {auditLog: {enabled: true, existingClaim: audit}, podDisruptionBudget: {enabled: false}}", {
        f"{CONTROLLER} {POD}.volumes[audit-log].persistentVolumeClaim.claimName": "audit",
        "PodDisruptionBudget/hush-controller metadata": ABSENT}),
    # Beside the server: its pod has the controller's volumes.
    ("""
controller:
  scope: pod
  auditLog: {enabled: true}
  volumes: [{name: ca, configMap: {name: ca}}]
  volumeMounts: [{name: ca, mountPath: /ca}]
  extraArgs: [--web-ui=false]
""", {
        f"{SERVER} {POD}.volumes[audit-log].emptyDir.sizeLimit": "1Gi", f"{SERVER} {POD}.volumes[ca].configMap": {"name": "ca"},
        f"{SERVER} {POD}.initContainers[controller].volumeMounts": Has({"name": "ca", "mountPath": "/ca"}),
        f"{SERVER} {POD}.initContainers[controller].args": Has("--web-ui=false"),
    }),
    ("controller: {scope: node, strategy: {type: OnDelete}, annotations: {a: b}}", {
        "DaemonSet/hush-controller spec.updateStrategy": {"type": "OnDelete"}, "DaemonSet/hush-controller spec.strategy": ABSENT,
        "DaemonSet/hush-controller metadata.annotations": {"a": "b"}}),
    ("controller: {serverNamespaces: [team=media], lease: {namespace: leases}}", {
        f"{THERE}.args": Has("--server-namespaces=team=media", "--lease-namespace=leases"),
        "Role/hush-hush-controller-lease metadata.namespace": "leases"}),
    ("controller: {scope: node, lease: {nodeNamespace: leases}}", {
        f"DaemonSet/hush-controller {POD}.containers[controller].args": Has("--node-lease-namespace=leases"),
        "Role/hush-hush-controller-node-lease metadata.namespace": "leases"}),
    ("opsTls: {secretName: ops, ca: {secret: {name: authority, key: root.pem}}}\nmonitoring: {serviceMonitor: {enabled: true}}", {
        f"{HERE}.args": Has("--ops-tls-cert=/var/run/secrets/hush-ops-tls/tls.crt"),
        f"{SERVER} {POD}.volumes[ops-tls].secret.secretName": "ops",
        f"{SERVER} spec.template.metadata.annotations.gpu\\.hush\\.dev/ops-scheme": "https",
        f"{THERE}.args": Has("--ca-file=/var/run/secrets/hush-servers/ca.crt"),
        f"{CONTROLLER} {POD}.volumes[servers-ca].secret.items": [{"key": "root.pem", "path": "ca.crt"}],
        "ServiceMonitor/hush-server spec.endpoints[0].tlsConfig.ca": {"secret": {"name": "authority", "key": "root.pem"}},
    }),
    ("opsTls: {secretName: ops, ca: {configMap: {name: authority, key: root.pem}}}", {
        f"{CONTROLLER} {POD}.volumes[servers-ca].configMap.name": "authority",
        f"{CONTROLLER} {POD}.volumes[servers-ca].configMap.items": [{"key": "root.pem", "path": "ca.crt"}]}),
    ("rbac: {aggregate: false}", {"ClusterRole/hush-hush-policies-edit metadata": ABSENT, "ClusterRole/hush-hush-policies-view metadata": ABSENT}),
    ("rbac: {create: false}", {"ClusterRole/hush-hush-controller metadata": ABSENT, "Role/hush-view metadata": ABSENT}),
    ("listenAddress: '[::]'", {f"{HERE}.args": Has("--listen=[::]:9000"), f"{THERE}.args": Has("--listen=[::]:9002")}),
    ("""
securityContext: {runAsUser: 1000, seccompProfile: null}
containerSecurityContext: {readOnlyRootFilesystem: false}
""", {
        f"{SERVER} {POD}.securityContext.runAsUser": 1000, f"{CONTROLLER} {POD}.securityContext.runAsUser": 1000,
        f"{SERVER} {POD}.securityContext.seccompProfile": ABSENT,
        f"{HERE}.securityContext.readOnlyRootFilesystem": False, f"{INSTALL}.securityContext.readOnlyRootFilesystem": False,
    }),
    ("networkPolicy: {enabled: false}", {"NetworkPolicy/hush-server metadata": ABSENT, "NetworkPolicy/hush-controller metadata": ABSENT}),
    ("""
networkPolicy:
  from: none
  clients: [{ipBlock: {cidr: 10.0.0.0/8}}]
  prometheus: [{podSelector: {matchLabels: {a: prometheus}}}]
  controllers: [{podSelector: {matchLabels: {a: controller}}}]
  apiServer: [{ipBlock: {cidr: 10.1.0.0/16}}]
  egress: {ports: [3128]}
""", {
        "NetworkPolicy/hush-server spec.ingress[0].from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "NetworkPolicy/hush-server spec.ingress[1].from": Has({"podSelector": {"matchLabels": {"a": "controller"}}},
                                                             {"podSelector": {"matchLabels": {"a": "prometheus"}}}),
        "NetworkPolicy/hush-controller spec.ingress[0].from": [{"podSelector": {"matchLabels": {"a": "prometheus"}}},
                                                              {"ipBlock": {"cidr": "10.1.0.0/16"}}],
        "NetworkPolicy/hush-server spec.egress[1].ports": [{"port": 3128, "protocol": "TCP"}],
    }),
    ("networkPolicy: {egress: {restricted: false}}", {"NetworkPolicy/hush-server spec.policyTypes": ["Ingress"]}),
    ("""
monitoring:
  serviceMonitor:
    enabled: true
    namespace: monitoring
    interval: 30s
    scrapeTimeout: 10s
    labels: {release: prometheus}
    annotations: {a: b}
    honorLabels: true
    relabelings: [{action: labeldrop, regex: pod}]
    metricRelabelings: [{action: drop, regex: x}]
  prometheusRule: {enabled: true, labels: {release: rules}, runbookUrl: "https://docs.example/runbooks"}
  dashboards: {enabled: true, labels: {dash: "2"}, annotations: {folder: gpu}}
""", {
        f"{MONITOR} metadata.namespace": "monitoring", f"{MONITOR} spec.namespaceSelector": {"matchNames": ["hush"]},
        f"{MONITOR} metadata.labels.release": "prometheus", f"{MONITOR} metadata.annotations": {"a": "b"},
        f"{MONITOR} spec.endpoints": [{"port": "controller", "interval": "30s", "scrapeTimeout": "10s", "honorLabels": True,
                                       "relabelings": [
                                           {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"},
                                           {"action": "labeldrop", "regex": "pod"}],
                                       "metricRelabelings": [{"action": "drop", "regex": "x"}]}],
        "ServiceMonitor/hush-server spec.endpoints[0].port": "ops", "PrometheusRule/hush metadata.labels.release": "rules",
        "ConfigMap/hush-dashboard-gpu metadata.labels.dash": "2", "ConfigMap/hush-dashboard-gpu metadata.annotations": {"folder": "gpu"},
    }),
    ("""
extraObjects:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: "{{ .Release.Name }}-object"}}
- |
  apiVersion: v1
  kind: ConfigMap
  metadata: {name: {{ include "hush.fullname" . }}-text}
""", {"ConfigMap/hush-object metadata.name": "hush-object", "ConfigMap/hush-text metadata.name": "hush-text"}),
    ("policies: {own: {priority: 3}, other: {selector: {matchLabels: {a: b}}}}\nclusterPolicies: {floor: {selector: {matchLabels: {c: d}}}}", {
        "GpuModelPolicy/own spec": {"priority": 3, "selector": {"matchLabels": {
            "app.kubernetes.io/name": "hush", "app.kubernetes.io/instance": "hush", "app.kubernetes.io/component": "server"}}},
        "GpuModelPolicy/other spec.selector": {"matchLabels": {"a": "b"}},
        "ClusterGpuModelPolicy/floor spec.selector": {"matchLabels": {"c": "d"}},
    }),
]
