// TopK: the largest (or smallest) values of each row and where they are, by each of the algorithms that ONNX Runtime has
// for it. Equal values keep their order.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../kernel.h"

namespace cuda_double {
namespace {

template <class T>
float comparable(T value) {
    return static_cast<float>(value);
}
inline long comparable(int value) { return value; }
inline long comparable(long value) { return value; }
inline double comparable(double value) { return value; }

// The places of the first `count` of `length` values in the order asked for; NaN comes last.
template <class Value>
std::vector<size_t> select(size_t length, size_t count, bool largest, Value value_at) {
    std::vector<size_t> places(length);
    std::iota(places.begin(), places.end(), 0);
    auto before = [&](size_t a, size_t b) {
        auto x = value_at(a), y = value_at(b);
        bool x_is_number = x == x, y_is_number = y == y;
        if (x_is_number != y_is_number) return x_is_number;
        if (x_is_number && x != y) return largest ? x > y : x < y;
        return a < b;
    };
    count = std::min(count, length);
    std::partial_sort(places.begin(), places.begin() + static_cast<ptrdiff_t>(count), places.end(), before);
    places.resize(count);
    return places;
}

bool in_space(const Launch& launch, const char* space) { return launch.name.space.find(space) != std::string::npos; }

// (T* in, T* values, long* places, sizes, size_t rank, int axis, long K, [long aligned K], long largest, long sorted,
// long length, ...): a block a row. Sizes are products of all dimensions from one on.
Work rows_by_axis(const Launch& launch, int after_k) {
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), values = launch.device<T>(1);
        auto places = launch.device<long>(2);
        auto sizes = launch.value<Longs>(3);
        auto rank = launch.value<long>(4);
        auto axis = launch.value<int>(5);
        auto count = launch.value<size_t>(6);
        bool largest = launch.value<long>(after_k) == 1, sorted = launch.value<long>(after_k + 1) == 1;
        auto length = launch.value<size_t>(after_k + 2);
        size_t rows = launch.grid.x;
        return [=] {
            size_t step = axis == rank - 1 ? 1 : static_cast<size_t>(sizes.data[axis + 1]);
            const T* from = in.at(rows * length);
            T* to = values.at(rows * count);
            long* to_places = places.at(rows * count);
            for (size_t row = 0; row < rows; ++row) {
                const T* start = from + row / step * step * length + row % step;
                auto chosen = select(length, count, largest, [&](size_t n) { return comparable(start[n * step]); });
                if (!sorted) std::sort(chosen.begin(), chosen.end());
                for (size_t n = 0; n < chosen.size(); ++n) {
                    size_t at = row / step * step * count + n * step + row % step;
                    to[at] = start[chosen[n] * step];
                    to_places[at] = static_cast<long>(chosen[n]);
                }
            }
        };
    });
}

}  // namespace

KERNEL(BitonicTopK) { return rows_by_axis(launch, 8); }
KERNEL(RadixTopK) { return rows_by_axis(launch, 7); }

// <T>(T* in, u64* candidates, long length, long K, long largest, int blocks a row): K candidates of each block; rows in y
KERNEL(PartialTopK) {
    if (!in_space(launch, "smallk_topk")) return {};
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0);
        auto candidates = launch.device<uint64_t>(1);
        auto length = launch.value<size_t>(2), count = launch.value<size_t>(3);
        bool largest = launch.value<long>(4) == 1;
        auto blocks = static_cast<size_t>(launch.value<int>(5));
        size_t rows = launch.grid.y;
        return [=] {
            const T* from = in.at(rows * length);
            uint64_t* to = candidates.at(rows * blocks * count);
            for (size_t row = 0; row < rows; ++row) {
                // All of them are the first block's; a candidate is a place, and zero is none.
                auto chosen = select(length, count, largest, [&](size_t n) { return comparable(from[row * length + n]); });
                std::fill(to + row * blocks * count, to + (row + 1) * blocks * count, 0);
                for (size_t n = 0; n < chosen.size(); ++n) to[row * blocks * count + n] = chosen[n] + 1;
            }
        };
    });
}

// <T>(T* in, T* values, long* places, u64* candidates, long length, long K, int candidates a row)
KERNEL(FinalTopK) {
    if (!in_space(launch, "smallk_topk")) return {};
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), values = launch.device<T>(1);
        auto places = launch.device<long>(2);
        auto candidates = launch.device<uint64_t>(3);
        auto length = launch.value<size_t>(4), count = launch.value<size_t>(5);
        auto of_row = static_cast<size_t>(launch.value<int>(6));
        size_t rows = launch.grid.x;
        return [=] {
            const T* from = in.at(rows * length);
            const uint64_t* chosen = candidates.at(rows * of_row);
            for (size_t row = 0; row < rows; ++row) {
                for (size_t n = 0; n < count; ++n) {
                    size_t place = chosen[row * of_row + n] - 1;
                    values.at(rows * count)[row * count + n] = from[row * length + place];
                    places.at(rows * count)[row * count + n] = static_cast<long>(place);
                }
            }
        };
    });
}

