"""Real Whisper weights (base) on real voices, beside faster-whisper in the same run: `make bench ARGS=real`.

The programs take turns at each recording, so that an hour in which the machine is slow slows all of them.
"""
import concurrent.futures
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable

from server import BINARY, ROOT, Server, resident_mb

sys.path.insert(0, str(ROOT / "tests/real"))

from voices import LANGUAGES, clips, errors, samples, seconds, silence, words, write

HERE = pathlib.Path(__file__).resolve().parent
REAL = ROOT / ".hush/real"
# Installed with the build that is measured, so that its graphs are measured.
MODELS = ROOT / ".hush/bench-real"
THREADS = "2"
AT_ONCE = 8
GOALS = {"given": 4.0, "unknown": 3.8, "window": 2.4, "vad": 2.5, "at once": 4.0}

Row = Callable[..., None]


class Peer:
    """faster-whisper in a process of its own."""

    def __init__(self, compute_type: str):
        command = [sys.executable, HERE / "faster_whisper_real.py", REAL / "weights/base", compute_type, THREADS]
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not json.loads(self.process.stdout.readline()).get("ready"):
            raise SystemExit("faster-whisper did not start")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)

    def ask(self, **request: object) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def hush(precision: str, *extra: str) -> Server:
    options = ["--model", "base", "--models-dir", str(MODELS / precision), "--precision", precision, "--threads", THREADS]
    vad = ROOT / ".hush/lib/silero_vad.onnx"
    return Server(*options, "--max-batch", str(AT_ONCE), "--fallback-time", "0", *(["--vad-model", str(vad)] if vad.exists() else []), *extra)


def ask(server: Server, path: pathlib.Path, **query: str) -> tuple[dict, float]:
    """The JSON of `/asr`, and the seconds that a client waits for it."""
    begun = time.perf_counter()
    answer = json.loads(server.asr(path, "&".join(f"{name}={value}" for name, value in ({"output": "json"} | query).items())))
    return answer, time.perf_counter() - begun


class Tally:
    """Wrong and spoken words for each language, and the time that they took."""

    def __init__(self) -> None:
        self.wrong: dict[str, int] = {}
        self.spoken: dict[str, int] = {}
        self.found = 0
        self.seconds = 0.0

    def add(self, language: str, reference: str, heard: str, taken: float, found: str | None = None) -> None:
        expected = words(reference)
        self.wrong[language] = self.wrong.get(language, 0) + errors(expected, words(heard))
        self.spoken[language] = self.spoken.get(language, 0) + len(expected)
        self.seconds += taken
        self.found += found == language

    def rate(self, languages: Iterable[str] | None = None) -> float:
        chosen = list(languages or self.spoken)
        return 100 * sum(self.wrong[language] for language in chosen) / sum(self.spoken[language] for language in chosen)

    def rates(self) -> str:
        return ", ".join(f"{language} {self.rate([language]):.2f}" for language in self.spoken)


