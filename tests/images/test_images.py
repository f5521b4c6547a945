"""The images, as far as they can be tested where none can be built: what their files say, and their steps carried out in
folders. `make test-images` prepares and calls it.
"""
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import yaml

import containerfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "images").glob("Containerfile.*"))
WORKFLOW = ROOT / ".github/workflows/release.yaml"
PULL_REQUEST = ROOT / ".github/workflows/pull-request.yaml"
LIBRARIES = ROOT / ".hush/lib"
SERVER = pathlib.Path(os.environ.get("HUSH_SERVER", ROOT / "target/debug/hush-server"))
SIDECAR = SERVER.with_name("hush-sidecar")
MODELS = pathlib.Path(os.environ.get("HUSH_MODELS", ROOT / ".hush/models"))
UNPRIVILEGED = 65532
INSTRUCTIONS = {"RUN", "COPY", "WORKDIR", "ARG", "ENV", "LABEL", "USER", "EXPOSE", "ENTRYPOINT", "CMD"}


def ignored() -> list[str]:
    return [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()]


def copies(stage: containerfile.Stage):
    """Instruction, the stage or None, what is copied, where to."""
    for one in stage.all("COPY"):
        words = shlex.split(one.text)
        origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
        yield one, origin, words[:-1], words[-1]


class Lint(unittest.TestCase):
    def each(self):
        self.assertEqual([path.name for path in FILES],
                         ["Containerfile.controller", "Containerfile.server-cpu", "Containerfile.server-cuda", "Containerfile.sidecar"])
        for path in FILES:
            with self.subTest(path.name):
                yield path, containerfile.read(path)

    def test_bases_are_pinned(self):
        for _, stages in self.each():
            for stage in stages:
                image, _, tag = stage.image.rpartition(":")
                self.assertRegex(image, r"^[a-z0-9.]+/", "a registry must be named")
                self.assertRegex(tag, r"^[0-9]+\.[0-9]+", f"{stage.image}: a version, at least of two parts")

    def test_the_compiler_is_that_of_the_workspace(self):
        channel = re.search(r'^channel = "([0-9.]+)"$', (ROOT / "rust-toolchain.toml").read_text(), re.M)[1]
        for path, stages in self.each():
            (image,) = [stage.image for stage in stages if "/rust:" in stage.image]
            self.assertRegex(image, rf":{re.escape(channel)}-", path.name)

    def test_instructions_are_known_and_words_are_in_exec_form(self):
        for _, stages in self.each():
            for stage in stages:
                self.assertLessEqual({one.name for one in stage.instructions}, INSTRUCTIONS)
                for one in stage.all("ENTRYPOINT") + stage.all("CMD"):
                    self.assertIsInstance(json.loads(one.text), list)

    def test_it_runs_as_nobody(self):
        for _, stages in self.each():
            last = stages[-1]
            (user,) = last.all("USER")
            self.assertEqual(user.text, f"{UNPRIVILEGED}:{UNPRIVILEGED}", "a number: Kubernetes cannot tell whether a name is root")
            after = last.instructions[last.instructions.index(user) + 1:]
            self.assertFalse([one for one in after if one.name in ("RUN", "COPY", "USER")])

    def test_a_server_has_an_init_that_reaps(self):
        for path, stages in self.each():
            entry = json.loads(stages[-1].all("ENTRYPOINT")[0].text)
            if "server" in path.name:
                self.assertEqual(entry[:2], ["/usr/bin/tini", "--"])
                self.assertIn(" tini ", " ".join(one.text for one in stages[-1].all("RUN")) + " ")

    def test_packages_leave_no_lists(self):
        for _, stages in self.each():
            for stage in stages:
                for one in stage.all("RUN"):
                    if "apt-get install" in one.text:
                        self.assertIn("apt-get update", one.text, one.line)
                        self.assertIn("--no-install-recommends", one.text, one.line)
                        self.assertIn("rm -rf /var/lib/apt/lists/*", one.text, one.line)

    def test_no_secret_and_nothing_from_elsewhere(self):
        for path, stages in self.each():
            self.assertNotRegex(path.read_text(), r"(?i)\b(password|secret|api_?key|token)\b")
            for stage in stages:
                for one in stage.instructions:
                    self.assertNotRegex(one.text, r"https?://|\bcurl\b|\bwget\b|\bsudo\b|\bADD\b", one.line)

    def test_what_is_copied_is_there(self):
        for _, stages in self.each():
            names = {stage.name for stage in stages}
            for stage in stages:
                for one, origin, sources, _ in copies(stage):
                    if origin:
                        self.assertIn(origin, names, one.line)
                        continue
                    for source in sources:
                        self.assertTrue((ROOT / source).exists(), f"line {one.line}: {source}")
                        self.assertNotIn(source, ignored())
                        tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "--others", "--cached", "--exclude-standard",
                                                  source], capture_output=True, text=True)
                        if tracked.returncode == 0:
                            self.assertTrue(tracked.stdout, f"{source} is not part of the repository")

    def test_every_command_is_brought_by_a_base_or_a_package(self):
        """`debian` has the first words of a minimal system, `rust` cargo; the rest is installed before it is used."""
        for _, stages in self.each():
            for stage in stages:
                has = {"apt-get", "rm", "install"} | ({"cargo"} if "/rust:" in stage.image else set())
                for one in stage.all("RUN"):
                    for part in re.split(r"&&|\|", one.text):
                        words = shlex.split(part)
                        self.assertIn(words[0], has, f"line {one.line}")
                        if words[:2] == ["apt-get", "install"]:
                            has |= set(words)

    def test_the_whole_workspace_is_copied(self):
        members = re.findall(r'"([a-z/]+)"', re.search(r"^members = \[(.+)\]", (ROOT / "Cargo.toml").read_text(), re.M)[1])
        for _, stages in self.each():
            build = next(stage for stage in stages if stage.name == "build")
            copied = {source for _, origin, sources, _ in copies(build) if not origin for source in sources}
            self.assertLessEqual({member.split("/")[0] for member in members} | {"Cargo.toml", "Cargo.lock"}, copied)

    def test_the_compiler_is_new_enough(self):
        wanted = re.search(r'rust-version = "([0-9.]+)"', (ROOT / "Cargo.toml").read_text())[1]
        for _, stages in self.each():
            for stage in stages:
                if found := re.search(r"/rust:([0-9.]+)", stage.image):
                    version = [int(part) for part in found[1].split(".")]
                    self.assertGreaterEqual(version, [int(part) for part in wanted.split(".")])


