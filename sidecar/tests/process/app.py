"""A model server with bad manners. It listens on --port and answers GET /health once it is ready."""
import argparse
import ctypes
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

options = argparse.ArgumentParser()
options.add_argument("--port", type=int, required=True)
options.add_argument("--pids", help="a file that gets a line for each process of the app")
options.add_argument("--about", help="a file that gets what the app sees of itself, as JSON")
options.add_argument("--statuses", default="", help="the first answers, such as 404,503")
options.add_argument("--never-ready", action="store_true")
options.add_argument("--exit-at-once", type=int, help="exit status")
options.add_argument("--say", action="append", default=[], help="a line on standard error")
options.add_argument("--flood-mb", type=int, default=0, help="megabytes of one line")
options.add_argument("--bad-bytes", action="store_true")
options.add_argument("--ignore-term", action="store_true")
options.add_argument("--daemon", action="store_true", help="a daemon in a session of its own that ignores signals")
options.add_argument("--children", type=int, default=0, help="children, each in a session of its own")
options.add_argument("--late-child-seconds", type=float, help="a child that starts later")
options.add_argument("--respawn", action="store_true", help="children that start another child before they end")
options.add_argument("--end-first-thread", action="store_true", help="the first thread ends, and others go on")
options.add_argument("--zombie", action="store_true", help="a child that is not reaped")
options.add_argument("--close-port-seconds", type=float)
options.add_argument("--warm-status", type=int, default=200)
options.add_argument("--term-file", help="written by a child of the same group when it gets SIGTERM")
options = options.parse_args()


def record(kind):
    if options.pids:
        with open(options.pids, "a") as file:
            file.write(f"{kind} {os.getpid()}\n")


def ignore_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def sleep_for_ever():
    while True:
        time.sleep(3600)


def become_daemon():
    """Two forks and a session, as a daemon of Unix does: its parent is gone, its group and session are its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ignore_signals()
            record("daemon")
            sleep_for_ever()
        os._exit(0)
    os.wait()


def start_children(count):
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            ignore_signals()
            record("child")
            sleep_for_ever()


def start_respawning():
    """Each generation starts the next one and ends, so that a list of processes is old when it has been read."""
    if os.fork() == 0:
        os.setsid()
        ignore_signals()
        while True:
            if os.fork() != 0:
                time.sleep(0.003)
                os._exit(0)


def start_term_listener(path):
    if os.fork() == 0:
        def ended(number, frame):
            with open(path, "w") as file:
                file.write("SIGTERM")
            os._exit(0)

        signal.signal(signal.SIGTERM, ended)
        record("child")
        sleep_for_ever()


class Handler(http.server.BaseHTTPRequestHandler):
    statuses = [int(status) for status in options.statuses.split(",") if status]

    def do_GET(self):
        status = Handler.statuses.pop(0) if Handler.statuses else 503 if options.never_ready else 200
        self.answer(status)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        print(f"POST {self.path} {body.decode()}", flush=True)
        self.answer(options.warm_status)

    def answer(self, status):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"the body")

    def log_message(self, *arguments):
        pass


for line in options.say:
    print(line, file=sys.stderr, flush=True)
if options.bad_bytes:
    sys.stdout.buffer.write(b"\xff\xfe\x1b]0;title\x07 \x1b[31mred\x1b[0m\n")
    sys.stdout.buffer.flush()
if options.flood_mb:
    for _ in range(options.flood_mb):
        sys.stdout.write("x" * (1 << 20))
    sys.stdout.write("\n")
    sys.stdout.flush()
if options.exit_at_once is not None:
    sys.exit(options.exit_at_once)
if options.about:
    about = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "descriptors": {name: os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                        if os.path.islink(f"/proc/self/fd/{name}")},
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "cgroup": open("/proc/self/cgroup").read(),
        "terminate_is_default": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "pipe_blocked": next(line for line in open("/proc/self/status") if line.startswith("SigBlk")).split()[1],
    }
    with open(options.about + ".new", "w") as file:
        json.dump(about, file)
    os.rename(options.about + ".new", options.about)
record("main")
if options.ignore_term:
    ignore_signals()
if options.daemon:
    become_daemon()
start_children(options.children)
if options.respawn:
    start_respawning()
if options.zombie:
    subprocess.Popen(["true"])
if options.term_file:
    start_term_listener(options.term_file)
if options.late_child_seconds is not None:
    threading.Timer(options.late_child_seconds, lambda: subprocess.Popen(["sleep", "3600"])).start()

server = http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
if options.close_port_seconds is not None:
    threading.Timer(options.close_port_seconds, server.server_close).start()
if options.end_first_thread:
    threading.Thread(target=server.serve_forever).start()
    ctypes.CDLL(None).pthread_exit(None)
try:
    server.serve_forever()
except (OSError, ValueError):
    sleep_for_ever()
