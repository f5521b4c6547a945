// libcublas.so.13: the products that ONNX Runtime asks for. Other functions say that they are not supported.
#include <cstdlib>
#include <cstring>

#include "gemm.h"
#include "kernel.h"
#include "log.h"
#include "runtime.h"
#include "stream.h"

namespace cuda_double {
namespace {

// cublasStatus_t.
constexpr int success = 0, not_initialised = 1, invalid_value = 7, execution_failed = 13, not_supported = 15;
// cudaDataType_t.
constexpr int real_32 = 0, real_16 = 2;
// cublasComputeType_t.
constexpr int compute_16 = 64, compute_16_pedantic = 65;

struct Handle {
    void* stream = nullptr;
    int math_mode = 0;
};

struct Operand {
    DevicePointer<char> data;
    int type;
    size_t leading;
    bool transposed;
    // Between two matrices of a batch, in values.
    long long stride = 0;

    size_t value_bytes() const { return type == real_16 ? sizeof(half) : sizeof(float); }
    Matrix matrix(size_t batch, size_t rows, size_t columns) const {
        Scalar scalar = type == real_16 ? Scalar::Half : Scalar::Float;
        Matrix matrix{nullptr, scalar, leading, transposed};
        auto start = data + static_cast<ptrdiff_t>(batch) * stride * static_cast<ptrdiff_t>(value_bytes());
        matrix.data = start.at(matrix.span(rows, columns) * value_bytes());
        return matrix;
    }
};

struct Product {
    size_t rows, columns, inner, batches;
    float alpha, beta;
    Operand a, b, c;
};

void compute(const Product& product) {
    for (size_t batch = 0; batch < product.batches; ++batch) {
        Matrix a = product.a.matrix(batch, product.rows, product.inner);
        Matrix b = product.b.matrix(batch, product.inner, product.columns);
        Matrix c = product.c.matrix(batch, product.rows, product.columns);
        multiply(product.rows, product.columns, product.inner, product.alpha, a, b, product.beta,
                 const_cast<void*>(c.data), c.scalar, c.leading);
    }
}

int submit(const char* function, void* opaque, const Product& product, size_t batches, Work work) {
    auto* handle = static_cast<Handle*>(opaque);
    if (handle == nullptr) return not_initialised;
    for (const Operand* operand : {&product.a, &product.b, &product.c}) {
        if (operand->type != real_16 && operand->type != real_32) {
            log(std::string("unknown:") + function + " of type " + std::to_string(operand->type));
            return not_supported;
        }
    }
    bool captured = stream::capturing(handle->stream);
    size_t bytes = (product.rows * product.inner * product.a.value_bytes() +
                    product.inner * product.columns * product.b.value_bytes() +
                    product.rows * product.columns * product.c.value_bytes()) * batches;
    log(std::string(captured ? "captured:kernel:" : "kernel:") + function, bytes);
    Error result = runtime::call(Need::Context, Capture::Allowed, [&] {
        return stream::submit(handle->stream, stream::Operation::Kernel, current_script()->compute ? work : Work([] {}));
    });
    return result == error::success ? success : execution_failed;
}

int submit(const char* function, void* opaque, const Product& product) {
    return submit(function, opaque, product, product.batches, [product] { compute(product); });
}

float scalar(const void* value, bool half_precision) {
    return half_precision ? float(*static_cast<const half*>(value)) : *static_cast<const float*>(value);
}

bool computes_in_half(int compute_type) { return compute_type == compute_16 || compute_type == compute_16_pedantic; }

DevicePointer<char> at(const void* pointer) { return {pointer}; }

}  // namespace

CUDA_DOUBLE_EXPORT int cublasCreate_v2(void** handle) {
    Error result = runtime::call(Need::Context, Capture::Allowed, [&] {
        *handle = new Handle;
        return error::success;
    });
    return result == error::success ? success : not_initialised;
}
CUDA_DOUBLE_EXPORT int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return success;
}
CUDA_DOUBLE_EXPORT int cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return success;
}
CUDA_DOUBLE_EXPORT int cublasSetWorkspace_v2(void*, void*, size_t) { return success; }
CUDA_DOUBLE_EXPORT int cublasGetMathMode(void* handle, int* mode) {
    *mode = static_cast<Handle*>(handle)->math_mode;
    return success;
}
CUDA_DOUBLE_EXPORT int cublasSetMathMode(void* handle, int mode) {
    static_cast<Handle*>(handle)->math_mode = mode;
    return success;
}

