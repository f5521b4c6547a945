//! Work of streams: it waits for its turn, a graph records it, and a recorded graph runs it again on what memory holds then.

use std::ptr;

use hush_tests::cuda_double::CudaDouble;

use crate::api::{
    Api, CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, DEVICE_TO_DEVICE, DEVICE_TO_HOST, HOST_TO_DEVICE, Pointer, SUCCESS,
    alone, written,
};

/// `onnxruntime::cuda::RangeKernel<float>(float start, float delta, long count, float* out)`
const RANGE: &std::ffi::CStr = c"_ZN11onnxruntime4cuda11RangeKernelIfEEvT_S2_lPS2_";

type Call<'a> = Box<dyn FnMut() -> i32 + 'a>;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

fn launch_range(api: &Api, function: *const std::ffi::c_void, start: f32, out: Pointer, stream: Pointer) -> i32 {
    let (mut start, mut delta, mut count, mut out) = (start, 0.5_f32, 4_i64, out);
    let mut arguments: [Pointer; 4] =
        [(&raw mut start).cast(), (&raw mut delta).cast(), (&raw mut count).cast(), (&raw mut out).cast()];
    api.launch(function, &mut arguments, stream)
}

#[test]
fn a_graph_runs_what_was_recorded_on_what_memory_holds_then() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("graphs::a_graph_runs_what_was_recorded_on_what_memory_holds_then", cuda.as_ref(), |api| {
        let range = api.register(RANGE, 90);
        let stream = api.stream();
        let (source, made, copied) = (api.allocate(16), api.allocate(16), api.allocate(32));
        api.upload(source, &[1; 16]);
        api.upload(copied, &[9; 32]);

        let record = |stream| {
            // The arguments live only for the calls.
            assert_eq!(launch_range(api, range, 3.0, made, stream), SUCCESS);
            assert_eq!(api.cudaMemcpyAsync(copied, made, 16, DEVICE_TO_DEVICE, stream), SUCCESS);
            let behind = copied.wrapping_byte_add(16);
            assert_eq!(api.cudaMemcpyAsync(behind, source, 16, DEVICE_TO_DEVICE, stream), SUCCESS);
            assert_eq!(api.cudaMemsetAsync(source, 7, 4, stream), SUCCESS);
        };
        assert_eq!(api.cudaStreamBeginCapture(stream, 1), SUCCESS);
        record(stream);
        let graph = written(ptr::null_mut(), |graph| api.cudaStreamEndCapture(stream, graph));
        assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS);
        assert_eq!(api.download(copied, 32), [9; 32], "nothing runs while it is recorded");

        let executable = written(ptr::null_mut(), |executable| api.cudaGraphInstantiate(executable, graph, 0));
        for before in [[1_u8; 16], [2; 16]] {
            api.upload(source, &before);
            api.upload(made, &[0; 16]);
            assert_eq!(api.cudaGraphLaunch(executable, stream), SUCCESS);
            assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS);
            let replayed = (api.download(copied, 32), api.download(source, 16));

            api.upload(source, &before);
            record(stream);
            assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS);
            assert_eq!(replayed, (api.download(copied, 32), api.download(source, 16)), "as without a graph");
            assert_eq!(floats(&replayed.0[..16]), [3.0, 3.5, 4.0, 4.5]);
            assert_eq!(replayed.0[16..], before);
            assert_eq!(replayed.1[..5], [7, 7, 7, 7, before[4]]);
        }
    });
    let Some(cuda) = cuda else { return };
    let counters = cuda.logs().unwrap().pop().unwrap().counters();
    assert_eq!((counters.graph_captures, counters.graph_launches.count, counters.graph_launches.bytes), (1, 2, 8));
    assert_eq!((counters.kernels.total().count, counters.captured_kernels.named("RangeKernel<float>").count), (2, 1));
    assert_eq!(counters.unknown, Vec::<String>::new());
}

#[test]
fn what_cannot_be_recorded_is_refused_and_spoils_the_recording() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("graphs::what_cannot_be_recorded_is_refused_and_spoils_the_recording", cuda.as_ref(), |api| {
        let stream = api.stream();
        let device = api.allocate(16);
        let mut pageable = [0_u8; 16];
        let pageable: Pointer = pageable.as_mut_ptr().cast();
        let mut pointer = ptr::null_mut();
        let mut forbidden: Vec<(&str, Call<'_>)> = vec![
            ("cudaMalloc", Box::new(|| api.cudaMalloc(&mut pointer, 16))),
            ("cudaStreamSynchronize", Box::new(|| api.cudaStreamSynchronize(stream))),
            ("cudaDeviceSynchronize", Box::new(|| api.cudaDeviceSynchronize())),
            ("cudaMemcpy", Box::new(|| api.cudaMemcpy(device, pageable, 16, HOST_TO_DEVICE))),
            ("pageable", Box::new(|| api.cudaMemcpyAsync(device, pageable, 16, HOST_TO_DEVICE, stream))),
        ];
        for (name, call) in &mut forbidden {
            assert_eq!(api.cudaStreamBeginCapture(stream, 1), SUCCESS);
            assert_eq!(call(), CAPTURE_UNSUPPORTED, "{name}");
            let mut graph = ptr::null_mut();
            assert_eq!(api.cudaStreamEndCapture(stream, &mut graph), CAPTURE_INVALIDATED, "{name}");
        }
        assert_eq!(api.cudaGetLastError(), CAPTURE_INVALIDATED);
        assert_eq!(api.cudaStreamSynchronize(stream), SUCCESS, "the stream works afterwards");
    });
}

#[test]
fn a_copy_out_of_a_stream_is_there_when_it_was_waited_for() {
    let cuda = CudaDouble::one_gpu().unwrap();
    alone("graphs::a_copy_out_of_a_stream_is_there_when_it_was_waited_for", cuda.as_ref(), |api| {
        let (first, second) = (api.stream(), api.stream());
        let device = api.allocate(4);
        let pinned = api.pinned(8);
        pinned.copy_from_slice(&[1, 2, 3, 4, 0, 0, 0, 0]);
        let (from, to): (Pointer, Pointer) = (pinned.as_mut_ptr().cast(), pinned[4..].as_mut_ptr().cast());
        assert_eq!(api.cudaMemcpyAsync(device, from, 4, HOST_TO_DEVICE, first), SUCCESS);
        let event = written(ptr::null_mut(), |event| api.cudaEventCreateWithFlags(event, 2));
        assert_eq!(api.cudaEventRecord(event, first), SUCCESS);
        assert_eq!(api.cudaStreamWaitEvent(second, event, 0), SUCCESS);
        assert_eq!(api.cudaMemcpyAsync(to, device, 4, DEVICE_TO_HOST, second), SUCCESS);

        // Real copies may still be under way as well.
        assert_eq!(pinned[4..], [0; 4], "not waited for");
        pinned[0] = 9;
        assert_eq!(api.cudaStreamSynchronize(second), SUCCESS);
        assert_eq!(pinned[4..], [9, 2, 3, 4], "the source was changed too early");
        assert_eq!(api.cudaEventSynchronize(event), SUCCESS);
    });
}
