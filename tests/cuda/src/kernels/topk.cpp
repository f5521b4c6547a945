// The largest values of each row, and where they lie: the kernels of ONNX Runtime's `TopK`. It has three ways, by the
// number of rows and their length; each writes the largest first, and of equals the one that lies first.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "../kernel.h"

namespace cuda_double {
namespace {

struct Entry {
    float value;
    long index;
};

bool before(const Entry& a, const Entry& b) { return a.value > b.value || (a.value == b.value && a.index < b.index); }

// The first `count` of `entries` in their order.
void keep_largest(std::vector<Entry>& entries, size_t count) {
    count = std::min(count, entries.size());
    std::partial_sort(entries.begin(), entries.begin() + static_cast<long>(count), entries.end(), before);
    entries.resize(count);
}

std::vector<Entry> largest(const float* row, long length, long count, long first_index = 0) {
    std::vector<Entry> entries;
    for (long n = 0; n < length; ++n) {
        // Not a number is smaller than everything.
        float value = row[n] == row[n] ? row[n] : -std::numeric_limits<float>::infinity();
        entries.push_back({value, first_index + n});
    }
    keep_largest(entries, static_cast<size_t>(count));
    return entries;
}

void write_rows(const float* from, float* values, long* indices, long rows, long length, long count) {
    for (long row = 0; row < rows; ++row) {
        auto entries = largest(from + row * length, length, count);
        for (size_t n = 0; n < entries.size(); ++n) {
            values[row * count + static_cast<long>(n)] = from[row * length + entries[n].index];
            indices[row * count + static_cast<long>(n)] = entries[n].index;
        }
    }
}

// <float, partition, K>(float* in, float* values, int* indices, int length, int partitions); grid: partitions, rows
KERNEL(FindPartitionTopK) {
    if (launch.name.arguments[0] != "float") return {};
    long partition = std::stol(launch.name.arguments[1]), kept = std::stol(launch.name.arguments[2]);
    auto in = launch.device<float>(0), values = launch.device<float>(1);
    auto indices = launch.device<int>(2);
    long length = launch.value<int>(3), partitions = launch.value<int>(4), rows = launch.grid.y;
    return [=] {
        const float* from = in.at(static_cast<size_t>(rows * length));
        float* to = values.at(static_cast<size_t>(rows * partitions * kept));
        int* at = indices.at(static_cast<size_t>(rows * partitions * kept));
        for (long block = 0; block < rows * partitions; ++block) {
            long row = block / partitions, start = block % partitions * partition;
            auto entries = largest(from + row * length + start, std::min(partition, length - start), kept, start);
            entries.resize(static_cast<size_t>(kept), {-std::numeric_limits<float>::infinity(), 0});
            for (long n = 0; n < kept; ++n) {
                to[block * kept + n] = entries[static_cast<size_t>(n)].value;
                at[block * kept + n] = static_cast<int>(entries[static_cast<size_t>(n)].index);
            }
        }
    };
}

// <K, block, factor, factor, factor>(int* indices, float* values, int* other indices, float* other values, int partitions):
// each factor above one merges so many partitions, from one pair of buffers into the other and back; grid: x, rows
KERNEL(CooperativeReduce) {
    long kept = std::stol(launch.name.arguments[0]);
    long stages = 0;
    for (size_t n = 2; n < 5; ++n) stages += std::stol(launch.name.arguments[n]) > 1;
    auto indices = launch.device<int>(0), other_indices = launch.device<int>(2);
    auto values = launch.device<float>(1), other_values = launch.device<float>(3);
    long partitions = launch.value<int>(4), rows = launch.grid.y;
    auto final_indices = stages % 2 ? other_indices : indices;
    auto final_values = stages % 2 ? other_values : values;
    return [=] {
        auto all = static_cast<size_t>(rows * partitions * kept);
        const int* at = indices.at(all);
        const float* from = values.at(all);
        std::vector<Entry> found;
        for (long row = 0; row < rows; ++row) {
            std::vector<Entry> entries;
            for (long n = 0; n < partitions * kept; ++n) {
                long place = row * partitions * kept + n;
                entries.push_back({from[place], at[place]});
            }
            keep_largest(entries, static_cast<size_t>(kept));
            found.insert(found.end(), entries.begin(), entries.end());
        }
        int* to = final_indices.at(found.size());
        float* to_values = final_values.at(found.size());
        for (size_t n = 0; n < found.size(); ++n) {
            to[n] = static_cast<int>(found[n].index);
            to_values[n] = found[n].value;
        }
    };
}

// <float>(float* in, int* indices, float* values, long* indices out, int rows, int length, int K padded, int K)
KERNEL(WriteOutput) {
    if (launch.name.arguments[0] != "float") return {};
    auto in = launch.device<float>(0), values = launch.device<float>(2);
    auto indices = launch.device<int>(1);
    auto out = launch.device<long>(3);
    long rows = launch.grid.x, length = launch.value<int>(5), padded = launch.value<int>(6), count = launch.value<int>(7);
    return [=] {
        const float* from = in.at(static_cast<size_t>(rows * length));
        const int* at = indices.at(static_cast<size_t>(rows * padded));
        float* to = values.at(static_cast<size_t>(rows * count));
        long* to_indices = out.at(static_cast<size_t>(rows * count));
        for (long row = 0; row < rows; ++row) {
            for (long n = 0; n < count; ++n) {
                int index = at[row * padded + n];
                to[row * count + n] = from[row * length + index];
                to_indices[row * count + n] = index;
            }
        }
    };
}

// <float>(float* in, unsigned long* packed, long ..., long ..., long ..., int ...): `FinalTopK` looks at all of a row again,
// so nothing needs to be remembered here.
KERNEL(PartialTopK) {
    if (launch.name.arguments[0] != "float") return {};
    return [] {};
}

// <float>(float* in, float* values, long* indices, unsigned long* packed, long length, long K, int ...); grid: rows
KERNEL(FinalTopK) {
    if (launch.name.arguments[0] != "float") return {};
    auto in = launch.device<float>(0), values = launch.device<float>(1);
    auto indices = launch.device<long>(2);
    long length = launch.value<long>(4), count = launch.value<long>(5), rows = launch.grid.x;
    return [=] {
        write_rows(in.at(static_cast<size_t>(rows * length)), values.at(static_cast<size_t>(rows * count)),
                   indices.at(static_cast<size_t>(rows * count)), rows, length, count);
    };
}

// <float, threads, per thread>(float* in, float* values, long* indices, sizes, size_t rank, int axis, long K, long largest,
// long sorted, long length, ...): along the last axis; grid: rows
KERNEL(RadixTopK) {
    if (launch.name.arguments[0] != "float") return {};
    bool last_axis = launch.value<int>(5) + 1 == static_cast<int>(launch.value<size_t>(4));
    if (!last_axis || !launch.value<long>(7) || !launch.value<long>(8)) return {};
    auto in = launch.device<float>(0), values = launch.device<float>(1);
    auto indices = launch.device<long>(2);
    long count = launch.value<long>(6), length = launch.value<long>(9), rows = launch.grid.x;
    return [=] {
        write_rows(in.at(static_cast<size_t>(rows * length)), values.at(static_cast<size_t>(rows * count)),
                   indices.at(static_cast<size_t>(rows * count)), rows, length, count);
    };
}

}  // namespace
}  // namespace cuda_double
