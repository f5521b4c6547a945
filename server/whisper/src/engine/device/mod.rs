//! The engine's memory and calls on a CUDA device.
//!
//! Everything runs on one stream: the encoder, the decoder, and the copies between them, so that the host waits only to
//! read a step's result. A decode step is one copy of its inputs to the device, one launch of a CUDA graph, one copy of
//! some hundred bytes per row back, and one synchronisation.
//!
//! Weights, caches and the buffers of a step are allocated with `cudaMalloc` in a few blocks, apart from the arenas of ONNX
//! Runtime: their addresses stay the same, which a captured graph needs, and freed memory returns to the device.

pub mod cuda_api;
pub mod encoder;
pub mod kv_cache;
pub mod memory;
pub mod step_io;
mod tensor_block;
pub mod weights;

use std::sync::Arc;

use ort::{
    AsPointer,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, RunOptions, Session},
};

use cuda_api::CudaApi;
use memory::CudaStream;
use weights::DeviceWeights;

/// The value of `gpu_graph_id` with which ONNX Runtime neither captures nor replays a graph.
const NO_GRAPH: &str = "-1";

/// A device, the stream on which everything runs, and the weights of the model. Cheap to clone.
#[derive(Clone)]
pub struct DeviceContext {
    pub cuda: Arc<CudaApi>,
    pub stream: Arc<CudaStream>,
    pub weights: Arc<DeviceWeights>,
}

impl DeviceContext {
    /// Describes the device's memory to ONNX Runtime.
    pub fn memory_info(&self) -> Result<MemoryInfo<'static>, ort::Error> {
        memory_info(self.cuda.device())
    }
}

pub fn memory_info(device: i32) -> Result<MemoryInfo<'static>, ort::Error> {
    MemoryInfo::new(AllocationDevice::CUDA, device, AllocatorType::Device, MemoryType::Default)
}

/// Options of a call that does not wait for the device. `graph`: the number of the CUDA graph that captures this call.
pub fn run_options(graph: Option<u32>) -> Result<RunOptions, ort::Error> {
    let mut options = RunOptions::new()?;
    options.disable_device_sync()?;
    options.set("gpu_graph_id", graph.map_or_else(|| NO_GRAPH.to_owned(), |id| id.to_string()))?;
    Ok(options)
}

/// Runs a session whose inputs and outputs are all bound. ort's own function also collects all outputs by name each time.
#[allow(unsafe_code, reason = "one call of ONNX Runtime's interface with pointers that ort owns")]
pub fn run_bound(session: &mut Session, options: &RunOptions, binding: &IoBinding) -> Result<(), ort::Error> {
    let run = ort::api().RunWithBinding;

    // SAFETY: the session is borrowed exclusively for this call, and options and binding are alive.
    let status = unsafe { run(session.ptr_mut(), options.ptr(), binding.ptr()) };

    // SAFETY: the status is the one that ONNX Runtime has just returned.
    unsafe { ort::Error::result_from_status(status) }
}
