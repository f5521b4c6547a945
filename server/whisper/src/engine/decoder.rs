//! Tokens to logits, with a cache of keys and values that is written in place.

use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, TensorElementType},
};

use super::encoder::Cross;
use crate::checkpoint::Config;

/// Decodes the window that lies in the encoder's buffers: one row that is fed a prompt, and as many rows as a search
/// wants that go on from there.
pub struct Decoder {
    session: Session,
    shape: Shape,
    memory: Allocator,
    /// Tokens that every row begins with.
    fed: Vec<u32>,
    single: Rows,
    /// Rows of the last search over more than one; kept for the next.
    wide: Option<Rows>,
    is_wide: bool,
}

#[derive(Clone, Copy)]
struct Shape {
    layers: usize,
    heads: usize,
    slots: usize,
    width: usize,
    vocabulary: usize,
    real: TensorElementType,
}

impl Decoder {
    pub fn new(
        session: Session,
        config: &Config,
        real: TensorElementType,
        memory: Allocator,
        cross: &mut [Cross],
    ) -> Result<Self, ort::Error> {
        let shape = Shape {
            layers: config.decoder_layers,
            heads: config.decoder_attention_heads,
            slots: config.max_target_positions,
            width: config.head_width(),
            vocabulary: config.vocab_size,
            real,
        };
        let single = Rows::new(&session, &memory, shape, 1, cross)?;
        Ok(Self { session, shape, memory, fed: Vec::new(), single, wide: None, is_wide: false })
    }

    pub fn restart(&mut self) {
        self.fed.clear();
        self.single.length = 0;
        self.is_wide = false;
    }

    pub fn feed(&mut self, tokens: &[u32]) -> Result<&mut [f32], ort::Error> {
        self.fed.extend_from_slice(tokens);
        self.single.run(&mut self.session, tokens)
    }

    pub fn fork(&mut self, rows: usize, cross: &mut [Cross]) -> Result<(), ort::Error> {
        self.single.length = self.fed.len();
        self.is_wide = rows > 1;
        if !self.is_wide {
            return Ok(());
        }
        let wide = match self.wide.take() {
            Some(wide) if wide.count == rows => wide,
            _ => Rows::new(&self.session, &self.memory, self.shape, rows, cross)?,
        };
        let wide = self.wide.insert(wide);
        wide.length = 0;
        if self.memory.memory_info().is_cpu_accessible() && self.shape.real == TensorElementType::Float32 {
            wide.copy_from(&self.single, self.shape)
        } else {
            let prompts = self.fed.repeat(rows);
            wide.run(&mut self.session, &prompts).map(|_| ())
        }
    }

    pub fn step(&mut self, tokens: &[u32]) -> Result<&mut [f32], ort::Error> {
        let rows = match &mut self.wide {
            Some(wide) if self.is_wide => wide,
            _ => &mut self.single,
        };
        rows.run(&mut self.session, tokens)
    }
}

/// Rows of the same length, and everything bound that they need.
struct Rows {
    count: usize,
    /// Tokens in the cache of each row.
    length: usize,
    slots: usize,
    binding: IoBinding,
    cache: Vec<DynTensor>,
    logits: Tensor<f32>,
    ids: Tensor<i32>,
    positions: Tensor<i32>,
    last_slot: Tensor<i32>,
    total: Tensor<i32>,
}

impl Rows {
    fn new(
        session: &Session,
        memory: &Allocator,
        shape: Shape,
        count: usize,
        cross: &mut [Cross],
    ) -> Result<Self, ort::Error> {
        let host = Allocator::default();
        let mut binding = session.create_binding()?;
        for Cross { name, tensor } in cross {
            binding.bind_input(&*name, tensor)?;
            let present = format!("present_{name}");
            if session.outputs().iter().any(|outlet| outlet.name() == present) {
                binding.bind_output(present, tensor)?;
            }
        }
        let mut cache = Vec::with_capacity(2 * shape.layers);
        for layer in 0..shape.layers {
            for kind in ["k", "v"] {
                let dimensions = [count, shape.heads, shape.slots, shape.width];
                let mut tensor = DynTensor::new(memory, shape.real, dimensions)?;
                binding.bind_input(format!("self_{kind}_{layer}"), &tensor)?;
                binding.bind_output(format!("present_{kind}_{layer}"), &mut tensor)?;
                cache.push(tensor);
            }
        }
        let mut logits = Tensor::<f32>::new(&host, [count, shape.vocabulary])?;
        binding.bind_output("logits", &mut logits)?;
        Ok(Self {
            count,
            length: 0,
            slots: shape.slots,
            binding,
            cache,
            logits,
            ids: Tensor::new(&host, [count, 1_usize])?,
            positions: Tensor::new(&host, [count, 1_usize])?,
            last_slot: Tensor::new(&host, [count])?,
            total: Tensor::new(&host, [0_usize; 0])?,
        })
    }

    /// Feeds the same number of tokens to each row, row after row; gives the logits after the last of each.
    fn run(&mut self, session: &mut Session, tokens: &[u32]) -> Result<&mut [f32], ort::Error> {
        let step = tokens.len() / self.count;
        let length = self.length + step;
        if step == 0 || length > self.slots {
            let (length, slots) = (self.length, self.slots);
            return Err(ort::Error::new(format!("{step} tokens behind {length} do not fit into {slots} slots")));
        }
        if step == 1 {
            fill(&mut self.ids, tokens.iter().map(|token| *token as i32));
            fill(&mut self.positions, std::iter::repeat(self.length as i32));
            self.binding.bind_input("input_ids", &self.ids)?;
            self.binding.bind_input("position_ids", &self.positions)?;
        } else {
            let host = Allocator::default();
            let mut ids = Tensor::<i32>::new(&host, [self.count, step])?;
            let mut positions = Tensor::<i32>::new(&host, [self.count, step])?;
            fill(&mut ids, tokens.iter().map(|token| *token as i32));
            fill(&mut positions, (self.length as i32..length as i32).cycle());
            self.binding.bind_input("input_ids", &ids)?;
            self.binding.bind_input("position_ids", &positions)?;
        }
        fill(&mut self.last_slot, std::iter::repeat(length as i32 - 1));
        fill(&mut self.total, std::iter::once(length as i32));
        self.binding.bind_input("seqlens_k", &self.last_slot)?;
        self.binding.bind_input("total_sequence_length", &self.total)?;
        session.run_binding(&self.binding)?;
        self.length = length;
        Ok(self.logits.extract_tensor_mut().1)
    }

    /// Begins every row as `single` begins.
    fn copy_from(&mut self, single: &Self, shape: Shape) -> Result<(), ort::Error> {
        let row = shape.heads * shape.slots * shape.width;
        let used = single.length * shape.width;
        for (into, from) in self.cache.iter_mut().zip(&single.cache) {
            let (_, from) = from.try_extract_tensor::<f32>()?;
            let (_, into) = into.try_extract_tensor_mut::<f32>()?;
            for into in into.chunks_exact_mut(row) {
                for (into, from) in
                    into.chunks_exact_mut(shape.slots * shape.width).zip(from.chunks_exact(shape.slots * shape.width))
                {
                    into[..used].copy_from_slice(&from[..used]);
                }
            }
        }
        self.length = single.length;
        Ok(())
    }
}

fn fill(tensor: &mut Tensor<i32>, values: impl Iterator<Item = i32>) {
    for (into, value) in tensor.extract_tensor_mut().1.iter_mut().zip(values) {
        *into = value;
    }
}
