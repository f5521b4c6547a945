// What a process did, as records in a file that its memory is mapped to: nothing is lost when the process is killed.
//
// The file is CUDA_DOUBLE_LOG/PID-START. Its layout, in the machine's byte order:
//   0      "CUDADBL1", u32 process, u32 names, u64 records, u64 records that had no room
//   4096   names, 256 bytes each, padded with zeros: KIND, or KIND:DETAIL
//   4096 + 256 * 8192   records: u32 name, u32 thread, u64 bytes, u64 nanoseconds of CLOCK_MONOTONIC
#pragma once

#include <cstddef>
#include <string>

#include "abi.h"

namespace cuda_double {

// A name that has been put into the file. Cheap to keep: look it up once.
int log_name(const std::string& name);

CUDA_DOUBLE_SHARED void log(int name, size_t bytes = 0);
CUDA_DOUBLE_SHARED void log(const std::string& name, size_t bytes = 0);

// Whether anything is written at all.
bool logging();

}  // namespace cuda_double
