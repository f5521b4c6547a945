//! An installed model: a folder with three graphs, their weights, the tokenizer, and `model.json`, which describes it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Config, FieldProblem, SpecialTokens};
use crate::graph::Precision;
use crate::onnx::{WeightsFile, hex};
use crate::small_file;

/// The format that this version of Hush writes. It is increased when older versions of Hush cannot use what is written.
pub const fn format_version(precision: Precision) -> u32 {
    match precision {
        // 3: windows of less than 30 s, and the decoder's input `cross_last_frame`.
        Precision::Fp32 => 3,
        // 4: the encoder with operators of Hush's own.
        Precision::Int8 => 4,
        // 3: attention without cuDNN, keys and values frame by frame, the choice of tokens on the device. 4: as 3 of the others.
        Precision::Fp16 => 4,
    }
}

/// The oldest format that this version of Hush reads: its windows are all encoded as 30 s.
const fn oldest_format_version(precision: Precision) -> u32 {
    match precision {
        Precision::Fp32 | Precision::Int8 => 2,
        Precision::Fp16 => 3,
    }
}

pub const MANIFEST: &str = "model.json";
pub const ENCODER: &str = "encoder.onnx";
pub const DECODER: &str = "decoder.onnx";
pub const ALIGN: &str = "align.onnx";
pub const WEIGHTS: &str = WeightsFile::NAME;
pub const TOKENIZER: &str = "tokenizer.json";

/// Every file beside `model.json`.
pub const FILES: [&str; 5] = [ENCODER, DECODER, ALIGN, WEIGHTS, TOKENIZER];

/// The content of `model.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format_version: u32,
    /// The name at the time of the install; the folder may have been renamed since.
    pub name: String,
    pub precision: Precision,
    /// The origin of the checkpoint, for information.
    pub source: String,
    pub config: Config,
    pub tokens: SpecialTokens,
    /// `[layer, head]` in the order of the second dimension of `align.onnx`'s output.
    pub alignment_heads: Vec<[usize; 2]>,
    pub files: BTreeMap<String, FileEntry>,
}

/// Length and digest of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub bytes: u64,
    pub sha256: String,
}

/// A model directory whose files exist with the expected lengths.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
    manifest: Manifest,
}

#[derive(Debug, thiserror::Error)]
pub enum ModelDirError {
    #[error("{}: there is no such model directory; make one with `hush-server install`", .0.display())]
    NotFound(PathBuf),
    #[error(
        "{} is a checkpoint, not an installed model; install it with `hush-server install {}`",
        .0.display(), .0.display()
    )]
    Checkpoint(PathBuf),
    #[error("{} is missing, so this is no installed model; make one with `hush-server install`", .0.display())]
    NoManifest(PathBuf),
    #[error("{}: cannot be read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a valid manifest: {source}; repeat `hush-server install`", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error("{}: `{field}` {problem}; repeat `hush-server install`", path.display())]
    Field { path: PathBuf, field: String, problem: String },
    #[error(
        "{}: written in format {found}, which this version of Hush does not read any more (it reads {oldest} to {newest}); \
         repeat `hush-server install`",
        path.display()
    )]
    OldVersion { path: PathBuf, found: u32, oldest: u32, newest: u32 },
    #[error(
        "{}: written in format {found} by a newer version of Hush, this version reads {newest} at most; update Hush, or repeat \
         `hush-server install` with this version",
        path.display()
    )]
    NewVersion { path: PathBuf, found: u32, newest: u32 },
    #[error("{} is missing; repeat `hush-server install`", .0.display())]
    MissingFile(PathBuf),
    #[error("{}: {found} bytes long, expected {expected}; repeat `hush-server install`", path.display())]
    Length { path: PathBuf, expected: u64, found: u64 },
    #[error("{}: its content changed since the install (sha256 {found}, expected {expected}); repeat `hush-server install`", path.display())]
    Digest { path: PathBuf, expected: String, found: String },
}

