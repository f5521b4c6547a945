//! A small attention graph in fp16 that runs on the GPU and is compared with the CPU: only running kernels shows whether
//! libraries, driver and GPU work together.
//!
//! It creates a CUDA context of hundreds of megabytes of GPU memory, which stays with the process: it must run in a process
//! of its own.

use std::ffi::c_int;
use std::path::Path;

use ort::{
    ep::{self, cuda::AttentionBackend},
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};

use super::error::CudaError;
use super::failure::is_out_of_memory;
use crate::onnx::{ElementType, GraphWriter};
use crate::runtime;

const HEADS: usize = 2;
const HEAD_WIDTH: usize = 64;
const WIDTH: usize = HEADS * HEAD_WIDTH;
/// Tokens for which the cache has room.
const CACHE_TOKENS: usize = 8;
/// Tokens of the first call.
const PROMPT_TOKENS: usize = 4;
/// fp16 has eleven bits; sums in another order differ in the last of them.
const TOLERANCE: f32 = 0.02;

/// The result of running the graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    Works,
    /// The GPU is full, so that the graph could not run; CUDA itself works.
    Full(String),
}

/// Runs the graph on the GPU with CUDA's number `index`, with the ONNX Runtime that the process has loaded.
pub fn try_attention(index: c_int) -> Result<Trial, CudaError> {
    let on_cpu = AttentionTrial::open(None).and_then(|mut attention| attention.run());
    let on_gpu = AttentionTrial::open(Some(index)).and_then(|mut attention| attention.run());
    let expected = on_cpu.map_err(|error| CudaError::Graph { index, cause: format!("on the CPU: {error}") })?;
    let found = match on_gpu {
        Ok(found) => found,
        Err(error) if is_out_of_memory(&error.to_string()) => return Ok(Trial::Full(error.to_string())),
        Err(error) => return Err(CudaError::Graph { index, cause: error.to_string() }),
    };

    compare(index, &expected, &found).map(|()| Trial::Works)
}

fn compare(index: c_int, expected: &[f32], found: &[f32]) -> Result<(), CudaError> {
    let is_wrong = |(expected, found): &(&f32, &f32)| {
        let difference = (**expected - **found).abs();
        difference.is_nan() || difference > TOLERANCE
    };
    match expected.iter().zip(found).find(is_wrong) {
        Some((expected, found)) => Err(CudaError::Wrong { index, expected: *expected, found: *found }),
        None => Ok(()),
    }
}

/// The operators of the models whose kernels depend on the GPU: a projection, attention to a cache, and attention to the
/// encoder's output.
fn graph() -> Vec<u8> {
    let mut graph = GraphWriter::new("attention");
    let half = |graph: &mut GraphWriter, from: &str, to: &str| {
        graph.op("Cast", &[from], &[to]).int("to", ElementType::F16.onnx());
    };
    graph.input("x", ElementType::F32, &[1.into(), "S".into(), WIDTH.into()]);
    graph.input("weights", ElementType::F32, &[WIDTH.into(), (3 * WIDTH).into()]);
    let cache = [1.into(), HEADS.into(), CACHE_TOKENS.into(), HEAD_WIDTH.into()];
    for name in ["past_k", "past_v"] {
        graph.input(name, ElementType::F32, &cache);

        half(&mut graph, name, &format!("{name}_half"));
    }

    graph.input("seqlens_k", ElementType::I32, &[1.into()]);
    graph.input("total_sequence_length", ElementType::I32, &[]);
    half(&mut graph, "x", "x_half");
    half(&mut graph, "weights", "weights_half");
    graph.op("MatMul", &["x_half", "weights_half"], &["qkv"]);
    graph
        .contrib(
            "GroupQueryAttention",
            &["qkv", "", "", "past_k_half", "past_v_half", "seqlens_k", "total_sequence_length"],
            &["heard", "k_half", "v_half"],
        )
        .int("num_heads", HEADS as i64)
        .int("kv_num_heads", HEADS as i64);

    graph.attention(["heard", "x_half", "x_half"], HEADS, "y_half");
    graph.output("y", ElementType::F32, &[1.into(), "S".into(), WIDTH.into()]);
    graph.output("k", ElementType::F32, &cache);
    graph.output("v", ElementType::F32, &cache);
    for name in ["y", "k", "v"] {
        graph.op("Cast", &[&format!("{name}_half")], &[name]).int("to", ElementType::F32.onnx());
    }

    graph.finish()
}