// <T, partition, K>(T* in, float* scores, int* places, int length, int partitions): the K best of each partition; rows in y
KERNEL(FindPartitionTopK) {
    if (!in_space(launch, "hybrid_topk")) return {};
    size_t partition = std::stoul(launch.name.arguments[1]), count = std::stoul(launch.name.arguments[2]);
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0);
        auto scores = launch.device<float>(1);
        auto places = launch.device<int>(2);
        auto length = static_cast<size_t>(launch.value<int>(3)), partitions = static_cast<size_t>(launch.value<int>(4));
        size_t rows = launch.grid.y;
        return [=] {
            const T* from = in.at(rows * length);
            size_t results = rows * partitions * count;
            float* to = scores.at(results);
            int* to_places = places.at(results);
            for (size_t n = 0; n < rows * partitions; ++n) {
                size_t first = n % partitions * partition, size = std::min(partition, length - first);
                const T* start = from + n / partitions * length + first;
                auto chosen = select(size, count, true, [&](size_t place) { return comparable(start[place]); });
                for (size_t k = 0; k < count; ++k) {
                    bool there = k < chosen.size();
                    to[n * count + k] = there ? static_cast<float>(start[chosen[k]]) : -INFINITY;
                    to_places[n * count + k] = there ? static_cast<int>(first + chosen[k]) : INT32_MAX;
                }
            }
        };
    });
}

namespace {

struct Candidates {
    DevicePointer<int> places;
    DevicePointer<float> scores;
};

// The best `count` of each `factor` neighbouring partitions.
void merge(const Candidates& from, const Candidates& to, size_t rows, size_t partitions, size_t count, size_t factor) {
    size_t merged = (partitions + factor - 1) / factor;
    const float* scores = from.scores.at(rows * partitions * count);
    const int* places = from.places.at(rows * partitions * count);
    float* to_scores = to.scores.at(rows * merged * count);
    int* to_places = to.places.at(rows * merged * count);
    for (size_t n = 0; n < rows * merged; ++n) {
        size_t first = n % merged * factor, groups = std::min(factor, partitions - first);
        size_t start = (n / merged * partitions + first) * count;
        // Within a partition equal scores are in order, and so are the partitions.
        auto chosen = select(groups * count, count, true, [&](size_t k) { return scores[start + k]; });
        for (size_t k = 0; k < count; ++k) {
            to_scores[n * count + k] = scores[start + chosen[k]];
            to_places[n * count + k] = places[start + chosen[k]];
        }
    }
}

}  // namespace

// <K, .., three factors>(int* places 1, float* scores 1, int* places 2, float* scores 2, int partitions); rows in y
KERNEL(CooperativeReduce) {
    if (!in_space(launch, "hybrid_topk")) return {};
    size_t count = std::stoul(launch.name.arguments[0]);
    std::vector<size_t> factors;
    for (size_t n = 2; n < 5; ++n) factors.push_back(std::stoul(launch.name.arguments[n]));
    Candidates one{launch.device<int>(0), launch.device<float>(1)}, two{launch.device<int>(2), launch.device<float>(3)};
    auto partitions = static_cast<size_t>(launch.value<int>(4));
    size_t rows = launch.grid.y;
    return [=] {
        Candidates from = one, to = two;
        size_t left = partitions;
        for (size_t factor : factors) {
            if (factor == 1) continue;
            merge(from, to, rows, left, count, factor);
            left = (left + factor - 1) / factor;
            std::swap(from, to);
        }
    };
}

// <T>(T* in, int* places, T* values, long* to places, int rows, int length, int K, int stride): a block a row
KERNEL(WriteOutput) {
    if (!in_space(launch, "hybrid_topk")) return {};
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), values = launch.device<T>(2);
        auto chosen = launch.device<int>(1);
        auto places = launch.device<long>(3);
        auto size = [&](int n) { return static_cast<size_t>(launch.value<int>(n)); };
        size_t rows = size(4), length = size(5), count = size(6), stride = size(7);
        return [=] {
            const T* from = in.at(rows * length);
            const int* place = chosen.at(rows * stride);
            for (size_t row = 0; row < rows; ++row) {
                for (size_t n = 0; n < count; ++n) {
                    int at = place[row * stride + n];
                    values.at(rows * count)[row * count + n] = from[row * length + static_cast<size_t>(at)];
                    places.at(rows * count)[row * count + n] = at;
                }
            }
        };
    });
}

}  // namespace cuda_double