def install() -> None:
    for precision in ("int8", "fp32"):
        command = [BINARY, "install", "--models-dir", MODELS / precision, "--precision", precision, "--name", "base", "--force",
                   f"{REAL / 'weights/base'}/"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contexts(server: Server) -> str:
    counts = {name: int(server.metric(f'hush_encoder_windows_total{{context="{name}"')) for name in ("short", "repeated", "full")}
    tried = counts["short"] + counts["repeated"]
    share = 100 * counts["repeated"] / tried if tried else 0
    return f"windows: {counts['short']} short, {counts['repeated']} repeated in full ({share:.1f} %), {counts['full']} in full at once"


def compare(row: Row, what: str, ours: float, peer: float, goal: str) -> None:
    row(f"{what}: against faster-whisper int8", f"{peer / ours:.2f} x", f"{ours:.1f} s and {peer:.1f} s; goal {GOALS[goal]} x")


def short_clips(row: Row, count: int) -> None:
    chosen = [(language, *clip) for language in LANGUAGES for clip in clips(REAL / "voices", language, count)]
    length = sum(seconds(samples(path)) for _, path, _ in chosen)
    print(f"  {len(chosen)} recordings, {length:.0f} s; word error rate in %, seconds for all")
    names = ("Hush int8", "Hush int8, full context", "Hush fp32, full context", "faster-whisper int8")
    given, unknown = ({name: Tally() for name in names} for _ in range(2))
    with hush("int8") as short, hush("int8", "--encoder-context", "full") as full, hush("fp32", "--encoder-context", "full") as exact, Peer("int8") as peer:
        servers = dict(zip(names, (short, full, exact)))
        first = chosen[0][1]
        for server in servers.values():
            ask(server, first, language="en")
        peer.ask(path=str(first), language="en")

        for number, (language, path, text) in enumerate(chosen):
            turn = list(names) if number % 2 else list(reversed(names))
            for name in turn:
                if server := servers.get(name):
                    answer, taken = ask(server, path, language=language)
                else:
                    answer = peer.ask(path=str(path), language=language)
                    taken = answer["seconds"]
                given[name].add(language, text, answer["text"], taken)
            for name in ("Hush int8", "faster-whisper int8") if number % 2 else ("faster-whisper int8", "Hush int8"):
                if server := servers.get(name):
                    answer, taken = ask(server, path)
                else:
                    answer = peer.ask(path=str(path), language=None)
                    taken = answer["seconds"]
                unknown[name].add(language, text, answer["text"], taken, answer["language"])
            if (number + 1) % 20 == 0:
                print(f"  {number + 1} of {len(chosen)} recordings", file=sys.stderr, flush=True)

        for label, tallies, goal in (("language given", given, "given"), ("language unknown", unknown, "unknown")):
            for name, tally in tallies.items():
                if tally.spoken:
                    found = f"; {tally.found} of {len(chosen)} languages" if goal == "unknown" else ""
                    row(f"{label}: {name}", f"{tally.rate():.2f} %", f"{tally.seconds:.1f} s; {tally.rates()}{found}")
            compare(row, label, tallies["Hush int8"].seconds, tallies["faster-whisper int8"].seconds, goal)
        loss = given["Hush int8"].rate() - given["Hush fp32, full context"].rate()
        row("int8 and short windows against fp32", f"{loss:+.2f}", "goal +0.25 at most")
        row("short windows against full ones", f"{given['Hush int8, full context'].seconds / given['Hush int8'].seconds:.2f} x", contexts(short))
        (runner,) = short.runners()
        ours = [resident_mb(short.process.pid), resident_mb(runner)]
        row("memory: server and runner, MB", f"{sum(ours):.0f}", f"{ours[0]:.0f} + {ours[1]:.0f}; at most {resident_mb(runner, 'VmHWM'):.0f} in the runner")
        row("memory: Python with faster-whisper, MB", f"{resident_mb(peer.process.pid):.0f}", f"at most {resident_mb(peer.process.pid, 'VmHWM'):.0f}")


def joined(folder: pathlib.Path, name: str, longest: float, pauses: Callable[[int], float]) -> tuple[pathlib.Path, str, float]:
    """English sentences with pauses between them, up to so many seconds."""
    pcm, spoken = b"", []
    for number, (path, text) in enumerate(clips(REAL / "voices", "en", 80)):
        more = samples(path) + silence(pauses(number))
        if seconds(pcm + more) > longest:
            continue
        pcm += more
        spoken.append(text)
    return write(folder / f"{name}.wav", pcm), " ".join(spoken), seconds(pcm)


def in_turns(runs: int, ours: Callable[[], tuple[str, float]], peer: Callable[[], tuple[str, float]]) -> dict[str, list[tuple[str, float]]]:
    """The results of both, after one run of each that does not count."""
    seen: dict[str, list[tuple[str, float]]] = {"ours": [], "peer": []}
    for _ in range(runs + 1):
        seen["ours"].append(ours())
        seen["peer"].append(peer())
    return {name: figures[1:] for name, figures in seen.items()}


def long_audio(row: Row, folder: pathlib.Path, runs: int) -> None:
    window = joined(folder, "window", 29.9, lambda _: 0.2)
    minutes = joined(folder, "minutes", 300, lambda number: 1.5 + number % 3)
    with hush("int8") as server, Peer("int8") as peer:
        for label, goal, (path, text, length), query, request in (
            ("one whole window", "window", window, {}, {}),
            ("with pauses, VAD", "vad", minutes, {"vad_filter": "true", "vad_parallel": "true"}, {"vad": True}),
        ):
            def ours() -> tuple[str, float]:
                answer, taken = ask(server, path, language="en", **query)
                return answer["text"], taken

            def theirs() -> tuple[str, float]:
                answer = peer.ask(path=str(path), language="en", **request)
                return answer["text"], answer["seconds"]

            seen = in_turns(runs, ours, theirs)
            medians = {name: statistics.median(taken for _, taken in figures) for name, figures in seen.items()}
            reference = words(text)
            for name, figures in seen.items():
                rate = 100 * errors(reference, words(figures[0][0])) / len(reference)
                row(f"{label}, {length:.0f} s: {'Hush int8' if name == 'ours' else 'faster-whisper int8'}", f"{medians[name]:.2f} s", f"{rate:.2f} % of {len(reference)} words")
            compare(row, label, medians["ours"], medians["peer"], goal)


def at_once(row: Row, runs: int) -> None:
    chosen = [path for path, _ in clips(REAL / "voices", "en", AT_ONCE * runs)]
    groups = [chosen[start:start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    taken = {"ours": 0.0, "batched": 0.0, "one by one": 0.0}
    with hush("int8") as server, Peer("int8") as peer, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as clients:
        for number, group in enumerate([groups[0], *groups]):
            if number == 1:
                # The first group only warmed up.
                taken = dict.fromkeys(taken, 0.0)
            begun = time.perf_counter()
            list(clients.map(lambda path: ask(server, path, language="en"), group))
            taken["ours"] += time.perf_counter() - begun
            taken["batched"] += peer.ask(paths=[str(path) for path in group], language="en")["seconds"]
            taken["one by one"] += sum(peer.ask(path=str(path), language="en")["seconds"] for path in group)
    row(f"{AT_ONCE} at once, {len(groups)} times: Hush int8", f"{taken['ours']:.1f} s")
    row("the same: faster-whisper, batched", f"{taken['batched']:.1f} s", f"one after the other {taken['one by one']:.1f} s")
    compare(row, f"{AT_ONCE} at once", taken["ours"], min(taken["batched"], taken["one by one"]), "at once")


def first_token(row: Row, runs: int) -> None:
    path, _ = clips(REAL / "voices", "en", 1)[0]
    seen: dict[str, list[float]] = {"auto": [], "full": []}
    with hush("int8", "--residency", "on-demand") as short, hush("int8", "--residency", "on-demand", "--encoder-context", "full") as full:
        for _ in range(runs + 1):
            for name, server in (("auto", short), ("full", full)):
                server.asr(path, "language=en")
                server.wait_logged("unloaded")
                entry = [entry for entry in server.log if entry.get("message") == "first token"][-1]
                seen[name].append(1e3 * float(entry["first_token_seconds"]))
    for name, figures in seen.items():
        figures = figures[1:]
        row(f"unloaded -> first token, ms: encoder context {name}", f"{min(figures):.0f} / {statistics.median(figures):.0f} / {max(figures):.0f}", "goal 350 where the full window takes 600" if name == "auto" else "")


PARTS = ("short", "long", "at-once", "first-token")


def run(row: Row, clip_count: int = 40, runs: int = 5, parts: Iterable[str] = PARTS) -> None:
    """`clip_count`: recordings of each of the five languages. `parts`: those of PARTS that are measured."""
    if not (REAL / "weights/base").is_dir() or not (REAL / "voices").is_dir():
        print("real speech: skipped, because there are no weights and voices here: run `make test-real` where they can be fetched")
        return
    print("real weights (base) on real voices, beside faster-whisper 1.2.1, both in int8 with 2 threads, greedy; Hush over HTTP")
    install()
    with tempfile.TemporaryDirectory() as scratch:
        measures = {
            "short": lambda: short_clips(row, clip_count),
            "long": lambda: long_audio(row, pathlib.Path(scratch), runs),
            "at-once": lambda: at_once(row, runs),
            "first-token": lambda: first_token(row, runs),
        }
        for part in parts:
            measures[part]()
