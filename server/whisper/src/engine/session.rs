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
        .with_prepacking(prepack)?;
    on_device(builder, options.device)?.commit_from_file(graph)
}

fn on_device(builder: SessionBuilder, device: Device) -> Result<SessionBuilder, ort::Error> {
    match device {
        Device::Cpu => Ok(builder),
        Device::Cuda { index } => {
            let provider = ep::CUDA::default()
                .with_device_id(index)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .build()
                .error_on_failure();
            Ok(builder.with_execution_providers([provider])?)
        }
    }
}

/// Memory that the kernels of `session` work on.
pub fn device_memory(session: &Session, device: Device) -> Result<Allocator, ort::Error> {
    match device {
        Device::Cpu => Ok(Allocator::default()),
        Device::Cuda { index } => {
            let info = MemoryInfo::new(AllocationDevice::CUDA, index, AllocatorType::Device, MemoryType::Default)?;
            Allocator::new(session, info)
        }
    }
}
