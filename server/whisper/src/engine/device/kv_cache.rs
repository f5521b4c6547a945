//! Keys and values of windows and of their rows, on the device.

use std::{collections::HashMap, ops::Range};

use ort::{
    session::{IoBinding, RunOptions},
    value::{Tensor, TensorElementType},
};

use super::{
    DeviceContext, run_bound, run_options,
    step_io::{RowInput, StepIo},
    tensor_block::TensorBlock,
};
use crate::{
    decoding::ChoiceLayout,
    engine::{
        encoder::{CrossShape, CrossTensor},
        kv_cache::{DecoderSession, DecoderShape, StepInput, StepScores, bind_shapes},
    },
};

/// KV slots of `rows` rows each. Row `r` of the window in slot `s` is row `s * rows + r` of a call.
pub struct DeviceKvCache {
    // Dropped before the context, whose stream and weights the session of these calls uses.
    calls: HashMap<CallKey, BoundCall>,
    context: DeviceContext,
    rows: usize,
    slots: usize,
    /// Cross-attention keys and values, a slot for each window with room for the longest one.
    cross: TensorBlock,
    /// Positions of the window in each slot.
    positions: Vec<usize>,
    /// Self-attention keys and values, a slot for each row.
    self_kv: TensorBlock,
    io: StepIo,
    /// Whether the stream already waits for all weights.
    has_weights: bool,
    /// Gives each captured graph a number of its own, so that caches do not replay each other's graphs.
    graphs: GraphNumbers,
}

/// Identifies a call of the decoder that is bound once and made many times.
#[derive(Clone, PartialEq, Eq, Hash)]
struct CallKey {
    slots: Range<usize>,
    tokens: usize,
}

/// The binding and the options of a call.
struct BoundCall {
    binding: IoBinding,
    options: RunOptions,
}

