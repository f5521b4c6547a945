// Kernels that move values: whatever the values are, only their size counts.
#include <algorithm>
#include <functional>
#include <vector>

#include "../kernel.h"

namespace cuda_double {
namespace {

struct Bytes {
    size_t size;

    void copy(char* to, size_t to_index, const char* from, size_t from_index) const {
        std::memcpy(to + to_index * size, from + from_index * size, size);
    }
};

// The size of the values of a kernel whose template argument says their type.
Bytes values_of(const Launch& launch, size_t argument) { return {size_of_type(launch.name.arguments[argument])}; }

size_t divisor(const DivMod& division) { return static_cast<size_t>(division.divisor); }

}  // namespace

// <T>(long block in, long indices at most, DivMod block out, DivMod block, void* indices, size_t index bytes, T* in, T* out, n)
KERNEL(_GatherKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    auto input_block = launch.value<size_t>(0);
    auto index_max = launch.value<long>(1);
    size_t output_block = divisor(launch.value<DivMod>(2)), block = divisor(launch.value<DivMod>(3));
    auto indices = launch.device<char>(4);
    auto index_bytes = launch.value<size_t>(5);
    auto in = launch.device<char>(6), out = launch.device<char>(7);
    auto count = static_cast<size_t>(launch.value<int>(8));
    return [=] {
        if (count == 0) return;
        size_t index_count = output_block / block;
        const char* chosen = indices.at(index_count * index_bytes);
        size_t input_count = (count - 1) / output_block * input_block + static_cast<size_t>(index_max) * block;
        const char* from = in.at(input_count * values.size);
        char* to = out.at(count * values.size);
        for (size_t n = 0; n < count; ++n) {
            size_t offset = n % output_block;
            long index = 0;
            if (index_bytes == 4) index = reinterpret_cast<const int*>(chosen)[offset / block];
            else index = reinterpret_cast<const long*>(chosen)[offset / block];
            if (index < 0) index += index_max;
            if (index < 0 || index >= index_max) {
                std::memset(to + n * values.size, 0, values.size);
                continue;
            }
            values.copy(to, n, from, n / output_block * input_block + static_cast<size_t>(index) * block + offset % block);
        }
    };
}

namespace {

// Where a value of the indices' number lies in the data, but for the index itself: ONNX Runtime's OffsetCalculator for any
// dimensions, and OffsetCalculatorFor2D<along the first axis, ...> for matrices.
std::function<size_t(size_t)> offsets_of(const Launch& launch, const std::string& calculator) {
    struct Any {
        int rank;
        Divisors dimensions;
        Array<int, 8> strides;
    };
    struct Matrix {
        DivMod row;
        int data_row;
    };
    if (calculator == "OffsetCalculator<false>") {
        auto any = launch.value<Any>(5);
        return [any](size_t n) {
            size_t offset = 0;
            for (int d = 0; d < any.rank; ++d) {
                offset += n / divisor(any.dimensions.data[d]) * static_cast<size_t>(any.strides.data[d]);
                n %= divisor(any.dimensions.data[d]);
            }
            return offset;
        };
    }
    auto matrix = launch.value<Matrix>(5);
    size_t row = divisor(matrix.row), data_row = static_cast<size_t>(matrix.data_row);
    if (calculator == "OffsetCalculatorFor2D<false, false>") return [=](size_t n) { return n / row * data_row; };
    if (calculator == "OffsetCalculatorFor2D<true, false>") return [=](size_t n) { return n % row; };
    return {};
}

}  // namespace

// <T, index, gather, offsets, operation>(T* in, index* indices, T* out, long axis, long axis stride, offsets, operation, n)
KERNEL(_GatherScatterElementsKernel) {
    const auto& types = launch.name.arguments;
    Bytes values = values_of(launch, 0);
    auto offset_of = offsets_of(launch, types[3]);
    bool gather = types[2] == "true", assigns = types[4].find("FuncAssignment") != std::string::npos;
    if (values.size == 0 || !offset_of || !assigns || (types[1] != "int" && types[1] != "long")) return {};
    bool wide = types[1] == "long";
    auto in = launch.device<char>(0), indices = launch.device<char>(1), out = launch.device<char>(2);
    auto axis = launch.value<long>(3), stride = launch.value<long>(4);
    auto count = static_cast<size_t>(launch.value<int>(7));
    return [=] {
        const char* chosen = indices.at(count * (wide ? 8 : 4));
        std::vector<size_t> places(count);
        size_t span = 0;
        for (size_t n = 0; n < count; ++n) {
            long index = wide ? reinterpret_cast<const long*>(chosen)[n] : reinterpret_cast<const int*>(chosen)[n];
            if (index < 0) index += axis;
            if (index < 0 || index >= axis) throw IllegalAddress{indices.address};
            places[n] = offset_of(n) + static_cast<size_t>(index * stride);
            span = std::max(span, places[n] + 1);
        }
        const char* from = in.at((gather ? span : count) * values.size);
        char* to = out.at((gather ? count : span) * values.size);
        for (size_t n = 0; n < count; ++n) values.copy(to, gather ? n : places[n], from, gather ? places[n] : n);
    };
}

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

// <T, inputs>(DivMod axis and inner, DivMod inner, DivMod axis of each input, T* out, inputs, n)
KERNEL(_ConcatKernelSameConcatDim) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1)), axis = divisor(launch.value<DivMod>(2));
    auto out = launch.device<char>(3);
    // Up to 32 addresses by value; more lie on the device.
    if (launch.name.arguments[1].find("Array") == std::string::npos) return {};
    auto inputs = launch.value<Array<const void*, 32>>(4);
    auto count = static_cast<size_t>(launch.value<int>(5));
    return [=] {
        char* to = out.at(count * values.size);
        size_t input_count = count / static_cast<size_t>(inputs.size);
        std::vector<const char*> from;
        for (int n = 0; n < inputs.size; ++n) from.push_back(DevicePointer<char>{inputs.data[n]}.at(input_count * values.size));
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
    if (values.size == 0 || launch.name.arguments[1].find("Array") == std::string::npos) return {};
    size_t outer = divisor(launch.value<DivMod>(0)), inner = divisor(launch.value<DivMod>(1)), axis = divisor(launch.value<DivMod>(2));
    auto in = launch.device<char>(4);
    auto outs = launch.value<Array<void*, 32>>(5);
    auto count = static_cast<size_t>(launch.value<int>(6));
    return [=] {
        const char* from = in.at(count * values.size);
        size_t output_count = count / static_cast<size_t>(outs.size);
        std::vector<char*> to;
        for (int n = 0; n < outs.size; ++n) to.push_back(DevicePointer<char>{outs.data[n]}.at(output_count * values.size));
        for (size_t n = 0; n < count; ++n) {
            size_t along = n % outer / inner;
            values.copy(to[along / axis], (n / outer * axis + along % axis) * inner + n % inner, from, n);
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

}  // namespace cuda_double
