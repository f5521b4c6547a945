//! The product on the double: the same tokens as on the CPU, counted, and clear errors.

use std::process::Output;

use hush_tests::cuda_double::{CudaDouble, Direction, transcribe_on_cpu};
use serde_json::Value;

fn tokens(output: &Output) -> Vec<Value> {
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    said["segments"].as_array().unwrap().iter().map(|segment| segment["tokens"].clone()).collect()
}

#[test]
fn a_recording_gives_the_tokens_of_the_cpu() {
    let Some(cuda) = CudaDouble::one_gpu().unwrap() else { return };
    let on_cuda = cuda.transcribe("en-1.wav", &["--output", "json"]).unwrap();
    let on_cpu = transcribe_on_cpu("en-1.wav", &["--output", "json"]).unwrap();
    assert_eq!(tokens(&on_cuda), tokens(&on_cpu));

    let counters = cuda.only_log().unwrap().counters();
    assert_eq!(counters.unknown, Vec::<String>::new());
    assert!(counters.kernels.named("cublasGemmEx").count > 10, "{counters:?}");
    assert!(counters.kernels.named("flash_fwd").count > 0, "{counters:?}");
    assert!(counters.copied(Direction::HostToDevice).bytes > 10 << 20, "the weights: {counters:?}");
    assert!(counters.synchronisations() > 0 && counters.device_operations() > 100, "{counters:?}");
    assert_eq!(counters.device_allocations.bytes, counters.device_frees.bytes, "all memory is given back");
}

#[test]
fn the_double_without_computing_only_counts() {
    let Some(mut cuda) = CudaDouble::one_gpu().unwrap() else { return };
    cuda.change(|script| script.compute = false).unwrap();
    let _ = cuda.transcribe("en-1.wav", &["--language", "en"]).unwrap();
    let counters = cuda.only_log().unwrap().counters();
    assert_eq!(counters.unknown, Vec::<String>::new());
    assert!(counters.kernels.total().count > 50, "{counters:?}");
}

#[test]
fn errors_of_the_device_reach_the_user() {
    let Some(mut cuda) = CudaDouble::one_gpu().unwrap() else { return };
    cuda.change(|script| script.launches_before_failure = Some(50)).unwrap();
    let lost = cuda.transcribe("en-1.wav", &[]).unwrap();
    let words = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(!lost.status.success() && words.contains("unspecified launch failure"), "{words}");

    cuda.change(|script| {
        script.launches_before_failure = None;
        script.allocation_limit_bytes = Some(8 << 20);
    })
    .unwrap();
    let full = cuda.transcribe("en-1.wav", &[]).unwrap();
    let words = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(!full.status.success() && words.contains("memory"), "{words}");
}

/// Each takes other kernels: attention of GPUs before 8.0 is CUTLASS's, that of the later ones flash attention and XQA.
#[test]
fn every_architecture_that_the_provider_holds_code_for_gives_the_tokens_of_the_cpu() {
    let Some(mut cuda) = CudaDouble::one_gpu().unwrap() else { return };
    // More than one token in a call of the decoder, and then one at a time.
    let args = ["--output", "json", "--initial-prompt", "The window is open. The server is free."];
    let on_cpu = tokens(&transcribe_on_cpu("de-2.wav", &args).unwrap());
    for capability in [[7, 5], [8, 0], [8, 6], [8, 9], [9, 0], [12, 0]] {
        cuda.change_gpu(|gpu| gpu.compute_capability = capability).unwrap();
        let on_cuda = cuda.transcribe("de-2.wav", &args).unwrap();
        assert_eq!(tokens(&on_cuda), on_cpu, "{capability:?}: {}", String::from_utf8_lossy(&on_cuda.stderr));
    }
    for log in cuda.logs().unwrap() {
        assert_eq!(log.counters().unknown, Vec::<String>::new());
    }
}
