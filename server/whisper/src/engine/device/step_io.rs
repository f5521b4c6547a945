//! The inputs and outputs of the decoder's calls: one block on the device for the inputs, one for the outputs, and the same
//! blocks in pinned memory. The blocks keep their addresses, and an input of a step begins at the same address for any
//! number of rows.

use std::ops::Range;

use ort::{
    memory::MemoryInfo,
    session::IoBinding,
    value::{TensorElementType, TensorElementType::Float32},
};

use super::{
    DeviceContext,
    memory::{DeviceBuffer, PinnedMemory},
};
use crate::{
    decoding::ChoiceLayout,
    graph::{choice, decoder::LAST_FRAME},
};

/// Bytes of an input or output number (i32 or f32).
const NUMBER_BYTES: usize = 4;

/// The inputs that have one number for each row, in the order of the block.
const ROW_INPUTS: [&str; 5] = ["seqlens_k", choice::RANGES[0], choice::RANGES[1], choice::RANGES[2], choice::RANGES[3]];
/// The input that has one number for each window; a window has at least one row.
const WINDOW_INPUT: &str = LAST_FRAME;
/// The inputs that have one number for each token.
const TOKEN_INPUTS: [&str; 2] = ["input_ids", "position_ids"];

/// The input of one row of a call.
pub struct RowInput<'a> {
    /// The tokens of this call.
    pub tokens: &'a [u32],
    /// Tokens that the row's cache already holds.
    pub length: usize,
    /// `[first, end)` of the words, and of the timestamps, that may follow.
    pub ranges: [Range<u32>; 2],
}

/// The blocks of inputs and outputs.
pub struct StepIo {
    rows: usize,
    /// Values of each of the token inputs.
    tokens: usize,
    vocabulary: usize,
    layout: ChoiceLayout,
    /// Whether the graph has [`WINDOW_INPUT`]: those of older installs do not.
    has_window_lengths: bool,
    inputs: DeviceBuffer,
    host_inputs: PinnedMemory,
    outputs: DeviceBuffer,
    host_outputs: PinnedMemory,
}

impl StepIo {
    /// For calls with up to `rows` rows of one token each, or one row of up to `prompt` tokens.
    pub fn new(
        context: &DeviceContext,
        rows: usize,
        prompt: usize,
        vocabulary: usize,
        layout: ChoiceLayout,
        has_window_lengths: bool,
    ) -> Result<Self, ort::Error> {
        let tokens = rows.max(prompt);
        let input_bytes = input_bytes(rows, tokens);
        let output_bytes = NUMBER_BYTES * rows * (layout.width() + vocabulary);

        Ok(Self {
            rows,
            tokens,
            vocabulary,
            layout,
            has_window_lengths,
            inputs: DeviceBuffer::new(context.cuda.clone(), input_bytes)?,
            host_inputs: PinnedMemory::new(context.cuda.clone(), input_bytes)?,
            outputs: DeviceBuffer::new(context.cuda.clone(), output_bytes)?,
            host_outputs: PinnedMemory::new(context.cuda.clone(), output_bytes)?,
        })
    }

    pub fn layout(&self) -> ChoiceLayout {
        self.layout
    }

    /// The byte at which an input begins in its block, and its number of values at most.
    fn input(&self, name: &str) -> Option<(usize, usize)> {
        if let Some(index) = ROW_INPUTS.iter().position(|known| *known == name) {
            return Some((NUMBER_BYTES * index * self.rows, self.rows));
        }

        if name == WINDOW_INPUT {
            return Some((NUMBER_BYTES * ROW_INPUTS.len() * self.rows, self.rows));
        }

        let index = TOKEN_INPUTS.iter().position(|known| *known == name)?;
        Some((NUMBER_BYTES * ((ROW_INPUTS.len() + 1) * self.rows + index * self.tokens), self.tokens))
    }

    /// Binds inputs and outputs of a call over these rows, of `step` tokens each, of so many windows.
    pub fn bind(
        &self,
        info: &MemoryInfo,
        binding: &mut IoBinding,
        rows: Range<usize>,
        step: usize,
        windows: usize,
    ) -> Result<(), ort::Error> {
        let (first, count) = (rows.start, rows.len());
        let window_input = self.has_window_lengths.then_some(WINDOW_INPUT);
        for name in ROW_INPUTS.into_iter().chain(TOKEN_INPUTS).chain(window_input) {
            let (offset, _) = self.input(name).ok_or_else(|| unknown(name))?;
            let shape: &[usize] = match name {
                "seqlens_k" => &[count],
                WINDOW_INPUT => &[windows],
                _ if TOKEN_INPUTS.contains(&name) => &[count, step],
                _ => &[count, 1],
            };
            let tensor = self.inputs.tensor(info, TensorElementType::Int32, offset, shape)?;
            binding.bind_input(name, &tensor)?;
        }

        let width = self.layout.width();
        let mut choice = self.outputs.tensor(info, Float32, self.choice_range(first, count).start, &[count, width])?;
        binding.bind_output(choice::OUTPUT, &mut choice)?;

        let start = self.logits_range(first, count).start;
        let mut logits = self.outputs.tensor(info, Float32, start, &[count, self.vocabulary])?;

        binding.bind_output("logits", &mut logits)
    }

