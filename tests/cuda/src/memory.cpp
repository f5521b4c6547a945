#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "log.h"
#include "runtime.h"
#include "usage.h"

namespace cuda_double::memory {
namespace {

// Addresses are never used twice, so a pointer that was freed stays one that was freed.
constexpr size_t range_bytes = size_t{2} << 40;
constexpr size_t page_bytes = 4096;
// The driver takes memory from the device in pieces of this size.
constexpr uint64_t driver_page_bytes = 2 << 20;

uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

struct Range {
    char* start = nullptr;
    char* shadow = nullptr;
    int file = -1;
    size_t next = 0;
    // By offset.
    std::map<size_t, size_t> allocations;
    uint64_t allocated_bytes = 0;
    uint64_t context_bytes = 0;
    bool context = false;

    bool map() {
        if (start != nullptr) return true;
        file = memfd_create("cuda-double", MFD_CLOEXEC);
        if (file < 0 || ftruncate(file, static_cast<off_t>(range_bytes)) != 0) return false;
        void* hidden = mmap(nullptr, range_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
        void* open = mmap(nullptr, range_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
        if (hidden == MAP_FAILED || open == MAP_FAILED) return false;
        madvise(open, range_bytes, MADV_DONTDUMP);
        start = static_cast<char*>(hidden);
        shadow = static_cast<char*>(open);
        return true;
    }

    uint64_t held() const { return round_up(allocated_bytes, driver_page_bytes) + context_bytes; }

    // The allocation that holds an offset, and where it begins.
    std::map<size_t, size_t>::const_iterator around(size_t offset) const {
        auto next_one = allocations.upper_bound(offset);
        if (next_one == allocations.begin()) return allocations.end();
        auto found = std::prev(next_one);
        return offset < found->first + found->second ? found : allocations.end();
    }
};

struct State {
    std::recursive_mutex mutex;
    std::vector<Range> ranges;
    std::map<uintptr_t, size_t> pinned;
    std::map<uintptr_t, size_t> registered;
    std::unique_ptr<Usage> usage;
};

State& state() {
    static State* state = [] {
        auto* made = new State;
        made->ranges.resize(runtime::devices().size());
        made->usage = std::make_unique<Usage>(current_script()->gpus);
        return made;
    }();
    return *state;
}

uint64_t room(const ScriptedDevice& device) {
    return device.total_bytes > device.others_bytes ? device.total_bytes - device.others_bytes : 0;
}

// Tells the others what this process holds now; false: there is no room for it.
bool share(State& all, int device) {
    std::vector<Held> held;
    for (size_t n = 0; n < all.ranges.size(); ++n) held.push_back({runtime::devices()[n].uuid, all.ranges[n].held()});
    const ScriptedDevice& now = runtime::device_now(device);
    return all.usage->hold(held, now.uuid, room(now));
}

// What becomes smaller has room in any case.
void share_less(State& all) {
    std::vector<Held> held;
    for (size_t n = 0; n < all.ranges.size(); ++n) held.push_back({runtime::devices()[n].uuid, all.ranges[n].held()});
    all.usage->hold(held, "", UINT64_MAX);
}

bool within(const std::map<uintptr_t, size_t>& ranges, const void* pointer) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto next = ranges.upper_bound(address);
    if (next == ranges.begin()) return false;
    auto found = std::prev(next);
    return address < found->first + found->second;
}

}  // namespace

Error create_context(int device) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    Range& range = all.ranges[static_cast<size_t>(device)];
    if (range.context) return error::success;
    if (!range.map()) return error::memory_allocation;
    range.context_bytes = current_script()->context_bytes;
    if (!share(all, device)) {
        range.context_bytes = 0;
        return error::memory_allocation;
    }
    range.context = true;
    log("context", range.context_bytes);
    return error::success;
}

bool has_context(int device) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    return all.ranges[static_cast<size_t>(device)].context;
}

Error allocate(int device, size_t bytes, void** pointer) {
    if (pointer == nullptr) return error::invalid_value;
    *pointer = nullptr;
    if (bytes == 0) return error::success;
    State& all = state();
    std::lock_guard lock(all.mutex);
    Range& range = all.ranges[static_cast<size_t>(device)];
    auto script = current_script();
    uint64_t accounted = round_up(bytes, 512);
    size_t mapped = round_up(bytes, page_bytes);
    if (accounted > script->allocation_limit_bytes ||
        range.allocated_bytes > script->allocation_limit_bytes - accounted || range.next + mapped > range_bytes) {
        log("refused:device", bytes);
        return error::memory_allocation;
    }
    range.allocated_bytes += accounted;
    if (!share(all, device)) {
        range.allocated_bytes -= accounted;
        log("refused:device", bytes);
        return error::memory_allocation;
    }
    // A page between two allocations belongs to none.
    size_t offset = range.next;
    range.next += mapped + page_bytes;
    range.allocations[offset] = bytes;
    if (script->fresh_memory_byte >= 0) std::memset(range.shadow + offset, script->fresh_memory_byte, bytes);
    *pointer = range.start + offset;
    log("alloc:device", bytes);
    return error::success;
}

