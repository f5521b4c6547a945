//! CTranslate2 folders (faster-whisper and tools based on it): `model.bin`, and JSON files beside it. The layout is that of
//! `python/ctranslate2/specs/model_spec.py` in OpenNMT/CTranslate2.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};

use super::byte_reader::ByteReader;
use super::config::SIZE_MAX;
use super::tensor::{Encoding, MappedFile, StoredTensor};
use super::{CheckpointError, Config, MalformedFile, Weights};

pub const MODEL: &str = "model.bin";
const SPECIFICATION: &str = "WhisperSpec";
/// Since version 4 each variable states its type.
const VERSIONS: std::ops::RangeInclusive<u32> = 4..=6;

/// Whether the folder contains a file that begins like CTranslate2's.
pub fn is_in(folder: &Path) -> bool {
    let mut start = [0; 4];
    let read = File::open(folder.join(MODEL)).and_then(|mut file| file.read_exact(&mut start));
    // `pytorch_model.bin` has another name, and no version of the format needs more than one byte.
    read.is_ok() && (1..=255).contains(&u32::from_le_bytes(start))
}

/// Reads the dimensions and locates the tensors of the folder.
pub fn open(folder: &Path) -> Result<(Config, Weights), CheckpointError> {
    let path = folder.join(MODEL);
    let file = MappedFile::open(&path)?;
    let corrupt = CheckpointError::malformed(&path);
    let variables = Variables::read(&file.map).map_err(&corrupt)?;
    let config = variables.config(&path)?;

    let mut tensors = HashMap::new();
    for (canonical, shape) in config.tensors() {
        let Some((name, part)) = stored_name(&canonical) else { continue };
        let Some(variable) = variables.find(&name) else {
            return Err(CheckpointError::MissingTensor { path: path.clone(), tensor: name, expected: shape });
        };
        let scales = variables.scales(&name).map_err(&corrupt)?;
        let tensor = variable.part(&name, &part, scales, &shape).map_err(&corrupt)?;
        tensors.insert(canonical, tensor);
    }

    let weights = Weights::checked(path.clone(), vec![file], tensors, &config)?;

    Ok((config, weights))
}

/// One of several projections that are stored in one matrix, one below the other.
struct ProjectionPart {
    index: usize,
    of: usize,
}

/// The variable that contains a tensor of [`Config::tensors`], and which part of it.
fn stored_name(canonical: &str) -> Option<(String, ProjectionPart)> {
    let whole = ProjectionPart { index: 0, of: 1 };
    let parts: Vec<&str> = canonical.split('.').collect();
    let norm = |kind: &str| if kind == "weight" { "gamma" } else { "beta" }.to_owned();
    let found = match parts.as_slice() {
        ["encoder", conv @ ("conv1" | "conv2"), kind] => (format!("encoder/{conv}/{kind}"), whole),
        [side, "embed_positions", "weight"] => (format!("{side}/position_encodings/encodings"), whole),
        ["decoder", "embed_tokens", "weight"] => ("decoder/embeddings/weight".to_owned(), whole),
        [side, "layer_norm", kind] => (format!("{side}/layer_norm/{}", norm(kind)), whole),
        [side, "layers", layer, block, kind] => {
            let inside = match *block {
                "self_attn_layer_norm" => format!("self_attention/layer_norm/{}", norm(kind)),
                "encoder_attn_layer_norm" => format!("attention/layer_norm/{}", norm(kind)),
                "final_layer_norm" => format!("ffn/layer_norm/{}", norm(kind)),
                "fc1" => format!("ffn/linear_0/{kind}"),
                "fc2" => format!("ffn/linear_1/{kind}"),
                _ => return None,
            };
            (format!("{side}/layer_{layer}/{inside}"), whole)
        }
        // Queries, keys and values of self-attention are in one matrix; keys and values of cross-attention in another.
        [side, "layers", layer, attention, projection, kind] => {
            let (linear, part) = match (*attention, *projection) {
                ("self_attn", "q_proj") => ("self_attention/linear_0", ProjectionPart { index: 0, of: 3 }),
                ("self_attn", "k_proj") => ("self_attention/linear_0", ProjectionPart { index: 1, of: 3 }),
                ("self_attn", "v_proj") => ("self_attention/linear_0", ProjectionPart { index: 2, of: 3 }),
                ("self_attn", "out_proj") => ("self_attention/linear_1", whole),
                ("encoder_attn", "q_proj") => ("attention/linear_0", whole),
                ("encoder_attn", "k_proj") => ("attention/linear_1", ProjectionPart { index: 0, of: 2 }),
                ("encoder_attn", "v_proj") => ("attention/linear_1", ProjectionPart { index: 1, of: 2 }),
                ("encoder_attn", "out_proj") => ("attention/linear_2", whole),
                _ => return None,
            };

            (format!("{side}/layer_{layer}/{linear}/{kind}"), part)
        }
        _ => return None,
    };

    Some(found)
}

