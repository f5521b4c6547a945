#include "usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace cuda_double {
namespace {

struct Lock {
    explicit Lock(const std::string& path) : descriptor(open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
        flock(descriptor, LOCK_EX);
    }
    ~Lock() { close(descriptor); }
    Lock(const Lock&) = delete;
    int descriptor;
};

// The 22nd field of proc(5)'s stat tells one process from a later one of the same number; 0: it does not live.
uint64_t start_of(const std::string& pid) {
    std::ifstream file("/proc/" + pid + "/stat");
    std::string text{std::istreambuf_iterator<char>(file), {}};
    size_t name_end = text.rfind(')');
    if (name_end == std::string::npos) return 0;
    std::istringstream fields(text.substr(name_end + 1));
    std::string field, state;
    fields >> state;
    for (int number = 4; number <= 22; ++number) fields >> field;
    return state == "Z" || state == "X" ? 0 : std::strtoull(field.c_str(), nullptr, 10);
}

}  // namespace

Usage::Usage(const std::string& gpus) {
    if (gpus.empty()) return;
    folder_ = gpus + ".cuda";
    mkdir(folder_.c_str(), 0777);
    file_ = std::to_string(getpid());
}

bool Usage::hold(const std::vector<Held>& held, const std::string& uuid, uint64_t room_bytes) {
    uint64_t own = 0;
    for (const Held& device : held) own += device.uuid == uuid ? device.bytes : 0;
    if (folder_.empty()) return own <= room_bytes;

    Lock lock(folder_ + "/lock");
    if (own > room_bytes || others_locked(uuid) > room_bytes - own) return false;
    std::ostringstream lines;
    lines << start_of(file_) << '\n';
    for (const Held& device : held) {
        if (device.bytes != 0) lines << device.uuid << ' ' << device.bytes << '\n';
    }
    // One call each: a process that is killed leaves the old content or the new one, or lines that are whole.
    std::string text = lines.str();
    int file = open((folder_ + "/" + file_).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    bool written = file >= 0 && pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
                   ftruncate(file, static_cast<off_t>(text.size())) == 0;
    close(file);
    return written;
}

uint64_t Usage::others(const std::string& uuid) {
    if (folder_.empty()) return 0;
    Lock lock(folder_ + "/lock");
    return others_locked(uuid);
}

uint64_t Usage::others_locked(const std::string& uuid) const {
    uint64_t bytes = 0;
    DIR* entries = opendir(folder_.c_str());
    if (entries == nullptr) return 0;
    while (const dirent* entry = readdir(entries)) {
        std::string name = entry->d_name;
        if (name == file_ || name.find_first_not_of("0123456789") != std::string::npos) continue;
        std::ifstream file(folder_ + "/" + name);
        uint64_t started = 0;
        file >> started;
        if (started == 0 || started != start_of(name)) {
            unlink((folder_ + "/" + name).c_str());
            continue;
        }
        for (Held held; file >> held.uuid >> held.bytes;) bytes += held.uuid == uuid ? held.bytes : 0;
    }
    closedir(entries);
    return bytes;
}

}  // namespace cuda_double
