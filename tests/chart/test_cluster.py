"""The chart against a real API server: every object of every example is accepted, pods pass the strictest Pod Security
level, and a release is installed, changed and removed. `make test-chart` prepares and calls it.
"""
import datetime
import json
import pathlib
import shlex
import shutil
import tempfile
import time
import unittest

import yaml

from control_plane import ASSETS, MISSING, ControlPlane
from test_chart import CHART, EXAMPLES, HELM, HERE, pods, rendered, template, values
from value_cases import CASES

KINDS = ["gpumodelpolicies.gpu.hush.dev", "clustergpumodelpolicies.gpu.hush.dev"]


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
@unittest.skipIf(MISSING, f"{', '.join(MISSING)} not in {ASSETS}: `make control-plane` builds them")
class Cluster(unittest.TestCase):
    def setUp(self):
        self.cluster = self.enterContext(ControlPlane())
        self.kubectl = self.cluster.kubectl

    def helm(self, *arguments) -> str:
        done = self.cluster.run(HELM, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("WARNING", done.stderr)
        return done.stdout

    def namespace(self, name: str, **levels: str) -> None:
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode, level in levels.items()}
        self.kubectl("apply", "-f", "-", text=json.dumps(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))

    def definitions(self) -> None:
        self.kubectl("apply", "--server-side", "-f", CHART / "crds", "-f", HERE / "operator_crds.yaml")
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

    def accepted(self, text: str, what: str) -> int:
        """How many objects; each as it was sent: a field that is not known is an error."""
        said = self.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", text=text)
        lines = said.splitlines()
        self.assertEqual([line for line in lines if not line.endswith("serverside-applied (server dry run)")], [], what)
        return len(lines)

    def test_every_object_is_accepted(self):
        self.definitions()
        # What would not pass `restricted` comes as a warning, which is an error here.
        self.namespace("hush", warn="restricted")
        self.namespace("strict", enforce="restricted")
        for example in EXAMPLES:
            with self.subTest(example.stem):
                began = time.monotonic()
                text = template("--values", example).stdout
                count = self.accepted(text, example.stem)
                self.assertEqual(count, len([d for d in yaml.safe_load_all(text) if d]))
                seconds = time.monotonic() - began
                print(f"{example.stem}: {count} objects, {len(text.splitlines())} lines, accepted in {seconds:.1f} s")
                for name, pod in pods(rendered("--values", example)):
                    alone = {"apiVersion": "v1", "kind": "Pod", **pod,
                             "metadata": {"name": name, "namespace": "strict", **pod["metadata"]}}
                    alone["spec"].pop("priorityClassName", None)
                    alone["spec"].pop("runtimeClassName", None)
                    self.assertEqual(self.accepted(json.dumps(alone), name), 1)

    def test_every_value_is_accepted(self):
        """Where test_values.py finds it, the API server knows it."""
        self.definitions()
        for name in ("hush", "elsewhere", "monitoring", "leases"):
            self.namespace(name)
        for text, _ in CASES:
            with self.subTest(text):
                done = template("--values", values(text))
                self.assertEqual(self.accepted(done.stdout, text), len([d for d in yaml.safe_load_all(done.stdout) if d]))

    def test_what_the_schema_lets_through_and_the_cluster_refuses(self):
        self.definitions()
        self.namespace("hush")
        policy = template("--set", "policies.p.selector.matchLabels.a=b,policies.p.residency.idleTimeout=999h").stdout
        with self.assertRaisesRegex(AssertionError, "at most `168h`"):
            self.accepted(policy, "a policy")

    def test_a_release_comes_changes_and_goes(self):
        adaptive, shared = CHART / "examples/adaptive.yaml", CHART / "examples/shared-card.yaml"
        began = time.monotonic()
        notes = self.helm("install", "hush", CHART, "--namespace", "hush", "--create-namespace", "--values", adaptive)
        print(f"helm install of adaptive: every object accepted in {time.monotonic() - began:.1f} s")
        self.assertIn("port-forward service/hush", notes)
        self.assertIn("adaptive", self.kubectl("get", "gmp", "--namespace", "hush"))

        # Without a volume behind it a claim cannot grow.
        same_size = ("--set", "server.cache.size=20Gi")
        self.helm("upgrade", "hush", CHART, "--namespace", "hush", "--values", shared, *same_size)
        names = self.kubectl("get", "gmp,deployments", "--namespace", "hush", "--output", "name").split()
        self.assertIn("deployment.apps/hush-archive", names)
        self.assertNotIn("deployment.apps/hush", names)
        self.assertIn("gpumodelpolicy.gpu.hush.dev/room-for-others", names)
        self.assertNotIn("gpumodelpolicy.gpu.hush.dev/adaptive", names)

        # CRDs of an earlier version are told of, with what helps.
        self.assertNotIn("of another version", self.helm("get", "notes", "hush", "--namespace", "hush"))
        older = json.loads(self.kubectl("get", "crd", KINDS[0], "--output", "json"))
        spec = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        del spec["properties"]["budget"]
        self.kubectl("replace", "-f", "-", text=json.dumps(older))
        notes = self.helm("upgrade", "hush", CHART, "--namespace", "hush", "--values", adaptive)
        self.assertIn(f"{KINDS[0]} is of another version", notes)
        self.assertNotIn(f"{KINDS[1]} is of another version", notes)
        definitions = self.helm("show", "crds", CHART)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=definitions)
        notes = self.helm("upgrade", "hush", CHART, "--namespace", "hush", "--values", adaptive)
        self.assertNotIn("of another version", notes)

        # The policies of others stay with their kinds.
        self.kubectl("apply", "-f", "-", text=json.dumps(
            {"apiVersion": "gpu.hush.dev/v1beta1", "kind": "GpuModelPolicy", "metadata": {"name": "theirs", "namespace": "default"},
             "spec": {"selector": {"matchLabels": {"app": "x"}}}}))
        self.helm("uninstall", "hush", "--namespace", "hush")
        for kind in KINDS:
            self.kubectl("get", "crd", kind)
        self.assertEqual(self.kubectl("get", "gmp", "--all-namespaces", "--output", "jsonpath={.items[*].metadata.name}"), "theirs")
        left = self.kubectl("get", "deployments,services,configmaps,serviceaccounts,roles,networkpolicies,pdb", "--namespace",
                            "hush", "--selector", "app.kubernetes.io/managed-by=Helm", "--output", "name")
        self.assertEqual(left.replace("No resources found in hush namespace.\n", ""), "")
        roles = self.kubectl("get", "clusterroles,clusterrolebindings", "--output", "name")
        self.assertNotIn("hush", roles)

    def test_definitions_of_an_earlier_release_are_told_of_before_anything_changes(self):
        earlier = CHART.parent.parent / "crds/tests/released/v1alpha1"
        self.kubectl("apply", "--server-side", "-f", earlier)
        self.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        install = (HELM, "install", "hush", CHART, "--namespace", "hush", "--create-namespace", "--values", CHART / "examples/idle.yaml")
        refused = self.cluster.run(*install)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("without gpu.hush.dev/v1beta1", refused.stderr)
        self.assertEqual(self.cluster.run(HELM, "list", "--namespace", "hush", "--short").stdout.strip(), "")

        # What it says helps.
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=self.helm("show", "crds", CHART))
        deadline = time.monotonic() + 60
        while (done := self.cluster.run(*install)).returncode and time.monotonic() < deadline:
            self.assertIn("v1beta1", done.stderr)
            time.sleep(1)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_a_second_installation_for_the_whole_cluster_is_told_of(self):
        def notes(action: str, namespace: str, *more: str) -> str:
            return " ".join(self.helm(action, "hush", CHART, "--namespace", namespace, "--create-namespace", *more).split())

        warning = "WARNING: {} is installed for the whole cluster too"
        self.assertNotIn("WARNING", notes("install", "first"))
        self.assertIn(warning.format("first/hush-controller"), notes("install", "second"))
        self.assertIn(warning.format("second/hush-controller"), notes("upgrade", "first", "--install"))
        # One lease for both, and each names itself.
        arguments = {}
        for namespace in ("first", "second"):
            deployment = json.loads(self.kubectl("get", "deployment", "hush-controller", "--namespace", namespace, "--output", "json"))
            found = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
            arguments[namespace] = {a for a in found if a.startswith(("--lease", "--installation"))}
        self.assertEqual(arguments["first"] - arguments["second"], {"--installation=first/hush-controller"})
        self.assertIn("--lease-namespace=kube-system", arguments["first"])
        # Narrower ones stand beside it.
        for scope in ("none", "node", "pod"):
            self.assertNotIn("WARNING", notes("upgrade", "second", "--install", "--set", f"controller.scope={scope}"), scope)
        self.assertNotIn("WARNING", notes("upgrade", "first", "--install"))

        # Controllers that came without helm: their lease tells of them, as long as they renew it.
        self.helm("uninstall", "hush", "--namespace", "second")
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                 "metadata": {"name": "hush-controller", "namespace": "kube-system",
                              "annotations": {"gpu.hush.dev/installation": "by-hand"}},
                 "spec": {"holderIdentity": "pod_1", "leaseDurationSeconds": 15}}

        def renewed(ago: float) -> None:
            time_ = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=ago)
            lease["spec"]["renewTime"] = time_.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.kubectl("apply", "-f", "-", text=json.dumps(lease))

        renewed(5)
        self.assertIn(warning.format("by-hand"), notes("upgrade", "first", "--install"))
        renewed(3600)
        self.assertNotIn("WARNING", notes("upgrade", "first", "--install"))
        renewed(5)
        lease["spec"]["holderIdentity"] = ""
        renewed(5)
        self.assertNotIn("WARNING", notes("upgrade", "first", "--install"))

    def test_the_notes_let_people_in(self):
        """Their commands, as they are, and exactly the rights that follow."""
        notes = self.helm("install", "hush", CHART, "--namespace", "hush", "--create-namespace")
        lines = [line.strip() for line in notes.splitlines()]
        self.assertIn("kubectl hush top", lines)
        commands = [line.replace("NAME", "anna") for line in lines if line.startswith("kubectl --namespace hush create ")]
        (upgrade,) = [line.replace("CHART", str(CHART)) for line in lines if line.startswith("helm upgrade ")]

        def may(verb: str, resource: str, *more: str, name="anna", namespace="hush") -> bool:
            return "yes" in self.cluster.run(ASSETS / "kubectl", "auth", "can-i", verb, resource, *more, "--as", name,
                                             "--namespace", namespace).stdout

        looks, acts, token = ("get", "pods", "--subresource=proxy"), ("create", "pods", "--subresource=proxy"), ("get", "secrets/hush-page")
        self.assertFalse(may(*looks))
        self.assertEqual(len(commands), 3)
        for command in commands:
            self.kubectl(*shlex.split(command.replace("$(openssl rand -hex 16)", "0123456789abcdef"))[1:])
        self.assertEqual([may(*looks), may("list", "pods"), may(*acts)], [True] * 3)
        self.assertFalse(may(*token), "no token was named yet")
        notes = self.helm(*shlex.split(upgrade)[1:])
        self.assertIn("kubectl hush unload POD", notes)
        self.assertTrue(may(*token))
        for right in (("get", "secrets"), ("get", "secrets/other"), ("delete", "pods"), ("create", "pods", "--subresource=exec")):
            self.assertFalse(may(*right), right)
        for right in (looks, acts, token):
            self.assertFalse(may(*right, namespace="default"), right)
            self.assertFalse(may(*right, name="berta"), right)
        pod = json.loads(self.kubectl("get", "deployment", "hush-controller", "--namespace", "hush", "--output", "json"))["spec"]["template"]
        self.assertEqual(pod["metadata"]["annotations"]["gpu.hush.dev/page-token"], "hush-page/token")

    def test_an_upgrade_from_a_chart_with_other_values(self):
        """`--reuse-values` takes the defaults of the earlier chart, in which values of this one are missing."""
        with tempfile.TemporaryDirectory() as folder:
            earlier = pathlib.Path(folder) / "hush"
            shutil.copytree(CHART, earlier)
            for name, line in (("values.yaml", "    pathType: Prefix\n"), ("required.yaml", "- server.ingress.pathType\n")):
                text = (earlier / name).read_text()
                self.assertIn(line, text)
                (earlier / name).write_text(text.replace(line, ""))
            self.helm("install", "hush", earlier, "--namespace", "hush", "--create-namespace", "--set", "server.drainSeconds=7")
        done = self.cluster.run(HELM, "upgrade", "hush", CHART, "--namespace", "hush", "--reuse-values")
        self.assertIn("server.ingress.pathType", done.stderr)
        self.assertIn("use --reset-then-reuse-values", done.stderr)
        self.helm("upgrade", "hush", CHART, "--namespace", "hush", "--reset-then-reuse-values")
        pod = json.loads(self.kubectl("get", "deployment", "hush", "--namespace", "hush", "--output", "json"))["spec"]["template"]
        self.assertIn("--drain-timeout=7s", pod["spec"]["containers"][0]["args"])

    def test_a_packaged_chart_is_the_same(self):
        with tempfile.TemporaryDirectory() as folder:
            self.helm("package", CHART, "--destination", folder)
            (archive,) = pathlib.Path(folder).glob("hush-*.tgz")
            self.helm("install", "speech", archive, "--namespace", "speech", "--create-namespace",
                      "--values", CHART / "examples/scope-pod.yaml")
        pod = json.loads(self.kubectl("get", "deployment", "speech-hush", "--namespace", "speech", "--output", "json"))
        steps = [c["name"] for c in pod["spec"]["template"]["spec"]["initContainers"]]
        self.assertEqual(steps, ["install-0", "controller"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
