"""The chart: linted, its examples rendered as the golden files say, typos refused. `make test-chart` prepares and calls it;
UPDATE_GOLDEN=1 writes the golden files anew.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts/hush"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
BUILT = pathlib.Path(os.environ.get("HUSH_BUILT", ROOT / "target/debug"))
MODELS = pathlib.Path(os.environ.get("HUSH_MODELS", ROOT / ".hush/models"))
HELM = pathlib.Path(os.environ.get("HELM", ROOT / ".hush/helm/helm"))


def helm(*arguments) -> subprocess.CompletedProcess:
    # Nothing of the one who tests: no repositories, no cluster.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    return subprocess.run([HELM, *map(str, arguments)], text=True, capture_output=True, env=env, timeout=120)


def template(*arguments, release="hush", namespace="hush") -> subprocess.CompletedProcess:
    return helm("template", release, CHART, "--namespace", namespace, *arguments)


def rendered(*arguments, **names) -> list[dict]:
    done = template(*arguments, **names)
    if done.returncode:
        raise AssertionError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def values(text: str) -> str:
    """A file with these values."""
    file = tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False)
    with file:
        file.write(text)
    unittest.addModuleCleanup(os.unlink, file.name)
    return file.name


def the(documents: list[dict], kind: str, name: str) -> dict:
    (found,) = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pods(documents: list[dict]):
    """Name and template of everything that makes pods."""
    for document in documents:
        if document["kind"] in ("Deployment", "DaemonSet"):
            yield document["metadata"]["name"], document["spec"]["template"]


def containers(pod: dict) -> list[dict]:
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


class Files(unittest.TestCase):
    def test_what_is_repeated_from_elsewhere_is_up_to_date(self):
        done = subprocess.run([sys.executable, ROOT / "scripts/chart", "--check"], text=True, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_version_is_the_workspaces(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        workspace = re.search(r'^\[workspace\.package\]\nversion = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        self.assertEqual((chart["version"], chart["appVersion"]), (workspace, workspace))

    def test_settings_are_the_options_of_the_server(self):
        """An option is a setting, or the chart sets it, or it has no place in a pod."""
        text = (ROOT / "docs/reference/options.md").read_text()
        table = text.split("### hush-server serve\n")[1].split("\n### ")[0]
        options = {option for line in table.splitlines() if line.startswith("| `--")
                   for option in re.findall(r"`--([a-z-]+)", line.split("|")[1])}
        own = {"model", "models-dir", "config", "check-config", "install-missing", "listen", "ops-listen", "drain-timeout",
               "spool-dir", "tls-cert", "tls-key", "ops-tls-cert", "ops-tls-key", "api-keys-file", "admin-token-file",
               "admin-token-review", "admin-account", "pod-namespace", "pod-uid"}
        fixed_by_the_image = {"ort-lib", "vad-model", "ffmpeg"}
        left = {"admin-audience", "kubernetes-api", "kubernetes-ca", "kubernetes-token",
                "nvml-lib", "account-gpu"}
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())
        settings = schema["definitions"]["server"]["properties"]["settings"]["properties"]
        kebab = {re.sub("([A-Z])", lambda letter: "-" + letter[1].lower(), name) for name in settings}
        self.assertEqual(kebab, options - own - fixed_by_the_image - left)

    def test_models_are_those_of_the_configuration_file(self):
        config = yaml.safe_load((ROOT / "docs/config.schema.json").read_text())["$defs"]["ModelConfig"]["properties"]
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())
        models = schema["definitions"]["server"]["properties"]["models"]["items"]["properties"]
        self.assertEqual(set(models) - {"source", "revision"}, set(config))

    def test_the_schema_has_every_default_and_refuses_all_else(self):
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())
        deprecated, described = set(), 0

        def look(node, path):
            nonlocal described
            if isinstance(node, dict):
                if isinstance(node.get("properties"), dict) and node.get("type") == "object":
                    self.assertIs(node.get("additionalProperties"), False, path)
                    for name, part in node["properties"].items():
                        described += 1
                        self.assertGreater(len(part.get("description", "")), 3, f"{path}.{name} has no description")
                        if part.get("deprecated"):
                            deprecated.add(f"{path}.{name}")
                for key, value in node.items():
                    look(value, f"{path}.{key}")

        look(schema, "")
        self.assertGreater(described, 300)
        renamed = yaml.safe_load((CHART / "renamed.yaml").read_text())
        self.assertEqual({path.split(".")[-1] for path in deprecated}, {path.split(".")[-1] for path in renamed})

        def known(part: dict) -> set[str]:
            return {name for name, schema in part["properties"].items() if not schema.get("deprecated")}

        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        self.assertEqual(set(defaults) | {"global"}, known(schema))
        for name, part in (("server", schema["definitions"]["server"]), ("controller", schema["properties"]["controller"])):
            self.assertEqual(set(defaults[name]), known(part), name)

    def test_every_value_has_a_comment(self):
        """Of values.yaml, from which the schema has its descriptions."""
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        text = (CHART / "values.yaml").read_text()
        for path, part in (("server", defaults["server"]), ("controller", defaults["controller"]), ("", defaults)):
            for name in part:
                self.assertRegex(text, rf"(?m)^ *# .+\n *{name}:", f"{path}.{name}")
        self.assertIn("`ephemeral`", schema["definitions"]["server"]["properties"]["cache"]["properties"]["kind"]["description"])


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Rendered(unittest.TestCase):
    maxDiff = None

    def test_lint(self):
        for example in [None, *EXAMPLES]:
            done = helm("lint", "--strict", CHART, *(["--values", example] if example else []))
            self.assertEqual(done.returncode, 0, f"{example}\n{done.stdout}{done.stderr}")

    def test_examples_are_rendered_as_the_golden_files_say(self):
        for example in EXAMPLES:
            with self.subTest(example.stem):
                done = template("--values", example)
                self.assertEqual(done.returncode, 0, done.stderr)
                golden = HERE / "golden" / example.name
                if os.environ.get("UPDATE_GOLDEN"):
                    golden.write_text(done.stdout)
                self.assertTrue(golden.exists(), "there is no golden file yet: UPDATE_GOLDEN=1 writes it")
                self.assertEqual(done.stdout, golden.read_text())
        self.assertEqual({path.name for path in (HERE / "golden").iterdir()}, {path.name for path in EXAMPLES})

    def test_every_pod_is_hardened(self):
        for example in EXAMPLES:
            for name, pod in pods(rendered("--values", example)):
                with self.subTest(f"{example.stem} {name}"):
                    spec = pod["spec"]
                    self.assertIs(spec["automountServiceAccountToken"], False)
                    self.assertIs(spec["enableServiceLinks"], False)
                    self.assertIs(spec["securityContext"]["runAsNonRoot"], True)
                    self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    for container in containers(pod):
                        security = container["securityContext"]
                        self.assertIs(security["allowPrivilegeEscalation"], False)
                        self.assertIs(security["readOnlyRootFilesystem"], True)
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
                        self.assertIn("requests", container["resources"])
                        self.assertNotIn("latest", container["image"])

    def test_a_busy_server_is_not_killed(self):
        server = the(rendered(), "Deployment", "hush")["spec"]["template"]["spec"]
        (container,) = server["containers"]
        liveness = container["livenessProbe"]
        self.assertEqual(liveness["httpGet"], {"path": "/healthz", "port": "http", "scheme": "HTTP"})
        self.assertGreaterEqual(liveness["periodSeconds"] * liveness["failureThreshold"], 120)
        self.assertEqual(container["readinessProbe"]["httpGet"]["path"], "/readyz")
        # The drain, and the pause before it.
        drain = int(next(a for a in container["args"] if a.startswith("--drain-timeout=")).split("=")[1].rstrip("s"))
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self.assertGreater(server["terminationGracePeriodSeconds"], drain + pause)

    def test_only_the_install_sees_the_hubs_token(self):
        documents = rendered("--set", "server.install.tokenSecret.name=hub")
        spec = the(documents, "Deployment", "hush")["spec"]["template"]["spec"]
        told = {c["name"] for c in containers({"spec": spec}) if any(e["name"] == "HF_TOKEN" for e in c.get("env", []))}
        self.assertEqual(told, {"install-0"})
        # And not the credential of the API server.
        mounted = {c["name"] for c in containers({"spec": spec}) if any(m["name"] == "kube-api" for m in c["volumeMounts"])}
        self.assertEqual(mounted, {"server"})

    def test_scopes(self):
        def kinds(scope):
            documents = rendered("--set", f"controller.scope={scope}")
            return documents, {(d["kind"], d["metadata"]["name"]) for d in documents}

        _, found = kinds("cluster")
        self.assertIn(("Deployment", "hush-controller"), found)
        self.assertIn(("PodDisruptionBudget", "hush-controller"), found)
        _, found = kinds("node")
        self.assertIn(("DaemonSet", "hush-controller"), found)
        self.assertNotIn(("Deployment", "hush-controller"), found)
        documents, found = kinds("pod")
        self.assertNotIn("hush-controller", {name for kind, name in found if kind != "NetworkPolicy"})
        (sidecar,) = [c for c in the(documents, "Deployment", "hush")["spec"]["template"]["spec"]["initContainers"]
                      if c["name"] == "controller"]
        self.assertEqual(sidecar["restartPolicy"], "Always")
        self.assertNotIn("readinessProbe", sidecar)
        documents, found = kinds("none")
        self.assertEqual({kind for kind, _ in found}, {"Deployment", "Service", "ConfigMap", "ServiceAccount", "NetworkPolicy",
                                                       "PersistentVolumeClaim", "PodDisruptionBudget"})
        arguments = the(documents, "Deployment", "hush")["spec"]["template"]["spec"]["containers"][0]["args"]
        self.assertFalse([a for a in arguments if a.startswith("--admin")])

    def test_the_roles_are_those_that_the_programs_are_tested_with(self):
        for path, release, scope in (("controller/rbac/controller.yaml", "controller", "cluster"),
                                     ("controller/rbac/node.yaml", "controller", "node"),
                                     ("controller/rbac/sidecar.yaml", "controller", "pod"),
                                     ("server/rbac.yaml", "server", "cluster")):
            documents = yaml.safe_load_all((ROOT / path).read_text())
            wanted = [d["rules"] for d in documents if d["kind"] in ("ClusterRole", "Role")]
            documents = rendered("--set", f"controller.scope={scope}")
            found = [d["rules"] for d in documents if d["kind"] in ("ClusterRole", "Role") and release in d["metadata"]["name"]]
            self.assertEqual(found, wanted, path)

    def test_no_credential_fits_two_servers(self):
        """Tokens are made for one server each; a controller beside a server has that of their pod alone."""
        text = str(rendered())
        self.assertNotIn("server-token", text)
        self.assertNotIn("--token-file", text)
        for scope, kind in (("cluster", "Deployment"), ("node", "DaemonSet")):
            documents = rendered("--set", f"controller.scope={scope}", release="speech", namespace="media")
            (controller,) = the(documents, kind, "speech-hush-controller")["spec"]["template"]["spec"]["containers"]
            self.assertIn("--service-account=media:speech-hush-controller", controller["args"])
            own = "--server-namespaces=kubernetes.io/metadata.name=media"
            chosen = [a for a in controller["args"] if a.startswith("--server-namespaces")]
            self.assertEqual(chosen, [own, "--server-namespaces=gpu.hush.dev/servers=true"])
            (rule,) = the(documents, "Role", "media-speech-hush-controller-token")["rules"]
            self.assertEqual((rule["resources"], rule["resourceNames"], rule["verbs"]),
                             (["serviceaccounts/token"], ["speech-hush-controller"], ["create"]))
        none = rendered("--set-json", "controller.serverNamespaces=[]")
        args = the(none, "Deployment", "hush-controller")["spec"]["template"]["spec"]["containers"][0]["args"]
        self.assertEqual([a for a in args if a.startswith("--server-namespaces")],
                         ["--server-namespaces=kubernetes.io/metadata.name=hush"])

        documents = rendered("--set", "controller.scope=pod")
        self.assertNotIn("serviceaccounts/token", str(documents))
        pod = the(documents, "Deployment", "hush")["spec"]["template"]["spec"]
        seen = {c["name"] for c in containers({"spec": pod}) if any(m["name"] == "server-token" for m in c["volumeMounts"])}
        self.assertEqual(seen, {"controller"})
        (server,) = pod["containers"]
        fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in server["env"] if "valueFrom" in e}
        self.assertEqual(fields, {"HUSH_POD_NAMESPACE": "metadata.namespace", "HUSH_POD_UID": "metadata.uid"})

    def test_the_leases_are_where_the_roles_are(self):
        """One lease for the whole cluster, wherever the release is; those of nodes never beside the leases of Kubernetes."""
        for scope in ("cluster", "node", "pod"):
            with self.subTest(scope):
                documents = rendered("--set", f"controller.scope={scope}")
                roles = {d["metadata"]["name"]: d["metadata"]["namespace"] for d in documents
                         if d["kind"] == "Role" and "leases" in str(d["rules"])}
                expected = {"hush-hush-controller-lease": "kube-system", "hush-hush-controller-node-lease": "hush"}
                if scope == "cluster":
                    del expected["hush-hush-controller-node-lease"]
                self.assertEqual(roles, expected)
                bound = {d["roleRef"]["name"]: d["metadata"]["namespace"] for d in documents if d["kind"] == "RoleBinding"}
                self.assertLessEqual(roles.items(), bound.items())
                for d in documents:
                    if d["kind"] == "Role" and d["metadata"]["namespace"] == "kube-system":
                        writes = [rule for rule in d["rules"] if {"update", "patch", "delete"} & set(rule["verbs"])]
                        self.assertTrue(all(rule.get("resourceNames") for rule in writes), d)

    def test_the_roles_of_people_are_those_that_the_plugin_is_tested_with(self):
        text = (ROOT / "controller/rbac/people.yaml").read_text()
        wanted = {d["metadata"]["name"]: d["rules"] for d in yaml.safe_load_all(text) if d["kind"] == "Role"}
        for scope in ("cluster", "node", "pod"):
            documents = rendered("--set", f"controller.scope={scope},controller.pageToken.name=hush-page")
            self.assertEqual({name: the(documents, "Role", name)["rules"] for name in wanted}, wanted, scope)
        # Without a token there is none to be read.
        rules = the(rendered(), "Role", "hush-operate")["rules"]
        self.assertEqual([rule["resources"] for rule in rules], [["pods/proxy"]])
        self.assertNotIn("Role", {d["kind"] for d in rendered("--set", "rbac.create=false")})

    def test_the_roles_for_policies_are_those_of_the_file(self):
        prefix = "rbac.authorization.k8s.io/aggregate-to-"

        def roles(documents, start: str) -> dict:
            """Rules and the roles that they become part of, by the end of the name."""
            return {d["metadata"]["name"].removeprefix(start): (d["rules"], {label.removeprefix(prefix) for label in
                    d["metadata"]["labels"] if label.startswith(prefix)}) for d in documents
                    if d["kind"] == "ClusterRole" and "-policies-" in d["metadata"]["name"]}

        wanted = roles(yaml.safe_load_all((ROOT / "controller/rbac/people.yaml").read_text()), "hush-")
        self.assertEqual(set(wanted), {"policies-view", "policies-edit"})
        for scope in ("cluster", "node", "pod"):
            self.assertEqual(roles(rendered("--set", f"controller.scope={scope}"), "hush-hush-"), wanted, scope)
        for off in ("controller.scope=none", "rbac.aggregate=false", "rbac.create=false"):
            self.assertEqual(roles(rendered("--set", off), "hush-hush-"), {}, off)

    def test_the_token_of_those_who_may_act_is_seen_by_the_controller_alone(self):
        secret = ("--set", "controller.pageToken.name=acting,controller.pageToken.key=word")
        for scope, kind, name in (("cluster", "Deployment", "hush-controller"), ("node", "DaemonSet", "hush-controller"),
                                  ("pod", "Deployment", "hush")):
            with self.subTest(scope):
                pod = the(rendered("--set", f"controller.scope={scope}", *secret), kind, name)["spec"]["template"]
                self.assertEqual(pod["metadata"]["annotations"]["gpu.hush.dev/page-token"], "acting/word")
                self.assertEqual(pod["metadata"]["labels"]["gpu.hush.dev/controller"], "true")
                seen = {c["name"] for c in containers(pod) if any(m["name"] == "page-token" for m in c["volumeMounts"])}
                self.assertEqual(seen, {"controller"})
                (controller,) = [c for c in containers(pod) if c["name"] == "controller"]
                self.assertIn("--page-token-file=/var/run/secrets/hush-page/word", controller["args"])
                self.assertIn({"name": "controller", "containerPort": 9002}, controller["ports"])
        # Beside no server, and with no token.
        documents = rendered()
        self.assertNotIn("gpu.hush.dev/controller", the(documents, "Deployment", "hush")["spec"]["template"]["metadata"]["labels"])
        text = str(the(documents, "Deployment", "hush-controller"))
        self.assertNotIn("page-token", text)

    def test_who_reaches_which_port(self):
        all_servers = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"gpu.hush.dev/server": "true"}}}
        for scope, holder in (("cluster", "hush-controller"), ("node", "hush-controller"), ("pod", "hush-server")):
            def peers(port, name, *arguments):
                documents = rendered("--set", f"controller.scope={scope}", *arguments)
                rules = the(documents, "NetworkPolicy", name)["spec"].get("ingress", [])
                found = [rule for rule in rules if [p["port"] for p in rule["ports"]] == [port]]
                # An empty list of peers would allow every client.
                self.assertTrue(all(rule.get("from", "every client") for rule in found), (scope, port))
                return [peer for rule in found for peer in rule["from"]]

            with self.subTest(scope):
                prometheus, agents = peers("controller", holder)
                self.assertEqual(prometheus["podSelector"]["matchLabels"], {"app.kubernetes.io/name": "prometheus"})
                self.assertEqual(agents["podSelector"]["matchLabels"], {"k8s-app": "konnectivity-agent"})
                no_clients = ("--set-json", "networkPolicy.prometheus=[]", "--set-json", "networkPolicy.apiServer=[]")
                self.assertEqual(peers("controller", holder, *no_clients), [])
                mine = ("--set-json", 'networkPolicy.apiServer=[{"ipBlock": {"cidr": "10.0.0.10/32"}}]')
                self.assertIn({"ipBlock": {"cidr": "10.0.0.10/32"}}, peers("controller", holder, *mine))
                # Sidecars look at every server on their cards; others come from the controller's own pods.
                ops = peers("ops", "hush-server", *no_clients)
                own = {"app.kubernetes.io/component": "controller"}
                self.assertEqual(len(ops), 1)
                if scope == "pod":
                    self.assertEqual(ops, [all_servers])
                else:
                    self.assertEqual(ops[0]["podSelector"]["matchLabels"] | own, ops[0]["podSelector"]["matchLabels"])

    def test_a_gpu_is_asked_for_by_name_or_shared(self):
        def server(*arguments):
            return the(rendered(*arguments), "Deployment", "hush")["spec"]["template"]["spec"]["containers"][0]

        claimed = server()
        self.assertEqual(claimed["resources"]["limits"], {"nvidia.com/gpu": 1})
        self.assertIn("--device=cuda", claimed["args"])
        self.assertIn({"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}, claimed["env"])
        shared = server("--set", "server.gpu.count=0,server.gpu.visibleDevices=all")
        self.assertNotIn("limits", shared["resources"])
        self.assertIn({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}, shared["env"])
        without = server("--set", "server.gpu.enabled=false")
        self.assertIn("--device=cpu", without["args"])
        self.assertTrue(without["image"].endswith("-cpu"))
        self.assertFalse([e for e in without["env"] if e["name"].startswith("NVIDIA")])

    def test_numbers_keep_their_form(self):
        documents = rendered("--values", values(
            "policies: {p: {selector: {matchLabels: {a: b}}, priority: 1000000}}\n"
            "server: {settings: {maxUpload: 4294967296, maxQueue: 1000000, webUi: false, defaultAlias: [a, b]}}\n"))
        self.assertEqual(the(documents, "GpuModelPolicy", "p")["spec"]["priority"], 1000000)
        env = the(documents, "Deployment", "hush")["spec"]["template"]["spec"]["containers"][0]["env"]
        for variable in ({"name": "HUSH_MAX_UPLOAD", "value": "4294967296"}, {"name": "HUSH_MAX_QUEUE", "value": "1000000"},
                         {"name": "HUSH_WEB_UI", "value": "false"}, {"name": "HUSH_DEFAULT_ALIAS", "value": "a,b"}):
            self.assertIn(variable, env)

    def test_mistakes_are_refused(self):
        for text, complaint in (
            ("servr: {}", "servr"),
            ("server: {replica: 2}", "replica"),
            ("server: {settings: {idleTimout: 5m}}", "idleTimout"),
            ("server: {settings: {idleTimeout: five}}", "idleTimeout"),
            ("server: {settings: {residency: forever}}", "residency"),
            ("server: {models: [{nam: base}]}", "nam"),
            ("server: {models: [{name: base, residncy: idle}]}", "residncy"),
            ("server: {gpu: {visibledevices: all}}", "visibledevices"),
            ("server: {cache: {kind: hostPath}}", "path"),
            ("server: {tolerations: [{keys: a}]}", "keys"),
            ("servers: {a: {modles: []}}", "modles"),
            ("servers: {Upper: {}}", "Upper"),
            ("controller: {scope: galaxy}", "scope"),
            ("controller: {interval: 5}", "interval"),
            ("controller: {leases: {}}", "leases"),
            ("controller: {lease: {namespace: ''}}", "namespace"),
            ("controller: {pageToken: hush-page}", "pageToken"),
            ("controller: {pageToken: {secret: hush-page}}", "secret"),
            ("networkPolicy: {apiServer: 10.0.0.1}", "apiServer"),
            ("policies: {p: {selector: {matchLabels: {a: b}}, prio: 1}}", "prio"),
            ("policies: {p: {selector: {matchLabels: {a: b}}, residency: {mode: Idel}}}", "mode"),
            ("policies: {p: {selector: {}}}", "policies.p.selector is empty"),
            ("clusterPolicies: {p: {residency: {mode: Idle}}}", "selector"),
            ("policies: {p: {selector: {matchLabels: {a: b}}, namespaceSelector: {}}}", "namespaceSelector"),
            ("clusterPolicies: {p: {selector: {matchLabels: {a: b}}, pressure: {hard: {below: 1Gi}}}}", "below"),
            ("networkPolicy: {from: everyone}", "from"),
            ("networkPolicy: {clients: [{}]}", "clients"),
            ("monitoring: {servicemonitor: {}}", "servicemonitor"),
            ("securityContext: {runAsNonroot: true}", "runAsNonroot"),
            ("image: {pullPolicy: Sometimes}", "pullPolicy"),
            ("servers: {a: {cache: {name: x}}, b: {cache: {name: x, size: 1Gi}}}", "cache.name"),
            ("server: {gpu: {enabled: true}, settings: {precision: int8}, models: []}", "fp16 only"),
            ("server: {gpu: {enabled: true}, models: [{name: base, precision: fp32}]}", "model base"),
            ("server: {settings: {device: 'cuda:1'}, models: [{name: base, precision: int8}]}", "cuda:1"),
            ("server: {gpu: {enabled: false}, models: [{name: base, device: cuda, precision: int8}]}", "device: cpu"),
        ):
            with self.subTest(text):
                done = template("--values", values(text))
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(complaint, done.stderr)

    def test_a_precision_is_taken_where_its_device_is(self):
        for text in (
            "server: {gpu: {enabled: true}, models: [{name: base, precision: fp16}]}",
            "server: {gpu: {enabled: true}, models: [{name: base, device: cpu, precision: int8}]}",
            "server: {gpu: {enabled: true}, settings: {device: auto}, models: [{name: base, precision: int8}]}",
            "server: {gpu: {enabled: false}, settings: {precision: int8}, models: [{name: base}]}",
        ):
            with self.subTest(text):
                rendered("--values", values(text))

    def test_what_the_documentation_shows(self):
        """Its values and its commands are taken, and the files and values that it names are there."""
        text = (ROOT / "docs/kubernetes.md").read_text()
        for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.S):
            if language == "yaml":
                rendered("--values", values(block))
            for line in block.splitlines():
                if line.startswith(("helm install ", "helm upgrade ")):
                    # What `helm template` does not know.
                    words = [word for word in shlex.split(line) if word not in ("--create-namespace", "--reset-then-reuse-values")]
                    done = helm("template", *words[2:])
                    self.assertEqual(done.returncode, 0, f"{line}\n{done.stderr}")
                if line.startswith("docker build "):
                    words = shlex.split(line)
                    self.assertTrue((ROOT / words[words.index("--file") + 1]).exists(), line)
        self.assertEqual(set(re.findall(r"`([a-z-]+\.yaml)`", text)), {path.name for path in EXAMPLES})
        defaults = yaml.safe_load((CHART / "values.yaml").read_text())
        for path in re.findall(r"`((?:server|controller|networkPolicy)(?:\.\w+)+)(?:\[\])?[`:]", text):
            node = defaults
            for part in path.split("."):
                self.assertIn(part, node, path)
                node = node[part]

    def test_dashboards_arrive_as_they_are(self):
        documents = rendered("--values", CHART / "examples/scope-cluster.yaml")
        for path in (CHART / "dashboards").glob("*.json"):
            data = the(documents, "ConfigMap", f"hush-dashboard-{path.stem}")["data"]
            self.assertEqual(data[path.name].strip(), path.read_text().strip())


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Programs(unittest.TestCase):
    """What the chart hands to the programs is what they take."""

    def container(self, name: str, *arguments) -> tuple[dict, str]:
        documents = rendered(*arguments)
        spec = the(documents, "Deployment", "hush")["spec"]["template"]["spec"]
        (found,) = [c for c in containers({"spec": spec}) if c["name"] == name]
        return found, the(documents, "ConfigMap", "hush")["data"]["config.yaml"]

    @unittest.skipUnless((BUILT / "hush-server").exists(), f"hush-server is not in {BUILT}")
    @unittest.skipUnless((MODELS / "hush-tiny/int8").exists(), "the bundled model is not installed: `make PROFILE=dev models`")
    def test_the_server_takes_its_arguments_and_its_configuration(self):
        settings = {"defaultAlias": ["a", "b"], "serveInstalled": False, "maxLoaded": 1, "webUi": False, "residency": "on-demand",
                    "idleTimeout": "90s", "spareRunner": True, "loadTimeout": 60, "stallTimeout": "2m", "busyTimeout": "1h",
                    "maxQueue": 10, "maxBatch": 2, "maxUpload": "1Gi", "maxSpool": "8GiB", "maxDecoded": "2GiB",
                    "maxAudioDuration": "3h", "minUploadRate": 0, "maxConnections": 100, "spoolMemory": "2MiB",
                    "spoolMemoryTotal": "64MiB", "asrEngine": "faster_whisper",
                    "coldHold": "5s", "gpuSampleInterval": "2s", "headroom": "1GB", "reclaimTimeout": "5s",
                    "memoryReclaimer": "95%", "corsOrigin": ["https://notes.example"], "fallbackTokens": 1200, "fallbackTime": "10s",
                    "encoderContext": "full",
                    "device": "cpu", "precision": "int8", "threads": 2, "logFormat": "text",
                    "logLevel": "info,hush_server=debug"}
        models = [{"name": "hush-tiny", "aliases": ["x"], "residency": "idle", "idleTimeout": "1m", "precision": "int8",
                   "device": "cpu", "threads": 1, "maxQueue": 3, "defaults": {"language": "en", "prompt": "Anna"},
                   "source": "acme/tiny", "revision": "v1"}]
        file = values(yaml.safe_dump({"server": {"gpu": {"enabled": False}, "settings": settings, "models": models}}))
        schema = yaml.safe_load((CHART / "values.schema.json").read_text())["definitions"]["server"]["properties"]
        self.assertEqual(set(settings), set(schema["settings"]["properties"]), "each setting is tried")
        container, config = self.container("server", "--values", file)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name, text in (("config.yaml", config), ("token", "x"), ("ca.crt", "")):
                (folder / name).write_text(text)
            arguments = [a.replace("/etc/hush/", f"{folder}/").replace("/models", str(MODELS)) for a in container["args"]]
            # What the downward API fills in.
            downward = {"metadata.namespace": "hush", "metadata.uid": "0b8a3f5c-6f0e-4b0c-9a55-2f6d0f2b7c11"}
            env = {e["name"]: e["value"] if "value" in e else downward[e["valueFrom"]["fieldRef"]["fieldPath"]]
                   for e in container["env"]}
            env |= {"PATH": os.environ["PATH"], "ORT_DYLIB_PATH": str(ROOT / ".hush/lib/libonnxruntime.so"),
                    # What a pod has by itself.
                    "HUSH_KUBERNETES_API": "https://127.0.0.1:1", "HUSH_KUBERNETES_TOKEN": str(folder / "token"),
                    "HUSH_KUBERNETES_CA": str(folder / "ca.crt")}
            done = subprocess.run([BUILT / "hush-server", *arguments, "--check-config"], env=env, text=True, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("hush-tiny", done.stdout + done.stderr)

    @unittest.skipUnless((BUILT / "hush-controller").exists(), f"hush-controller is not in {BUILT}")
    def test_the_controller_knows_its_arguments(self):
        help_ = subprocess.run([BUILT / "hush-controller", "run", "--help"], text=True, capture_output=True).stdout
        if "--scope" not in help_:
            self.skipTest("this controller knows no cluster yet")
        container, _ = self.container("controller", "--set", "controller.scope=pod,controller.dryRun=true,controller.pageToken.name=a,controller.auditLog.enabled=true")
        for argument in container["args"][1:]:
            self.assertRegex(help_, rf"(?m)^\s+{re.escape(argument.split('=')[0])}\b")


if __name__ == "__main__":
    unittest.main(verbosity=2)
