//! Keys and values of windows and of their rows, in the host's memory.

use std::ops::Range;

use ort::{
    memory::Allocator,
    session::IoBinding,
    value::{DynTensor, Tensor, TensorElementType},
};

use super::{
    buffer::{Buffer, SlotPrefix},
    encoder::{CrossShape, CrossTensor},
    kv_cache::{DecoderSession, StepInput, bind_shapes},
};
use crate::graph::{choice, decoder::LAST_FRAME};

/// The side of a row's keys and values, `[heads, tokens, width]`, that has its tokens.
const TOKENS_AXIS: usize = 1;

/// KV slots of `rows` rows each. Row `r` of the window in slot `s` is row `s * rows + r` of a call.
pub struct HostKvCache {
    rows: usize,
    slots: usize,
    /// Cross-attention keys and values of the windows, one slot for each. A slot has room for the longest window.
    cross: Vec<CacheTensor>,
    /// Positions of the window in each slot.
    positions: Vec<usize>,
    longest: usize,
    /// Self-attention keys and values of the rows' tokens, one buffer slot for each row.
    self_kv: Vec<CacheTensor>,
    logits: Buffer,
    /// The binding of the session; created with the first call and again after the buffers have grown.
    binding: Option<IoBinding>,
    /// The slots that are bound.
    bound: Option<Range<usize>>,
}

/// A buffer that a graph reads under one name and may write under another.
struct CacheTensor {
    input: String,
    output: Option<String>,
    buffer: Buffer,
    /// The side of a slot along which a window or a row may be shorter than the slot.
    axis: Option<usize>,
}

impl CacheTensor {
    fn prefix(&self, length: usize) -> Option<SlotPrefix> {
        self.axis.map(|axis| SlotPrefix { axis, length })
    }
}

impl HostKvCache {
    pub fn new(decoder: &DecoderSession, rows: usize, slots: usize) -> Result<Self, ort::Error> {
        let DecoderSession { shape, cross: cross_shapes, .. } = decoder;
        let mut cross = Vec::with_capacity(cross_shapes.len());

        for CrossShape { name, element, shape, positions_axis } in cross_shapes {
            // The graph does not write this output, but ONNX Runtime would copy the input for an unbound one. It is known by
            // its shape, since the decoder may not be loaded yet.
            let is_unchanged = match decoder.lengths.has_last_frame {
                true => *positions_axis == Some(1),
                false => *element == TensorElementType::Int8,
            };
            let output = is_unchanged.then(|| format!("present_{name}"));
            cross.push(CacheTensor {
                input: name.clone(),
                output,
                buffer: Buffer::new(*element, slots, shape.clone())?,
                axis: *positions_axis,
            });
        }

        let mut self_kv = Vec::with_capacity(2 * shape.layers);
        for layer in 0..shape.layers {
            for kind in ["k", "v"] {
                let row = vec![shape.heads, shape.max_tokens, shape.head_width];
                self_kv.push(CacheTensor {
                    input: format!("self_{kind}_{layer}"),
                    output: Some(format!("present_{kind}_{layer}")),
                    buffer: Buffer::new(shape.float_type, slots * rows, row)?,
                    axis: Some(TOKENS_AXIS),
                });
            }
        }

        let logits = Buffer::new(TensorElementType::Float32, slots * rows, vec![shape.vocabulary])?;

        let longest = decoder.lengths.longest;
        let positions = vec![longest; slots];

        Ok(Self { rows, slots, cross, positions, longest, self_kv, logits, binding: None, bound: None })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Makes room for `slots` windows; the first `used` keep their content.
    pub fn grow(&mut self, slots: usize, used: usize) -> Result<(), ort::Error> {
        // The bound tensors point into the old buffers.
        (self.bound, self.binding) = (None, None);
        self.slots = self.slots.min(slots);
        for CacheTensor { buffer, .. } in &mut self.cross {
            buffer.grow(slots, used)?;
        }

        for CacheTensor { buffer, .. } in &mut self.self_kv {
            buffer.grow(slots * self.rows, used * self.rows)?;
        }

        self.logits.grow(slots * self.rows, 0)?;
        self.positions.resize(slots, self.longest);
        self.slots = slots;

        Ok(())
    }

    /// See [`super::kv_cache::KvCache::begin_window`]. The tensors of a short window are separate, because its heads do not
    /// lie side by side in a slot.
    pub fn begin_window(&mut self, slot: usize, positions: usize) -> Result<Vec<CrossTensor>, ort::Error> {
        self.set_positions(slot, positions)?;

        let is_short = positions < self.longest;
        let target = |shared: &mut CacheTensor| {
            let tensor = match shared.prefix(positions).filter(|_| is_short) {
                Some(prefix) => {
                    let shape = shared.buffer.prefix_shape(prefix);
                    DynTensor::new(&Allocator::default(), shared.buffer.element(), shape)?
                }
                None => shared.buffer.view(slot..slot + 1)?,
            };
            Ok(CrossTensor { name: shared.input.clone(), tensor })
        };

        self.cross.iter_mut().map(target).collect()
    }

    pub fn complete_window(&mut self, slot: usize, cross: &[CrossTensor]) -> Result<(), ort::Error> {
        let positions = self.positions_of(slot)?;
        if positions == self.longest {
            return Ok(());
        }

        for (shared, CrossTensor { tensor, .. }) in self.cross.iter_mut().zip(cross) {
            if let Some(prefix) = shared.prefix(positions) {
                shared.buffer.store_prefix(slot, prefix, tensor)?;
            }
        }

        Ok(())
    }

    fn positions_of(&self, slot: usize) -> Result<usize, ort::Error> {
        self.positions.get(slot).copied().ok_or_else(|| ort::Error::new(format!("no slot {slot}")))
    }

    fn set_positions(&mut self, slot: usize, positions: usize) -> Result<(), ort::Error> {
        let known = self.positions.get_mut(slot).ok_or_else(|| ort::Error::new(format!("no slot {slot}")))?;
        *known = positions;
        Ok(())
    }

    /// The cross-attention keys and values of one window: views into the cache, or copies for a short window.
    pub fn cross(&mut self, slot: usize) -> Result<Vec<CrossTensor>, ort::Error> {
        let positions = self.positions_of(slot)?;
        let is_short = positions < self.longest;
        let read = |shared: &mut CacheTensor| {
            let tensor = match shared.prefix(positions).filter(|_| is_short) {
                Some(prefix) => shared.buffer.prefix(slot, prefix)?,
                None => shared.buffer.view(slot..slot + 1)?,
            };
            Ok(CrossTensor { name: shared.input.clone(), tensor })
        };

        self.cross.iter_mut().map(read).collect()
    }

    /// Copies a window with the first `length` tokens of its rows.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        let positions = self.positions_of(from)?;
        self.set_positions(to, positions)?;
        for shared in &mut self.cross {
            let prefix = shared.prefix(positions);
            shared.buffer.copy_within(from, to, prefix)?;
        }
        for row in 0..self.rows {
            self.copy_row(from * self.rows + row, to * self.rows + row, length)?;
        }
        Ok(())
    }

