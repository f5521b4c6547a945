"""Dashboards and alerts against a real Prometheus that scrapes real servers and a real controller: rules are unit-tested,
and no panel is empty. The GPU is the double's. `make test-observability` prepares and calls it.
"""
import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from stack import BUILT, GIB, NVML, ROOT, Fleet, Program, get, policy, wait_for

RULES = [ROOT / "charts/hush/rules.yaml", ROOT / "charts/hush/controller-rules.yaml"]
# Where the servers and the controller of the test are, as Prometheus knows it.
PLACES = {"cluster": "east", "namespace": "apps", "node": "n1"}


class Stack(Fleet):
    """Two servers on one scripted GPU, a controller, Prometheus."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder, gib=(3, 2))
        spec = ("  residency: {mode: Idle, idleTimeout: 4s}\n"
                "  pressure: {hard: {availableBelow: 1Gi}, transitionPeriod: 2s}\n  holdAfterEviction: 0s\n")
        self.controller = self.start_controller(policies=policy("all", spec))
        self.prometheus = self.start_prometheus()

    def start_prometheus(self) -> str:
        groups = [
            {"job": "hush-server", "targets": [ops for _, ops in self.servers], "labels": PLACES},
            {"job": "hush-controller", "targets": [self.controller], "labels": PLACES},
        ]
        scrapes = [{"job_name": g["job"], "static_configs": [{"targets": g["targets"], "labels": g["labels"]}]} for g in groups]
        # JSON is YAML.
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(file) for file in RULES],
                  "scrape_configs": scrapes}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        with contextlib.closing(__import__("socket").create_server(("127.0.0.1", 0))) as free:
            address = "127.0.0.1:%d" % free.getsockname()[1]
        self.add(Program(["prometheus", f"--config.file={self.folder}/prometheus.yml",
                          f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address={address}"]))
        url = f"http://{address}"
        wait_for("Prometheus is ready", lambda: "Ready" in get(f"{url}/-/ready"))
        return url

    def query(self, expr: str) -> list:
        answer = json.loads(get(f"{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expr})))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

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
