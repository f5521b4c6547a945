// Values of which only the size counts.
#pragma once

#include <cstring>

#include "../kernel.h"

namespace cuda_double {

struct Bytes {
    size_t size;

    void copy(char* to, size_t to_index, const char* from, size_t from_index) const {
        std::memcpy(to + to_index * size, from + from_index * size, size);
    }
};

// The size of the values of a kernel whose template argument says their type.
inline Bytes values_of(const Launch& launch, size_t argument) { return {size_of_type(launch.name.arguments[argument])}; }

inline size_t divisor(const DivMod& division) { return static_cast<size_t>(division.divisor); }

}  // namespace cuda_double
