//! What is wrong with the content of a checkpoint's files. [`super::CheckpointError`] adds the path of the file.

use std::error::Error;
use std::io;

use safetensors::tensor::SafeTensorError;
use zip::result::ZipError;

use super::pickle::PickleError;

/// Why the bytes of a file with weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MalformedFile {
    #[error("truncated: {field} at byte {at} needs {needed} bytes, the file has {left} more")]
    Truncated { field: String, at: usize, needed: usize, left: usize },
    /// A field of the header has a value that no file of this format has.
    #[error("{field} {problem}")]
    Header { field: String, problem: String },
    /// The file may be whole, but its version, kind or type is not one that Hush reads.
    #[error("{0}")]
    Unsupported(String),
    #[error("tensor `{tensor}` {problem}")]
    Tensor { tensor: String, problem: String },
    #[error("not a whole PyTorch file (a ZIP archive): {0}")]
    NotAnArchive(#[source] ZipError),
    #[error("{file} of the archive: {source}")]
    ArchiveEntry { file: String, source: ZipError },
    #[error("{file} of the archive cannot be unpacked: {source}")]
    Unpack { file: String, source: io::Error },
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error("not a readable safetensors file: {0}")]
    Safetensors(#[source] SafeTensorError),
}

impl MalformedFile {
    pub(super) fn header(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Header { field: field.into(), problem: problem.into() }
    }

    pub(super) fn tensor(tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), problem: problem.into() }
    }
}

/// Why the tokens of a checkpoint make no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum InvalidVocabulary {
    #[error(
        "it has {0} tokens and no tokenizer.json; without one a vocabulary of 51864, 51865 or 51866 tokens is expected"
    )]
    UnknownSize(usize),
    #[error("it lists {found} tokens, expected {expected} or more")]
    TooFewTokens { found: usize, expected: usize },
    #[error("it has no token `{0}`")]
    MissingToken(&'static str),
    #[error("`{token}` has id {id}, but `vocab_size` in config.json is {vocab_size}")]
    TokenOutOfRange { token: &'static str, id: u32, vocab_size: usize },
    #[error("its timestamps begin at {begin}, but `vocab_size` is {vocab_size}")]
    TimestampsOutOfRange { begin: u32, vocab_size: usize },
    #[error("token {token} has {bytes} bytes, expected {max} at most")]
    TokenTooLong { token: u32, bytes: usize, max: usize },
    #[error("tokens {first} and {second} are the same bytes")]
    RepeatedToken { first: u32, second: u32 },
    #[error("token {0} is not the merge of two tokens of lower rank")]
    NotAMerge(u32),
    #[error("line {0} is not two tokens")]
    MergeLine(usize),
    /// Ids of added tokens follow from their order, so a gap in the numbering cannot be expressed.
    #[error("`{token}` has id {id}, but it would become {assigned:?}")]
    AddedTokenId { token: String, id: u32, assigned: Option<u32> },
    #[error("the published vocabulary cannot be unpacked: {0}")]
    Published(#[source] io::Error),
    #[error("the published vocabulary has the token {token:?}: {source}")]
    PublishedToken { token: String, source: base64::DecodeError },
    #[error("{0}")]
    Library(#[source] Box<dyn Error + Send + Sync>),
}
