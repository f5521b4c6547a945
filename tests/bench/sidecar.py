"""What the proxy of `hush-sidecar` costs, beside the same requests without it: the time of a small request, the memory of
idle sockets, the throughput of a large stream.

The app is another process of this file, which the sidecar starts: threads that answer from memory. HUSH_SIDECAR names
another binary than target/dist's.

usage: sidecar.py PORT SECONDS        the app alone, which listens after so many seconds
"""
import contextlib
import os
import pathlib
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time

from server import ROOT, resident_mb

BINARY = pathlib.Path(os.environ.get("HUSH_SIDECAR", ROOT / "target/dist/hush-sidecar"))
PIECE = memoryview(bytes(range(256)) * 4096)
STREAM_BYTES = 1 << 30
HANDSHAKE = (
    b"GET /realtime HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head, and what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"the connection ended after {data!r}")
        data += piece
    head, rest = data.split(b"\r\n\r\n", 1)
    return head, rest


def content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


class App:
    """Answers `/small` with 64 bytes, `/stream` with STREAM_BYTES, `/upload` when it has the whole body, and accepts
    websockets, on which it says nothing."""

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.sockets: list[socket.socket] = []

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The thread of a websocket ends with its handshake.
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            while True:
                head, rest = read_head(connection)
                if b"websocket" in head.lower():
                    connection.sendall(ACCEPTED)
                    self.sockets.append(connection)
                    return
                left = content_length(head) - len(rest)
                scratch = bytearray(1 << 20)
                while left > 0:
                    left -= connection.recv_into(scratch)
                path = head.split(b" ")[1]
                if path == b"/stream":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES)
                    for _ in range(STREAM_BYTES // len(PIECE)):
                        connection.sendall(PIECE)
                else:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + bytes(PIECE[:64]))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Sidecar:
    def __init__(self, start_seconds: float = 0) -> None:
        self.port, self.app_port = free_port(), free_port()
        command = [str(BINARY), "--app", "process", "--model", "bench", "--upstream", f"http://127.0.0.1:{self.app_port}"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--ops-listen", f"127.0.0.1:{free_port()}"]
        command += ["--", sys.executable, __file__, str(self.app_port), str(start_seconds)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HUSH_")}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        self.wait_ready()

    def wait_ready(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, ConnectionError):
                with connect(self.port) as connection:
                    connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
                    if read_head(connection)[0].startswith(b"HTTP/1.1 200"):
                        return
            time.sleep(0.02)
        self.process.kill()
        raise SystemExit(f"{BINARY} did not become ready")

    def __enter__(self) -> "Sidecar":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def small_requests(port: int, count: int) -> list[float]:
    """Milliseconds of requests one after the other, on one connection."""
    body = b'{"model":"bench","messages":[{"role":"user","content":"hello"}]}'
    request = b"POST /v1/small HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    took = []
    with connect(port) as connection:
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(request + body)
            head, rest = read_head(connection)
            left = content_length(head) - len(rest)
            while left > 0:
                left -= len(connection.recv(65536))
            took.append(1e3 * (time.perf_counter() - start))
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a small request was answered with {head!r}")
    return took


def stream_seconds(port: int) -> float:
    scratch = bytearray(1 << 20)
    with connect(port) as connection:
        start = time.perf_counter()
        connection.sendall(b"POST /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        head, rest = read_head(connection)
        left = content_length(head) - len(rest)
        if left + len(rest) != STREAM_BYTES:
            raise SystemExit(f"a stream was answered with {head!r}")
        while left > 0:
            got = connection.recv_into(scratch)
            if got == 0:
                raise SystemExit(f"a stream ended with {left} bytes missing")
            left -= got
        return time.perf_counter() - start


def upload_seconds(port: int) -> float:
    with connect(port) as connection:
        start = time.perf_counter()
        head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES
        connection.sendall(head)
        for _ in range(STREAM_BYTES // len(PIECE)):
            connection.sendall(PIECE)
        answer, _ = read_head(connection)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"an upload was answered with {answer!r}")
        return time.perf_counter() - start


def idle_connections(port: int, count: int, request: bytes) -> list[socket.socket]:
    """Connections that had one request each, and are idle."""
    held: list[socket.socket] = []
    with selectors.DefaultSelector() as waiting:
        for _ in range(count):
            connection = connect(port)
            connection.sendall(request)
            held.append(connection)
            read_head(connection)
            waiting.register(connection, selectors.EVENT_READ)
        # The body of a probe's answer may come late; a closed connection would be readable for ever.
        for key, _ in waiting.select(0):
            if not key.fileobj.recv(65536):
                raise SystemExit("an idle connection was closed")
    return held


def processor_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(row, spread) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("hush-sidecar: an app on this machine, directly and through the proxy: least / median / most")
    with Sidecar() as sidecar:
        # The first starts the app.
        small_requests(sidecar.port, 200)
        small_requests(sidecar.app_port, 200)
        direct, proxied = [], []
        for _ in range(5):
            direct += small_requests(sidecar.app_port, 400)
            proxied += small_requests(sidecar.port, 400)
        row("a small request, directly, ms", spread(direct, 3))
        row("through the proxy, ms", spread(proxied, 3))
        row("overhead, p50, ms", f"{statistics.median(proxied) - statistics.median(direct):.3f}", "goal 1")

        for name, seconds in (("stream", stream_seconds), ("upload", upload_seconds)):
            direct, proxied = [], []
            before = processor_seconds(sidecar.process.pid)
            for _ in range(5):
                direct.append(seconds(sidecar.app_port))
                proxied.append(seconds(sidecar.port))
            processor = (processor_seconds(sidecar.process.pid) - before) / len(proxied)
            row(f"{name} of 1 GiB, directly, MB/s", spread([STREAM_BYTES / 1e6 / s for s in direct]))
            row("through the proxy, MB/s", spread([STREAM_BYTES / 1e6 / s for s in proxied]))
            share = 100 * statistics.median(direct) / statistics.median(proxied)
            goal = "goal 90 %, with a free core for the proxy" if name == "stream" else ""
            row("of the direct throughput", f"{share:.0f} %", goal)
            row("processor seconds of the proxy for each GiB", f"{processor * 2**30 / STREAM_BYTES:.2f}")
        row("highest resident MB so far", f"{resident_mb(sidecar.process.pid, 'VmHWM'):.1f}")

    start_seconds = 5
    with Sidecar(start_seconds) as sidecar:
        row("1 GiB upload while the app starts, s", f"{upload_seconds(sidecar.port):.1f}", f"the app takes {start_seconds} s")
        row("highest resident MB", f"{resident_mb(sidecar.process.pid, 'VmHWM'):.1f}")

    for name, request in (("connections", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"), ("websockets", HANDSHAKE)):
        # The sidecar counts three files for each connection.
        count = min(10_000, (hard - 64) // 3 - 50)
        with Sidecar() as sidecar:
            small_requests(sidecar.port, 10)
            before = resident_mb(sidecar.process.pid)
            held = idle_connections(sidecar.port, count, request)
            after = resident_mb(sidecar.process.pid)
            each = 1024 * (after - before) / count
            of_goal = before + 10_000 * each / 1024
            row(f"{count} idle {name}, resident MB", f"{after:.1f}", f"{before:.1f} before, {each:.1f} KiB each")
            row(f"10,000 idle {name}, resident MB", f"{of_goal:.1f}", "goal 300")
            for connection in held:
                connection.close()


if __name__ == "__main__":
    time.sleep(float(sys.argv[2]))
    App(int(sys.argv[1])).run()
