//! The building blocks of Whisper's graphs, in the operators that are fastest for a precision.

use std::collections::HashMap;

use crate::checkpoint::{Checkpoint, CheckpointTensor, Config, SpecialTokens};
use crate::kernels::rows::EPSILON;
use crate::onnx::{ElementType, GraphWriter, PlacedTensor, TensorWriter, WeightsFile};

use super::{BuildError, Precision, quantise};

pub type Result<T, E = BuildError> = std::result::Result<T, E>;

/// Sizes of blocks of 8-bit weights with one scale; the first that divides the row is used.
const BLOCKS: [usize; 4] = [128, 64, 32, 16];
/// The power of a norm's gain by which [`GraphBuilder::balanced_norm_parameters`] divides its output. With 0 or with 0.5 and
/// more the encoder of real weights is less exact.
const ENCODER_BALANCE: f32 = 0.25;
/// The same for the norm before the vocabulary, whose gains differ most. Both 0.25 and 0.75 are less exact.
const VOCABULARY_BALANCE: f32 = 0.5;
/// The least gain that a norm is balanced for: some channels are hardly used.
const LEAST_GAIN: f32 = 1e-3;

/// Writes one graph of a model, and the weights that it needs.
pub struct GraphBuilder<'a, 'w> {
    checkpoint: &'a Checkpoint,
    pub precision: Precision,
    weights: &'a mut WeightsFile<'w>,
    pub graph: GraphWriter,
    /// For activations of which each channel was divided by a factor: these factors, by which their weights are multiplied.
    divisors: HashMap<String, Vec<f32>>,
}

/// How the weights of a projection are stored, and which operator multiplies them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ProjectionKind {
    /// Real numbers, `MatMul`.
    Dense,
    /// One scale per block: for few rows, where reading the weights is the cost.
    Blocks,
}

/// Rows of an activation in unsigned bytes, as names in a graph. Each row has a scale of its own, by which the reader of a
/// product multiplies it.
pub struct ByteActivation {
    /// `[W, E, inputs]`.
    pub bytes: String,
    /// `[W, E, 1]`.
    pub row_scale: String,
    /// The distance of two bytes, a scalar.
    pub step: String,
    /// The byte that means zero, a scalar.
    pub zero: String,
    /// What the norm divided each channel by, for the weights to be multiplied by; empty: nothing.
    pub divisors: Vec<f32>,
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
        Self { checkpoint, precision, weights, graph: GraphWriter::new(name), divisors: HashMap::new() }
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

