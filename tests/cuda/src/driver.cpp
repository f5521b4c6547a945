// libcuda.so.1: what there is. Programs ask it before they decide to use CUDA; the work goes through the runtime.
#include <algorithm>
#include <cstring>

#include "abi.h"
#include "devices.h"
#include "script.h"

namespace {

using namespace cuda_double;

// CUresult.
constexpr int success = 0, invalid_value = 1, not_initialized = 3, no_device = 100, invalid_device = 101, not_supported = 801;
constexpr int capability_major = 75, capability_minor = 76;

bool initialised = false;

const std::vector<ScriptedDevice>& devices() {
    static const auto* devices = new std::vector(visible_devices(*current_script()));
    return *devices;
}

int with_device(int device, const ScriptedDevice** found) {
    if (!initialised) return not_initialized;
    if (device < 0 || static_cast<size_t>(device) >= devices().size()) return invalid_device;
    *found = &devices()[static_cast<size_t>(device)];
    return success;
}

struct Words {
    int code;
    const char* name;
    const char* text;
};
constexpr Words words[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility was attempted on non supported HW"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Words* find_words(int code) {
    auto* found = std::find_if(std::begin(words), std::end(words), [&](const Words& entry) { return entry.code == code; });
    return found == std::end(words) ? nullptr : found;
}

}  // namespace

CUDA_DOUBLE_EXPORT int cuInit(unsigned) {
    if (int error = current_script()->init_error; error != success) return error;
    if (devices().empty()) return no_device;
    initialised = true;
    return success;
}
CUDA_DOUBLE_EXPORT int cuDriverGetVersion(int* version) {
    *version = current_script()->driver_version;
    return success;
}
CUDA_DOUBLE_EXPORT int cuDeviceGetCount(int* count) {
    if (!initialised) return not_initialized;
    *count = static_cast<int>(devices().size());
    return success;
}
CUDA_DOUBLE_EXPORT int cuDeviceGet(int* device, int index) {
    const ScriptedDevice* found = nullptr;
    *device = index;
    return with_device(index, &found);
}
CUDA_DOUBLE_EXPORT int cuDeviceGetName(char* name, int length, int device) {
    const ScriptedDevice* found = nullptr;
    if (int error = with_device(device, &found); error != success) return error;
    if (length < 1) return invalid_value;
    std::strncpy(name, found->name.c_str(), static_cast<size_t>(length));
    name[length - 1] = '\0';
    return success;
}
CUDA_DOUBLE_EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    const ScriptedDevice* found = nullptr;
    if (int error = with_device(device, &found); error != success) return error;
    *bytes = found->total_bytes;
    return success;
}
CUDA_DOUBLE_EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
    const ScriptedDevice* found = nullptr;
    if (int error = with_device(device, &found); error != success) return error;
    if (attribute != capability_major && attribute != capability_minor) return invalid_value;
    *value = attribute == capability_major ? found->major : found->minor;
    return success;
}
CUDA_DOUBLE_EXPORT int cuGetErrorString(int error, const char** text) {
    const Words* found = find_words(error);
    *text = found != nullptr ? found->text : nullptr;
    return found != nullptr ? success : invalid_value;
}
CUDA_DOUBLE_EXPORT int cuGetErrorName(int error, const char** name) {
    const Words* found = find_words(error);
    *name = found != nullptr ? found->name : nullptr;
    return found != nullptr ? success : invalid_value;
}
// The provider is linked with it; only kernels that nothing here launches use it.
CUDA_DOUBLE_EXPORT int cuTensorMapEncodeTiled() { return not_supported; }
