//! Sessions of ONNX Runtime over the graphs of a model directory.

use std::path::Path;

use ort::{
    ep::{self, ArenaExtendStrategy, cuda::AttentionBackend},
    session::{
        Session,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
};

use super::{EngineOptions, device::DeviceContext};
use crate::{model_dir::ENCODER, operators, runtime::SPIN_MICROSECONDS};

/// Opens one graph. The graphs are installed in optimised form, so ONNX Runtime's optimisation is disabled.
pub fn open(
    environment: &ort::environment::Environment,
    graph: &Path,
    options: &EngineOptions,
    prepack: bool,
    target: &SessionTarget,
) -> Result<Session, ort::Error> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::Disable)?
        .with_intra_threads(options.threads)?
        .with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?
        .with_prepacking(prepack)?;

    // Only the encoder has operators of Hush's own.
    if matches!(target, SessionTarget::Host) && graph.file_name().is_some_and(|name| name == ENCODER) {
        builder = builder.with_operators(operators::domain(options.threads)?)?;
    }

    if let SessionTarget::Device { context, captures } = target {
        builder = on_device(builder, options, context, *captures)?;

        // A node that the device cannot compute is an error, instead of a copy to the host and back in each call.
        builder = builder.with_config_entry("session.disable_cpu_ep_fallback", "1")?;

        for (name, tensor) in context.weights.initialisers(graph)? {
            builder = builder.with_initializer(name, tensor.into_dyn())?;
        }
    }

    builder.commit_from_file(graph)
}

/// Where a session runs.
#[derive(Clone)]
pub enum SessionTarget {
    Host,
    Device {
        context: DeviceContext,
        /// Whether its calls may be captured as CUDA graphs.
        captures: bool,
    },
}

#[allow(unsafe_code, reason = "ONNX Runtime takes the stream as an address")]
fn on_device(
    builder: SessionBuilder,
    options: &EngineOptions,
    context: &DeviceContext,
    captures: bool,
) -> Result<SessionBuilder, ort::Error> {
    let mut provider = ep::CUDA::default();
    if let Some(limit) = options.memory_limit_bytes.and_then(|limit| usize::try_from(limit).ok()) {
        provider = provider.with_memory_limit(limit);
    }

    let provider = provider
        .with_device_id(context.cuda.device())
        // The arena grows by the requested size instead of the next power of two.
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
        // TF32 would round the few products in f32 to ten bits.
        .with_tf32(false)
        // cuDNN is not needed here, and it makes a plan for each new shape.
        .with_attention_backend(
            AttentionBackend::FLASH_ATTENTION | AttentionBackend::EFFICIENT_ATTENTION | AttentionBackend::MATH,
        )
        .with_cuda_graph(captures);

    // SAFETY: the owner of the session keeps the context, and with it the stream, until the session is dropped.
    let provider = unsafe { provider.with_compute_stream(context.stream.handle().cast()) };

    Ok(builder.with_execution_providers([provider.build().error_on_failure()])?)
}
