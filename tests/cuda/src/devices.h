// The devices that this process sees, in the order in which CUDA numbers them.
#pragma once

#include <vector>

#include "script.h"

namespace cuda_double {

// CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER as the driver reads them once, when it is initialised.
std::vector<ScriptedDevice> visible_devices(const Script& script);

}  // namespace cuda_double
