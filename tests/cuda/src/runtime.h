// The state of a process: its devices, whether they work, and what every call of the interface goes through.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "abi.h"
#include "script.h"

namespace cuda_double {

enum class Need { Nothing, Driver, Context };
// What a call does while a stream is being captured.
enum class Capture { Allowed, Refused };

namespace runtime {

// The visible devices, as they were when the driver was initialised; their changing values are those of the script now.
const std::vector<ScriptedDevice>& devices();
const ScriptedDevice& device_now(int device);

int current_device();
Error set_current_device(int device);

// The error of a device that is lost for this process; nothing heals it.
Error lost();
void lose(Error why);
// Counts a launch. False: the device fails at this one.
bool count_launch();

// Checks what the call needs, runs it, and remembers its error for cudaGetLastError.
CUDA_DOUBLE_SHARED Error call(Need need, Capture capture, const std::function<Error()>& body);

Error last_error(bool clear);

}  // namespace runtime
}  // namespace cuda_double
