"""Hush's figures, each beside the peer it is compared with, measured in the same run. `make bench` prepares and calls it.

usage: run.py [SECTION...] [--clips N] [--runs N] [--parts PART...]
sections: wer speed batch words overhead cold memory health hours controller fleet cuda real storm sidecar (all by default)
--clips, --runs: less of `real`: recordings of each language (40), runs of long recordings (5)
--parts: parts of `real`: short long at-once first-token (all by default)
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave

import real
import sidecar
import storm
from server import MODELS, ORT, ROOT, Server, hush, resident_mb

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = ROOT / "tests/fixtures"
CACHE = ROOT / ".hush/bench"
THREADS, TOKENS = "2", "100"


def row(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<46}{value:>16}  {note}", flush=True)


def spread(values: list[float], decimals: int = 0) -> str:
    return " / ".join(f"{value:.{decimals}f}" for value in (min(values), statistics.median(values), max(values)))


# --- word error rate ---------------------------------------------------------------------------------------------


def distance(a: list[str], b: list[str]) -> int:
    line = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        previous, line[0] = line[:], i
        for j, other in enumerate(b, 1):
            line[j] = min(previous[j] + 1, line[j - 1] + 1, previous[j - 1] + (word != other))
    return line[-1]


def words(text: str, language: str) -> list[str]:
    if language == "zh":
        return [c for c in text if c.isalnum()]
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").split()


def wer() -> None:
    print("word error rate on the held-out set, % (zh: characters); reference: openai-whisper, greedy, fp32")
    manifest = json.loads((FIXTURES / "wer/manifest.json").read_text())
    for precision in ("fp32", "int8"):
        total = {"ours": 0, "reference": 0, "length": 0}
        for language in ("en", "de", "fr", "es", "zh"):
            entries = [e for e in manifest if e["language"] == language]
            with tempfile.TemporaryDirectory() as out:
                files = [str(FIXTURES / e["file"]) for e in entries]
                hush("transcribe", "--model", "hush-tiny", "--precision", precision, "--language", language,
                     "--output", "txt", "--output-dir", out, *files)  # fmt: skip
                ours = [(pathlib.Path(out) / (pathlib.Path(f).stem + ".txt")).read_text() for f in files]
            counts = {"ours": 0, "reference": 0, "length": 0}
            for entry, text in zip(entries, ours):
                said = words(entry["text"], language)
                counts["length"] += len(said)
                counts["ours"] += distance(said, words(text, language))
                counts["reference"] += distance(said, words(entry["reference_greedy"], language))
            for key, value in counts.items():
                total[key] += value
            rate = {k: 100 * counts[k] / counts["length"] for k in ("ours", "reference")}
            row(f"{precision} {language}", f"{rate['ours']:.2f}", f"reference {rate['reference']:.2f}")
        rate = {k: 100 * total[k] / total["length"] for k in ("ours", "reference")}
        row(f"{precision} all", f"{rate['ours']:.2f}", f"reference {rate['reference']:.2f}")


# --- speed of the engine -----------------------------------------------------------------------------------------


def random_checkpoint(shape: str) -> pathlib.Path:
    checkpoint = CACHE / f"{shape}-random"
    if not (checkpoint / "model.safetensors").exists():
        subprocess.run([sys.executable, HERE / "random_checkpoint.py", checkpoint, shape], check=True)
    return checkpoint


def random_model(shape: str, precision: str) -> pathlib.Path:
    name = f"{shape}-random"
    hush("install", "--force", "--name", name, "--precision", precision, str(random_checkpoint(shape)))
    return MODELS / name / precision


def base_checkpoint() -> pathlib.Path:
    return random_checkpoint("base")


def base_model(precision: str) -> pathlib.Path:
    return random_model("base", precision)


def output(command: list[object]) -> list[dict]:
    """One JSON object a line."""
    text = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    return [json.loads(line) for line in text.splitlines()]


def lines(command: list[object]) -> list[dict]:
    """One JSON object a run; the first run warms up and does not count."""
    return output(command)[1:]


def speed(rounds: int = 3, runs: int = 4) -> None:
    print(f"base shape, random weights, {TOKENS} forced tokens, {THREADS} threads, ms: least / median / most of {rounds * runs} runs")
    checkpoint, bench = base_checkpoint(), ROOT / "target/dist/hush-bench"
    prototype = CACHE / "prototype-int8"
    if not (prototype / "align.onnx").exists():
        subprocess.run([sys.executable, HERE / "prototype_graphs.py", checkpoint, prototype, "int8"],
                       env=os.environ | {"BLOCK": "128"}, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    candidates = {
        "Hush int8": [bench, "engine", base_model("int8"), ORT, THREADS, runs, TOKENS],
        "prototype int8, Python and IoBinding": [sys.executable, HERE / "prototype_speed.py", prototype, checkpoint, THREADS, runs, TOKENS],
        "CTranslate2 int8": [sys.executable, HERE / "ctranslate2_speed.py", checkpoint, "int8", THREADS, runs, TOKENS],
        "Hush fp32": [bench, "engine", base_model("fp32"), ORT, THREADS, runs, TOKENS],
        "CTranslate2 fp32": [sys.executable, HERE / "ctranslate2_speed.py", checkpoint, "float32", THREADS, runs, TOKENS],
    }
    seen: dict[str, list[dict]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, command in candidates.items():
            seen[name] += lines([str(part) for part in command])
    median = {}
    for name, figures in seen.items():
        if any(f["tokens"] != int(TOKENS) for f in figures):
            raise SystemExit(f"{name} did not decode {TOKENS} tokens: {figures}")
        median[name] = statistics.median(f["total_ms"] for f in figures)
        row(name, spread([f["total_ms"] for f in figures]), f"encode {spread([f['encode_ms'] for f in figures])}")
    for ours, peer, goal in (
        ("Hush int8", "CTranslate2 int8", 1.5),
        ("Hush int8", "prototype int8, Python and IoBinding", 1.0),
        ("Hush fp32", "CTranslate2 fp32", 1.0),
    ):
        row(f"{ours} against {peer}", f"{median[peer] / median[ours]:.2f} x", f"goal {goal} x")


def batch(rounds: int = 3, runs: int = 2, jobs: int = 8, beams: int = 5) -> None:
    print(f"{jobs} requests of 30 s, tiny shape int8, random weights, {TOKENS} tokens each, {THREADS} threads, ms: least / median / most of {rounds * runs} runs")
    checkpoint, bench = random_checkpoint("tiny"), ROOT / "target/dist/hush-bench"
    model, rest = random_model("tiny", "int8"), [ORT, THREADS, runs, TOKENS]
    candidates = {
        "hush": [bench, f"batch={jobs}", model, *rest],
        "peer": [sys.executable, HERE / "faster_whisper_batch.py", checkpoint, "int8", THREADS, runs, TOKENS, jobs],
        "beams": [bench, f"beams={beams}", model, *rest],
        "beams, base": [bench, f"beams={beams}", base_model("int8"), *rest],
    }
    seen: dict[str, list[dict]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, command in candidates.items():
            seen[name] += lines([str(part) for part in command])
    def median(name: str, key: str) -> float:
        return statistics.median(f[key] for f in seen[name])

    for name, key, label in (
        ("hush", "alone_ms", "Hush, one after the other"),
        ("hush", "together_ms", "Hush, at once"),
        ("peer", "total_ms", "faster-whisper, batched, spectrograms apart"),
    ):
        row(label, spread([f[key] for f in seen[name]]))
    together = median("hush", "together_ms")
    row("Hush at once against one after the other", f"{median('hush', 'alone_ms') / together:.2f} x", "goal 1.5 x")
    row("Hush against faster-whisper, batched", f"{median('peer', 'total_ms') / together:.2f} x", "goal 1.5 x")
    for name in ("beams", "beams, base"):
        greedy, wide = (spread([f[key] for f in seen[name]]) for key in ("greedy_ms", "beams_ms"))
        ratio = median(name, "beams_ms") / median(name, "greedy_ms")
        row(f"{beams} {name}", wide, f"greedy {greedy}, {ratio:.2f} x")
    # It counts the end of a row among its tokens: one less each than it was asked for is less work for it, not more.
    if any(f["tokens"] < (int(TOKENS) - 1) * jobs for f in seen["peer"]):
        raise SystemExit(f"faster-whisper did not decode {TOKENS} tokens for each: {seen['peer']}")


def one_window(path: pathlib.Path, seconds: int) -> None:
    """Speech of that length."""
    with wave.open(str(FIXTURES / "audio/es-1.wav")) as source:
        speech = source.readframes(source.getnframes())
    length = 2 * 16000 * seconds
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes((speech * (length // len(speech) + 1))[:length])


def overhead(requests: int = 100) -> None:
    print(f"what a request takes beyond the engine's work, 10 s of audio, model loaded, {requests} requests, ms: least / median / most")
    with tempfile.TemporaryDirectory() as folder, Server("--model", "hush-tiny", "--precision", "int8", "--threads", THREADS) as server:
        audio = pathlib.Path(folder) / "ten.wav"
        one_window(audio, 10)
        client = []
        for _ in range(requests + 1):
            start = time.perf_counter()
            server.asr(audio, "language=es&output=json")
            client.append(time.perf_counter() - start)
            server.wait_logged("answered")
        answered = [e for e in server.log if e.get("message") == "answered"][1:]
        engine = [sum(float(e[f"{phase}_seconds"]) for phase in ("mel", "encode", "prefill", "decode")) for e in answered]
        row("the engine's work", spread([1e3 * e for e in engine]))
        row("beyond it, in the server", spread([1e3 * (float(a["seconds"]) - e) for a, e in zip(answered, engine)], 1), "goal p50 2")
        row("beyond it, as a client sees it", spread([1e3 * (c - e) for c, e in zip(client[1:], engine)], 1))
        for phase in ("upload", "audio_decode", "queue"):
            row(f"of it: {phase}", spread([1e3 * float(e.get(f"{phase}_seconds", 0)) for e in answered], 1))


def word_times(rounds: int = 3) -> None:
    print(f"timestamps of words against greedy without, a long recording, {THREADS} threads, ms: least / median / most of {rounds}")
    audio = FIXTURES / "audio/long-en.flac"
    with Server("--model", "hush-tiny", "--precision", "int8", "--threads", THREADS) as server:
        seen: dict[str, list[float]] = {}
        for _ in range(rounds + 1):
            for name, query in (("greedy", "language=en&output=json"), ("with words", "language=en&output=json&word_timestamps=true")):
                start = time.perf_counter()
                server.asr(audio, query)
                seen.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        greedy, words = (figures[1:] for figures in seen.values())
        row("greedy", spread(greedy))
        row("with words", spread(words), f"{statistics.median(words) / statistics.median(greedy):.2f} x")


# --- life of a model ---------------------------------------------------------------------------------------------


def cold(rounds: int = 7) -> None:
    print("unloaded -> first token, base shape int8, 2 threads, page cache warm, ms: least / median / most")
    base_model("int8")
    audio = FIXTURES / "audio/en-1.wav"
    for label, extra in (("", []), (" with --spare-runner", ["--spare-runner"])):
        with Server("--model", "base-random", "--precision", "int8", "--threads", THREADS, "--residency", "on-demand", *extra) as server:
            for _ in range(rounds + 1):
                # Random weights never come to an end of text: what follows the first token is not of interest.
                server.asr_until(audio, "language=en", "first token")
                server.wait_logged("unloaded")
                time.sleep(1 if extra else 0.1)
            for event in ("loaded", "settled", "first token", "unloaded"):
                entries = [e for e in server.log if e.get("message") == event][1:]
                for phase in [k for k in entries[0] if k.endswith("_seconds")]:
                    row(f"{event}: {phase.removesuffix('_seconds')}{label}", spread([1e3 * float(e[phase]) for e in entries]))


def memory() -> None:
    print("resident memory of the server process, MB (its runner apart)")
    with Server("--model", "hush-tiny", "--precision", "int8", "--idle-timeout", "1s") as server:
        row("before the first request", f"{resident_mb(server.process.pid):.1f}")
        # The recordings that the model is sure of: what is measured is the uploads, not the transcription.
        files = [FIXTURES / f"audio/{name}.wav" for name in ("en-1", "de-1", "fr-1", "es-1", "zh-1")]
        with concurrent.futures.ThreadPoolExecutor(20) as clients:
            list(clients.map(server.asr, files * 40))
        server.asr(FIXTURES / "audio/long-de.flac")
        row("201 requests later, model loaded", f"{resident_mb(server.process.pid):.1f}")
        server.wait_unloaded()
        time.sleep(1)
        row("model unloaded", f"{resident_mb(server.process.pid):.1f}", "goal 30")
        row("highest ever", f"{resident_mb(server.process.pid, 'VmHWM'):.1f}")


def slowest_health(server: Server, work) -> float:
    """Milliseconds of the slowest /healthz while `work` runs."""
    done, worst = threading.Event(), 0.0
    thread = threading.Thread(target=lambda: (work(), done.set()))
    thread.start()
    while not done.is_set():
        start = time.perf_counter()
        server.get("/healthz")
        worst = max(worst, time.perf_counter() - start)
        time.sleep(0.005)
    thread.join()
    return worst * 1e3


def health() -> None:
    print("slowest answer of /healthz, ms")
    base_model("int8")
    with Server("--model", "base-random", "--precision", "int8", "--residency", "on-demand") as server:
        work = lambda: server.asr(FIXTURES / "audio/en-1.wav", "language=en")  # noqa: E731
        row("while the base shape loads and works", f"{slowest_health(server, work):.1f}", "goal 100")
    with Server("--model", "hush-tiny", "--precision", "int8") as server:
        work = lambda: server.asr(FIXTURES / "audio/long-en.flac", "language=en")  # noqa: E731
        row("while a long file is transcribed", f"{slowest_health(server, work):.1f}", "goal 100")


def hours(length: int = 3) -> None:
    print(f"{length} hours of audio in one request")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "hours.wav"
        with wave.open(str(FIXTURES / "audio/es-1.wav")) as source:
            speech = source.readframes(source.getnframes())
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, 16000, 0, "NONE", ""))
            piece = speech + bytes(2 * 16000 * 20 - len(speech) % (2 * 16000 * 20))
            for _ in range(length * 180):
                out.writeframesraw(piece[: 2 * 16000 * 20])
        row("the file", f"{path.stat().st_size / 2**20:.0f} MB")
        with Server("--model", "hush-tiny", "--precision", "int8") as server:
            server.asr(FIXTURES / "audio/es-1.wav", "language=es")
            (runner,) = server.runners()
            start = time.perf_counter()
            text = server.asr(path, "language=es&output=txt")
            row("seconds", f"{time.perf_counter() - start:.0f}", f"{len(text.splitlines())} segments")
            row("server, highest resident MB", f"{resident_mb(server.process.pid, 'VmHWM'):.1f}")
            row("runner, highest resident MB", f"{resident_mb(runner, 'VmHWM'):.1f}")


def controller() -> None:
    bench = ROOT / "target/dist/hush-controller-bench"
    print("one step of the controller's core; goal: 1000 models under 5 ms, and near linear")
    print(subprocess.run([bench, "core"], check=True, text=True, stdout=subprocess.PIPE).stdout, end="")
    print("adaptive residency against fixed timeouts; goal: under 2.00, and the least over all")
    print(subprocess.run([bench, "adaptive"], check=True, text=True, stdout=subprocess.PIPE).stdout, end="")


def fleet() -> None:
    print("a controller over a fleet: hard pressure -> unload command, ms; and what watching costs at rest")
    bench = ROOT / "target/dist/hush-controller-latency"
    goals = {(40, 10, 1000): "goal p99 1200", (1000, 250, 2000): "goals p99 2500, 0.33 of a core, 100 MB"}
    for servers, gpus, interval, rounds in ((40, 10, 1000, 20), (100, 25, 2000, 4), (1000, 250, 2000, 3), (5000, 1250, 2000, 1)):
        command = [str(part) for part in (bench, servers, gpus, interval, rounds)]
        line = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.split()
        f = dict(zip(line[::2], line[1::2]))
        figures = f"{f['p50_ms']} / {f['p99_ms']} / {f['most_ms']}"
        row(f"{servers} servers, {gpus} GPUs, every {interval} ms", figures, f"{f['cpu_share']} of a core, {f['resident_mb']} MB  {goals.get((servers, gpus, interval), '')}")
    if (ROOT / ".hush/control-plane/kube-apiserver").exists() or os.environ.get("KUBEBUILDER_ASSETS"):
        for servers, gpus, rounds in ((100, 25, 4), (1000, 250, 3), (5000, 1250, 1)):
            command = [str(part) for part in (bench, "cluster", servers, gpus, 2000, rounds)]
            line = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.split()
            f = dict(zip(line[::2], line[1::2]))
            figures = f"{f['p50_ms']} / {f['p99_ms']} / {f['most_ms']}"
            row(f"the same {servers} as pods of an API server", figures, f"{f['cpu_share']} of a core, {f['resident_mb']} MB, {f['requests_per_minute']} requests a minute at rest (goal 30)")
        line = subprocess.run([str(bench), "takeover", "5"], check=True, text=True, stdout=subprocess.PIPE).stdout.split()
        f = dict(zip(line[::2], line[1::2]))
        row("leader killed -> another acts, lease 15 s", f"{f['p50_ms']} / {f['most_ms']}", "goal 17000")
    line = subprocess.run([str(bench), "idle", "100", "1000"], check=True, text=True, stdout=subprocess.PIPE).stdout.split()
    f = dict(zip(line[::2], line[1::2]))
    row("idle timeout -> unload command, every 1000 ms", f"{f['p50_ms']} / {f['p99_ms']} / {f['most_ms']}", "goal 1000, never before")


def cuda() -> None:
    print("what a decode step asks of a CUDA device, counted on the double of the CUDA runtime, which takes no time itself")
    double = ROOT / ".hush/cuda-double/libonnxruntime.so"
    if not double.exists():
        print("  skipped: the double is not built: run `make cuda-double`")
        return
    for shape in ("tiny", "turbo", "large-v3"):
        model = random_model(shape, "fp16")
        for case in output([ROOT / "target/dist/hush-cuda-counts", model]):
            name = f"{shape}, {case['windows']} windows" + (f", {case['beams']} beams" if case["beams"] > 1 else "")
            print(f"  {name}")
            row("  launches, of operations", f"{case['graph_launches_per_step']:g}", f"{case['operations_in_graph']} in the graph, {case['kernels_outside_graph_per_step']:g} outside")
            row("  copies in, on the device, out", f"{case['copies_to_device_per_step']:g} / {case['copies_on_device_per_step']:g} / {case['copies_to_host_per_step']:g}", f"{case['bytes_to_host_per_row']:.0f} bytes back per row (goal 1000)")
            row("  synchronisations, allocations", f"{case['synchronisations_per_step']:g} / {case['allocations']}", "goal 1 / 0 a step")
            row("  host, microseconds", f"{case['host_microseconds_per_step']:.0f}", "goal 100 for one window, 300 for 16")
            window, prompt = case["window"], case["prompt"]
            row("  one window more: operations", f"{window['operations']} + {prompt['operations']}", f"encoder + prompt; {window['synchronisations']} + {prompt['synchronisations']} synchronisations")
        for speed in ("25", "50"):
            for load in output([ROOT / "target/dist/hush-cuda-counts", model, f"load={speed}"]):
                print(f"  {shape}, a load at {speed} GB/s, ms since the process was started")
                row("  context", f"{load['context_ms']:.0f}")
                row("  weights, first and last piece", f"{load['first_weights_ms']:.0f} / {load['last_weights_ms']:.0f}", f"{load['weights_copied_bytes'] / load['weights_file_bytes']:.2f} times the file")
                row("  first kernel, first token", f"{load['first_kernel_ms']:.0f} / {load['first_token_ms']:.0f}")


SECTIONS = {"wer": wer, "speed": speed, "batch": batch, "words": word_times, "overhead": overhead, "cold": cold, "memory": memory, "health": health, "hours": hours, "controller": controller, "fleet": fleet, "cuda": cuda, "storm": lambda: storm.run(row), "sidecar": lambda: sidecar.run(row, spread)}


def main() -> None:
    arguments = argparse.ArgumentParser(usage=__doc__)
    arguments.add_argument("sections", nargs="*")
    arguments.add_argument("--clips", type=int, default=40)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--parts", nargs="+", choices=real.PARTS, default=real.PARTS)
    chosen = arguments.parse_args()
    sections = SECTIONS | {"real": lambda: real.run(row, chosen.clips, chosen.runs, chosen.parts)}
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in chosen.sections or sections:
        if name not in sections:
            raise SystemExit(f"run.py: no section {name}; there are {', '.join(sections)}")
        sections[name]()


if __name__ == "__main__":
    main()