/// Numbers the captured graphs of one session; each number is used once.
#[derive(Clone, Default)]
pub struct GraphNumbers(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl GraphNumbers {
    fn next(&self) -> u32 {
        // For ONNX Runtime 0 means "the one graph of the session".
        1 + self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

impl DeviceKvCache {
    pub fn new(
        context: &DeviceContext,
        graphs: &GraphNumbers,
        decoder: &DecoderSession,
        rows: usize,
        slots: usize,
    ) -> Result<Self, ort::Error> {
        let shape = &decoder.shape;

        let (cross, self_kv) = Self::blocks(context, decoder, rows, slots)?;
        let layout = decoder.choice.ok_or_else(|| {
            ort::Error::new("this model directory was not made for a GPU; repeat `hush-server install` with fp16")
        })?;

        let io = Self::io(context, shape, layout, rows * slots, decoder.lengths.has_last_frame)?;

        Ok(Self {
            context: context.clone(),
            rows,
            slots,
            cross,
            positions: vec![decoder.lengths.longest; slots],
            self_kv,
            io,
            calls: HashMap::new(),
            graphs: graphs.clone(),
            has_weights: false,
        })
    }

    fn blocks(
        context: &DeviceContext,
        decoder: &DecoderSession,
        rows: usize,
        slots: usize,
    ) -> Result<(TensorBlock, TensorBlock), ort::Error> {
        let shape = &decoder.shape;

        let first = decoder.cross.first().ok_or_else(|| ort::Error::new("the encoder gives no keys and values"))?;
        let is_same = |cross: &CrossShape| cross.shape == first.shape && cross.element == TensorElementType::Float16;

        if !decoder.cross.iter().all(is_same) {
            return Err(ort::Error::new("keys and values of different shapes"));
        }

        let cross = TensorBlock::new(context, first.element, decoder.cross.len(), slots, first.shape.clone())?;
        let row = vec![shape.heads, shape.max_tokens, shape.head_width];
        let self_kv = TensorBlock::new(context, shape.float_type, 2 * shape.layers, slots * rows, row)?;

        Ok((cross, self_kv))
    }

    fn io(
        context: &DeviceContext,
        shape: &DecoderShape,
        layout: ChoiceLayout,
        rows: usize,
        has_window_lengths: bool,
    ) -> Result<StepIo, ort::Error> {
        StepIo::new(context, rows, shape.max_tokens, shape.vocabulary, layout, has_window_lengths)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Makes room for `slots` windows; the first `used` keep their content.
    pub fn grow(&mut self, decoder: &DecoderSession, slots: usize, used: usize) -> Result<(), ort::Error> {
        let (cross, self_kv) = Self::blocks(&self.context, decoder, self.rows, slots)?;
        let has_lengths = decoder.lengths.has_last_frame;
        let io = Self::io(&self.context, &decoder.shape, self.io.layout(), self.rows * slots, has_lengths)?;
        if used > 0 {
            cross.copy_slots(&self.context, &self.cross, 0, 0, used)?;
            self_kv.copy_slots(&self.context, &self.self_kv, 0, 0, used * self.rows)?;
        }

        // The old memory must not be freed before these copies are executed.
        self.context.stream.synchronize()?;

        // Bound calls point into the old memory.
        self.calls.clear();
        self.positions.resize(slots, decoder.lengths.longest);
        (self.cross, self.self_kv, self.io, self.slots) = (cross, self_kv, io, slots);

        Ok(())
    }

    /// See [`super::super::kv_cache::KvCache::begin_window`]: views of the slot.
    pub fn begin_window(
        &mut self,
        decoder: &DecoderSession,
        slot: usize,
        positions: usize,
    ) -> Result<Vec<CrossTensor>, ort::Error> {
        self.set_positions(slot, positions)?;
        self.cross(decoder, slot)
    }

    fn positions_of(&self, slot: usize) -> Result<usize, ort::Error> {
        self.positions.get(slot).copied().ok_or_else(|| ort::Error::new(format!("no slot {slot}")))
    }

    fn set_positions(&mut self, slot: usize, positions: usize) -> Result<(), ort::Error> {
        let known = self.positions.get_mut(slot).ok_or_else(|| ort::Error::new(format!("no slot {slot}")))?;
        *known = positions;
        Ok(())
    }

    /// The cross-attention keys and values of one window, as views into the cache: a window lies at the beginning of its
    /// slot, `[positions, width]`.
    pub fn cross(&self, decoder: &DecoderSession, slot: usize) -> Result<Vec<CrossTensor>, ort::Error> {
        let info = self.context.memory_info()?;
        let positions = self.positions_of(slot)?;

        let view = |(index, cross): (usize, &CrossShape)| {
            let tensor = self.cross.view_prefix(&info, index, slot, &cross.with_positions(positions))?;
            Ok(CrossTensor { name: cross.name.clone(), tensor })
        };
        decoder.cross.iter().enumerate().map(view).collect()
    }

    /// Copies a window with the first `length` tokens of its rows.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        if from == to {
            return Ok(());
        }

        let positions = self.positions_of(from)?;
        self.set_positions(to, positions)?;
        self.cross.copy_slots(&self.context, &self.cross, from, to, 1)?;
        for row in 0..self.rows {
            self.copy_row(from * self.rows + row, to * self.rows + row, length)?;
        }

        Ok(())
    }

    /// Copies the first `length` tokens of a row, with one operation for all layers.
    pub fn copy_row(&self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        if from == to { Ok(()) } else { self.self_kv.copy_prefix(&self.context, &self.self_kv, from, to, length) }
    }

    /// Copies a window from a cache of one row for each window: each row here begins as a copy of that row.
    pub fn fork(&mut self, single_rows: &Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        let positions = single_rows.positions_of(from)?;
        self.set_positions(to, positions)?;
        self.cross.copy_slots(&self.context, &single_rows.cross, from, to, 1)?;
        for row in 0..self.rows {
            self.self_kv.copy_prefix(&self.context, &single_rows.self_kv, from, to * self.rows + row, length)?;
        }
        Ok(())
    }

    /// Runs the decoder over the rows of the windows in `slots`; see [`super::super::kv_cache::KvCache::run`].
    pub fn run(
        &mut self,
        decoder: &mut DecoderSession,
        slots: Range<usize>,
        step: &StepInput<'_>,
    ) -> Result<StepScores<'_>, ort::Error> {
        let (first, count) = (slots.start * self.rows, slots.len() * self.rows);
        let tokens = step.tokens_per_row();
        let key = CallKey { slots: slots.clone(), tokens };

        // Calls that are made for every token are captured as a graph.
        let is_captured = tokens == 1 && slots.start == 0;
        if !self.calls.contains_key(&key) {
            // Bound calls of prompts are dropped, since prompts have many lengths.
            self.calls.retain(|known, _| known.tokens == 1);
            let call = self.bound_call(decoder, &key, is_captured)?;
            self.calls.insert(key.clone(), call);
        }

        let call = self.calls.get_mut(&key).ok_or_else(|| ort::Error::new("a call that was not bound"))?;
        if tokens > 1 {
            bind_total(&mut call.binding, step.longest())?;
        }

        let rows: Vec<RowInput<'_>> = step.rows().collect();
        let positions =
            self.positions.get(slots).ok_or_else(|| ort::Error::new("a call over slots that are not there"))?;
        self.io.copy_inputs(&self.context, &rows, positions)?;

        if !self.has_weights {
            self.context.weights.wait_for_decoder(&self.context.stream)?;
            self.has_weights = true;
        }

        run_bound(decoder.session.get()?, &call.options, &call.binding)?;
        if step.needs_logits(self.io.layout().likeliest) {
            return Ok(StepScores::Logits(self.io.logits(&self.context, first, count)?));
        }

        let layout = self.io.layout();

        Ok(StepScores::Choice { numbers: self.io.choice(&self.context, first, count)?, layout })
    }

    fn bound_call(
        &self,
        decoder: &mut DecoderSession,
        key: &CallKey,
        is_captured: bool,
    ) -> Result<BoundCall, ort::Error> {
        let info = self.context.memory_info()?;
        let CallKey { slots, tokens } = key;
        let rows = slots.start * self.rows..slots.end * self.rows;
        let mut binding = decoder.session.get()?.create_binding()?;

        for (index, cross) in decoder.cross.iter().enumerate() {
            binding.bind_input(cross.name.as_str(), &self.cross.view(&info, index, slots.clone())?)?;
        }

        for layer in 0..decoder.shape.layers {
            for (kind, index) in [("k", 2 * layer), ("v", 2 * layer + 1)] {
                let mut cache = self.self_kv.view(&info, index, rows.clone())?;
                binding.bind_input(format!("self_{kind}_{layer}"), &cache)?;
                binding.bind_output(format!("present_{kind}_{layer}"), &mut cache)?;
            }
        }

        // For single tokens any number that is large enough is correct, and a captured graph keeps the first one.
        bind_total(&mut binding, decoder.shape.max_tokens)?;
        bind_shapes(&mut binding, [slots.len(), rows.len(), *tokens], decoder.shape.model_width)?;
        self.io.bind(&info, &mut binding, rows.clone(), *tokens, slots.len())?;

        Ok(BoundCall { binding, options: run_options(is_captured.then(|| self.graphs.next()))? })
    }
}

fn bind_total(binding: &mut IoBinding, total: usize) -> Result<(), ort::Error> {
    let tensor = Tensor::<i32>::from_array(((), vec![total as i32]))?;
    binding.bind_input("total_sequence_length", &tensor)
}
