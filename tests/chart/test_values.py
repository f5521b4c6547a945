"""Every value of the chart arrives where it belongs, and what cannot be is refused with the name of the value."""
import re
import unittest

import yaml

from test_chart import CHART, HELM, containers, pods, rendered, template, values
from value_cases import ABSENT, CASES, POD, Has

# Values that other tests try: models and settings (test_chart.Programs), fields of policies (Kubernetes), and kinds of one field.
ELSEWHERE = ("server.models.", "server.settings.", "policies.", "clusterPolicies.", "global", "securityContext.",
             "containerSecurityContext.", "server.securityContext.", "server.containerSecurityContext.",
             "controller.securityContext.", "controller.containerSecurityContext.", "app.securityContext.", "app.containerSecurityContext.")
NOT_VALUES = re.compile(r"\.(affinity\.\w+|tolerations\.\w+|strategy\..+|extraEnv\.\w+|envFrom\.\w+|resources(\.\w+)+)$")


def look(documents: list[dict], place: str):
    """What is at `KIND/NAME PATH`, or ABSENT."""
    object_, path = place.split(" ")
    kind, name = object_.split("/")
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    if not found:
        return ABSENT
    (node,) = found
    for part in re.findall(r"(?:\\.|[^.\[])+|\[[^\]]+\]", path):
        if part.startswith("["):
            key = part[1:-1]
            entries = node if isinstance(node, list) else []
            entries = entries[int(key):][:1] if key.isdigit() else [e for e in entries if e.get("name") == key]
            if not entries:
                return ABSENT
            node = entries[0]
        else:
            key = part.replace("\\", "")
            if not isinstance(node, dict) or key not in node:
                return ABSENT
            node = node[key]
    return node


# Fields of Kubernetes that are numbers or truths.
NO_TEXT = {"replicas", "port", "targetPort", "nodePort", "containerPort", "periodSeconds", "timeoutSeconds", "failureThreshold",
           "seconds", "weight", "maxSurge", "maxUnavailable", "defaultMode", "expirationSeconds", "terminationGracePeriodSeconds",
           "runAsUser", "runAsGroup", "fsGroup", "runAsNonRoot", "allowPrivilegeEscalation", "readOnlyRootFilesystem", "readOnly",
           "automountServiceAccountToken", "enableServiceLinks", "publishNotReadyAddresses", "priority", "nvidia.com/gpu"}


