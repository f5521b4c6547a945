//! Sessions of ONNX Runtime over the graphs of a model directory.

use std::path::Path;

use ort::{
    ep::{self, ArenaExtendStrategy, cuda::ConvAlgorithmSearch},
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};

use super::{Device, EngineOptions};

/// Microseconds for which idle threads of a session look for work before they sleep: longer than the time between two
/// operators or two steps. ONNX Runtime's own choice is some 50 ms, after each run and from the moment at which the session
/// is opened, in which they take a core from the next session that is opened or run.
const SPIN_MICROSECONDS: &str = "1000";

/// Opens one graph. The graphs are written as the optimiser would leave them, so it has nothing to do.
pub fn open(
    environment: &ort::environment::Environment,
    graph: &Path,
    options: &EngineOptions,
    prepack: bool,
) -> Result<Session, ort::Error> {
    let builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::Disable)?
        .with_intra_threads(options.threads)?
        .with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?
        .with_prepacking(prepack)?;
    on_device(builder, options)?.commit_from_file(graph)
}

fn on_device(builder: SessionBuilder, options: &EngineOptions) -> Result<SessionBuilder, ort::Error> {
    match options.device {
        Device::Cpu => Ok(builder),
        Device::Cuda { index } => {
            let mut provider = ep::CUDA::default();
            if let Some(limit) = options.memory_limit_bytes.and_then(|limit| usize::try_from(limit).ok()) {
                provider = provider.with_memory_limit(limit);
            }
            // The arena takes what is asked for instead of the next power of two, and the first convolution is not
            // found out by trying every kernel.
            let provider = provider
                .with_device_id(index)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .build()
                .error_on_failure();
            Ok(builder.with_execution_providers([provider])?)
        }
    }
}

/// Memory of the GPU that the kernels of `session` work on.
pub fn device_memory(session: &Session, index: i32) -> Result<Allocator, ort::Error> {
    let info = MemoryInfo::new(AllocationDevice::CUDA, index, AllocatorType::Device, MemoryType::Default)?;
    Allocator::new(session, info)
}
