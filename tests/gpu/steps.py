"""The steps of `gpu run`: each returns what it found, or raises `Failed` with it. `scripts/gpu` says what the results mean."""
import contextlib
import glob
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

from checkpoint import write_checkpoint
from nvml import Nvml

ONNXRUNTIME = ["libonnxruntime.so", "libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"]
CUDA = ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]
MODEL = "hush-tiny"
TURBO = {"width": 1280, "encoder_layers": 32, "decoder_layers": 4, "heads": 20, "mels": 128}
TINIEST = {"width": 128, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "mels": 80}
FEW_RECORDINGS = ["en-1.wav", "fr-1.wav", "zh-1.wav"]
FIRST_RECORDING = "en-1.wav"
# How long an unload may take to show in NVML.
RECLAIM_SECONDS, QUICK_RECLAIM_SECONDS = 10, 1


class Failed(Exception):
    def __init__(self, reason: str, result=None):
        super().__init__(reason)
        self.result = result


class Skipped(Exception):
    def __init__(self, reason: str, result=None):
        super().__init__(reason)
        self.result = result


class TimedOut(Exception):
    pass


class Site:
    """Where everything lies, and until when the step that runs may run."""

    def __init__(self, root: pathlib.Path, work: pathlib.Path, device: int, is_quick: bool, packed_for=None):
        self.root, self.work, self.device, self.is_quick = root, work, device, is_quick
        # Architectures that the provider still holds code for; None is all of them.
        self.packed_for = packed_for
        self.deadline = 0.0
        self.checkpoint = root / "tests/fixtures/model/whisper-hush-tiny"
        self.server, self.bench = (root / "target/dist" / name for name in ("hush-server", "hush-bench"))
        self.models = work / "models"
        own = root / ".hush/lib-gpu"
        self.libraries = {name: first([str(own)], name) for name in ONNXRUNTIME}
        # The driver comes from where the loader finds it, except where LD_LIBRARY_PATH names another one.
        named = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
        self.libraries["libcuda.so.1"] = first(named, "libcuda.so.1")
        for name in CUDA:
            self.libraries[name] = first(named + [str(own)] + library_folders(), name)
        self.folder = self.linked("lib", self.libraries)
        self.onnxruntime = self.folder / ONNXRUNTIME[0]

    def linked(self, name: str, libraries) -> pathlib.Path:
        """A folder of these libraries and no other: no cuDNN, whatever lies beside them."""
        folder = self.work / name
        folder.mkdir()
        for library in libraries:
            path = self.libraries[library]
            if path and library in ONNXRUNTIME:
                # Hush follows a link to ONNX Runtime, and would find everything that lies beside its target.
                os.link(path.resolve(), folder / library)
            elif path:
                (folder / library).symlink_to(path.absolute())
        return folder

    def environment(self, folder=None, **more) -> dict:
        """Without variables that would steer Hush."""
        steering = ("HUSH_", "ASR_", "CUDA_VISIBLE_DEVICES")
        kept = {name: value for name, value in os.environ.items()
                if name.startswith("HUSH_NVML_") or not name.startswith(steering)}  # fmt: skip
        libraries = str(folder or self.folder)
        return kept | {"LD_LIBRARY_PATH": libraries, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "ORT_DISABLE_TELEMETRY": "1"} | more

    def run(self, command: list, environment=None) -> subprocess.CompletedProcess:
        """Ends it, and what it started, when the step has no time left."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        process = subprocess.Popen(
            [str(word) for word in command], env=environment or self.environment(), start_new_session=True, **options
        )
        try:
            out, error = process.communicate(timeout=max(0.1, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise TimedOut(f"{pathlib.Path(command[0]).name} {command[1]} did not end in time") from None
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    def must(self, command: list, environment=None) -> subprocess.CompletedProcess:
        done = self.run(command, environment)
        if done.returncode:
            raise Failed(f"{pathlib.Path(command[0]).name} {command[1]}: {last_line(done)}")
        return done

    def transcribe(self, device: str, precision: str, files: list, *more, library=None, environment=None):
        command = [self.server, "transcribe", "--model", MODEL, "--models-dir", self.models, "--install-missing", "false"]
        command += ["--device", device, "--precision", precision, "--ort-lib", library or self.onnxruntime]
        return self.run([*command, "--temperature", "0", *more, *files], environment)

    @property
    def cuda(self) -> str:
        return f"cuda:{self.device}"

    def recordings(self) -> list:
        audio = self.root / "tests/fixtures/audio"
        return [audio / name for name in FEW_RECORDINGS] if self.is_quick else sorted(audio.iterdir())

    def reference(self, recording: pathlib.Path) -> dict:
        return json.loads((self.root / f"tests/fixtures/parity/{recording.stem}.json").read_text())["greedy"]


def library_folders() -> list:
    """PyTorch's packages, the toolkit's folders, Python's own (conda), the system's."""
    folders = []
    for packages in sys.path:
        folders += sorted(glob.glob(f"{packages}/nvidia/*/lib") + glob.glob(f"{packages}/torch/lib"))
    folders += sorted(glob.glob("/usr/local/cuda*/lib64") + glob.glob("/usr/local/cuda*/targets/*/lib"), reverse=True)
    return folders + [f"{sys.prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"]


def first(folders: list, name: str):
    return next((pathlib.Path(folder, name) for folder in folders if pathlib.Path(folder, name).exists()), None)


def is_in_loader_cache(name: str) -> bool:
    for program in ("ldconfig", "/sbin/ldconfig"):
        if shutil.which(program):
            return name in subprocess.run([program, "-p"], stdout=subprocess.PIPE, text=True).stdout
    return False


def last_line(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def facts(site: Site) -> dict:
    result = {"nvidia_smi": None, "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    models = re.findall(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    result["cpu"] = models[0] if models else result["cpu"]
    result["libraries"] = {name: path and str(path) for name, path in site.libraries.items()}
    result["cudnn_in_loader_cache"] = is_in_loader_cache("libcudnn")
    result["packages"] = {}
    for package in ("torch", "transformers", "faster-whisper", "ctranslate2"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            result["packages"][package] = importlib.metadata.version(package)
    if shutil.which("nvidia-smi"):
        result["nvidia_smi"] = site.run(["nvidia-smi", "-q"]).stdout[:20000]
    try:
        nvml = Nvml()
        result |= {"driver": nvml.text("nvmlSystemGetDriverVersion"), "cuda": nvml.number("nvmlSystemGetCudaDriverVersion_v2")}
        result["gpus"] = nvml.gpus()
    except OSError as error:
        raise Failed(f"NVML: {error}", result) from None
    missing = [name for name, path in site.libraries.items() if not path and name != "libcuda.so.1"]
    if missing:
        raise Failed(f"not found: {', '.join(missing)}", result)
    if site.device >= len(result["gpus"]):
        raise Failed(f"there is no GPU {site.device}", result)
    capability = result["gpus"][site.device]["compute_capability"]
    architecture = capability.replace(".", "")
    if site.packed_for is not None and architecture not in map(str, site.packed_for):
        packed = f"this was packed for {site.packed_for}, and the GPU has {capability}"
        raise Failed(f"{packed}: gpu pack --arch {architecture}", result)
    return result


def install(site: Site) -> dict:
    begun = time.monotonic()
    command = [site.server, "install", site.checkpoint, "--name", MODEL, "--precision", "fp16,fp32,int8"]
    site.must([*command, "--models-dir", site.models])
    return {"seconds": round(time.monotonic() - begun, 2)}


def smoke(site: Site) -> dict:
    recording = site.root / "tests/fixtures/audio" / FIRST_RECORDING
    loader = site.work / "loader"
    environment = site.environment(LD_DEBUG="libs", LD_DEBUG_OUTPUT=str(loader))
    done = site.transcribe(site.cuda, "fp16", [recording], environment=environment)
    loaded = set()
    for path in site.work.glob("loader.*"):
        loaded |= set(re.findall(r"calling init: (\S+)", path.read_text(errors="replace")))
    cuda = sorted(path for path in loaded if re.search(r"/lib(cu|nvrtc)", path))
    result = {"text": done.stdout.strip(), "expected": site.reference(recording)["text"].strip(), "libraries_loaded": cuda}
    result["cudnn_loaded"] = any("libcudnn" in path for path in cuda)
    if done.returncode:
        raise Failed(last_line(done), result)
    if result["text"] != result["expected"]:
        raise Failed(f"{FIRST_RECORDING}: {result['text']!r} instead of {result['expected']!r}", result)
    if result["cudnn_loaded"] or not any("libcublas" in path for path in cuda):
        raise Failed("cuDNN was loaded, or cuBLAS was not: this run says nothing", result)
    return result


def tokens_on(site: Site, device: str) -> tuple:
    """Tokens by recording, and why there are none of some."""
    out = site.work / f"parity-{device.partition(':')[0]}"
    done = site.transcribe(device, "fp16", site.recordings(), "--output", "json", "--output-dir", out)
    found = {}
    for path in out.glob("*.json"):
        # That of a recording that failed is empty.
        with contextlib.suppress(ValueError):
            found[path.stem] = tokens_of(json.loads(path.read_text()))
    return found, last_line(done) if done.returncode else None


def tokens_of(transcript: dict) -> list:
    return [token for segment in transcript["segments"] for token in segment["tokens"]]


def parity(site: Site) -> dict:
    cpu, cpu_error = tokens_on(site, "cpu")
    gpu, gpu_error = tokens_on(site, site.cuda)
    names = [path.stem for path in site.recordings()]
    different = [name for name in names if name not in cpu or cpu[name] != gpu.get(name)]
    reference = {path.stem: tokens_of(site.reference(path)) for path in site.recordings()}
    result = {"recordings": len(names), "equal": len(names) - len(different), "different": different}
    result["equal_to_reference"] = sum(gpu.get(name) == reference[name] for name in names)
    if different:
        raise Failed(gpu_error or cpu_error or f"other tokens than on the CPU: {', '.join(different)}", result)
    return result


def refusals(site: Site) -> list:
    """What has to be an error that names the cause, and no text."""
    without = {}
    for missing in (ONNXRUNTIME[2], CUDA[1]):
        rest = [name for name in site.libraries if name != missing]
        without[missing] = site.linked(f"without-{missing}", rest)
    cases = [
        ("fp32 on cuda", site.cuda, "fp32", None, "fp16"),
        ("int8 on cuda", site.cuda, "int8", None, "fp16"),
        ("a GPU that is not there", "cuda:99", "fp16", None, "99"),
        ("without the CUDA provider", site.cuda, "fp16", ONNXRUNTIME[2], "GPU build of ONNX Runtime"),
        ("without cuBLAS", site.cuda, "fp16", CUDA[1], CUDA[1]),
    ]
    results, wrong = [], []
    recording = site.root / "tests/fixtures/audio" / FIRST_RECORDING
    for case, device, precision, missing, names in cases:
        if missing in CUDA and is_in_loader_cache(missing):
            results.append({"case": case, "refused": None, "message": f"{missing} is in one of the loader's own folders"})
            continue
        folder = without.get(missing, site.folder)
        library, environment = folder / ONNXRUNTIME[0], site.environment(folder)
        done = site.transcribe(device, precision, [recording], library=library, environment=environment)
        is_refused = done.returncode > 0 and not done.stdout.strip() and names in last_line(done)
        results.append({"case": case, "refused": is_refused, "message": last_line(done)})
        if not is_refused:
            wrong.append(case)
    if wrong:
        raise Failed(f"not refused, or without the cause: {', '.join(wrong)}", results)
    return results


class Server:
    """`hush-server serve`, with the machine's NVML."""

    def __init__(self, site: Site):
        self.site = site
        command = [site.server, "serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-format", "json"]
        command += ["--model", MODEL, "--models-dir", site.models, "--ort-lib", site.onnxruntime, "--device", site.cuda]
        command += ["--precision", "fp16", "--install-missing", "false"]
        command += ["--idle-timeout", "0", "--gpu-sample-interval", "100ms"]
        self.process = subprocess.Popen(
            [str(word) for word in command], env=site.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.log, self.api, self.ops = [], "", ""
        has_begun = threading.Event()

        def read() -> None:
            for line in self.process.stderr:
                self.log.append(line)
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if "api" in entry and "ops" in entry:
                        self.api, self.ops = entry["api"], entry["ops"]
                        has_begun.set()
            has_begun.set()

        threading.Thread(target=read, daemon=True).start()
        has_begun.wait(self.left())
        if not self.api:
            self.kill()
            raise Failed(f"the server did not start: {self.log[-1:]}")

    def left(self) -> float:
        return max(0.1, self.site.deadline - time.monotonic())

    def post(self, url: str, kind: str, body: bytes) -> str:
        request = urllib.request.Request(f"http://{url}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=self.left()) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Failed(f"{url}: {error.code} {error.read().decode(errors='replace')[:500]}") from None
        except OSError as error:
            raise Failed(f"{url}: {error}") from None

    def transcribe(self, recording: pathlib.Path) -> tuple:
        """The text, and milliseconds."""
        head = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
        begun = time.monotonic()
        body = head + recording.read_bytes() + b"\r\n--b--\r\n"
        text = self.post(f"{self.api}/asr?output=txt", "multipart/form-data; boundary=b", body)
        return text.strip(), round((time.monotonic() - begun) * 1e3, 1)

    def unload(self) -> dict:
        body = json.dumps({"if_idle_seconds": 0, "drain_seconds": 5}).encode()
        return json.loads(self.post(f"{self.ops}/admin/v1/models/{MODEL}/unload", "application/json", body))

    def runner(self):
        """The process id of the runner, if there is one."""
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    return int(stat.parent.name)
        return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def resident_bytes(pid) -> int:
    """0 for a process that is gone."""
    with contextlib.suppress(OSError, TypeError):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) * 1024
    return 0


def life(site: Site) -> dict:
    try:
        nvml = Nvml()
    except OSError as error:
        raise Failed(f"NVML: {error}") from None

    def used() -> int:
        return nvml.memory(site.device).used

    memory = {"before": {"device_bytes": used()}}
    result = {"memory": memory}
    recording = site.root / "tests/fixtures/audio" / FIRST_RECORDING
    expected = site.reference(recording)["text"].strip()
    server = Server(site)

    def look(when: str) -> int:
        runner = server.runner()
        memory[when] = {
            "device_bytes": used(),
            "runner_bytes": nvml.of_process(site.device, runner) if runner else 0,
            "server_rss_bytes": resident_bytes(server.process.pid),
            "runner_rss_bytes": resident_bytes(runner),
        }
        return runner

    def wait_for_memory() -> int:
        """How much more is used than before."""
        until = time.monotonic() + (QUICK_RECLAIM_SECONDS if site.is_quick else RECLAIM_SECONDS)
        while used() > memory["before"]["device_bytes"] and time.monotonic() < until:
            time.sleep(0.05)
        return used() - memory["before"]["device_bytes"]

    try:
        look("idle")
        for when in ("cold_ms", "warm_ms"):
            text, result[when] = server.transcribe(recording)
            if text != expected:
                raise Failed(f"the server answers {text!r} instead of {expected!r}", result)
        runner = look("loaded")
        maps = pathlib.Path(f"/proc/{runner}/maps").read_text()
        result["cudnn_mapped"] = "libcudnn" in maps
        result["unload"] = server.unload()
        result["residual_bytes"] = result["unload"].get("residual_bytes")
        result["device_residual_bytes"] = wait_for_memory()
        look("after")
        _, result["second_cold_ms"] = server.transcribe(recording)
        look("reloaded")
        server.process.send_signal(signal.SIGTERM)
        result["exit_status"] = server.process.wait(timeout=server.left())
    except Failed as error:
        # What the server logs of it may follow its answer.
        time.sleep(1)
        raise Failed(str(error), result | {"server_log": server.log[-20:]}) from None
    except (subprocess.TimeoutExpired, TimedOut):
        raise TimedOut("the server did not end in time") from None
    finally:
        server.kill()
    result["ended_residual_bytes"] = wait_for_memory()
    memory["ended"] = {"device_bytes": used()}
    held = memory["loaded"]["device_bytes"] - memory["before"]["device_bytes"]
    if held <= 0 or memory["idle"]["device_bytes"] > memory["before"]["device_bytes"] or memory["after"]["runner_rss_bytes"]:
        raise Failed("the figures are not those of a load and an unload: do others use the GPU?", result)
    for figure in ("residual_bytes", "device_residual_bytes", "ended_residual_bytes"):
        if result[figure] != 0:
            raise Failed(f"{figure}: {result[figure]} (others that use the GPU count here too)", result)
    if result["cudnn_mapped"] or result["exit_status"]:
        raise Failed("the runner has mapped cuDNN, or the server ended with an error", result)
    return result


def model(site: Site) -> dict:
    """A model of turbo's shape, made here."""
    shape, out = TINIEST if site.is_quick else TURBO, site.work / "checkpoint"
    begun = time.monotonic()
    size = write_checkpoint(out, site.checkpoint, shape)
    made = time.monotonic()
    site.must([site.server, "install", out, "--name", big(site), "--precision", "fp16", "--models-dir", site.models])
    result = {"shape": shape, "checkpoint_bytes": size, "generate_seconds": round(made - begun, 2)}
    return result | {"install_seconds": round(time.monotonic() - made, 2)}


def big(site: Site) -> str:
    return "tiniest-shape" if site.is_quick else "turbo-shape"


def measured(site: Site, name: str, case: str, runs: int, tokens: int, **variables: str) -> dict:
    """[least, median, most] of each time of a bench."""
    command = [site.bench, case, site.models / name / "fp16", site.onnxruntime, 1, runs, tokens]
    done = site.must(command, site.environment(HUSH_BENCH_CUDA=str(site.device), **variables))
    return spread(done.stdout)


def spread(output: str) -> dict:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    # The first run warms up.
    lines = lines[1:] if len(lines) > 1 else lines
    if not lines:
        raise Failed("a bench printed no figures")
    times = {key: sorted(line[key] for line in lines) for key in lines[0] if key.endswith("_ms")}
    table = {key: [round(value, 3) for value in (all[0], statistics.median(all), all[-1])] for key, all in times.items()}
    return table | {"tokens": lines[0]["tokens"], "runs": len(lines)}


def installed(site: Site) -> list:
    names = [big(site)] if site.is_quick else [MODEL, big(site)]
    return [name for name in names if (site.models / name / "fp16/model.json").is_file()]


def on_each_model(site: Site, cases: list, figure) -> dict:
    """A case that fails does not keep the others from running."""
    result, wrong = {}, []
    if not installed(site):
        raise Skipped("no model is installed")
    for name in installed(site):
        result[name] = {}
        for case in cases:
            try:
                result[name][case] = figure(name, case)
            except Failed as error:
                result[name][case] = {"reason": str(error)}
                wrong.append(f"{name} {case}: {error}")
            except TimedOut:
                raise Failed(f"no time left at {name} {case}", result) from None
    if wrong:
        raise Failed("; ".join(wrong), result)
    return result


def speed(site: Site) -> dict:
    runs, tokens = (1, 4) if site.is_quick else (10, 100)
    cases = ["engine", "batch=8", "beams=5", "marked=1", "marked=8", "marked=1x5"]
    if site.is_quick:
        cases = ["engine", "batch=2", "beams=2", "marked=2"]
    return on_each_model(site, cases, lambda name, case: measured(site, name, case, runs, tokens))


def per_step(site: Site) -> dict:
    """Two numbers of tokens: what is the same in both, encoder and prompt, does not count."""
    runs, few, many = (1, 4, 12) if site.is_quick else (10, 20, 120)

    def microseconds(name: str, case: str) -> dict:
        low, high = (measured(site, name, case, runs, tokens)["total_ms"][1] for tokens in (few, many))
        return {"wall_us_per_step": round((high - low) / (many - few) * 1e3, 1), "tokens": [few, many]}

    return on_each_model(site, ["marked=1"] if site.is_quick else ["marked=1", "marked=8", "marked=1x5"], microseconds)


def peers(site: Site) -> dict:
    """Each with the machine's own libraries: they may need cuDNN."""
    runs, tokens = (1, 4) if site.is_quick else (10, 100)
    bench, result = site.root / "tests/bench", {}
    environment = dict(os.environ) | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(site.device)}
    checkpoints = {MODEL: site.checkpoint, big(site): site.work / "checkpoint"}
    for name, checkpoint in checkpoints.items():
        if not (checkpoint / "model.safetensors").is_file():
            continue
        commands = {
            "transformers": [sys.executable, bench / "gpu_whisper.py", checkpoint, runs, tokens],
            "ctranslate2": [sys.executable, bench / "ctranslate2_speed.py", checkpoint, "float16", 1, runs, tokens, "cuda"],
        }
        for peer, command in commands.items():
            figures = result.setdefault(peer, {})
            try:
                done = site.run(command, environment)
            except TimedOut as late:
                figures[name] = {"reason": str(late)}
                continue
            is_there = done.returncode == 0 and '"total_ms"' in done.stdout
            reason = done.stdout.strip() if done.returncode == 0 else last_line(done)
            figures[name] = spread(done.stdout) if is_there else {"reason": reason}
    if not any("total_ms" in figures for peer in result.values() for figures in peer.values()):
        raise Skipped("no peer ran here", result)
    return result


