"""The five minutes of one box, as docs/start.md tells them: a real server, started by the line with which `make run` ends;
a request, an unload, a reload; a policy and a plan."""
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import unittest

from book import BUILT, DOCS, MODELS, ONNXRUNTIME, ROOT, Page
from run import Sandbox, same

PATIENCE_SECONDS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Start(unittest.TestCase):
    def serve(self, api: int, ops: int):
        """Without what `make run` does before: the build, the library and the model are there."""
        told = subprocess.run(["make", "--no-print-directory", "-n", "PROFILE=dev", "run", f"LISTEN=127.0.0.1:{api}",
                               f"OPS_LISTEN=127.0.0.1:{ops}"], cwd=ROOT, capture_output=True, text=True, check=True)
        line = told.stdout[told.stdout.index("exec "):].replace("\\\n", " ")
        line = re.sub(r"exec \S+hush-server", f"exec {BUILT}/hush-server", line)
        line = re.sub(r"--models-dir \S+", f"--models-dir {MODELS}", line)
        line = re.sub(r"--ort-lib \S+", f"--ort-lib {ONNXRUNTIME}", line)
        log = tempfile.NamedTemporaryFile(prefix="hush-docs-", suffix=".log")
        server = subprocess.Popen(["bash", "-c", line], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        self.addCleanup(log.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.terminate)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", api), 1).close()
                return log
            except OSError:
                alive = server.poll() is None and time.monotonic() < deadline
                self.assertTrue(alive, pathlib.Path(log.name).read_text())
                time.sleep(0.05)

    def test_every_console_of_the_page(self):
        page = Page(DOCS / "start.md")
        api, ops = free_port(), free_port()
        log = self.serve(api, ops)
        folder = tempfile.TemporaryDirectory(prefix="hush-docs-")
        self.addCleanup(folder.cleanup)
        sandbox = Sandbox(pathlib.Path(folder.name), {
            "localhost:9000": f"127.0.0.1:{api}", "localhost:9001": f"127.0.0.1:{ops}", "127.0.0.1:9001": f"127.0.0.1:{ops}",
        })
        ran = []
        for block in page.blocks:
            if block.language == "yaml":
                sandbox.write(block)
                continue
            if block.not_run:
                continue
            self.assertEqual(block.language, "console", block.place)
            for command, shown in block.steps():
                status, printed = sandbox.run(command)
                ran.append(command)
                told = f"{block.place}: {command}\nprints\n{printed}\nlog:\n{pathlib.Path(log.name).read_text()}"
                self.assertEqual(status, 0, told)
                self.assertTrue(same(shown, printed), told)
        for step in ("/asr", "/unload", "plan"):
            self.assertTrue(any(step in command for command in ran), step)


if __name__ == "__main__":
    unittest.main()
