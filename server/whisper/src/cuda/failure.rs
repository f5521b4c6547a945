//! Classifies failures of ONNX Runtime on a GPU by their text, because they all have the same code.

/// Whether the device is full, by the texts of ONNX Runtime's arena (with and without a limit), CUDA, cuBLAS and cuDNN.
pub fn is_out_of_memory(message: &str) -> bool {
    const SIGNS: &[&str] = &[
        "Failed to allocate memory for requested buffer",
        "is smaller than requested bytes",
        "cudaErrorMemoryAllocation",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    ];

    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Errors of `driver_types.h` after which "the process must be terminated and relaunched", and those of a lost device.
const LOST: [(u32, &str); 15] = [
    (46, "cudaErrorDevicesUnavailable"),
    (214, "cudaErrorECCUncorrectable"),
    (220, "cudaErrorNvlinkUncorrectable"),
    (700, "cudaErrorIllegalAddress"),
    (702, "cudaErrorLaunchTimeout"),
    (709, "cudaErrorContextIsDestroyed"),
    (710, "cudaErrorAssert"),
    (714, "cudaErrorHardwareStackError"),
    (715, "cudaErrorIllegalInstruction"),
    (716, "cudaErrorMisalignedAddress"),
    (717, "cudaErrorInvalidAddressSpace"),
    (718, "cudaErrorInvalidPc"),
    (719, "cudaErrorLaunchFailure"),
    (721, "cudaErrorContained"),
    (810, "cudaErrorMpsClientTerminated"),
];
/// The text before an error's number or name, in messages of ONNX Runtime and of the engine.
const BEFORE: [&str; 2] = ["CUDA failure ", "CUDA error "];

/// Whether every later CUDA call of this process fails too.
pub fn is_device_lost(message: &str) -> bool {
    let mut errors = BEFORE.iter().flat_map(|before| message.split(before).skip(1)).map(|rest| {
        let end = rest.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    });
    let is_lost = |error: &str| LOST.iter().any(|(code, name)| error == *name || error.parse() == Ok(*code));

    // cuBLAS reports no number; it uses this status for a product that could not be launched.
    errors.any(is_lost) || message.contains("CUBLAS_STATUS_EXECUTION_FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_distinguished() {
        let lost = [
            "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=h",
            "cudaStreamSynchronize failed: an illegal memory access was encountered (CUDA error 700)",
            "Name:'Concat_x' Status Message: CUDA error cudaErrorLaunchFailure:unspecified launch failure",
            "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0",
        ];

        for message in lost {
            assert!(is_device_lost(message) && !is_out_of_memory(message), "{message}");
        }

        let full = "CUDA failure 2: out of memory ; GPU=0";

        assert!(is_out_of_memory(full) && !is_device_lost(full));

        for other in ["CUDA failure 1: invalid argument", "CUDA failure 7190: none", "CUDA error ", "the model failed"]
        {
            assert!(!is_device_lost(other) && !is_out_of_memory(other), "{other}");
        }
    }
}
