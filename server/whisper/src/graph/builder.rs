//! The building blocks of Whisper's graphs, in the operators that are fastest for a precision.

use std::collections::HashSet;

use crate::checkpoint::{Checkpoint, CheckpointTensor, Config, SpecialTokens};
use crate::onnx::{ElementType, GraphWriter, PlacedTensor, TensorWriter, WeightsFile};

use super::{BuildError, Precision, quantise};

pub type Result<T, E = BuildError> = std::result::Result<T, E>;

/// Sizes of blocks of 8-bit weights with one scale; the first that divides the row is used.
const BLOCKS: [usize; 4] = [128, 64, 32, 16];
pub const EPSILON: f32 = 1e-5;

/// Writes one graph of a model, and the weights that it needs.
pub struct GraphBuilder<'a, 'w> {
    checkpoint: &'a Checkpoint,
    pub precision: Precision,
    weights: &'a mut WeightsFile<'w>,
    pub graph: GraphWriter,
    /// Activations for which a quantised copy exists.
    quantised: HashSet<String>,
}

/// How the weights of a projection are stored, and which operator multiplies them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ProjectionKind {
    /// Real numbers, `MatMul`.
    Dense,
    /// One scale per output, and activations in 8 bits too: for many rows, whose arithmetic is the cost.
    Dynamic,
    /// One scale per block: for few rows, where reading the weights is the cost.
    Blocks,
}

/// Projections that read the same activation and are stored as one matrix, side by side.
pub struct PackedProjections<'p> {
    /// The name under which the matrix is stored.
    pub name: String,
    /// Name of each projection, and whether it has a bias.
    pub parts: &'p [(&'p str, bool)],
}

/// Weights in blocks, in the weights file.
struct BlockWeights {
    /// A plain matrix `[outputs, inputs]` of bytes.
    weight: PlacedTensor,
    scales: PlacedTensor,
    block: usize,
}

impl<'a, 'w> GraphBuilder<'a, 'w> {
    pub fn new(checkpoint: &'a Checkpoint, precision: Precision, weights: &'a mut WeightsFile<'w>, name: &str) -> Self {
        Self { checkpoint, precision, weights, graph: GraphWriter::new(name), quantised: HashSet::new() }
    }

