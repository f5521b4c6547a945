//! The three graphs of a model. `W` windows, `B` rows (`B` a multiple of `W`: row `b` attends to window `b / (B / W)`), `S`
//! tokens of this call, `L` decoder layers, `H` decoder heads of width `d`, `D = H d`, `E` positions of the encoder, `T` tokens of the
//! self-attention cache (448), `V` the vocabulary. `real` is f32, or f16 for [`Precision::Fp16`]. `E` is 1500 positions for a
//! window of 30 s; a shorter window has a multiple of [`STEP_POSITIONS`].
//!
//! | graph | inputs | outputs |
//! |---|---|---|
//! | `encoder.onnx` | `mel` f32 `[W, 80 or 128, 2 E]` | `hidden` f32 `[W, E, D]`; `cross_*` |
//! | `decoder.onnx` | `input_ids` i32 `[B, S]`, `position_ids` i32 `[B, S]`, `seqlens_k` i32 `[B]`, `total_sequence_length` i32 scalar (on the CPU), all `cross_*`, `cross_last_frame` i32 `[W]`, for each layer `self_k_i`, `self_v_i` real `[B, H, T, d]` | `logits` f32 `[B, V]` of the last position, `present_k_i`, `present_v_i`; not for fp16 `present_cross_*` |
//! | `align.onnx` | `input_ids`, `position_ids`, those `cross_*` that it names; here `B = W` | `weights` f32 `[B, alignment heads, S, E]`: softmax of the cross-attention; `logprobs` f32 `[B, S - 1]`: the natural logarithm of the probability of `input_ids[b, s + 1]` after `s`, among the text tokens (meaningless if it is not text) |
//!
//! The encoder's outputs `cross_*` are inputs of the same name of the other two graphs; a program that runs the graphs
//! passes these tensors on without knowing them. For fp32 and fp16 they are `cross_k_i` and `cross_v_i`, real
//! `[W, H, E, d]`, for each layer. For int8 these two are i8, and there are also `cross_k_scale_i` and `cross_v_scale_i`,
//! f32 `[W, 1, D]`: a step reads every key and value of a window, and so reads a quarter of the bytes. One call of the
//! decoder for a CPU accepts at most `E` positions for a window (`B / W` rows of `S` tokens).
//!
//! The decoder reads the keys and values of a window up to `cross_last_frame`, so that windows of different lengths share a
//! call: they lie in tensors for the longest one.
//!
//! `present_k_i` and `present_v_i` must be bound to the same buffer as `self_k_i` and `self_v_i`: the cache is updated in
//! place. `present_cross_k_i` and `present_cross_v_i` should be bound to the buffers of `cross_k_i` and `cross_v_i`: they
//! are not changed, but unbound outputs are copies. `seqlens_k` is the number of tokens in the cache after this call, less
//! one; `total_sequence_length` is the largest of them, plus one.
//!
//! The graphs have the form that ONNX Runtime runs fastest. The int8 encoder needs [`crate::operators`]. All must be loaded with optimisation disabled or basic: the
//! extended level would join the encoder's additions and norms again, which is slower on a CPU. Prepacking may be disabled,
//! except for the int8 decoder: ONNX Runtime multiplies unpacked blocks some thirty times slower.

mod align;
mod builder;
mod byte_encoder;
pub(crate) mod choice;
pub(crate) mod decoder;
mod encoder;
mod quantise;

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::onnx::WeightsFile;

use builder::GraphBuilder;

/// Positions of the encoder by which the lengths of short windows differ: 2 s.
pub(crate) const STEP_POSITIONS: usize = 100;

/// The precision of an installed model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp32,
    /// Weights, activations and caches in half precision: for GPUs.
    Fp16,
    /// 8-bit weights, f32 caches: for CPUs.
    Int8,
}

impl Precision {
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Fp16, Self::Int8];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a precision; one of fp32, fp16, int8"))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("writing the weights: {0}")]
    Write(#[from] io::Error),
    #[error("{precision} is not possible for this model: {problem}")]
    Unsupported { precision: Precision, problem: String },
}

/// The content of a graph file, which belongs beside the weights file.
pub struct BuiltGraph {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

/// Writes the weights into `weights` and returns the graphs that refer to them.
pub fn build(
    checkpoint: &Checkpoint,
    precision: Precision,
    weights: &mut WeightsFile<'_>,
) -> Result<[BuiltGraph; 3], BuildError> {
    let encoder = GraphBuilder::new(checkpoint, precision, weights, "encoder");
    let encoder = match precision {
        Precision::Int8 => byte_encoder::build(encoder)?,
        Precision::Fp32 | Precision::Fp16 => encoder::build(encoder)?,
    };
    let decoder = decoder::build(GraphBuilder::new(checkpoint, precision, weights, "decoder"))?;
    let align = align::build(GraphBuilder::new(checkpoint, precision, weights, "align"))?;
    Ok([("encoder.onnx", encoder), ("decoder.onnx", decoder), ("align.onnx", align)]
        .map(|(name, bytes)| BuiltGraph { name, bytes }))
}
