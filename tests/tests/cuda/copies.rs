//! Copies: of parts of matrices and of blocks, within their allocations, and as slow as a script says.

use std::ptr;
use std::time::{Duration, Instant};

use hush_tests::cuda_double::{CopyRoute, CudaDouble, Direction, HostMemory};

use crate::api::{
    Copy3D, DEVICE_TO_DEVICE, DEVICE_TO_HOST, Extent3D, HOST_TO_DEVICE, INVALID_VALUE, NOT_READY, Pitched, Pointer,
    SUCCESS, alone,
};

#[test]
fn parts_of_matrices_and_of_blocks_are_copied() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("copies::parts_of_matrices_and_of_blocks_are_copied", cuda.as_ref(), |api| {
        let none = ptr::null_mut();
        let (matrix, packed) = (api.allocate(24), api.allocate(24));
        api.upload(matrix, &(0..24).collect::<Vec<u8>>());
        // Two columns of a matrix of four rows of six.
        let column = matrix.wrapping_byte_add(2);
        assert_eq!(api.cudaMemcpy2DAsync(packed, 2, column, 6, 2, 4, DEVICE_TO_DEVICE, none), SUCCESS);
        assert_eq!(api.download(packed, 8), [2, 3, 8, 9, 14, 15, 20, 21]);

        // The second row of each of two blocks of two rows of six.
        let pitched = |pointer, pitch, height| Pitched { pointer, pitch, width: pitch, height };
        let copy = Copy3D {
            source_array: none,
            source_position: Extent3D { width: 1, height: 1, depth: 0 },
            source: pitched(matrix, 6, 2),
            destination_array: none,
            destination_position: Extent3D::default(),
            destination: pitched(packed, 3, 1),
            extent: Extent3D { width: 3, height: 1, depth: 2 },
            kind: DEVICE_TO_DEVICE,
        };
        assert_eq!(api.cudaMemcpy3DAsync(&copy, none), SUCCESS);
        assert_eq!(api.download(packed, 6), [7, 8, 9, 19, 20, 21]);
    });
}

#[test]
fn a_copy_past_an_allocation_or_in_the_wrong_direction_is_refused() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("copies::a_copy_past_an_allocation_or_in_the_wrong_direction_is_refused", cuda.as_ref(), |api| {
        let device = api.allocate(16);
        let mut host = [0_u8; 64];
        let host: Pointer = host.as_mut_ptr().cast();
        assert_eq!(api.cudaMemcpy(device, host, 17, HOST_TO_DEVICE), INVALID_VALUE);
        assert_eq!(api.cudaMemcpy(host, device, 16, HOST_TO_DEVICE), INVALID_VALUE);
        assert_eq!(api.cudaFree(device), SUCCESS);
        assert_eq!(api.cudaMemcpy(device, host, 16, HOST_TO_DEVICE), INVALID_VALUE, "freed");
        assert_eq!(api.cudaFree(device), INVALID_VALUE, "twice");
    });
}

#[test]
fn copies_take_as_long_as_the_script_says_and_only_those_of_pageable_memory_keep_the_caller() {
    const TEST: &str =
        "copies::copies_take_as_long_as_the_script_says_and_only_those_of_pageable_memory_keep_the_caller";
    const BYTES: usize = 20 << 20;
    // A fifth of a second for each.
    let taking = Duration::from_millis(200);
    let mut cuda = CudaDouble::one_gpu().unwrap();
    if let Some(cuda) = &mut cuda {
        cuda.change(|script| script.copy_bytes_per_second = Some(100 << 20)).unwrap();
    }
    alone(TEST, cuda.as_ref(), |api| {
        let stream = api.stream();
        let device = api.allocate(BYTES);
        let pinned: Pointer = api.pinned(BYTES).as_mut_ptr().cast();
        let mut pageable = vec![0_u8; BYTES];
        let began = Instant::now();
        assert_eq!(api.cudaMemcpyAsync(device, pinned, BYTES, HOST_TO_DEVICE, stream), SUCCESS);
        assert_eq!(api.cudaStreamQuery(stream), NOT_READY);
        assert!(began.elapsed() < taking, "the caller goes on");
        assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS);
        assert!(began.elapsed() >= taking);
        assert_eq!(api.cudaStreamQuery(stream), SUCCESS);

        let began = Instant::now();
        assert_eq!(api.cudaMemcpyAsync(pageable.as_mut_ptr().cast(), device, BYTES, DEVICE_TO_HOST, stream), SUCCESS);
        assert!(began.elapsed() >= taking);
    });
    let Some(cuda) = cuda else { return };
    let copies = cuda.logs().unwrap().pop().unwrap().counters().copies;
    let copy = |direction, host| CopyRoute { direction, host, synchronous: false };
    let pinned = copies[&copy(Direction::HostToDevice, HostMemory::Pinned)];
    let pageable = copies[&copy(Direction::DeviceToHost, HostMemory::Pageable)];
    assert_eq!((pinned.count, pinned.bytes, pageable.count), (1, BYTES as u64, 1));
}
