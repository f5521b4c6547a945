// Streams, events and graphs.
//
// Work is put into a stream's queue and is done as late as the order of CUDA allows: when a call waits for it. So a
// program that reads a result, or changes a pinned source, without waiting for the copy is seen to be wrong.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "abi.h"

namespace cuda_double {

// One operation of a device. Arguments are held by value; memory is looked up when it runs.
using Work = std::function<void()>;

namespace stream {

struct Graph {
    std::vector<Work> nodes;
    // The number of kernels among them.
    size_t kernels = 0;
};

struct Stream {
    int device = 0;
    bool blocking = true;
    bool alive = true;

    std::deque<Work> queue;
    // How many operations were ever put in, and done.
    uint64_t submitted = 0, done = 0;
    // Until when copies of a scripted speed take, in nanoseconds of the steady clock.
    uint64_t busy_until = 0;

    std::shared_ptr<Graph> captured;
    CaptureMode capture_mode = CaptureMode::Global;
    CaptureStatus capture_status = CaptureStatus::None;
    uint64_t capture_thread = 0;
    // Another stream's capture that this one has joined by waiting for an event of it.
    std::shared_ptr<Stream> joined;
};

struct Event {
    std::shared_ptr<Stream> of;
    uint64_t position = 0;
    uint64_t busy_until = 0;
    uint64_t recorded_at = 0;
    // Recorded in a stream that was being captured.
    std::shared_ptr<Stream> captured_in;
};

enum class Operation { Kernel, Other };

// The stream of a handle, or nothing.
std::shared_ptr<Stream> find(void* handle);
// Puts work into the queue of a stream, or into the graph that is being captured.
CUDA_DOUBLE_SHARED Error submit(void* handle, Operation operation, Work work);
CUDA_DOUBLE_SHARED bool capturing(void* handle);
// Makes the stream busy for as long as a copy of so many bytes takes by the script.
void occupy(void* handle, size_t bytes);

// Does everything that was put into a stream, and waits until it is not busy.
Error synchronize(void* handle);
Error synchronize_all();
// Does what the legacy stream has to wait for.
void settle_for_legacy();

// Whether a call that waits or allocates is refused because of a capture, which it then spoils.
bool interrupts_capture();

}  // namespace stream
}  // namespace cuda_double
