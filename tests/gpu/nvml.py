"""What NVIDIA's management library says of the GPUs, without the server under test."""
import ctypes
import os


class Nvml:
    """The first functions fail where there is no driver; that is an OSError."""

    class Memory(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint)] + [(n, ctypes.c_ulonglong) for n in ("total", "reserved", "free", "used")]

    class Process(ctypes.Structure):
        _fields_ = [("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong), ("gpu", ctypes.c_uint), ("compute", ctypes.c_uint)]

    def __init__(self):
        self.library = ctypes.CDLL(os.environ.get("HUSH_NVML_LIB") or "libnvidia-ml.so.1")
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            raise OSError(f"{name} returns {code}")

    def text(self, name: str, *handle) -> str:
        out = ctypes.create_string_buffer(96)
        self.call(name, *handle, out, len(out))
        return out.value.decode()

    def number(self, name: str) -> int:
        out = ctypes.c_int()
        self.call(name, ctypes.byref(out))
        return out.value

    def device(self, index: int):
        handle = ctypes.c_void_p()
        self.call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
        return handle

    def memory(self, index: int) -> "Nvml.Memory":
        memory = self.Memory(version=ctypes.sizeof(self.Memory) | 2 << 24)
        self.call("nvmlDeviceGetMemoryInfo_v2", self.device(index), ctypes.byref(memory))
        return memory

    def of_process(self, index: int, pid: int):
        """Bytes on the device; None where the process is not listed, as in a container with process ids of its own."""
        count, found = ctypes.c_uint(256), (self.Process * 256)()
        self.call("nvmlDeviceGetComputeRunningProcesses_v3", self.device(index), ctypes.byref(count), found)
        return next((process.bytes for process in found[: count.value] if process.pid == pid), None)

    def gpus(self) -> list:
        found = []
        for index in range(self.number("nvmlDeviceGetCount_v2")):
            device, major, minor = self.device(index), ctypes.c_int(), ctypes.c_int()
            self.call("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
            memory = self.memory(index)
            found.append({
                "index": index, "name": self.text("nvmlDeviceGetName", device), "uuid": self.text("nvmlDeviceGetUUID", device),
                "compute_capability": f"{major.value}.{minor.value}", "total_bytes": memory.total, "used_bytes": memory.used,
            })  # fmt: skip
        return found
