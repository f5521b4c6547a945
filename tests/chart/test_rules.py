"""The rules of Prometheus as the chart installs them: links, the alerts for controllers, one set for a cluster."""
import json
import unittest

import yaml

from control_plane import ASSETS, MISSING, ControlPlane
from test_chart import CHART, HELM, HERE, rendered, template, the, values

ON = "--set", "monitoring.prometheusRule.enabled=true"
SCRAPED = "--set", "monitoring.serviceMonitor.enabled=true"
URL = "https://docs.example.org/hush/runbooks.html"


def sets(documents: list[dict]) -> dict[str, list[dict]]:
    """The alerts of each set of rules that is installed."""
    found = {}
    for document in documents:
        if document["kind"] == "PrometheusRule":
            rules = [rule for group in document["spec"]["groups"] for rule in group["rules"]]
            found[document["metadata"]["labels"]["gpu.hush.dev/rules"]] = [rule for rule in rules if "alert" in rule]
    return found


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Rendered(unittest.TestCase):
    def test_each_alert_links_to_where_the_documentation_is(self):
        linked = sets(rendered(*ON, *SCRAPED, "--set", f"monitoring.prometheusRule.runbookUrl={URL}"))
        for rule in linked["all"] + linked["controller"]:
            self.assertEqual(rule["annotations"]["runbook_url"], f"{URL}#{rule['alert'].lower()}")
        # Without the address there is no link that leads nowhere.
        for rule in sets(rendered(*ON))["all"]:
            self.assertNotIn("runbook_url", rule["annotations"])
            self.assertEqual(rule["annotations"]["runbook"], f"docs/runbooks.md#{rule['alert'].lower()}")
        for bad in ("docs/runbooks.md", "https://docs.example.org/#"):
            done = template(*ON, "--values", values(f"monitoring: {{prometheusRule: {{runbookUrl: '{bad}'}}}}"))
            self.assertIn("runbookUrl", done.stderr)

    def test_apart_from_the_links_they_are_those_of_the_files(self):
        documents = rendered(*ON, *SCRAPED, "--set", f"monitoring.prometheusRule.runbookUrl={URL}")
        for name, file in (("hush", "rules.yaml"), ("hush-controller", "controller-rules.yaml")):
            text = (CHART / file).read_text().replace("docs/runbooks.md#", f"{URL}#")
            # The controller of this release, as the ServiceMonitor labels it.
            ours = 'hush_controller_acting{namespace="hush", service="hush-controller"}'
            text = text.replace("absent(hush_controller_acting)", f"absent({ours})")
            self.assertEqual(the(documents, "PrometheusRule", name)["spec"], yaml.safe_load(text))

    def test_a_controller_is_missed_only_where_one_is_installed_and_scraped(self):
        for arguments, expected in (
            ((*ON, *SCRAPED), {"all", "controller"}),
            # Not scraped: there would be no figures of it at any time.
            (ON, {"all"}),
            # Nodes with cards may come and go, and none may be there.
            ((*ON, *SCRAPED, "--set", "controller.scope=node"), {"all"}),
            ((*ON, *SCRAPED, "--set", "controller.scope=pod"), {"all"}),
            ((*ON, *SCRAPED, "--set", "controller.scope=none"), {"all"}),
            (SCRAPED, set()),
        ):
            with self.subTest(arguments):
                found = sets(rendered(*arguments))
                self.assertEqual(set(found), expected)
                absent = [rule["alert"] for rules in found.values() for rule in rules if "absent(" in rule["expr"]]
                self.assertEqual(absent, ["HushControllerAbsent"] if "controller" in expected else [])

    def test_the_node_of_a_target_is_a_label(self):
        for scope in ("cluster", "node", "pod"):
            documents = rendered(*SCRAPED, "--set", f"controller.scope={scope}")
            endpoints = [endpoint for document in documents if document["kind"] == "ServiceMonitor"
                         for endpoint in document["spec"]["endpoints"]]
            self.assertEqual(len(endpoints), 2)
            for endpoint in endpoints:
                self.assertIn({"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"},
                              endpoint["relabelings"])


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
@unittest.skipIf(MISSING, f"{', '.join(MISSING)} not in {ASSETS}: `make control-plane` builds them")
class OneSet(unittest.TestCase):
    def test_several_releases_install_one_set_of_rules(self):
        cluster = self.enterContext(ControlPlane())
        cluster.kubectl("apply", "--server-side", "-f", CHART / "crds", "-f", HERE / "operator_crds.yaml")
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

        def helm(*arguments) -> str:
            done = cluster.run(HELM, *arguments)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        def installed(verb: str, namespace: str, *more: str) -> str:
            return helm(verb, "hush", CHART, "--namespace", namespace, *(["--create-namespace"] if verb == "install" else []),
                        *ON, *SCRAPED, *more)

        def rules() -> list[str]:
            items = json.loads(cluster.kubectl("get", "prometheusrules", "--all-namespaces", "--output", "json"))["items"]
            return sorted(f"{i['metadata']['namespace']}/{i['metadata']['name']}" for i in items)

        none = "--set", "controller.scope=none"
        self.assertNotIn("The rules of Prometheus", installed("install", "m", *none))
        self.assertEqual(rules(), ["m/hush"])
        # The controller's own rule comes with the controller, the others are there.
        self.assertIn("The rules of Prometheus are those of m/hush", installed("install", "z"))
        self.assertEqual(rules(), ["m/hush", "z/hush-controller"])
        # A release whose name sorts first does not take them over.
        self.assertIn("those of m/hush", installed("install", "a", *none))
        self.assertNotIn("The rules of Prometheus", installed("upgrade", "m", *none))
        self.assertEqual(rules(), ["m/hush", "z/hush-controller"])
        # Without them the next release that is upgraded installs them.
        helm("uninstall", "hush", "--namespace", "m")
        self.assertNotIn("The rules of Prometheus", installed("upgrade", "z"))
        self.assertEqual(rules(), ["z/hush", "z/hush-controller"])
        # Two sets from before: whichever release is changed first, one remains.
        text = cluster.kubectl("get", "prometheusrule", "hush", "--namespace", "z", "--output", "json")
        other = json.loads(text)
        other["metadata"] = {"name": "hush", "namespace": "a", "labels": other["metadata"]["labels"],
                             "annotations": {"meta.helm.sh/release-name": "hush", "meta.helm.sh/release-namespace": "a"}}
        cluster.kubectl("apply", "-f", "-", text=json.dumps(other))
        self.assertIn("those of a/hush", installed("upgrade", "z"))
        self.assertEqual(rules(), ["a/hush", "z/hush-controller"])
        self.assertNotIn("The rules of Prometheus", installed("upgrade", "a", *none))
        self.assertEqual(rules(), ["a/hush", "z/hush-controller"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
