// libcublasLt.so.13: its functions exist, as the provider is linked with them; none is needed by Hush's graphs.
#include <string>

#include "abi.h"
#include "log.h"

namespace {

constexpr int not_supported = 15;

}  // namespace

CUDA_DOUBLE_EXPORT int cublasLtCreate(void** handle) {
    *handle = new char;
    return 0;
}
CUDA_DOUBLE_EXPORT int cublasLtDestroy(void* handle) {
    delete static_cast<char*>(handle);
    return 0;
}

#define NOT_SUPPORTED(function)                           \
    CUDA_DOUBLE_EXPORT int function() {                   \
        cuda_double::log("unknown:" #function);           \
        return not_supported;                             \
    }
NOT_SUPPORTED(cublasLtMatmul)
NOT_SUPPORTED(cublasLtMatmulAlgoConfigSetAttribute)
NOT_SUPPORTED(cublasLtMatmulAlgoGetHeuristic)
NOT_SUPPORTED(cublasLtMatmulAlgoInit)
NOT_SUPPORTED(cublasLtMatmulDescCreate)
NOT_SUPPORTED(cublasLtMatmulDescDestroy)
NOT_SUPPORTED(cublasLtMatmulDescSetAttribute)
NOT_SUPPORTED(cublasLtMatmulPreferenceCreate)
NOT_SUPPORTED(cublasLtMatmulPreferenceDestroy)
NOT_SUPPORTED(cublasLtMatmulPreferenceSetAttribute)
NOT_SUPPORTED(cublasLtMatrixLayoutCreate)
NOT_SUPPORTED(cublasLtMatrixLayoutDestroy)
NOT_SUPPORTED(cublasLtMatrixLayoutSetAttribute)
NOT_SUPPORTED(cublasLtMatrixTransform)
NOT_SUPPORTED(cublasLtMatrixTransformDescCreate)
NOT_SUPPORTED(cublasLtMatrixTransformDescDestroy)
