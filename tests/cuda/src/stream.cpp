#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>

#include "log.h"
#include "memory.h"
#include "runtime.h"

namespace cuda_double::stream {
namespace {

using runtime::call;

struct State {
    // What runs on the devices, one operation at a time; taken before `mutex`.
    std::recursive_mutex executing;
    std::recursive_mutex mutex;
    // By handle; the legacy stream's is null.
    std::unordered_map<void*, std::shared_ptr<Stream>> streams;
    std::set<std::shared_ptr<Stream>> captures;
};

State& state() {
    static State* state = [] {
        auto* made = new State;
        made->streams[nullptr] = std::make_shared<Stream>();
        return made;
    }();
    return *state;
}

// cudaStreamLegacy and cudaStreamPerThread are small numbers, and mean the legacy stream here.
void* plain(void* handle) { return reinterpret_cast<uintptr_t>(handle) <= 2 ? nullptr : handle; }

uint64_t now() {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

uint64_t this_thread() { return std::hash<std::thread::id>{}(std::this_thread::get_id()); }

void wait_until(uint64_t moment) {
    if (uint64_t at = now(); at < moment) std::this_thread::sleep_for(std::chrono::nanoseconds(moment - at));
}

void execute(const Work& work) {
    if (runtime::lost() != error::success) return;
    try {
        work();
    } catch (const IllegalAddress& illegal) {
        std::fprintf(stderr, "cuda-double: illegal access to device memory at %p\n", illegal.address);
        runtime::lose(error::illegal_address);
    }
}

// Does the operations of a stream up to a position.
void run(const std::shared_ptr<Stream>& stream, uint64_t position) {
    State& all = state();
    std::lock_guard executing(all.executing);
    for (;;) {
        Work work;
        {
            std::lock_guard lock(all.mutex);
            if (stream->done >= position || stream->queue.empty()) return;
            work = std::move(stream->queue.front());
            stream->queue.pop_front();
            ++stream->done;
        }
        execute(work);
    }
}

void run(const std::shared_ptr<Stream>& stream) { run(stream, UINT64_MAX); }

std::vector<std::shared_ptr<Stream>> all_streams(bool blocking_only) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    std::vector<std::shared_ptr<Stream>> found;
    for (const auto& [handle, stream] : all.streams) {
        if (!blocking_only || stream->blocking) found.push_back(stream);
    }
    return found;
}

// The stream whose capture a stream takes part in, or nothing.
std::shared_ptr<Stream> origin(const std::shared_ptr<Stream>& stream) {
    if (stream->captured) return stream;
    if (stream->joined && stream->joined->captured) return stream->joined;
    return nullptr;
}

}  // namespace

std::shared_ptr<Stream> find(void* handle) {
    State& all = state();
    std::lock_guard lock(all.mutex);
    auto found = all.streams.find(plain(handle));
    return found == all.streams.end() ? nullptr : found->second;
}

bool capturing(void* handle) {
    auto stream = find(handle);
    std::lock_guard lock(state().mutex);
    return stream && origin(stream);
}

void settle_for_legacy() {
    for (const auto& stream : all_streams(true)) run(stream);
}

Error submit(void* handle, Operation operation, Work work) {
    auto stream = find(handle);
    if (!stream) return error::invalid_resource_handle;
    State& all = state();
    {
        std::lock_guard lock(all.mutex);
        if (auto capture = origin(stream)) {
            if (capture->capture_status == CaptureStatus::Invalidated) return error::capture_invalidated;
            capture->captured->nodes.push_back(std::move(work));
            capture->captured->kernels += operation == Operation::Kernel ? 1 : 0;
            return error::success;
        }
    }
    if (operation == Operation::Kernel && !runtime::count_launch()) return error::success;
    // The legacy stream and each blocking one wait for one another. To do the earlier work now is one of the orders.
    if (plain(handle) == nullptr) {
        settle_for_legacy();
    } else if (stream->blocking) {
        run(find(nullptr));
    }
    std::lock_guard lock(all.mutex);
    stream->queue.push_back(std::move(work));
    ++stream->submitted;
    return error::success;
}

void occupy(void* handle, size_t bytes) {
    uint64_t speed = current_script()->copy_bytes_per_second;
    auto stream = find(handle);
    if (speed == 0 || !stream) return;
    std::lock_guard lock(state().mutex);
    auto takes = static_cast<uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(speed));
    stream->busy_until = std::max(stream->busy_until, now()) + takes;
}

Error synchronize(void* handle) {
    auto stream = find(handle);
    if (!stream) return error::invalid_resource_handle;
    if (plain(handle) == nullptr) settle_for_legacy();
    run(stream);
    uint64_t until = 0;
    {
        std::lock_guard lock(state().mutex);
        until = stream->busy_until;
    }
    wait_until(until);
    return runtime::lost();
}

Error synchronize_all() {
    for (const auto& stream : all_streams(false)) {
        run(stream);
        wait_until(stream->busy_until);
    }
    return runtime::lost();
}