    /// Fills the inputs of a call and copies them to the device. `window_positions`: the length of each
    /// window.
    pub fn copy_inputs(
        &mut self,
        context: &DeviceContext,
        rows: &[RowInput<'_>],
        window_positions: &[usize],
    ) -> Result<(), ort::Error> {
        let timestamps = self.layout.timestamps;
        let bounded = |token: u32, range: Range<u32>| token.clamp(range.start, range.end) as i32;
        let end = u32::try_from(self.vocabulary).unwrap_or(u32::MAX);

        for name in ROW_INPUTS {
            let value = |row: &RowInput<'_>| match name {
                "seqlens_k" => (row.length + row.tokens.len()) as i32 - 1,
                "word_first" => bounded(row.ranges[0].start, 0..timestamps),
                "word_end" => bounded(row.ranges[0].end, 0..timestamps),
                "time_first" => bounded(row.ranges[1].start, timestamps..end),
                _ => bounded(row.ranges[1].end, timestamps..end),
            };
            self.fill(name, &mut rows.iter().map(value))?;
        }

        self.fill("input_ids", &mut rows.iter().flat_map(|row| row.tokens.iter().map(|token| *token as i32)))?;
        let positions =
            |row: &RowInput<'_>| (row.length..row.length + row.tokens.len()).map(|position| position as i32);
        self.fill("position_ids", &mut rows.iter().flat_map(positions))?;
        self.fill(WINDOW_INPUT, &mut window_positions.iter().map(|length| *length as i32 - 1))?;
        let bytes = input_bytes(self.rows, self.tokens);

        self.inputs.copy_from_pinned(0, &self.host_inputs, 0..bytes, &context.stream)
    }

    fn fill(&mut self, name: &str, values: &mut dyn Iterator<Item = i32>) -> Result<(), ort::Error> {
        let (offset, max_values) = self.input(name).ok_or_else(|| unknown(name))?;
        for (into, value) in self.host_inputs.i32_mut(offset, max_values)?.iter_mut().zip(values) {
            *into = value;
        }
        Ok(())
    }

    /// Waits for the call and returns the output `choice` of the rows `[first, first + count)`.
    pub fn choice(&mut self, context: &DeviceContext, first: usize, count: usize) -> Result<&[f32], ort::Error> {
        let range = self.choice_range(first, count);
        self.outputs.copy_to_pinned(range.clone(), &self.host_outputs, range.start, &context.stream)?;
        context.stream.synchronize()?;
        Ok(self.host_outputs.f32_mut(range.start, range.len() / NUMBER_BYTES)?)
    }

    /// Waits for the call and returns the logits of the rows `[first, first + count)`.
    pub fn logits(&mut self, context: &DeviceContext, first: usize, count: usize) -> Result<&mut [f32], ort::Error> {
        let range = self.logits_range(first, count);
        self.outputs.copy_to_pinned(range.clone(), &self.host_outputs, range.start, &context.stream)?;
        context.stream.synchronize()?;
        self.host_outputs.f32_mut(range.start, range.len() / NUMBER_BYTES)
    }

    /// The bytes of the rows' choices, which come before the logits.
    fn choice_range(&self, first: usize, count: usize) -> Range<usize> {
        let row = NUMBER_BYTES * self.layout.width();
        first * row..(first + count) * row
    }

    fn logits_range(&self, first: usize, count: usize) -> Range<usize> {
        let (base, row) = (NUMBER_BYTES * self.rows * self.layout.width(), NUMBER_BYTES * self.vocabulary);
        base + first * row..base + (first + count) * row
    }
}

fn input_bytes(rows: usize, tokens: usize) -> usize {
    NUMBER_BYTES * ((ROW_INPUTS.len() + 1) * rows + TOKEN_INPUTS.len() * tokens)
}

fn unknown(name: &str) -> ort::Error {
    ort::Error::new(format!("the decoder has no input `{name}`"))
}
