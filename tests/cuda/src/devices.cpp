#include "devices.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>

namespace cuda_double {
namespace {

bool starts_with(const std::string& text, const std::string& start) { return text.compare(0, start.size(), start) == 0; }

// A GPU that MIG divides is used by its first instance.
ScriptedDevice usable(const ScriptedDevice& device) { return device.instances.empty() ? device : device.instances[0]; }

std::optional<ScriptedDevice> by_number(const std::vector<ScriptedDevice>& devices, const std::string& number) {
    char* end = nullptr;
    long index = std::strtol(number.c_str(), &end, 10);
    if (end == number.c_str() || *end != '\0' || index < 0 || static_cast<size_t>(index) >= devices.size()) return {};
    return usable(devices[static_cast<size_t>(index)]);
}

// The start of a UUID is enough when no other device's begins so.
std::optional<ScriptedDevice> by_uuid(const std::vector<ScriptedDevice>& devices, const std::string& start) {
    std::optional<ScriptedDevice> found;
    for (const auto& device : devices) {
        for (const auto& instance : device.instances) {
            if (instance.uuid == start) return instance;
        }
        if (!starts_with(device.uuid, start)) continue;
        if (found) return {};
        found = usable(device);
    }
    return found;
}

}  // namespace

std::vector<ScriptedDevice> visible_devices(const Script& script) {
    std::vector<ScriptedDevice> devices = script.devices;
    const char* order = std::getenv("CUDA_DEVICE_ORDER");
    if (order == nullptr || std::strcmp(order, "PCI_BUS_ID") != 0) {
        auto speed = [](const ScriptedDevice& device) { return std::tuple(device.major, device.minor, device.total_bytes); };
        std::stable_sort(devices.begin(), devices.end(), [&](const auto& a, const auto& b) { return speed(a) > speed(b); });
    }

    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    std::vector<ScriptedDevice> seen;
    if (visible == nullptr) {
        for (const auto& device : devices) seen.push_back(usable(device));
        return seen;
    }
    std::stringstream entries(visible);
    for (std::string entry; std::getline(entries, entry, ',');) {
        entry.erase(0, entry.find_first_not_of(' '));
        entry.erase(entry.find_last_not_of(' ') + 1);
        bool named = starts_with(entry, "GPU-") || starts_with(entry, "MIG-");
        auto device = named ? by_uuid(devices, entry) : by_number(devices, entry);
        // The first entry that names no device ends the list; a device that is named twice hides all of them.
        if (!device) break;
        if (std::any_of(seen.begin(), seen.end(), [&](const auto& other) { return other.uuid == device->uuid; })) return {};
        seen.push_back(*device);
        if (starts_with(device->uuid, "MIG-")) break;
    }
    return seen;
}

}  // namespace cuda_double
