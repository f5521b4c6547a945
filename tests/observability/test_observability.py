"""Dashboards and alerts against a real Prometheus that scrapes real servers and a real controller: rules are unit-tested,
and no panel is empty. The GPU is the double's. `make test-observability` prepares and calls it.
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
BUILT = pathlib.Path(os.environ.get("HUSH_BUILT", ROOT / "target/debug"))
RULES = ROOT / "charts/hush/rules.yaml"
NVML = next((path for path in (BUILT / "libhush_nvml.so", BUILT / "deps/libhush_nvml.so") if path.exists()), None)
UUID = "GPU-11111111-2222-3333-4444-555555555555"
GIB = 1 << 30
PATIENCE = 90


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def wait_for(what: str, condition, patience: float = PATIENCE):
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := condition():
                return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience} s in vain: {what}")
        time.sleep(0.1)


class Program:
    """A process whose JSON log says where it listens."""

    def __init__(self, command: list, env: dict | None = None):
        self.log_file = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen([str(part) for part in command], env={**os.environ, **(env or {})},
                                        stdout=subprocess.DEVNULL, stderr=self.log_file)

    def log(self) -> list[str]:
        return pathlib.Path(self.log_file.name).read_text(errors="replace").splitlines()

    def said(self, field: str):
        def look():
            if self.process.poll() is not None:
                raise AssertionError("\n".join(self.log()))
            for line in self.log():
                with contextlib.suppress(ValueError):
                    if field in (entry := json.loads(line)):
                        return entry[field]
            return None
        return wait_for(f"a line with {field}", look)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stack:
    """Two servers on one scripted GPU, a controller, Prometheus."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.programs = folder, []
        self.script = {"devices": [{"uuid": UUID, "total_bytes": 8 * GIB, "guests": []}]}
        self.servers = [self.server(number, gib) for number, gib in ((1, 3), (2, 2))]
        policies = folder / "policies.yaml"
        policies.write_text(
            "apiVersion: gpu.hush.dev/v1alpha1\nkind: GpuModelPolicy\nmetadata: {name: all, namespace: apps}\nspec:\n"
            '  selector: {matchLabels: {gpu.hush.dev/server: "true"}}\n  residency: {mode: Idle, idleTimeout: 4s}\n'
            "  pressure: {hard: {availableBelow: 1Gi}, transitionPeriod: 2s}\n  holdAfterEviction: 0s\n"
        )
        targets = [part for n, (_, ops) in enumerate(self.servers) for part in ("--target", f"apps/s{n}=http://{ops}")]
        self.controller = self.add(Program([BUILT / "hush-controller", "run", "--listen", "127.0.0.1:0", "--log-format",
                                            "json", "--policy", policies, *targets])).said("ops")
        self.prometheus = self.start_prometheus()

    def add(self, program: Program) -> Program:
        self.programs.append(program)
        return program

    def write_gpu(self) -> None:
        whole = self.folder / "gpus.json.new"
        whole.write_text(json.dumps(self.script))
        whole.rename(self.folder / "gpus.json")

    def server(self, number: int, gib: int):
        self.write_gpu()
        program = self.add(Program(
            [BUILT / "hush-server", "serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-format",
             "json", "--models-dir", os.environ["HUSH_MODELS"], "--model", "hush-tiny", "--precision", "int8",
             "--nvml-lib", NVML, "--account-gpu", UUID],
            {"HUSH_NVML_SCRIPT": str(self.folder / "gpus.json")},
        ))
        api, ops = program.said("api"), program.said("ops")
        guest = {"process": "hush-runner", "parent_pid": program.process.pid, "mapped": "weights.bin", "bytes": gib * GIB}
        self.script["devices"][0]["guests"].append(guest)
        self.write_gpu()
        return api, ops

    def start_prometheus(self) -> str:
        groups = [
            {"job": "hush-server", "targets": [ops for _, ops in self.servers], "labels": {"namespace": "apps"}},
            {"job": "hush-controller", "targets": [self.controller], "labels": {}},
        ]
        scrapes = [{"job_name": g["job"], "static_configs": [{"targets": g["targets"], "labels": g["labels"]}]} for g in groups]
        # JSON is YAML.
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(RULES)],
                  "scrape_configs": scrapes}
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        with contextlib.closing(__import__("socket").create_server(("127.0.0.1", 0))) as free:
            address = "127.0.0.1:%d" % free.getsockname()[1]
        self.add(Program(["prometheus", f"--config.file={self.folder}/prometheus.yml",
                          f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address={address}"]))
        url = f"http://{address}"
        wait_for("Prometheus is ready", lambda: "Ready" in get(f"{url}/-/ready"))
        return url

    def speak(self, server: int) -> None:
        audio = (ROOT / "tests/fixtures/audio/en-1.wav").read_bytes()
        head = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
        request = urllib.request.Request(f"http://{self.servers[server][0]}/asr?language=en", head + audio + b"\r\n--b--\r\n",
                                         {"Content-Type": "multipart/form-data; boundary=b"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.status == 200

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
        self.script["devices"][0]["used_bytes"] = 5 * GIB // 2
        self.write_gpu()
        pressure = 'sum(hush_model_unloads_total{reason="HardPressure"}) >= 1'
        wait_for("one has left under pressure", lambda: self.query(pressure))
        self.script["devices"][0]["used_bytes"] = 0
        self.write_gpu()
        self.speak(0)
        wait_for("that was scraped", lambda: self.query('sum(hush_model_loads_total{result="success"}) >= 5'))

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.stop()


def panels():
    for path in sorted((ROOT / "charts/hush/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel["title"], [target["expr"] for target in panel["targets"]]


def plain(expr: str) -> str:
    """As Grafana sends it with everything selected."""
    return expr.replace("$__rate_interval", "2m").replace('"$namespace"', '".*"').replace('"$model"', '".*"')


class Files(unittest.TestCase):
    def test_dashboards_are_up_to_date(self):
        subprocess.run([sys.executable, ROOT / "scripts/dashboards", "--check"], check=True)

    def test_rules_fire_when_they_must(self):
        for arguments in (["check", "rules", RULES], ["test", "rules", HERE / "alerts.yaml"]):
            done = subprocess.run(["promtool", *map(str, arguments)], text=True, capture_output=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_each_alert_has_a_test_and_a_runbook(self):
        rules, tests = RULES.read_text(), (HERE / "alerts.yaml").read_text()
        alerts = [line.split()[-1] for line in rules.splitlines() if "- alert:" in line]
        self.assertGreater(len(alerts), 8)
        runbooks = (ROOT / "docs/runbooks.md").read_text()
        for alert in alerts:
            self.assertIn(f"alertname: {alert}\n", tests)
            self.assertIn(f"## {alert}\n", runbooks)
            self.assertIn(f"docs/runbooks.md#{alert.lower()}\n", rules)


class Panels(unittest.TestCase):
    def test_no_panel_is_empty(self):
        self.assertIsNotNone(NVML, f"libhush_nvml.so is not in {BUILT}: `make test` builds it")
        with tempfile.TemporaryDirectory() as folder:
            stack = Stack(pathlib.Path(folder))
            try:
                stack.live()
                # Recording rules are evaluated once a second.
                wait_for("the rules were evaluated", lambda: stack.query("namespace:hush_vram_given_back_byte_hours:1d"))
                empty, count = [], 0
                for dashboard, title, queries in panels():
                    for query in queries:
                        count += 1
                        if not stack.query(plain(query)):
                            empty.append((dashboard, title, query))
                self.assertEqual(empty, [])
                print(f"{count} queries of all panels have data")
                firing = stack.query('ALERTS{alertstate="firing"}')
                self.assertEqual(firing, [], "nothing is wrong, so nothing fires")
            finally:
                stack.stop()


if __name__ == "__main__":
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        print("skipped: Prometheus is not installed (Debian: apt-get install prometheus)")
        sys.exit(0)
    unittest.main(verbosity=2)
