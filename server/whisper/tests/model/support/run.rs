//! Runs installed graphs in ONNX Runtime in the simplest way: every input and output by name.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use half::f16;
use hush_whisper::{ModelDir, Precision, kernels::InstructionSet, operators};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};

/// ONNX Runtime has one environment per process.
fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();

    ENVIRONMENT.get_or_init(|| {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.hush/lib/libonnxruntime.so");
        let library = std::env::var_os("ORT_DYLIB_PATH").map_or(beside, PathBuf::from);
        let builder = ort::init_from(&library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
        builder.with_telemetry(false).build().unwrap()
    })
}

/// The sessions of an installed model, and the dimensions that their inputs need.
pub struct GraphModel {
    encoder: Session,
    decoder: Session,
    align: Session,
    pub layers: usize,
    pub heads: usize,
    pub width: usize,
    bins: usize,
    positions: usize,
    vocabulary: usize,
    half: bool,
}

/// The self-attention's keys and values by input name, without the prefix: `k_0`, `v_0`, ...
pub type CacheArrays = Vec<(String, ArrayD<f32>)>;

/// The encoder's outputs for the other graphs, by name.
pub type EncoderTensors = Vec<(String, TypedArray)>;

/// A tensor in its own type.
pub enum TypedArray {
    F32(ArrayD<f32>),
    F16(ArrayD<f16>),
    I8(ArrayD<i8>),
}

impl TypedArray {
    fn read(value: &DynValue) -> Self {
        if let Ok(array) = value.try_extract_array::<f32>() {
            return Self::F32(array.to_owned());
        }

        match value.try_extract_array::<f16>() {
            Ok(array) => Self::F16(array.to_owned()),
            Err(_) => Self::I8(value.try_extract_array::<i8>().unwrap().to_owned()),
        }
    }

    fn value(&self) -> DynValue {
        match self {
            Self::F32(array) => tensor(array),
            Self::F16(array) => tensor(array),
            Self::I8(array) => tensor(array),
        }
    }

    pub fn windows(&self) -> usize {
        match self {
            Self::F32(array) => array.shape()[0],
            Self::F16(array) => array.shape()[0],
            Self::I8(array) => array.shape()[0],
        }
    }

    /// One window of several.
    pub fn window(&self, window: usize) -> Self {
        let slice = (window..=window).into();
        match self {
            Self::F32(array) => Self::F32(array.slice_axis(Axis(0), slice).to_owned()),
            Self::F16(array) => Self::F16(array.slice_axis(Axis(0), slice).to_owned()),
            Self::I8(array) => Self::I8(array.slice_axis(Axis(0), slice).to_owned()),
        }
    }
}

/// Tokens for which the cache has room in these tests.
const CACHE_TOKENS: usize = 448;

impl GraphModel {
    pub fn load(dir: &ModelDir) -> Self {
        Self::load_with(dir, InstructionSet::detect())
    }

    /// `instructions`: those of the encoder's own operators.
    pub fn load_with(dir: &ModelDir, instructions: InstructionSet) -> Self {
        let config = &dir.manifest().config;
        let session = |graph: &str| session(&dir.file(graph), instructions);

        Self {
            encoder: session("encoder.onnx"),
            decoder: session("decoder.onnx"),
            align: session("align.onnx"),
            layers: config.decoder_layers,
            heads: config.decoder_attention_heads,
            width: config.head_width(),
            bins: config.num_mel_bins,
            positions: config.max_source_positions,
            vocabulary: config.vocab_size,
            half: dir.manifest().precision == Precision::Fp16,
        }
    }

    fn names(&self) -> Vec<String> {
        (0..self.layers).flat_map(|i| ["k", "v"].map(|kind| format!("{kind}_{i}"))).collect()
    }

    /// Encodes windows of mel; returns the encoder's output, and its outputs for the other graphs.
    pub fn encode(&mut self, windows: &[&[f32]]) -> (ArrayD<f32>, EncoderTensors) {
        let shape = [windows.len(), self.bins, windows[0].len() / self.bins];
        let mel = ArrayD::from_shape_vec(IxDyn(&shape), windows.concat()).unwrap();
        let names = self.encoder.outputs().iter().map(|o| o.name().to_owned());
        let names: Vec<String> = names.filter(|n| n.starts_with("cross_")).collect();
        let outputs = self.encoder.run(vec![("mel", tensor(&mel))]).unwrap();
        let cross = names.into_iter().map(|n| {
            let carried = TypedArray::read(&outputs[n.as_str()]);
            (n, carried)
        });

        let cross = cross.collect();
        (read(&outputs["hidden"], false), cross)
    }

    pub fn empty(&self, rows: usize) -> CacheArrays {
        let shape = [rows, self.heads, CACHE_TOKENS, self.width];
        self.names().into_iter().map(|n| (n, ArrayD::zeros(IxDyn(&shape)))).collect()
    }

