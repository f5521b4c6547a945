// The rest of the runtime's interface: memory, devices, errors.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "log.h"
#include "memory.h"
#include "runtime.h"
#include "stream.h"

namespace cuda_double {
namespace {

using runtime::call;

// Free and its relatives wait for all work: an operation that is still queued may use the memory.
Error after_all_work(Error (*release)(void*), void* pointer) {
    Error waited = stream::synchronize_all();
    return waited == error::success ? release(pointer) : waited;
}

Error allocate_here(void** pointer, size_t bytes) { return memory::allocate(runtime::current_device(), bytes, pointer); }

Error free_in_order(void* pointer, void* handle) {
    if (pointer != nullptr && !memory::allocated(pointer, 1)) return error::invalid_value;
    return stream::submit(handle, stream::Operation::Other, [pointer] { memory::release(pointer); });
}

}  // namespace

CUDA_DOUBLE_EXPORT Error cudaMalloc(void** pointer, size_t bytes) {
    return call(Need::Context, Capture::Refused, [&] { return allocate_here(pointer, bytes); });
}
CUDA_DOUBLE_EXPORT Error cudaMallocAsync(void** pointer, size_t bytes, void*) {
    return call(Need::Context, Capture::Refused, [&] { return allocate_here(pointer, bytes); });
}
CUDA_DOUBLE_EXPORT Error cudaMallocFromPoolAsync(void** pointer, size_t bytes, void*, void*) {
    return call(Need::Context, Capture::Refused, [&] { return allocate_here(pointer, bytes); });
}
CUDA_DOUBLE_EXPORT Error cudaFree(void* pointer) {
    return call(Need::Context, Capture::Refused, [&] { return after_all_work(memory::release, pointer); });
}
CUDA_DOUBLE_EXPORT Error cudaFreeAsync(void* pointer, void* handle) {
    return call(Need::Context, Capture::Allowed, [&] { return free_in_order(pointer, handle); });
}
CUDA_DOUBLE_EXPORT Error cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    return call(Need::Context, Capture::Refused, [&] { return memory::allocate_pinned(bytes, pointer); });
}
CUDA_DOUBLE_EXPORT Error cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
CUDA_DOUBLE_EXPORT Error cudaFreeHost(void* pointer) {
    return call(Need::Driver, Capture::Refused, [&] { return after_all_work(memory::release_pinned, pointer); });
}
CUDA_DOUBLE_EXPORT Error cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    return call(Need::Context, Capture::Refused, [&] { return memory::register_pinned(pointer, bytes); });
}
CUDA_DOUBLE_EXPORT Error cudaHostUnregister(void* pointer) {
    return call(Need::Context, Capture::Refused, [&] { return after_all_work(memory::unregister_pinned, pointer); });
}
CUDA_DOUBLE_EXPORT Error cudaMemGetInfo(size_t* free, size_t* total) {
    return call(Need::Context, Capture::Allowed, [&] {
        log("memory-info");
        *free = memory::free_bytes(runtime::current_device());
        *total = memory::total_bytes(runtime::current_device());
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaPointerGetAttributes(PointerAttributes* attributes, const void* pointer) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        if (attributes == nullptr) return error::invalid_value;
        *attributes = {};
        attributes->device = memory::device_of(pointer);
        auto* address = const_cast<void*>(pointer);
        if (attributes->device >= 0 && memory::allocated(pointer, 1)) {
            attributes->type = 2;
            attributes->device_pointer = address;
        } else if (memory::pinned(pointer)) {
            attributes->type = 1;
            attributes->device = runtime::current_device();
            attributes->host_pointer = address;
        }
        return error::success;
    });
}

