//! whisper.cpp's `ggml-*.bin` files: dimensions, mel filters, vocabulary, then the tensors. The layout is that of
//! `whisper_model_load` in `src/whisper.cpp` of ggml-org/whisper.cpp.

use std::collections::HashMap;
use std::path::Path;

use super::blocks::BlockFormat;
use super::byte_reader::ByteReader;
use super::openai_names::{OpenAiDimensions, openai_name};
use super::tensor::{Encoding, MappedFile, StoredTensor};
use super::{CheckpointError, Config, MalformedFile, Weights};

/// "ggml" as a little-endian number.
pub const MAGIC: &[u8] = b"lmgg";

/// Reads dimensions and vocabulary (the bytes of each token, in the order of the ids) and locates the tensors of the file.
pub fn open(path: &Path) -> Result<(Config, Vec<Vec<u8>>, Weights), CheckpointError> {
    let file = MappedFile::open(path)?;
    let corrupt = CheckpointError::malformed(path);
    let mut reader = ByteReader::new(&file.map, MAGIC.len());
    let config = read_dimensions(&mut reader).map_err(&corrupt)?.config(path)?;
    let vocabulary = read_vocabulary(&mut reader).map_err(&corrupt)?;
    let mut found = read_tensors(&mut reader).map_err(&corrupt)?;

    let mut tensors = HashMap::new();
    for (canonical, expected) in config.tensors() {
        let Some(mut tensor) = found.remove(&openai_name(&canonical)) else { continue };

        // The bias of a convolution is stored as a column.
        while tensor.shape.len() > expected.len() && tensor.shape.last() == Some(&1) {
            tensor.shape.pop();
        }
        tensors.insert(canonical, tensor);
    }

    let weights = Weights::checked(path.to_owned(), vec![file], tensors, &config)?;

    Ok((config, vocabulary, weights))
}

fn read_i32(reader: &mut ByteReader<'_>, what: &str) -> Result<i32, MalformedFile> {
    reader.array(what).map(i32::from_le_bytes)
}

fn read_length(reader: &mut ByteReader<'_>, what: &str) -> Result<usize, MalformedFile> {
    let number = read_i32(reader, what)?;
    usize::try_from(number).map_err(|_| MalformedFile::header(what, format!("is {number}")))
}

fn read_dimensions(reader: &mut ByteReader<'_>) -> Result<OpenAiDimensions, MalformedFile> {
    let mut next = |what| read_i32(reader, what).map(i64::from);
    let n_vocab = next("n_vocab")?;
    let n_audio_ctx = next("n_audio_ctx")?;
    let n_audio_state = next("n_audio_state")?;
    let n_audio_head = next("n_audio_head")?;
    let n_audio_layer = next("n_audio_layer")?;
    let n_text_ctx = next("n_text_ctx")?;
    let n_text_state = next("n_text_state")?;
    let n_text_head = next("n_text_head")?;
    let n_text_layer = next("n_text_layer")?;
    let n_mels = next("n_mels")?;

    // Ignored, because each tensor states its own type.
    let _file_type = next("ftype")?;

    Ok(OpenAiDimensions {
        n_mels,
        n_vocab,
        n_audio_ctx,
        n_audio_state,
        n_audio_head,
        n_audio_layer,
        n_text_ctx,
        n_text_state,
        n_text_head,
        n_text_layer,
    })
}

fn read_vocabulary(reader: &mut ByteReader<'_>) -> Result<Vec<Vec<u8>>, MalformedFile> {
    // The filters are the same for every Whisper; Hush computes them.
    let (bins, frequencies) =
        (read_length(reader, "n_mel of the filters")?, read_length(reader, "n_fft of the filters")?);
    let filters = bins.checked_mul(frequencies).and_then(|n| n.checked_mul(4));
    reader.take(
        filters.ok_or_else(|| MalformedFile::header("the mel filters", "are larger than any file"))?,
        "the mel filters",
    )?;

    let count = read_length(reader, "the number of tokens")?;
    let mut tokens = Vec::new();
    for id in 0..count {
        let what = format!("token {id} of {count}");
        let length = read_length(reader, &what)?;
        tokens.push(reader.take(length, &what)?.to_vec());
    }

    Ok(tokens)
}

fn read_tensors(reader: &mut ByteReader<'_>) -> Result<HashMap<String, StoredTensor>, MalformedFile> {
    let mut tensors = HashMap::new();
    while !reader.is_at_end() {
        let number = tensors.len();
        let what = format!("the header of tensor {number}");
        let dimensions = read_length(reader, &what)?;
        let name_length = read_length(reader, &what)?;
        let kind = read_i32(reader, &what)?;

        if !(1..=4).contains(&dimensions) {
            return Err(MalformedFile::header(what, format!("has {dimensions} dimensions, expected 1 to 4")));
        }

        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            shape.push(read_length(reader, &what)?);
        }

        // The file lists the dimension that varies fastest first.
        shape.reverse();

        let name = String::from_utf8_lossy(reader.take(name_length, &what)?).into_owned();
        let encoding = match kind {
            0 => Encoding::F32,
            1 => Encoding::F16,
            30 => Encoding::Bf16,
            other => match BlockFormat::of_ggml_type(other) {
                Some(format) => Encoding::Blocks(format),
                None => {
                    let problem = format!("tensor `{name}` has ggml type {other}, which is not supported");
                    return Err(MalformedFile::Unsupported(problem));
                }
            },
        };

        let needed = encoding.encoded_bytes(&shape);
        let needed =
            needed.ok_or_else(|| MalformedFile::tensor(&name, format!("of type {encoding:?} has shape {shape:?}")))?;
        let start = reader.position();

        reader.take(needed, &format!("tensor `{name}` of shape {shape:?}"))?;
        let stored = StoredTensor { file: 0, name: name.clone(), bytes: start..start + needed, shape, encoding };
        if tensors.insert(name.clone(), stored).is_some() {
            return Err(MalformedFile::tensor(&name, "is in the file twice"));
        }
    }

    Ok(tensors)
}
