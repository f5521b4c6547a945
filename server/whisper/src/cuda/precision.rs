//! Which precisions run on CUDA.

use super::error::CudaError;
use crate::engine::Device;
use crate::graph::Precision;

/// CUDA takes fp16 only. `GroupQueryAttention` has no fp32 kernel there: ONNX Runtime would run it on the CPU against copies
/// of the caches that are never brought up to date, and write wrong text without an error. int8's operators would run on the
/// CPU in the same way.
pub fn check_precision(device: Device, precision: Precision) -> Result<(), CudaError> {
    match (device, precision) {
        (Device::Cpu, _) | (Device::Cuda { .. }, Precision::Fp16) => Ok(()),
        (Device::Cuda { .. }, Precision::Fp32 | Precision::Int8) => Err(CudaError::Precision(precision)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_takes_fp16_only() {
        for precision in Precision::ALL {
            assert!(check_precision(Device::Cpu, precision).is_ok());

            let on_cuda = check_precision(Device::Cuda { index: 0 }, precision);
            assert_eq!(on_cuda.is_ok(), precision == Precision::Fp16);

            if let Err(error) = on_cuda {
                let error = error.to_string();
                let named = [precision.as_str(), "--precision fp16", "--device cpu"];
                assert!(named.iter().all(|part| error.contains(part)), "{error}");
            }
        }
    }
}