    /// One call of the decoder over `ids` (as many for each row) after `done` tokens; the cache is replaced by the call's
    /// output. Returns logits `[rows, vocabulary]`.
    pub fn decode(
        &mut self,
        ids: &[&[u32]],
        done: &[usize],
        cross: &EncoderTensors,
        cache: &mut CacheArrays,
    ) -> ArrayD<f32> {
        let after: Vec<i32> = done.iter().map(|d| (d + ids[0].len()) as i32).collect();
        let mut inputs = token_inputs(ids, done);
        let lengths: Vec<i32> = after.iter().map(|n| n - 1).collect();

        inputs.push(("seqlens_k".into(), ints(&[lengths.len()], lengths)));
        let total = after.iter().copied().max().unwrap();
        inputs.push(("total_sequence_length".into(), ints(&[], vec![total])));

        if self.half {
            // All tokens are allowed, because these tests read the logits.
            let vocabulary = self.vocabulary as i32;
            for (name, bound) in
                [("word_first", 0), ("word_end", vocabulary), ("time_first", 0), ("time_end", vocabulary)]
            {
                inputs.push((name.into(), ints(&[ids.len(), 1], vec![bound; ids.len()])));
            }

            let windows = cross.first().map_or(1, |(_, carried)| carried.windows());
            inputs.extend(self.shapes(windows, ids));
        }

        let windows = cross.first().map_or(1, |(_, carried)| carried.windows());
        inputs.push(("cross_last_frame".into(), ints(&[windows], vec![self.positions as i32 - 1; windows])));
        inputs.extend(cross.iter().map(|(n, a)| (n.clone(), a.value())));
        inputs.extend(cache.iter().map(|(n, a)| (format!("self_{n}"), value(a, self.half))));
        let outputs = self.decoder.run(inputs).unwrap();
        for (name, array) in cache {
            *array = read(&outputs[format!("present_{name}").as_str()], self.half);
        }

        read(&outputs["logits"], false)
    }

    /// The shapes that graphs for a GPU have as inputs.
    fn shapes(&self, windows: usize, ids: &[&[u32]]) -> Vec<(String, DynValue)> {
        let (rows, tokens, width) = (ids.len(), ids[0].len(), self.heads * self.width);
        let shape =
            |sides: [usize; 3]| Tensor::from_array(([3], sides.map(|side| side as i64).to_vec())).unwrap().into_dyn();
        vec![
            ("by_window".into(), shape([windows, rows / windows * tokens, width])),
            ("by_row".into(), shape([rows, tokens, width])),
        ]
    }

    /// Weights of the alignment heads, `[rows, heads, tokens, frames]`.
    pub fn align(&mut self, ids: &[&[u32]], cross: &EncoderTensors) -> ArrayD<f32> {
        let names: Vec<String> = self.align.inputs().iter().map(|i| i.name().to_owned()).collect();
        let mut inputs = token_inputs(ids, &vec![0; ids.len()]);
        if self.half {
            inputs.extend(self.shapes(ids.len(), ids));
        }

        inputs.extend(cross.iter().filter(|(n, _)| names.contains(n)).map(|(n, a)| (n.clone(), a.value())));
        let outputs = self.align.run(inputs).unwrap();

        read(&outputs["weights"], false)
    }
}

/// The likeliest token of each row.
pub fn best(logits: &ArrayD<f32>) -> Vec<i64> {
    let largest = |row: ArrayViewD<'_, f32>| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    logits.outer_iter().map(|row| largest(row) as i64).collect()
}

fn session(path: &Path, instructions: InstructionSet) -> Session {
    // Sessions with operators of their own extend a list of ONNX Runtime's without regard to other threads.
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);

    // Like in the engine: without optimisation and without prepacking.
    let builder = Session::builder(environment()).unwrap();
    let mut builder = builder
        .with_optimization_level(GraphOptimizationLevel::Disable)
        .unwrap()
        .with_prepacking(false)
        .unwrap()
        .with_intra_threads(2)
        .unwrap()
        .with_operators(operators::domain_with(2, instructions).unwrap())
        .unwrap();

    builder.commit_from_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn token_inputs(ids: &[&[u32]], done: &[usize]) -> Vec<(String, DynValue)> {
    let shape = [ids.len(), ids[0].len()];
    let tokens = ids.iter().flat_map(|row| row.iter().map(|t| *t as i32)).collect();
    let positions = done.iter().flat_map(|d| (0..ids[0].len()).map(move |i| (d + i) as i32)).collect();
    vec![("input_ids".into(), ints(&shape, tokens)), ("position_ids".into(), ints(&shape, positions))]
}

fn ints(shape: &[usize], values: Vec<i32>) -> DynValue {
    Tensor::from_array((shape.to_vec(), values)).unwrap().into_dyn()
}

fn value(array: &ArrayD<f32>, half: bool) -> DynValue {
    if half { tensor(&array.mapv(f16::from_f32)) } else { tensor(array) }
}

fn tensor<T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static>(array: &ArrayD<T>) -> DynValue {
    let values: Vec<T> = array.iter().cloned().collect();
    Tensor::from_array((array.shape().to_vec(), values)).unwrap().into_dyn()
}

fn read(value: &DynValue, half: bool) -> ArrayD<f32> {
    if half {
        return value.try_extract_array::<f16>().unwrap().mapv(f16::to_f32).into_dyn();
    }
    value.try_extract_array::<f32>().unwrap().to_owned()
}