def cuda_graph(site: Site) -> dict:
    runs, tokens = (1, 4) if site.is_quick else (10, 100)

    def compared(name: str, case: str) -> dict:
        return {choice: measured(site, name, case, runs, tokens, HUSH_BENCH_CUDA_GRAPHS=choice) for choice in ("on", "off")}

    return on_each_model(site, ["marked=1"], compared)


# Name, what it does, and how many seconds it may take.
STEPS = [
    ("facts", facts, 30),
    ("install", install, 60),
    ("smoke", smoke, 60),
    ("parity", parity, 120),
    ("refusals", refusals, 60),
    ("life", life, 90),
    ("model", model, 120),
    ("speed", speed, 120),
    ("per_step", per_step, 90),
    ("peers", peers, 120),
    ("cuda_graph", cuda_graph, 60),
]
CHECKS = ["facts", "install", "smoke", "parity", "refusals", "life"]
FIGURES = ["facts", "install", "model", "speed", "per_step", "peers", "cuda_graph"]


def run(site: Site, wanted: list, minutes: float) -> dict:
    """Every wanted step, one after the other, whatever became of those before it."""
    end, results = time.monotonic() + minutes * 60, {}
    for name, step, seconds in STEPS:
        if name not in wanted:
            continue
        begun = time.monotonic()
        site.deadline = min(begun + seconds, end)
        status, reason, result = "passed", None, None
        try:
            if begun > end - 1:
                raise TimedOut("no time left")
            result = step(site)
        except Skipped as skipped:
            status, reason, result = "skipped", str(skipped), skipped.result
        except Failed as failed:
            status, reason, result = "failed", str(failed), failed.result
        except TimedOut as late:
            status, reason = "timed_out", str(late)
        except Exception as error:  # noqa: BLE001 the other steps are worth running
            status, reason = "failed", f"{type(error).__name__}: {error}"
        taken = round(time.monotonic() - begun, 2)
        results[name] = {"status": status, "seconds": taken, "reason": reason, "result": result}
        print(f"{name:12} {status:10} {taken:7.1f} s  {reason or ''}", flush=True)
    return results
