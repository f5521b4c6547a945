//! What goes wrong: a device that is lost, a driver that does not work, code that is not there.

use std::ptr;

use hush_tests::cuda_double::CudaDouble;

use crate::api::{Api, Pointer, SUCCESS, alone};

const INSUFFICIENT_DRIVER: i32 = 35;
const INVALID_DEVICE_FUNCTION: i32 = 98;
const NO_KERNEL_IMAGE: i32 = 209;
const ECC_UNCORRECTABLE: i32 = 214;

/// `onnxruntime::cuda::RangeKernel<int>`, which would need four arguments; a count of 0 makes it do nothing.
const RANGE: &std::ffi::CStr = c"_ZN11onnxruntime4cuda11RangeKernelIiEEvT_S2_lPS2_";

fn launch(api: &Api, function: *const std::ffi::c_void, stream: Pointer) -> i32 {
    let (mut number, mut count, mut out) = (0_i32, 0_i64, api.allocate(4));
    let mut arguments: [Pointer; 4] =
        [(&raw mut number).cast(), (&raw mut number).cast(), (&raw mut count).cast(), (&raw mut out).cast()];
    api.launch(function, &mut arguments, stream)
}

#[test]
fn a_lost_device_fails_every_later_call() {
    let mut cuda = CudaDouble::one_gpu().unwrap();
    if let Some(cuda) = &mut cuda {
        cuda.change(|script| {
            script.launches_before_failure = Some(2);
            script.failure = ECC_UNCORRECTABLE;
        })
        .unwrap();
    }
    alone("faults::a_lost_device_fails_every_later_call", cuda.as_ref(), |api| {
        let range = api.register(RANGE, 90);
        let stream = api.stream();
        for _ in 0..2 {
            assert_eq!(launch(api, range, stream), SUCCESS);
            assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS);
        }
        assert_eq!(launch(api, range, stream), SUCCESS, "a launch does not wait");
        assert_eq!(api.cudaStreamSynchronize(stream), ECC_UNCORRECTABLE);
        let mut pointer: Pointer = ptr::null_mut();
        assert_eq!(api.cudaMalloc(&mut pointer, 16), ECC_UNCORRECTABLE);
        assert_eq!(api.cudaGetLastError(), ECC_UNCORRECTABLE);
        assert_eq!(api.cudaGetLastError(), ECC_UNCORRECTABLE, "it does not heal");
    });
}

#[test]
fn a_kernel_that_is_not_known_is_an_error_that_the_log_names() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("faults::a_kernel_that_is_not_known_is_an_error_that_the_log_names", cuda.as_ref(), |api| {
        let unknown = api.register(c"_Z8mysteryKv", 90);
        assert_eq!(api.launch(unknown, &mut [], ptr::null_mut()), INVALID_DEVICE_FUNCTION);
    });
    let Some(cuda) = cuda else { return };
    assert_eq!(cuda.logs().unwrap().pop().unwrap().counters().unknown, ["mysteryK"]);
}

#[test]
fn a_kernel_without_code_for_the_architecture_does_not_start() {
    let mut cuda = CudaDouble::one_gpu().unwrap();
    if let Some(cuda) = &mut cuda {
        cuda.change_gpu(|gpu| gpu.compute_capability = [8, 6]).unwrap();
    }
    alone("faults::a_kernel_without_code_for_the_architecture_does_not_start", cuda.as_ref(), |api| {
        let stream = api.stream();
        for (architecture, expected) in [(80, SUCCESS), (86, SUCCESS), (75, NO_KERNEL_IMAGE), (89, NO_KERNEL_IMAGE)] {
            let range = api.register(RANGE, architecture);
            assert_eq!(launch(api, range, stream), expected, "{architecture}");
        }
    });
}

#[test]
fn without_a_driver_that_works_nothing_does() {
    const TEST: &str = "faults::without_a_driver_that_works_nothing_does";
    let Some(mut cuda) = CudaDouble::one_gpu().unwrap() else { return };
    for (version, init_error, expected) in [(12090, 0, INSUFFICIENT_DRIVER), (13000, 803, 803), (13010, 0, SUCCESS)] {
        cuda.gpus.cuda_version = version;
        cuda.change(|script| script.init_error = init_error).unwrap();
        let text = expected.to_string();
        let output = crate::api::child(TEST, Some(&cuda), &[("EXPECTED", &text)], |api| {
            let expected: i32 = std::env::var("EXPECTED").unwrap().parse().unwrap();
            let mut count = 0;
            assert_eq!(api.cudaGetDeviceCount(&mut count), expected);
            assert_eq!(count, i32::from(expected == SUCCESS));
            let mut pointer: Pointer = ptr::null_mut();
            assert_eq!(api.cudaMalloc(&mut pointer, 16), expected);
        });
        let Some(output) = output else { return };
        assert!(output.status.success(), "{version}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