def numbers(node, path: str = ""):
    """The places of what is neither a text nor one of these fields."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                yield f"{path}.{key}"
            elif key not in NO_TEXT:
                yield from numbers(value, f"{path}.{key}")
    elif isinstance(node, list):
        for entry in node:
            yield from numbers(entry, path)
    elif node is not None and not isinstance(node, str):
        yield f"{path}: {node}"


def leaves(whole: dict, schema: dict, path: str = "") -> set[str]:
    """The paths of the values that the schema knows."""
    if "$ref" in schema:
        schema = whole["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    if schema.get("type") == "array":
        return leaves(whole, schema["items"], path) if "properties" in schema.get("items", {}) else {path}
    known = {name: part for name, part in schema.get("properties", {}).items() if not part.get("deprecated")}
    if not known:
        return {path}
    return set().union(*(leaves(whole, part, f"{path}.{name}".lstrip(".")) for name, part in known.items()))


def given(node, path: str = "") -> set[str]:
    """The paths of what a file of values says, with those above."""
    found = {path}
    if isinstance(node, dict):
        found |= set().union(*(given(part, f"{path}.{name}".lstrip(".")) for name, part in node.items()))
    elif isinstance(node, list):
        found |= set().union(*(given(part, path) for part in node))
    return found


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Values(unittest.TestCase):
    maxDiff = None

    def test_each_value_arrives_at_its_place(self):
        defaults = rendered()
        for text, places in CASES:
            documents = rendered("--values", values(text))
            changed = False
            for place, expected in places.items():
                with self.subTest(place, values=text):
                    found = look(documents, place)
                    if isinstance(expected, Has):
                        self.assertIsInstance(found, list)
                        for entry in expected.entries:
                            self.assertIn(entry, found)
                    elif expected is ABSENT:
                        self.assertIs(found, ABSENT)
                    else:
                        self.assertEqual(found, expected)
                    changed |= found != look(defaults, place)
            self.assertTrue(changed, f"nothing of it differs from the defaults: {text}")

    def test_no_value_is_left_out_above(self):
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())
        tried = set().union(*(given(yaml.safe_load(text)) for text, _ in CASES))
        known = {path for path in leaves(schema, schema) if not path.startswith(ELSEWHERE) and not NOT_VALUES.search(f".{path}")}
        self.assertGreater(len(known), 120)
        # `servers` has the values of `server`, and `apps` those of `app`.
        tried |= {f"app.{path.removeprefix('apps.')}" for path in tried if path.startswith("apps.")}
        self.assertEqual(sorted(known - tried), [])

    def test_an_entry_of_servers_overrides_also_with_false(self):
        documents = rendered("--values", values(
            "server: {gpu: {enabled: true}, cache: {keep: true}}\n"
            "servers: {a: {gpu: {enabled: false}, install: {enabled: false}, cache: {keep: false}}, b: {}}"))
        self.assertIn("--device=cpu", look(documents, f"Deployment/hush-a {POD}.containers[server].args"))
        self.assertIs(look(documents, f"Deployment/hush-a {POD}.initContainers"), ABSENT)
        self.assertIs(look(documents, "PersistentVolumeClaim/hush-a-models metadata.annotations"), ABSENT)
        self.assertIn("--device=cuda", look(documents, f"Deployment/hush-b {POD}.containers[server].args"))

    def test_a_text_stays_a_text(self):
        """What YAML would take for a number, a truth or a mapping."""
        strings = {}

        def look_at(schema: dict, path: str):
            schema = whole["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
            if schema.get("type") == "string" and not {"enum", "pattern"} & set(schema):
                strings[path] = "123"
            elif schema.get("type") == "object" and "properties" in schema:
                for name, part in schema["properties"].items():
                    look_at(part, f"{path}.{name}".lstrip("."))

        whole = yaml.safe_load((CHART / "values.schema.json").read_text())
        for part in ("server", "controller", "monitoring", "opsTls"):
            look_at(whole["properties"][part], part)
        self.assertGreater(len(strings), 25)
        for elsewhere in ("server.gpu.visibleDevices", "server.gpu.resource", "server.service.loadBalancerClass", "opsTls.ca.configMap.name"):
            del strings[elsewhere]
        on = ["server.ingress.enabled", "controller.auditLog.enabled", "monitoring.serviceMonitor.enabled"]
        documents = rendered(*(word for path in on for word in ("--set", f"{path}=true")),
                             *(word for path, value in strings.items() for word in ("--set-string", f"{path}={value}")),
                             "--set-string", "controller.serviceAccount.name=456,server.models[0].name=true,server.models[0].revision=1",
                             "--set", "servers.true.enabled=true,policies.7.priority=1")
        self.assertEqual([], list(numbers(documents)))
        args = look(documents, "Deployment/hush-controller spec.template.spec.containers[controller].args")
        self.assertIn("--log-level=123", args)
        odd = rendered("--set-string", "controller.logLevel=a: b", "--set-string", "server.models[0].source=x,server.models[0].name=c: d")
        self.assertIn("--log-level=a: b", look(odd, "Deployment/hush-controller spec.template.spec.containers[controller].args"))
        self.assertIn("--name=c: d", look(odd, "Deployment/hush spec.template.spec.initContainers[install-0].args"))

    def test_everything_is_in_the_namespace_that_overrides(self):
        documents = rendered("--values", CHART / "examples/scope-cluster.yaml", "--set", "namespaceOverride=elsewhere")
        # The lease is where every release of the cluster looks for it.
        lease = [d for d in documents if d["metadata"]["name"].endswith("-lease")]
        self.assertEqual({d["metadata"]["namespace"] for d in lease}, {"kube-system"})
        self.assertEqual({d["metadata"].get("namespace", "elsewhere") for d in documents if d not in lease}, {"elsewhere"})
        self.assertGreater(len(documents), 20)

    def test_server_and_controller_have_the_same_pod(self):
        """What is set for all pods is in all of them, whatever the scope."""
        for scope in ("cluster", "node", "pod"):
            documents = rendered("--set", f"controller.scope={scope}", "--values", values(
                "imagePullSecrets: [{name: pull}]\ncommonLabels: {team: media}\nsecurityContext: {fsGroup: 7}\n"
                "containerSecurityContext: {runAsUser: 8}"))
            found = list(pods(documents))
            self.assertEqual(len(found), 1 if scope == "pod" else 2)
            for name, pod in found:
                self.assertEqual(pod["spec"]["imagePullSecrets"], [{"name": "pull"}], name)
                self.assertEqual(pod["spec"]["securityContext"]["fsGroup"], 7, name)
                self.assertEqual(pod["metadata"]["labels"]["team"], "media", name)
                self.assertEqual({c["securityContext"]["runAsUser"] for c in containers(pod)}, {8}, name)


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Refused(unittest.TestCase):
    def refused(self, text: str, *complaints: str):
        with self.subTest(text):
            done = template("--values", values(text))
            self.assertNotEqual(done.returncode, 0, "it is taken")
            for complaint in complaints:
                self.assertIn(complaint, done.stderr)
            # A refusal, and no fault of a template.
            self.assertNotRegex(done.stderr, r"nil pointer|wrong type|error calling (?!fail|include)|can't evaluate|parse error")

    def test_a_renamed_value_is_refused_with_its_new_name(self):
        renamed = yaml.safe_load((CHART / "renamed.yaml").read_text())
        self.assertGreater(len(renamed), 5)
        for old, new in renamed.items():
            value = "[{name: A, value: b}]" if old.endswith(".env") else "{a: b}"
            text = value
            for name in reversed(old.split(".")):
                text = f"{{{name}: {text}}}"
            self.refused(text, f"the value {old} is renamed: write {new}")
        self.refused("servers: {a: {env: []}}", "servers.a: ", "server.env", "server.extraEnv")
        # As before the rename: names, not objects.
        self.refused("image: {pullSecrets: [a]}", "imagePullSecrets")
        self.refused("imagePullSecrets: [a]", "/imagePullSecrets/0")

    def test_several_pods_on_a_claim_for_one_node(self):
        claim = "ReadWriteOnce"
        self.refused("server: {replicas: 3}", "server.replicas", "hush-models", claim, "ephemeral", "ReadWriteMany")
        self.refused("server: {replicas: null}", "server.replicas")
        self.refused("server: {replicas: 2, nodeSelector: {zone: a}}", "server.replicas")
        self.refused("server: {replicas: 2, cache: {accessMode: ReadWriteOncePod}}", "ReadWriteOncePod")
        self.refused("server: {replicas: 2, cache: {existingClaim: theirs}}", "theirs", "ReadWriteMany")
        self.refused("servers: {a: {cache: {name: x}}, b: {cache: {name: x}}}", "servers.b.cache.name", "hush-x")
        self.refused("server: {cache: {name: x, accessMode: ReadWriteOncePod}, nodeSelector: {kubernetes.io/hostname: node-1}}\n"
                     "servers: {a: {}, b: {}}", "servers.b.cache.name")
        self.refused("server: {cache: {name: x}}\nservers: {a: {nodeSelector: {kubernetes.io/hostname: node-1}}, "
                     "b: {nodeSelector: {kubernetes.io/hostname: node-2}}}", "servers.b.cache.name")
        self.refused("servers: {a: {replicas: 2}, b: {}}", "servers.a.replicas")
        for text in ("server: {replicas: 3, cache: {kind: ephemeral}}", "server: {replicas: 3, cache: {kind: emptyDir}}",
                     "server: {replicas: 3, cache: {accessMode: ReadWriteMany}}", "server: {replicas: 0}",
                     "server: {replicas: 3, nodeSelector: {kubernetes.io/hostname: node-1}}",
                     "server: {replicas: 3, cache: {kind: hostPath, path: /models}}", "servers: {a: {}, b: {}}",
                     "server: {replicas: 2, cache: {existingClaim: theirs, accessMode: ReadWriteMany}}"):
            with self.subTest(text):
                rendered("--values", values(text))

    def test_what_the_chart_has_itself(self):
        self.refused("server: {extraArgs: [--listen=0.0.0.0:1]}", "server.extraArgs: --listen is an option that the chart sets")
        self.refused("controller: {extraArgs: [--dry-run], dryRun: true}", "controller.extraArgs: --dry-run")
        self.refused("server: {extraArgs: [listen]}", "/server/extraArgs/0")
        self.refused("server: {extraEnv: [{name: A, value: a}, {name: A, value: b}]}", "server.extraEnv: the name A")
        self.refused("server: {volumes: [{name: tmp, emptyDir: {}}]}", "server.volumes: the name tmp")
        self.refused("server: {volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {}}]}", "server.volumes: the name a")
        self.refused("server: {volumeMounts: [{name: a, mountPath: /models}]}", "server.volumeMounts: the mountPath /models")
        self.refused("server: {install: {volumeMounts: [{name: a, mountPath: /tmp}]}}", "server.install.volumeMounts: the mountPath /tmp")
        self.refused("server: {initContainers: [{name: install-0, image: a}]}", "server.initContainers: the name install-0")
        self.refused("server: {extraContainers: [{name: server, image: a}]}", "server.extraContainers: the name server")
        self.refused("controller: {volumes: [{name: kube-api, emptyDir: {}}]}", "controller.volumes: the name kube-api")
        self.refused("controller: {scope: pod, volumes: [{name: tmp, emptyDir: {}}]}", "volumes: the name tmp")
        self.refused("servers: {a: {volumes: [{name: tmp, emptyDir: {}}]}}", "servers.a.volumes: the name tmp")
        for field in ("commonLabels", "server.podLabels", "controller.podLabels", "server.service.labels"):
            text = "{app.kubernetes.io/name: x}"
            for name in reversed(field.split(".")):
                text = f"{{{name}: {text}}}"
            self.refused(text, f"{field}: app.kubernetes.io/name is a label that the chart sets itself")
        self.refused("server: {podLabels: {gpu.hush.dev/server: 'false'}}", "server.podLabels: gpu.hush.dev/server")
        self.refused("servers: {controller: {}}", "servers.controller")

    def test_what_does_not_go_together(self):
        self.refused("server: {serviceAccount: {create: false}}", "server.serviceAccount.name")
        self.refused("controller: {serviceAccount: {create: false}}", "controller.serviceAccount.name")
        self.refused("server: {serviceAccount: {name: a}}\ncontroller: {serviceAccount: {name: a}}", "set create: false in one")
        self.refused("server: {strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}}", "server.strategy.rollingUpdate")
        self.refused("server: {strategy: {type: OnDelete}}", "server.strategy.type is OnDelete")
        self.refused("controller: {scope: node, strategy: {type: Recreate}}", "controller.strategy.type is Recreate")
        self.refused("server: {service: {nodePort: 30000}}", "server.service.nodePort", "server.service.type")
        self.refused("server: {service: {type: NodePort, loadBalancerClass: a/b}}", "server.service.loadBalancerClass")
        self.refused("server: {service: {externalTrafficPolicy: Local}}", "server.service.externalTrafficPolicy")
        self.refused("server: {route: {enabled: true}}", "server.route.parentRefs")
        self.refused("server: {ingress: {enabled: true, paths: []}}", "server.ingress.paths")
        self.refused("server: {resources: {claims: [{name: gpu}]}}", "server.resources.claims: gpu is not in server.resourceClaims")
        self.refused("server: {gpu: {visibleDevices: all}}", "server.gpu.visibleDevices", "server.gpu.count: 0")
        self.refused("monitoring: {serviceMonitor: {scrapeTimeout: 1m1s, interval: 60s}}", "monitoring.serviceMonitor.scrapeTimeout")
        self.refused("policies: {p: {selector: {}}}", "policies.p.selector")

    def test_names_that_cannot_be(self):
        for release in ("1speech", "a.b"):
            done = template(release=release)
            self.assertNotEqual(done.returncode, 0, release)
            self.assertIn("set fullnameOverride", done.stderr)
            rendered("--set", "fullnameOverride=speech", release=release)
        self.refused(f"fullnameOverride: {'a' * 40}\nservers: {{{'b' * 30}: {{}}}}", "servers.bbb", "71 characters")
        self.refused("nameOverride: A B", "/nameOverride")

    def test_what_has_the_wrong_form(self):
        for text, place in (
            ("server: {replicas: -1}", "/server/replicas"),
            ("server: {replicas: '3'}", "/server/replicas"),
            ("server: {extraEnv: {A: b}}", "/server/extraEnv"),
            ("server: {extraEnv: [{nam: A}]}", "/server/extraEnv/0"),
            ("server: {extraEnv: [{name: A, value: 1}]}", "/server/extraEnv/0/value"),
            ("server: {envFrom: [{secret: a}]}", "/server/envFrom/0"),
            ("server: {volumes: [{emptyDir: {}}]}", "/server/volumes/0"),
            ("server: {volumeMounts: [{name: a}]}", "/server/volumeMounts/0"),
            ("server: {initContainers: [{name: a}]}", "/server/initContainers/0"),
            ("server: {resourceClaims: [{name: a}]}", "/server/resourceClaims/0"),
            ("server: {resourceClaims: [{name: a, resourceClaimName: b, resourceClaimTemplateName: c}]}", "/server/resourceClaims/0"),
            ("server: {service: {type: ExternalName}}", "/server/service/type"),
            ("server: {service: {nodePort: 70000}}", "/server/service/nodePort"),
            ("server: {service: {annotations: {a: 1}}}", "/server/service/annotations/a"),
            ("server: {ingress: {paths: [asr]}}", "/server/ingress/paths/0"),
            ("server: {route: {timeouts: {request: forever}}}", "/server/route/timeouts/request"),
            ("server: {strategy: {type: Sometimes}}", "/server/strategy/type"),
            ("server: {podDisruptionBudget: {maxUnavailable: half}}", "/server/podDisruptionBudget/maxUnavailable"),
            ("server: {topologySpreadConstraints: [{maxSkew: 1}]}", "/server/topologySpreadConstraints/0"),
            ("server: {cache: {kind: nfs}}", "/server/cache/kind"),
            ("server: {cache: {keep: 'yes'}}", "/server/cache/keep"),
            ("server: {install: {env: []}}", "/server/install"),
            ("server: {serviceAccount: a}", "/server/serviceAccount"),
            ("servers: {a: {replicas: x}}", "/servers/a/replicas"),
            ("controller: {replicas: 0}", "/controller/replicas"),
            ("controller: {auditLog: /var/log/audit}", "/controller/auditLog"),
            ("namespaceOverride: Upper", "/namespaceOverride"),
            ("commonLabels: {a: 1}", "/commonLabels/a"),
            ("monitoring: {serviceMonitor: {scrapeTimeout: 10}}", "/monitoring/serviceMonitor/scrapeTimeout"),
            ("monitoring: {serviceMonitor: {relabelings: {}}}", "/monitoring/serviceMonitor/relabelings"),
            ("extraObjects: {}", "/extraObjects"),
            ("extraObjects: [{kind: ConfigMap}]", "/extraObjects/0"),
            ("networkPolicy: {egress: {ports: ['443']}}", "/networkPolicy/egress/ports/0"),
        ):
            self.refused(text, f"'{place}'")

    def test_nothing_in_place_of_what_is_needed(self):
        for path in yaml.safe_load((CHART / "required.yaml").read_text())[::4]:
            text = "null"
            for name in reversed(path.split(".")):
                text = f"{{{name}: {text}}}"
            self.refused(text, f"the value {path} is null or empty")
        self.refused("servers: {a: {gpu: null}}", "/servers/a/gpu")

    def test_nothing_in_place_of_a_default(self):
        """`null` takes a default away, and the chart renders without it."""
        for text in ("server: {tolerations: null, resources: null, strategy: null, podLabels: null, volumes: null, extraEnv: null}",
                     "server: {nodeSelector: null, serviceAccount: {name: null}, securityContext: null, settings: null}",
                     "server: {service: {labels: null, annotations: null, nodePort: null}, gpu: {tolerations: null}}",
                     "server: {models: null, cache: {annotations: null, storageClass: null}, admin: {accounts: null}}",
                     "controller: {strategy: null, serviceAccount: {name: null, annotations: null}, resources: null, affinity: null}",
                     "controller: {podLabels: null, tolerations: null, containerSecurityContext: null, extraArgs: null}",
                     "commonLabels: null\nimagePullSecrets: null\nextraObjects: null\npolicies: null\nservers: null",
                     "securityContext: null\ncontainerSecurityContext: null",
                     "networkPolicy: {clients: null, prometheus: null, controllers: null, apiServer: null}"):
            with self.subTest(text):
                rendered("--values", values(text))


if __name__ == "__main__":
    unittest.main(verbosity=2)