/// The value types of `model_spec.py`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueKind {
    F32,
    I8,
    I16,
    I32,
    F16,
    Bf16,
}

impl ValueKind {
    fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::I8,
            2 => Self::I16,
            3 => Self::I32,
            4 => Self::F16,
            5 => Self::Bf16,
            _ => return None,
        })
    }

    const fn width(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::I16 | Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
        }
    }
}

/// The header of a variable, and where its values are in the file.
struct StoredVariable {
    shape: Vec<usize>,
    kind: ValueKind,
    bytes: Range<usize>,
}

/// All variables of a model file.
struct Variables<'a> {
    file: &'a [u8],
    all: HashMap<String, StoredVariable>,
    /// Alternative name of a variable -> its own name.
    aliases: HashMap<String, String>,
}

impl<'a> Variables<'a> {
    fn read(file: &'a [u8]) -> Result<Self, MalformedFile> {
        let mut reader = ByteReader::new(file, 0);
        let version = read_u32(&mut reader, "the version of the format")?;
        if !VERSIONS.contains(&version) {
            let (first, last) = (VERSIONS.start(), VERSIONS.end());
            let problem = format!("version {version} of CTranslate2's format; versions {first} to {last} are read");
            return Err(MalformedFile::Unsupported(problem));
        }

        let specification = read_text(&mut reader, "the name of the model's kind")?;
        if specification != SPECIFICATION {
            let problem = format!("a model of the kind {specification:?}, expected {SPECIFICATION:?}");
            return Err(MalformedFile::Unsupported(problem));
        }

        let _revision = read_u32(&mut reader, "the revision of the model's kind")?;

        let count = read_u32(&mut reader, "the number of variables")?;
        let mut all = HashMap::new();

        for number in 0..count {
            let name = read_text(&mut reader, &format!("the name of variable {number} of {count}"))?;
            let variable = read_variable(&mut reader, &name)?;
            all.insert(name, variable);
        }

        let count = read_u32(&mut reader, "the number of aliases")?;
        let mut aliases = HashMap::new();
        for number in 0..count {
            let what = format!("alias {number} of {count}");
            let (alias, name) = (read_text(&mut reader, &what)?, read_text(&mut reader, &what)?);
            aliases.insert(alias, name);
        }

        Ok(Self { file, all, aliases })
    }

    fn find(&self, name: &str) -> Option<&StoredVariable> {
        self.all.get(name).or_else(|| self.all.get(self.aliases.get(name)?))
    }

    /// The value of an integer scalar variable.
    fn scalar(&self, name: &str) -> Option<i64> {
        let variable = self.find(name)?;
        let bytes = self.file.get(variable.bytes.clone())?;
        match variable.kind {
            ValueKind::I8 => bytes.first().map(|byte| i64::from(byte.cast_signed())),
            ValueKind::I16 => bytes.first_chunk().map(|b| i64::from(i16::from_le_bytes(*b))),
            ValueKind::I32 => bytes.first_chunk().map(|b| i64::from(i32::from_le_bytes(*b))),
            ValueKind::F32 | ValueKind::F16 | ValueKind::Bf16 => None,
        }
    }

