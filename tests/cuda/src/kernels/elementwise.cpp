// Kernels that compute each value from the values at its place: arithmetic, comparisons, casts, Where.
//
// Values are loaded in blocks into the type that is computed with, the operation is done on the block, and the block is
// stored: one function a type and one an operation, not one a combination.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "../kernel.h"

namespace cuda_double {
namespace {

constexpr size_t block = 1024;

template <class T>
constexpr bool is_real = std::is_same_v<T, half> || std::is_same_v<T, float> || std::is_same_v<T, double>;

// The C++ types of all names here that are computed with: float for halves, as the kernels do.
enum class Wide { Float, Double, Integer };

Wide wide_of(const std::string& type) {
    if (type == "double") return Wide::Double;
    return type == "__half" || type == "float" ? Wide::Float : Wide::Integer;
}

template <class Body>
Work with_wide(Wide wide, Body body) {
    switch (wide) {
        case Wide::Float: return body(float{});
        case Wide::Double: return body(double{});
        case Wide::Integer: return body(long{});
    }
    return {};
}

// Which value of an operand belongs to the result's value of a number.
using Index = std::function<size_t(size_t)>;

size_t same(size_t n) { return n; }
size_t first(size_t) { return 0; }

// The index of an operand that is broadcast: the result's number taken apart by its dimensions, put together by strides.
Index by_strides(const Longs& strides, const Divisors& dimensions) {
    return [=](size_t n) {
        size_t index = 0;
        for (int d = 0; d < dimensions.size; ++d) {
            auto divisor = static_cast<size_t>(dimensions.data[d].divisor);
            index += static_cast<size_t>(strides.data[d]) * (n / divisor);
            n %= divisor;
        }
        return index;
    };
}

template <class C>
struct Source {
    std::function<void(size_t from, size_t count, C* to)> load;
};

// How many values of an operand are used by `count` results.
size_t span(const Index& index, size_t count) {
    size_t last = 0;
    for (size_t n = 0; n < count; ++n) last = std::max(last, index(n));
    return count == 0 ? 0 : last + 1;
}

template <class C>
std::function<void(size_t, size_t, C*)> loader(const std::string& type, DevicePointer<char> data, Index index, bool plain,
                                               size_t count) {
    std::function<void(size_t, size_t, C*)> load;
    with_type(type, [&](auto sample) {
        using T = decltype(sample);
        const T* values = DevicePointer<T>{data.address}.at(plain ? count : span(index, count));
        load = [=](size_t from, size_t length, C* to) {
            if constexpr (std::is_same_v<T, half> && std::is_same_v<C, float>) {
                if (plain) return to_float(values + from, to, length);
            }
            for (size_t n = 0; n < length; ++n) {
                const T& value = values[plain ? from + n : index(from + n)];
                if constexpr (std::is_same_v<T, half>) to[n] = static_cast<C>(float(value));
                else to[n] = static_cast<C>(value);
            }
        };
        return true;
    });
    return load;
}

template <class C>
std::function<void(size_t, size_t, const C*)> storer(const std::string& type, DevicePointer<char> data, size_t count) {
    std::function<void(size_t, size_t, const C*)> store;
    with_type(type, [&](auto sample) {
        using T = decltype(sample);
        T* values = DevicePointer<T>{data.address}.at(count);
        store = [=](size_t at, size_t length, const C* from) {
            if constexpr (std::is_same_v<T, half> && std::is_same_v<C, float>) return to_half(from, values + at, length);
            else if constexpr (std::is_same_v<T, half>) for (size_t n = 0; n < length; ++n) values[at + n] = half(static_cast<float>(from[n]));
            else if constexpr (std::is_same_v<T, bool>) for (size_t n = 0; n < length; ++n) values[at + n] = from[n] != C(0);
            else for (size_t n = 0; n < length; ++n) values[at + n] = static_cast<T>(from[n]);
        };
        return true;
    });
    return store;
}

// `OP_Add<__half, __half, __half>` is the operation `Add`.
std::string operation_of(const std::string& functor) {
    std::string name = functor.substr(0, functor.find('<'));
    return name.compare(0, 3, "OP_") == 0 ? name.substr(3) : name;
}

template <class C>
using Binary = void (*)(const C*, const C*, C*, size_t);

template <class C, class F>
void each(const C* a, const C* b, C* to, size_t count) {
    for (size_t n = 0; n < count; ++n) to[n] = static_cast<C>(F::of(a[n], b[n]));
}

#define BINARY(name, expression)               \
    struct name {                              \
        template <class C>                     \
        static C of(C a, C b) {                \
            return static_cast<C>(expression); \
        }                                      \
    };
BINARY(Add, a + b)
BINARY(Sub, a - b)
BINARY(Mul, a * b)
BINARY(Div, b == C(0) && !is_real<C> ? C(0) : a / b)
BINARY(Min, std::min(a, b))
BINARY(Max, std::max(a, b))
BINARY(Pow, std::pow(a, b))
BINARY(Less, a < b)
BINARY(Greater, a > b)
BINARY(LessOrEqual, a <= b)
BINARY(GreaterOrEqual, a >= b)
BINARY(Equal, a == b)
BINARY(And, a != C(0) && b != C(0))
BINARY(Or, a != C(0) || b != C(0))
BINARY(Xor, (a != C(0)) != (b != C(0)))
#undef BINARY

// ONNX's Mod has the sign of the divisor, its Fmod that of the dividend.
struct Mod {
    template <class C>
    static C of(C a, C b) {
        if constexpr (is_real<C>) return std::fmod(a, b);
        else return b == 0 ? 0 : (a % b != 0 && (a < 0) != (b < 0) ? a % b + b : a % b);
    }
};
struct Fmod {
    template <class C>
    static C of(C a, C b) {
        if constexpr (is_real<C>) return std::fmod(a, b);
        else return b == 0 ? 0 : a % b;
    }
};

template <class C>
Binary<C> binary(const std::string& name) {
#define NAMED(operation) \
    if (name == #operation) return each<C, operation>;
    NAMED(Add) NAMED(Sub) NAMED(Mul) NAMED(Div) NAMED(Min) NAMED(Max) NAMED(Pow) NAMED(Less) NAMED(Greater)
    NAMED(LessOrEqual) NAMED(GreaterOrEqual) NAMED(Equal) NAMED(And) NAMED(Or) NAMED(Xor) NAMED(Mod) NAMED(Fmod)
#undef NAMED
    return nullptr;
}

struct Operand {
    std::string type;
    DevicePointer<char> data;
    Index index;
    bool plain;
};

Operand plain(const std::string& type, DevicePointer<char> data) { return {type, data, same, true}; }

Work binary_work(const std::string& functor, const Operand& a, const Operand& b, const std::string& type,
                 DevicePointer<char> out, size_t count) {
    if (size_of_type(a.type) == 0 || size_of_type(b.type) == 0 || size_of_type(type) == 0) return {};
    Wide wide = std::max(wide_of(a.type), wide_of(b.type));
    // A whole power of a real number, and the like.
    if (wide_of(a.type) != Wide::Integer || wide_of(b.type) != Wide::Integer) {
        wide = wide_of(a.type) == Wide::Double || wide_of(b.type) == Wide::Double ? Wide::Double : Wide::Float;
    }
    return with_wide(wide, [&](auto sample) -> Work {
        using C = decltype(sample);
        Binary<C> operation = binary<C>(operation_of(functor));
        if (operation == nullptr) return {};
        return [=] {
            auto load_a = loader<C>(a.type, a.data, a.index, a.plain, count);
            auto load_b = loader<C>(b.type, b.data, b.index, b.plain, count);
            auto store = storer<C>(type, out, count);
            std::array<C, block> left, right, result;
            for (size_t at = 0; at < count; at += block) {
                size_t length = std::min(block, count - at);
                load_a(at, length, left.data());
                load_b(at, length, right.data());
                operation(left.data(), right.data(), result.data(), length);
                store(at, length, result.data());
            }
        };
    });
}

bool counts_by_int(const KernelName::Arguments& arguments) { return arguments.back() == "int"; }

}  // namespace

// <lhs at each place, rhs at each place, T, T1, T2, operation, ..., index>(T1* lhs, T2* rhs, T* out, operation, n)
KERNEL(_BinaryElementWiseSimple) {
    const auto& types = launch.name.arguments;
    if (!counts_by_int(types)) return {};
    auto operand = [&](int n, const std::string& each_place, const std::string& type) {
        bool each_one = each_place == "true";
        return Operand{type, launch.device<char>(n), each_one ? Index(same) : Index(first), each_one};
    };
    return binary_work(types[5], operand(0, types[0], types[3]), operand(1, types[1], types[4]), types[2],
                       launch.device<char>(2), launch.value<unsigned>(4));
}

// <T, T1, T2, operation, ..., index>(T1* lhs, T2* rhs, height, T* out, operation, n)
KERNEL(_BinaryElementWiseRhsPerChannelBatch1) {
    const auto& types = launch.name.arguments;
    if (!counts_by_int(types)) return {};
    auto height = static_cast<size_t>(launch.value<DivMod>(2).divisor);
    Operand rhs{types[2], launch.device<char>(1), [=](size_t n) { return n / height; }, false};
    return binary_work(types[3], plain(types[1], launch.device<char>(0)), rhs, types[0], launch.device<char>(3),
                       launch.value<unsigned>(5));
}

// <T, T1, T2, operation, ..., index>(T1* lhs, T2* rhs, height, channels, T* out, operation, n)
KERNEL(_BinaryElementWiseRhsPerChannelBatchN) {
    const auto& types = launch.name.arguments;
    if (!counts_by_int(types)) return {};
    auto height = static_cast<size_t>(launch.value<DivMod>(2).divisor);
    auto channels = static_cast<size_t>(launch.value<DivMod>(3).divisor);
    Operand rhs{types[2], launch.device<char>(1), [=](size_t n) { return n / height % channels; }, false};
    return binary_work(types[3], plain(types[1], launch.device<char>(0)), rhs, types[0], launch.device<char>(4),
                       launch.value<unsigned>(6));
}

// <T, T1, T2, operation, lhs by strides, rhs by strides, ..., index>
// (rank, lhs strides, T1* lhs, rhs strides, T2* rhs, dimensions, T* out, operation, n)
KERNEL(_BinaryElementWise) {
    const auto& types = launch.name.arguments;
    if (!counts_by_int(types)) return {};
    auto dimensions = launch.value<Divisors>(5);
    auto operand = [&](int strides, const std::string& type, bool computed) {
        auto data = launch.device<char>(strides + 1);
        return computed ? Operand{type, data, by_strides(launch.value<Longs>(strides), dimensions), false} : plain(type, data);
    };
    return binary_work(types[3], operand(1, types[1], types[4] == "true"), operand(3, types[2], types[5] == "true"), types[0],
                       launch.device<char>(6), launch.value<unsigned>(8));
}

// <T, operation, inputs at most, ...>(operation, n, inputs, T* out)
KERNEL(VariadicElementWiseNoBroadcastInputBatchKernel) {
    const auto& types = launch.name.arguments;
    auto count = launch.value<size_t>(1);
    auto inputs = launch.value<Array<const void*, 8>>(2);
    auto out = launch.device<char>(3);
    std::vector<Work> steps;
    for (int n = 1; n < inputs.size; ++n) {
        DevicePointer<char> so_far = n == 1 ? DevicePointer<char>{inputs.data[0]} : out;
        steps.push_back(binary_work(types[1], plain(types[0], so_far), plain(types[0], {inputs.data[n]}), types[0], out, count));
        if (!steps.back()) return {};
    }
    return [=] { for (const Work& step : steps) step(); };
}

namespace {

template <class C>
C identity(C x) { return x; }

// Operations without parameters of their own. Whole numbers know only some.
template <class C>
C (*unary(const std::string& name))(C) {
    if (name == "Cast" || name == "CastNoSat" || name == "CastSat") return identity<C>;
    if (name == "Abs" || name == "SaturatingAbs") return [](C x) { return x < C(0) ? C(-x) : x; };
    if (name == "Neg") return [](C x) { return C(-x); };
    if (name == "Not") return [](C x) { return C(x == C(0)); };
    if (name == "Sign") return [](C x) { return C((x > C(0)) - (x < C(0))); };
    if (name == "Relu") return [](C x) { return std::max(x, C(0)); };
    if constexpr (is_real<C>) {
        if (name == "_IsNan") return [](C x) { return C(std::isnan(x)); };
        if (name == "Floor") return [](C x) { return std::floor(x); };
        if (name == "Ceil") return [](C x) { return std::ceil(x); };
        if (name == "Round") return [](C x) { return std::nearbyint(x); };
        if (name == "Sqrt") return [](C x) { return std::sqrt(x); };
        if (name == "Exp") return [](C x) { return std::exp(x); };
        if (name == "Log") return [](C x) { return std::log(x); };
        if (name == "Erf") return [](C x) { return std::erf(x); };
        if (name == "Tanh") return [](C x) { return std::tanh(x); };
        if (name == "Sin") return [](C x) { return std::sin(x); };
        if (name == "Cos") return [](C x) { return std::cos(x); };
        if (name == "Reciprocal") return [](C x) { return C(1) / x; };
        if (name == "Sigmoid") return [](C x) { return C(1) / (C(1) + std::exp(-x)); };
        if (name == "Gelu") return [](C x) { return x * C(0.5) * (C(1) + std::erf(x * C(0.7071067811865476))); };
    }
    return nullptr;
}

// The operation carries the divisor.
Work divide_all(const Launch& launch, const std::string& type, DevicePointer<char> in, DevicePointer<char> out, size_t count) {
    return with_type(type, [&](auto sample) -> Work {
        using T = decltype(sample);
        auto divisor = launch.value<T>(2);
        return [=] {
            const T* from = DevicePointer<T>{in.address}.at(count);
            T* to = DevicePointer<T>{out.address}.at(count);
            for (size_t n = 0; n < count; ++n) to[n] = static_cast<T>(from[n] / divisor);
        };
    });
}

}  // namespace

// <InT, OutT, operation, ...>(InT* in, OutT* out, operation, long n)
KERNEL(_UnaryElementWise) {
    const auto& types = launch.name.arguments;
    const std::string from = types[0], to = types[1];
    if (size_of_type(from) == 0 || size_of_type(to) == 0) return {};
    auto in = launch.device<char>(0), out = launch.device<char>(1);
    auto count = launch.value<size_t>(3);
    if (operation_of(types[2]) == "Div") return divide_all(launch, from, in, out, count);
    return with_wide(wide_of(from), [&](auto sample) -> Work {
        using C = decltype(sample);
        auto operation = unary<C>(operation_of(types[2]));
        if (operation == nullptr) return {};
        return [=] {
            auto load = loader<C>(from, in, same, true, count);
            auto store = storer<C>(to, out, count);
            std::array<C, block> values;
            for (size_t at = 0; at < count; at += block) {
                size_t length = std::min(block, count - at);
                load(at, length, values.data());
                for (size_t n = 0; n < length; ++n) values[n] = operation(values[n]);
                store(at, length, values.data());
            }
        };
    });
}

namespace {

template <class T>
Work where(DevicePointer<bool> condition, Index condition_index, DevicePointer<T> yes, Index yes_index, DevicePointer<T> no,
           Index no_index, DevicePointer<T> out, size_t count) {
    return [=] {
        const bool* choose = condition.at(span(condition_index, count));
        const T* a = yes.at(span(yes_index, count));
        const T* b = no.at(span(no_index, count));
        T* to = out.at(count);
        for (size_t n = 0; n < count; ++n) to[n] = choose[condition_index(n)] ? a[yes_index(n)] : b[no_index(n)];
    };
}

// `(BroadcastIndexType)0`: each place; 1: one value; 2: by strides.
char broadcast_of(const std::string& argument) { return argument.back(); }

}  // namespace

// <T, three kinds of broadcast, ...>(bool* condition, T* yes, T* no, T* out, n)
KERNEL(_TenaryElementWiseSimple) {
    const auto& types = launch.name.arguments;
    auto index = [&](size_t n) { return broadcast_of(types[n]) == '0' ? Index(same) : Index(first); };
    return with_type(types[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        return where<T>(launch.device<bool>(0), index(1), launch.device<T>(1), index(2), launch.device<T>(2), index(3),
                        launch.device<T>(3), launch.value<unsigned>(4));
    });
}

// <T, three kinds of broadcast, ...>(rank, strides, bool* condition, strides, T* yes, strides, T* no, dimensions, T* out, n)
KERNEL(_TenaryElementWise) {
    const auto& types = launch.name.arguments;
    auto dimensions = launch.value<Divisors>(7);
    auto index = [&](size_t n, int strides) {
        char kind = broadcast_of(types[n]);
        if (kind == '0') return Index(same);
        return kind == '1' ? Index(first) : by_strides(launch.value<Longs>(strides), dimensions);
    };
    return with_type(types[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        return where<T>(launch.device<bool>(2), index(1, 1), launch.device<T>(4), index(2, 3), launch.device<T>(6),
                        index(3, 5), launch.device<T>(8), launch.value<unsigned>(9));
    });
}

// <T>(T* in, T* out, T* low, T* high, T lowest, T highest, n)
KERNEL(_Clip) {
    return with_type(launch.name.arguments[0], [&](auto sample) -> Work {
        using T = decltype(sample);
        auto in = launch.device<T>(0), out = launch.device<T>(1), low = launch.device<T>(2), high = launch.device<T>(3);
        auto lowest = launch.value<T>(4), highest = launch.value<T>(5);
        auto count = launch.value<size_t>(6);
        return [=] {
            T from = low ? *low.at(1) : lowest, to = high ? *high.at(1) : highest;
            const T* values = in.at(count);
            T* result = out.at(count);
            for (size_t n = 0; n < count; ++n) result[n] = values[n] < from ? from : values[n] > to ? to : values[n];
        };
    });
}

// <T>(long bias length, T* in, T* bias, T* out)
KERNEL(VectorizedBiasGeluKernel) {
    if (launch.name.arguments[0] != "__half") return {};
    auto width = launch.value<long>(0);
    auto in = launch.device<half>(1), bias = launch.device<half>(2), out = launch.device<half>(3);
    size_t count = static_cast<size_t>(width) * launch.grid.x * launch.grid.y;
    return [=] {
        const half* values = in.at(count);
        const half* added = bias.at(static_cast<size_t>(width));
        half* result = out.at(count);
        for (size_t n = 0; n < count; ++n) {
            float x = half(float(values[n]) + float(added[n % static_cast<size_t>(width)]));
            result[n] = half(0.5f * x * (1 + std::erf(x * 0.70710678f)));
        }
    };
}

}  // namespace cuda_double
