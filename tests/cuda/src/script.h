// What a test writes: the file that CUDA_DOUBLE_SCRIPT names, and the file of the scripted NVML that it names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"

namespace cuda_double {

struct ScriptedDevice {
    std::string uuid = "GPU-00000000-0000-0000-0000-000000000000";
    std::string name = "Scripted GPU";
    int major = 9, minor = 0;
    uint64_t total_bytes = 80ull << 30;
    // By the driver, and by everything that the script lets hold memory.
    uint64_t others_bytes = 0;
    bool lost = false;
    // Instances of a GPU that is divided by MIG.
    std::vector<ScriptedDevice> instances;
};

struct Script {
    // Grows with each reading of a changed file.
    uint64_t generation = 0;
    // The scripted NVML's file: where the devices come from, and beside which the usage of each process lies.
    std::string gpus;
    int driver_version = 13000;
    std::vector<ScriptedDevice> devices;

    // What cuInit returns.
    int init_error = 0;
    // What a process's context takes on a device.
    uint64_t context_bytes = 0;
    // More than this, context apart, a process cannot allocate on a device.
    uint64_t allocation_limit_bytes = UINT64_MAX;
    // Kernels that a process may still launch from the moment at which it reads this; then the device is lost.
    uint64_t launches_before_failure = UINT64_MAX;
    Error failure = error::launch_failure;
    // Between host and device, per stream; 0: copies take no time.
    uint64_t copy_bytes_per_second = 0;
    // Without it kernels are counted, and do nothing.
    bool compute = true;
    // New device memory holds this byte, as real memory holds what was there before; negative: zeros.
    int fresh_memory_byte = -1;
};

// The script at this moment. Files are looked at anew when the last look is older than a few milliseconds.
CUDA_DOUBLE_SHARED std::shared_ptr<const Script> current_script();

}  // namespace cuda_double