bool interrupts_capture() {
    State& all = state();
    std::lock_guard lock(all.mutex);
    bool spoiled = false;
    for (const auto& stream : all.captures) {
        bool here = stream->capture_thread == this_thread();
        if (stream->capture_mode == CaptureMode::Relaxed) continue;
        if (stream->capture_mode == CaptureMode::ThreadLocal && !here) continue;
        stream->capture_status = CaptureStatus::Invalidated;
        spoiled = true;
    }
    return spoiled;
}

namespace {

Error create(void** handle, bool blocking) {
    if (handle == nullptr) return error::invalid_value;
    State& all = state();
    auto made = std::make_shared<Stream>();
    made->device = runtime::current_device();
    made->blocking = blocking;
    std::lock_guard lock(all.mutex);
    *handle = std::malloc(64);
    all.streams[*handle] = made;
    return error::success;
}

Error destroy(void* handle) {
    auto stream = find(handle);
    if (!stream || plain(handle) == nullptr) return error::invalid_resource_handle;
    run(stream);
    State& all = state();
    std::lock_guard lock(all.mutex);
    all.streams.erase(handle);
    all.captures.erase(stream);
    std::free(handle);
    return error::success;
}

Error record(Event* event, void* handle) {
    auto stream = find(handle);
    if (event == nullptr || !stream) return error::invalid_resource_handle;
    if (plain(handle) == nullptr) settle_for_legacy();
    std::lock_guard lock(state().mutex);
    event->captured_in = origin(stream);
    if (event->captured_in) return error::success;
    event->of = stream;
    event->position = stream->submitted;
    event->recorded_at = now();
    event->busy_until = std::max(stream->busy_until, event->recorded_at);
    return error::success;
}

// Does what an event stands for.
void run(const Event& event) {
    if (event.of) run(event.of, event.position);
}

Error wait(void* handle, Event* event) {
    auto stream = find(handle);
    if (event == nullptr || !stream) return error::invalid_resource_handle;
    Event at = [&] {
        std::lock_guard lock(state().mutex);
        return *event;
    }();
    if (at.captured_in) {
        std::lock_guard lock(state().mutex);
        if (stream != at.captured_in) stream->joined = at.captured_in;
        return error::success;
    }
    if (!at.of) return error::success;
    {
        std::lock_guard lock(state().mutex);
        stream->busy_until = std::max(stream->busy_until, at.busy_until);
    }
    return submit(handle, Operation::Other, [at] { run(at); });
}

Error begin_capture(void* handle, CaptureMode mode) {
    auto stream = find(handle);
    // The legacy stream cannot be captured.
    if (!stream) return error::invalid_resource_handle;
    if (plain(handle) == nullptr) return error::capture_unsupported;
    State& all = state();
    std::lock_guard lock(all.mutex);
    if (origin(stream)) return error::capture_unsupported;
    stream->captured = std::make_shared<Graph>();
    stream->capture_mode = mode;
    stream->capture_status = CaptureStatus::Active;
    stream->capture_thread = this_thread();
    all.captures.insert(stream);
    log("graph:capture");
    return error::success;
}

Error end_capture(void* handle, void** graph) {
    auto stream = find(handle);
    if (!stream || graph == nullptr) return error::invalid_value;
    State& all = state();
    std::lock_guard lock(all.mutex);
    if (!stream->captured) return error::capture_unmatched;
    auto captured = std::exchange(stream->captured, nullptr);
    auto status = std::exchange(stream->capture_status, CaptureStatus::None);
    all.captures.erase(stream);
    *graph = nullptr;
    if (status == CaptureStatus::Invalidated) return error::capture_invalidated;
    *graph = new std::shared_ptr<Graph>(captured);
    return error::success;
}

Error launch(void* executable, void* handle) {
    if (executable == nullptr) return error::invalid_value;
    auto graph = *static_cast<std::shared_ptr<Graph>*>(executable);
    log("graph:launch", graph->nodes.size());
    for (size_t n = 0; n < graph->kernels; ++n) {
        if (!runtime::count_launch()) return error::success;
    }
    return submit(handle, Operation::Other, [graph] {
        for (const Work& work : graph->nodes) work();
    });
}

Error copy_graph(void** executable, void* graph) {
    if (executable == nullptr || graph == nullptr) return error::invalid_value;
    *executable = new std::shared_ptr<Graph>(*static_cast<std::shared_ptr<Graph>*>(graph));
    log("graph:instantiate");
    return error::success;
}

Error drop_graph(void* graph) {
    delete static_cast<std::shared_ptr<Graph>*>(graph);
    return error::success;
}

}  // namespace

