// libcurand.so.10: the provider is linked with the library and uses no function of it.
#include "abi.h"

CUDA_DOUBLE_EXPORT int curandGetVersion(int* version) {
    *version = 10400;
    return 0;
}
