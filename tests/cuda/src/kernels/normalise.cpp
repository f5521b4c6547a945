// Kernels that work on whole rows: layer norms and softmax.
#include <cmath>
#include <limits>
#include <vector>

#include "../kernel.h"

namespace cuda_double {
namespace {

// (x - mean) / deviation * scale + shift, of one row.
void layer_norm(const std::vector<float>& row, float epsilon, const half* scale, const half* shift, half* out) {
    double sum = 0, squares = 0;
    for (float value : row) {
        sum += value;
        squares += static_cast<double>(value) * value;
    }
    auto width = static_cast<double>(row.size());
    auto mean = static_cast<float>(sum / width);
    float rate = 1 / std::sqrt(static_cast<float>(squares / width) - mean * mean + epsilon);
    for (size_t n = 0; n < row.size(); ++n) {
        float scaled = (row[n] - mean) * rate * (scale != nullptr ? float(scale[n]) : 1.f);
        out[n] = half(scaled + (shift != nullptr ? float(shift[n]) : 0.f));
    }
}

const half* optional(const DevicePointer<half>& pointer, size_t count) { return pointer ? pointer.at(count) : nullptr; }

// <T, ...>(T* out, T* sum, T* in, T* skip, T* bias, T* scale, T* shift, T epsilon, int width, int skip length)
Work skip_layer_norm(const Launch& launch) {
    if (launch.name.arguments[0] != "__half") return {};
    auto out = launch.device<half>(0), sum = launch.device<half>(1), in = launch.device<half>(2), skip = launch.device<half>(3),
         bias = launch.device<half>(4), scale = launch.device<half>(5), shift = launch.device<half>(6);
    float epsilon = launch.value<float>(7);
    auto width = static_cast<size_t>(launch.value<int>(8)), skip_length = static_cast<size_t>(launch.value<int>(9));
    size_t rows = launch.grid.x;
    return [=] {
        const half *values = in.at(rows * width), *skipped = skip.at(skip_length), *added = optional(bias, width);
        half *result = out.at(rows * width), *kept = sum ? sum.at(rows * width) : nullptr;
        std::vector<float> row(width);
        for (size_t r = 0; r < rows; ++r) {
            for (size_t n = 0; n < width; ++n) {
                size_t at = r * width + n;
                float added_up = float(values[at]) + float(skipped[at % skip_length]) + (added != nullptr ? float(added[n]) : 0.f);
                half value = added_up;
                if (kept != nullptr) kept[at] = value;
                row[n] = value;
            }
            layer_norm(row, epsilon, optional(scale, width), optional(shift, width), result + r * width);
        }
    };
}

}  // namespace

KERNEL(SkipLayerNormKernel) { return skip_layer_norm(launch); }
KERNEL(SkipLayerNormKernelSmall) { return skip_layer_norm(launch); }

// <T, U, V, simplified>(V* out, U* mean, U* deviation, T* in, int rows, int width, U epsilon, V* scale, V* shift, int, ...)
KERNEL(cuApplyLayerNorm) {
    const auto& types = launch.name.arguments;
    if (types[0] != "__half" || types[2] != "__half" || types[3] != "false") return {};
    // Inputs of the variants that add a skip connection.
    if (launch.value<void*>(10) != nullptr || launch.value<void*>(11) != nullptr) return {};
    auto out = launch.device<half>(0), in = launch.device<half>(3), scale = launch.device<half>(7), shift = launch.device<half>(8);
    auto rows = static_cast<size_t>(launch.value<int>(4)), width = static_cast<size_t>(launch.value<int>(5));
    float epsilon = launch.value<float>(6);
    return [=] {
        const half* values = in.at(rows * width);
        half* result = out.at(rows * width);
        std::vector<float> row(width);
        for (size_t r = 0; r < rows; ++r) {
            to_float(values + r * width, row.data(), width);
            layer_norm(row, epsilon, optional(scale, width), optional(shift, width), result + r * width);
        }
    };
}

namespace {

template <class In, class Out>
Work softmax(DevicePointer<Out> out, DevicePointer<In> in, size_t rows, size_t width, size_t in_stride, size_t out_stride,
             bool logarithm) {
    return [=] {
        if (rows == 0) return;
        const In* from = in.at((rows - 1) * in_stride + width);
        Out* to = out.at((rows - 1) * out_stride + width);
        std::vector<float> values(width);
        for (size_t r = 0; r < rows; ++r) {
            float highest = -std::numeric_limits<float>::infinity();
            for (size_t n = 0; n < width; ++n) {
                values[n] = float(from[r * in_stride + n]);
                highest = std::max(highest, values[n]);
            }
            double sum = 0;
            for (float value : values) sum += std::exp(value - highest);
            for (size_t n = 0; n < width; ++n) {
                float shifted = values[n] - highest;
                float result = logarithm ? shifted - static_cast<float>(std::log(sum)) : static_cast<float>(std::exp(shifted) / sum);
                to[r * out_stride + n] = Out(result);
            }
        }
    };
}

Work softmax_of(const Launch& launch, const std::string& in, const std::string& out, size_t rows, size_t width,
                size_t in_stride, size_t out_stride, bool logarithm) {
    bool real = (in == "__half" || in == "float") && (out == "__half" || out == "float");
    if (!real) return {};
    auto with = [&](auto from, auto to) -> Work {
        using In = decltype(from);
        using Out = decltype(to);
        return softmax<In, Out>(launch.device<Out>(0), launch.device<In>(1), rows, width, in_stride, out_stride, logarithm);
    };
    if (in == "__half") return out == "__half" ? with(half{}, half{}) : with(half{}, float{});
    return out == "__half" ? with(float{}, half{}) : with(float{}, float{});
}

}  // namespace

// <.., In, Acc, Out, epilogue>(Out* out, In* in, int width, int in stride, int out stride), a block a row
KERNEL(softmax_block_forward) {
    const auto& types = launch.name.arguments;
    auto at = [&](int n) { return static_cast<size_t>(launch.value<int>(n)); };
    return softmax_of(launch, types[1], types[3], launch.grid.x, at(2), at(3), at(4), types[4] == "LogSoftMaxForwardEpilogue");
}

// <In, Out, Acc, log2 of the width, logarithm>(Out* out, In* in, int rows, int stride, int width)
KERNEL(softmax_warp_forward) {
    const auto& types = launch.name.arguments;
    auto at = [&](int n) { return static_cast<size_t>(launch.value<int>(n)); };
    return softmax_of(launch, types[0], types[1], at(2), at(4), at(3), at(3), types[4] == "true");
}
KERNEL(softmax_warp_forward_resource_efficient) { return decode_softmax_warp_forward(launch); }

}  // namespace cuda_double