CUDA_DOUBLE_EXPORT const char* cublasGetStatusName(int status) {
    switch (status) {
        case success: return "CUBLAS_STATUS_SUCCESS";
        case not_initialised: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case invalid_value: return "CUBLAS_STATUS_INVALID_VALUE";
        case execution_failed: return "CUBLAS_STATUS_EXECUTION_FAILED";
        default: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
}
CUDA_DOUBLE_EXPORT const char* cublasGetStatusString(int status) { return cublasGetStatusName(status); }

CUDA_DOUBLE_EXPORT int cublasGemmStridedBatchedEx(void* handle, int a_operation, int b_operation, int rows, int columns,
                                                  int inner, const void* alpha, const void* a, int a_type, int a_leading,
                                                  long long a_stride, const void* b, int b_type, int b_leading,
                                                  long long b_stride, const void* beta, void* c, int c_type, int c_leading,
                                                  long long c_stride, int batches, int compute_type, int) {
    bool half_precision = computes_in_half(compute_type);
    auto count = [](int value) { return static_cast<size_t>(value); };
    return submit("cublasGemmStridedBatchedEx", handle,
                  {count(rows), count(columns), count(inner), count(batches), scalar(alpha, half_precision),
                   scalar(beta, half_precision), {at(a), a_type, count(a_leading), a_operation != 0, a_stride},
                   {at(b), b_type, count(b_leading), b_operation != 0, b_stride},
                   {at(c), c_type, count(c_leading), false, c_stride}});
}
CUDA_DOUBLE_EXPORT int cublasGemmEx(void* handle, int a_operation, int b_operation, int rows, int columns, int inner,
                                    const void* alpha, const void* a, int a_type, int a_leading, const void* b, int b_type,
                                    int b_leading, const void* beta, void* c, int c_type, int c_leading, int compute_type, int) {
    bool half_precision = computes_in_half(compute_type);
    auto count = [](int value) { return static_cast<size_t>(value); };
    return submit("cublasGemmEx", handle,
                  {count(rows), count(columns), count(inner), 1, scalar(alpha, half_precision), scalar(beta, half_precision),
                   {at(a), a_type, count(a_leading), a_operation != 0}, {at(b), b_type, count(b_leading), b_operation != 0},
                   {at(c), c_type, count(c_leading), false}});
}
CUDA_DOUBLE_EXPORT int cublasSgemmStridedBatched(void* handle, int a_operation, int b_operation, int rows, int columns,
                                                 int inner, const float* alpha, const float* a, int a_leading,
                                                 long long a_stride, const float* b, int b_leading, long long b_stride,
                                                 const float* beta, float* c, int c_leading, long long c_stride, int batches) {
    return cublasGemmStridedBatchedEx(handle, a_operation, b_operation, rows, columns, inner, alpha, a, real_32, a_leading,
                                      a_stride, b, real_32, b_leading, b_stride, beta, c, real_32, c_leading, c_stride,
                                      batches, 0, 0);
}
CUDA_DOUBLE_EXPORT int cublasSgemm_v2(void* handle, int a_operation, int b_operation, int rows, int columns, int inner,
                                      const float* alpha, const float* a, int a_leading, const float* b, int b_leading,
                                      const float* beta, float* c, int c_leading) {
    return cublasGemmEx(handle, a_operation, b_operation, rows, columns, inner, alpha, a, real_32, a_leading, b, real_32,
                        b_leading, beta, c, real_32, c_leading, 0, 0);
}

// The addresses of the matrices lie on the device.
CUDA_DOUBLE_EXPORT int cublasGemmBatchedEx(void* opaque, int a_operation, int b_operation, int rows, int columns, int inner,
                                           const void* alpha, const void* const a[], int a_type, int a_leading,
                                           const void* const b[], int b_type, int b_leading, const void* beta, void* const c[],
                                           int c_type, int c_leading, int batches, int compute_type, int) {
    bool half_precision = computes_in_half(compute_type);
    auto count = [](int value) { return static_cast<size_t>(value); };
    Product one{count(rows), count(columns), count(inner), 1, scalar(alpha, half_precision), scalar(beta, half_precision),
                {{}, a_type, count(a_leading), a_operation != 0}, {{}, b_type, count(b_leading), b_operation != 0},
                {{}, c_type, count(c_leading), false}};
    DevicePointer<const void*> as{a}, bs{b}, cs{c};
    return submit("cublasGemmBatchedEx", opaque, one, count(batches), [=] {
        Product product = one;
        for (size_t n = 0; n < count(batches); ++n) {
            product.a.data = at(as.at(count(batches))[n]);
            product.b.data = at(bs.at(count(batches))[n]);
            product.c.data = at(cs.at(count(batches))[n]);
            compute(product);
        }
    });
}
CUDA_DOUBLE_EXPORT int cublasSgemmBatched(void* handle, int a_operation, int b_operation, int rows, int columns, int inner,
                                          const float* alpha, const float* const a[], int a_leading, const float* const b[],
                                          int b_leading, const float* beta, float* const c[], int c_leading, int batches) {
    auto untyped = [](auto pointers) { return reinterpret_cast<const void* const*>(pointers); };
    return cublasGemmBatchedEx(handle, a_operation, b_operation, rows, columns, inner, alpha, untyped(a), real_32, a_leading,
                               untyped(b), real_32, b_leading, beta, const_cast<void* const*>(untyped(c)), real_32, c_leading,
                               batches, 0, 0);
}

// C = alpha op(A), which transposes; with a second matrix it is not known.
CUDA_DOUBLE_EXPORT int cublasSgeam(void* opaque, int a_operation, int, int rows, int columns, const float* alpha, const float* a,
                                   int a_leading, const float* beta, const float*, int, float* c, int c_leading) {
    auto* handle = static_cast<Handle*>(opaque);
    if (*beta != 0) return not_supported;
    log(stream::capturing(handle->stream) ? "captured:kernel:cublasSgeam" : "kernel:cublasSgeam");
    auto count = [](int value) { return static_cast<size_t>(value); };
    Operand from{at(a), real_32, count(a_leading), a_operation != 0}, to{at(c), real_32, count(c_leading), false};
    float factor = *alpha;
    Error result = runtime::call(Need::Context, Capture::Allowed, [&] {
        return stream::submit(handle->stream, stream::Operation::Kernel, [=] {
            size_t height = count(rows), width = count(columns);
            auto* values = static_cast<const float*>(from.matrix(0, height, width).data);
            auto* result = static_cast<float*>(const_cast<void*>(to.matrix(0, height, width).data));
            for (size_t column = 0; column < width; ++column) {
                for (size_t row = 0; row < height; ++row) {
                    size_t place = from.transposed ? row * from.leading + column : column * from.leading + row;
                    result[column * to.leading + row] = factor * values[place];
                }
            }
        });
    });
    return result == error::success ? success : execution_failed;
}

#define NOT_SUPPORTED(function)                 \
    CUDA_DOUBLE_EXPORT int function() {         \
        log("unknown:" #function);              \
        return not_supported;                   \
    }
NOT_SUPPORTED(cublasDgeam)
NOT_SUPPORTED(cublasDgemmBatched)
NOT_SUPPORTED(cublasDgemmStridedBatched)
NOT_SUPPORTED(cublasDgemm_v2)
NOT_SUPPORTED(cublasDgetrfBatched)
NOT_SUPPORTED(cublasDgetriBatched)
NOT_SUPPORTED(cublasScopy_v2)
NOT_SUPPORTED(cublasSgetrfBatched)
NOT_SUPPORTED(cublasSgetriBatched)
NOT_SUPPORTED(cublasSscal_v2)

}  // namespace cuda_double
