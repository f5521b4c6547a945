#include "fatbin.h"

#include <cstdint>
#include <cstring>

namespace cuda_double {
namespace {

// The layout is not documented by NVIDIA; these fields are the same in all versions since CUDA 6, and cuobjdump shows
// them.
struct Wrapper {
    uint32_t magic, version;
    const char* data;
};

struct Head {
    uint32_t magic;
    uint16_t version, head_bytes;
    uint64_t bytes;
};

struct Entry {
    uint16_t kind, version;
    uint32_t head_bytes;
    uint64_t bytes;
    uint32_t compressed_bytes, options_bytes;
    uint16_t minor, major;
    uint32_t architecture;
    uint32_t name_offset, name_bytes;
    uint64_t flags;
};

constexpr uint32_t head_magic = 0xba55ed50;
constexpr uint16_t kind_ptx = 1, kind_elf = 2;
// `sm_90a`, `sm_120a`: code with features that later architectures of the family do not have.
constexpr uint64_t flag_specific = 0x100000;

}  // namespace

std::vector<CodeObject> code_objects(const void* wrapper) {
    std::vector<CodeObject> objects;
    const char* at = static_cast<const Wrapper*>(wrapper)->data;
    Head head;
    std::memcpy(&head, at, sizeof head);
    if (head.magic != head_magic) return objects;
    at += head.head_bytes;
    for (const char* end = at + head.bytes; at < end;) {
        Entry entry;
        std::memcpy(&entry, at, sizeof entry);
        if (entry.head_bytes == 0) break;
        CodeObject object;
        object.architecture = static_cast<int>(entry.architecture);
        object.portable = entry.kind == kind_ptx;
        object.specific = (entry.flags & flag_specific) != 0;
        if (entry.kind == kind_ptx || entry.kind == kind_elf) objects.push_back(object);
        at += entry.head_bytes + entry.bytes;
    }
    return objects;
}

bool runs_on(const std::vector<CodeObject>& objects, int major, int minor) {
    for (const CodeObject& object : objects) {
        int of_major = object.architecture / 10, of_minor = object.architecture % 10;
        bool same_family = of_major == major && of_minor <= minor && !(object.specific && of_minor != minor);
        bool later = object.portable && object.architecture <= major * 10 + minor;
        if (same_family || later) return true;
    }
    return false;
}

}  // namespace cuda_double
