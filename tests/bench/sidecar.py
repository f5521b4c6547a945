"""What the proxy of `hush-sidecar` costs, beside the same requests without it: the time of a small request, the memory of
idle sockets, the throughput of large streams and of small events.

The app is another process of this file, which the sidecar starts: threads that answer from memory. HUSH_SIDECAR names
another binary than target/dist's. Client, proxy and app share the processors, so the direct throughput is no measure of the
proxy alone. Therefore two relays are measured beside it: one that only passes bytes on in the kernel (splice), the least that
any process between two sockets can do, and HAProxy with splicing, where it is installed.

usage: sidecar.py app PORT SECONDS      the app alone, which listens after so many seconds
       sidecar.py relay PORT APP_PORT   passes bytes on in the kernel
"""
import contextlib
import fcntl
import os
import pathlib
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from server import ROOT, resident_mb

BINARY = pathlib.Path(os.environ.get("HUSH_SIDECAR", ROOT / "target/dist/hush-sidecar"))
PIECE = memoryview(bytes(range(256)) * 4096)
STREAM_BYTES = 1 << 30
# A token of a chat, as servers send it.
EVENT = b"data: " + b'{"choices":[{"delta":{"content":" token"}}]}' + b"\n\n"
EVENT_CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
EVENTS = 100_000
F_SETPIPE_SZ = 1031
# The sender waits between its packets so that it sends so many bytes in a second, as on a network of 10 Gbit/s.
SO_MAX_PACING_RATE = 47
NETWORK_BYTES_PER_SECOND = 1_250_000_000
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
    """Answers `/small` with 64 bytes, `/stream` with STREAM_BYTES, `/paced` with the same at the speed of a network, `/events` with
    EVENTS events, each sent by itself, `/upload` when it has the whole body, and accepts websockets, on which it says nothing."""

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
                if path == b"/paced":
                    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, NETWORK_BYTES_PER_SECOND)
                if path in (b"/stream", b"/paced"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES)
                    for _ in range(STREAM_BYTES // len(PIECE)):
                        connection.sendall(PIECE)
                elif path == b"/events":
                    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    connection.sendall(head)
                    for _ in range(EVENTS):
                        connection.sendall(EVENT_CHUNK)
                    connection.sendall(b"0\r\n\r\n")
                else:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + bytes(PIECE[:64]))


