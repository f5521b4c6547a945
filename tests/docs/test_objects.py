"""Objects that the pages show, on a real API server: each is accepted as it is written, without a warning; values of the chart
inside of other objects are values; queries are queries and what they count exists; what is said of a release is what its
workflow does. `make test-docs` prepares and calls it.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import jsonschema
import yaml

from book import DOCS, ROOT, pages
from control_plane import ASSETS, MISSING, ControlPlane

CHART = ROOT / "charts/hush"
HELM = pathlib.Path(os.environ.get("HELM", ROOT / ".hush/helm/helm"))
OTHERS = os.environ.get("OTHER_DEFINITIONS", pathlib.Path(__file__).parent / "other_crds.yaml")
OURS = "gpu.hush.dev/"


def blocks():
    """`(place, documents)` of every block in YAML."""
    for page in pages():
        for block in (block for block in page.blocks if block.language == "yaml"):
            yield block.place, [document for document in yaml.safe_load_all(block.text) if document]


def objects():
    """`(place, object)` of everything that Kubernetes is to take."""
    for place, documents in blocks():
        for document in documents:
            # Those of cert-manager are checked with the values of the chart that name their Secrets: test_examples.py.
            if "kind" in document and not document["apiVersion"].startswith("cert-manager.io/"):
                yield place, document
            for policy in document.get("policies", []) if "gpus" in document else []:
                yield place, policy


def inner_values():
    """Values of the chart inside of objects of Argo CD and Flux."""
    for place, document in objects():
        spec = document.get("spec", {})
        if document["kind"] == "Application":
            yield place, spec["source"]["helm"]["valuesObject"]
        elif document["kind"] == "HelmRelease":
            yield place, spec["values"]


@unittest.skipIf(MISSING, f"{', '.join(MISSING)} not in {ASSETS}: `make control-plane` builds them")
class Accepted(unittest.TestCase):
    def test_every_object_is_accepted_as_it_is_written(self):
        cluster = self.enterContext(ControlPlane())
        cluster.kubectl("apply", "--server-side", "-f", CHART / "crds", "-f", OTHERS)
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        found = [(place, one) for place, one in objects()]
        # The level of Pod Security that the chart keeps to; what does not keep to it comes as a warning.
        names = {one["metadata"].get("namespace", "default") for _, one in found} - {"default"}
        for name in sorted(names):
            labels = {"pod-security.kubernetes.io/warn": "restricted"}
            space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            cluster.kubectl("apply", "-f", "-", text=json.dumps(space))
        counts: dict[str, int] = {}
        for place, one in found:
            with self.subTest(f"{place} {one['kind']}"):
                done = cluster.run(ASSETS / "kubectl", "apply", "--server-side", "--dry-run=server", "--validate=strict",
                                   "-f", "-", text=json.dumps(one))
                self.assertEqual(done.returncode, 0, f"{place}\n{done.stderr}")
                self.assertEqual(done.stderr, "", place)
                counts[one["apiVersion"]] = counts.get(one["apiVersion"], 0) + 1
        ours = {version: count for version, count in counts.items() if version.startswith(OURS)}
        self.assertEqual(set(ours), {"gpu.hush.dev/v1beta1"}, "the pages show the recommended version")
        self.assertGreater(sum(ours.values()), 12)
        self.assertLessEqual({"argoproj.io/v1alpha1", "helm.toolkit.fluxcd.io/v2", "keda.sh/v1alpha1", "autoscaling/v2",
                              "batch/v1", "networking.k8s.io/v1", "route.openshift.io/v1"}, set(counts))

    def test_what_is_wrong_would_be_seen(self):
        cluster = self.enterContext(ControlPlane())
        cluster.kubectl("apply", "--server-side", "-f", CHART / "crds", "-f", OTHERS)
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        # The first object of each kind, with a field that does not exist.
        kinds = {one["kind"]: one for _, one in reversed(list(objects()))}
        for kind, one in kinds.items():
            if kind == "ConfigMap":
                continue
            wrong = {**one, "metadata": {"name": "wrong"}, "spec": {**one["spec"], "notAField": 1}}
            done = cluster.run(ASSETS / "kubectl", "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f",
                               "-", text=json.dumps(wrong))
            self.assertNotEqual(done.returncode, 0, kind)
            self.assertIn("notAField", done.stderr, kind)


class Values(unittest.TestCase):
    schema = json.loads((CHART / "values.schema.json").read_text())

    def test_values_inside_of_other_objects_are_values_of_the_chart(self):
        found = list(inner_values())
        self.assertEqual(len(found), 2)
        for place, values in found:
            with self.subTest(place):
                jsonschema.validate(values, self.schema)

    @unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
    def test_they_can_be_installed(self):
        for place, values in inner_values():
            documents = self.render(values)
            policies = [one["metadata"]["name"] for one in documents if one["kind"] == "GpuModelPolicy"]
            self.assertEqual(policies, ["idle"], place)

    @unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
    def test_what_restricted_v2_of_openshift_asks_for(self):
        """No user and no group of the chart's own; all the rest of the level `restricted`."""
        merged: dict = {}
        for place, documents in blocks():
            if place.startswith("docs/openshift.md") and "apiVersion" not in documents[0]:
                for key, value in documents[0].items():
                    merged[key] = {**merged.get(key, {}), **value}
        self.assertLessEqual({"securityContext", "networkPolicy", "monitoring"}, set(merged))
        pods = [one["spec"]["template"]["spec"] for one in self.render(merged) if one["kind"] == "Deployment"]
        self.assertEqual(len(pods), 2)
        allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
        for pod in pods:
            containers = pod["containers"] + pod.get("initContainers", [])
            for context in (pod["securityContext"], *(one["securityContext"] for one in containers)):
                self.assertFalse({"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"} & set(context))
            self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
            self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
            for one in containers:
                self.assertEqual(one["securityContext"], {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                                                          "capabilities": {"drop": ["ALL"]}})
            for volume in pod["volumes"]:
                self.assertLessEqual(set(volume) - {"name"}, allowed)
            self.assertFalse({"hostNetwork", "hostPID", "hostIPC"} & set(pod))

    @unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
    def test_an_autoscaler_is_left_the_number_of_pods(self):
        (values,) = [documents[0] for place, documents in blocks()
                     if place.startswith("docs/scaling.md") and "server" in documents[0]]
        documents = self.render(values)
        (server,) = [one for one in documents if one["kind"] == "Deployment" and one["metadata"]["name"] == "hush"]
        self.assertNotIn("replicas", server["spec"])
        for _, one in objects():
            if one["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
                self.assertEqual(one["spec"]["scaleTargetRef"],
                                 {"apiVersion": server["apiVersion"], "kind": server["kind"], "name": server["metadata"]["name"]})
        # The service whose name is a label of what Prometheus scrapes.
        services = {one["metadata"]["name"] for one in documents if one["kind"] == "Service"}
        (query,) = [trigger["metadata"]["query"] for _, one in objects() if one["kind"] == "ScaledObject"
                    for trigger in one["spec"]["triggers"]]
        self.assertIn(re.search(r'service="([^"]+)"', query)[1], services)

    def render(self, values: dict) -> list[dict]:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            done = subprocess.run([HELM, "template", "hush", CHART, "--namespace", "hush", "--values", file.name],
                                  capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [document for document in yaml.safe_load_all(done.stdout) if document]


class Queries(unittest.TestCase):
    """Of Prometheus, in autoscalers."""

    def queries(self):
        for place, one in objects():
            if one["kind"] == "ScaledObject":
                yield from ((place, trigger["metadata"]["query"]) for trigger in one["spec"]["triggers"])
        for place, documents in blocks():
            for rule in documents[0].get("rules", []) if "apiVersion" not in documents[0] else []:
                if "seriesQuery" in rule:
                    yield place, rule["seriesQuery"]
                    filled = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].split("{")[0])
                    yield place, filled.replace("<<.LabelMatchers>>", 'namespace="hush"').replace("<<.GroupBy>>", "pod")

    def test_what_they_count_exists(self):
        known = set(re.findall(r"`(hush_[a-z_]+)`", (DOCS / "reference/metrics.md").read_text()))
        found = list(self.queries())
        self.assertEqual(len(found), 3)
        for place, query in found:
            names = set(re.findall(r"\bhush_[a-z_]+", query))
            self.assertTrue(names and names <= known, f"{place}: {query}")
        for place, one in objects():
            if one["kind"] == "HorizontalPodAutoscaler":
                self.assertIn(one["spec"]["metrics"][0]["pods"]["metric"]["name"], known, place)

    @unittest.skipUnless(shutil.which("promtool"), "there is no promtool here")
    def test_they_are_queries(self):
        rules = [{"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(self.queries())]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump({"groups": [{"name": "docs", "rules": rules}]}, file)
            file.flush()
            done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Signatures(unittest.TestCase):
    """docs/verify.md against the workflow of a release."""

    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
    page = (DOCS / "verify.md").read_text()

    def test_the_identity_is_that_of_the_workflow(self):
        identities = re.findall(r"--certificate-identity (\S+)", self.page)
        self.assertEqual(len(identities), 4)
        path = r"https://github\.com/OWNER/REPOSITORY/(\S+)@refs/tags/(\S+)"
        for identity in identities:
            file, tag = re.fullmatch(path, identity).groups()
            self.assertTrue((ROOT / file).exists(), file)
            # YAML takes the key `on` for true.
            (pattern,) = self.workflow[True]["push"]["tags"]
            self.assertRegex(tag, "^" + pattern.replace(".", r"\.").replace("*", "[0-9]+") + "$")
        self.assertIn("--certificate-oidc-issuer https://token.actions.githubusercontent.com", self.page)
        flux = (DOCS / "gitops.md").read_text()
        subject = re.search(r"subject: (\S+)", flux)[1]
        self.assertRegex(identities[0], subject)

    def test_everything_that_is_said_to_be_signed_is_signed(self):
        said = dict(re.findall(r"^\| `([^`]+):VERSION(?:-\w+)?` \| ([^|]+) \|", self.page, re.M))
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (yes|no) \| (yes|no) \|$", self.page, re.M)
        self.assertEqual(len(rows), 5)
        jobs = self.workflow["jobs"]
        images = {f"{one['image']}:VERSION{one['suffix']}" for one in jobs["images"]["strategy"]["matrix"]["include"]}
        self.assertEqual({name for name, *_ in rows}, images | {"charts/hush:VERSION"})
        platforms = ", ".join(one["name"] for one in jobs["build"]["strategy"]["matrix"]["platform"])
        for name, platform, signed, bill in rows:
            of_image = name in images
            self.assertEqual(platform, platforms if of_image else "any", name)
            job = jobs["images" if of_image else "chart"]
            self.assertEqual(signed == "yes", any("cosign sign" in step.get("run", "") for step in job["steps"]), name)
            build = [step["with"] for step in jobs["build"]["steps"] if "build-push-action" in step.get("uses", "")]
            self.assertEqual(bill == "yes", of_image and bool(build[0]["sbom"] and build[0]["provenance"]), name)
        verified = set(re.findall(r"cosign verify ghcr\.io/OWNER/(\S+)", self.page))
        self.assertEqual({re.sub(r":.*", "", name) for name in verified}, {name for name in said})


if __name__ == "__main__":
    unittest.main(verbosity=2)
