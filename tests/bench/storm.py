"""Thousands of requests while the model is told to leave again and again: is one lost, is one answer wrong, does memory grow?"""
import concurrent.futures
import json
import threading
import time
import urllib.error
import urllib.request

from server import ROOT, Server, resident_mb

AUDIO = ROOT / "tests/fixtures/audio"
CLIENTS = 8
PAUSE_SECONDS = 0.25
"""Between two orders to leave: several times the time of a load, so that work gets done in between."""


def unload(server: Server, stop: threading.Event, outcomes: dict[str, int]) -> None:
    body = json.dumps({"reason": "Manual", "drain_seconds": 5}).encode()
    while not stop.wait(PAUSE_SECONDS):
        request = urllib.request.Request(f"{server.ops}/admin/v1/models/hush-tiny/unload", body,
                                         {"Content-Type": "application/json"})  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60):
                outcome = "unloaded"
        except urllib.error.HTTPError as error:
            outcome = json.loads(error.read()).get("code", str(error.code))
        outcomes[outcome] = outcomes.get(outcome, 0) + 1


def run(row, requests: int = 10_000) -> None:
    print(f"{requests} requests of {CLIENTS} clients under a storm of unloads")
    names = ("en-1", "de-1", "fr-1", "es-1")
    outcomes: dict[str, int] = {}
    lost: list[str] = []
    wrong = 0
    with Server("--model", "hush-tiny", "--precision", "int8", "--threads", "1") as server:
        expected = {name: server.asr(AUDIO / f"{name}.wav", f"language={name[:2]}") for name in names}

        def ask(index: int) -> bool:
            name = names[index % len(names)]
            try:
                return server.asr(AUDIO / f"{name}.wav", f"language={name[:2]}") == expected[name]
            except OSError as error:
                lost.append(repr(error))
                return True

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
            # Once around, so that what grows only once has grown.
            list(clients.map(ask, range(200)))
            before = resident_mb(server.process.pid)
            stop = threading.Event()
            storm = threading.Thread(target=unload, args=(server, stop, outcomes))
            start = time.perf_counter()
            storm.start()
            wrong = sum(not right for right in clients.map(ask, range(requests)))
            took = time.perf_counter() - start
            stop.set()
            storm.join()
        after = resident_mb(server.process.pid)
        loads = server.metric("hush_model_loads_total")
    row("seconds", f"{took:.0f}", f"{requests / took:.0f} requests/s, {loads:.0f} loads")
    row("orders to leave", f"{sum(outcomes.values())}", ", ".join(f"{k} {v}" for k, v in sorted(outcomes.items())))
    row("lost", f"{len(lost)}", f"goal 0 {lost[:2] or ''}")
    row("wrong answers", f"{wrong}", "goal 0")
    row("server, resident MB before / after", f"{before:.1f} / {after:.1f}", "goal: flat")
