//! Writes a llama model with random weights in the format GGUF, version 3: small, and as slow as a test wants. It says
//! nothing sensible and does not end by itself.

use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

const MAGIC: &[u8] = b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;
const TYPE_F32: u32 = 0;
const END_TOKEN: u32 = 2;

/// The sizes of a llama model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyLlama {
    pub context: u32,
    pub width: u32,
    pub layers: u32,
    pub heads: u32,
    pub feed_forward: u32,
    pub vocabulary: u32,
}

impl TinyLlama {
    /// 1.6 MB; a token takes a fraction of a millisecond.
    pub const QUICK: Self = Self { context: 256, width: 128, layers: 2, heads: 2, feed_forward: 256, vocabulary: 300 };
    /// 110 MB; a token takes about 20 ms on one thread, so that streams last.
    pub const SLOW: Self = Self { context: 8192, width: 512, layers: 8, heads: 8, feed_forward: 1536, vocabulary: 300 };

    /// Names and shapes, the innermost dimension first.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let [width, hidden, vocabulary] = [self.width, self.feed_forward, self.vocabulary].map(u64::from);
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), vec![width, vocabulary]),
            ("output_norm.weight".to_owned(), vec![width]),
            ("output.weight".to_owned(), vec![width, vocabulary]),
        ];
        for layer in 0..self.layers {
            let shapes = [
                ("attn_q", vec![width, width]),
                ("attn_k", vec![width, width]),
                ("attn_v", vec![width, width]),
                ("attn_output", vec![width, width]),
                ("ffn_gate", vec![width, hidden]),
                ("ffn_up", vec![width, hidden]),
                ("ffn_down", vec![hidden, width]),
                ("attn_norm", vec![width]),
                ("ffn_norm", vec![width]),
            ];
            tensors.extend(shapes.into_iter().map(|(name, shape)| (format!("blk.{layer}.{name}.weight"), shape)));
        }
        tensors
    }
}

/// # Errors
/// If the file cannot be written.
pub fn write_tiny_llama(path: &Path, model: TinyLlama) -> Result<()> {
    let mut file = CountingWriter { inner: BufWriter::new(File::create(path)?), written: 0 };
    let tensors = model.tensors();
    let metadata = metadata(model);

    file.write_all(MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    file.write_all(&(tensors.len() as u64).to_le_bytes())?;
    file.write_all(&(metadata.len() as u64).to_le_bytes())?;
    for (key, value) in &metadata {
        write_string(&mut file, key.as_bytes())?;
        value.write(&mut file)?;
    }

    let mut offset = 0_u64;
    for (name, shape) in &tensors {
        write_string(&mut file, name.as_bytes())?;
        file.write_all(&(shape.len() as u32).to_le_bytes())?;
        for dimension in shape {
            file.write_all(&dimension.to_le_bytes())?;
        }
        file.write_all(&TYPE_F32.to_le_bytes())?;
        file.write_all(&offset.to_le_bytes())?;
        offset += (shape.iter().product::<u64>() * 4).next_multiple_of(ALIGNMENT);
    }

    let mut random = WeightGenerator(0x9e37_79b9_7f4a_7c15);
    for (name, shape) in &tensors {
        file.pad()?;
        // Norms are ones.
        let is_norm = shape.len() == 1;
        // The logit of the end is 0, in the middle of all others, and never among the forty best, of which Ollama draws.
        let end = u64::from(END_TOKEN) * u64::from(model.width);
        let end = if name == "output.weight" { end..end + u64::from(model.width) } else { 0..0 };
        for index in 0..shape.iter().product::<u64>() {
            let random = random.next_weight();
            let weight = match is_norm {
                true => 1.0,
                false if end.contains(&index) => 0.0,
                false => random,
            };
            file.write_all(&weight.to_le_bytes())?;
        }
    }
    file.pad()?;
    file.inner.flush()
}

enum MetadataValue {
    Number(u32),
    Real(f32),
    Text(&'static str),
    Texts(Vec<Vec<u8>>),
    Reals(Vec<f32>),
    Integers(Vec<i32>),
}

impl MetadataValue {
    fn write(&self, out: &mut impl Write) -> Result<()> {
        let head = |out: &mut dyn Write, kind: u32| out.write_all(&kind.to_le_bytes());
        let array_head = |out: &mut dyn Write, kind: u32, count: usize| {
            head(out, 9)?;
            head(out, kind)?;
            out.write_all(&(count as u64).to_le_bytes())
        };
        match self {
            Self::Number(number) => {
                head(out, 4)?;
                out.write_all(&number.to_le_bytes())
            }
            Self::Real(number) => {
                head(out, 6)?;
                out.write_all(&number.to_le_bytes())
            }
            Self::Text(text) => {
                head(out, 8)?;
                write_string(out, text.as_bytes())
            }
            Self::Texts(texts) => {
                array_head(out, 8, texts.len())?;
                texts.iter().try_for_each(|text| write_string(out, text))
            }
            Self::Reals(numbers) => {
                array_head(out, 6, numbers.len())?;
                numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
            }
            Self::Integers(numbers) => {
                array_head(out, 5, numbers.len())?;
                numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))
            }
        }
    }
}

