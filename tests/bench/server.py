"""A `hush-server` process under measurement, and what `/proc` and `/metrics` say of it."""
import contextlib
import http.client
import json
import os
import pathlib
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("HUSH_BENCH_BINARY", ROOT / "target/dist/hush-server"))
ORT = ROOT / ".hush/lib/libonnxruntime.so"
MODELS = ROOT / ".hush/models"


def environment() -> dict[str, str]:
    """Without variables that would steer the server under measurement."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HUSH_", "ASR_")) and k != "MODEL_IDLE_TIMEOUT"}
    return kept | {"HUSH_ORT_LIB": str(ORT), "HUSH_MODELS_DIR": str(MODELS)}


def hush(*args: str) -> str:
    return subprocess.run([BINARY, *args], env=environment(), check=True, text=True, stdout=subprocess.PIPE).stdout


def log_entry(line: str) -> dict:
    """A line of the log. Libraries and the process's end write lines that are no JSON, and no entry of the log."""
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict):
            return entry
    return {"message": line.rstrip("\n")}


class Server:
    def __init__(self, *args: str):
        levels = "info,hush_server::residency=debug"
        command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log-format", "json"]
        command += ["--log-level", levels, *args]
        self.process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        self.log: list[dict] = []
        self.seen: dict[str, int] = {}
        self.api = self.ops = ""
        listening = threading.Event()

        def read() -> None:
            for line in self.process.stderr:
                entry = log_entry(line)
                self.log.append(entry)
                if "api" in entry and "ops" in entry:
                    self.api, self.ops = (f"http://{entry[k]}" for k in ("api", "ops"))
                    listening.set()
            listening.set()

        threading.Thread(target=read, daemon=True).start()
        listening.wait(60)
        if not self.api:
            raise SystemExit(f"the server did not start: {self.log}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()

    def get(self, path: str, base: str | None = None) -> str:
        with urllib.request.urlopen((base or self.api) + path, timeout=60) as answer:
            return answer.read().decode()

    def metric(self, series: str) -> float:
        """The sum over all series whose text begins with `series`; 0 when there is none."""
        lines = self.get("/metrics", self.ops).splitlines()
        return sum(float(l.rsplit(" ", 1)[1]) for l in lines if l.startswith(series))

    def request(self, audio: pathlib.Path, query: str) -> urllib.request.Request:
        boundary = "hush-bench"
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="audio_file"; filename="{audio.name}"\r\n\r\n'
        body = head.encode() + audio.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return urllib.request.Request(f"{self.api}/asr?{query}", body, headers)

    def asr(self, audio: pathlib.Path, query: str = "") -> str:
        with urllib.request.urlopen(self.request(audio, query), timeout=3600) as answer:
            return answer.read().decode()

    def asr_until(self, audio: pathlib.Path, query: str, message: str) -> None:
        """Leaves as soon as the log has another entry with this message."""
        request = self.request(audio, query)
        address = urllib.parse.urlsplit(self.api)
        connection = http.client.HTTPConnection(address.hostname, address.port)
        connection.request("POST", request.selector, request.data, dict(request.header_items()))
        self.wait_logged(message)
        connection.close()

    def wait_logged(self, message: str, patience_seconds: float = 120) -> None:
        """Waits for an entry with this message that no earlier call has seen."""
        seen = self.seen.get(message, 0)
        end = time.monotonic() + patience_seconds
        while sum(entry.get("message") == message for entry in list(self.log)) <= seen:
            if time.monotonic() > end:
                raise SystemExit(f"the server did not log {message!r}: {self.log[-5:]}")
            time.sleep(0.002)
        self.seen[message] = seen + 1

    def runners(self) -> list[int]:
        found = []
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if stat.read_text().rsplit(")", 1)[1].split()[1] == str(self.process.pid):
                    found.append(int(stat.parent.name))
        return found

    def wait_unloaded(self) -> None:
        while self.runners():
            time.sleep(0.02)


def resident_mb(pid: int, field: str = "VmRSS") -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) / 1024
