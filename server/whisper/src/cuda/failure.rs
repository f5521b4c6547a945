//! What a failure of ONNX Runtime on a GPU means. It has one code for all of them, so that its words have to do.

/// How ONNX Runtime's arena (with and without a limit), CUDA, cuBLAS and cuDNN say that the device is full.
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

/// Whether every later call of this process to CUDA fails too: the errors of `driver_types.h` after which "the process must be
/// terminated and relaunched", and those of a device that is gone.
pub fn is_device_lost(message: &str) -> bool {
    // Before the number of the error: ONNX Runtime's words, and the engine's own.
    const BEFORE: [&str; 2] = ["CUDA failure ", "CUDA error "];
    const LOST: [u32; 15] = [46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810];
    let codes = BEFORE.iter().flat_map(|before| message.split(before).skip(1)).filter_map(|rest| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        rest.get(..digits)?.parse().ok()
    });
    // cuBLAS gives no number, and says this of a product that could not be launched.
    codes.into_iter().any(|code: u32| LOST.contains(&code)) || message.contains("CUBLAS_STATUS_EXECUTION_FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart() {
        let lost = [
            "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=h",
            "cudaStreamSynchronize failed: an illegal memory access was encountered (CUDA error 700)",
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