    /// Like [`Self::table`], for a row of f32.
    fn real_table(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.table(name, ElementType::F32, &[values.len()], &bytes)
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

    /// The weights of `packed`, each `[outputs, inputs]`, and the sides of all side by side, `[inputs, outputs]`.
    fn packed_weights(&self, packed: &PackedProjections<'_>) -> Result<(Vec<CheckpointTensor<'a>>, [usize; 2])> {
        let tensors: Vec<CheckpointTensor<'a>> =
            packed.parts.iter().map(|(part, _)| self.tensor(&format!("{part}.weight"))).collect::<Result<_>>()?;
        let outputs = tensors.iter().filter_map(|t| t.shape().first()).sum();
        let inner = tensors.first().and_then(|t| t.shape().get(1)).copied().unwrap_or_default();

        Ok((tensors, [inner, outputs]))
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
        let (tensors, [inner, outputs]) = self.packed_weights(packed)?;
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
        let factors = self.divisors.get(x).cloned().unwrap_or_default();
        let BlockWeights { weight, scales, block } = self.blocks(name, tensors, [outputs, inner], &factors)?;
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

    /// `out = x weights` in f32, without the scales of the rows of `x` and without biases. The weights have bytes too, with
    /// one scale for each output. Returns the name of the biases, one after the other.
    pub fn byte_product(&mut self, x: &ByteActivation, packed: &PackedProjections<'_>, out: &str) -> Result<String> {
        let (tensors, [inner, outputs]) = self.packed_weights(packed)?;

        let (weight, scale) = (format!("{}.weight", packed.name), format!("{}.scale", packed.name));
        let bytes = self.weights.add(&weight, ElementType::I8, &[inner, outputs], |out| {
            quantise::transposed_i8(&tensors, &x.divisors, out)
        })?;
        let scales = self.weights.add(&scale, ElementType::F32, &[outputs], |out| {
            let scales = quantise::column_scales(&tensors, &x.divisors)?;
            Ok::<_, BuildError>(quantise::write_reals(out, ElementType::F32, &scales)?)
        })?;

        self.graph.external(&weight, &bytes);
        self.graph.external(&scale, &scales);
        self.multiply_bytes(x, [&weight, &scale], out);

        self.bias(packed)
    }

    /// Like [`Self::byte_product`], for the convolution `name` of width 3 over three frames side by side.
    pub fn byte_convolution(&mut self, x: &ByteActivation, name: &str, out: &str) -> Result<String> {
        let (tensor, shape) = self.convolution_weight(name)?;
        let (weight, scale) = (format!("{name}.rows"), format!("{name}.scale"));
        let (bytes, scales) = quantise::columns_i8(&quantise::taps_first(&tensor)?, shape[1]);

        self.table(&weight, ElementType::I8, &shape, &bytes)?;
        self.real_table(&scale, &scales)?;
        self.multiply_bytes(x, [&weight, &scale], out);

        self.plain(&format!("{name}.bias"))
    }

    fn multiply_bytes(&mut self, x: &ByteActivation, [weight, scale]: [&str; 2], out: &str) {
        let inputs = [&x.bytes, weight, &x.step, scale, &x.zero];
        self.graph.contrib("MatMulIntegerToFloat", &inputs, &[out]);
    }

    /// Adds weights in blocks, each channel multiplied by its factor if there are factors, to the weights file.
    fn blocks(
        &mut self,
        name: &str,
        tensors: &[CheckpointTensor<'a>],
        [outputs, inner]: [usize; 2],
        factors: &[f32],
    ) -> Result<BlockWeights> {
        let block = BLOCKS.into_iter().find(|block| inner % block == 0).ok_or_else(|| BuildError::Unsupported {
            precision: self.precision,
            problem: format!("rows of {inner} weights cannot be cut into blocks of {BLOCKS:?}"),
        })?;

        let weight = self.weights.add(&format!("{name}.weight"), ElementType::U8, &[outputs, inner], |out| {
            quantise::blocks_u8(tensors, factors, block, out)
        })?;

        let element = self.real();
        let scales = self.weights.add(&format!("{name}.scales"), element, &[outputs, inner / block], |out| {
            quantise::block_scales(tensors, factors, block, element, out)
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

        let (tensor, divisors) = (self.tensor(&name)?, self.norm_divisors(VOCABULARY_NORM, VOCABULARY_BALANCE)?);
        let shape = [self.config().vocab_size, self.config().d_model];
        let BlockWeights { weight, scales, block } = self.blocks(EMBEDDING, &[tensor], shape, &divisors)?;

        // The vocabulary projection reads the same bytes in blocks; here they are a plain table.
        let (table, scales_name) = (format!("{EMBEDDING}.rows"), format!("{EMBEDDING}.scales"));
        self.graph.external(&table, &weight);
        self.graph.external(&scales_name, &scales);
        let (balanced, inverse) = (format!("{out}_balanced"), format!("{EMBEDDING}.inverse"));
        self.graph
            .contrib("GatherBlockQuantized", &[&table, ids, &scales_name], &[&balanced])
            .int("bits", 8)
            .int("block_size", block as i64)
            .int("gather_axis", 0)
            .int("quantize_axis", 1);

        let inverses: Vec<f32> = divisors.iter().map(|divisor| divisor.recip()).collect();
        self.real_table(&inverse, &inverses)?;
        self.graph.op("Mul", &[&balanced, &inverse], &[out]);

        Ok(())
    }

    /// `logits = x embedding'`, for `x` of one position per row, `[rows, D]`, that the norm before the vocabulary computed.
    pub fn vocabulary(&mut self, x: &str, out: &str) -> Result<()> {
        let name = format!("{EMBEDDING}.weight");
        if self.precision == Precision::Int8 {
            let (tensor, shape) = (self.tensor(&name)?, [self.config().vocab_size, self.config().d_model]);
            let divisors = self.norm_divisors(VOCABULARY_NORM, VOCABULARY_BALANCE)?;
            self.divisors.insert(x.to_owned(), divisors);
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

    /// Gain and bias of a norm for a product of bytes, and the divisors: each channel is divided by a power of its gain, and
    /// the weights that multiply it are multiplied by it. Channels with a large gain set the scale in which all are rounded,
    /// so that the others keep more of their digits.
    pub fn balanced_norm_parameters(&mut self, name: &str) -> Result<([String; 2], Vec<f32>)> {
        let divisors = self.norm_divisors(name, ENCODER_BALANCE)?;
        Ok((self.balanced_parameters(name, &divisors)?, divisors))
    }

    /// The gains of a norm to the power of `balance`.
    fn norm_divisors(&self, name: &str, balance: f32) -> Result<Vec<f32>> {
        let gains = self.tensor(&format!("{name}.weight"))?.to_vec()?;
        Ok(gains.iter().map(|gain| gain.abs().max(LEAST_GAIN).powf(balance)).collect())
    }

    /// Gain and bias of a norm, divided channel by channel.
    fn balanced_parameters(&mut self, name: &str, divisors: &[f32]) -> Result<[String; 2]> {
        let parts = ["weight", "bias"];

        for part in parts {
            let mut values = self.tensor(&format!("{name}.{part}"))?.to_vec()?;
            values.iter_mut().zip(divisors).for_each(|(value, divisor)| *value /= divisor);
            self.real_table(&format!("{name}.balanced_{part}"), &values)?;
        }

        Ok(parts.map(|part| format!("{name}.balanced_{part}")))
    }

    /// `sum = x + y + bias`, `out = norm(sum)`; if `sum` is empty, the sum is not an output.
    pub fn add_norm(&mut self, [x, y]: [&str; 2], bias: &str, norm: &str, out: &str, sum: &str) -> Result<()> {
        let [gain, shift] = if norm == VOCABULARY_NORM && self.precision == Precision::Int8 {
            let divisors = self.norm_divisors(norm, VOCABULARY_BALANCE)?;
            self.balanced_parameters(norm, &divisors)?
        } else {
            [self.plain(&format!("{norm}.weight"))?, self.plain(&format!("{norm}.bias"))?]
        };
        let bias = self.plain(bias)?;
        let all = [out, "", "", sum];
        let outputs = if sum.is_empty() { &all[..1] } else { &all[..] };
        self.graph.contrib("SkipLayerNormalization", &[x, y, &gain, &shift, &bias], outputs).float("epsilon", EPSILON);
        Ok(())
    }

    /// The two layers after the attention; without `last_bias` the caller adds the last bias.
    pub fn mlp(&mut self, kind: ProjectionKind, x: &str, layer: &str, last_bias: bool, out: &str) -> Result<()> {
        let (first, second) = (format!("{layer}.fc1"), format!("{layer}.fc2"));
        let (raw, active) = (format!("{out}_fc1"), format!("{out}_gelu"));
        self.one(kind, x, &first, false, &raw)?;
        self.bias_gelu(&raw, &format!("{first}.bias"), &active)?;
        self.one(kind, &active, &second, last_bias, out)
    }

    /// `out = gelu(x + bias)`.
    pub fn bias_gelu(&mut self, x: &str, bias: &str, out: &str) -> Result<()> {
        let bias = self.plain(bias)?;
        self.graph.contrib("BiasGelu", &[x, &bias], &[out]);
        Ok(())
    }

    /// A single projection.
    pub fn one(&mut self, kind: ProjectionKind, x: &str, name: &str, bias: bool, out: &str) -> Result<()> {
        self.linear(kind, x, &PackedProjections { name: name.to_owned(), parts: &[(name, true)] }, bias, out)
    }

    /// The convolution `name` of width 3 over `x`, whose rows are the three columns of a window side by side.
    pub fn convolution(&mut self, x: &str, name: &str, out: &str) -> Result<()> {
        let (tensor, shape) = self.convolution_weight(name)?;
        let (weight, element) = (format!("{name}.rows"), self.real());

        let placed = self.weights.add(&weight, element, &shape, |out| {
            Ok::<_, BuildError>(quantise::write_reals(out, element, &quantise::taps_first(&tensor)?)?)
        })?;
        self.graph.external(&weight, &placed);
        self.multiply_dense(x, &weight, "", out);

        Ok(())
    }

    /// The weight of a convolution, and the sides of the matrix that multiplies its frames side by side.
    fn convolution_weight(&self, name: &str) -> Result<(CheckpointTensor<'a>, [usize; 2])> {
        let tensor = self.tensor(&format!("{name}.weight"))?;
        let [outputs, inputs, width] = *tensor.shape() else {
            let problem = format!("`{name}` is not a convolution");
            return Err(BuildError::Unsupported { precision: self.precision, problem });
        };

        Ok((tensor, [width * inputs, outputs]))
    }
}

const EMBEDDING: &str = "decoder.embed_tokens";
/// The norm whose output the vocabulary multiplies. In 8 bits it is balanced as [`GraphBuilder::balanced_norm_parameters`] says, against
/// the embedding.
pub const VOCABULARY_NORM: &str = "decoder.layer_norm";