    /// The scales of a variable, if it is quantised.
    fn scales(&self, name: &str) -> Result<Option<Vec<f32>>, MalformedFile> {
        let scale_name = format!("{name}_scale");
        let Some(variable) = self.find(&scale_name) else { return Ok(None) };
        let bytes = self.file.get(variable.bytes.clone()).unwrap_or_default();
        let pairs = bytes.as_chunks::<2>().0.iter();
        let scales: Vec<f32> = match variable.kind {
            ValueKind::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            ValueKind::F16 => pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            ValueKind::Bf16 => pairs.map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => return Err(MalformedFile::tensor(&scale_name, format!("has type {other:?}, expected reals"))),
        };

        if let Some(index) = scales.iter().position(|scale| !scale.is_finite() || *scale == 0.0) {
            let problem = format!("holds a scale that is zero or not finite, at index {index}");
            return Err(MalformedFile::tensor(&scale_name, problem));
        }

        Ok(Some(scales))
    }

    /// Derives the dimensions from the shapes; only the numbers of heads are stored explicitly.
    fn config(&self, path: &Path) -> Result<Config, CheckpointError> {
        let shape = |name: &str, rank: usize| {
            let variable = self.find(name);
            let variable = variable.ok_or_else(|| CheckpointError::MissingTensor {
                path: path.to_owned(),
                tensor: name.to_owned(),
                expected: Vec::new(),
            })?;

            if variable.shape.len() == rank && variable.shape.iter().all(|n| (1..=SIZE_MAX).contains(n)) {
                return Ok(variable.shape.clone());
            }

            let problem = format!("has shape {:?}, expected {rank} dimensions", variable.shape);
            Err(CheckpointError::malformed(path)(MalformedFile::tensor(name, problem)))
        };

        let size = |name: &str, rank: usize, axis: usize| {
            shape(name, rank).map(|shape| shape.get(axis).copied().unwrap_or_default())
        };
        let layers = |side: &str| {
            let exists = |layer: &usize| self.find(&format!("{side}/layer_{layer}/ffn/linear_0/weight")).is_some();
            (0..self.all.len()).take_while(exists).count()
        };

        let heads = |side: &str| {
            let name = format!("{side}/num_heads");
            let heads = self.scalar(&name).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
            heads.ok_or_else(|| CheckpointError::field(path, &name, "is missing or no whole number above 0"))
        };

        let config = Config {
            d_model: size("encoder/conv1/weight", 3, 0)?,
            encoder_layers: layers("encoder"),
            encoder_attention_heads: heads("encoder")?,
            encoder_ffn_dim: size("encoder/layer_0/ffn/linear_0/weight", 2, 0)?,
            decoder_layers: layers("decoder"),
            decoder_attention_heads: heads("decoder")?,
            decoder_ffn_dim: size("decoder/layer_0/ffn/linear_0/weight", 2, 0)?,
            num_mel_bins: size("encoder/conv1/weight", 3, 1)?,
            max_source_positions: size("encoder/position_encodings/encodings", 2, 0)?,
            max_target_positions: size("decoder/position_encodings/encodings", 2, 0)?,
            vocab_size: size("decoder/embeddings/weight", 2, 0)?,
        };

        let stored_name = |field: &str| match field {
            "encoder_attention_heads" => "encoder/num_heads".to_owned(),
            "decoder_attention_heads" => "decoder/num_heads".to_owned(),
            other => other.to_owned(),
        };

        config.check().map_err(|error| CheckpointError::field(path, &stored_name(&error.field), error.problem))?;

        Ok(config)
    }
}

