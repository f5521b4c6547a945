//! Keys and values of windows and of their rows, in the host's memory.

use std::ops::Range;

use ort::{
    memory::Allocator,
    session::IoBinding,
    value::{Tensor, TensorElementType},
};

use super::{
    buffer::Buffer,
    encoder::{Cross, CrossShape},
    kv_cache::{Decoder, StepInput, bind_shapes},
};
use crate::graph::choice;

/// Places for windows, of `rows` rows each. Row `r` of the window at place `p` is row `p * rows + r` of a call.
pub struct HostKvCache {
    rows: usize,
    places: usize,
    /// Keys and values of the windows, one place for each.
    cross: Vec<Shared>,
    /// Keys and values of the rows' own tokens, one place for each row.
    cache: Vec<Shared>,
    logits: Buffer,
    /// Of the session, once it is needed; new when the buffers are.
    binding: Option<IoBinding>,
    /// The places that are bound.
    bound: Option<Range<usize>>,
}

/// A buffer that a graph reads under one name and may write under another.
struct Shared {
    input: String,
    output: Option<String>,
    buffer: Buffer,
}

impl HostKvCache {
    pub fn new(decoder: &Decoder, rows: usize, places: usize) -> Result<Self, ort::Error> {
        let Decoder { shape, cross, .. } = decoder;
        let mut heard = Vec::with_capacity(cross.len());
        for CrossShape { name, element, shape } in cross {
            // Nothing is written there, but left unbound it would be a copy.
            let output = (*element == TensorElementType::Int8).then(|| format!("present_{name}"));
            heard.push(Shared { input: name.clone(), output, buffer: Buffer::new(*element, places, shape.clone())? });
        }

        let mut cache = Vec::with_capacity(2 * shape.layers);

        for layer in 0..shape.layers {
            for kind in ["k", "v"] {
                let row = vec![shape.heads, shape.slots, shape.width];
                cache.push(Shared {
                    input: format!("self_{kind}_{layer}"),
                    output: Some(format!("present_{kind}_{layer}")),
                    buffer: Buffer::new(shape.real, places * rows, row)?,
                });
            }
        }

        let logits = Buffer::new(TensorElementType::Float32, places * rows, vec![shape.vocabulary])?;

        Ok(Self { rows, places, cross: heard, cache, logits, binding: None, bound: None })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn places(&self) -> usize {
        self.places
    }

    /// Room for `places` windows; the first `used` keep what they hold.
    pub fn grow(&mut self, places: usize, used: usize) -> Result<(), ort::Error> {
        // What is bound points into the old buffers.
        (self.bound, self.binding) = (None, None);
        self.places = self.places.min(places);
        for Shared { buffer, .. } in &mut self.cross {
            buffer.grow(places, used)?;
        }

        for Shared { buffer, .. } in &mut self.cache {
            buffer.grow(places * self.rows, used * self.rows)?;
        }

        self.logits.grow(places * self.rows, 0)?;
        self.places = places;

        Ok(())
    }

    /// The keys and values of one window, where they lie.
    pub fn cross(&mut self, place: usize) -> Result<Vec<Cross>, ort::Error> {
        let view = |shared: &mut Shared| {
            let tensor = shared.buffer.view(place..place + 1)?;
            Ok(Cross { name: shared.input.clone(), tensor })
        };
        self.cross.iter_mut().map(view).collect()
    }

    /// Copies a window, of whose rows `length` tokens count.
    pub fn copy_window(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for Shared { buffer, .. } in &mut self.cross {
            buffer.copy_within(from, to, None)?;
        }
        for row in 0..self.rows {
            self.copy_row(from * self.rows + row, to * self.rows + row, length)?;
        }
        Ok(())
    }

    /// Copies `length` tokens of a row.
    pub fn copy_row(&mut self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for Shared { buffer, .. } in &mut self.cache {
            buffer.copy_within(from, to, Some(length))?;
        }
        Ok(())
    }

    /// Takes a window over from a band of one row: each row here begins as that one.
    pub fn fork(&mut self, single: &mut Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        for (here, there) in self.cross.iter_mut().zip(&mut single.cross) {
            here.buffer.copy_from(&mut there.buffer, from, to, None)?;
        }

        for (here, there) in self.cache.iter_mut().zip(&mut single.cache) {
            for row in 0..self.rows {
                let to = to * self.rows + row;
                here.buffer.copy_from(&mut there.buffer, from, to, Some(length))?;
            }
        }

        Ok(())
    }

    /// See [`super::kv_cache::KvCache::run`]; gives the logits after the last token of each row.
    pub fn run(
        &mut self,
        decoder: &mut Decoder,
        places: Range<usize>,
        step_input: &StepInput<'_>,
    ) -> Result<&mut [f32], ort::Error> {
        let StepInput { tokens, lengths, .. } = *step_input;
        let (count, step) = (lengths.len(), step_input.tokens_per_row());
        let longest = step_input.longest();
        let rows = places.start * self.rows..places.end * self.rows;
        let mut binding = match self.binding.take() {
            Some(binding) => binding,
            None => {
                self.bound = None;
                decoder.session.get()?.create_binding()?
            }
        };
        self.bind(&mut binding, &places, &rows)?;
        let host = Allocator::default();
        let mut input = |name: &str, shape: &[usize], values: &mut dyn Iterator<Item = usize>| {
            let mut tensor = Tensor::<i32>::new(&host, shape.to_vec())?;
            for (into, value) in tensor.extract_tensor_mut().1.iter_mut().zip(values) {
                *into = value as i32;
            }
            // Bound anew each time: on a GPU that is what copies it.
            binding.bind_input(name, &tensor)
        };
        input("input_ids", &[count, step], &mut tokens.iter().map(|token| *token as usize))?;
        input("position_ids", &[count, step], &mut lengths.iter().flat_map(|length| *length..length + step))?;
        input("seqlens_k", &[count], &mut lengths.iter().map(|length| length + step - 1))?;
        input("total_sequence_length", &[], &mut std::iter::once(longest))?;
        if decoder.choice.is_some() {
            // The host chooses from the logits here, so the ranges do not matter.
            for name in choice::RANGES {
                input(name, &[count, 1], &mut std::iter::repeat_n(0, count))?;
            }
            bind_shapes(&mut binding, [places.len(), count, step], decoder.shape.model_width)?;
        }
        let ran = decoder.session.get()?.run_binding(&binding).map(drop);
        self.binding = Some(binding);
        ran?;
        self.logits.numbers(rows)
    }

    /// Binds the buffers as they lie at `places`; only the small inputs differ from call to call.
    fn bind(&mut self, binding: &mut IoBinding, places: &Range<usize>, rows: &Range<usize>) -> Result<(), ort::Error> {
        if self.bound.as_ref() == Some(places) {
            return Ok(());
        }

        self.bound = None;
        let caches = self.cache.iter_mut().map(|shared| (shared, rows));
        for (Shared { input, output, buffer }, range) in self.cross.iter_mut().map(|s| (s, places)).chain(caches) {
            let mut view = buffer.view(range.clone())?;
            binding.bind_input(&*input, &view)?;
            if let Some(output) = output {
                binding.bind_output(&*output, &mut view)?;
            }
        }

        let mut logits = self.logits.view(rows.clone())?;
        binding.bind_output("logits", &mut logits)?;
        self.bound = Some(places.clone());

        Ok(())
    }
}