CUDA_DOUBLE_EXPORT Error cudaStreamCreate(void** handle) {
    return call(Need::Context, Capture::Allowed, [&] { return create(handle, true); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamCreateWithFlags(void** handle, unsigned flags) {
    return call(Need::Context, Capture::Allowed, [&] { return create(handle, flags == 0); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamCreateWithPriority(void** handle, unsigned flags, int) {
    return call(Need::Context, Capture::Allowed, [&] { return create(handle, flags == 0); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamDestroy(void* handle) {
    return call(Need::Driver, Capture::Allowed, [&] { return destroy(handle); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamSynchronize(void* handle) {
    log("sync:stream");
    return call(Need::Context, Capture::Refused, [&] { return synchronize(handle); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamQuery(void* handle) {
    log("query:stream");
    return call(Need::Context, Capture::Refused, [&]() -> Error {
        auto stream = find(handle);
        if (!stream) return error::invalid_resource_handle;
        run(stream);
        std::lock_guard lock(state().mutex);
        return now() < stream->busy_until ? error::not_ready : runtime::lost();
    });
}
CUDA_DOUBLE_EXPORT Error cudaStreamWaitEvent(void* handle, Event* event, unsigned) {
    log("wait:event");
    return call(Need::Context, Capture::Allowed, [&] { return wait(handle, event); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamIsCapturing(void* handle, CaptureStatus* status) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        auto stream = find(handle);
        if (!stream) return error::invalid_resource_handle;
        std::lock_guard lock(state().mutex);
        auto capture = origin(stream);
        *status = capture ? capture->capture_status : CaptureStatus::None;
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaStreamBeginCapture(void* handle, CaptureMode mode) {
    return call(Need::Context, Capture::Allowed, [&] { return begin_capture(handle, mode); });
}
CUDA_DOUBLE_EXPORT Error cudaStreamEndCapture(void* handle, void** graph) {
    return call(Need::Context, Capture::Allowed, [&] { return end_capture(handle, graph); });
}
CUDA_DOUBLE_EXPORT Error cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
    return call(Need::Context, Capture::Allowed, [&] { return copy_graph(executable, graph); });
}
CUDA_DOUBLE_EXPORT Error cudaGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return call(Need::Context, Capture::Allowed, [&] { return copy_graph(executable, graph); });
}
CUDA_DOUBLE_EXPORT Error cudaGraphLaunch(void* executable, void* handle) {
    return call(Need::Context, Capture::Allowed, [&] { return launch(executable, handle); });
}
CUDA_DOUBLE_EXPORT Error cudaGraphDestroy(void* graph) {
    return call(Need::Driver, Capture::Allowed, [&] { return drop_graph(graph); });
}
CUDA_DOUBLE_EXPORT Error cudaGraphExecDestroy(void* executable) {
    return call(Need::Driver, Capture::Allowed, [&] { return drop_graph(executable); });
}

CUDA_DOUBLE_EXPORT Error cudaEventCreateWithFlags(Event** event, unsigned) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        if (event == nullptr) return error::invalid_value;
        *event = new Event;
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaEventCreate(Event** event) { return cudaEventCreateWithFlags(event, 0); }
CUDA_DOUBLE_EXPORT Error cudaEventDestroy(Event* event) {
    return call(Need::Driver, Capture::Allowed, [&] {
        delete event;
        return error::success;
    });
}
CUDA_DOUBLE_EXPORT Error cudaEventRecord(Event* event, void* handle) {
    log("record:event");
    return call(Need::Context, Capture::Allowed, [&] { return record(event, handle); });
}
CUDA_DOUBLE_EXPORT Error cudaEventRecordWithFlags(Event* event, void* handle, unsigned) {
    return cudaEventRecord(event, handle);
}
CUDA_DOUBLE_EXPORT Error cudaEventSynchronize(Event* event) {
    log("sync:event");
    return call(Need::Context, Capture::Refused, [&]() -> Error {
        if (event == nullptr) return error::invalid_resource_handle;
        run(*event);
        wait_until(event->busy_until);
        return runtime::lost();
    });
}
CUDA_DOUBLE_EXPORT Error cudaEventQuery(Event* event) {
    log("query:event");
    return call(Need::Context, Capture::Refused, [&]() -> Error {
        if (event == nullptr) return error::invalid_resource_handle;
        run(*event);
        return now() < event->busy_until ? error::not_ready : runtime::lost();
    });
}
CUDA_DOUBLE_EXPORT Error cudaEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        if (milliseconds == nullptr || from == nullptr || to == nullptr) return error::invalid_value;
        *milliseconds = static_cast<float>(static_cast<double>(to->busy_until - from->busy_until) * 1e-6);
        return error::success;
    });
}

CUDA_DOUBLE_EXPORT Error cudaLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    log("host-function");
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        Error submitted = submit(handle, Operation::Other, [=] { function(argument); });
        // A thread may wait for the function and not for the stream.
        if (submitted == error::success && !capturing(handle)) run(find(handle));
        return submitted;
    });
}

CUDA_DOUBLE_EXPORT Error cudaDeviceSynchronize() {
    log("sync:device");
    return call(Need::Context, Capture::Refused, synchronize_all);
}

}  // namespace cuda_double::stream
