// The part of CUDA 13's runtime interface that the double serves: layouts and numbers of driver_types.h.
#pragma once

#include <cstddef>
#include <cstdint>

#define CUDA_DOUBLE_EXPORT extern "C" __attribute__((visibility("default")))
// What the doubles of cuBLAS use of the runtime's double.
#define CUDA_DOUBLE_SHARED __attribute__((visibility("default")))

namespace cuda_double {

// cudaError_t. A plain int, as a C caller sees it.
using Error = int;
namespace error {
inline constexpr Error success = 0, invalid_value = 1, memory_allocation = 2, initialization = 3, insufficient_driver = 35,
    devices_unavailable = 46, invalid_device_function = 98, no_device = 100, invalid_device = 101,
    no_kernel_image = 209, ecc_uncorrectable = 214, invalid_resource_handle = 400, not_ready = 600,
    illegal_address = 700, host_memory_already_registered = 712, host_memory_not_registered = 713, launch_failure = 719,
    not_supported = 801, capture_unsupported = 900, capture_invalidated = 901, capture_unmatched = 903, unknown = 999;
}

struct Dim3 {
    unsigned x, y, z;
};

enum class CopyKind : int { HostToHost, HostToDevice, DeviceToHost, DeviceToDevice, Default };

enum class CaptureMode : int { Global, ThreadLocal, Relaxed };

enum class CaptureStatus : int { None, Active, Invalidated };

struct DeviceProperties {
    char name[256];
    unsigned char uuid[16];
    char luid[8];
    unsigned luid_device_node_mask;
    size_t total_global_memory, shared_memory_per_block;
    int registers_per_block, warp_size;
    size_t memory_pitch;
    int max_threads_per_block, max_threads_dimension[3], max_grid_size[3];
    size_t total_constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int multiprocessor_count, integrated, can_map_host_memory;
    // Sizes of textures and surfaces, which no kernel here has.
    int textures[41];
    int concurrent_kernels, ecc_enabled, pci_bus_id, pci_device_id, pci_domain_id, tcc_driver, async_engine_count,
        unified_addressing, memory_bus_width, l2_cache_size, persisting_l2_cache_max_size, max_threads_per_multiprocessor,
        stream_priorities_supported, global_l1_cache_supported, local_l1_cache_supported;
    size_t shared_memory_per_multiprocessor;
    int registers_per_multiprocessor, managed_memory, is_multi_gpu_board, multi_gpu_board_group_id,
        host_native_atomic_supported, pageable_memory_access, concurrent_managed_access, compute_preemption_supported,
        can_use_host_pointer_for_registered_memory, cooperative_launch;
    size_t shared_memory_per_block_optin;
    int pageable_memory_access_uses_host_page_tables, direct_managed_memory_access_from_host,
        max_blocks_per_multiprocessor, access_policy_max_window_size;
    size_t reserved_shared_memory_per_block;
    int host_register_supported, sparse_array_supported, host_register_read_only_supported,
        timeline_semaphore_interop_supported, memory_pools_supported;
    int rest[71];
};
static_assert(offsetof(DeviceProperties, major) == 360 && offsetof(DeviceProperties, multiprocessor_count) == 384);
static_assert(offsetof(DeviceProperties, concurrent_kernels) == 560 && offsetof(DeviceProperties, l2_cache_size) == 596);
static_assert(offsetof(DeviceProperties, shared_memory_per_block_optin) == 672);
static_assert(offsetof(DeviceProperties, memory_pools_supported) == 720 && sizeof(DeviceProperties) == 1008);

struct FunctionAttributes {
    size_t shared_bytes, constant_bytes, local_bytes;
    int max_threads_per_block, registers, ptx_version, binary_version, cache_mode, max_dynamic_shared_bytes;
    int rest[24];
};
static_assert(sizeof(FunctionAttributes) == 144);

struct PointerAttributes {
    int type;  // 0 unregistered, 1 host, 2 device
    int device;
    void* device_pointer;
    void* host_pointer;
    long reserved[8];
};
static_assert(sizeof(PointerAttributes) == 88);

struct LaunchConfiguration {
    Dim3 grid, block;
    size_t dynamic_shared_bytes;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};
static_assert(sizeof(LaunchConfiguration) == 56);

struct PitchedPointer {
    void* pointer;
    size_t pitch, width, height;
};

struct Extent {
    size_t width, height, depth;
};

struct Copy3D {
    void* source_array;
    Extent source_position;
    PitchedPointer source;
    void* destination_array;
    Extent destination_position;
    PitchedPointer destination;
    Extent extent;
    CopyKind kind;
};
static_assert(sizeof(Copy3D) == 160);

}  // namespace cuda_double