    /// Copies the first `length` tokens of a row.
    pub fn copy_row(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for tensor in &mut self.self_kv {
            let prefix = tensor.prefix(length);
            tensor.buffer.copy_within(from, to, prefix)?;
        }
        Ok(())
    }

    /// Copies a window from a cache of one row for each window: each row here begins as a copy of that row.
    pub fn fork(&mut self, single_rows: &mut Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        let positions = single_rows.positions_of(from)?;
        self.set_positions(to, positions)?;
        for (here, there) in self.cross.iter_mut().zip(&mut single_rows.cross) {
            let prefix = here.prefix(positions);
            here.buffer.copy_from(&mut there.buffer, from, to, prefix)?;
        }

        for (here, there) in self.self_kv.iter_mut().zip(&mut single_rows.self_kv) {
            for row in 0..self.rows {
                let (to, prefix) = (to * self.rows + row, here.prefix(length));
                here.buffer.copy_from(&mut there.buffer, from, to, prefix)?;
            }
        }

        Ok(())
    }

    /// See [`super::kv_cache::KvCache::run`]; returns the logits after the last token of each row.
    pub fn run(
        &mut self,
        decoder: &mut DecoderSession,
        slots: Range<usize>,
        step_input: &StepInput<'_>,
    ) -> Result<&mut [f32], ort::Error> {
        let StepInput { tokens, lengths, .. } = *step_input;
        let (count, step) = (lengths.len(), step_input.tokens_per_row());
        let longest = step_input.longest();
        let rows = slots.start * self.rows..slots.end * self.rows;

        let mut binding = match self.binding.take() {
            Some(binding) => binding,
            None => {
                self.bound = None;
                decoder.session.get()?.create_binding()?
            }
        };

        self.bind(&mut binding, &slots, &rows)?;

        let host = Allocator::default();
        let mut input = |name: &str, shape: &[usize], values: &mut dyn Iterator<Item = usize>| {
            let mut tensor = Tensor::<i32>::new(&host, shape.to_vec())?;
            for (into, value) in tensor.extract_tensor_mut().1.iter_mut().zip(values) {
                *into = value as i32;
            }

            // ort copies the input to the session's device when it is bound.
            binding.bind_input(name, &tensor)
        };

        input("input_ids", &[count, step], &mut tokens.iter().map(|token| *token as usize))?;
        input("position_ids", &[count, step], &mut lengths.iter().flat_map(|length| *length..length + step))?;
        input("seqlens_k", &[count], &mut lengths.iter().map(|length| length + step - 1))?;
        input("total_sequence_length", &[], &mut std::iter::once(longest))?;

        if decoder.lengths.has_last_frame {
            let last_frames = self.positions[slots.clone()].iter().map(|positions| positions - 1);
            input(LAST_FRAME, &[slots.len()], &mut last_frames.into_iter())?;
        }

        if decoder.choice.is_some() {
            // On a CPU the host chooses from all logits, so that the ranges have no effect.
            for name in choice::RANGES {
                input(name, &[count, 1], &mut std::iter::repeat_n(0, count))?;
            }
            bind_shapes(&mut binding, [slots.len(), count, step], decoder.shape.model_width)?;
        }

        let ran = decoder.session.get()?.run_binding(&binding).map(drop);
        self.binding = Some(binding);
        ran?;

        self.logits.numbers(rows)
    }

    /// Binds the buffers of `slots`, unless they are bound already; only the small inputs differ from call to call.
    fn bind(&mut self, binding: &mut IoBinding, slots: &Range<usize>, rows: &Range<usize>) -> Result<(), ort::Error> {
        if self.bound.as_ref() == Some(slots) {
            return Ok(());
        }

        self.bound = None;
        let self_kv = self.self_kv.iter_mut().map(|tensor| (tensor, rows));

        for (CacheTensor { input, output, buffer, .. }, range) in
            self.cross.iter_mut().map(|tensor| (tensor, slots)).chain(self_kv)
        {
            let mut view = buffer.view(range.clone())?;
            binding.bind_input(&*input, &view)?;
            if let Some(output) = output {
                binding.bind_output(&*output, &mut view)?;
            }
        }

        let mut logits = self.logits.view(rows.clone())?;
        binding.bind_output("logits", &mut logits)?;
        self.bound = Some(slots.clone());

        Ok(())
    }
}
