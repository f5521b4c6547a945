// Kernels that move values: whatever the values are, only their size counts.
#include <algorithm>
#include <functional>
#include <vector>

#include "bytes.h"

namespace cuda_double {
// <grid, rank, T>(starts, steps, input strides, output dimensions, T* in, T* out, n)
KERNEL(_SliceKernel) {
    Bytes values = values_of(launch, 2);
    if (values.size == 0 || launch.name.arguments[0] != "false") return {};
    int rank = std::stoi(launch.name.arguments[1]);
    auto starts = launch.value<Longs>(0), steps = launch.value<Longs>(1), strides = launch.value<Longs>(2);
    auto dimensions = launch.value<Divisors>(3);
    auto in = launch.device<char>(4), out = launch.device<char>(5);
    auto count = static_cast<size_t>(launch.value<int>(6));
    return [=] {
        char* to = out.at(count * values.size);
        auto source = [&](size_t n) {
            long at = 0;
            for (int d = 0; d < rank - 1; ++d) {
                size_t size = divisor(dimensions.data[d]);
                at += (starts.data[d] + static_cast<long>(n / size) * steps.data[d]) * strides.data[d];
                n %= size;
            }
            return static_cast<size_t>(at + starts.data[rank - 1] + static_cast<long>(n) * steps.data[rank - 1]);
        };
        size_t last = 0;
        for (size_t n = 0; n < count; ++n) last = std::max(last, source(n));
        const char* from = in.at(count == 0 ? 0 : (last + 1) * values.size);
        for (size_t n = 0; n < count; ++n) values.copy(to, n, from, source(n));
    };
}

namespace {

// Addresses that a kernel is given: up to 32 by value, more on the device.
std::function<std::vector<const void*>(size_t)> addresses_of(const Launch& launch, int n, const std::string& type) {
    if (type.find("Array") != std::string::npos) {
        auto array = launch.value<Array<const void*, 32>>(n);
        return [array](size_t count) { return std::vector<const void*>(array.data, array.data + std::min<size_t>(count, 32)); };
    }
    auto addresses = launch.device<const void*>(n);
    return [addresses](size_t count) { return std::vector<const void*>(addresses.at(count), addresses.at(count) + count); };
}

}  // namespace

// <T, inputs>(DivMod axis and inner, DivMod inner, DivMod axis of each input, T* out, inputs, n)
KERNEL(_ConcatKernelSameConcatDim) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1)), axis = divisor(launch.value<DivMod>(2));
    auto out = launch.device<char>(3);
    auto addresses = addresses_of(launch, 4, launch.name.arguments[1]);
    auto count = static_cast<size_t>(launch.value<int>(5));
    return [=] {
        char* to = out.at(count * values.size);
        size_t inputs = outer / inner / axis, input_count = count / inputs;
        std::vector<const char*> from;
        for (const void* input : addresses(inputs)) from.push_back(DevicePointer<char>{input}.at(input_count * values.size));
        for (size_t n = 0; n < count; ++n) {
            size_t along = n % outer / inner;
            values.copy(to, n, from[along / axis], (n / outer * axis + along % axis) * inner + n % inner);
        }
    };
}

// <T>(DivMod axis and inner, DivMod inner, ends of the inputs along the axis, T* out, inputs, n)
KERNEL(_ConcatKernelOutputMajor) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1));
    auto ends = launch.value<Array<long, 32>>(2);
    auto out = launch.device<char>(3);
    auto inputs = launch.value<Array<const void*, 32>>(4);
    auto count = static_cast<size_t>(launch.value<int>(5));
    return [=] {
        char* to = out.at(count * values.size);
        size_t rows = count / outer, start = 0;
        for (int n = 0; n < inputs.size; ++n) {
            size_t width = (static_cast<size_t>(ends.data[n]) - start) * inner;
            const char* from = DevicePointer<char>{inputs.data[n]}.at(rows * width * values.size);
            for (size_t row = 0; row < rows; ++row) {
                std::memcpy(to + (row * outer + start * inner) * values.size, from + row * width * values.size, width * values.size);
            }
            start = static_cast<size_t>(ends.data[n]);
        }
    };
}

