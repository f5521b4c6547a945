#include "gemm.h"

#include <algorithm>
#include <vector>

#include "half.h"

namespace cuda_double {
namespace {

// What the inner loop multiplies at once: sixteen rows (two registers) by six columns.
constexpr size_t tile_rows = 16, tile_columns = 6;
constexpr size_t few_columns = 16;

// `count` values of a stored column, or of a row with `step` between them.
void load(const Matrix& matrix, size_t first, size_t step, size_t count, float* to) {
    if (matrix.scalar == Scalar::Half) {
        auto* from = static_cast<const half*>(matrix.data) + first;
        if (step == 1) return to_float(from, to, count);
        for (size_t n = 0; n < count; ++n) to[n] = from[n * step];
    } else {
        auto* from = static_cast<const float*>(matrix.data) + first;
        for (size_t n = 0; n < count; ++n) to[n] = from[n * step];
    }
}

// Sixteen rows of op(A), one column of the tile after the other; missing rows are zeros.
void pack_rows(const Matrix& a, size_t first, size_t rows, size_t inner, float* packed) {
    if (!a.transposed) {
        for (size_t k = 0; k < inner; ++k) {
            load(a, k * a.leading + first, 1, rows, packed + k * tile_rows);
            std::fill(packed + k * tile_rows + rows, packed + (k + 1) * tile_rows, 0.f);
        }
        return;
    }
    std::vector<float> row(inner);
    for (size_t m = 0; m < tile_rows; ++m) {
        if (m < rows) load(a, (first + m) * a.leading, 1, inner, row.data());
        for (size_t k = 0; k < inner; ++k) packed[k * tile_rows + m] = m < rows ? row[k] : 0.f;
    }
}

// Columns of op(B), each with its `inner` values in one piece.
std::vector<float> columns_of(const Matrix& b, size_t columns, size_t inner) {
    std::vector<float> packed(columns * inner);
    if (!b.transposed) {
        for (size_t n = 0; n < columns; ++n) load(b, n * b.leading, 1, inner, &packed[n * inner]);
        return packed;
    }
    std::vector<float> row(columns);
    for (size_t k = 0; k < inner; ++k) {
        load(b, k * b.leading, 1, columns, row.data());
        for (size_t n = 0; n < columns; ++n) packed[n * inner + k] = row[n];
    }
    return packed;
}

template <size_t width>
void tile(const float* rows, const float* columns, size_t inner, float* sums) {
    __m256 low[width], high[width];
    for (size_t n = 0; n < width; ++n) low[n] = high[n] = _mm256_setzero_ps();
    for (size_t k = 0; k < inner; ++k) {
        __m256 upper = _mm256_loadu_ps(rows + k * tile_rows), lower = _mm256_loadu_ps(rows + k * tile_rows + 8);
        for (size_t n = 0; n < width; ++n) {
            __m256 value = _mm256_broadcast_ss(columns + n * inner + k);
            low[n] = _mm256_fmadd_ps(upper, value, low[n]);
            high[n] = _mm256_fmadd_ps(lower, value, high[n]);
        }
    }
    for (size_t n = 0; n < width; ++n) {
        _mm256_storeu_ps(sums + n * tile_rows, low[n]);
        _mm256_storeu_ps(sums + n * tile_rows + 8, high[n]);
    }
}

void any_tile(size_t width, const float* rows, const float* columns, size_t inner, float* sums) {
    switch (width) {
        case 1: return tile<1>(rows, columns, inner, sums);
        case 2: return tile<2>(rows, columns, inner, sums);
        case 3: return tile<3>(rows, columns, inner, sums);
        case 4: return tile<4>(rows, columns, inner, sums);
        case 5: return tile<5>(rows, columns, inner, sums);
        default: return tile<6>(rows, columns, inner, sums);
    }
}

// The sum of the products of two vectors.
float dot(const float* a, const float* b, size_t count) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    size_t k = 0;
    for (; k + 16 <= count; k += 16) {
        for (size_t n = 0; n < 2; ++n) {
            sums[n] = _mm256_fmadd_ps(_mm256_loadu_ps(a + k + n * 8), _mm256_loadu_ps(b + k + n * 8), sums[n]);
        }
    }
    float lanes[8], sum = 0;
    _mm256_storeu_ps(lanes, _mm256_add_ps(sums[0], sums[1]));
    for (float lane : lanes) sum += lane;
    for (; k < count; ++k) sum += a[k] * b[k];
    return sum;
}

struct Result {
    void* data;
    Scalar scalar;
    size_t leading;
    float alpha, beta;

    void put(size_t row, size_t column, const float* sums, size_t count) const {
        size_t at = column * leading + row;
        if (scalar == Scalar::Float) {
            float* to = static_cast<float*>(data) + at;
            for (size_t n = 0; n < count; ++n) to[n] = alpha * sums[n] + (beta == 0 ? 0 : beta * to[n]);
        } else {
            half* to = static_cast<half*>(data) + at;
            for (size_t n = 0; n < count; ++n) to[n] = half(alpha * sums[n] + (beta == 0 ? 0 : beta * float(to[n])));
        }
    }
};

}  // namespace

void multiply(size_t rows, size_t columns, size_t inner, float alpha, const Matrix& a, const Matrix& b, float beta, void* c,
              Scalar c_scalar, size_t c_leading) {
    Result result{c, c_scalar, c_leading, alpha, beta};
    std::vector<float> right = columns_of(b, columns, inner);

    // A step of the decoder against weights whose rows lie in one piece: nothing is gained by packing them.
    if (columns <= few_columns && a.transposed) {
        std::vector<float> weights(tile_rows * inner);
        float sums[tile_rows];
        for (size_t row = 0; row < rows; row += tile_rows) {
            size_t height = std::min(tile_rows, rows - row);
            for (size_t n = 0; n < height; ++n) load(a, (row + n) * a.leading, 1, inner, &weights[n * inner]);
            for (size_t column = 0; column < columns; ++column) {
                for (size_t n = 0; n < height; ++n) sums[n] = dot(&weights[n * inner], &right[column * inner], inner);
                result.put(row, column, sums, height);
            }
        }
        return;
    }

    std::vector<float> packed(tile_rows * inner);
    float sums[tile_rows * tile_columns];
    for (size_t row = 0; row < rows; row += tile_rows) {
        size_t height = std::min(tile_rows, rows - row);
        pack_rows(a, row, height, inner, packed.data());
        for (size_t column = 0; column < columns; column += tile_columns) {
            size_t width = std::min(tile_columns, columns - column);
            any_tile(width, packed.data(), &right[column * inner], inner, sums);
            for (size_t n = 0; n < width; ++n) result.put(row, column + n, sums + n * tile_rows, height);
        }
    }
}

}  // namespace cuda_double
