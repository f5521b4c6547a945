"""What the documentation shows is installed as it is written, into a real API server, also under other release names: the examples
of the chart, values and policies in pages, and the commands of helm and kubectl. Every policy selects a server then."""
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

import yaml

from control_plane import ASSETS, MISSING, ControlPlane
from test_chart import CHART, EXAMPLES, HELM, HERE, ROOT

sys.path.append(str(ROOT / "tests/docs"))
from book import Block, pages  # noqa: E402

# The one of the pages, another, and the longest that helm takes.
LONGEST = "speech-to-text-of-the-newsroom-in-the-second-location"
NAMES = ("hush", "speech", LONGEST)
FILE = re.compile(r"^# ([\w-]+\.yaml)$")
# The subcommands of kubectl that need no running pod.
VERBS = {"apply", "create", "get", "describe", "delete", "label"}
POLICIES = ("GpuModelPolicy", "ClusterGpuModelPolicy")


def documents(block: Block) -> list[dict]:
    found = [document for document in yaml.safe_load_all(block.text) if isinstance(document, dict)]
    return found if block.language == "yaml" else []


def blocks(language: str) -> list[Block]:
    return [block for page in pages() for block in page.blocks if block.language == language]


def policy_blocks() -> list[Block]:
    return [block for block in blocks("yaml") if all(d.get("kind") in POLICIES for d in documents(block))]