impl StoredVariable {
    /// Locates the rows of one of several projections; `expected` is the shape of the tensor in the model.
    fn part(
        &self,
        name: &str,
        part: &ProjectionPart,
        scales: Option<Vec<f32>>,
        expected: &[usize],
    ) -> Result<StoredTensor, MalformedFile> {
        let refused = |problem: String| MalformedFile::tensor(name, problem);
        let rows = self.shape.first().copied().unwrap_or_default();
        if !rows.is_multiple_of(part.of) {
            return Err(refused(format!("has {rows} rows, expected {} projections of equal height", part.of)));
        }

        let rows = rows / part.of;
        let length = self.bytes.len() / part.of;
        let start = self.bytes.start + part.index * length;
        let mut shape = self.shape.clone();

        if let Some(first) = shape.first_mut() {
            *first = rows;
        }

        let unscaled = || refused(format!("has type {:?}, but there is no `{name}_scale`", self.kind));
        let encoding = match self.kind {
            ValueKind::F32 => Encoding::F32,
            ValueKind::F16 => Encoding::F16,
            ValueKind::Bf16 => Encoding::Bf16,
            ValueKind::I16 => {
                let scales = scales.ok_or_else(unscaled)?;
                Encoding::Int16 { scale: scales.first().copied().ok_or_else(unscaled)? }
            }
            ValueKind::I8 => {
                let scales = scales.ok_or_else(unscaled)?;
                let part_scales = scales.get(part.index * rows..(part.index + 1) * rows).map(<[f32]>::to_vec);
                let part_scales = part_scales.filter(|_| scales.len() == rows * part.of).ok_or_else(|| {
                    let (found, all_rows) = (scales.len(), rows * part.of);
                    let problem = format!("has {found} values, expected one for each of {all_rows} rows");
                    MalformedFile::tensor(&format!("{name}_scale"), problem)
                })?;

                Encoding::Int8 { scales: part_scales }
            }
            ValueKind::I32 => Encoding::Unsupported("I32".to_owned()),
        };

        // A wrong shape is reported under the name and with the shape that the file uses.
        if shape != expected && part.of > 1 {
            let whole: Vec<usize> = [expected.first().map_or(0, |n| n * part.of)]
                .into_iter()
                .chain(expected.iter().skip(1).copied())
                .collect();
            return Err(refused(format!("has shape {:?}, expected {whole:?}", self.shape)));
        }

        Ok(StoredTensor { file: 0, name: name.to_owned(), bytes: start..start + length, shape, encoding })
    }
}

fn read_u32(reader: &mut ByteReader<'_>, what: &str) -> Result<u32, MalformedFile> {
    reader.array(what).map(u32::from_le_bytes)
}

fn read_byte(reader: &mut ByteReader<'_>, what: &str) -> Result<u8, MalformedFile> {
    reader.array(what).map(|[byte]| byte)
}

/// Reads a length of two bytes, then the text and a zero.
fn read_text(reader: &mut ByteReader<'_>, what: &str) -> Result<String, MalformedFile> {
    let length = reader.array(what).map(u16::from_le_bytes)?;
    let bytes = reader.take(length.into(), what)?;
    let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    String::from_utf8(text.to_vec()).map_err(|_| MalformedFile::header(what, "is not UTF-8"))
}

fn read_variable(reader: &mut ByteReader<'_>, name: &str) -> Result<StoredVariable, MalformedFile> {
    let what = format!("variable `{name}`");
    let rank = read_byte(reader, &what)?;
    let mut shape = Vec::with_capacity(rank.into());

    for _ in 0..rank {
        shape.push(read_u32(reader, &what)? as usize);
    }

    let number = read_byte(reader, &what)?;
    let kind = ValueKind::of(number)
        .ok_or_else(|| MalformedFile::header(&what, format!("has type {number}, expected 0 to 5")))?;
    let length = read_u32(reader, &what)? as usize;
    let needed = shape.iter().try_fold(kind.width(), |product, n| product.checked_mul(*n));

    if needed != Some(length) {
        let problem = format!("of shape {shape:?} and type {kind:?} has {length} bytes");
        return Err(MalformedFile::header(what, problem));
    }

    let start = reader.position();
    reader.take(length, &what)?;

    Ok(StoredVariable { shape, kind, bytes: start..start + length })
}
