//! OpenAI's `.pt` files: a ZIP archive with a pickle and one file for each tensor's values. The pickle is read as data
//! ([`super::pickle`]).

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::openai_names::{OpenAiDimensions, openai_name};
use super::pickle::{Pickle, PickleValue, TensorRecord};
use super::tensor::{Encoding, MappedFile, StoredTensor};
use super::{CheckpointError, Config, MalformedFile, Weights};

/// Limit of the pickle's size; that of large-v3 has 130 kB.
const PICKLE_BYTES_MAX: u64 = 16 << 20;
const PICKLE: &str = "data.pkl";

/// The first bytes of a ZIP archive.
pub const MAGIC: &[u8] = b"PK\x03\x04";

/// Reads the dimensions and locates the tensors of the file.
pub fn open(path: &Path) -> Result<(Config, Weights), CheckpointError> {
    let corrupt = CheckpointError::malformed(path);
    let file = MappedFile::open(path)?;
    let mut archive =
        ZipArchive::new(Cursor::new(&file.map[..])).map_err(|error| corrupt(MalformedFile::NotAnArchive(error)))?;
    let entries = entries(&mut archive).map_err(&corrupt)?;

    let pickle_name = entries.keys().find(|name| name.ends_with(&format!("/{PICKLE}"))).cloned();
    let pickle_name =
        pickle_name.ok_or_else(|| corrupt(MalformedFile::header("the archive", format!("holds no {PICKLE}"))))?;
    let folder = pickle_name.trim_end_matches(PICKLE).to_owned();
    let pickle = read_pickle(&mut archive, &pickle_name).map_err(&corrupt)?;
    let pickle = Pickle::read(&pickle).map_err(|error| corrupt(error.into()))?;

    let state = "model_state_dict";
    let (dimensions, tensors) = (pickle.get(pickle.root(), "dims"), pickle.get(pickle.root(), state));
    let (Some(dimensions), Some(tensors)) = (dimensions, tensors) else {
        let problem = format!("holds no `dims` and `{state}`; expected a checkpoint of openai/whisper");
        return Err(corrupt(MalformedFile::header("the file", problem)));
    };

    let config = dimensions_of(&pickle, dimensions, path)?.config(path)?;

    let mut stored = HashMap::new();
    for (canonical, _) in config.tensors() {
        let name = openai_name(&canonical);
        let Some(value) = pickle.get(tensors, &name) else { continue };
        let record = pickle.tensor(value).ok_or_else(|| corrupt(MalformedFile::tensor(&name, "is not a tensor")))?;
        let tensor = locate(record, &name, &folder, &entries).map_err(&corrupt)?;
        stored.insert(canonical, tensor);
    }

    drop(archive);
    let weights = Weights::checked(path.to_owned(), vec![file], stored, &config)?;

    Ok((config, weights))
}

/// A file of the archive: where its bytes are, and whether they are stored without compression.
struct ArchiveEntry {
    start: usize,
    length: usize,
    stored: bool,
}

fn entries(archive: &mut ZipArchive<Cursor<&[u8]>>) -> Result<HashMap<String, ArchiveEntry>, MalformedFile> {
    let mut entries = HashMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        let number = format!("file {index}");
        let header = |problem: &str| MalformedFile::header(format!("{number} of the archive"), problem);

        let file = archive
            .by_index_raw(index)
            .map_err(|source| MalformedFile::ArchiveEntry { file: number.clone(), source })?;
        let start = file.data_start().ok_or_else(|| header("has no data"))?;
        let size = |n: u64| usize::try_from(n).map_err(|_| header("is too long"));
        let entry = ArchiveEntry {
            start: size(start)?,
            length: size(file.compressed_size())?,
            stored: file.compression() == CompressionMethod::Stored && !file.encrypted(),
        };

        let name = file.name().map_err(|source| MalformedFile::ArchiveEntry { file: number, source })?.into_owned();
        entries.insert(name, entry);
    }

    Ok(entries)
}

fn read_pickle(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<Vec<u8>, MalformedFile> {
    let file = archive.by_name(name).map_err(|source| MalformedFile::ArchiveEntry { file: name.to_owned(), source })?;
    if file.size() > PICKLE_BYTES_MAX {
        let problem = format!("has {} bytes; at most {PICKLE_BYTES_MAX} are read", file.size());
        return Err(MalformedFile::header(name, problem));
    }

    let mut bytes = Vec::new();
    file.take(PICKLE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|source| MalformedFile::Unpack { file: name.to_owned(), source })?;

    Ok(bytes)
}

fn dimensions_of(pickle: &Pickle, value: &PickleValue, path: &Path) -> Result<OpenAiDimensions, CheckpointError> {
    let size = |field: &str| match pickle.get(value, field) {
        Some(PickleValue::Int(n)) => Ok(*n),
        Some(other) => Err(CheckpointError::field(path, &format!("dims.{field}"), format!("is {other:?}"))),
        None => Err(CheckpointError::field(path, &format!("dims.{field}"), "is missing, expected a whole number")),
    };

    Ok(OpenAiDimensions {
        n_mels: size("n_mels")?,
        n_vocab: size("n_vocab")?,
        n_audio_ctx: size("n_audio_ctx")?,
        n_audio_state: size("n_audio_state")?,
        n_audio_head: size("n_audio_head")?,
        n_audio_layer: size("n_audio_layer")?,
        n_text_ctx: size("n_text_ctx")?,
        n_text_state: size("n_text_state")?,
        n_text_head: size("n_text_head")?,
        n_text_layer: size("n_text_layer")?,
    })
}

fn locate(
    record: &TensorRecord,
    name: &str,
    folder: &str,
    entries: &HashMap<String, ArchiveEntry>,
) -> Result<StoredTensor, MalformedFile> {
    let refused = |problem: String| MalformedFile::tensor(name, problem);
    let (encoding, width) = match &*record.storage.kind {
        "FloatStorage" => (Encoding::F32, 4),
        "HalfStorage" => (Encoding::F16, 2),
        "BFloat16Storage" => (Encoding::Bf16, 2),
        other => (Encoding::Unsupported(other.to_owned()), 0),
    };

    let file = format!("{folder}data/{}", record.storage.key);
    let entry = entries.get(&file).ok_or_else(|| refused(format!("lies in `{file}`, which is missing")))?;

    if !entry.stored {
        return Err(refused(format!("lies in `{file}`, which is compressed; PyTorch stores it as it is")));
    }

    let values = record.shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n));
    let end = values.and_then(|n| record.offset.checked_add(n)).and_then(|n| n.checked_mul(width));
    let start = record.offset.checked_mul(width);
    let (Some(start), Some(end)) = (start, end.filter(|end| *end <= entry.length)) else {
        let shape = &record.shape;
        return Err(refused(format!("of shape {shape:?} reaches beyond `{file}` of {} bytes", entry.length)));
    };

    if !is_contiguous(record) {
        return Err(refused(format!("has strides {:?}, expected one row after the other", record.strides)));
    }

    let bytes = entry.start + start..entry.start + end;

    Ok(StoredTensor { file: 0, name: name.to_owned(), bytes, shape: record.shape.clone(), encoding })
}

/// Whether the values are stored in the order of their indices. The stride of a dimension of size one is ignored.
fn is_contiguous(record: &TensorRecord) -> bool {
    if record.strides.len() != record.shape.len() {
        return false;
    }

    let mut expected = 1_usize;
    for (size, stride) in record.shape.iter().zip(&record.strides).rev() {
        if *size != 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*size);
    }

    true
}