def values_blocks() -> list[Block]:
    known = set(yaml.safe_load((CHART / "values.yaml").read_text()))
    return [block for block in blocks("yaml") if documents(block) and set(documents(block)[0]) <= known]


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
@unittest.skipIf(MISSING, f"{', '.join(MISSING)} not in {ASSETS}: `make control-plane` builds them")
class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(ControlPlane())
        cls.kubectl = cls.cluster.kubectl
        cls.kubectl("apply", "--server-side", "-f", CHART / "crds", "-f", HERE / "operator_crds.yaml")
        cls.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

    def tearDown(self):
        for release in json.loads(self.helm("list", "--all-namespaces", "--output", "json")):
            self.helm("uninstall", release["name"], "--namespace", release["namespace"])
        for kind in ("pods", "gmp", "cgmp"):
            self.kubectl("delete", kind, "--all", "--all-namespaces", "--force", "--grace-period=0")
        # What a page makes for its reader.
        self.kubectl("delete", "secrets,rolebindings", "--all", "--namespace", "hush")

    def helm(self, *arguments) -> str:
        done = self.cluster.run(HELM, *arguments)
        self.assertEqual(done.returncode, 0, f"helm {' '.join(map(str, arguments))}\n{done.stderr}")
        return done.stdout

    def install(self, name: str, namespace: str, *arguments) -> str:
        return self.helm("install", name, CHART, "--namespace", namespace, "--create-namespace", *arguments)

    def namespace(self, name: str) -> None:
        """A page may go on with a namespace that another one has made."""
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))

    def lease(self, name: str, namespace: str) -> None:
        self.kubectl("apply", "-f", "-", text=json.dumps(
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": namespace}}))

    def objects(self, kind: str) -> list[dict]:
        return json.loads(self.kubectl("get", kind, "--all-namespaces", "--output", "json"))["items"]

    def start_pods(self) -> None:
        """The pods that the Deployments would have: nothing else makes them here."""
        self.kubectl("delete", "pods", "--all", "--all-namespaces", "--force", "--grace-period=0")
        made = [{"apiVersion": "v1", "kind": "Pod",
                 "metadata": {"name": d["metadata"]["name"], "namespace": d["metadata"]["namespace"],
                              "labels": d["spec"]["template"]["metadata"]["labels"]},
                 "spec": {"containers": [{"name": "a", "image": "a"}]}} for d in self.objects("deployments")]
        if not made:
            return
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))

    def assert_every_policy_selects(self, where: str) -> int:
        """As the controller does: pods of servers, in the namespace of the policy; the API server compares the labels."""
        self.start_pods()
        policies = self.objects("gmp") + self.objects("cgmp")
        for policy in policies:
            labels = {**policy["spec"]["selector"]["matchLabels"], "gpu.hush.dev/server": "true"}
            namespace = policy["metadata"].get("namespace")
            there = self.kubectl("get", "pods", *(["--namespace", namespace] if namespace else ["--all-namespaces"]),
                                 "--selector", ",".join(f"{key}={value}" for key, value in labels.items()), "--output", "name")
            self.assertIn("pod/", there, f"{where}: {policy['metadata']['name']} selects nothing: {labels}")
        return len(policies)

    def assert_the_controllers_look_at_every_server(self, where: str) -> None:
        """They do in the namespaces that their operator selects."""
        templates = [(d["metadata"]["namespace"], d["spec"]["template"]) for d in self.objects("deployments")]
        selectors = {arg.split("=", 1)[1] for _, pod in templates for container in pod["spec"]["containers"]
                     for arg in container.get("args", []) if arg.startswith("--server-namespaces=")}
        servers = {namespace for namespace, pod in templates if "gpu.hush.dev/server" in pod["metadata"]["labels"]}
        found = {name for selector in selectors for name in self.kubectl(
            "get", "namespaces", "--selector", selector, "--output", "jsonpath={.items[*].metadata.name}").split()}
        if selectors:
            self.assertLessEqual(servers, found, f"{where}: {selectors}")

    def test_every_example(self):
        policies = 0
        for example in EXAMPLES:
            for name in NAMES[1:]:
                with self.subTest(example.stem, release=name):
                    self.install(name, example.stem, "--values", example)
                    if not yaml.safe_load(example.read_text()).get("server", {}).get("enabled", True):
                        # The operator's part: its policies are for the servers of tenants.
                        self.install("tenant", "tenants", "--values", CHART / "examples/scope-none.yaml")
                    policies += self.assert_every_policy_selects(example.stem)
                self.tearDown()
                # Claims of the example outlive its release.
                # Without a controller of volumes nothing takes their finalizer away.
                for claim in self.kubectl("get", "pvc", "--namespace", example.stem, "--output", "name").split():
                    self.kubectl("delete", claim, "--namespace", example.stem, "--wait=false")
                    self.kubectl("patch", claim, "--namespace", example.stem, "--type=merge", "--patch", '{"metadata":{"finalizers":null}}')
        self.assertGreater(policies, 2 * 10)

    def test_two_releases_in_one_namespace_govern_their_own(self):
        for number, name in enumerate(NAMES):
            self.install(name, "together", "--set", f"controller.scope=none,policies.own-{number}.residency.idleTimeout=5m")
        self.start_pods()
        found = {}
        for policy in self.objects("gmp"):
            selector = ",".join(f"{key}={value}" for key, value in policy["spec"]["selector"]["matchLabels"].items())
            found[policy["metadata"]["name"]] = self.kubectl("get", "pods", "--namespace", "together", "--selector", selector,
                                                             "--output", "name").split()
        self.assertEqual(sorted(map(len, found.values())), [1, 1, 1], found)
        self.assertEqual(len({pods[0] for pods in found.values()}), 3)

    def test_values_of_the_pages(self):
        found = values_blocks()
        self.assertGreater(len(found), 3)
        for block in found:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(block.text)
                file.flush()
                # Where there is no policy, the name decides over the length of names alone.
                for name in NAMES[::2] if "olicies:" in block.text else NAMES[2:]:
                    with self.subTest(block.place, release=name):
                        self.install(name, "pages", "--values", file.name)
                        self.assert_every_policy_selects(block.place)
                    self.tearDown()

    def test_policies_of_the_pages(self):
        found = policy_blocks()
        self.assertGreater(len(found), 12)
        spaces = {d["metadata"].get("namespace", "default") for block in found for d in documents(block)
                  if d["kind"] == "GpuModelPolicy"}
        for name in NAMES:
            for namespace in spaces:
                self.install(name, namespace, "--set", "controller.scope=none")
            self.start_pods()
            for block in found:
                with self.subTest(block.place, release=name):
                    self.kubectl("apply", "--filename", "-", text=block.text)
            self.assert_every_policy_selects(f"the policies of the pages under {name}")
            self.tearDown()

    def test_commands_of_the_pages(self):
        ran = 0
        for rename in (str, lambda name: f"other-{name}"):
            for page in pages():
                scripts = [block for block in page.blocks if block.language in ("sh", "console") and "helm " in block.script()]
                # Between two versions of the chart: tests/tests/cluster/versions.rs runs those lines.
                if not scripts or page.path.name == "api-versions.md":
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    folder = pathlib.Path(folder)
                    (folder / "charts").symlink_to(ROOT / "charts")
                    for block in page.blocks:
                        if block.language == "yaml" and FILE.match(block.lines[0]):
                            (folder / FILE.match(block.lines[0])[1]).write_text(block.text)
                        if block.language in ("sh", "console"):
                            ran += sum(self.command(line, folder, rename, block) for line in block.script().replace("\\\n", " ").splitlines())
                            self.assert_every_policy_selects(block.place)
                            self.assert_the_controllers_look_at_every_server(block.place)
                self.tearDown()
        self.assertGreater(ran, 2 * 8)

    def command(self, line: str, folder: pathlib.Path, rename, block: Block) -> bool:
        """Runs a line of a page if it is one for the cluster, with another name of the release."""
        # A registry is not among the programs here.
        if not line.startswith(("helm ", "kubectl ")) or "oci://" in line:
            return False
        words = shlex.split(line.split("|")[0])
        if words[0] == "kubectl" and not VERBS & set(words[1:4]):
            return False
        if "--namespace" in words:
            self.namespace(words[words.index("--namespace") + 1])
        release = re.match(r"helm (install|upgrade|uninstall) (\S+)", line)
        if release:
            name = rename(release[2])
            line = line.replace(release[0], f"helm {release[1]} {name}", 1)
            namespace = words[words.index("--namespace") + 1]
            there = {r["name"] for r in json.loads(self.helm("list", "--namespace", namespace, "--output", "json"))}
            if release[1] == "install" and name in there:
                self.helm("uninstall", name, "--namespace", namespace)
            elif release[1] != "install" and name not in there:
                self.install(name, namespace)
        if {"lease", "leases"} & set(words):
            # Controllers have made them, which do not run here.
            for name in ("hush-controller", "hush-controller-node-1"):
                self.lease(name, words[words.index("--namespace") + 1])
        env = {**self.cluster.env, "PATH": f"{HELM.parent}:{ASSETS}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=folder, env=env, text=True, capture_output=True, timeout=180)
        self.assertEqual(done.returncode, 0, f"{block.place}: {line}\n{done.stdout}{done.stderr}")
        return True

    def test_the_notes_name_the_controller_to_its_tenants(self):
        """The operator's release has another name than in the example of the tenant: what its notes print is what fits."""
        notes = self.install("gpu", "operators", "--values", CHART / "examples/cluster-floor.yaml")
        text = notes.split("with these values:\n")[1].split("\n\n")[0]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            self.install("speech", "media", "--values", CHART / "examples/scope-none.yaml", "--values", file.name)
        server = json.loads(self.kubectl("get", "deployment", "speech-hush", "--namespace", "media", "--output", "json"))
        controller = json.loads(self.kubectl("get", "deployment", "gpu-hush-controller", "--namespace", "operators", "--output", "json"))
        account = controller["spec"]["template"]["spec"]["serviceAccountName"]
        self.kubectl("get", "serviceaccount", account, "--namespace", "operators")
        self.assertIn(f"--admin-account=operators:{account}", server["spec"]["template"]["spec"]["containers"][0]["args"])
        policy = json.loads(self.kubectl("get", "networkpolicy", "speech-hush-server", "--namespace", "media", "--output", "json"))
        peers = [peer for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == "ops" for peer in rule["from"]]
        self.assertIn({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "operators"}},
                       "podSelector": {"matchLabels": {"app.kubernetes.io/component": "controller"}}}, peers)
        labels = controller["spec"]["template"]["metadata"]["labels"]
        self.assertEqual(labels["app.kubernetes.io/component"], "controller")

    def test_the_notes_say_what_the_network_policy_blocks(self):
        for number, (arguments, blocked) in enumerate((
            (["server.service.type=LoadBalancer"], "service.type: LoadBalancer"),
            (["server.service.type=NodePort"], "service.type: NodePort"),
            (["server.ingress.enabled=true"], "ingress"),
            (["server.service.type=LoadBalancer", "networkPolicy.from=anyone"], None),
            (["server.service.type=LoadBalancer", "networkPolicy.enabled=false"], None),
            (["server.service.type=LoadBalancer", "networkPolicy.clients[0].ipBlock.cidr=10.0.0.0/8"], None),
            ([], None),
        )):
            with self.subTest(arguments):
                notes = self.install("hush", f"blocked-{number}", *(word for a in arguments for word in ("--set", a)))
                if blocked:
                    self.assertIn(f"hush has {blocked}, and the network policy blocks it", " ".join(notes.split()))
                else:
                    self.assertNotIn("blocks it", notes)

    def test_models_stay_after_an_uninstall(self):
        self.install("hush", "kept")
        self.helm("uninstall", "hush", "--namespace", "kept")

        def claim() -> dict:
            (found,) = [c for c in self.objects("pvc") if c["metadata"]["namespace"] == "kept"]
            return found["metadata"]

        self.assertNotIn("deletionTimestamp", claim())
        notes = self.install("hush", "kept", "--set", "server.cache.keep=false")
        self.assertNotIn("An uninstall keeps the models", notes)
        self.helm("uninstall", "hush", "--namespace", "kept")
        # The one who waits for pods to end before it goes is not here.
        self.assertIn("deletionTimestamp", claim())

    def test_a_claim_that_exists_is_looked_at(self):
        """Its access mode decides whether several pods may share it."""
        for name, mode in (("one", "ReadWriteOnce"), ("many", "ReadWriteMany")):
            self.kubectl("apply", "-f", "-", text=json.dumps(
                {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
                 "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}}))
        several = ("--namespace", "default", "--set", "server.replicas=2", "--set")
        self.helm("install", "many", CHART, *several, "server.cache.existingClaim=many")
        done = self.cluster.run(HELM, "install", "one", CHART, *several, "server.cache.existingClaim=one")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("several pods would share the claim one, whose access mode is ReadWriteOnce", done.stderr)
        self.helm("install", "audit", CHART, "--namespace", "default", "--set", "controller.auditLog.enabled=true",
                  "--set", "controller.auditLog.existingClaim=many")
        done = self.cluster.run(HELM, "upgrade", "audit", CHART, "--namespace", "default", "--set", "controller.auditLog.enabled=true",
                                "--set", "controller.auditLog.existingClaim=one")
        self.assertIn("controller.auditLog.existingClaim: one has no access mode ReadWriteMany", done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
