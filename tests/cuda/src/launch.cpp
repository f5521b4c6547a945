// Registration of kernels, as compiled CUDA programs do it when they are loaded, and their launches.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "fatbin.h"
#include "kernel.h"
#include "log.h"
#include "runtime.h"

namespace cuda_double {
namespace {

using runtime::call;

struct Module {
    std::vector<CodeObject> objects;
};

struct Kernel {
    const Module* module = nullptr;
    const char* mangled = nullptr;
    // Looked up with the first launch.
    bool known = false;
    KernelName name;
    Decoder decoder = nullptr;
    int log_launch = 0, log_captured = 0;
};

struct State {
    std::mutex mutex;
    std::unordered_map<const void*, Kernel> kernels;
    // Names of device variables.
    std::unordered_map<const void*, std::string> variables;
};

State& state() {
    static State* state = new State;
    return *state;
}

Kernel* find(const void* function) {
    std::lock_guard lock(state().mutex);
    auto found = state().kernels.find(function);
    if (found == state().kernels.end()) return nullptr;
    Kernel& kernel = found->second;
    if (!kernel.known) {
        kernel.name = KernelName::of(kernel.mangled);
        kernel.decoder = find_decoder(kernel.name.function);
        kernel.log_launch = log_name("kernel:" + kernel.name.text);
        kernel.log_captured = log_name("captured:kernel:" + kernel.name.text);
        kernel.known = true;
    }
    return &kernel;
}

Error unknown(const std::string& name) {
    log("unknown:" + name);
    std::fprintf(stderr, "cuda-double: this kernel is not known and was not computed: %s\n", name.c_str());
    return error::invalid_device_function;
}

// Nothing where the kernel, or this variant of it, is not known.
Work work_of(const Kernel& kernel, const Launch& launch) {
    if (!current_script()->compute) return [] {};
    if (kernel.decoder == nullptr) return {};
    try {
        return kernel.decoder(launch);
    } catch (const std::logic_error&) {
        // A template argument that should be a number is none.
        return {};
    }
}

Error launch(const void* function, Dim3 grid, Dim3 block, void** arguments, void* stream) {
    Kernel* kernel = find(function);
    if (kernel == nullptr) return unknown("a function that was never registered");
    log(stream::capturing(stream) ? kernel->log_captured : kernel->log_launch);
    const ScriptedDevice& device = runtime::device_now(runtime::current_device());
    if (!runs_on(kernel->module->objects, device.major, device.minor)) return error::no_kernel_image;

    Work work = work_of(*kernel, Launch{kernel->name, grid, block, arguments});
    if (!work) return unknown(kernel->name.text);
    return stream::submit(stream, stream::Operation::Kernel, std::move(work));
}

struct Configuration {
    Dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};
thread_local std::vector<Configuration> configurations;

// What cudaGetDriverEntryPoint gives: no function of the driver is needed for what is computed here.
int not_supported() { return error::not_supported; }

}  // namespace

CUDA_DOUBLE_EXPORT void** __cudaRegisterFatBinary(void* wrapper) {
    auto* module = new Module{code_objects(wrapper)};
    return reinterpret_cast<void**>(module);
}
CUDA_DOUBLE_EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
CUDA_DOUBLE_EXPORT void __cudaUnregisterFatBinary(void**) {}
CUDA_DOUBLE_EXPORT void __cudaRegisterFunction(void** module, const char* function, char*, const char* mangled, int, void*,
                                               void*, void*, void*, int*) {
    std::lock_guard lock(state().mutex);
    Kernel& kernel = state().kernels[function];
    kernel.module = reinterpret_cast<const Module*>(module);
    kernel.mangled = mangled;
}
CUDA_DOUBLE_EXPORT void __cudaRegisterVar(void**, char* variable, char*, const char* name, int, size_t, int, int) {
    std::lock_guard lock(state().mutex);
    state().variables[variable] = name;
}

CUDA_DOUBLE_EXPORT unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, void* stream) {
    configurations.push_back({grid, block, shared_bytes, stream});
    return 0;
}
CUDA_DOUBLE_EXPORT Error __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, void** stream) {
    if (configurations.empty()) return error::invalid_value;
    Configuration last = configurations.back();
    configurations.pop_back();
    *grid = last.grid;
    *block = last.block;
    *shared_bytes = last.shared_bytes;
    *stream = last.stream;
    return error::success;
}
CUDA_DOUBLE_EXPORT Error __cudaGetKernel(const void** kernel, const void* function) {
    *kernel = function;
    return error::success;
}

