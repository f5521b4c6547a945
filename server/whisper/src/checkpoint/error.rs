//! Errors of checkpoints. Every message names the file, what was expected and what was found.

use std::io;
use std::path::{Path, PathBuf};

use super::malformed::{InvalidVocabulary, MalformedFile};

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(
        "{} is no checkpoint that Hush reads; expected a folder of Hugging Face (config.json, model.safetensors) or of \
         CTranslate2 (model.bin), a `.pt` file of OpenAI, or a `ggml-*.bin` file of whisper.cpp",
        .0.display()
    )]
    NotACheckpoint(PathBuf),
    #[error("{}: {problem}", path.display())]
    UnknownFile { path: PathBuf, problem: &'static str },
    #[error("{} is missing; {hint}", path.display())]
    MissingFile { path: PathBuf, hint: &'static str },
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: is not valid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a Whisper model: `model_type` is {found}, expected \"whisper\"", path.display())]
    NotWhisper { path: PathBuf, found: String },
    #[error("{}: `{field}` {problem}", path.display())]
    Field { path: PathBuf, field: String, problem: String },
    #[error(
        "{} holds pickled weights, which can run code when they are read; convert the checkpoint to safetensors \
         (`model.save_pretrained(folder, safe_serialization=True)` in transformers) and install that folder",
        .0.display()
    )]
    PickleOnly(PathBuf),
    #[error("{}: {source}", path.display())]
    Malformed { path: PathBuf, source: Box<MalformedFile> },
    #[error("{}: truncated: its header describes {expected} bytes, the file has {found}", path.display())]
    Truncated { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: shard `{shard}` is missing, the index places {tensors} tensors in it", index.display())]
    MissingShard { index: PathBuf, shard: String, tensors: usize },
    #[error("{}: the index places tensor `{tensor}` in `{shard}`, but that file does not hold it", index.display())]
    AbsentFromShard { index: PathBuf, tensor: String, shard: String },
    #[error("{}: tensor `{tensor}` is missing, expected {expected:?}", path.display())]
    MissingTensor { path: PathBuf, tensor: String, expected: Vec<usize> },
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?} by the model's dimensions", path.display())]
    Shape { path: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("{}: tensor `{tensor}` has type {found}, expected F32, F16 or BF16", path.display())]
    Dtype { path: PathBuf, tensor: String, found: String },
    #[error("{}: tensor `{tensor}` holds a value that is not finite, at index {index}", path.display())]
    NotFinite { path: PathBuf, tensor: String, index: usize },
    #[error(transparent)]
    TokenizerFile(#[from] crate::tokenizer::TokenizerError),
    #[error("{}: the tokenizer cannot be used: {source}", path.display())]
    Vocabulary { path: PathBuf, source: Box<InvalidVocabulary> },
}

impl CheckpointError {
    pub(crate) fn field(path: &Path, field: &str, problem: impl Into<String>) -> Self {
        Self::Field { path: path.to_owned(), field: field.to_owned(), problem: problem.into() }
    }

    /// Adds the path to the problem of its content.
    pub(super) fn malformed(path: &Path) -> impl Fn(MalformedFile) -> Self + '_ {
        move |source| Self::Malformed { path: path.to_owned(), source: Box::new(source) }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
