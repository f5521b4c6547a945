//! Keys and values of windows and of their rows, on the device.

use std::{collections::HashMap, ops::Range};

use ort::{
    session::{IoBinding, RunOptions},
    value::{Tensor, TensorElementType},
};

use super::{
    DeviceContext,
    regions::Regions,
    run_bound, run_options,
    step_io::{RowInput, StepIo},
};
use crate::{
    decoding::ChoiceLayout,
    engine::{
        encoder::Cross,
        kv_cache::{Decoder, Shape, StepInput, StepScores, bind_shapes},
    },
};

/// Places for windows, of `rows` rows each. Row `r` of the window at place `p` is row `p * rows + r` of a call.
pub struct DeviceKvCache {
    // Dropped before the context, whose stream and weights the session of these calls uses.
    calls: HashMap<CallKey, BoundCall>,
    context: DeviceContext,
    rows: usize,
    places: usize,
    cross: Regions,
    own: Regions,
    io: StepIo,
    /// Whether the stream waits for all weights already.
    has_weights: bool,
    /// Goes into the number of each captured graph, so that caches do not replay each other's.
    graphs: GraphNumbers,
}

/// A call of the decoder that is bound once and made many times.
#[derive(Clone, PartialEq, Eq, Hash)]
struct CallKey {
    places: Range<usize>,
    tokens: usize,
}

struct BoundCall {
    binding: IoBinding,
    options: RunOptions,
}

/// Numbers captured graphs of one session; each number is given once.
#[derive(Clone, Default)]
pub struct GraphNumbers(std::sync::Arc<std::sync::atomic::AtomicU32>);