CUDA_DOUBLE_EXPORT Error cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t,
                                          void* stream) {
    return call(Need::Context, Capture::Allowed, [&] { return launch(function, grid, block, arguments, stream); });
}
CUDA_DOUBLE_EXPORT Error __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments,
                                            size_t shared_bytes, void* stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
CUDA_DOUBLE_EXPORT Error cudaLaunchCooperativeKernel(const void* function, Dim3 grid, Dim3 block, void** arguments,
                                                     size_t shared_bytes, void* stream) {
    return cudaLaunchKernel(function, grid, block, arguments, shared_bytes, stream);
}
CUDA_DOUBLE_EXPORT Error cudaLaunchKernelExC(const LaunchConfiguration* configuration, const void* function,
                                             void** arguments) {
    return cudaLaunchKernel(function, configuration->grid, configuration->block, arguments,
                            configuration->dynamic_shared_bytes, configuration->stream);
}

CUDA_DOUBLE_EXPORT Error cudaFuncGetAttributes(FunctionAttributes* attributes, const void* function) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        const ScriptedDevice& device = runtime::device_now(runtime::current_device());
        Kernel* kernel = find(function);
        if (kernel == nullptr) return error::invalid_device_function;
        if (!runs_on(kernel->module->objects, device.major, device.minor)) return error::no_kernel_image;
        *attributes = {};
        attributes->max_threads_per_block = 1024;
        attributes->registers = 32;
        attributes->binary_version = attributes->ptx_version = device.major * 10 + device.minor;
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaFuncSetAttribute(const void*, int, int) {
    return call(Need::Context, Capture::Allowed, [] { return error::success; });
}
CUDA_DOUBLE_EXPORT Error cudaKernelSetAttributeForDevice(const void*, int, int, int) {
    return call(Need::Context, Capture::Allowed, [] { return error::success; });
}
CUDA_DOUBLE_EXPORT Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                                unsigned) {
    *blocks = 2;
    return error::success;
}

// A kernel of XQA says in a variable how much shared memory it needs: none, here.
CUDA_DOUBLE_EXPORT Error cudaMemcpyFromSymbol(void* destination, const void* variable, size_t bytes, size_t, CopyKind) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        std::lock_guard lock(state().mutex);
        auto found = state().variables.find(variable);
        std::string name = found == state().variables.end() ? "?" : found->second;
        if (name.find("smemSize") == std::string::npos) return unknown("device variable " + name);
        std::memset(destination, 0, bytes);
        return error::success;
    });
}

// Code that is compiled at run time, and the driver's entry points: nothing that is computed here uses them, and a user
// sees that they are missing.
CUDA_DOUBLE_EXPORT Error cudaLibraryGetKernel(void**, void*, const char* name) {
    return unknown(std::string("cudaLibraryGetKernel ") + name);
}
CUDA_DOUBLE_EXPORT Error cudaLibraryLoadData(void**, const void*, int*, void**, unsigned, int*, void**, unsigned) {
    return unknown("cudaLibraryLoadData");
}
CUDA_DOUBLE_EXPORT Error cudaLibraryUnload(void*) { return error::success; }
CUDA_DOUBLE_EXPORT Error cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                          unsigned long long, int* found) {
    log(std::string("driver-entry:") + name);
    *function = reinterpret_cast<void*>(not_supported);
    if (found != nullptr) *found = 0;
    return error::success;
}

}  // namespace cuda_double
