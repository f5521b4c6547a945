//! Keys and values of windows and of their rows, in the host's memory.

use std::ops::Range;

use ort::{
    memory::Allocator,
    session::IoBinding,
    value::{Tensor, TensorElementType},
};

use super::{
    buffer::Buffer,
    encoder::{CrossShape, CrossTensor},
    kv_cache::{DecoderSession, StepInput, bind_shapes},
};
use crate::graph::choice;

/// KV slots of `rows` rows each. Row `r` of the window in slot `s` is row `s * rows + r` of a call.
pub struct HostKvCache {
    rows: usize,
    slots: usize,
    /// Cross-attention keys and values of the windows, one slot for each.
    cross: Vec<CacheTensor>,
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
}

impl HostKvCache {
    pub fn new(decoder: &DecoderSession, rows: usize, slots: usize) -> Result<Self, ort::Error> {
        let DecoderSession { shape, cross: cross_shapes, .. } = decoder;
        let mut cross = Vec::with_capacity(cross_shapes.len());
        for CrossShape { name, element, shape } in cross_shapes {
            // The graph does not write this output, but ONNX Runtime would copy the input for an unbound one.
            let output = (*element == TensorElementType::Int8).then(|| format!("present_{name}"));
            cross.push(CacheTensor {
                input: name.clone(),
                output,
                buffer: Buffer::new(*element, slots, shape.clone())?,
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
                });
            }
        }

        let logits = Buffer::new(TensorElementType::Float32, slots * rows, vec![shape.vocabulary])?;

        Ok(Self { rows, slots, cross, self_kv, logits, binding: None, bound: None })
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
        self.slots = slots;

        Ok(())
    }

    /// The cross-attention keys and values of one window, as views into the cache.
    pub fn cross(&mut self, slot: usize) -> Result<Vec<CrossTensor>, ort::Error> {
        let view = |shared: &mut CacheTensor| {
            let tensor = shared.buffer.view(slot..slot + 1)?;
            Ok(CrossTensor { name: shared.input.clone(), tensor })
        };

        self.cross.iter_mut().map(view).collect()
    }

    /// Copies a window with the first `length` tokens of its rows.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for CacheTensor { buffer, .. } in &mut self.cross {
            buffer.copy_within(from, to, None)?;
        }
        for row in 0..self.rows {
            self.copy_row(from * self.rows + row, to * self.rows + row, length)?;
        }
        Ok(())
    }

    /// Copies the first `length` tokens of a row.
    pub fn copy_row(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for CacheTensor { buffer, .. } in &mut self.self_kv {
            buffer.copy_within(from, to, Some(length))?;
        }
        Ok(())
    }

    /// Copies a window from a cache of one row for each window: each row here begins as a copy of that row.
    pub fn fork(&mut self, single_rows: &mut Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for (here, there) in self.cross.iter_mut().zip(&mut single_rows.cross) {
            here.buffer.copy_from(&mut there.buffer, from, to, None)?;
        }

        for (here, there) in self.self_kv.iter_mut().zip(&mut single_rows.self_kv) {
            for row in 0..self.rows {
                let to = to * self.rows + row;
                here.buffer.copy_from(&mut there.buffer, from, to, Some(length))?;
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
        for (CacheTensor { input, output, buffer }, range) in
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