impl ModelDir {
    /// Reads the manifest and compares the length of each file; fast for models of any size.
    pub fn open(path: &Path) -> Result<Self, ModelDirError> {
        let manifest_path = path.join(MANIFEST);
        let text = match small_file::read(&manifest_path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(if !path.is_dir() {
                    ModelDirError::NotFound(path.to_owned())
                } else if path.join("config.json").exists() {
                    ModelDirError::Checkpoint(path.to_owned())
                } else {
                    ModelDirError::NoManifest(manifest_path)
                });
            }
            Err(source) => return Err(ModelDirError::Io { path: manifest_path, source }),
        };

        let bad = |source| ModelDirError::Manifest { path: manifest_path.clone(), source };

        // The version is checked first: the other fields may differ in another version.
        let version: ManifestVersion = serde_json::from_slice(&text).map_err(bad)?;
        let precision = version.precision.unwrap_or(Precision::Int8);
        let (found, oldest, newest) =
            (version.format_version, oldest_format_version(precision), format_version(precision));

        if found < oldest {
            return Err(ModelDirError::OldVersion { path: manifest_path, found, oldest, newest });
        }
        if found > newest {
            return Err(ModelDirError::NewVersion { path: manifest_path, found, newest });
        }

        let manifest: Manifest = serde_json::from_slice(&text).map_err(bad)?;
        manifest.check().map_err(|FieldProblem { field, problem }| ModelDirError::Field {
            path: manifest_path.clone(),
            field,
            problem,
        })?;

        for name in FILES {
            let path = path.join(name);
            let found = match fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ModelDirError::MissingFile(path)),
                Err(source) => return Err(ModelDirError::Io { path, source }),
            };

            match manifest.files.get(name) {
                Some(entry) if entry.bytes == found => {}
                Some(FileEntry { bytes: expected, .. }) => {
                    return Err(ModelDirError::Length { path, expected: *expected, found });
                }
                None => return Err(bad(serde::de::Error::custom(format!("`files` does not list `{name}`")))),
            }
        }

        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Whether this version of Hush would install the model in the same format. An older format may be slower.
    pub fn is_newest_format(&self) -> bool {
        self.manifest.format_version == format_version(self.manifest.precision)
    }

    /// Reads every file and compares it with the digest from the install.
    pub fn verify_digests(&self) -> Result<(), ModelDirError> {
        for (name, entry) in &self.manifest.files {
            let path = self.path.join(name);
            let found = match digest(&path) {
                Ok(found) => found.sha256,
                Err(source) => return Err(ModelDirError::Io { path, source }),
            };
            if found != entry.sha256 {
                return Err(ModelDirError::Digest { path, expected: entry.sha256.clone(), found });
            }
        }

        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Path of one of [`FILES`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Length of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.manifest.files.values().map(|entry| entry.bytes).fold(0, u64::saturating_add)
    }
}

impl Manifest {
    /// Checks that the numbers agree with each other: the engine lays out memory by them.
    fn check(&self) -> Result<(), FieldProblem> {
        let in_part = |part: &'static str| {
            move |error: FieldProblem| FieldProblem::new(format!("{part}.{}", error.field), error.problem)
        };
        self.config.check().map_err(in_part("config"))?;
        self.tokens.check(self.config.vocab_size).map_err(in_part("tokens"))?;
        let (layers, heads) = (self.config.decoder_layers, self.config.decoder_attention_heads);
        let is_head = |[layer, head]: &&[usize; 2]| *layer < layers && *head < heads;
        if let Some([layer, head]) = self.alignment_heads.iter().find(|pair| !is_head(pair)) {
            let problem = format!("holds [{layer}, {head}], but the decoder has {layers} layers of {heads} heads");
            return Err(FieldProblem::new("alignment_heads", problem));
        }

        Ok(())
    }
}

/// The fields of `model.json` that determine how the other fields are read.
#[derive(Deserialize)]
struct ManifestVersion {
    format_version: u32,
    /// `None` if another format version has a precision that is unknown here.
    #[serde(default, deserialize_with = "known_precision")]
    precision: Option<Precision>,
}

fn known_precision<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Precision>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value.as_str().and_then(|name| name.parse().ok()))
}

pub(crate) fn entry(bytes: &[u8]) -> FileEntry {
    FileEntry { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
}

fn digest(path: &Path) -> io::Result<FileEntry> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;

    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(FileEntry { bytes, sha256: hex(&hash.finalize()) });
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}
