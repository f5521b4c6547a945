// Kernels that make one value of many: sums, the place of the largest value, running sums.
#include <algorithm>
#include <cmath>

#include "bytes.h"

namespace cuda_double {
namespace {

template <class T>
double real(T value) {
    if constexpr (std::is_same_v<T, half>) return float(value);
    else return static_cast<double>(value);
}

template <class T>
T narrow(double value) {
    if constexpr (std::is_same_v<T, half>) return half(static_cast<float>(value));
    else return static_cast<T>(value);
}

}  // namespace

// <In, Out, Acc>(In* in, Out* out, int rows, int columns): adds the sum of each column to what is there
KERNEL(reduce_matrix_rows_kernel) {
    const auto& types = launch.name.arguments;
    auto rows = static_cast<size_t>(launch.value<int>(2)), columns = static_cast<size_t>(launch.value<int>(3));
    if (types[0] != types[1]) return {};
    return with_type(types[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), out = launch.device<T>(1);
        return [=] {
            const T* from = in.at(rows * columns);
            T* to = out.at(columns);
            for (size_t column = 0; column < columns; ++column) {
                double sum = real(to[column]);
                for (size_t row = 0; row < rows; ++row) sum += real(from[row * columns + column]);
                to[column] = narrow<T>(sum);
            }
        };
    });
}

// <In, Out, Acc, of each value, of the sum, mean>(int rows, int columns, In* in, Out* out, ...): the sum of each row
KERNEL(reduce_matrix_columns_kernel) {
    const auto& types = launch.name.arguments;
    bool squares = types[3] == "Square", root = types[4] == "Sqrt", mean = types[5] == "true";
    if ((!squares && types[3] != "Identity") || (!root && types[4] != "Identity")) return {};
    auto rows = static_cast<size_t>(launch.value<int>(0)), columns = static_cast<size_t>(launch.value<int>(1));
    return with_type(types[0], [&](auto in_sample) -> Work {
        using In = decltype(in_sample);
        return with_type(types[1], [&](auto out_sample) -> Work {
            using Out = decltype(out_sample);
            auto in = launch.device<In>(2);
            auto out = launch.device<Out>(3);
            return [=] {
                const In* from = in.at(rows * columns);
                for (size_t row = 0; row < rows; ++row) {
                    double sum = 0;
                    for (size_t column = 0; column < columns; ++column) {
                        double value = real(from[row * columns + column]);
                        sum += squares ? value * value : value;
                    }
                    if (mean) sum /= static_cast<double>(columns);
                    out.at(rows)[row] = narrow<Out>(root ? std::sqrt(sum) : sum);
                }
            };
        });
    });
}

// <T, ...>(T* in, T* out, segments): sums along any axes
KERNEL(reduce_sum_nd_kernel) {
    struct Segments {
        int kept, summed;
        long kept_sizes[16], kept_strides[16], summed_sizes[16], summed_strides[16];
        long outputs, inputs_each;
    };
    auto segments = launch.value<Segments>(2);
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), out = launch.device<T>(1);
        return [=] {
            const Segments& s = segments;
            auto place = [](long n, int count, const long* sizes, const long* strides) {
                long offset = 0;
                for (int segment = count - 1; segment >= 0; --segment) {
                    offset += (segment == 0 ? n : n % sizes[segment]) * strides[segment];
                    n /= sizes[segment];
                }
                return offset;
            };
            const T* from = in.at(static_cast<size_t>(s.outputs * s.inputs_each));
            T* to = out.at(static_cast<size_t>(s.outputs));
            for (long output = 0; output < s.outputs; ++output) {
                long base = place(output, s.kept, s.kept_sizes, s.kept_strides);
                double sum = 0;
                for (long n = 0; n < s.inputs_each; ++n) sum += real(from[base + place(n, s.summed, s.summed_sizes, s.summed_strides)]);
                to[output] = narrow<T>(sum);
            }
        };
    });
}

namespace {

// The place of the largest (or smallest) value of each row; of equal ones the first.
Work extreme_places(const Launch& launch, int in, int out, int rows_at, int columns_at) {
    bool largest = launch.name.arguments[1] == "true";
    auto rows = static_cast<size_t>(launch.value<int>(rows_at)), columns = static_cast<size_t>(launch.value<int>(columns_at));
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto values = launch.device<T>(in);
        auto places = launch.device<long>(out);
        return [=] {
            const T* from = values.at(rows * columns);
            for (size_t row = 0; row < rows; ++row) {
                const T* start = from + row * columns;
                auto less = [](T a, T b) { return real(a) < real(b); };
                const T* found = largest ? std::max_element(start, start + columns, less) : std::min_element(start, start + columns, less);
                places.at(rows)[row] = found - start;
            }
        };
    });
}

}  // namespace

// <T, largest>(T* in, long* out, int rows, int columns)
KERNEL(arg_min_max_last_axis_kernel) { return extreme_places(launch, 0, 1, 2, 3); }
// <T, largest>(int rows, int columns, T* in, long* out, ...)
KERNEL(arg_min_max_last_axis_cooperative_kernel) { return extreme_places(launch, 2, 3, 0, 1); }

namespace {

template <class T>
Work running_sum(DevicePointer<T> in, DevicePointer<T> out, size_t count, size_t length, size_t stride, bool exclusive, bool reverse) {
    return [=] {
        const T* from = in.at(count);
        T* to = out.at(count);
        for (size_t lane = 0; lane < count / length; ++lane) {
            size_t start = lane / stride * length * stride + lane % stride;
            double sum = 0;
            for (size_t n = 0; n < length; ++n) {
                size_t at = start + (reverse ? length - 1 - n : n) * stride;
                if (exclusive) to[at] = narrow<T>(sum);
                sum += real(from[at]);
                if (!exclusive) to[at] = narrow<T>(sum);
            }
        }
    };
}

}  // namespace

// <T>(T* in, DivMod length, DivMod stride, T* out, long n, exclusive, reverse)
KERNEL(_CumSumKernel) {
    size_t length = divisor(launch.value<DivMod>(1)), stride = divisor(launch.value<DivMod>(2));
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        return running_sum<T>(launch.device<T>(0), launch.device<T>(3), launch.value<size_t>(4), length, stride,
                              launch.value<bool>(5), launch.value<bool>(6));
    });
}

// (long* in, long* out, int length, int stride, exclusive, reverse), a block a lane
KERNEL(_CumSumInt64BlockKernel) {
    auto length = static_cast<size_t>(launch.value<int>(2)), stride = static_cast<size_t>(launch.value<int>(3));
    return running_sum<long>(launch.device<long>(0), launch.device<long>(1), launch.grid.x * length, length, stride,
                             launch.value<bool>(4), launch.value<bool>(5));
}

}  // namespace cuda_double
