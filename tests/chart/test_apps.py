"""Apps in the chart: other model servers with hush-sidecar in front of them, which is the only way to them."""
import re
import subprocess
import unittest

import yaml

from test_chart import BUILT, CHART, EXAMPLES, HELM, containers, rendered, template, the, values

OWN = {9000, 9001, 9002}
SMALL = "{name: chat, kind: ollama, image: 'docker.io/ollama/ollama:0.17.4', port: 11435, models: [tiny]}"
APPS = [path for path in EXAMPLES if path.stem.startswith("app-")]


def pod_of(documents: list[dict], name: str) -> dict:
    return the(documents, "Deployment", name)["spec"]["template"]


def named(pod: dict, name: str) -> dict:
    (found,) = [container for container in containers(pod) if container["name"] == name]
    return found


def apps(documents: list[dict]):
    """Name and pod of each app."""
    for document in documents:
        if document["kind"] == "Deployment" and document["metadata"]["labels"]["app.kubernetes.io/component"] == "app":
            yield document["metadata"]["name"], document["spec"]["template"]


def words(container: dict) -> list[str]:
    """Everything that the program in a container is told."""
    env = [entry.get("value", "") for entry in container.get("env", [])]
    return [*container.get("command", []), *container.get("args", []), *env]


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Examples(unittest.TestCase):
    def each(self):
        self.assertEqual([path.stem for path in APPS], ["app-comfyui", "app-ollama", "app-process", "app-process-unload",
                                                          "app-triton", "app-vllm"])
        for path in APPS:
            documents = rendered("--values", path)
            found = list(apps(documents))
            self.assertEqual(len(found), 1, path.stem)
            for name, pod in found:
                with self.subTest(path.stem):
                    yield documents, name, pod

    def test_the_sidecar_is_the_only_way_in(self):
        for documents, name, pod in self.each():
            rules = the(documents, "NetworkPolicy", "hush-app")["spec"]
            labels = pod["metadata"]["labels"]
            self.assertLessEqual(rules["podSelector"]["matchLabels"].items(), labels.items())
            self.assertIn("Ingress", rules["policyTypes"])
            opened = {port["port"] for rule in rules["ingress"] for port in rule["ports"]}
            self.assertEqual(opened, {9000, 9001})
            # An empty list of peers would let every client in.
            self.assertTrue(all(rule["from"] for rule in rules["ingress"]))

            service = the(documents, "Service", name)["spec"]
            self.assertEqual([port["targetPort"] for port in service["ports"]], [9000])
            self.assertLessEqual(service["selector"].items(), labels.items())

            # The app listens on the loopback, where the sidecar looks for it.
            app = named(pod, "app")
            own = app["args"][app["args"].index("--") + 1:] if "--" in app.get("args", []) else words(app)
            self.assertTrue(any("127.0.0.1" in word for word in own), own)
            self.assertFalse(any("0.0.0.0" in word for word in own), own)
            ports = {port["containerPort"] for container in containers(pod) for port in container.get("ports", [])}
            self.assertEqual(ports, {9000, 9001})

    def test_the_controller_finds_it(self):
        for _, _, pod in self.each():
            self.assertEqual(pod["metadata"]["labels"]["gpu.hush.dev/server"], "true")
            # As controller/src/cluster/pods.rs: ports of containers, and of init containers that are sidecars.
            running = [c for c in containers(pod) if c in pod["spec"]["containers"] or c.get("restartPolicy") == "Always"]
            ops = [port for container in running for port in container.get("ports", []) if port.get("name") == "ops"]
            self.assertEqual(ops, [{"name": "ops", "containerPort": 9001}])

    def test_the_kubelet_asks_the_sidecar_and_never_the_app(self):
        for _, _, pod in self.each():
            probed = [c["name"] for c in containers(pod) if {"startupProbe", "livenessProbe", "readinessProbe"} & set(c)]
            process = "copy-sidecar" in [container["name"] for container in pod["spec"]["initContainers"]]
            self.assertEqual(probed, ["app"] if process else ["sidecar"])
            probed_container = named(pod, probed[0])
            probes = [probed_container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
            self.assertEqual([(probe["path"], probe["port"]) for probe in probes],
                             [("/healthz", "ops"), ("/healthz", "ops"), ("/readyz", "ops")])

    def test_the_policies_select_it(self):
        for documents, _, pod in self.each():
            for document in documents:
                if document["kind"] == "GpuModelPolicy":
                    labels = document["spec"]["selector"]["matchLabels"]
                    pods = [p["metadata"]["labels"] for p in (d["spec"]["template"] for d in documents if d["kind"] == "Deployment")]
                    self.assertTrue(any(labels.items() <= pod.items() for pod in pods), document["metadata"]["name"])

    def test_the_credential_of_the_api_server_is_the_sidecars(self):
        for _, _, pod in self.each():
            mounted = {c["name"] for c in containers(pod) if any(m["name"] == "kube-api" for m in c["volumeMounts"])}
            self.assertEqual(len(mounted), 1)
            (name,) = mounted
            self.assertIn("--admin-token-review=true", named(pod, name)["args"])
            self.assertIn("--admin-account=hush:hush-controller", named(pod, name)["args"])

    def test_a_request_in_flight_has_time_when_the_pod_ends(self):
        for _, _, pod in self.each():
            pause = named(pod, "app")["lifecycle"]["preStop"]["sleep"]["seconds"]
            self.assertGreater(pod["spec"]["terminationGracePeriodSeconds"], pause)
            if "copy-sidecar" not in [container["name"] for container in pod["spec"]["initContainers"]]:
                self.assertEqual(pause, 60, "the kubelet ends the app before the sidecar")


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Modes(unittest.TestCase):
    def test_by_its_api_the_sidecar_runs_beside_the_app(self):
        pod = pod_of(rendered("--values", CHART / "examples/app-ollama.yaml"), "hush-ollama")
        sidecar, app = named(pod, "sidecar"), named(pod, "app")
        self.assertEqual(sidecar["restartPolicy"], "Always")
        for argument in ("--app=ollama", "--mode=api", "--upstream=http://127.0.0.1:11435", "--config=/etc/hush/config.yaml", "--listen=0.0.0.0:9000",
                         "--ops-listen=0.0.0.0:9001"):
            self.assertIn(argument, sidecar["args"])
        self.assertIn({"name": "config", "mountPath": "/etc/hush", "readOnly": True}, sidecar["volumeMounts"])
        self.assertNotIn("limits", sidecar["resources"])
        # The image's own command.
        self.assertNotIn("command", app)
        self.assertIn({"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"}, sidecar["env"])

    def test_in_process_mode_the_program_is_copied_and_starts_the_app(self):
        pod = pod_of(rendered("--values", CHART / "examples/app-process.yaml"), "hush-llama")
        (copy,) = pod["spec"]["initContainers"]
        self.assertNotIn("restartPolicy", copy)
        self.assertEqual(copy["command"], ["cp", "/usr/local/bin/hush-sidecar", "/opt/hush/hush-sidecar"])
        (copied,) = [mount["name"] for mount in copy["volumeMounts"]]
        (volume,) = [volume for volume in pod["spec"]["volumes"] if volume["name"] == copied]
        self.assertIn("emptyDir", volume)

        (app,) = pod["spec"]["containers"]
        self.assertEqual(app["image"], "ghcr.io/ggml-org/llama.cpp:server-cuda-b11434")
        self.assertEqual(app["command"], ["/opt/hush/hush-sidecar"])
        self.assertIn({"name": copied, "mountPath": "/opt/hush", "readOnly": True}, app["volumeMounts"])
        end = app["args"].index("--")
        self.assertEqual(app["args"][end + 1:end + 4], ["/app/llama-server", "--host", "127.0.0.1"])
        self.assertIn("{port}", app["args"][end:])
        self.assertIn("--ready=/health", app["args"][:end])
        self.assertIn("--mode=process", app["args"][:end])
        self.assertEqual(app["resources"]["limits"], {"nvidia.com/gpu": 1})

    def test_an_app_that_its_sidecar_starts_is_unloaded_by_its_api_and_can_be_ended(self):
        pod = pod_of(rendered("--values", CHART / "examples/app-process-unload.yaml"), "hush-comfyui")
        (app,) = pod["spec"]["containers"]
        self.assertEqual([container["name"] for container in pod["spec"]["initContainers"]], ["copy-sidecar"])
        end = app["args"].index("--")
        for argument in ("--app=comfyui", "--mode=api", "--unload=process", "--upstream=http://127.0.0.1:8188"):
            self.assertIn(argument, app["args"][:end])
        self.assertEqual(app["args"][end + 1:end + 3], ["python3", "main.py"])
        self.assertEqual(app["lifecycle"]["preStop"]["sleep"]["seconds"], 5)

    def test_parameters_of_a_description(self):
        launch = "{model_engine: vllm, model_name: qwen2.5}"
        documents = rendered("--values", values(
            f"apps: [{{name: x, kind: xinference, image: 'x/y:1', port: 9997, parameters: {{launch: {launch}}}, "
            "models: [one, {name: two, parameters: {launch: {model_name: other}}}]}]\n"))
        config = yaml.safe_load(the(documents, "ConfigMap", "hush-x")["data"]["config.yaml"])
        self.assertEqual(config, {
            "models": [{"name": "one"}, {"name": "two", "parameters": {"launch": {"model_name": "other"}}}],
            "parameters": {"launch": {"model_engine": "vllm", "model_name": "qwen2.5"}},
        })

    def test_a_description_of_ones_own(self):
        documents = rendered("--values", values(
            "apps:\n- {name: own, description: 'name: own', image: 'x/y:1', port: 8000, models: [m]}\n"))
        sidecar = named(pod_of(documents, "hush-own"), "sidecar")
        self.assertEqual([word for word in sidecar["args"] if word.startswith("--app=")], ["--app=/etc/hush/app.yaml"])
        self.assertEqual(the(documents, "ConfigMap", "hush-own")["data"], {"app.yaml": "name: own\n", "config.yaml": "models:\n- name: m\n"})

        def config(text: str) -> str:
            pod = pod_of(rendered("--values", values(
                f"apps:\n- {{name: own, description: '{text}', image: 'x/y:1', port: 8000, models: [m]}}\n")), "hush-own")
            return pod["metadata"]["annotations"]["gpu.hush.dev/config"]

        self.assertNotEqual(config("name: a"), config("name: b"), "a change replaces the pod")

    def test_models_by_name_or_with_what_differs(self):
        models = "[one, {name: two, appName: 'two:7b', aliases: [second], idleTimeout: 1m, needBytes: 6GiB}]"
        documents = rendered("--values", values(f"apps: [{SMALL.replace('[tiny]', models)}]\n"))
        config = yaml.safe_load(the(documents, "ConfigMap", "hush-chat")["data"]["config.yaml"])
        self.assertEqual(config, {"models": [{"name": "one"}, {"name": "two", "appName": "two:7b", "aliases": ["second"],
                                                               "idleTimeout": "1m", "needBytes": "6GiB"}]})

    def test_a_controller_beside_each_app(self):
        documents = rendered("--values", values(f"controller: {{scope: pod}}\nserver: {{enabled: false}}\napps: [{SMALL}]\n"))
        pod = pod_of(documents, "hush-chat")
        self.assertEqual([c["name"] for c in containers(pod)], ["sidecar", "controller", "app"])
        self.assertEqual(named(pod, "controller")["restartPolicy"], "Always")
        self.assertIn("--admin-account=hush:hush-app", named(pod, "sidecar")["args"])
        self.assertIn("server-token", [volume["name"] for volume in pod["spec"]["volumes"]])
        (subject,) = the(documents, "ClusterRoleBinding", "hush-hush-controller")["subjects"]
        self.assertEqual(subject["name"], "hush-app")
        ports = {port["port"] for rule in the(documents, "NetworkPolicy", "hush-app")["spec"]["ingress"] for port in rule["ports"]}
        self.assertEqual(ports, {9000, 9001, 9002})

    def test_a_policy_without_a_selector_governs_servers_and_apps(self):
        documents = rendered("--values", values(f"apps: [{SMALL}]\npolicies: {{own: {{priority: 1}}}}\n"))
        labels = the(documents, "GpuModelPolicy", "own")["spec"]["selector"]["matchLabels"]
        for name in ("hush", "hush-chat"):
            self.assertLessEqual(labels.items(), pod_of(documents, name)["metadata"]["labels"].items(), name)
        controller = pod_of(documents, "hush-controller")["metadata"]["labels"]
        self.assertFalse(labels.items() <= controller.items())

    def test_prometheus_scrapes_apps_and_the_controller_reaches_them(self):
        documents = rendered("--values", values(f"apps: [{SMALL}]\nmonitoring: {{serviceMonitor: {{enabled: true}}}}\n"))
        service = the(documents, "Service", "hush-app-ops")
        self.assertEqual(service["spec"]["ports"], [{"name": "ops", "port": 9001, "targetPort": 9001}])
        self.assertLessEqual(service["spec"]["selector"].items(), pod_of(documents, "hush-chat")["metadata"]["labels"].items())
        monitor = the(documents, "ServiceMonitor", "hush-app")["spec"]
        self.assertLessEqual(monitor["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
        egress = the(documents, "NetworkPolicy", "hush-controller")["spec"]["egress"]
        self.assertIn(9001, [port["port"] for rule in egress for port in rule["ports"]])

    def test_both_ports_of_the_sidecar_with_tls(self):
        secured = "opsTls: {secretName: ops}\nmonitoring: {serviceMonitor: {enabled: true}}\napp: {tls: {name: chat-tls}}\n"
        for mode in ("api", "process"):
            with self.subTest(mode):
                app = SMALL if mode == "api" else SMALL.replace("}", ", mode: process, command: [run]}", 1)
                documents = rendered("--values", values(f"apps: [{app}]\n{secured}"))
                pod = pod_of(documents, "hush-chat")
                self.assertEqual(pod["metadata"]["annotations"]["gpu.hush.dev/ops-scheme"], "https")

                sidecar = next(c for c in containers(pod) if any("--ops-listen" in a for a in c.get("args", [])))
                for name, folder in (("tls", "hush-tls"), ("ops-tls", "hush-ops-tls")):
                    self.assertIn(f"--{name}-cert=/var/run/secrets/{folder}/tls.crt", sidecar["args"])
                    self.assertIn(f"--{name}-key=/var/run/secrets/{folder}/tls.key", sidecar["args"])
                    self.assertIn({"name": name, "mountPath": f"/var/run/secrets/{folder}", "readOnly": True}, sidecar["volumeMounts"])
                found = {v["name"]: v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
                self.assertEqual((found["tls"], found["ops-tls"]), ("chat-tls", "ops"))
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertEqual(sidecar[probe]["httpGet"]["scheme"], "HTTPS", probe)

                endpoint = the(documents, "ServiceMonitor", "hush-app")["spec"]["endpoints"][0]
                self.assertEqual((endpoint["scheme"], endpoint["tlsConfig"]["ca"]["secret"]["name"]), ("https", "ops"))

    def test_without_tls_there_is_no_word_of_it(self):
        documents = rendered("--values", values(f"apps: [{SMALL}]\nmonitoring: {{serviceMonitor: {{enabled: true}}}}\n"))
        pod = str(pod_of(documents, "hush-chat"))
        for word in ("tls", "HTTPS", "ops-scheme"):
            self.assertNotIn(word, pod)
        self.assertNotIn("scheme", the(documents, "ServiceMonitor", "hush-app")["spec"]["endpoints"][0])

    def test_the_apps_own_metrics_are_scraped_where_asked_for(self):
        monitor = "monitoring: {serviceMonitor: {enabled: true, appMetrics: true}}\n"
        documents = rendered("--values", values(f"apps: [{SMALL}]\n{monitor}"))
        endpoints = the(documents, "ServiceMonitor", "hush-app")["spec"]["endpoints"]
        self.assertEqual([e.get("path") for e in endpoints], [None, "/app/metrics"])
        self.assertEqual({e["port"] for e in endpoints}, {"ops"})

    def test_two_apps_are_two_of_everything_but_the_account(self):
        other = SMALL.replace("chat", "draft").replace("11435", "11436")
        documents = rendered("--values", values(f"apps: [{SMALL}, {other}]\n"))
        for kind in ("Deployment", "Service", "PodDisruptionBudget"):
            one, two = the(documents, kind, "hush-chat"), the(documents, kind, "hush-draft")
            self.assertNotEqual(one["metadata"]["labels"]["gpu.hush.dev/name"], two["metadata"]["labels"]["gpu.hush.dev/name"])
        self.assertEqual(len([d for d in documents if d["kind"] == "ServiceAccount" and d["metadata"]["name"] == "hush-app"]), 1)

    def test_the_role_is_the_one_of_the_server(self):
        documents = rendered("--values", values(f"apps: [{SMALL}]\n"))
        self.assertEqual(the(documents, "ClusterRole", "hush-hush-app")["rules"], the(documents, "ClusterRole", "hush-hush-server")["rules"])
        self.assertNotIn("ClusterRole", {d["kind"] for d in rendered("--values", values(f"apps: [{SMALL}]\nrbac: {{create: false}}\n"))})

    def test_the_sidecar_knows_its_arguments(self):
        program = BUILT / "hush-sidecar"
        help_ = subprocess.run([program, "--help"], text=True, capture_output=True).stdout if program.exists() else ""
        if "--upstream" not in help_:
            self.skipTest("hush-sidecar is not built, or has no options yet")
        for example in APPS:
            for _, pod in apps(rendered("--values", example)):
                for container in containers(pod):
                    arguments = container.get("args", []) if container["name"] != "app" or "command" in container else []
                    for argument in arguments[:arguments.index("--") if "--" in arguments else None]:
                        if any("hush-sidecar" in word for word in [container["image"], *container.get("command", [])]):
                            self.assertRegex(help_, rf"(?m)^\s+(-\w, )?{re.escape(argument.split('=')[0])}\b", example.stem)


@unittest.skipUnless(HELM.exists(), f"there is no helm at {HELM}: `make helm` builds it")
class Refused(unittest.TestCase):
    def test_mistakes_name_the_value_and_the_fix(self):
        def app(change: str) -> str:
            entry = {**yaml.safe_load(SMALL), **yaml.safe_load(f"{{{change}}}")}
            return yaml.safe_dump({"apps": [entry]})

        for text, complaint in (
            ("apps: {chat: {}}", "apps"),
            ("apps: [{kind: ollama}]", "name"),
            (app("name: Chat"), "name"),
            (app("knd: x"), "knd"),
            (app("mode: thread"), "mode"),
            (app("image: docker.io/ollama/ollama"), "image"),
            (app("image: ''"), "apps[0].image is empty"),
            (app("port: 0"), "apps[0].port is empty"),
            (app("port: 70000"), "port"),
            (app("port: 9001"), "apps[0].port: 9001 is a port of hush-sidecar"),
            (app("models: []"), "apps[0].models is empty"),
            (app("models: [{nam: x}]"), "models"),
            (app("kind: ''"), "apps[0].kind is empty"),
            (app("description: 'name: x'"), "exclude each other"),
            (app("mode: process"), "apps[0].command is empty"),
            (app("startApp: true"), "apps[0].command is empty"),
            (app("unload: process"), "apps[0].unload: process ends the process"),
            (app("unload: all"), "unload"),
            (app("readyPath: /health"), "apps[0].readyPath is only for mode: process"),
            (app("name: controller"), "choose another name"),
            (app("name: server"), "choose another name"),
            (f"servers: {{chat: {{}}}}\napps: [{SMALL}]", "choose another name"),
            (f"apps: [{SMALL}, {SMALL}]", "is the name of another app"),
            (app("sidecar: {extraArgs: [--upstream=http://10.0.0.1]}"), "apps[0].sidecar.extraArgs: --upstream is an option that the chart sets"),
            (app("volumes: [{name: spool, emptyDir: {}}]"), "apps[0].volumes: the name spool"),
            (app("volumeMounts: [{name: a, mountPath: /tmp}]"), "apps[0].volumeMounts: the mountPath /tmp"),
            (app("extraContainers: [{name: app, image: a}]"), "apps[0].extraContainers: the name app"),
            (app("initContainers: [{name: sidecar, image: a}]"), "apps[0].initContainers: the name sidecar"),
            (app("podLabels: {gpu.hush.dev/server: x}"), "apps[0].podLabels"),
            (app("service: {nodePort: 30000}"), "apps[0].service.nodePort"),
            (app("serviceAccount: {create: false}"), "apps[0].serviceAccount"),
            (app("gpu: {visibleDevices: all}"), "apps[0].gpu.visibleDevices"),
        ):
            with self.subTest(text):
                done = template("--values", values(text))
                self.assertNotEqual(done.returncode, 0, "it is taken")
                self.assertIn(complaint, done.stderr)
                self.assertNotRegex(done.stderr, r"nil pointer|wrong type|error calling (?!fail|include)|can't evaluate|parse error")


if __name__ == "__main__":
    unittest.main(verbosity=2)
