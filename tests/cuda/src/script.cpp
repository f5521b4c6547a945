#include "script.h"

#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <mutex>
#include <sstream>

#include "json.h"

namespace cuda_double {
namespace {

constexpr auto look_again_after = std::chrono::milliseconds(5);

// Tells one content of a file from another.
struct Stamp {
    dev_t device = 0;
    ino_t inode = 0;
    off_t bytes = 0;
    long seconds = 0, nanoseconds = 0;

    static Stamp of(const std::string& path) {
        struct stat facts {};
        if (path.empty() || stat(path.c_str(), &facts) != 0) return {};
        return {facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtim.tv_sec, facts.st_mtim.tv_nsec};
    }
    bool operator==(const Stamp& other) const {
        return device == other.device && inode == other.inode && bytes == other.bytes && seconds == other.seconds &&
               nanoseconds == other.nanoseconds;
    }
};

Json read(const std::string& path) {
    std::ifstream file(path);
    std::stringstream text;
    text << file.rdbuf();
    auto parsed = Json::parse(text.str());
    if (!file || !parsed) {
        std::fprintf(stderr, "cuda-double: the script %s cannot be read or is not JSON\n", path.c_str());
        return {};
    }
    return *parsed;
}

// As the scripted NVML counts: the latest of the changes that are past stands for `used_bytes`.
uint64_t used_now(const Json& device) {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    long long now_ms = now.tv_sec * 1000LL + now.tv_nsec / 1000000;
    long long used = device["used_bytes"].integer_or(0), latest = -1;
    for (const Json& change : device["changes"].list) {
        long long at = change["at_unix_ms"].integer_or(0);
        if (at > now_ms || at < latest) continue;
        latest = at;
        used = change["used_bytes"].integer_or(0);
    }
    return static_cast<uint64_t>(used);
}

ScriptedDevice device_of(const Json& json) {
    ScriptedDevice device;
    device.uuid = json["uuid"].text_or(device.uuid);
    device.name = json["name"].text_or(device.name);
    // The scripted NVML's own defaults.
    device.major = 8;
    device.minor = 9;
    if (const auto& capability = json["compute_capability"].list; capability.size() == 2) {
        device.major = static_cast<int>(capability[0].integer);
        device.minor = static_cast<int>(capability[1].integer);
    }
    device.total_bytes = static_cast<uint64_t>(json["total_bytes"].integer_or(8ll << 30));
    device.others_bytes = static_cast<uint64_t>(json["reserved_bytes"].integer_or(0)) + used_now(json);
    for (const Json& process : json["processes"].list) {
        device.others_bytes += static_cast<uint64_t>(process["bytes"].integer_or(0));
    }
    device.lost = json["lost"].boolean_or(false);
    for (const Json& instance : json["mig"].list) device.instances.push_back(device_of(instance));
    return device;
}

Script script_of(const Json& json, const Json& gpus) {
    Script script;
    script.gpus = json["gpus"].text_or("");
    script.driver_version = static_cast<int>(gpus["cuda_version"].integer_or(13000));
    for (const Json& device : gpus["devices"].list) script.devices.push_back(device_of(device));
    if (script.gpus.empty()) script.devices.emplace_back();

    script.init_error = static_cast<int>(json["init_error"].integer_or(0));
    script.context_bytes = static_cast<uint64_t>(json["context_bytes"].integer_or(0));
    script.allocation_limit_bytes = static_cast<uint64_t>(json["allocation_limit_bytes"].integer_or(-1));
    script.launches_before_failure = static_cast<uint64_t>(json["launches_before_failure"].integer_or(-1));
    script.failure = static_cast<Error>(json["failure"].integer_or(error::launch_failure));
    script.copy_bytes_per_second = static_cast<uint64_t>(json["copy_bytes_per_second"].integer_or(0));
    script.compute = json["compute"].boolean_or(true);
    script.fresh_memory_byte = static_cast<int>(json["fresh_memory_byte"].integer_or(-1));
    return script;
}

class Reader {
public:
    std::shared_ptr<const Script> look() {
        std::lock_guard lock(mutex_);
        auto now = std::chrono::steady_clock::now();
        if (script_ && now - looked_ < look_again_after) return script_;
        looked_ = now;
        Stamp own = Stamp::of(path_);
        if (script_ && own == own_ && Stamp::of(script_->gpus) == gpus_ && !has_changes_) return script_;
        own_ = own;
        uint64_t generation = script_ ? script_->generation + 1 : 1;
        Json json = path_.empty() ? Json() : read(path_);
        std::string gpus_path = json["gpus"].text_or("");
        gpus_ = Stamp::of(gpus_path);
        Json devices = gpus_path.empty() ? Json() : read(gpus_path);
        Script script = script_of(json, devices);
        script.generation = generation;
        script_ = std::make_shared<const Script>(std::move(script));
        has_changes_ = false;
        for (const Json& device : devices["devices"].list) has_changes_ |= !device["changes"].list.empty();
        return script_;
    }

private:
    std::mutex mutex_;
    const std::string path_ = [] {
        const char* path = std::getenv("CUDA_DOUBLE_SCRIPT");
        return std::string(path ? path : "");
    }();
    std::chrono::steady_clock::time_point looked_;
    Stamp own_, gpus_;
    // Values that change with the time alone.
    bool has_changes_ = false;
    std::shared_ptr<const Script> script_;
};

}  // namespace

std::shared_ptr<const Script> current_script() {
    static Reader* reader = new Reader;  // Lives to the very end of the process: destructors of others still call.
    return reader->look();
}

}  // namespace cuda_double