Error release(void* pointer) {
    if (pointer == nullptr) return error::success;
    int device = device_of(pointer);
    if (device < 0) return error::invalid_value;
    State& all = state();
    std::lock_guard lock(all.mutex);
    Range& range = all.ranges[static_cast<size_t>(device)];
    auto found = range.allocations.find(static_cast<size_t>(static_cast<char*>(pointer) - range.start));
    if (found == range.allocations.end()) return error::invalid_value;
    auto [offset, bytes] = *found;
    range.allocations.erase(found);
    range.allocated_bytes -= round_up(bytes, 512);
    fallocate(range.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(round_up(bytes, page_bytes)));
    share_less(all);
    log("free:device", bytes);
    return error::success;
}

void release_all(int device) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    Range& range = all.ranges[static_cast<size_t>(device)];
    for (auto [offset, bytes] : range.allocations) {
        fallocate(range.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(round_up(bytes, page_bytes)));
    }
    range.allocations.clear();
    range.allocated_bytes = range.context_bytes = 0;
    range.context = false;
    share_less(all);
}

uint64_t total_bytes(int device) { return runtime::device_now(device).total_bytes; }

uint64_t free_bytes(int device) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    const ScriptedDevice& now = runtime::device_now(device);
    uint64_t held = all.ranges[static_cast<size_t>(device)].held() + all.usage->others(now.uuid);
    return room(now) > held ? room(now) - held : 0;
}

int device_of(const void* pointer) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    auto* address = static_cast<const char*>(pointer);
    for (size_t n = 0; n < all.ranges.size(); ++n) {
        const Range& range = all.ranges[n];
        if (range.start != nullptr && address >= range.start && address < range.start + range_bytes) return static_cast<int>(n);
    }
    return -1;
}

bool allocated(const void* pointer, size_t bytes) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    int device = device_of(pointer);
    if (device < 0) return false;
    const Range& range = all.ranges[static_cast<size_t>(device)];
    auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - range.start);
    auto found = range.around(offset);
    return found != range.allocations.end() && bytes <= found->first + found->second - offset;
}

char* shadow(const void* pointer, size_t bytes) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    int device = device_of(pointer);
    if (device < 0 || !allocated(pointer, bytes)) throw IllegalAddress{pointer};
    const Range& range = all.ranges[static_cast<size_t>(device)];
    return range.shadow + (static_cast<const char*>(pointer) - range.start);
}

Error allocate_pinned(size_t bytes, void** pointer) {
    if (pointer == nullptr) return error::invalid_value;
    *pointer = nullptr;
    if (bytes == 0) return error::success;
    if (posix_memalign(pointer, page_bytes, bytes) != 0) return error::memory_allocation;
    State& all = state();
    std::lock_guard lock(all.mutex);
    all.pinned[reinterpret_cast<uintptr_t>(*pointer)] = bytes;
    log("alloc:pinned", bytes);
    return error::success;
}

Error release_pinned(void* pointer) {
    if (pointer == nullptr) return error::success;
    State& all = state();
    std::lock_guard lock(all.mutex);
    auto found = all.pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == all.pinned.end()) return error::invalid_value;
    log("free:pinned", found->second);
    all.pinned.erase(found);
    std::free(pointer);
    return error::success;
}

Error register_pinned(void* pointer, size_t bytes) {
    if (pointer == nullptr || bytes == 0 || device_of(pointer) >= 0) return error::invalid_value;
    State& all = state();
    std::lock_guard lock(all.mutex);
    if (pinned(pointer)) return error::host_memory_already_registered;
    all.registered[reinterpret_cast<uintptr_t>(pointer)] = bytes;
    log("register:pinned", bytes);
    return error::success;
}

Error unregister_pinned(void* pointer) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    return all.registered.erase(reinterpret_cast<uintptr_t>(pointer)) == 1 ? error::success
                                                                          : error::host_memory_not_registered;
}

bool pinned(const void* pointer) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    return within(all.pinned, pointer) || within(all.registered, pointer);
}

}  // namespace cuda_double::memory
