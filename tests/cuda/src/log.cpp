#include "log.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <unordered_map>

namespace cuda_double {
namespace {

constexpr size_t names_max = 8192, name_bytes = 256, records_max = 20'000'000;

struct Head {
    char magic[8];
    uint32_t process;
    std::atomic<uint32_t> names;
    std::atomic<uint64_t> records, without_room;
};

struct Record {
    uint32_t name, thread;
    uint64_t bytes, nanoseconds;
};

constexpr size_t names_at = 4096, records_at = names_at + names_max * name_bytes,
                 file_bytes = records_at + records_max * sizeof(Record);

uint64_t nanoseconds_now() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

class File {
public:
    File() {
        const char* folder = std::getenv("CUDA_DOUBLE_LOG");
        if (folder == nullptr || *folder == '\0') return;
        mkdir(folder, 0777);
        std::string path = std::string(folder) + "/" + std::to_string(getpid()) + "-" + std::to_string(nanoseconds_now());
        int file = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
        // Sparse: the file takes as much of the disk as it has records.
        if (file < 0 || ftruncate(file, file_bytes) != 0) {
            std::fprintf(stderr, "cuda-double: the log %s cannot be written\n", path.c_str());
            if (file >= 0) close(file);
            return;
        }
        void* mapped = mmap(nullptr, file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (mapped == MAP_FAILED) return;
        start_ = static_cast<char*>(mapped);
        head()->process = static_cast<uint32_t>(getpid());
        std::memcpy(head()->magic, "CUDADBL1", 8);
    }

    bool open_for_records() const { return start_ != nullptr; }

    int name(const std::string& text) {
        std::lock_guard lock(mutex_);
        auto [found, added] = numbers_.try_emplace(text, static_cast<int>(numbers_.size()));
        if (added && start_ != nullptr && numbers_.size() <= names_max) {
            std::memcpy(start_ + names_at + static_cast<size_t>(found->second) * name_bytes, text.data(),
                        std::min(text.size(), name_bytes - 1));
            head()->names = static_cast<uint32_t>(numbers_.size());
        }
        return found->second;
    }

    void record(int name, size_t bytes) {
        static thread_local const auto thread = static_cast<uint32_t>(gettid());
        uint64_t index = head()->records.load();
        do {
            if (index == records_max) {
                ++head()->without_room;
                return;
            }
        } while (!head()->records.compare_exchange_weak(index, index + 1));
        auto* records = reinterpret_cast<Record*>(start_ + records_at);
        records[index] = {static_cast<uint32_t>(name), thread, bytes, nanoseconds_now()};
    }

private:
    char* start_ = nullptr;
    std::mutex mutex_;
    std::unordered_map<std::string, int> numbers_;

    Head* head() const { return reinterpret_cast<Head*>(start_); }
};

File& file() {
    static File* file = new File;  // Lives to the very end of the process.
    return *file;
}

}  // namespace

bool logging() { return file().open_for_records(); }

int log_name(const std::string& name) { return file().name(name); }

void log(int name, size_t bytes) {
    if (logging()) file().record(name, bytes);
}

void log(const std::string& name, size_t bytes) {
    if (logging()) file().record(file().name(name), bytes);
}

}  // namespace cuda_double
