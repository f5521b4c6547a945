//! Safetensors files: one file, or shards with an index.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors};

use super::json::JsonFile;
use super::tensor::{Encoding, MappedFile, StoredTensor};
use super::{CheckpointError, Config, FieldProblem, MalformedFile, Weights};

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// Bytes of the length field at the start of a safetensors file.
const LENGTH_BYTES: usize = 8;
/// A safetensors file, and what its header says.
struct Shard {
    file: MappedFile,
    /// Offset of the first tensor's values in the file.
    data: usize,
    metadata: Metadata,
}

pub fn is_in(folder: &Path) -> bool {
    folder.join(SINGLE).exists() || folder.join(INDEX).exists()
}

pub fn open(folder: &Path, config: &Config) -> Result<Weights, CheckpointError> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    let shards = if single.exists() {
        vec![Shard::open(&single)?]
    } else if index.exists() {
        open_shards(folder, &index)?
    } else if ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|n| folder.join(n).exists()) {
        return Err(CheckpointError::PickleOnly(folder.to_owned()));
    } else {
        let hint = "the weights are expected in it, or in shards listed by model.safetensors.index.json";
        return Err(CheckpointError::MissingFile { path: single, hint });
    };

    let home = if shards.len() == 1 { single } else { index };
    let mut files = Vec::with_capacity(shards.len());
    let mut tensors = HashMap::new();

    for (file, shard) in shards.into_iter().enumerate() {
        for name in shard.metadata.offset_keys() {
            let Some(info) = shard.metadata.info(&name) else { continue };
            let canonical = name.strip_prefix("model.").unwrap_or(&name).to_owned();
            let (start, end) = info.data_offsets;
            let bytes = shard.data + start..shard.data + end;
            let stored_name = canonical.clone();
            let (shape, encoding) = (info.shape.clone(), encoding(info.dtype));
            tensors.insert(canonical, StoredTensor { file, name: stored_name, bytes, shape, encoding });
        }

        files.push(shard.file);
    }

    check_dimensions(&tensors, config)
        .map_err(|error| CheckpointError::field(&folder.join("config.json"), &error.field, error.problem))?;

    Weights::checked(home, files, tensors, config)
}

/// Finds the field of config.json that contradicts the shape of a tensor, if the tensor determines the field.
fn check_dimensions(tensors: &HashMap<String, StoredTensor>, config: &Config) -> Result<(), FieldProblem> {
    for (field, stated, name, axis) in config.dimensions_in_shapes() {
        let Some(shape) = tensors.get(name).map(|tensor| &tensor.shape) else { continue };
        let Some(found) = shape.get(axis).copied().filter(|&found| found != stated) else { continue };
        let mut expected = shape.clone();
        if let Some(size) = expected.get_mut(axis) {
            *size = stated;
        }

        let problem = format!("is {stated}, for which tensor `{name}` has shape {expected:?}; it has {shape:?}");
        return Err(FieldProblem::new(field, format!("{problem}, so that {found} would fit")));
    }

    let layers =
        [("encoder", "encoder_layers", config.encoder_layers), ("decoder", "decoder_layers", config.decoder_layers)];
    for (part, field, stated) in layers {
        let found = layers_of(tensors, part);
        if found != stated {
            return Err(FieldProblem::new(field, format!("is {stated}, but the weights have {found} layers")));
        }
    }

    Ok(())
}

/// The number of layers of the encoder or the decoder, by the names of the tensors.
fn layers_of(tensors: &HashMap<String, StoredTensor>, part: &str) -> usize {
    let prefix = format!("{part}.layers.");
    let numbers = tensors.keys().filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok());
    numbers.max().map_or(0, |last: usize| last.saturating_add(1))
}

fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::Bf16,
        other => Encoding::Unsupported(format!("{other:?}")),
    }
}

fn open_shards(folder: &Path, index: &Path) -> Result<Vec<Shard>, CheckpointError> {
    let json = JsonFile::read(index)?;
    let map = json
        .get("weight_map")
        .and_then(|v| v.as_object())
        .ok_or_else(|| json.error("weight_map", "is missing, expected tensor names and their files"))?;

    let mut names: HashMap<&str, Vec<&str>> = HashMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            // It must be a name and not a path: an index must not make the installer read files elsewhere.
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

        let shard = Shard::open(&path)?;
        if let Some(absent) = tensors.iter().find(|t| shard.metadata.info(t).is_none()) {
            let (tensor, shard) = ((*absent).to_owned(), name.to_owned());
            return Err(CheckpointError::AbsentFromShard { index: index.to_owned(), tensor, shard });
        }

        shards.push(shard);
    }

    Ok(shards)
}

impl Shard {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path)?;
        let (header, metadata) = match SafeTensors::read_metadata(&file.map) {
            Ok(read) => read,
            Err(SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength) => {
                return Err(wrong_length(path, &file.map));
            }
            Err(error) => return Err(CheckpointError::malformed(path)(MalformedFile::Safetensors(error))),
        };

        Ok(Self { file, data: LENGTH_BYTES + header, metadata })
    }
}

/// The error for a file that does not end where its header says. It states both lengths if the header can be read.
fn wrong_length(path: &Path, map: &[u8]) -> CheckpointError {
    let corrupt = |field: &str, problem: &str| {
        let field = format!("not a readable safetensors file: {field}");
        CheckpointError::malformed(path)(MalformedFile::header(field, problem))
    };

    let Some((length, rest)) = map.split_first_chunk::<LENGTH_BYTES>() else {
        return corrupt("it", "is shorter than the length field of its header");
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
        None => corrupt("its header", "does not describe its length"),
    }
}