/// The same options as for the sessions of models: attention without cuDNN, which would be used if it happens to be
/// installed, and plans again for each shape.
fn provider(index: c_int) -> ep::ExecutionProviderDispatch {
    let kernels = AttentionBackend::FLASH_ATTENTION | AttentionBackend::EFFICIENT_ATTENTION | AttentionBackend::MATH;
    ep::CUDA::default().with_device_id(index).with_attention_backend(kernels).build().error_on_failure()
}

struct AttentionTrial {
    session: Session,
}

impl AttentionTrial {
    /// `gpu`: the number of the GPU; `None`: the CPU.
    fn open(gpu: Option<c_int>) -> Result<Self, ort::Error> {
        let environment = runtime::environment().map_err(|error| ort::Error::new(error.to_string()))?;
        let mut builder = Session::builder(&environment)?
            .with_optimization_level(GraphOptimizationLevel::Disable)?
            .with_intra_threads(1)?;
        if let Some(index) = gpu {
            builder = builder
                .with_config_entry("session.disable_cpu_ep_fallback", "1")?
                .with_execution_providers([provider(index)])?;
        }

        Ok(Self { session: builder.commit_from_memory(&graph())? })
    }

    /// Runs a prompt and one step after it.
    fn run(&mut self) -> Result<Vec<f32>, ort::Error> {
        let cache = vec![0.0; HEADS * CACHE_TOKENS * HEAD_WIDTH];
        let [mut outputs, k, v] = self.call(PROMPT_TOKENS, PROMPT_TOKENS, [cache.clone(), cache])?;
        let [step, ..] = self.call(1, PROMPT_TOKENS + 1, [k, v])?;
        outputs.extend(step);
        Ok(outputs)
    }

    fn call(&mut self, tokens: usize, total: usize, [k, v]: [Vec<f32>; 2]) -> Result<[Vec<f32>; 3], ort::Error> {
        let cache = [1, HEADS, CACHE_TOKENS, HEAD_WIDTH];
        let total = i32::try_from(total).unwrap_or(i32::MAX);
        let inputs = ort::inputs![
            "x" => Tensor::from_array(([1, tokens, WIDTH], wave(tokens * WIDTH, 0.37)))?,
            "weights" => Tensor::from_array(([WIDTH, 3 * WIDTH], wave(3 * WIDTH * WIDTH, 0.11)))?,
            "past_k" => Tensor::from_array((cache, k))?,
            "past_v" => Tensor::from_array((cache, v))?,
            "seqlens_k" => Tensor::from_array(([1_usize], vec![total - 1]))?,
            "total_sequence_length" => Tensor::from_array(((), vec![total]))?,
        ];

        let outputs = self.session.run(inputs)?;
        let read = |name: &str| Ok::<_, ort::Error>(outputs[name].try_extract_tensor::<f32>()?.1.to_vec());

        Ok([read("y")?, read("k")?, read("v")?])
    }
}

/// Numbers between -0.2 and 0.2 without a pattern that a wrong kernel could preserve.
#[expect(clippy::cast_precision_loss, reason = "some thousand numbers")]
fn wave(length: usize, step: f32) -> Vec<f32> {
    (0..length).map(|n| (n as f32 * step).sin() * 0.2).collect()
}

/// Checks whether CUDA works with the ONNX Runtime at `ort_library` on the GPU with CUDA's number `index`: first that
/// everything is installed, then that kernels run. Loads ONNX Runtime into this process and creates a CUDA context in it.
pub fn try_cuda(ort_library: &Path, index: c_int) -> Result<Trial, CudaError> {
    super::probe(ort_library, index)?;
    runtime::init(ort_library).map_err(|error| CudaError::Graph { index, cause: error.to_string() })?;
    try_attention(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_differ_from_the_cpus_are_an_error() {
        assert!(compare(0, &[0.5, 1.0], &[0.51, 1.0]).is_ok());
        let error = compare(1, &[0.5, 1.0], &[0.5, 1.5]).unwrap_err().to_string();
        assert!(error.contains("1.5 where the CPU gives 1") && error.contains("GPU 1"), "{error}");
        assert!(compare(0, &[0.5], &[f32::NAN]).is_err());
    }
}
