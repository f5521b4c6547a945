#include "runtime.h"

#include <atomic>
#include <mutex>

#include "devices.h"
#include "memory.h"
#include "stream.h"

namespace cuda_double::runtime {
namespace {

thread_local int current = 0;
thread_local Error last = error::success;

std::atomic<Error> lost_error{error::success};

// Launches since the script last said when the device fails.
std::mutex launches_mutex;
uint64_t launches = 0, launches_allowed = UINT64_MAX;

const ScriptedDevice& find(const std::vector<ScriptedDevice>& devices, const ScriptedDevice& known) {
    for (const auto& device : devices) {
        if (device.uuid == known.uuid) return device;
        for (const auto& instance : device.instances) {
            if (instance.uuid == known.uuid) return instance;
        }
    }
    return known;
}

Error check_driver() {
    auto script = current_script();
    if (script->init_error != 0) return script->init_error;
    if (script->driver_version / 1000 < 13) return error::insufficient_driver;
    return devices().empty() ? error::no_device : error::success;
}

Error check(Need need) {
    if (need == Need::Nothing) return error::success;
    if (Error why = lost(); why != error::success) return why;
    if (Error why = check_driver(); why != error::success) return why;
    if (need == Need::Driver) return error::success;
    if (device_now(current).lost) {
        lose(current_script()->failure);
        return lost();
    }
    return memory::create_context(current);
}

}  // namespace

const std::vector<ScriptedDevice>& devices() {
    static const auto* devices = new std::vector(visible_devices(*current_script()));
    return *devices;
}

const ScriptedDevice& device_now(int device) {
    // Each launch asks: what the script says is looked up once for each of its versions.
    thread_local uint64_t generation = 0;
    thread_local std::vector<ScriptedDevice> now;
    if (auto script = current_script(); script->generation != generation) {
        generation = script->generation;
        now = devices();
        for (auto& known : now) known = find(script->devices, known);
    }
    return now[static_cast<size_t>(device)];
}

int current_device() { return current; }

Error set_current_device(int device) {
    if (device < 0 || static_cast<size_t>(device) >= devices().size()) return error::invalid_device;
    current = device;
    return error::success;
}

Error lost() { return lost_error; }

void lose(Error why) {
    Error none = error::success;
    lost_error.compare_exchange_strong(none, why);
}

bool count_launch() {
    auto script = current_script();
    std::lock_guard lock(launches_mutex);
    if (script->launches_before_failure != launches_allowed) {
        launches_allowed = script->launches_before_failure;
        launches = 0;
    }
    if (launches >= launches_allowed) {
        lose(script->failure);
        return false;
    }
    ++launches;
    return true;
}

Error call(Need need, Capture capture, const std::function<Error()>& body) {
    Error result = check(need);
    if (result == error::success && capture == Capture::Refused && stream::interrupts_capture()) {
        result = error::capture_unsupported;
    }
    if (result == error::success) {
        try {
            result = body();
        } catch (const IllegalAddress&) {
            lose(error::illegal_address);
            result = error::illegal_address;
        }
    }
    // What failed while it was executed shows at this call.
    if (need != Need::Nothing && result == error::success && capture == Capture::Refused) result = lost();
    if (result != error::success && result != error::not_ready) last = result;
    return result;
}

Error last_error(bool clear) {
    Error error = lost() != error::success ? lost() : last;
    if (clear) last = error::success;
    return error;
}

}  // namespace cuda_double::runtime