// <T>(sizes in bytes, void* in, void* out[], long inner bytes, int n): pieces of T
KERNEL(_SplitSmallInnerKernel) {
    Bytes piece = values_of(launch, 0);
    if (piece.size == 0) return {};
    auto sizes = launch.value<Array<long, 4>>(0);
    auto in = launch.device<char>(1);
    auto outs = launch.value<Array<void*, 4>>(2);
    auto inner = launch.value<size_t>(3);
    size_t bytes = static_cast<size_t>(launch.value<int>(4)) * piece.size;
    return [=] {
        const char* from = in.at(bytes);
        size_t rows = bytes / inner, start = 0;
        for (int n = 0; n < sizes.size; ++n) {
            auto size = static_cast<size_t>(sizes.data[n]);
            char* to = DevicePointer<char>{outs.data[n]}.at(rows * size);
            for (size_t row = 0; row < rows; ++row) std::memcpy(to + row * size, from + row * inner + start, size);
            start += size;
        }
    };
}

// <T, outputs>(DivMod axis and inner, DivMod inner, DivMod axis of each output, int outputs, T* in, outputs, n)
KERNEL(_SplitKernelSameSplitDim) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1)), axis = divisor(launch.value<DivMod>(2));
    auto outputs = static_cast<size_t>(launch.value<int>(3));
    auto in = launch.device<char>(4);
    auto addresses = addresses_of(launch, 5, launch.name.arguments[1]);
    auto count = static_cast<size_t>(launch.value<int>(6));
    return [=] {
        const char* from = in.at(count * values.size);
        std::vector<char*> to;
        for (const void* output : addresses(outputs)) to.push_back(DevicePointer<char>{output}.at(count / outputs * values.size));
        for (size_t n = 0; n < count; ++n) {
            size_t along = n % outer / inner;
            values.copy(to[along / axis], (n / outer * axis + along % axis) * inner + n % inner, from, n);
        }
    };
}

// <T>(DivMod axis and inner, DivMod inner, long* sizes, long* ends, long* output of each place, int outputs, T* in, void** out, n)
KERNEL(_SplitKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1));
    auto sizes = launch.device<long>(2);
    auto outputs = static_cast<size_t>(launch.value<int>(5));
    auto in = launch.device<char>(6);
    auto addresses = launch.device<void*>(7);
    auto count = static_cast<size_t>(launch.value<int>(8));
    return [=] {
        const char* from = in.at(count * values.size);
        size_t rows = count / outer, start = 0;
        for (size_t n = 0; n < outputs; ++n) {
            size_t width = static_cast<size_t>(sizes.at(outputs)[n]) * inner * values.size;
            char* to = DevicePointer<char>{addresses.at(outputs)[n]}.at(rows * width);
            for (size_t row = 0; row < rows; ++row) {
                std::memcpy(to + row * width, from + row * outer * values.size + start, width);
            }
            start += width;
        }
    };
}

// <T, mode>(long batch, channels, in height, out height, in width, out width, pad above, pad left, T value, T* in, T* out, n)
KERNEL(_PadNCHWInputWithPaddingAlongHAndWKernel) {
    Bytes values = values_of(launch, 0);
    // Mode 0 pads with a value.
    if (values.size == 0 || launch.name.arguments[1] != "0") return {};
    auto at = [&](int n) { return launch.value<long>(n); };
    long in_height = at(2), out_height = at(3), in_width = at(4), out_width = at(5), above = at(6), left = at(7);
    std::vector<char> padding(values.size);
    std::memcpy(padding.data(), launch.arguments[8], values.size);
    auto in = launch.device<char>(9), out = launch.device<char>(10);
    auto count = launch.value<size_t>(11);
    return [=] {
        char* to = out.at(count * values.size);
        size_t planes = count / static_cast<size_t>(out_height * out_width);
        const char* from = in.at(planes * static_cast<size_t>(in_height * in_width) * values.size);
        for (size_t n = 0; n < count; ++n) {
            long index = static_cast<long>(n);
            long x = index % out_width - left, y = index / out_width % out_height - above, plane = index / out_width / out_height;
            bool inside = y >= 0 && y < in_height && x >= 0 && x < in_width;
            if (inside) values.copy(to, n, from, static_cast<size_t>((plane * in_height + y) * in_width + x));
            else values.copy(to, n, padding.data(), 0);
        }
    };
}

