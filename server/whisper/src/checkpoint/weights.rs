//! The tensors of a checkpoint: one safetensors file, or shards with an index. Memory mapped: what is not read costs
//! nothing, and what was read can be dropped by the system.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors};

use super::json::JsonFile;
use super::{CheckpointError, Config, FieldProblem};

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// Length field at the start of a safetensors file.
const LENGTH_BYTES: usize = 8;

pub struct Weights {
    shards: Vec<Shard>,
    /// Canonical name (without `model.`) to the shard that holds it and the name there.
    places: HashMap<String, (usize, String)>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    data: usize,
    metadata: Metadata,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    path: &'a Path,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl Weights {
    pub(super) fn open(folder: &Path, config: &Config) -> Result<Self, CheckpointError> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let weights = if single.exists() {
            Self::from_shards(vec![Shard::open(single.clone())?])
        } else if index.exists() {
            Self::open_sharded(folder, &index)?
        } else if ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|n| folder.join(n).exists()) {
            return Err(CheckpointError::PickleOnly(folder.to_owned()));
        } else {
            let hint = "the weights are expected in it, or in shards listed by model.safetensors.index.json";
            return Err(CheckpointError::MissingFile { path: single, hint });
        };
        weights
            .check_dimensions(config)
            .map_err(|error| CheckpointError::field(&folder.join("config.json"), &error.field, error.problem))?;
        let home = if weights.shards.len() == 1 { &single } else { &index };
        for (name, expected) in config.tensors() {
            let Some(tensor) = weights.find(&name) else {
                return Err(CheckpointError::MissingTensor { path: home.clone(), tensor: name, expected });
            };
            if tensor.shape != expected {
                let (path, found) = (tensor.path.to_owned(), tensor.shape.to_owned());
                return Err(CheckpointError::Shape { path, tensor: name, expected, found });
            }
            if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                let (path, found) = (tensor.path.to_owned(), format!("{:?}", tensor.dtype));
                return Err(CheckpointError::Dtype { path, tensor: name, found });
            }
        }
        Ok(weights)
    }

    /// Names the field of config.json that does not fit, where the shape of one tensor tells which it is.
    fn check_dimensions(&self, config: &Config) -> Result<(), FieldProblem> {
        for (field, stated, name, axis) in config.told_by_shapes() {
            let Some(tensor) = self.find(name) else { continue };
            let Some(found) = tensor.shape.get(axis).copied().filter(|&found| found != stated) else { continue };
            let mut expected = tensor.shape.to_owned();
            expected[axis] = stated;
            let shape = tensor.shape;
            let problem = format!("is {stated}, for which tensor `{name}` has shape {expected:?}; it has {shape:?}");
            return Err(FieldProblem::new(field, format!("{problem}, so that {found} would fit")));
        }
        for (part, field, stated) in
            [("encoder", "encoder_layers", config.encoder_layers), ("decoder", "decoder_layers", config.decoder_layers)]
        {
            let found = self.layers(part);
            if found != stated {
                return Err(FieldProblem::new(field, format!("is {stated}, but the weights have {found} layers")));
            }
        }
        Ok(())
    }

    /// Layers of the encoder or the decoder, by the names of the tensors.
    fn layers(&self, part: &str) -> usize {
        let prefix = format!("{part}.layers.");
        let numbers = self.places.keys().filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok());
        numbers.max().map_or(0, |last: usize| last.saturating_add(1))
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self, CheckpointError> {
        let json = JsonFile::read(index)?;
        let map = json
            .get("weight_map")
            .and_then(|v| v.as_object())
            .ok_or_else(|| json.error("weight_map", "is missing, expected tensor names and their files"))?;
        let mut names: HashMap<&str, Vec<&str>> = HashMap::new();
        for (tensor, shard) in map {
            let shard = shard
                .as_str()
                // A name, not a path: an index must not make us read files elsewhere.
                .filter(|s| Path::new(s).components().count() == 1 && Path::new(s).file_name().is_some())
                .ok_or_else(|| json.error(&format!("weight_map.{tensor}"), "must be the name of a file beside it"))?;
            names.entry(shard).or_default().push(tensor);
        }
        let mut order: Vec<_> = names.into_iter().collect();
        order.sort_unstable();
        let mut shards = Vec::with_capacity(order.len());
        for (name, tensors) in order {
            let path = folder.join(name);
            if !path.exists() {
                let (shard, tensors) = (name.to_owned(), tensors.len());
                return Err(CheckpointError::MissingShard { index: index.to_owned(), shard, tensors });
            }
            let shard = Shard::open(path)?;
            if let Some(absent) = tensors.iter().find(|t| shard.metadata.info(t).is_none()) {
                let (tensor, shard) = ((*absent).to_owned(), name.to_owned());
                return Err(CheckpointError::AbsentFromShard { index: index.to_owned(), tensor, shard });
            }
            shards.push(shard);
        }
        Ok(Self::from_shards(shards))
    }

    fn from_shards(shards: Vec<Shard>) -> Self {
        let mut places = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.offset_keys() {
                let canonical = name.strip_prefix("model.").unwrap_or(&name).to_owned();
                places.insert(canonical, (i, name));
            }
        }
        Self { shards, places }
    }

    fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (canonical, (shard, stored)) = self.places.get_key_value(name)?;
        let shard = self.shards.get(*shard)?;
        let info = shard.metadata.info(stored)?;
        let (start, end) = info.data_offsets;
        let bytes = shard.map.get(shard.data + start..shard.data + end)?;
        Some(Tensor { name: canonical, path: &shard.path, dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// A tensor of [`Config::tensors`], by its name without the `model.` prefix.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, CheckpointError> {
        self.find(name).ok_or_else(|| {
            let path = self.shards.first().map(|s| s.path.clone()).unwrap_or_default();
            CheckpointError::MissingTensor { path, tensor: name.to_owned(), expected: Vec::new() }
        })
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, CheckpointError> {
        let file = File::open(&path).map_err(CheckpointError::io(&path))?;
        let map = map(&file).map_err(CheckpointError::io(&path))?;
        let corrupt = |problem: String| CheckpointError::Corrupt { path: path.clone(), problem };
        let (header, metadata) = match SafeTensors::read_metadata(&map) {
            Ok(read) => read,
            Err(SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength) => {
                return Err(Self::wrong_length(&path, &map));
            }
            Err(e) => return Err(corrupt(e.to_string())),
        };
        Ok(Self { data: LENGTH_BYTES + header, map, metadata, path })
    }

    /// The file does not end where its header says: tells both lengths if the header can be read.
    fn wrong_length(path: &Path, map: &[u8]) -> CheckpointError {
        let corrupt = |problem: &str| CheckpointError::Corrupt { path: path.to_owned(), problem: problem.to_owned() };
        let Some((length, rest)) = map.split_first_chunk::<LENGTH_BYTES>() else {
            return corrupt("it is shorter than the length field of its header");
        };
        let header = u64::from_le_bytes(*length);
        let found = map.len() as u64;
        let Some(text) = usize::try_from(header).ok().and_then(|n| rest.get(..n)) else {
            let expected = header.saturating_add(LENGTH_BYTES as u64);
            return CheckpointError::Truncated { path: path.to_owned(), expected, found };
        };
        let end = serde_json::from_slice::<HashMap<String, serde_json::Value>>(text).ok().and_then(|entries| {
            let ends = entries.values().filter_map(|e| e.get("data_offsets")?.get(1)?.as_u64());
            ends.max()
        });
        match end {
            Some(end) => {
                let expected = end.saturating_add(header).saturating_add(LENGTH_BYTES as u64);
                CheckpointError::Truncated { path: path.to_owned(), expected, found }
            }
            None => corrupt("its header does not describe its length"),
        }
    }
}

impl<'a> Tensor<'a> {
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values `start..start + out.len()` in storage order.
    pub fn read(&self, start: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let width = if self.dtype == Dtype::F32 { 4 } else { 2 };
        let bytes = self.bytes.get(start * width..(start + out.len()) * width).ok_or_else(|| {
            let problem = format!("tensor `{}` ends before value {}", self.name, start + out.len());
            CheckpointError::Corrupt { path: self.path.to_owned(), problem }
        })?;
        match self.dtype {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            _ => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        }
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let (path, tensor) = (self.path.to_owned(), self.name.to_owned());
                Err(CheckpointError::NotFinite { path, tensor, index: start + at })
            }
        }
    }

    pub fn to_vec(&self) -> Result<Vec<f32>, CheckpointError> {
        let mut out = vec![0.0; self.len()];
        self.read(0, &mut out)?;
        Ok(out)
    }
}

#[allow(unsafe_code, reason = "a memory map")]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read only. A checkpoint that someone rewrites while it is being installed gives wrong weights
    // or SIGBUS, as with every reader of such files; reading 3 GB into memory instead is not affordable.
    unsafe { Mmap::map(file) }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], from: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = from(*chunk);
    }
}
