//! Windows side by side, each with the same number of rows: what one call of the decoder sees, in the host's memory or in
//! that of a device.

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
    encoder::{Cross, CrossShape},
    host_kv_cache::HostKvCache,
    pending_session::PendingSession,
};
use crate::{
    checkpoint::Config,
    decoding::{ChoiceLayout, Scores, TokenRanges, Wanted},
    graph::decoder,
};

/// The decoder's session and what all calls of it share.
pub struct Decoder {
    pub session: PendingSession,
    pub backend: Backend,
    pub shape: Shape,
    pub cross: Vec<CrossShape>,
    /// Of graphs that name the likeliest tokens.
    pub choice: Option<ChoiceLayout>,
}

/// Where the decoder's memory lies.
pub enum Backend {
    Host,
    Device { context: DeviceContext, graphs: GraphNumbers },
}

#[derive(Clone, Copy)]
pub struct Shape {
    pub layers: usize,
    pub heads: usize,
    /// Tokens that a row has room for.
    pub slots: usize,
    pub width: usize,
    /// Of a token's vector: the heads side by side.
    pub model_width: usize,
    pub vocabulary: usize,
    pub real: TensorElementType,
}

impl Shape {
    pub fn new(config: &Config, real: TensorElementType) -> Self {
        Self {
            layers: config.decoder_layers,
            heads: config.decoder_attention_heads,
            slots: config.max_target_positions,
            width: config.head_width(),
            model_width: config.d_model,
            vocabulary: config.vocab_size,
            real,
        }
    }
}

/// What a call of the decoder is given: the same number of tokens for each row, row after row.
#[derive(Clone, Copy)]
pub struct StepInput<'a> {
    pub tokens: &'a [u32],
    /// Tokens that each row holds already.
    pub lengths: &'a [usize],
    /// The tokens that may follow in each row; empty where the logits are wanted.
    pub ranges: &'a [TokenRanges],
    pub wanted: Wanted,
}

impl<'a> StepInput<'a> {
    /// A prompt, after which the logits are wanted.
    pub fn prompt(tokens: &'a [u32], lengths: &'a [usize]) -> Self {
        Self { tokens, lengths, ranges: &[], wanted: Wanted::Logits }
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

    /// Whether a graph that names `likeliest` tokens does not name enough of them.
    pub fn wants_logits(&self, likeliest: usize) -> bool {
        match self.wanted {
            Wanted::Logits => true,
            Wanted::Likeliest(count) => count > likeliest || self.ranges.len() != self.lengths.len(),
        }
    }
}

/// Binds the shapes that graphs for a GPU are told; see [`decoder::SHAPES`].
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

/// What is wanted where searches share a call.
pub fn wanted_together(all: impl Iterator<Item = Wanted>) -> Wanted {
    all.fold(Wanted::Likeliest(1), |together, one| match (together, one) {
        (Wanted::Likeliest(a), Wanted::Likeliest(b)) => Wanted::Likeliest(a.max(b)),
        _ => Wanted::Logits,
    })
}

/// What a call of the decoder gives for each row.
pub enum StepScores<'a> {
    Logits(&'a mut [f32]),
    Choice { numbers: &'a [f32], layout: ChoiceLayout },
}

impl StepScores<'_> {
    /// Rows `rows` of a call over `count` rows; row `i` of the search is the `places[i]`th of them.
    pub fn of_rows<'s>(&'s mut self, rows: Range<usize>, count: usize, places: &'s [usize]) -> Scores<'s> {
        match self {
            Self::Logits(all) => {
                let vocabulary = all.len() / count.max(1);
                Scores::logits(&mut all[rows.start * vocabulary..rows.end * vocabulary], vocabulary, places)
            }
            Self::Choice { numbers, layout } => {
                let width = layout.width();
                Scores::choice(&numbers[rows.start * width..rows.end * width], *layout, places)
            }
        }
    }
}

/// Places for windows, of `rows` rows each. Row `r` of the window at place `p` is row `p * rows + r` of a call.
pub enum KvCache {
    Host(HostKvCache),
    Device(DeviceKvCache),
}

impl KvCache {
    pub fn new(decoder: &Decoder, rows: usize, places: usize) -> Result<Self, ort::Error> {
        Ok(match &decoder.backend {
            Backend::Host => Self::Host(HostKvCache::new(decoder, rows, places)?),
            Backend::Device { context, graphs } => {
                Self::Device(DeviceKvCache::new(context, graphs, decoder, rows, places)?)
            }
        })
    }

    fn rows_per_place(&self) -> usize {
        match self {
            Self::Host(cache) => cache.rows(),
            Self::Device(cache) => cache.rows(),
        }
    }

    pub fn places(&self) -> usize {
        match self {
            Self::Host(cache) => cache.places(),
            Self::Device(cache) => cache.places(),
        }
    }

    /// Room for `places` windows; the first `used` keep what they hold.
    pub fn grow(&mut self, decoder: &Decoder, places: usize, used: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.grow(places, used),
            Self::Device(cache) => cache.grow(decoder, places, used),
        }
    }

    /// The keys and values of one window, where they lie.
    pub fn cross(&mut self, decoder: &Decoder, place: usize) -> Result<Vec<Cross>, ort::Error> {
        match self {
            Self::Host(cache) => cache.cross(place),
            Self::Device(cache) => cache.cross(decoder, place),
        }
    }

    /// Copies a window, of whose rows `length` tokens count.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.copy_window(from, to, length),
            Self::Device(cache) => cache.copy_window(from, to, length),
        }
    }

    /// Copies `length` tokens of a row.
    pub fn copy_row(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match self {
            Self::Host(cache) => cache.copy_row(from, to, length),
            Self::Device(cache) => cache.copy_row(from, to, length),
        }
    }

    /// Takes a window over from a cache of one row for each window: each row here begins as that one.
    pub fn fork(&mut self, single: &mut Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        match (self, single) {
            (Self::Host(cache), Self::Host(single)) => cache.fork(single, from, to, length),
            (Self::Device(cache), Self::Device(single)) => cache.fork(single, from, to, length),
            _ => Err(ort::Error::new("caches in different memory")),
        }
    }

    /// Feeds tokens to each row of the windows at `places`; gives the scores after the last token of each.
    pub fn run(
        &mut self,
        decoder: &mut Decoder,
        places: Range<usize>,
        step: &StepInput<'_>,
    ) -> Result<StepScores<'_>, ort::Error> {
        let (count, slots) = (step.lengths.len(), decoder.shape.slots);
        let (tokens, rows_per_place) = (step.tokens_per_row(), self.rows_per_place());
        if tokens == 0 || count != places.len() * rows_per_place || step.longest() > slots {
            let longest = step.longest();
            let problem =
                format!("{tokens} tokens for {count} rows, {longest} in the longest, which has {slots} slots");
            return Err(ort::Error::new(problem));
        }
        match self {
            Self::Host(cache) => Ok(StepScores::Logits(cache.run(decoder, places, step)?)),
            Self::Device(cache) => cache.run(decoder, places, step),
        }
    }
}
