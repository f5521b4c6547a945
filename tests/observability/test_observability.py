"""Dashboards and alerts against a real Prometheus that scrapes real servers and a real controller: rules are unit-tested,
and no panel is empty. The GPU is the double's. `make test-observability` prepares and calls it.
"""
import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from stack import BUILT, GIB, NVML, ROOT, Fleet, Program, get, policy, wait_for

SIDECAR = HERE / "sidecar.prom"
RULES = [ROOT / "charts/hush/rules.yaml", ROOT / "charts/hush/controller-rules.yaml"]
# Where the servers and the controller of the test are, as Prometheus knows it.
PLACES = {"cluster": "east", "namespace": "apps", "node": "n1"}


def prometheus(folder: pathlib.Path, scrapes: list) -> tuple[Program, str]:
    # JSON is YAML.
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(file) for file in RULES],
              "scrape_configs": scrapes}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        address = "127.0.0.1:%d" % free.getsockname()[1]
    program = Program(["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                       f"--web.listen-address={address}"])
    url = f"http://{address}"
    wait_for("Prometheus is ready", lambda: "Ready" in get(f"{url}/-/ready"))
    return program, url


def query(url: str, expr: str) -> list:
    answer = json.loads(get(f"{url}/api/v1/query?" + urllib.parse.urlencode({"query": expr})))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


class SidecarMetrics(http.server.ThreadingHTTPServer):
    """Answers a scrape with the metrics of a sidecar, as the contract declares them: what panels and rules join by `app`."""

    def __init__(self, text: str):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def address(self) -> str:
        return "127.0.0.1:%d" % self.server_address[1]


class Stack(Fleet):
    """Two servers on one scripted GPU, the metrics of a sidecar, a controller, Prometheus."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, gib=(3, 2))
        spec = ("  residency: {mode: Idle, idleTimeout: 4s}\n"
                "  pressure: {hard: {availableBelow: 1Gi}, transitionPeriod: 2s}\n  holdAfterEviction: 0s\n")
        self.controller = self.start_controller(policies=policy("all", spec))
        self.prometheus = self.start_prometheus()

    def start_prometheus(self) -> str:
        self.sidecar = SidecarMetrics(SIDECAR.read_text())
        jobs = {"hush-server": [ops for _, ops in self.servers], "hush-sidecar": [self.sidecar.address()],
                "hush-controller": [self.controller]}
        scrapes = [{"job_name": job, "static_configs": [{"targets": targets, "labels": PLACES}]} for job, targets in jobs.items()]
        program, url = prometheus(self.folder, scrapes)
        self.add(program)
        return url

    def query(self, expr: str) -> list:
        return query(self.prometheus, expr)

    def live(self) -> None:
        """Speech, idleness, speech again, pressure, speech once more."""
        for server in (0, 1, 0):
            self.speak(server)
        unloaded = 'sum(hush_model_unloads_total{reason="IdleTimeout"}) >= 2'
        wait_for("both have left for idleness", lambda: self.query(unloaded))
        for server in (0, 1):
            self.speak(server)
        self.others_hold(5 * GIB // 2)
        pressure = 'sum(hush_model_unloads_total{reason="HardPressure"}) >= 1'
        wait_for("one has left under pressure", lambda: self.query(pressure))
        self.others_hold(0)
        self.speak(0)
        wait_for("that was scraped", lambda: self.query('sum(hush_model_loads_total{result="success"}) >= 5'))


def panels():
    for path in sorted((ROOT / "charts/hush/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel["title"], [target["expr"] for target in panel["targets"]]


def plain(expr: str, **chosen: str) -> str:
    """As Grafana sends it; what is not chosen is `All`."""
    expr = expr.replace("$__rate_interval", "2m")
    for variable in (*PLACES, "model"):
        expr = expr.replace(f'"${variable}"', f'"{chosen.get(variable, ".*")}"')
    return expr


class Files(unittest.TestCase):
    def test_dashboards_are_up_to_date(self):
        subprocess.run([sys.executable, ROOT / "scripts/dashboards", "--check"], check=True)

    def test_the_sidecars_metrics_are_those_of_the_contract(self):
        page = (ROOT / "docs/reference/metrics.md").read_text().split("## hush-sidecar\n")[1].split("\n## ")[0]
        declared = dict(re.findall(r"^\| `(hush_\w+)` \| \w+ \| (.*?) \|", page, re.M))
        self.assertGreater(len(declared), 6)
        told = {name: {label for label, _ in re.findall(r'(\w+)="([^"]*)"', labels)}
                for name, labels in re.findall(r"^(hush_app_\w+)\{(.*)\} ", SIDECAR.read_text(), re.M)}
        self.assertEqual({name: set(re.findall(r"`(\w+)`", labels)) for name, labels in declared.items()},
                         {**told, "hush_app_problem_info": {"app", "problem"}})

    def test_rules_fire_when_they_must(self):
        for arguments in (["check", "rules", *RULES], ["test", "rules", HERE / "alerts.yaml"]):
            done = subprocess.run(["promtool", *map(str, arguments)], text=True, capture_output=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_alert_has_a_test_and_a_runbook(self):
        rules, tests = "".join(file.read_text() for file in RULES), (HERE / "alerts.yaml").read_text()
        alerts = [line.split()[-1] for line in rules.splitlines() if "- alert:" in line]
        self.assertGreater(len(alerts), 8)
        runbooks = (ROOT / "docs/runbooks.md").read_text()
        for alert in alerts:
            self.assertIn(f"alertname: {alert}\n", tests)
            self.assertIn(f"## {alert}\n", runbooks)
            self.assertIn(f"docs/runbooks.md#{alert.lower()}\n", rules)


    def test_each_dashboard_lets_one_choose_where_to_look(self):
        for path in sorted((ROOT / "charts/hush/dashboards").glob("*.json")):
            variables = [v["name"] for v in json.loads(path.read_text())["templating"]["list"]]
            self.assertEqual(variables[:4], ["datasource", *PLACES], path.name)
        # What a controller counts over all of its cards is of no one namespace or node.
        of_all = {"hush_controller_gpus", "hush_controller_gpu_available_bytes", "hush_controller_gpu_target_bytes",
                  "hush_controller_gpu_sample_age_seconds"}
        for dashboard, title, queries in panels():
            for query in queries:
                for family, labels in re.findall(r"\b((?:node_namespace:)?hush_\w+(?::\w+)?)(\{[^}]*\})?", query):
                    for place in ["cluster"] if family in of_all else PLACES:
                        self.assertIn(f'{place}=~"${place}"', labels, (dashboard, title, family))


class OpsTls(unittest.TestCase):
    """The operations port with a certificate as docs/security.md makes it with openssl."""

    def test_prometheus_reads_it_by_the_name_of_its_namespace_alone(self):
        page = (ROOT / "docs/security.md").read_text()
        (script,) = re.findall(r"```sh\n(printf 'subjectAltName.*?)```", page, re.S)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            subprocess.run(["bash", "-euc", script], cwd=folder, check=True, capture_output=True)
            server = Program([BUILT / "hush-server", "serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0",
                              "--log-format", "json", "--models-dir", os.environ["HUSH_MODELS"], "--model", "hush-tiny",
                              "--precision", "int8", "--device", "cpu", "--ops-tls-cert", folder / "tls.crt",
                              "--ops-tls-key", folder / "tls.key"])
            self.addCleanup(server.stop)

            def scrape(job: str, namespace: str) -> dict:
                # As the operator writes the chart's ServiceMonitor of that namespace.
                return {"job_name": job, "scheme": "https", "static_configs": [{"targets": [server.said("ops")]}],
                        "tls_config": {"ca_file": str(folder / "ca.crt"), "server_name": f"hush-server.{namespace}.svc"}}

            program, url = prometheus(folder, [scrape("own", "hush"), scrape("another", "team-b")])
            self.addCleanup(program.stop)
            wait_for("it is read", lambda: query(url, 'up{job="own"} == 1'))
            self.assertTrue(query(url, 'hush_model_state{job="own"}'))
            wait_for("the other name was tried", lambda: query(url, 'up{job="another"}'))
            self.assertEqual(query(url, 'up{job="another"} == 1'), [])
            targets = json.loads(get(f"{url}/api/v1/targets"))["data"]["activeTargets"]
            (error,) = [target["lastError"] for target in targets if target["labels"]["job"] == "another"]
            self.assertIn("hush-server.team-b.svc", error)


class Panels(unittest.TestCase):
    def test_no_panel_is_empty(self):
        self.assertIsNotNone(NVML, f"libhush_nvml.so is not in {BUILT}: `make test` builds it")
        with tempfile.TemporaryDirectory() as folder:
            stack = Stack(pathlib.Path(folder))
            try:
                stack.live()
                # Recording rules are evaluated once a second.
                wait_for("the rules were evaluated", lambda: stack.query("node_namespace:hush_vram_given_back_byte_hours:1d"))
                empty, count = [], 0
                for dashboard, title, queries in panels():
                    for query in queries:
                        count += 1
                        if not stack.query(plain(query)) or not stack.query(plain(query, **PLACES)):
                            empty.append((dashboard, title, query))
                self.assertEqual(empty, [])
                self.nothing_of_other_places(stack)
                print(f"{count} queries of all panels have data")
                firing = stack.query('ALERTS{alertstate="firing"}')
                self.assertEqual(firing, [], "nothing is wrong, so nothing fires")
            finally:
                stack.stop()

    def nothing_of_other_places(self, stack: Stack) -> None:
        """What is chosen holds for every query: where nothing is, there is no data, or the 0 that stands for it."""
        for place in PLACES:
            for dashboard, title, queries in panels():
                for query in queries:
                    for found in stack.query(plain(query, **{place: "elsewhere"})):
                        of_all = place != "cluster" and "hush_controller_gpus{" in query
                        nothing = found["metric"] == {} and found["value"][1] == "0"
                        self.assertTrue(of_all or nothing, (place, dashboard, title, query, found))


if __name__ == "__main__":
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        print("skipped: Prometheus is not installed (Debian: apt-get install prometheus)")
        sys.exit(0)
    unittest.main(verbosity=2)
