"""A real API server with its store, for as long as a test runs: `with ControlPlane() as cluster: cluster.kubectl(...)`."""
import contextlib
import os
import pathlib
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ASSETS = pathlib.Path(os.environ.get("KUBEBUILDER_ASSETS", pathlib.Path(__file__).resolve().parents[2] / ".hush/control-plane"))
PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
MISSING = [name for name in PROGRAMS if not (ASSETS / name).exists()]
TOKEN = "test"
PATIENCE = 180


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


class ControlPlane:
    def __enter__(self) -> "ControlPlane":
        self.folder = tempfile.TemporaryDirectory(prefix="hush-control-plane-")
        self.root = pathlib.Path(self.folder.name)
        self.running: list[subprocess.Popen] = []
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()

    def launch(self, name: str, *arguments: str) -> None:
        with (self.root / f"{name}.log").open("w") as log:
            self.running.append(subprocess.Popen([ASSETS / name, *arguments], stdout=log, stderr=log))

    def start(self) -> None:
        client, peer, port = free_port(), free_port(), free_port()
        store, self.url = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{port}"
        self.launch("etcd", f"--data-dir={self.root}/etcd", "--unsafe-no-fsync", f"--listen-client-urls={store}",
                    f"--advertise-client-urls={store}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                    f"--initial-cluster=default=http://127.0.0.1:{peer}")
        key, tokens = self.root / "account.key", self.root / "tokens.csv"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens.write_text(f"{TOKEN},admin,admin,system:masters\n")
        self.launch("kube-apiserver", f"--etcd-servers={store}", f"--secure-port={port}", "--bind-address=127.0.0.1",
                    f"--cert-dir={self.root}/certificates", "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                    "--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC", f"--token-auth-file={tokens}",
                    # No controller makes the accounts of new namespaces here.
                    "--disable-admission-plugins=ServiceAccount")
        self.wait_until_ready()
        config = self.root / "kubeconfig"
        config.write_text(f"""apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: "{self.url}", insecure-skip-tls-verify: true}}}}]
users: [{{name: admin, user: {{token: {TOKEN}}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
""")
        config.chmod(0o600)
        # Nothing of the one who tests, and caches that end with this.
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        self.env = {**own, "KUBECONFIG": str(config), "HOME": str(self.root)}

    def wait_until_ready(self) -> None:
        trusting = ssl._create_unverified_context()
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
        end = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                with urllib.request.urlopen(request, timeout=5, context=trusting) as answer:
                    if answer.status == 200:
                        return
            for process, name in zip(self.running, PROGRAMS):
                if process.poll() is not None:
                    raise AssertionError(f"{name} ended:\n{(self.root / f'{name}.log').read_text()[-3000:]}")
            if time.monotonic() > end:
                raise AssertionError(f"the API server is not ready after {PATIENCE} s")
            time.sleep(0.1)

    def run(self, *command, text: str | None = None) -> subprocess.CompletedProcess:
        done = subprocess.run([str(part) for part in command], text=True, capture_output=True, env=self.env, input=text,
                              timeout=PATIENCE)
        return done

    def kubectl(self, *arguments, text: str | None = None) -> str:
        done = self.run(ASSETS / "kubectl", *arguments, text=text)
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(map(str, arguments))}\n{done.stderr}")
        return done.stdout + done.stderr
