// IEEE half precision, as `__half` is.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace cuda_double {

struct half {
    uint16_t bits = 0;

    half() = default;
    half(float value) : bits(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)) {}
    operator float() const { return _cvtsh_ss(bits); }
};

inline void to_float(const half* from, float* to, size_t count) {
    size_t n = 0;
    for (; n + 8 <= count; n += 8) {
        _mm256_storeu_ps(to + n, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + n))));
    }
    for (; n < count; ++n) to[n] = from[n];
}

inline void to_half(const float* from, half* to, size_t count) {
    size_t n = 0;
    for (; n + 8 <= count; n += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + n),
                         _mm256_cvtps_ph(_mm256_loadu_ps(from + n), _MM_FROUND_TO_NEAREST_INT));
    }
    for (; n < count; ++n) to[n] = half(from[n]);
}

}  // namespace cuda_double