impl GraphNumbers {
    fn next(&self) -> u32 {
        // ONNX Runtime takes 0 for "the one graph of the session".
        1 + self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

impl DeviceKvCache {
    pub fn new(
        context: &DeviceContext,
        graphs: &GraphNumbers,
        decoder: &Decoder,
        rows: usize,
        places: usize,
    ) -> Result<Self, ort::Error> {
        let shape = &decoder.shape;
        let (cross, own) = Self::regions(context, decoder, rows, places)?;
        let layout = decoder.choice.ok_or_else(|| {
            ort::Error::new("this model directory was not made for a GPU; repeat `hush-server install` with fp16")
        })?;
        let io = Self::io(context, shape, layout, rows * places)?;
        Ok(Self {
            context: context.clone(),
            rows,
            places,
            cross,
            own,
            io,
            calls: HashMap::new(),
            graphs: graphs.clone(),
            has_weights: false,
        })
    }

    fn regions(
        context: &DeviceContext,
        decoder: &Decoder,
        rows: usize,
        places: usize,
    ) -> Result<(Regions, Regions), ort::Error> {
        let shape = &decoder.shape;
        let first = decoder.cross.first().ok_or_else(|| ort::Error::new("the encoder gives no keys and values"))?;
        let same = |cross: &crate::engine::encoder::CrossShape| {
            cross.shape == first.shape && cross.element == TensorElementType::Float16
        };
        if !decoder.cross.iter().all(same) {
            return Err(ort::Error::new("keys and values of different shapes"));
        }
        let cross = Regions::new(context, first.element, decoder.cross.len(), places, first.shape.clone())?;
        let row = vec![shape.heads, shape.slots, shape.width];
        let own = Regions::new(context, shape.real, 2 * shape.layers, places * rows, row)?;
        Ok((cross, own))
    }

    fn io(context: &DeviceContext, shape: &Shape, layout: ChoiceLayout, rows: usize) -> Result<StepIo, ort::Error> {
        StepIo::new(context, rows, shape.slots, shape.vocabulary, layout)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn places(&self) -> usize {
        self.places
    }

    /// Room for `places` windows; the first `used` keep what they hold.
    pub fn grow(&mut self, decoder: &Decoder, places: usize, used: usize) -> Result<(), ort::Error> {
        let (cross, own) = Self::regions(&self.context, decoder, self.rows, places)?;
        let io = Self::io(&self.context, &decoder.shape, self.io.layout(), self.rows * places)?;
        if used > 0 {
            cross.copy_slots(&self.context, &self.cross, 0, 0, used)?;
            own.copy_slots(&self.context, &self.own, 0, 0, used * self.rows)?;
        }

        // The old memory is read until here.
        self.context.stream.synchronize()?;

        // What is bound points into it.
        self.calls.clear();
        (self.cross, self.own, self.io, self.places) = (cross, own, io, places);

        Ok(())
    }

    /// The keys and values of one window, where they lie.
    pub fn cross(&self, decoder: &Decoder, place: usize) -> Result<Vec<Cross>, ort::Error> {
        let info = self.context.memory_info()?;
        let view = |(index, shape): (usize, &crate::engine::encoder::CrossShape)| {
            Ok(Cross { name: shape.name.clone(), tensor: self.cross.view(&info, index, place..place + 1)? })
        };
        decoder.cross.iter().enumerate().map(view).collect()
    }

    /// Copies a window, of whose rows `length` tokens count.
    pub fn copy_window(&self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        if from == to {
            return Ok(());
        }

        self.cross.copy_slots(&self.context, &self.cross, from, to, 1)?;
        for row in 0..self.rows {
            self.copy_row(from * self.rows + row, to * self.rows + row, length)?;
        }

        Ok(())
    }

    /// Copies `length` tokens of a row: one operation for all layers.
    pub fn copy_row(&self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        if from == to { Ok(()) } else { self.own.copy_prefix(&self.context, &self.own, from, to, length) }
    }

    /// Takes a window over from a cache of one row for each window: each row here begins as that one.
    pub fn fork(&self, single: &Self, from: usize, to: usize, length: usize) -> Result<(), ort::Error> {
        self.cross.copy_slots(&self.context, &single.cross, from, to, 1)?;
        for row in 0..self.rows {
            self.own.copy_prefix(&self.context, &single.own, from, to * self.rows + row, length)?;
        }
        Ok(())
    }

    /// Makes a call of the decoder over the rows of the windows at `places`; see [`super::super::kv_cache::KvCache::run`].
    pub fn run(
        &mut self,
        decoder: &mut Decoder,
        places: Range<usize>,
        step: &StepInput<'_>,
    ) -> Result<StepScores<'_>, ort::Error> {
        let (first, count) = (places.start * self.rows, places.len() * self.rows);
        let tokens = step.tokens_per_row();
        let key = CallKey { places: places.clone(), tokens };
        // A graph is captured for the calls that are made for every token.
        let captured = tokens == 1 && places.start == 0;
        if !self.calls.contains_key(&key) {
            // Prompts have many lengths.
            self.calls.retain(|known, _| known.tokens == 1);
            let call = self.bound_call(decoder, &key, captured)?;
            self.calls.insert(key.clone(), call);
        }
        let call = self.calls.get_mut(&key).ok_or_else(|| ort::Error::new("a call that was not bound"))?;
        if tokens > 1 {
            bind_total(&mut call.binding, step.longest())?;
        }

        let rows: Vec<RowInput<'_>> = step.rows().collect();
        self.io.send(&self.context, &rows)?;
        if !self.has_weights {
            self.context.weights.wait_for_decoder(&self.context.stream)?;
            self.has_weights = true;
        }
        run_bound(decoder.session.get()?, &call.options, &call.binding)?;
        if step.wants_logits(self.io.layout().likeliest) {
            return Ok(StepScores::Logits(self.io.logits(&self.context, first, count)?));
        }
        let layout = self.io.layout();
        Ok(StepScores::Choice { numbers: self.io.choice(&self.context, first, count)?, layout })
    }

    fn bound_call(&self, decoder: &mut Decoder, key: &CallKey, captured: bool) -> Result<BoundCall, ort::Error> {
        let info = self.context.memory_info()?;
        let CallKey { places, tokens } = key;
        let rows = places.start * self.rows..places.end * self.rows;
        let mut binding = decoder.session.get()?.create_binding()?;

        for (index, cross) in decoder.cross.iter().enumerate() {
            binding.bind_input(cross.name.as_str(), &self.cross.view(&info, index, places.clone())?)?;
        }

        for layer in 0..decoder.shape.layers {
            for (kind, index) in [("k", 2 * layer), ("v", 2 * layer + 1)] {
                let mut cache = self.own.view(&info, index, rows.clone())?;
                binding.bind_input(format!("self_{kind}_{layer}"), &cache)?;
                binding.bind_output(format!("present_{kind}_{layer}"), &mut cache)?;
            }
        }

        // For single tokens any number that is large enough does, and a captured graph keeps the one that it saw.
        bind_total(&mut binding, decoder.shape.slots)?;
        bind_shapes(&mut binding, [places.len(), rows.len(), *tokens], decoder.shape.model_width)?;
        self.io.bind(&info, &mut binding, rows.start, rows.len(), *tokens)?;

        Ok(BoundCall { binding, options: run_options(captured.then(|| self.graphs.next()))? })
    }
}

fn bind_total(binding: &mut IoBinding, total: usize) -> Result<(), ort::Error> {
    let tensor = Tensor::<i32>::from_array(((), vec![total as i32]))?;
    binding.bind_input("total_sequence_length", &tensor)
}