    pub fn config(&self) -> &'a Config {
        &self.checkpoint.config
    }

    pub fn tokens(&self) -> &'a SpecialTokens {
        &self.checkpoint.tokens
    }

    pub fn alignment_heads(&self) -> &'a [[usize; 2]] {
        &self.checkpoint.alignment_heads
    }

    /// The type of the activations and of the caches.
    pub fn real(&self) -> ElementType {
        match self.precision {
            Precision::Fp16 => ElementType::F16,
            Precision::Fp32 | Precision::Int8 => ElementType::F32,
        }
    }

    /// Whether the graphs are for a GPU: without operators that need cuDNN, and with as few kernel launches as possible.
    pub fn for_gpu(&self) -> bool {
        self.precision == Precision::Fp16
    }

    /// Adds a table that the checkpoint does not have to the weights file.
    pub fn table(&mut self, name: &str, element: ElementType, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let placed = self.weights.add(name, element, shape, |out| Ok::<_, BuildError>(out.write_all(bytes)?))?;
        self.graph.external(name, &placed);
        Ok(())
    }

    fn tensor(&self, name: &str) -> Result<CheckpointTensor<'a>> {
        Ok(self.checkpoint.weights.tensor(name)?)
    }

    /// A tensor of the checkpoint without transposition, in the type of the activations.
    pub fn plain(&mut self, name: &str) -> Result<String> {
        let (tensor, element) = (self.tensor(name)?, self.real());
        let placed = self.weights.add(name, element, tensor.shape(), |out| quantise::plain(&tensor, element, out))?;
        self.graph.external(name, &placed);
        Ok(name.to_owned())
    }

    /// The concatenated biases of `packed`; a projection without one has zeros.
    fn bias(&mut self, packed: &PackedProjections<'_>) -> Result<String> {
        let name = format!("{}.bias", packed.name);
        let element = self.real();
        let mut values = Vec::new();

        for (part, bias) in packed.parts {
            if *bias {
                values.extend(self.tensor(&format!("{part}.bias"))?.to_vec()?);
            } else {
                let rows = self.tensor(&format!("{part}.weight"))?.shape().first().copied().unwrap_or_default();
                values.resize(values.len() + rows, 0.0);
            }
        }

        let write = |out: TensorWriter<'_>| Ok::<_, BuildError>(quantise::write_reals(out, element, &values)?);
        let placed = self.weights.add(&name, element, &[values.len()], write)?;
        self.graph.external(&name, &placed);

        Ok(name)
    }

    /// `out = x weights + bias`.
    pub fn linear(
        &mut self,
        kind: ProjectionKind,
        x: &str,
        packed: &PackedProjections<'_>,
        with_bias: bool,
        out: &str,
    ) -> Result<()> {
        let with_bias = with_bias && packed.parts.iter().any(|(_, bias)| *bias);
        let tensors: Vec<CheckpointTensor<'a>> =
            packed.parts.iter().map(|(part, _)| self.tensor(&format!("{part}.weight"))).collect::<Result<_>>()?;
        let outputs: usize = tensors.iter().filter_map(|t| t.shape().first()).sum();
        let inner = tensors.first().and_then(|t| t.shape().get(1)).copied().unwrap_or_default();
        let bias = if with_bias { self.bias(packed)? } else { String::new() };

        match kind {
            ProjectionKind::Dense => {
                let (name, element) = (format!("{}.weight", packed.name), self.real());
                let placed = self
                    .weights
                    .add(&name, element, &[inner, outputs], |out| quantise::transposed(&tensors, element, out))?;
                self.graph.external(&name, &placed);
                self.multiply_dense(x, &name, &bias, out);
            }
            ProjectionKind::Dynamic => self.linear_dynamic(x, packed, &tensors, [inner, outputs], &bias, out)?,
            ProjectionKind::Blocks => {
                self.linear_blocks(x, &packed.name, &tensors, [outputs, inner], &bias, out)?;
            }
        }

        Ok(())
    }

    fn multiply_dense(&mut self, x: &str, weight: &str, bias: &str, out: &str) {
        if bias.is_empty() {
            self.graph.op("MatMul", &[x, weight], &[out]);
        } else {
            let product = format!("{out}_product");
            self.graph.op("MatMul", &[x, weight], &[&product]);
            self.graph.op("Add", &[&product, bias], &[out]);
        }
    }

    fn linear_blocks(
        &mut self,
        x: &str,
        name: &str,
        tensors: &[CheckpointTensor<'a>],
        [outputs, inner]: [usize; 2],
        bias: &str,
        out: &str,
    ) -> Result<()> {
        let BlockWeights { weight, scales, block } = self.blocks(name, tensors, [outputs, inner])?;
        let (weight_name, scales_name) = (format!("{name}.weight"), format!("{name}.scales"));
        self.graph.external(&weight_name, &PlacedTensor { shape: vec![outputs, inner / block, block], ..weight });
        self.graph.external(&scales_name, &scales);

        let all = [x, &weight_name, &scales_name, "", "", bias];
        let inputs = if bias.is_empty() { &all[..3] } else { &all[..] };
        self.graph
            .contrib("MatMulNBits", inputs, &[out])
            .int("K", inner as i64)
            .int("N", outputs as i64)
            .int("bits", 8)
            .int("block_size", block as i64)
            // The activation is rounded to 8 bits per block too.
            .int("accuracy_level", 4);
        Ok(())
    }

    fn linear_dynamic(
        &mut self,
        x: &str,
        packed: &PackedProjections<'_>,
        tensors: &[CheckpointTensor<'a>],
        shape: [usize; 2],
        bias: &str,
        out: &str,
    ) -> Result<()> {
        let (weight, scale) = (format!("{}.weight", packed.name), format!("{}.scale", packed.name));
        let placed = self.weights.add(&weight, ElementType::I8, &shape, |out| {
            quantise::transposed_i8(tensors, &quantise::row_scales(tensors)?, out)
        })?;
        self.graph.external(&weight, &placed);

        let placed = self.weights.add(&scale, ElementType::F32, &shape[1..], |out| {
            Ok::<_, BuildError>(quantise::write_reals(out, ElementType::F32, &quantise::row_scales(tensors)?)?)
        })?;
        self.graph.external(&scale, &placed);

        self.multiply_dynamic(x, [&weight, &scale], bias, out);
        Ok(())
    }

    fn multiply_dynamic(&mut self, x: &str, [weight, scale]: [&str; 2], bias: &str, out: &str) {
        let [bytes, x_scale, x_zero] = self.quantised(x);
        let all = [&bytes, weight, &x_scale, scale, &x_zero, "", bias];
        let inputs = if bias.is_empty() { &all[..5] } else { &all[..] };
        self.graph.contrib("MatMulIntegerToFloat", inputs, &[out]);
    }

    /// `x` in 8 bits, with its scale and zero point; shared by all operators that read it.
    fn quantised(&mut self, x: &str) -> [String; 3] {
        let names = ["u8", "u8_scale", "u8_zero"].map(|suffix| format!("{x}_{suffix}"));
        if self.quantised.insert(x.to_owned()) {
            let [a, b, c] = &names;
            self.graph.op("DynamicQuantizeLinear", &[x], &[a, b, c]);
        }
        names
    }

    /// Adds weights in blocks to the weights file.
    fn blocks(
        &mut self,
        name: &str,
        tensors: &[CheckpointTensor<'a>],
        [outputs, inner]: [usize; 2],
    ) -> Result<BlockWeights> {
        let block = BLOCKS.into_iter().find(|block| inner % block == 0).ok_or_else(|| BuildError::Unsupported {
            precision: self.precision,
            problem: format!("rows of {inner} weights cannot be cut into blocks of {BLOCKS:?}"),
        })?;

        let weight = self.weights.add(&format!("{name}.weight"), ElementType::U8, &[outputs, inner], |out| {
            quantise::blocks_u8(tensors, block, out)
        })?;

        let element = self.real();
        let scales = self.weights.add(&format!("{name}.scales"), element, &[outputs, inner / block], |out| {
            quantise::block_scales(tensors, block, element, out)
        })?;

        Ok(BlockWeights { weight, scales, block })
    }

    /// The embedding of `ids`, from the table that the vocabulary projection reads too.
    pub fn embed(&mut self, ids: &str, out: &str) -> Result<()> {
        let name = format!("{EMBEDDING}.weight");
        if self.precision != Precision::Int8 {
            let table = self.plain(&name)?;
            self.graph.op("Gather", &[&table, ids], &[out]).int("axis", 0);
            return Ok(());
        }

        let tensor = self.tensor(&name)?;
        let BlockWeights { weight, scales, block } =
            self.blocks(EMBEDDING, &[tensor], [self.config().vocab_size, self.config().d_model])?;

        // The vocabulary projection reads the same bytes in blocks; here they are a plain table.
        let (table, scales_name) = (format!("{EMBEDDING}.rows"), format!("{EMBEDDING}.scales"));

        self.graph.external(&table, &weight);
        self.graph.external(&scales_name, &scales);
        self.graph
            .contrib("GatherBlockQuantized", &[&table, ids, &scales_name], &[out])
            .int("bits", 8)
            .int("block_size", block as i64)
            .int("gather_axis", 0)
            .int("quantize_axis", 1);

        Ok(())
    }

    /// `logits = x embedding'`, for `x` of one position per row: `[rows, D]`.
    pub fn vocabulary(&mut self, x: &str, out: &str) -> Result<()> {
        let name = format!("{EMBEDDING}.weight");
        if self.precision == Precision::Int8 {
            let (tensor, shape) = (self.tensor(&name)?, [self.config().vocab_size, self.config().d_model]);
            return self.linear_blocks(x, EMBEDDING, &[tensor], shape, "", out);
        }

        let table = self.plain(&name)?;
        self.graph.op("Gemm", &[x, &table], &[out]).int("transB", 1);

        Ok(())
    }

    pub fn layer_norm(&mut self, x: &str, name: &str, out: &str) -> Result<()> {
        let (gain, bias) = (self.plain(&format!("{name}.weight"))?, self.plain(&format!("{name}.bias"))?);
        self.graph.op("LayerNormalization", &[x, &gain, &bias], &[out]).int("axis", -1).float("epsilon", EPSILON);
        Ok(())
    }

    /// `sum = x + y + bias`, `out = norm(sum)`; if `sum` is empty, the sum is not an output.
    pub fn add_norm(&mut self, [x, y]: [&str; 2], bias: &str, norm: &str, out: &str, sum: &str) -> Result<()> {
        let (gain, shift) = (self.plain(&format!("{norm}.weight"))?, self.plain(&format!("{norm}.bias"))?);
        let bias = self.plain(bias)?;
        let all = [out, "", "", sum];
        let outputs = if sum.is_empty() { &all[..1] } else { &all[..] };
        self.graph.contrib("SkipLayerNormalization", &[x, y, &gain, &shift, &bias], outputs).float("epsilon", EPSILON);
        Ok(())
    }

    /// Like [`Self::add_norm`] without a bias, in two nodes: for many rows this is four times faster on a CPU, and its sums
    /// are in f32 at any precision.
    pub fn add_then_norm(&mut self, [x, y]: [&str; 2], norm: &str, out: &str, sum: &str) -> Result<()> {
        self.graph.op("Add", &[x, y], &[sum]);
        self.layer_norm(sum, norm, out)
    }

    /// The two layers after the attention; without `last_bias` the caller adds the last bias.
    pub fn mlp(&mut self, kind: ProjectionKind, x: &str, layer: &str, last_bias: bool, out: &str) -> Result<()> {
        let (first, second) = (format!("{layer}.fc1"), format!("{layer}.fc2"));
        let (raw, active) = (format!("{out}_fc1"), format!("{out}_gelu"));
        self.one(kind, x, &first, false, &raw)?;
        self.bias_gelu(kind, &raw, &format!("{first}.bias"), &active)?;
        self.one(kind, &active, &second, last_bias, out)
    }

    /// `out = gelu(x + bias)`. If the result is rounded to 8 bits anyway, the tanh formula is used: it differs by 0.0005 at
    /// most and takes half the time.
    pub fn bias_gelu(&mut self, kind: ProjectionKind, x: &str, bias: &str, out: &str) -> Result<()> {
        let bias = self.plain(bias)?;
        let op = if kind == ProjectionKind::Dynamic { "FastGelu" } else { "BiasGelu" };
        self.graph.contrib(op, &[x, &bias], &[out]);
        Ok(())
    }

    /// A single projection.
    pub fn one(&mut self, kind: ProjectionKind, x: &str, name: &str, bias: bool, out: &str) -> Result<()> {
        self.linear(kind, x, &PackedProjections { name: name.to_owned(), parts: &[(name, true)] }, bias, out)
    }

    /// The convolution `name` of width 3 over `x`, whose rows are the three columns of a window side by side.
    pub fn convolution(&mut self, kind: ProjectionKind, x: &str, name: &str, out: &str) -> Result<()> {
        let tensor = self.tensor(&format!("{name}.weight"))?;
        let [outputs, inputs, width] = *tensor.shape() else {
            let problem = format!("`{name}` is not a convolution");
            return Err(BuildError::Unsupported { precision: self.precision, problem });
        };

        let shape = [width * inputs, outputs];
        let weight = format!("{name}.rows");

        if kind == ProjectionKind::Dynamic {
            let placed = self.weights.add(&weight, ElementType::I8, &shape, |out| {
                let (bytes, _) = quantise::columns_i8(&quantise::taps_first(&tensor)?, outputs);
                Ok::<_, BuildError>(out.write_all(&bytes)?)
            })?;

            let scale = format!("{name}.scale");
            let scales = self.weights.add(&scale, ElementType::F32, &shape[1..], |out| {
                let (_, scales) = quantise::columns_i8(&quantise::taps_first(&tensor)?, outputs);
                Ok::<_, BuildError>(quantise::write_reals(out, ElementType::F32, &scales)?)
            })?;

            self.graph.external(&weight, &placed);
            self.graph.external(&scale, &scales);
            self.multiply_dynamic(x, [&weight, &scale], "", out);
            return Ok(());
        }

        let element = self.real();
        let placed = self.weights.add(&weight, element, &shape, |out| {
            Ok::<_, BuildError>(quantise::write_reals(out, element, &quantise::taps_first(&tensor)?)?)
        })?;
        self.graph.external(&weight, &placed);
        self.multiply_dense(x, &weight, "", out);

        Ok(())
    }
}

const EMBEDDING: &str = "decoder.embed_tokens";