/// Keys as llama.cpp reads them; a token for each byte, and words that fill the vocabulary.
fn metadata(model: TinyLlama) -> Vec<(&'static str, MetadataValue)> {
    use MetadataValue::{Integers, Number, Real, Reals, Text, Texts};

    let words = model.vocabulary.saturating_sub(259);
    let special = [b"<unk>".to_vec(), b"<s>".to_vec(), b"</s>".to_vec()];
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>").into_bytes());
    let tokens = special.into_iter().chain(bytes).chain((0..words).map(|word| format!("▁t{word}").into_bytes()));
    // Unknown, control, bytes, normal.
    let kinds = [2, 3, 3].into_iter().chain(std::iter::repeat_n(6, 256)).chain((0..words).map(|_| 1));

    vec![
        ("general.architecture", Text("llama")),
        ("llama.context_length", Number(model.context)),
        ("llama.embedding_length", Number(model.width)),
        ("llama.block_count", Number(model.layers)),
        ("llama.feed_forward_length", Number(model.feed_forward)),
        ("llama.attention.head_count", Number(model.heads)),
        ("llama.attention.head_count_kv", Number(model.heads)),
        ("llama.attention.layer_norm_rms_epsilon", Real(1e-5)),
        ("llama.rope.dimension_count", Number(model.width / model.heads)),
        ("llama.vocab_size", Number(model.vocabulary)),
        ("tokenizer.ggml.model", Text("llama")),
        ("tokenizer.ggml.tokens", Texts(tokens.collect())),
        ("tokenizer.ggml.scores", Reals(vec![0.0; model.vocabulary as usize])),
        ("tokenizer.ggml.token_type", Integers(kinds.collect())),
        ("tokenizer.ggml.bos_token_id", Number(1)),
        ("tokenizer.ggml.eos_token_id", Number(END_TOKEN)),
        ("tokenizer.ggml.unknown_token_id", Number(0)),
    ]
}

fn write_string(out: &mut (impl Write + ?Sized), text: &[u8]) -> Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text)
}

struct CountingWriter<W> {
    inner: W,
    written: u64,
}

impl<W: Write> CountingWriter<W> {
    fn pad(&mut self) -> Result<()> {
        let missing = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.write_all(&vec![0; usize::try_from(missing).unwrap_or(0)])
    }
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

/// Xorshift: the same weights each time.
struct WeightGenerator(u64);

impl WeightGenerator {
    /// About as spread as a normal distribution with a deviation of 0.05.
    fn next_weight(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let unit = (self.0 >> 40) as f32 / (1_u32 << 24) as f32;
        (unit - 0.5) * 0.173
    }
}
