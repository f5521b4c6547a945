// Kernels that read from places, or write to places, that other tensors name.
#include <algorithm>
#include <functional>
#include <vector>

#include "bytes.h"

namespace cuda_double {

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

// <index>(long batch dimensions, input sizes, size_t slices, size_t slices a batch, size_t batch stride, size_t named
// dimensions, sizes behind them, index* indices, long* offsets)
KERNEL(_ComputeSliceOffsetsKernel) {
    if (launch.name.arguments[0] != "long" && launch.name.arguments[0] != "int") return {};
    bool wide = launch.name.arguments[0] == "long";
    auto batch_dimensions = launch.value<size_t>(0);
    auto sizes = launch.value<Longs>(1), behind = launch.value<Longs>(6);
    auto slices = launch.value<size_t>(2), of_batch = launch.value<size_t>(3), batch_stride = launch.value<size_t>(4),
         named = launch.value<size_t>(5);
    auto indices = launch.device<char>(7);
    auto offsets = launch.device<long>(8);
    return [=] {
        const char* chosen = indices.at(slices * named * (wide ? 8 : 4));
        long* to = offsets.at(slices);
        for (size_t slice = 0; slice < slices; ++slice) {
            long offset = static_cast<long>(slice / of_batch * batch_stride);
            for (size_t d = 0; d < named; ++d) {
                size_t at = slice * named + d;
                long index = wide ? reinterpret_cast<const long*>(chosen)[at] : reinterpret_cast<const int*>(chosen)[at];
                if (index < 0) index += sizes.data[batch_dimensions + d];
                offset += index * behind.data[d];
            }
            to[slice] = offset;
        }
    };
}

// <T>(size_t slices, T* in, T* out, size_t slice, long* offsets)
KERNEL(_GatherNDKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    auto slices = launch.value<size_t>(0), size = launch.value<size_t>(3);
    auto in = launch.device<char>(1), out = launch.device<char>(2);
    auto offsets = launch.device<long>(4);
    return [=] {
        char* to = out.at(slices * size * values.size);
        for (size_t n = 0; n < slices; ++n) {
            auto from = in + offsets.at(slices)[n] * static_cast<long>(values.size);
            std::memcpy(to + n * size * values.size, from.at(size * values.size), size * values.size);
        }
    };
}

// <T>(T* out, size_t indices, long* indices, long named dimensions, counts and sizes, T* updates, size_t update)
KERNEL(_ScatterNDKernel) {
    // By value for up to six dimensions: the values behind an index of each dimension, and their sizes.
    struct Dimensions {
        long data[12];
        const long* more;
    };
    Bytes values = values_of(launch, 0);
    auto named = launch.value<size_t>(3);
    if (values.size == 0 || named > 6) return {};
    auto out = launch.device<char>(0), updates = launch.device<char>(5);
    auto count = launch.value<size_t>(1), size = launch.value<size_t>(6);
    auto indices = launch.device<long>(2);
    auto dimensions = launch.value<Dimensions>(4);
    return [=] {
        const long* chosen = indices.at(count * named);
        const char* from = updates.at(count * size * values.size);
        for (size_t n = 0; n < count; ++n) {
            long offset = 0;
            for (size_t d = 0; d < named; ++d) {
                long index = chosen[n * named + d], of = dimensions.data[named + d];
                // Out of range is the nearest place in range.
                index = index < 0 ? std::max(index + of, 0l) : std::min(index, of - 1);
                offset += index * dimensions.data[d];
            }
            auto to = out + offset * static_cast<long>(values.size);
            std::memcpy(to.at(size * values.size), from + n * size * values.size, size * values.size);
        }
    };
}

// <T, circular>(T* out, T* updates, long* first rows, long batches, long heads, long rows, long new rows, long row, size_t n)
KERNEL(_TensorScatterKernel) {
    Bytes values = values_of(launch, 0);
    if (values.size == 0) return {};
    bool circular = launch.name.arguments[1] == "true";
    auto out = launch.device<char>(0), updates = launch.device<char>(1);
    auto firsts = launch.device<long>(2);
    auto heads = launch.value<size_t>(4), rows = launch.value<size_t>(5), new_rows = launch.value<size_t>(6), row = launch.value<size_t>(7);
    auto count = launch.value<size_t>(8);
    return [=] {
        size_t outer = count / (new_rows * row), bytes = row * values.size;
        const char* from = updates.at(count * values.size);
        char* to = out.at(outer * rows * bytes);
        for (size_t n = 0; n < outer * new_rows; ++n) {
            size_t head = n / new_rows, batch = head / heads;
            size_t place = (firsts ? static_cast<size_t>(firsts.at(batch + 1)[batch]) : 0) + n % new_rows;
            if (circular) place %= rows;
            std::memcpy(to + (head * rows + place) * bytes, from + n * bytes, bytes);
        }
    };
}

}  // namespace cuda_double
