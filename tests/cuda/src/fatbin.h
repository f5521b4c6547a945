// Code objects of a library of kernels: for which architectures they were built.
#pragma once

#include <string>
#include <vector>

namespace cuda_double {

struct CodeObject {
    // 90 is compute capability 9.0.
    int architecture = 0;
    // Made for this architecture alone (`sm_90a`).
    bool specific = false;
    // PTX, which a driver compiles for any later architecture.
    bool portable = false;
};

// What the structure that `__cudaRegisterFatBinary` is given holds.
std::vector<CodeObject> code_objects(const void* wrapper);

// Whether one of them runs on a device of this compute capability.
bool runs_on(const std::vector<CodeObject>& objects, int major, int minor);

}  // namespace cuda_double
