"""The chart with the operations port over TLS: what servers, controllers and ServiceMonitors have for it."""
import unittest

from test_chart import HELM, containers, rendered, template, the, values

NAME = "--set", "opsTls.secretName=hush-ops-tls"


def server(documents: list[dict]) -> tuple[dict, dict]:
    pod = the(documents, "Deployment", "hush")["spec"]["template"]
    (found,) = [c for c in containers(pod) if c["name"] == "server"]
    return pod, found


def volumes(pod: dict) -> dict[str, dict]:
    return {volume["name"]: volume for volume in pod["spec"]["volumes"]}


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class OpsTls(unittest.TestCase):
    def test_servers_show_the_certificate_and_pods_say_so(self):
        pod, container = server(rendered(*NAME))
        self.assertEqual(pod["metadata"]["annotations"]["gpu.hush.dev/ops-scheme"], "https")
        folder = "/var/run/secrets/hush-ops-tls"
        for argument in (f"--ops-tls-cert={folder}/tls.crt", f"--ops-tls-key={folder}/tls.key"):
            self.assertIn(argument, container["args"])
        self.assertIn({"name": "ops-tls", "mountPath": folder, "readOnly": True}, container["volumeMounts"])
        self.assertEqual(volumes(pod)["ops-tls"]["secret"]["secretName"], "hush-ops-tls")
        # A folder and no subPath: what is renewed arrives.
        self.assertFalse([m for m in container["volumeMounts"] if "subPath" in m])
        # The kubelet asks the public port, by the scheme of that one.
        self.assertEqual({container[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")},
                         {"HTTP"})
        # None of it without the value.
        text = template().stdout
        for word in ("ops-scheme", "ops-tls", "ca-file", "tlsConfig"):
            self.assertNotIn(word, text)

    def test_the_controller_sees_the_authority_and_no_key(self):
        for scope, kind, name in (("cluster", "Deployment", "hush-controller"), ("node", "DaemonSet", "hush-controller"),
                                  ("pod", "Deployment", "hush")):
            for given, source in (
                (NAME, {"secret": {"secretName": "hush-ops-tls", "defaultMode": 0o440, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
                ((*NAME, "--set", "opsTls.ca.secret.name=roots,opsTls.ca.secret.key=tls.crt"),
                 {"secret": {"secretName": "roots", "defaultMode": 0o440, "items": [{"key": "tls.crt", "path": "ca.crt"}]}}),
                (("--set", "opsTls.ca.configMap.name=roots"),
                 {"configMap": {"name": "roots", "defaultMode": 0o444, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}),
            ):
                with self.subTest(scope=scope, given=given):
                    documents = rendered("--set", f"controller.scope={scope}", *given)
                    pod = the(documents, kind, name)["spec"]["template"]
                    (controller,) = [c for c in containers(pod) if c["name"] == "controller"]
                    self.assertIn("--ca-file=/var/run/secrets/hush-servers/ca.crt", controller["args"])
                    mounted = {m["name"]: m["mountPath"] for m in controller["volumeMounts"]}
                    self.assertEqual(mounted["servers-ca"], "/var/run/secrets/hush-servers")
                    self.assertNotIn("ops-tls", mounted)
                    self.assertEqual(volumes(pod)["servers-ca"], {"name": "servers-ca", **source})

    def test_prometheus_checks_the_same_name(self):
        def endpoints(*arguments):
            documents = rendered("--set", "monitoring.serviceMonitor.enabled=true", *arguments, namespace="team-a")
            return {endpoint["port"]: endpoint for document in documents if document["kind"] == "ServiceMonitor"
                    for endpoint in document["spec"]["endpoints"]}

        found = endpoints(*NAME, "--set", "controller.scope=pod")
        self.assertEqual(found["ops"]["scheme"], "https")
        self.assertEqual(found["ops"]["tlsConfig"], {"serverName": "hush-server.team-a.svc",
                                                     "ca": {"secret": {"name": "hush-ops-tls", "key": "ca.crt"}}})
        self.assertNotIn("scheme", found["controller"], "its own listener is plain")
        found = endpoints(*NAME, "--set", "opsTls.ca.configMap.name=roots")
        self.assertEqual(found["ops"]["tlsConfig"]["ca"], {"configMap": {"name": "roots", "key": "ca.crt"}})
        self.assertNotIn("tlsConfig", endpoints()["ops"])

    def test_mistakes_are_refused(self):
        for text, complaint in (
            ("opsTls: {secretname: a}", "secretname"),
            ("opsTls: {ca: {secret: {name: a}, configMap: {name: b}}}", "not both"),
            ("opsTls: {ca: roots}", "ca"),
        ):
            with self.subTest(text):
                done = template("--values", values(text))
                self.assertNotEqual(done.returncode, 0)
                self.assertIn(complaint, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
