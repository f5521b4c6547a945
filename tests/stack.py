"""Real programs for Python's tests: servers on one scripted GPU, and a controller over them."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILT = pathlib.Path(os.environ.get("HUSH_BUILT", ROOT / "target/debug"))
NVML = next((path for path in (BUILT / "libhush_nvml.so", BUILT / "deps/libhush_nvml.so") if path.exists()), None)
UUID = "GPU-11111111-2222-3333-4444-555555555555"
GIB = 1 << 30
# Far longer than anything here takes: a test that reaches it has failed.
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
        # One that a test has stopped cannot end.
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def policy(name: str, spec: str) -> str:
    """A policy for every server of the namespace `apps`; `spec`: more lines of it."""
    return (
        f"apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {{name: {name}, namespace: apps}}\nspec:\n"
        f'  selector: {{matchLabels: {{gpu.hush.dev/server: "true"}}}}\n{spec}---\n'
    )


class Fleet:
    """Servers `apps/s0`, `apps/s1`, ... whose models hold so many GiB of one scripted GPU, and perhaps a controller."""

    def __init__(self, folder: pathlib.Path, gib: tuple, total_gib: int = 8):
        self.folder, self.programs = folder, []
        self.script = {"devices": [{"uuid": UUID, "total_bytes": total_gib * GIB, "guests": []}]}
        self.servers = [self.server(size) for size in gib]
        self.policies = folder / "policies.yaml"

    def add(self, program: Program) -> Program:
        self.programs.append(program)
        return program

    def write_gpu(self) -> None:
        whole = self.folder / "gpus.json.new"
        whole.write_text(json.dumps(self.script))
        whole.rename(self.folder / "gpus.json")

    def others_hold(self, used_bytes: int) -> None:
        self.script["devices"][0]["used_bytes"] = used_bytes
        self.write_gpu()

    def server(self, gib: int) -> tuple[str, str]:
        """Where its API and its operations port listen."""
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

    def start_controller(self, *arguments, policies: str, listen: str = "127.0.0.1:0") -> str:
        """Where it listens."""
        self.policies.write_text(policies)
        targets = [part for n, (_, ops) in enumerate(self.servers) for part in ("--target", f"apps/s{n}=http://{ops}")]
        self.controller_process = self.add(Program(
            [BUILT / "hush-controller", "run", "--listen", listen, "--log-format", "json", "--policy", self.policies,
             *targets, *arguments]))
        return self.controller_process.said("ops")

    def speak(self, server: int) -> None:
        audio = (ROOT / "tests/fixtures/audio/en-1.wav").read_bytes()
        head = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
        request = urllib.request.Request(f"http://{self.servers[server][0]}/asr?language=en", head + audio + b"\r\n--b--\r\n",
                                         {"Content-Type": "multipart/form-data; boundary=b"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            assert answer.status == 200

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.stop()
