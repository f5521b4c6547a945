//! The decoder's KV cache, in the host's memory or in that of a device: windows side by side, each with the same number of
//! rows, over which one call of the decoder runs.

use std::ops::Range;

use ort::{
    session::IoBinding,
    value::{Tensor, TensorElementType},
};

use super::{
    device::{
        DeviceContext,
        kv_cache::{DeviceKvCache, GraphNumbers},
        step_io::RowInput,
    },
    encoder::{CrossShape, CrossTensor, WindowLengths},
    host_kv_cache::HostKvCache,
    pending_session::PendingSession,
};
use crate::{
    checkpoint::Config,
    decoding::{ChoiceLayout, NeededScores, Scores, TokenRanges},
    graph::decoder,
};

/// The decoder's session and what all its calls share.
pub struct DecoderSession {
    pub session: PendingSession,
    pub memory: DecoderMemory,
    pub shape: DecoderShape,
    pub cross: Vec<CrossShape>,
    pub lengths: WindowLengths,
    /// The layout of the output `choice`, for graphs that have it.
    pub choice: Option<ChoiceLayout>,
}

/// In which memory the decoder works.
pub enum DecoderMemory {
    Host,
    Device { context: DeviceContext, graphs: GraphNumbers },
}

/// The dimensions of a decoder.
#[derive(Clone, Copy)]
pub struct DecoderShape {
    pub layers: usize,
    pub heads: usize,
    /// The most tokens of a row.
    pub max_tokens: usize,
    pub head_width: usize,
    /// Size of a token's vector: `heads * head_width`.
    pub model_width: usize,
    pub vocabulary: usize,
    pub float_type: TensorElementType,
}

impl DecoderShape {
    pub fn new(config: &Config, float_type: TensorElementType) -> Self {
        Self {
            layers: config.decoder_layers,
            heads: config.decoder_attention_heads,
            max_tokens: config.max_target_positions,
            head_width: config.head_width(),
            model_width: config.d_model,
            vocabulary: config.vocab_size,
            float_type,
        }
    }
}

/// The input of a call of the decoder: the same number of tokens for each row, row after row.
#[derive(Clone, Copy)]
pub struct StepInput<'a> {
    pub tokens: &'a [u32],
    /// Tokens that each row already holds.
    pub lengths: &'a [usize],
    /// The tokens that may follow in each row; empty if the logits are needed.
    pub ranges: &'a [TokenRanges],
    pub needed: NeededScores,
}

impl<'a> StepInput<'a> {
    /// A prompt, after which the logits are needed.
    pub fn prompt(tokens: &'a [u32], lengths: &'a [usize]) -> Self {
        Self { tokens, lengths, ranges: &[], needed: NeededScores::Logits }
    }

    pub fn tokens_per_row(&self) -> usize {
        self.tokens.len() / self.lengths.len().max(1)
    }

    /// Tokens of the longest row after the call.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or_default() + self.tokens_per_row()
    }

    pub fn rows(&self) -> impl Iterator<Item = RowInput<'a>> {
        let Self { tokens, lengths, ranges, .. } = *self;
        let step = self.tokens_per_row().max(1);

        lengths.iter().zip(tokens.chunks(step)).enumerate().map(|(row, (length, tokens))| {
            let ranges = ranges.get(row).cloned().unwrap_or(TokenRanges { words: 0..u32::MAX, times: 0..u32::MAX });
            RowInput { tokens, length: *length, ranges: [ranges.words, ranges.times] }
        })
    }

    /// Whether the searches need the logits because a graph that names the `likeliest` tokens does not name enough.
    pub fn needs_logits(&self, likeliest: usize) -> bool {
        match self.needed {
            NeededScores::Logits => true,
            NeededScores::Likeliest(count) => count > likeliest || self.ranges.len() != self.lengths.len(),
        }
    }
}

/// Binds the shapes that graphs for a GPU have as inputs; see [`decoder::SHAPES`].
pub fn bind_shapes(
    binding: &mut IoBinding,
    [windows, rows, tokens]: [usize; 3],
    model_width: usize,
) -> Result<(), ort::Error> {
    let by_window = [windows, rows / windows.max(1) * tokens, model_width];
    for (name, shape) in decoder::SHAPES.into_iter().zip([by_window, [rows, tokens, model_width]]) {
        let shape: Vec<i64> = shape.into_iter().map(|side| side as i64).collect();
        binding.bind_input(name, &Tensor::from_array(([shape.len()], shape))?)?;
    }
    Ok(())
}

/// The scores that serve all searches of a call.
pub fn combined_need(all: impl Iterator<Item = NeededScores>) -> NeededScores {
    all.fold(NeededScores::Likeliest(1), |together, one| match (together, one) {
        (NeededScores::Likeliest(a), NeededScores::Likeliest(b)) => NeededScores::Likeliest(a.max(b)),
        _ => NeededScores::Logits,
    })
}

