// Joining tensors of different sizes along an axis.
#include <vector>

#include "../kernel.h"

namespace cuda_double {

// <T>(DivMod axis and inner, DivMod inner, long ends of the inputs along the axis, T* out, void* inputs, int n)
KERNEL(_ConcatKernelOutputMajor) {
    size_t bytes = size_of_type(launch.name.arguments[0]);
    if (bytes == 0) return {};
    auto outer = static_cast<size_t>(launch.value<DivMod>(0).divisor);
    auto inner = static_cast<size_t>(launch.value<DivMod>(1).divisor);
    auto ends = launch.value<Array<long, 32>>(2);
    auto out = launch.device<char>(3);
    auto inputs = launch.value<Array<const void*, 32>>(4);
    auto count = static_cast<size_t>(launch.value<int>(5));
    return [=] {
        char* to = out.at(count * bytes);
        size_t rows = count / outer;
        std::vector<const char*> from;
        std::vector<size_t> sizes;
        for (int n = 0; n < inputs.size; ++n) {
            sizes.push_back(static_cast<size_t>(ends.data[n] - (n > 0 ? ends.data[n - 1] : 0)));
            from.push_back(DevicePointer<char>{inputs.data[n]}.at(rows * sizes.back() * inner * bytes));
        }
        for (size_t n = 0; n < count; ++n) {
            size_t row = n / outer, along = n % outer / inner, input = 0;
            while (static_cast<long>(along) >= ends.data[input]) ++input;
            size_t start = input > 0 ? static_cast<size_t>(ends.data[input - 1]) : 0;
            size_t at = (row * sizes[input] + along - start) * inner + n % inner;
            std::memcpy(to + n * bytes, from[input] + at * bytes, bytes);
        }
    };
}

}  // namespace cuda_double