// <bytes of a value>(input strides, void* in, output strides, void* out, ...): four values a thread, four dimensions
KERNEL(Transpose4DKernelParallelizeMultipleElementsPerThreadInInnermostDim) {
    Bytes values{static_cast<size_t>(std::stoi(launch.name.arguments[0]))};
    auto in_strides = launch.value<Longs>(0), out_strides = launch.value<Longs>(2);
    auto in = launch.device<char>(1), out = launch.device<char>(3);
    // Vectors of eight bytes, or of sixteen for halves: `n` counts vectors.
    size_t vector = launch.name.arguments[0] == "1" ? 16 : launch.name.arguments[0] == "2" ? 8 : launch.name.arguments[0] == "4" ? 4 : 2;
    size_t count = static_cast<size_t>(launch.value<int>(5)) * vector;
    return [=] {
        const char* from = in.at(count * values.size);
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) {
            size_t rest = n, place = 0;
            for (int d = 0; d < 4; ++d) {
                auto stride = static_cast<size_t>(in_strides.data[d]);
                place += rest / stride * static_cast<size_t>(out_strides.data[d]);
                rest %= stride;
            }
            values.copy(to, place, from, n);
        }
    };
}

// The same with one value a thread: (input strides, void* in, output strides, void* out, int n), bytes of a value given
KERNEL(Transpose4DKernelParallelizeOneElementPerThread) {
    Longs in_strides = launch.value<Longs>(0), out_strides = launch.value<Longs>(2);
    auto in = launch.device<char>(1), out = launch.device<char>(3);
    Bytes values{launch.value<size_t>(4)};
    auto count = static_cast<size_t>(launch.value<int>(5));
    return [=] {
        const char* from = in.at(count * values.size);
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) {
            size_t rest = n, place = 0;
            for (int d = 0; d < 4; ++d) {
                auto stride = static_cast<size_t>(in_strides.data[d]);
                place += rest / stride * static_cast<size_t>(out_strides.data[d]);
                rest %= stride;
            }
            values.copy(to, place, from, n);
        }
    };
}

// <T, tile>(long rows, long columns, long plane, T* in, T* out), planes in z
KERNEL(Transpose3DKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    auto rows = launch.value<size_t>(0), columns = launch.value<size_t>(1), plane = launch.value<size_t>(2);
    auto in = launch.device<char>(3), out = launch.device<char>(4);
    size_t planes = launch.grid.z;
    return [=] {
        const char* from = in.at(planes * plane * values.size);
        char* to = out.at(planes * plane * values.size);
        for (size_t z = 0; z < planes; ++z) {
            for (size_t row = 0; row < rows; ++row) {
                for (size_t column = 0; column < columns; ++column) {
                    values.copy(to, z * plane + column * rows + row, from, z * plane + row * columns + column);
                }
            }
        }
    };
}

// (half* out, half* in, int columns, int rows)
KERNEL(transposeNoOverlap) {
    auto out = launch.device<half>(0), in = launch.device<half>(1);
    auto columns = static_cast<size_t>(launch.value<int>(2)), rows = static_cast<size_t>(launch.value<int>(3));
    return [=] {
        const half* from = in.at(rows * columns);
        half* to = out.at(rows * columns);
        for (size_t row = 0; row < rows; ++row) {
            for (size_t column = 0; column < columns; ++column) to[column * rows + row] = from[row * columns + column];
        }
    };
}

// <T, ...>(T* out, T value, n)
KERNEL(_Fill) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    auto out = launch.device<char>(0);
    std::vector<char> value(values.size);
    std::memcpy(value.data(), launch.arguments[1], values.size);
    auto count = static_cast<size_t>(launch.value<int>(2));
    return [=] {
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) values.copy(to, n, value.data(), 0);
    };
}

// <T>(T start, T delta, long n, T* out)
KERNEL(RangeKernel) {
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto start = launch.value<T>(0), delta = launch.value<T>(1);
        auto count = launch.value<size_t>(2);
        auto out = launch.device<T>(3);
        return [=] {
            T* to = out.at(count);
            for (size_t n = 0; n < count; ++n) to[n] = static_cast<T>(start + static_cast<T>(n) * delta);
        };
    });
}

// <T, ...>(T* out, T* value, n)
KERNEL(_FillFromDataPtrKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    auto out = launch.device<char>(0), value = launch.device<char>(1);
    auto count = static_cast<size_t>(launch.value<int>(2));
    return [=] {
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) values.copy(to, n, value.at(values.size), 0);
    };
}

