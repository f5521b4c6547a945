// Copies and fills: cudaMemcpy and its relatives.
#include <cstring>
#include <string>

#include "log.h"
#include "memory.h"
#include "runtime.h"
#include "stream.h"

namespace cuda_double {
namespace {

using runtime::call;

// One end of a copy: rows of slices.
struct End {
    char* start;
    size_t pitch, slice;

    char* row(size_t y, size_t z) const { return start + z * slice + y * pitch; }
};

struct Copy {
    End destination, source;
    size_t width, height = 1, depth = 1;

    size_t bytes() const { return width * height * depth; }
};

Copy contiguous(void* destination, const void* source, size_t bytes) {
    return {{static_cast<char*>(destination), bytes, bytes}, {static_cast<char*>(const_cast<void*>(source)), bytes, bytes}, bytes};
}

bool on_device(const End& end) { return memory::device_of(end.start) >= 0; }

// Each row of an end on a device has to lie in an allocation.
bool sound(const Copy& copy, const End& end) {
    if (copy.bytes() == 0 || !on_device(end)) return copy.bytes() == 0 || end.start != nullptr;
    for (size_t z = 0; z < copy.depth; ++z) {
        for (size_t y = 0; y < copy.height; ++y) {
            if (!memory::allocated(end.row(y, z), copy.width)) return false;
        }
    }
    return true;
}

bool fits(const Copy& copy, CopyKind kind) {
    bool from = on_device(copy.source), to = on_device(copy.destination);
    switch (kind) {
        case CopyKind::HostToHost: return !from && !to;
        case CopyKind::HostToDevice: return !from && to;
        case CopyKind::DeviceToHost: return from && !to;
        case CopyKind::DeviceToDevice: return from && to;
        case CopyKind::Default: return true;
    }
    return false;
}

void perform(const Copy& copy) {
    bool from = on_device(copy.source), to = on_device(copy.destination);
    // Weights of a model that nothing is computed with need not be there.
    constexpr size_t large = 1 << 20;
    if (!from && to && copy.bytes() > large && !current_script()->compute) return;
    for (size_t z = 0; z < copy.depth; ++z) {
        for (size_t y = 0; y < copy.height; ++y) {
            char* destination = copy.destination.row(y, z);
            char* source = copy.source.row(y, z);
            std::memmove(to ? memory::shadow(destination, copy.width) : destination,
                         from ? memory::shadow(source, copy.width) : source, copy.width);
        }
    }
}

// `copy:H2D:pageable:async`
std::string name_of(const Copy& copy, bool pageable, bool wait, bool captured) {
    bool from = on_device(copy.source), to = on_device(copy.destination);
    std::string name = captured ? "captured:copy:" : "copy:";
    name += from ? (to ? "D2D" : "D2H") : (to ? "H2D" : "H2H");
    if (!(from && to)) name += pageable ? ":pageable" : ":pinned";
    return name + (wait ? ":sync" : ":async");
}

Error copy_now_or_later(const Copy& copy, CopyKind kind, void* handle, bool wait) {
    if (!fits(copy, kind) || !sound(copy, copy.destination) || !sound(copy, copy.source)) return error::invalid_value;
    if (copy.bytes() == 0) return error::success;
    bool from = on_device(copy.source), to = on_device(copy.destination);
    bool pageable = (!from && !memory::pinned(copy.source.start)) || (!to && !memory::pinned(copy.destination.start));
    bool captured = stream::capturing(handle);
    log(name_of(copy, pageable, wait, captured), copy.bytes());
    if (captured && pageable) {
        stream::interrupts_capture();
        return error::capture_unsupported;
    }

    bool crosses = from != to;
    if (crosses && !captured) stream::occupy(handle, copy.bytes());
    if (captured || (!wait && !pageable)) return stream::submit(handle, stream::Operation::Other, [copy] { perform(copy); });
    // A copy of pageable memory is staged before the call returns, and one into it is done.
    Error submitted = stream::submit(handle, stream::Operation::Other, [copy] { perform(copy); });
    return submitted == error::success ? stream::synchronize(handle) : submitted;
}

Error fill(void* pointer, int value, size_t bytes, void* handle, const char* how) {
    if (bytes == 0) return error::success;
    if (!memory::allocated(pointer, bytes)) return error::invalid_value;
    log(std::string(stream::capturing(handle) ? "captured:memset:" : "memset:") + how, bytes);
    return stream::submit(handle, stream::Operation::Other,
                          [=] { std::memset(memory::shadow(pointer, bytes), value, bytes); });
}

}  // namespace

CUDA_DOUBLE_EXPORT Error cudaMemcpy(void* destination, const void* source, size_t bytes, CopyKind kind) {
    return call(Need::Context, Capture::Refused,
                [&] { return copy_now_or_later(contiguous(destination, source, bytes), kind, nullptr, true); });
}
CUDA_DOUBLE_EXPORT Error cudaMemcpyAsync(void* destination, const void* source, size_t bytes, CopyKind kind, void* handle) {
    return call(Need::Context, Capture::Allowed,
                [&] { return copy_now_or_later(contiguous(destination, source, bytes), kind, handle, false); });
}
CUDA_DOUBLE_EXPORT Error cudaMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source,
                                           size_t source_pitch, size_t width, size_t height, CopyKind kind, void* handle) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        if (width > destination_pitch || width > source_pitch) return error::invalid_value;
        Copy copy = contiguous(destination, source, width);
        copy.destination.pitch = destination_pitch;
        copy.source.pitch = source_pitch;
        copy.height = height;
        return copy_now_or_later(copy, kind, handle, false);
    });
}
CUDA_DOUBLE_EXPORT Error cudaMemcpy3DAsync(const Copy3D* asked, void* handle) {
    return call(Need::Context, Capture::Allowed, [&]() -> Error {
        // Between arrays extents would be counted in elements; there are none here.
        if (asked == nullptr || asked->source_array != nullptr || asked->destination_array != nullptr) return error::invalid_value;
        auto end = [](const PitchedPointer& pointer, const Extent& position) {
            size_t slice = pointer.pitch * pointer.height;
            char* start = static_cast<char*>(pointer.pointer);
            return End{start + position.depth * slice + position.height * pointer.pitch + position.width, pointer.pitch, slice};
        };
        Copy copy{end(asked->destination, asked->destination_position), end(asked->source, asked->source_position),
                  asked->extent.width, asked->extent.height, asked->extent.depth};
        if (copy.width > asked->destination.pitch || copy.width > asked->source.pitch) return error::invalid_value;
        return copy_now_or_later(copy, asked->kind, handle, false);
    });
}
CUDA_DOUBLE_EXPORT Error cudaMemset(void* pointer, int value, size_t bytes) {
    return call(Need::Context, Capture::Refused, [&] { return fill(pointer, value, bytes, nullptr, "sync"); });
}
CUDA_DOUBLE_EXPORT Error cudaMemsetAsync(void* pointer, int value, size_t bytes, void* handle) {
    return call(Need::Context, Capture::Allowed, [&] { return fill(pointer, value, bytes, handle, "async"); });
}

}  // namespace cuda_double