class SpliceRelay:
    """Passes the bytes of each connection on to the app and back without looking at them."""

    def __init__(self, port: int, app_port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.app_port = app_port

    def run(self) -> None:
        while True:
            client, _ = self.listener.accept()
            app = connect(self.app_port)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in ((client, app), (app, client)):
                threading.Thread(target=self.pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def pass_on(source: socket.socket, target: socket.socket) -> None:
        source.setblocking(True)
        target.setblocking(True)
        read_end, write_end = os.pipe()
        fcntl.fcntl(write_end, F_SETPIPE_SZ, 1 << 20)
        with contextlib.suppress(OSError):
            while got := os.splice(source.fileno(), write_end, 1 << 20):
                while got:
                    got -= os.splice(read_end, target.fileno(), got)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        os.close(read_end)
        os.close(write_end)


HAPROXY_CONFIG = """
global
  nbthread 2
  maxconn 1000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-auto
listen relay
  bind 127.0.0.1:{port}
  server app 127.0.0.1:{app_port}
"""


@contextlib.contextmanager
def relay(kind: str, app_port: int):
    """The port and the process of a relay in front of the app; `None` where the program is not installed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "relay", str(port), str(app_port)]
        if kind == "HAProxy":
            program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
            if program is None:
                yield None
                return
            config = pathlib.Path(folder, "haproxy.cfg")
            config.write_text(HAPROXY_CONFIG.format(port=port, app_port=app_port))
            command = [program, "-db", "-q", "-f", str(config)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    connect(port).close()
                    break
                time.sleep(0.05)
            yield port, process.pid
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Sidecar:
    def __init__(self, start_seconds: float = 0) -> None:
        self.port, self.app_port = free_port(), free_port()
        command = [str(BINARY), "--app", "process", "--model", "bench", "--upstream", f"http://127.0.0.1:{self.app_port}"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--ops-listen", f"127.0.0.1:{free_port()}"]
        # Each websocket holds its model until it has been idle for a while.
        command += ["--concurrency", "20000", "--max-queue", "20000"]
        command += ["--", sys.executable, __file__, "app", str(self.app_port), str(start_seconds)]
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


def stream_seconds(port: int, path: bytes = b"/stream") -> float:
    scratch = bytearray(1 << 20)
    with connect(port) as connection:
        start = time.perf_counter()
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" % path)
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


def paced_stream_seconds(port: int) -> float:
    return stream_seconds(port, b"/paced")


def paced_upload_seconds(port: int) -> float:
    return upload_seconds(port, NETWORK_BYTES_PER_SECOND)


def upload_seconds(port: int, bytes_per_second: int | None = None) -> float:
    with connect(port) as connection:
        if bytes_per_second is not None:
            connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_second)
        start = time.perf_counter()
        head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n" % STREAM_BYTES
        connection.sendall(head)
        for _ in range(STREAM_BYTES // len(PIECE)):
            connection.sendall(PIECE)
        answer, _ = read_head(connection)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"an upload was answered with {answer!r}")
        return time.perf_counter() - start


def events_seconds(port: int) -> float:
    request = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    seen, tail, end = 0, b"", b""
    scratch = bytearray(1 << 16)
    with connect(port) as connection:
        start = time.perf_counter()
        connection.sendall(request)
        while True:
            got = connection.recv_into(scratch)
            if got == 0:
                raise SystemExit(f"the events ended after {seen}")
            piece = tail + scratch[:got]
            seen += piece.count(b"\n\n")
            # An end of an event that is cut in two.
            tail = piece[-1:] if piece[-2:] != b"\n\n" else b""
            end = (end + scratch[:got])[-5:]
            if end == b"0\r\n\r\n":
                break
        if seen != EVENTS:
            raise SystemExit(f"{seen} events came, not {EVENTS}")
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


def transfers(row, spread, sidecar: Sidecar) -> None:
    """Large bodies and small events: directly, through the proxy, and through the relays, in turns."""
    with relay("splice", sidecar.app_port) as splice, relay("HAProxy", sidecar.app_port) as haproxy:
        ways = {"directly": (sidecar.app_port, None), "through the proxy": (sidecar.port, sidecar.process.pid)}
        ways["through a relay in the kernel"] = splice
        if haproxy is not None:
            ways["through HAProxy"] = haproxy

        for name, seconds, amount, unit in (
            ("stream of 1 GiB", stream_seconds, STREAM_BYTES / 1e6, "MB/s"),
            ("upload of 1 GiB", upload_seconds, STREAM_BYTES / 1e6, "MB/s"),
            ("stream of 1 GiB at 10 Gbit/s", paced_stream_seconds, STREAM_BYTES / 1e6, "MB/s"),
            ("upload of 1 GiB at 10 Gbit/s", paced_upload_seconds, STREAM_BYTES / 1e6, "MB/s"),
            (f"{EVENTS} events, one by one", events_seconds, EVENTS / 1e3, "thousand/s"),
        ):
            took = {way: [] for way in ways}
            spent = dict.fromkeys(ways, 0.0)
            for _ in range(5):
                for way, (port, pid) in ways.items():
                    before = processor_seconds(pid) if pid else 0.0
                    took[way].append(seconds(port))
                    spent[way] += (processor_seconds(pid) if pid else 0.0) - before
            print(f"  {name}, {unit}")
            direct = statistics.median(took["directly"])
            for way, values in took.items():
                share = f"{100 * direct / statistics.median(values):.0f} % of direct"
                note = f"{share}, {spent[way] / 5:.2f} processor seconds" if ways[way][1] else ""
                if way == "through the proxy" and unit == "MB/s":
                    note += "; goal 90 %"
                row(f"  {way}", spread([amount / value for value in values]), note)


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

        transfers(row, spread, sidecar)
        row("highest resident MB so far", f"{resident_mb(sidecar.process.pid, 'VmHWM'):.1f}")

    start_seconds = 5
    with Sidecar(start_seconds) as sidecar:
        row("1 GiB upload while the app starts, s", f"{upload_seconds(sidecar.port):.1f}", f"the app takes {start_seconds} s")
        row("highest resident MB", f"{resident_mb(sidecar.process.pid, 'VmHWM'):.1f}")

    for name, request in (("connections", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"), ("websockets", HANDSHAKE)):
        # A connection is one open file, a websocket two; the sidecar keeps some hundred for other uses.
        count = min(10_000, (hard - 500) // (2 if name == "websockets" else 1))
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
    role, port, other = sys.argv[1:]
    if role == "relay":
        SpliceRelay(int(port), int(other)).run()
    time.sleep(float(other))
    App(int(port)).run()
