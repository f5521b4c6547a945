// Products of matrices as cuBLAS defines them: C = alpha op(A) op(B) + beta C, all by columns, summed in float.
#pragma once

#include <cstddef>

namespace cuda_double {

enum class Scalar { Float, Half };

struct Matrix {
    const void* data;
    Scalar scalar;
    // The distance between two columns.
    size_t leading;
    bool transposed;

    size_t column_count(size_t rows, size_t columns) const { return transposed ? rows : columns; }
    // How many values the matrix spans, when op() of it has so many rows and columns.
    size_t span(size_t rows, size_t columns) const {
        size_t stored_rows = transposed ? columns : rows, stored_columns = transposed ? rows : columns;
        return stored_columns == 0 ? 0 : leading * (stored_columns - 1) + stored_rows;
    }
};

void multiply(size_t rows, size_t columns, size_t inner, float alpha, const Matrix& a, const Matrix& b, float beta, void* c,
              Scalar c_scalar, size_t c_leading);

}  // namespace cuda_double