class Steps(unittest.TestCase):
    """What can be carried out of them, in folders."""

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix="hush-image-")))

    def stage(self, file: str, name: str | None) -> containerfile.Stage:
        return next(one for one in containerfile.read(ROOT / "images" / f"Containerfile.{file}") if one.name == name)

    def test_the_packages_exist(self):
        if not shutil.which("apt-get") or not any(pathlib.Path("/var/lib/apt/lists").glob("*Packages*")):
            self.skipTest("there is no apt-get with lists of packages here")
        lines = {one.text for path in FILES for stage in containerfile.read(path) for one in stage.all("RUN")}
        wanted = {word for text in lines for part in text.split("&&") if "apt-get install" in part
                  for word in shlex.split(part)[2:] if not word.startswith("--")}
        self.assertIn("tini", wanted)
        done = subprocess.run(["apt-get", "install", "--simulate", "--yes", "--no-install-recommends", *sorted(wanted)],
                              text=True, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_libraries_are_fetched(self):
        """The very lines of the stage, where its files were copied to and nothing else is."""
        stage = self.stage("server-cpu", "libraries")
        for _, _, sources, into in copies(stage):
            (self.folder / into).mkdir(exist_ok=True)
            for source in sources:
                shutil.copy2(ROOT / source, self.folder / into)
        for one in stage.all("RUN"):
            if "apt-get" not in one.text:
                subprocess.run(["sh", "-ec", one.text], cwd=self.folder, check=True, env={**os.environ, "ONNXRUNTIME_VERSION": ""})
        fetched = {path.name for path in (self.folder / "lib").iterdir()}
        self.assertLessEqual({"libonnxruntime.so", "silero_vad.onnx", "silero_vad.LICENSE", "onnxruntime.packages"}, fetched)

        # The bill of materials of what was fetched and of what is linked, by the line of the next stage.
        (line,) = [one.text for one in self.stage("server-cpu", "build").all("RUN") if "scripts/sbom" in one.text]
        bill = self.bill(line.split(">")[0].replace(" lib ", f" {self.folder}/lib "))
        names = {part["name"] for part in bill["components"]}
        self.assertLessEqual({"ort", "axum", "tokio", "onnxruntime", "silero-vad"}, names)
        self.assertFalse({"proptest", "rcgen", "prost-build", "syn"} & names, "neither tests nor what only builds it")

    def test_the_libraries_exist_for_both_platforms(self):
        """pip finds a wheel of each for x86-64 and for 64-bit Arm, with the digests that are written down; nothing is
        fetched. The Python is that of the base image, and for CUDA the one that the script names."""
        loader = importlib.machinery.SourceFileLoader("fetch_onnxruntime", str(ROOT / "scripts/fetch-onnxruntime"))
        script = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        loader.exec_module(script)
        base = ["--implementation", "cp", "--python-version", "3.13", "--abi", "cp313"]
        for machine in ("x86_64", "aarch64"):
            platforms = [word for name in script.PLATFORMS for word in ("--platform", f"{name}_{machine}")]
            wheels = ((base, [f"onnxruntime=={script.VERSION}"]),
                      ([*script.GPU_PYTHON, "--abi", "none"], [f"onnxruntime-gpu=={script.GPU_VERSION}", *script.GPU_LIBRARIES]))
            for python, packages in wheels:
                wanted, report = self.folder / "wanted.txt", self.folder / "report.json"
                digests = {package: "".join(f" --hash=sha256:{digest}" for digest in script.DIGESTS.get(package, []))
                           for package in packages}
                wanted.write_text("".join(f"{package}{digests[package]}\n" for package in packages))
                done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps",
                                       "--disable-pip-version-check", "--only-binary=:all:", *python, *platforms, "--target",
                                       self.folder / "none", "--report", report, "--requirement", wanted],
                                      capture_output=True, text=True)
                self.assertEqual(done.returncode, 0, f"{machine}: {done.stderr}")
                urls = [one["download_info"]["url"] for one in json.loads(report.read_text())["install"]]
                self.assertEqual(len(urls), len(packages))
                self.assertTrue(all(url.endswith(f"_{machine}.whl") for url in urls), urls)

    def bill(self, line: str) -> dict:
        done = subprocess.run(["sh", "-ec", line], cwd=ROOT, check=True, capture_output=True, text=True)
        bill = json.loads(done.stdout)
        self.assertEqual((bill["bomFormat"], bill["specVersion"]), ("CycloneDX", "1.6"))
        for part in bill["components"]:
            self.assertRegex(part["purl"], r"^pkg:(cargo|pypi)/\S+@\S+$")
        return bill

    def test_the_controllers_bill_of_materials(self):
        (line,) = [one.text for one in self.stage("controller", "build").all("RUN") if "scripts/sbom" in one.text]
        bill = self.bill(line.split(">")[0])
        names = {part["name"] for part in bill["components"]}
        self.assertIn("hush-core", names)
        self.assertNotIn("ort", names)

    def test_the_sidecars_bill_of_materials(self):
        (line,) = [one.text for one in self.stage("sidecar", "build").all("RUN") if "scripts/sbom" in one.text]
        names = {part["name"] for part in self.bill(line.split(">")[0])["components"]}
        self.assertIn("hush-residency", names)
        self.assertNotIn("ort", names)

    def test_the_sidecar_runs_in_the_images_of_apps(self):
        """It is copied into them: the check of the image, on the program that is built here, and on what it must refuse."""
        (line,) = [one.text for one in self.stage("sidecar", "build").all("RUN") if "check-portable" in one.text]
        self.assertEqual(line, "python3 scripts/check-portable target/dist/hush-sidecar")
        check = ROOT / "scripts/check-portable"

        def checked(program) -> subprocess.CompletedProcess:
            return subprocess.run([sys.executable, check, program], capture_output=True, text=True)

        # It links a library that is no part of the C library.
        refused = checked(shutil.which("curl") or shutil.which("git"))
        self.assertEqual(refused.returncode, 1)
        self.assertIn("no part of the C library", refused.stderr)
        if not SIDECAR.exists():
            self.skipTest(f"{SIDECAR} is not built")
        done = checked(SIDECAR)
        libc = [int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[-1].split(".")]
        if libc > [2, 36]:
            self.skipTest("the C library here is newer than that of the image's base")
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_programs_that_are_built_exist(self):
        metadata = json.loads(subprocess.run(["cargo", "metadata", "--locked", "--no-deps", "--format-version=1"], cwd=ROOT,
                                             check=True, capture_output=True).stdout)
        programs = {target["name"] for package in metadata["packages"] for target in package["targets"] if "bin" in target["kind"]}
        for path in FILES:
            build = next(stage for stage in containerfile.read(path) if stage.name == "build")
            (line,) = [one.text for one in build.all("RUN") if one.text.startswith("cargo build")]
            self.assertIn("--locked --profile dist --workspace", line)
            (program,) = re.findall(r"--bin (\S+)", line)
            self.assertIn(program, programs)
            last = containerfile.read(path)[-1]
            self.assertIn(f"/src/target/dist/{program} ", " ".join(one.text for one in last.all("COPY")) + " ")
            self.assertEqual(json.loads(last.all("ENTRYPOINT")[0].text)[-1], program)

    @unittest.skipUnless(os.geteuid() == 0, "only root can become another user")
    @unittest.skipUnless(SERVER.exists(), f"{SERVER} is not built")
    def test_what_the_last_stage_lays_out_serves(self):
        """As an unprivileged user, with the image's variables alone, it finds its libraries and a model, and answers."""
        stage = self.stage("server-cpu", None)
        (self.folder / "usr/local/bin").mkdir(parents=True)
        for _, origin, sources, into in copies(stage):
            place = self.folder / into.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            for source in sources:
                if source.endswith("/hush-server"):
                    shutil.copy2(SERVER, place)
                elif origin == "libraries":
                    for path in LIBRARIES.iterdir():
                        shutil.copy2(path, place)
        shutil.copytree(MODELS / "hush-tiny", self.folder / "models/hush-tiny")
        temporary = self.folder / "tmp"
        temporary.mkdir()
        for path in [self.folder / "models", temporary, *(self.folder / "models").rglob("*")]:
            os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
        self.folder.chmod(0o755)
        env = {name: value.replace("/tmp", str(temporary)) if name == "HOME" else value for name, value in stage.env().items()}
        self.assertEqual(env["HUSH_MODELS_DIR"], "/models")
        env["HUSH_MODELS_DIR"] = str(self.folder / "models")
        env["PATH"] = f"{self.folder}/usr/local/bin:/usr/bin:/bin"
        entry = [word for word in json.loads(stage.all("ENTRYPOINT")[0].text)[2:]] + json.loads(stage.all("CMD")[0].text)
        with (self.folder / "log").open("w") as log:
            server = subprocess.Popen([*entry, "--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0", "--log-format=json"],
                                      executable=self.folder / "usr/local/bin/hush-server", cwd=temporary, env=env, stderr=log,
                                      user=UNPRIVILEGED, group=UNPRIVILEGED, extra_groups=[])
        try:
            address = self.said(server, "api")
            audio = (ROOT / "tests/fixtures/audio/en-1.wav").read_bytes()
            body = b'--b\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n' + audio + b"\r\n--b--\r\n"
            request = urllib.request.Request(f"http://{address}/asr?language=en", body,
                                             {"Content-Type": "multipart/form-data; boundary=b"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                self.assertTrue(answer.read().strip())
        finally:
            server.terminate()
            self.assertEqual(server.wait(60), 0)

    def said(self, server: subprocess.Popen, field: str) -> str:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            text = (self.folder / "log").read_text()
            for line in text.splitlines():
                if line.startswith("{") and field in (entry := json.loads(line)):
                    return entry[field]
            if server.poll() is not None:
                self.fail(text)
            time.sleep(0.05)
        self.fail(f"no line with {field}:\n{text}")


class Release(unittest.TestCase):
    def setUp(self):
        self.workflow = yaml.safe_load(WORKFLOW.read_text())

    def steps(self):
        for job in self.workflow["jobs"].values():
            yield from job["steps"]

    def test_it_may_only_what_it_must(self):
        # YAML takes the key `on` for true.
        self.assertEqual(set(self.workflow[True]), {"push"}, "never for a pull request")
        self.assertEqual(self.workflow["permissions"], {"contents": "read"})
        for name, job in self.workflow["jobs"].items():
            self.assertIn("timeout-minutes", job, name)
            self.assertLessEqual(set(job.get("permissions", {}).values()), {"read", "write"})
            self.assertNotEqual(job.get("permissions", {}).get("contents"), "write")
        self.assertEqual(set(re.findall(r"secrets\.(\w+)", WORKFLOW.read_text())), {"GITHUB_TOKEN"})
        for step in self.steps():
            if "uses" in step:
                self.assertRegex(step["uses"], r"@v[0-9]+$|@[0-9a-f]{40}$")
            if step.get("uses", "").startswith("actions/checkout@"):
                self.assertIs(step["with"]["persist-credentials"], False)

    def test_a_pull_request_runs_targets_and_may_only_read(self):
        workflow = yaml.safe_load(PULL_REQUEST.read_text())
        self.assertEqual(workflow["permissions"], {"contents": "read"})
        self.assertNotIn("secrets.", PULL_REQUEST.read_text())
        for name, job in workflow["jobs"].items():
            self.assertIn("timeout-minutes", job, name)
            self.assertNotIn("permissions", job, name)
            for step in job["steps"]:
                if "run" in step:
                    self.assertRegex(step["run"], r"^(make [a-z-]+|\.ci/run)$")
                else:
                    self.assertRegex(step["uses"], r"@v[0-9]+$|@[0-9a-f]{40}$")
                    if step["uses"].startswith("actions/checkout@"):
                        self.assertIs(step["with"]["persist-credentials"], False)

    def test_its_images_are_those_of_the_chart(self):
        matrix = self.workflow["jobs"]["images"]["strategy"]["matrix"]["include"]
        self.assertEqual({f"Containerfile.{entry['file']}" for entry in matrix}, {path.name for path in FILES})
        built = self.workflow["jobs"]["build"]["strategy"]["matrix"]
        self.assertEqual({(entry["file"], entry["image"]) for entry in built["include"]},
                         {(entry["file"], entry["image"]) for entry in matrix})
        self.assertEqual(set(built["file"]), {entry["file"] for entry in matrix})
        values = yaml.safe_load((ROOT / "charts/hush/values.yaml").read_text())
        for part in (values["server"], values["controller"], values["app"]["sidecar"]):
            self.assertIn(part["image"]["repository"], {entry["image"] for entry in matrix})
        helper = (ROOT / "charts/hush/templates/server/_server.tpl").read_text()
        for entry in matrix:
            if entry["image"] == "hush-server":
                self.assertIn(f'"{entry["suffix"]}"', helper)

    def test_every_image_is_built_for_both_platforms_each_on_its_own(self):
        platforms = {one["name"]: one for one in self.workflow["jobs"]["build"]["strategy"]["matrix"]["platform"]}
        self.assertEqual(set(platforms), {"linux/amd64", "linux/arm64"})
        for name, platform in platforms.items():
            self.assertEqual(platform["short"], name.removeprefix("linux/"))
            self.assertEqual(platform["runner"].endswith("-arm"), name == "linux/arm64", "not emulated")
        (build,) = [step for step in self.workflow["jobs"]["build"]["steps"] if "build-push-action" in step.get("uses", "")]
        self.assertEqual((build["with"]["sbom"], build["with"]["provenance"]), (True, "mode=max"))
        self.assertIn("push-by-digest=true", build["with"]["outputs"])

    def test_both_platforms_get_one_tag_and_everything_pushed_is_signed(self):
        """The lines that join the platforms and that name what is signed, with programs that write down how they are called."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "digests").mkdir()
            for short in ("amd64", "arm64"):
                (folder / "digests" / short).write_text(f"sha256:{short}\n")
            (folder / ".hush/helm").mkdir(parents=True)
            (folder / "docker").write_text("""#!/bin/sh
echo "docker $*" >>calls
case "$*" in *inspect*) echo '{"digest": "sha256:both"}';; esac
""")
            (folder / ".hush/helm/helm").write_text("""#!/bin/sh
echo "helm $*" >>calls
case "$1" in push) echo "Pushed: ghcr.io/x/charts/hush:0.1.0"; echo "Digest: sha256:chart";; esac
""")
            for program in ("docker", ".hush/helm/helm"):
                (folder / program).chmod(0o755)
            env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "REGISTRY": "ghcr.io/Some-One",
                   "GITHUB_OUTPUT": str(folder / "output")}
            values = {"matrix.image": "hush-server", "matrix.suffix": "-cuda", "needs.version.outputs.version": "0.1.0"}

            def run(job: str, id: str) -> str:
                (step,) = [step for step in self.workflow["jobs"][job]["steps"] if step.get("id") == id]
                script = re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: values.get(found[1], "x"), step["run"])
                (folder / "output").unlink(missing_ok=True)
                subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=folder, env=env, check=True, capture_output=True)
                return (folder / "output").read_text()

            if not shutil.which("jq"):
                (folder / "jq").write_text("#!/bin/sh\nsed 's/.*\"digest\": \"//; s/\".*//'\n")
                (folder / "jq").chmod(0o755)
            self.assertEqual(run("images", "index"), "signed=ghcr.io/some-one/hush-server@sha256:both\n")
            self.assertIn("create --tag ghcr.io/some-one/hush-server:0.1.0-cuda ghcr.io/some-one/hush-server@sha256:amd64 "
                          "ghcr.io/some-one/hush-server@sha256:arm64", (folder / "calls").read_text())
            self.assertEqual(run("chart", "push"), "signed=ghcr.io/some-one/charts/hush@sha256:chart\n")
        for job, id in (("images", "index"), ("chart", "push")):
            lines = [step["run"] for step in self.workflow["jobs"][job]["steps"] if "cosign sign" in step.get("run", "")]
            self.assertEqual(len(lines), 1, job)
            self.assertIn(f"steps.{id}.outputs.signed", lines[0])
            self.assertEqual(self.workflow["jobs"][job]["permissions"]["id-token"], "write", job)
        self.assertNotIn("id-token", self.workflow["jobs"]["build"]["permissions"], "it signs nothing")

    def test_its_lines_are_sound(self):
        for step in self.steps():
            if "run" in step:
                plain = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
                subprocess.run(["bash", "-n"], input=plain, text=True, check=True)
                for target in re.findall(r"\bmake ([a-z-]+)", plain):
                    self.assertRegex((ROOT / "Makefile").read_text(), rf"(?m)^{target}:")

    def test_the_version_and_the_registry_are_set(self):
        """The lines that check the tag and that name the registry, on copies."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "charts/hush").mkdir(parents=True)
            for name in ("Cargo.toml", "charts/hush/Chart.yaml", "charts/hush/values.yaml"):
                shutil.copy(ROOT / name, folder / name)
            version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
            (check,) = [step["run"] for step in self.steps() if "GITHUB_REF_NAME" in step.get("run", "")]
            for tag, status in ((f"v{version}", 0), ("v99.0.0", 1)):
                env = {**os.environ, "GITHUB_REF_NAME": tag, "GITHUB_OUTPUT": str(folder / "output")}
                self.assertEqual(subprocess.run(["bash", "-ec", check], cwd=folder, env=env).returncode, status)
            self.assertEqual((folder / "output").read_text(), f"version={version}\n")
            (package,) = [step["run"] for step in self.steps() if "helm package" in step.get("run", "")]
            package = package.replace(".hush/helm/helm package", "test -d")
            subprocess.run(["bash", "-ec", package], cwd=folder, check=True, env={**os.environ, "REGISTRY": "ghcr.io/Some-One"})
            values = yaml.safe_load((folder / "charts/hush/values.yaml").read_text())
            self.assertEqual(values["image"]["registry"], "ghcr.io/some-one")
            before = yaml.safe_load((ROOT / "charts/hush/values.yaml").read_text())
            self.assertEqual({**values, "image": None}, {**before, "image": None})


if __name__ == "__main__":
    unittest.main(verbosity=2)
