// How a kernel is computed: a decoder takes the arguments of one launch by value and returns the work, which runs at once,
// later, or many times from a graph.
//
//     KERNEL(RangeKernel) {                                            // RangeKernel<T>(T start, T delta, long n, T* out)
//         return with_type(launch.name.arguments[0], [&](auto type) -> Work {
//             using T = decltype(type);
//             auto start = launch.value<T>(0), delta = launch.value<T>(1);
//             auto count = launch.value<long>(2);
//             auto out = launch.device<T>(3);
//             return [=] { T* to = out.at(count); for (long n = 0; n < count; ++n) to[n] = start + n * delta; };
//         });
//     }
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "abi.h"
#include "half.h"
#include "memory.h"
#include "stream.h"

namespace cuda_double {

// `void a::b::Kernel<int, a::Op<int> >(int const*)` is the function `Kernel` in the space `a::b` with the arguments
// `int` and `Op<int>`.
struct KernelName {
    // One that is not there is an empty text, which no decoder knows.
    struct Arguments : std::vector<std::string> {
        using std::vector<std::string>::vector;
        const std::string& operator[](size_t n) const {
            static const std::string none;
            return n < size() ? at(n) : none;
        }
    };

    std::string function, space;
    Arguments arguments;
    // For people and logs: without spaces, results and parameters.
    std::string text;

    static KernelName of(const char* mangled);
};

// An address on a device. Memory is looked up when the work runs.
template <class T>
struct DevicePointer {
    const void* address = nullptr;

    explicit operator bool() const { return address != nullptr; }
    // Throws IllegalAddress unless `count` values lie there.
    T* at(size_t count) const { return reinterpret_cast<T*>(memory::shadow(address, count * sizeof(T))); }
    DevicePointer operator+(ptrdiff_t values) const { return {static_cast<const T*>(address) + values}; }
};

struct Launch {
    const KernelName& name;
    Dim3 grid, block;
    void** arguments;

    template <class T>
    T value(int n) const {
        T copied;
        std::memcpy(&copied, arguments[n], sizeof copied);
        return copied;
    }
    template <class T>
    DevicePointer<T> device(int n) const {
        return {value<const void*>(n)};
    }
    long blocks() const { return static_cast<long>(grid.x) * grid.y * grid.z; }
};

// Nothing: this variant of the kernel is not known.
using Decoder = Work (*)(const Launch&);

Decoder find_decoder(const std::string& function);

struct Registered {
    Registered(const char* function, Decoder decoder);
};

#define KERNEL(function)                                                              \
    static ::cuda_double::Work decode_##function(const ::cuda_double::Launch&);       \
    static const ::cuda_double::Registered registered_##function{#function, decode_##function}; \
    static ::cuda_double::Work decode_##function([[maybe_unused]] const ::cuda_double::Launch& launch)

// ONNX Runtime's argument types.
template <class T, int N>
struct Array {
    int size;
    T data[N];
};

struct DivMod {
    int divisor;
    unsigned multiplier, shift;
};

using Longs = Array<long, 8>;
using Divisors = Array<DivMod, 8>;

// Calls `body` with a value of the C++ type of that name; an empty result when it is not known.
template <class Body>
auto with_type(const std::string& type, Body body) -> decltype(body(int{})) {
    if (type == "__half") return body(half{});
    if (type == "float") return body(float{});
    if (type == "double") return body(double{});
    if (type == "int") return body(int{});
    if (type == "long") return body(long{});
    if (type == "bool") return body(bool{});
    if (type == "unsigned char") return body(static_cast<unsigned char>(0));
    if (type == "signed char" || type == "char") return body(static_cast<signed char>(0));
    if (type == "short") return body(static_cast<short>(0));
    if (type == "unsigned int") return body(0u);
    if (type == "unsigned long") return body(0ul);
    return {};
}

// The size of a type by which kernels move values about, whatever they are; 0: not known.
size_t size_of_type(const std::string& type);

}  // namespace cuda_double
