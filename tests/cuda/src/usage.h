// What each process holds on each device, in files beside the scripted NVML's script, so that NVML and the other
// processes on the same card know of it. A file counts as long as its process lives.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cuda_double {

struct Held {
    std::string uuid;
    uint64_t bytes = 0;
};

class Usage {
public:
    // `gpus`: the scripted NVML's file; empty: nothing is shared.
    explicit Usage(const std::string& gpus);

    // Writes what this process holds now on all devices, if with it all processes together stay within `room_bytes` of
    // the device `uuid`. One step under a lock: no two processes take the same room.
    bool hold(const std::vector<Held>& held, const std::string& uuid, uint64_t room_bytes);

    // What the other living processes hold on a device.
    uint64_t others(const std::string& uuid);

private:
    std::string folder_, file_;

    uint64_t others_locked(const std::string& uuid) const;
};

}  // namespace cuda_double