// A pool gives what cudaMalloc gives.
CUDA_DOUBLE_EXPORT Error cudaMemPoolCreate(void** pool, const void*) {
    return call(Need::Context, Capture::Allowed, [&] {
        *pool = new char;
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaMemPoolDestroy(void* pool) {
    return call(Need::Driver, Capture::Allowed, [&] {
        delete static_cast<char*>(pool);
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaMemPoolGetAttribute(void*, int, void* value) {
    return call(Need::Context, Capture::Allowed, [&] {
        std::memset(value, 0, sizeof(uint64_t));
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaMemPoolSetAttribute(void*, int, void*) {
    return call(Need::Context, Capture::Allowed, [] { return error::success; });
}
CUDA_DOUBLE_EXPORT Error cudaMemPoolTrimTo(void*, size_t) {
    return call(Need::Context, Capture::Allowed, [] { return error::success; });
}

CUDA_DOUBLE_EXPORT Error cudaGetDeviceCount(int* count) {
    if (count == nullptr) return error::invalid_value;
    *count = 0;
    return call(Need::Driver, Capture::Allowed, [&] {
        *count = static_cast<int>(runtime::devices().size());
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaGetDevice(int* device) {
    return call(Need::Driver, Capture::Allowed, [&] {
        *device = runtime::current_device();
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaSetDevice(int device) {
    Error set = call(Need::Driver, Capture::Allowed, [&] { return runtime::set_current_device(device); });
    // Since CUDA 12 it makes the device's context.
    return set == error::success ? call(Need::Context, Capture::Allowed, [] { return error::success; }) : set;
}
CUDA_DOUBLE_EXPORT Error cudaDeviceReset() {
    return call(Need::Driver, Capture::Refused, [] {
        Error waited = stream::synchronize_all();
        memory::release_all(runtime::current_device());
        return waited;
    });
}
CUDA_DOUBLE_EXPORT Error cudaDriverGetVersion(int* version) {
    *version = current_script()->init_error == 0 ? current_script()->driver_version : 0;
    return error::success;
}
CUDA_DOUBLE_EXPORT Error cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return error::success;
}

namespace {

DeviceProperties properties_of(const ScriptedDevice& device) {
    DeviceProperties properties{};
    std::strncpy(properties.name, device.name.c_str(), sizeof properties.name - 1);
    size_t digits = 0;
    for (char digit : device.uuid.substr(std::min<size_t>(4, device.uuid.size()))) {
        if (!std::isxdigit(static_cast<unsigned char>(digit)) || digits == 32) continue;
        auto value = std::isdigit(static_cast<unsigned char>(digit)) ? digit - '0' : std::tolower(digit) - 'a' + 10;
        properties.uuid[digits / 2] |= static_cast<unsigned char>(value << (digits % 2 == 0 ? 4 : 0));
        ++digits;
    }
    properties.total_global_memory = device.total_bytes;
    properties.major = device.major;
    properties.minor = device.minor;

    // Shared memory and multiprocessors of an H100, an RTX 4090 and a T4 stand for their kinds (CUDA C++ programming
    // guide, "Technical specifications per compute capability").
    int capability = device.major * 10 + device.minor;
    bool data_centre = capability == 80 || (capability >= 90 && capability < 120);
    size_t shared_kib = capability < 80 ? 64 : capability == 80 ? 164 : data_centre ? 228 : 100;
    properties.shared_memory_per_multiprocessor = shared_kib << 10;
    properties.shared_memory_per_block_optin = (capability < 80 ? 64 : shared_kib - 1) << 10;
    properties.multiprocessor_count = capability < 80 ? 40 : data_centre ? 132 : 128;
    properties.max_threads_per_multiprocessor = capability < 80 ? 1024 : data_centre ? 2048 : 1536;

    properties.shared_memory_per_block = 48 << 10;
    properties.registers_per_block = properties.registers_per_multiprocessor = 65536;
    properties.warp_size = 32;
    properties.max_threads_per_block = 1024;
    properties.max_threads_dimension[0] = properties.max_threads_dimension[1] = 1024;
    properties.max_threads_dimension[2] = 64;
    properties.max_grid_size[0] = 2147483647;
    properties.max_grid_size[1] = properties.max_grid_size[2] = 65535;
    properties.total_constant_memory = 64 << 10;
    properties.texture_alignment = 512;
    properties.concurrent_kernels = properties.unified_addressing = properties.cooperative_launch = 1;
    properties.async_engine_count = 2;
    properties.l2_cache_size = 50 << 20;
    properties.max_blocks_per_multiprocessor = 16;
    properties.memory_pools_supported = 1;
    return properties;
}

// cudaDeviceAttr, as far as ONNX Runtime asks; -1: another one.
int attribute_of(const DeviceProperties& properties, int attribute) {
    switch (attribute) {
        case 1: return properties.max_threads_per_block;
        case 8: return static_cast<int>(properties.shared_memory_per_block);
        case 10: return properties.warp_size;
        case 12: return properties.registers_per_block;
        case 16: return properties.multiprocessor_count;
        case 38: return properties.l2_cache_size;
        case 39: return properties.max_threads_per_multiprocessor;
        case 41: return properties.unified_addressing;
        case 75: return properties.major;
        case 76: return properties.minor;
        case 81: return static_cast<int>(properties.shared_memory_per_multiprocessor);
        case 82: return properties.registers_per_multiprocessor;
        case 95: return properties.cooperative_launch;
        case 97: return static_cast<int>(properties.shared_memory_per_block_optin);
        case 106: return properties.max_blocks_per_multiprocessor;
        case 115: return properties.memory_pools_supported;
        default: return -1;
    }
}

}  // namespace

CUDA_DOUBLE_EXPORT Error cudaGetDeviceProperties(DeviceProperties* properties, int device) {
    return call(Need::Driver, Capture::Allowed, [&]() -> Error {
        if (device < 0 || static_cast<size_t>(device) >= runtime::devices().size()) return error::invalid_device;
        *properties = properties_of(runtime::device_now(device));
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaDeviceGetAttribute(int* value, int attribute, int device) {
    return call(Need::Driver, Capture::Allowed, [&]() -> Error {
        if (device < 0 || static_cast<size_t>(device) >= runtime::devices().size()) return error::invalid_device;
        *value = attribute_of(properties_of(runtime::device_now(device)), attribute);
        if (*value >= 0) return error::success;
        *value = 0;
        log("unknown:device attribute " + std::to_string(attribute));
        return error::success;
    });
}

CUDA_DOUBLE_EXPORT Error cudaGetLastError() { return runtime::last_error(true); }
CUDA_DOUBLE_EXPORT Error cudaPeekAtLastError() { return runtime::last_error(false); }

namespace {

struct Words {
    const char* name;
    const char* text;
};

const std::map<Error, Words>& words() {
    static const std::map<Error, Words> words = {
        {error::success, {"cudaSuccess", "no error"}},
        {error::invalid_value, {"cudaErrorInvalidValue", "invalid argument"}},
        {error::memory_allocation, {"cudaErrorMemoryAllocation", "out of memory"}},
        {error::initialization, {"cudaErrorInitializationError", "initialization error"}},
        {error::insufficient_driver,
         {"cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"}},
        {error::devices_unavailable, {"cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"}},
        {error::invalid_device_function, {"cudaErrorInvalidDeviceFunction", "invalid device function"}},
        {error::no_device, {"cudaErrorNoDevice", "no CUDA-capable device is detected"}},
        {error::invalid_device, {"cudaErrorInvalidDevice", "invalid device ordinal"}},
        {error::no_kernel_image,
         {"cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"}},
        {error::ecc_uncorrectable, {"cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"}},
        {error::invalid_resource_handle, {"cudaErrorInvalidResourceHandle", "invalid resource handle"}},
        {error::not_ready, {"cudaErrorNotReady", "device not ready"}},
        {error::illegal_address, {"cudaErrorIllegalAddress", "an illegal memory access was encountered"}},
        {error::host_memory_already_registered,
         {"cudaErrorHostMemoryAlreadyRegistered", "part or all of the requested memory range is already mapped"}},
        {error::host_memory_not_registered,
         {"cudaErrorHostMemoryNotRegistered", "pointer does not correspond to a registered memory region"}},
        {error::launch_failure, {"cudaErrorLaunchFailure", "unspecified launch failure"}},
        {error::not_supported, {"cudaErrorNotSupported", "operation not supported"}},
        {error::capture_unsupported,
         {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"}},
        {error::capture_invalidated,
         {"cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"}},
        {error::capture_unmatched, {"cudaErrorStreamCaptureUnmatched", "capture was not initiated in this stream"}},
        {error::unknown, {"cudaErrorUnknown", "unknown error"}},
    };
    return words;
}

}  // namespace

CUDA_DOUBLE_EXPORT const char* cudaGetErrorName(Error error) {
    auto found = words().find(error);
    return found == words().end() ? "unrecognized error code" : found->second.name;
}
CUDA_DOUBLE_EXPORT const char* cudaGetErrorString(Error error) {
    auto found = words().find(error);
    return found == words().end() ? "unrecognized error code" : found->second.text;
}

// The double's own: a program puts a mark into its log.
CUDA_DOUBLE_EXPORT void cuda_double_mark(const char* name) { log(std::string("mark:") + name); }

}  // namespace cuda_double
