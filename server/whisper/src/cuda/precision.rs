//! Checks which precisions run on CUDA.

use super::error::CudaError;
use crate::engine::EngineDevice;
use crate::graph::Precision;

/// Only fp16 runs on CUDA. `GroupQueryAttention` has no fp32 kernel there: ONNX Runtime would run it on the CPU with copies
/// of the caches that are never updated, and produce wrong text without an error. int8's operators would run on the CPU in
/// the same way.
pub fn check_precision(device: EngineDevice, precision: Precision) -> Result<(), CudaError> {
    match (device, precision) {
        (EngineDevice::Cpu, _) | (EngineDevice::Cuda { .. }, Precision::Fp16) => Ok(()),
        (EngineDevice::Cuda { .. }, Precision::Fp32 | Precision::Int8) => Err(CudaError::Precision(precision)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_takes_fp16_only() {
        for precision in Precision::ALL {
            assert!(check_precision(EngineDevice::Cpu, precision).is_ok());

            let on_cuda = check_precision(EngineDevice::Cuda { index: 0 }, precision);
            assert_eq!(on_cuda.is_ok(), precision == Precision::Fp16);

            if let Err(error) = on_cuda {
                let error = error.to_string();
                let named = [precision.as_str(), "--precision fp16", "--device cpu"];
                assert!(named.iter().all(|part| error.contains(part)), "{error}");
            }
        }
    }
}
