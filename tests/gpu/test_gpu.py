"""`scripts/gpu` from its pack to its results, on the double of the CUDA runtime and on a scripted NVML.

usage: test_gpu.py [NAME...]    HUSH_BUILT: folder with hush-server and hush-bench; CUDA_DOUBLE: folder of the double
"""
import glob
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILT = pathlib.Path(os.environ.get("HUSH_BUILT", ROOT / "target/debug")).resolve()
DOUBLE = pathlib.Path(os.environ.get("CUDA_DOUBLE", ROOT / ".hush/cuda-double")).resolve()
MIB = 1 << 20
CONTEXT_BYTES = 300 * MIB
CHECKS = ["facts", "install", "smoke", "parity", "refusals", "life"]
FIGURES = ["model", "speed", "per_step", "peers", "cuda_graph"]

sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
import checkpoint  # noqa: E402
import steps  # noqa: E402


def script_module():
    """`scripts/gpu` as a module."""
    loader = importlib.machinery.SourceFileLoader("gpu", str(ROOT / "scripts/gpu"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu", loader))
    loader.exec_module(module)
    return module


def nvml_library() -> str:
    """Cargo puts it into one of these."""
    return next(iter(glob.glob(f"{BUILT}/libhush_nvml.so") + glob.glob(f"{BUILT}/deps/libhush_nvml.so")), "")


def setUpModule() -> None:
    needed = [DOUBLE / "libcudart.so.13", DOUBLE / "libonnxruntime_providers_cuda.so"]
    needed += [BUILT / "hush-server", BUILT / "hush-bench"]
    missing = [str(path) for path in needed if not path.is_file()]
    if missing or not nvml_library():
        absent = (missing or ["libhush_nvml.so"])[0]
        raise unittest.SkipTest(f"{absent} is not there: `make cuda-double` and `make build-tests`")


class Machine:
    """A folder with a pack, and one scripted GPU."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.pack = folder, folder / "pack"

    def script(self, compute_capability=(9, 0), guests=(), **cuda) -> None:
        gpu = {"uuid": "GPU-11111111-2222-3333-4444-555555555555", "total_bytes": 8 << 30}
        gpu |= {"compute_capability": list(compute_capability), "guests": list(guests)}
        self.write("gpus.json", {"devices": [gpu]})
        cuda = {"gpus": str(self.folder / "gpus.json"), "context_bytes": CONTEXT_BYTES, "fresh_memory_byte": 0xFF} | cuda
        self.write("cuda.json", cuda)

    def write(self, name: str, content: dict) -> None:
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(content))
        part.replace(self.folder / name)

    def gpu(self, *arguments, **environment) -> subprocess.CompletedProcess:
        """The script of the pack, on the double."""
        scripted = {
            "LD_LIBRARY_PATH": str(DOUBLE),
            "CUDA_DOUBLE_SCRIPT": str(self.folder / "cuda.json"),
            "HUSH_NVML_SCRIPT": str(self.folder / "gpus.json"),
            "HUSH_NVML_LIB": nvml_library(),
        }
        command = [sys.executable, self.pack / "gpu", *arguments]
        return subprocess.run(command, env=dict(os.environ) | scripted | environment, capture_output=True, text=True)

    def run(self, *arguments) -> tuple:
        """Exit status, and the results; standard output for a failure of the test."""
        results = self.folder / "results.json"
        results.unlink(missing_ok=True)
        done = self.gpu("run", self.pack, "--quick", "--json", results, *arguments)
        if not results.exists():
            raise AssertionError(f"no results: {done.stdout}{done.stderr}")
        return done.returncode, json.loads(results.read_text()), done.stdout


class OnTheDouble(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.machine = Machine(pathlib.Path(temporary.name))
        command = [sys.executable, ROOT / "scripts/gpu", "pack", cls.machine.pack, "--arch", "90", "--preset", "0"]
        command += ["--programs", BUILT, "--onnxruntime", DOUBLE]
        cls.packed = subprocess.run(command, capture_output=True, text=True)
        if cls.packed.returncode:
            raise AssertionError(cls.packed.stderr)

    def setUp(self) -> None:
        self.machine.script()

    def test_a_pack_is_in_small_parts_and_says_how_large_they_are(self) -> None:
        manifest = json.loads((self.machine.pack / "pack.json").read_text())
        self.assertGreater(len(manifest["parts"]), 1)
        for part in manifest["parts"]:
            size = (self.machine.pack / part["name"]).stat().st_size
            self.assertEqual(size, part["bytes"])
            self.assertLess(size, 60 * MIB)
            self.assertIn(f"{part['name']}: {size / MIB:.1f} MiB", self.packed.stdout)
        provider = manifest["provider"]
        self.assertLess(provider["code_bytes_kept"], provider["code_bytes"] / 2)

    def test_every_step_runs(self) -> None:
        status, results, output = self.machine.run()
        found_steps = results["steps"]
        self.assertEqual(list(found_steps), CHECKS + FIGURES, output)
        skipped = {name for name, step in found_steps.items() if step["status"] == "skipped"}
        self.assertLessEqual(skipped, {"peers"}, output)
        self.assertEqual({step["status"] for name, step in found_steps.items() if name not in skipped}, {"passed"}, output)
        self.assertEqual((status, results["passed"], results["quick"]), (0, True, True))
        found = {name: step["result"] for name, step in found_steps.items()}

        self.assertEqual([gpu["compute_capability"] for gpu in found["facts"]["gpus"]], ["9.0"])
        self.assertEqual(found["smoke"]["text"], "Clean the light.")
        self.assertFalse(found["smoke"]["cudnn_loaded"])
        self.assertTrue(any("libcublas.so.13" in path for path in found["smoke"]["libraries_loaded"]))
        parity = {"recordings": 3, "equal": 3, "different": [], "equal_to_reference": 3}
        self.assertEqual(found["parity"], parity)
        self.assertEqual([case["refused"] for case in found["refusals"]], [True] * 5, found["refusals"])

        life = found["life"]
        memory = life["memory"]
        for when in ("before", "idle", "after", "ended"):
            self.assertEqual(memory[when]["device_bytes"], 0, when)
        for when in ("loaded", "reloaded"):
            self.assertGreater(memory[when]["runner_bytes"], CONTEXT_BYTES, when)
            self.assertEqual(memory[when]["runner_bytes"], memory[when]["device_bytes"], when)
        for figure in ("residual_bytes", "device_residual_bytes", "ended_residual_bytes"):
            self.assertEqual(life[figure], 0, figure)
        self.assertEqual(life["unload"]["reclaimed_bytes"], memory["loaded"]["device_bytes"])
        self.assertEqual(memory["after"]["runner_rss_bytes"], 0)

        speed = found["speed"]["tiniest-shape"]
        self.assertEqual(list(speed), ["engine", "batch=2", "beams=2", "marked=2"])
        for case in speed.values():
            for name, times in case.items():
                if name.endswith("_ms"):
                    self.assertEqual(times, sorted(times))
                    self.assertGreater(times[0], 0)
        self.assertIn("wall_us_per_step", found["per_step"]["tiniest-shape"]["marked=1"])
        graphs = found["cuda_graph"]["tiniest-shape"]["marked=1"]
        self.assertEqual(set(graphs), {"on", "off"})
        self.assertGreater(graphs["off"]["total_ms"][0], 0)

        table = self.machine.gpu("table", self.machine.folder / "results.json").stdout
        self.assertIn("| recordings with the CPU's tokens | 3 of 3 |", table)
        self.assertIn("A quick run: its times mean nothing.", table)
        self.assertIn(f" / {speed['engine']['total_ms'][1]:.2f} / ", table)
        self.assertFalse(list(self.machine.pack.glob("run-*")), "models were left behind")

    def test_a_device_that_fails_is_in_the_results_and_the_steps_go_on(self) -> None:
        self.machine.script(launches_before_failure=20)
        status, results, output = self.machine.run("--only", "facts,install,smoke,parity,refusals,life")
        found_steps = results["steps"]
        self.assertEqual((status, results["passed"]), (1, False), output)
        self.assertEqual(list(found_steps), CHECKS)
        statuses = {name: step["status"] for name, step in found_steps.items()}
        expected = {"facts": "passed", "install": "passed", "refusals": "passed"}
        self.assertEqual(statuses, dict.fromkeys(CHECKS, "failed") | expected, output)
        self.assertIn("launch", found_steps["smoke"]["reason"])
        parity = found_steps["parity"]["result"]
        self.assertEqual((parity["recordings"], parity["equal"]), (3, 0))
        self.assertIn("launch failure", "".join(found_steps["life"]["result"]["server_log"]))

    def test_kernels_that_compute_nothing_are_other_tokens(self) -> None:
        self.machine.script(compute=False, fresh_memory_byte=0)
        status, results, output = self.machine.run("--only", "install,parity")
        parity = results["steps"]["parity"]
        self.assertEqual((status, parity["status"]), (1, "failed"), output)
        self.assertEqual((parity["result"]["equal"], parity["result"]["different"]), (0, ["en-1", "fr-1", "zh-1"]))

    def test_memory_that_stays_is_a_failure(self) -> None:
        stays = 5 * MIB
        # By each process of that name: what asks whether CUDA works is one too.
        self.machine.script(guests=[{"process": "hush-runner", "bytes": stays, "residue_bytes": stays}])
        status, results, output = self.machine.run("--only", "install,life")
        life = results["steps"]["life"]
        self.assertEqual((status, life["status"]), (1, "failed"), output)
        self.assertIn("residual_bytes: ", life["reason"])
        self.assertGreaterEqual(life["result"]["device_residual_bytes"], stays)

    def test_a_pack_for_another_architecture_says_so(self) -> None:
        self.machine.script(compute_capability=(8, 6))
        status, results, _ = self.machine.run("--only", "facts")
        self.assertEqual((status, results["steps"]["facts"]["status"]), (1, "failed"))
        self.assertIn("gpu pack --arch 86", results["steps"]["facts"]["reason"])

    def test_a_step_without_time_left_has_not_passed(self) -> None:
        status, results, output = self.machine.run("--only", "install,parity", "--minutes", "0.001")
        self.assertEqual((status, results["passed"]), (1, False), output)
        self.assertEqual({step["status"] for step in results["steps"].values()}, {"timed_out"})

    def test_a_part_that_is_damaged_is_named(self) -> None:
        copy = self.machine.folder / "damaged"
        copy.mkdir()
        for path in self.machine.pack.iterdir():
            if path.is_file():
                (copy / path.name).symlink_to(path)
        (copy / "hush-gpu.tar.xz.01").unlink()
        done = self.machine.gpu("run", copy)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("hush-gpu.tar.xz.01 is missing or damaged", done.stderr)


class Commands(unittest.TestCase):
    def test_what_does_not_end_is_ended_with_what_it_started(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            site = steps.Site(ROOT, pathlib.Path(folder), 0, True)
            site.deadline = time.monotonic() + 1
            child = pathlib.Path(folder) / "child"
            with self.assertRaises(steps.TimedOut):
                site.run(["sh", "-c", f"sleep 600 & echo $! >{child}; wait"])
            stat = pathlib.Path(f"/proc/{child.read_text().strip()}/stat")
            until = time.monotonic() + 10
            while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < until:
                time.sleep(0.05)
            self.assertLess(time.monotonic(), until)


class WithoutAGpu(unittest.TestCase):
    def test_the_targets_of_make_say_so_and_succeed(self) -> None:
        for command in ("test", "bench"):
            environment = dict(os.environ) | {"HUSH_NVML_LIB": "/nonexistent/libnvidia-ml.so.1"}
            call = [sys.executable, ROOT / "scripts/gpu", command]
            done = subprocess.run(call, env=environment, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("skipped: this machine has no NVIDIA GPU", done.stdout)


class Pruned(unittest.TestCase):
    def test_only_code_of_other_architectures_becomes_zeros(self) -> None:
        gpu = script_module()
        before = (DOUBLE / "libonnxruntime_providers_cuda.so").read_bytes()
        after, sizes = gpu.pruned(before, [86])
        self.assertEqual(len(before), len(after))
        at, kept, architectures = 0, 0, set()
        for architecture, begin, end in gpu.code_objects(before):
            self.assertEqual(before[at:begin], after[at:begin], "what is no code stays")
            if architecture in (80, 86):
                self.assertEqual(before[begin:end], after[begin:end])
                kept += end - begin
            else:
                self.assertEqual(after.count(0, begin, end), end - begin)
            architectures.add(architecture)
            at = end
        self.assertEqual(before[at:], after[at:])
        self.assertEqual(sizes["code_bytes_kept"], kept)
        self.assertLessEqual({80, 86, 90}, architectures)

    def test_a_library_without_code_for_the_gpu_is_refused(self) -> None:
        gpu = script_module()
        with self.assertRaises(SystemExit):
            gpu.pruned((DOUBLE / "libonnxruntime_providers_cuda.so").read_bytes(), [61])


class Checkpoint(unittest.TestCase):
    def test_weights_are_the_seeds_and_lie_where_the_header_says(self) -> None:
        bundled = ROOT / "tests/fixtures/model/whisper-hush-tiny"
        shape = {"width": 64, "encoder_layers": 1, "decoder_layers": 2, "heads": 1, "mels": 128}
        with tempfile.TemporaryDirectory() as folder:
            files = []
            for name, seed in ("one", 0), ("same", 0), ("other", 1):
                out = pathlib.Path(folder) / name
                checkpoint.write_checkpoint(out, bundled, shape, seed)
                files.append((out / "model.safetensors").read_bytes())
            config = json.loads((out / "config.json").read_text())
        self.assertEqual(files[0], files[1])
        self.assertNotEqual(files[0], files[2])
        self.assertEqual((config["d_model"], config["decoder_layers"], config["num_mel_bins"]), (64, 2, 128))

        length, = struct.unpack_from("<Q", files[0])
        header = json.loads(files[0][8 : 8 + length])
        del header["__metadata__"]
        self.assertEqual(max(tensor["data_offsets"][1] for tensor in header.values()), len(files[0]) - 8 - length)
        begin, end = header["model.decoder.layers.1.fc1.weight"]["data_offsets"]
        numbers = struct.unpack_from(f"<{(end - begin) // 2}e", files[0], 8 + length + begin)
        self.assertEqual(len(numbers), 4 * 64 * 64)
        deviation = (sum(number * number for number in numbers) / len(numbers)) ** 0.5
        self.assertAlmostEqual(deviation, 64**-0.5, delta=0.005)


if __name__ == "__main__":
    unittest.main(verbosity=2)