namespace {

// Each value of the result comes from a place of the input that its number says.
template <class Place>
Work pick(Bytes values, DevicePointer<char> in, DevicePointer<char> out, size_t count, Place place) {
    if (values.size == 0) return {};
    return [=] {
        size_t span = 0;
        for (size_t n = 0; n < count; ++n) span = std::max(span, place(n) + 1);
        const char* from = in.at(span * values.size);
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) values.copy(to, n, from, place(n));
    };
}

size_t by_strides(size_t n, int rank, const Divisors& dimensions, const Longs& strides) {
    size_t place = 0;
    for (int d = 0; d < rank; ++d) {
        place += n / divisor(dimensions.data[d]) * static_cast<size_t>(strides.data[d]);
        n %= divisor(dimensions.data[d]);
    }
    return place;
}

}  // namespace

// <T>(int rank, strides, T* in, dimensions, T* out, n)
KERNEL(TransposeKernel) {
    int rank = launch.value<int>(0);
    auto strides = launch.value<Longs>(1);
    auto dimensions = launch.value<Divisors>(3);
    return pick(values_of(launch, 0), launch.device<char>(2), launch.device<char>(4), launch.value<unsigned>(5),
                [=](size_t n) { return by_strides(n, rank, dimensions, strides); });
}

// <T, ...>(int rank, n, T* in, T* out, dimensions, strides)
KERNEL(ExpandKernel) {
    int rank = launch.value<int>(0);
    auto dimensions = launch.value<Divisors>(4);
    auto strides = launch.value<Longs>(5);
    return pick(values_of(launch, 0), launch.device<char>(2), launch.device<char>(3), launch.value<unsigned>(1),
                [=](size_t n) { return by_strides(n, rank, dimensions, strides); });
}

// <T>(n, T* in, T* out, DivMod row, int stride of rows, int stride of columns)
KERNEL(ExpandKernel2D) {
    size_t row = divisor(launch.value<DivMod>(3));
    size_t rows = launch.value<unsigned>(4), columns = launch.value<unsigned>(5);
    return pick(values_of(launch, 0), launch.device<char>(1), launch.device<char>(2), launch.value<unsigned>(0),
                [=](size_t n) { return n / row * rows + n % row * columns; });
}

// <T>(T* in, T* out, DivMod input, n)
KERNEL(_TileMemcpyKernelFromOutput) {
    size_t input = divisor(launch.value<DivMod>(2));
    return pick(values_of(launch, 0), launch.device<char>(0), launch.device<char>(1), launch.value<unsigned>(3),
                [=](size_t n) { return n % input; });
}

// <T>(T* in, T* out, DivMod row of the result, size_t row of the input, DivMod rows of the input, DivMod row of the input, n)
KERNEL(_TileBatchedMemcpyKernelFromOutput) {
    size_t out_row = divisor(launch.value<DivMod>(2)), rows = divisor(launch.value<DivMod>(4)), in_row = divisor(launch.value<DivMod>(5));
    return pick(values_of(launch, 0), launch.device<char>(0), launch.device<char>(1), launch.value<unsigned>(6),
                [=](size_t n) { return n / out_row % rows * in_row + n % out_row % in_row; });
}

// <T, upper>(long diagonal, T* in, T* out, n, DivMod matrix, DivMod row)
KERNEL(TriluKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    bool upper = launch.name.arguments[1] == "true";
    auto diagonal = launch.value<long>(0);
    auto in = launch.device<char>(1), out = launch.device<char>(2);
    size_t count = launch.value<unsigned>(3);
    size_t matrix = divisor(launch.value<DivMod>(4)), row = divisor(launch.value<DivMod>(5));
    return [=] {
        const char* from = in.at(count * values.size);
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) {
            long y = static_cast<long>(n % matrix / row) + diagonal, x = static_cast<long>(n % matrix % row);
            if (upper ? y <= x : y >= x) values.copy(to, n, from, n);
            else std::memset(to + n * values.size, 0, values.size);
        }
    };
}

// <T, index, scaled>(T* bias, T* out, long n, DivMod columns, int row stride, int column stride, T scale)
KERNEL(BroadcastBiasKernel) {
    if (launch.name.arguments[2] != "false" || launch.name.arguments[1] != "int") return {};
    size_t columns = divisor(launch.value<DivMod>(3)), rows_by = launch.value<unsigned>(4), columns_by = launch.value<unsigned>(5);
    return pick(values_of(launch, 0), launch.device<char>(0), launch.device<char>(1), launch.value<size_t>(2),
                [=](size_t n) { return n / columns * rows_by + n % columns * columns_by; });
}

}  // namespace cuda_double