/// The output of a call of the decoder for each row.
pub enum StepScores<'a> {
    Logits(&'a mut [f32]),
    Choice { numbers: &'a [f32], layout: ChoiceLayout },
}

impl StepScores<'_> {
    /// The scores of rows `rows` of a call over `count` rows; row `i` of the search is the `row_order[i]`th of them.
    pub fn of_rows<'s>(&'s mut self, rows: Range<usize>, count: usize, row_order: &'s [usize]) -> Scores<'s> {
        match self {
            Self::Logits(all) => {
                let vocabulary = all.len() / count.max(1);
                Scores::logits(&mut all[rows.start * vocabulary..rows.end * vocabulary], vocabulary, row_order)
            }
            Self::Choice { numbers, layout } => {
                let width = layout.width();
                Scores::choice(&numbers[rows.start * width..rows.end * width], *layout, row_order)
            }
        }
    }
}

/// KV slots of `rows` rows each. Row `r` of the window in slot `s` is row `s * rows + r` of a call.
pub enum KvCache {
    Host(HostKvCache),
    Device(DeviceKvCache),
}

impl KvCache {
    pub fn new(decoder: &DecoderSession, rows: usize, slots: usize) -> Result<Self, ort::Error> {
        Ok(match &decoder.memory {
            DecoderMemory::Host => Self::Host(HostKvCache::new(decoder, rows, slots)?),
            DecoderMemory::Device { context, graphs } => {
                Self::Device(DeviceKvCache::new(context, graphs, decoder, rows, slots)?)
            }
        })
    }

    fn rows_per_slot(&self) -> usize {
        match self {
            Self::Host(cache) => cache.rows(),
            Self::Device(cache) => cache.rows(),
        }
    }

    pub fn slots(&self) -> usize {
        match self {
            Self::Host(cache) => cache.slots(),
            Self::Device(cache) => cache.slots(),
        }
    }

    /// Makes room for `slots` windows; the first `used` keep their content.
    pub fn grow(&mut self, decoder: &DecoderSession, slots: usize, used: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.grow(slots, used),
            Self::Device(cache) => cache.grow(decoder, slots, used),
        }
    }

    /// The tensors into which a window with so many positions is encoded; [`Self::complete_window`] must follow.
    pub fn begin_window(
        &mut self,
        decoder: &DecoderSession,
        slot: usize,
        positions: usize,
    ) -> Result<Vec<CrossTensor>, ort::Error> {
        match self {
            Self::Host(cache) => cache.begin_window(slot, positions),
            Self::Device(cache) => cache.begin_window(decoder, slot, positions),
        }
    }

    /// Puts the tensors of [`Self::begin_window`] into the slot, if they are not views of it.
    pub fn complete_window(&mut self, slot: usize, cross: &[CrossTensor]) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.complete_window(slot, cross),
            Self::Device(_) => Ok(()),
        }
    }

    /// The cross-attention keys and values of one window, as long as the window: views into the cache, or copies.
    pub fn cross(&mut self, decoder: &DecoderSession, slot: usize) -> Result<Vec<CrossTensor>, ort::Error> {
        match self {
            Self::Host(cache) => cache.cross(slot),
            Self::Device(cache) => cache.cross(decoder, slot),
        }
    }

    /// Copies a window with the first `length` tokens of its rows.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.copy_window(from, to, length),
            Self::Device(cache) => cache.copy_window(from, to, length),
        }
    }

    /// Copies the first `length` tokens of a row.
    pub fn copy_row(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.copy_row(from, to, length),
            Self::Device(cache) => cache.copy_row(from, to, length),
        }
    }

    /// Copies a window from a cache of one row for each window: each row here begins as a copy of that row.
    pub fn fork(&mut self, single_rows: &mut Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match (self, single_rows) {
            (Self::Host(cache), Self::Host(single_rows)) => cache.fork(single_rows, from, to, length),
            (Self::Device(cache), Self::Device(single_rows)) => cache.fork(single_rows, from, to, length),
            _ => Err(ort::Error::new("caches in different memory")),
        }
    }

    /// Runs the decoder over the rows of the windows in `slots`; returns the scores after the last token of each row.
    pub fn run(
        &mut self,
        decoder: &mut DecoderSession,
        slots: Range<usize>,
        step: &StepInput<'_>,
    ) -> Result<StepScores<'_>, ort::Error> {
        let (count, max_tokens) = (step.lengths.len(), decoder.shape.max_tokens);
        let (tokens, longest) = (step.tokens_per_row(), step.longest());
        if tokens == 0 || count != slots.len() * self.rows_per_slot() || longest > max_tokens {
            return Err(ort::Error::new(format!(
                "{tokens} tokens for {count} rows, {longest} in the longest, which has room for {max_tokens} tokens"
            )));
        }

        match self {
            Self::Host(cache) => Ok(StepScores::Logits(cache.run(decoder, slots, step)?)),
            Self::Device(cache) => cache.run(decoder, slots, step),
        }
    }
}
