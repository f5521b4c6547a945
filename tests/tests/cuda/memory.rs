//! Device memory: the host cannot touch it, it ends somewhere, and NVML tells the same of it.

use std::os::unix::process::ExitStatusExt;
use std::ptr;

use hush_nvml::ScriptedProcess;
use hush_tests::cuda_double::{CallCount, CopyRoute, CudaDouble, Direction, HostMemory};
use hush_tests::gpus::{GIB, SOON, of_both, of_gpu};
use hush_tests::process;
use hush_tests::wait::wait_for;
use rustix::process::Signal;

use crate::api::{HOST_TO_DEVICE, INVALID_VALUE, OUT_OF_MEMORY, Pointer, SUCCESS, alone, child};

const MIB: u64 = 1 << 20;
const ALREADY_REGISTERED: i32 = 712;
const NOT_REGISTERED: i32 = 713;

#[test]
fn a_host_access_to_device_memory_ends_the_process() {
    let cuda = CudaDouble::one_gpu().unwrap();
    #[allow(unsafe_code, reason = "the access that must fail")]
    let output = child("memory::a_host_access_to_device_memory_ends_the_process", cuda.as_ref(), &[], |api| {
        let device: *const u8 = api.allocate(16).cast();
        // SAFETY: it is not; the process ends here.
        let byte = unsafe { device.read_volatile() };
        println!("the host has read {byte}");
    });
    let Some(output) = output else { return };
    assert_eq!(output.status.signal(), Some(Signal::SEGV.as_raw()), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn memory_ends_where_the_script_says_and_is_there_again_when_freed() {
    let mut cuda = CudaDouble::one_gpu().unwrap();
    if let Some(cuda) = &mut cuda {
        cuda.change(|script| script.allocation_limit_bytes = Some(64 * MIB)).unwrap();
    }
    alone("memory::memory_ends_where_the_script_says_and_is_there_again_when_freed", cuda.as_ref(), |api| {
        let first = api.allocate(40 << 20);
        let mut second: Pointer = ptr::null_mut();
        assert_eq!(api.cudaMalloc(&mut second, 40 << 20), OUT_OF_MEMORY);
        assert_eq!((second, api.cudaGetLastError(), api.cudaGetLastError()), (ptr::null_mut(), OUT_OF_MEMORY, SUCCESS));
        assert_eq!(api.cudaFree(first), SUCCESS);
        assert_eq!(api.cudaMalloc(&mut second, 40 << 20), SUCCESS);
    });
    let Some(cuda) = cuda else { return };
    let counters = cuda.logs().unwrap().pop().unwrap().counters();
    assert_eq!((counters.refused_allocations.count, counters.device_allocations.count), (1, 2));
}

#[test]
fn registered_memory_is_pinned_and_a_reset_gives_everything_back() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("memory::registered_memory_is_pinned_and_a_reset_gives_everything_back", cuda.as_ref(), |api| {
        let mut host = vec![1_u8; 4096];
        let pointer: Pointer = host.as_mut_ptr().cast();
        assert_eq!(api.cudaHostRegister(pointer, 4096, 0), SUCCESS);
        assert_eq!(api.cudaHostRegister(pointer, 4096, 0), ALREADY_REGISTERED);
        let device = api.allocate(4096);
        api.mark(c"copy");
        assert_eq!(api.cudaMemcpyAsync(device, pointer, 4096, HOST_TO_DEVICE, api.stream()), SUCCESS);
        api.mark(c"done");
        assert_eq!(api.cudaHostUnregister(pointer), SUCCESS);
        assert_eq!(api.cudaHostUnregister(pointer), NOT_REGISTERED);
        let pinned: Pointer = api.pinned(16).as_mut_ptr().cast();
        assert_eq!((api.cudaFreeHost(pinned), api.cudaFreeHost(pinned)), (SUCCESS, INVALID_VALUE));

        let free = api.free_bytes();
        assert_eq!(api.cudaDeviceReset(), SUCCESS);
        assert!(api.free_bytes() > free);
        assert_eq!(api.cudaFree(device), INVALID_VALUE);
    });
    let Some(cuda) = cuda else { return };
    let copies = cuda.logs().unwrap().pop().unwrap().after_marks("copy").pop().unwrap().copies;
    let pinned = CopyRoute { direction: Direction::HostToDevice, host: HostMemory::Pinned, synchronous: false };
    assert_eq!(copies.into_iter().collect::<Vec<_>>(), [(pinned, CallCount { count: 1, bytes: 4096 })]);
}

/// Other holders of the script, the context, and other processes leave less of a device.
#[test]
fn what_others_hold_on_the_card_is_not_to_be_had() {
    let mut cuda = CudaDouble::one_gpu().unwrap();
    if let Some(cuda) = &mut cuda {
        cuda.change_gpu(|gpu| {
            gpu.total_bytes = GIB;
            gpu.reserved_bytes = 24 * MIB;
            gpu.used_bytes = 200 * MIB;
            gpu.processes = vec![ScriptedProcess { pid: 4_000_000, bytes: 300 * MIB, graphics: false }];
        })
        .unwrap();
        cuda.change(|script| script.context_bytes = 100 * MIB).unwrap();
    }
    alone("memory::what_others_hold_on_the_card_is_not_to_be_had", cuda.as_ref(), |api| {
        assert_eq!(api.free_bytes(), 400 << 20);
        let mut pointer: Pointer = ptr::null_mut();
        assert_eq!(api.cudaMalloc(&mut pointer, 402 << 20), OUT_OF_MEMORY);
        let _held = api.allocate(400 << 20);
        assert_eq!(api.free_bytes(), 0);
    });
}

/// One story: what a runner allocates is what NVML tells of it, another process finds no room because of it, and it is
/// gone with the runner, however that ends.
#[test]
fn nvml_tells_what_a_process_holds_until_it_is_killed() {
    let Some(mut cuda) = CudaDouble::one_gpu().unwrap() else { return };
    cuda.change(|script| script.context_bytes = 300 * MIB).unwrap();
    let server = cuda.server(&["--idle-timeout", "10m"]).unwrap();
    let answer = server.asr("?language=en", "en-1.wav").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let runner = server.runners().unwrap().into_iter().find(|pid| cuda.log(*pid).is_ok()).unwrap();
    let counters = cuda.log(runner).unwrap().counters();
    let allocated = counters.device_allocations.bytes - counters.device_frees.bytes;
    assert!(allocated > 16 * MIB && counters.unknown.is_empty(), "{counters:?}");

    // The context is in it; pieces of memory are rounded up.
    let mut told = 0;
    wait_for("NVML tells of the runner", SOON, || {
        told = server.metric(&of_both("hush_model_vram_bytes"))?.unwrap_or_default() as u64;
        Ok((300 * MIB + allocated..300 * MIB + allocated + 3 * MIB).contains(&told).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {told}, allocated {allocated}"));

    cuda.change_gpu(|gpu| gpu.total_bytes = told + 310 * MIB).unwrap();
    let refused = cuda.transcribe("en-1.wav", &[]).unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("Failed to allocate memory"), "{words}");

    process::send(runner, Signal::KILL).unwrap();
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON).unwrap();
    let alone = cuda.transcribe("en-1.wav", &[]).unwrap();
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
}
