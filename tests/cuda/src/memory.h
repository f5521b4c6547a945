// Device memory that the host cannot touch, and host memory that is pinned.
//
// Each device has one range of addresses without any access, and a second mapping of the same memory elsewhere, its
// shadow, in which copies and kernels work. A host access to a device pointer is a segmentation fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

namespace cuda_double {

// An access outside of every allocation: CUDA's "illegal memory access".
struct IllegalAddress {
    const void* address;
};

namespace memory {

// `room_bytes`: what the device has for all processes together; `limit_bytes`: what this process may allocate there.
Error allocate(int device, size_t bytes, void** pointer);
Error release(void* pointer);
// Every allocation of a device, and its context.
void release_all(int device);
// The context takes its memory with the first use of a device.
Error create_context(int device);
bool has_context(int device);

uint64_t free_bytes(int device);
uint64_t total_bytes(int device);

// Whether the pointer lies in a device's range of addresses, allocated or not, and whose it is; -1: host memory.
int device_of(const void* pointer);
// The memory behind `bytes` at a device address. Throws IllegalAddress unless all of it lies in one allocation.
CUDA_DOUBLE_SHARED char* shadow(const void* pointer, size_t bytes);
// Whether all of these bytes lie in one allocation of a device.
bool allocated(const void* pointer, size_t bytes);

Error allocate_pinned(size_t bytes, void** pointer);
Error release_pinned(void* pointer);
Error register_pinned(void* pointer, size_t bytes);
Error unregister_pinned(void* pointer);
bool pinned(const void* pointer);

}  // namespace memory
}  // namespace cuda_double
