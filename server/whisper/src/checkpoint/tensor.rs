//! The tensors of a checkpoint, whatever its file format. Files are memory mapped: a tensor that is not read costs nothing,
//! and the system can drop pages that were read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;

use super::blocks::BlockFormat;
use super::{CheckpointError, Config, MalformedFile};
use crate::small_file;

/// Every tensor of a checkpoint, by its Hugging Face name without the `model.` prefix.
pub struct Weights {
    /// The file that messages name if a tensor is missing.
    home: PathBuf,
    files: Vec<MappedFile>,
    tensors: HashMap<String, StoredTensor>,
}

pub(super) struct MappedFile {
    pub path: PathBuf,
    pub map: Mmap,
}

/// Where a tensor is stored, and how its values are encoded.
#[derive(Clone)]
pub(super) struct StoredTensor {
    /// Index of the file in [`Weights`].
    pub file: usize,
    /// Name in the file, for messages.
    pub name: String,
    pub bytes: Range<usize>,
    pub shape: Vec<usize>,
    pub encoding: Encoding,
}

/// How the values of a tensor are stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    /// `value = stored / scale`, one scale for each index of the first dimension.
    Int8 {
        scales: Vec<f32>,
    },
    /// `value = stored / scale`, one scale for the whole tensor.
    Int16 {
        scale: f32,
    },
    Blocks(BlockFormat),
    /// A type that the weights of a model cannot have, with its name.
    Unsupported(String),
}

/// A tensor in its file.
#[derive(Clone, Copy)]
pub struct CheckpointTensor<'a> {
    name: &'a str,
    path: &'a Path,
    encoding: &'a Encoding,
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = small_file::open(path).map_err(CheckpointError::io(path))?;
        let map = map(&file).map_err(CheckpointError::io(path))?;
        Ok(Self { path: path.to_owned(), map })
    }
}

impl Encoding {
    /// Bytes of a tensor of this shape; `None` if the shape is impossible for the encoding.
    pub fn encoded_bytes(&self, shape: &[usize]) -> Option<usize> {
        let values = shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n))?;
        match self {
            Self::F32 => values.checked_mul(4),
            Self::F16 | Self::Bf16 | Self::Int16 { .. } => values.checked_mul(2),
            Self::Int8 { scales } => (scales.len() == *shape.first()?).then_some(values),
            Self::Blocks(format) => {
                let row = shape.last()?;
                let whole = row.is_multiple_of(format.values());
                whole.then(|| (values / format.values()).checked_mul(format.bytes())).flatten()
            }
            Self::Unsupported(_) => None,
        }
    }
}

impl Weights {
    /// The tensors, after a check that each of [`Config::tensors`] is complete and has its shape.
    pub(super) fn checked(
        home: PathBuf,
        files: Vec<MappedFile>,
        tensors: HashMap<String, StoredTensor>,
        config: &Config,
    ) -> Result<Self, CheckpointError> {
        let weights = Self { home, files, tensors };
        for (name, expected) in config.tensors() {
            let Some(stored) = weights.tensors.get(&name) else {
                return Err(CheckpointError::MissingTensor { path: weights.home, tensor: name, expected });
            };

            let path = || weights.files.get(stored.file).map_or_else(|| weights.home.clone(), |f| f.path.clone());
            if stored.shape != expected {
                let (tensor, found) = (stored.name.clone(), stored.shape.clone());
                return Err(CheckpointError::Shape { path: path(), tensor, expected, found });
            }

            if let Encoding::Unsupported(found) = &stored.encoding {
                let (tensor, found) = (stored.name.clone(), found.clone());
                return Err(CheckpointError::Dtype { path: path(), tensor, found });
            }

            let needed = stored.encoding.encoded_bytes(&stored.shape);
            if needed != Some(stored.bytes.len()) {
                let needed = needed.map_or_else(|| "another shape".to_owned(), |n| format!("{n} bytes"));
                let (shape, found) = (&stored.shape, stored.bytes.len());
                let problem = format!("of shape {shape:?} needs {needed}, the file has {found} bytes");
                return Err(CheckpointError::malformed(&path())(MalformedFile::tensor(&stored.name, problem)));
            }
        }

        Ok(weights)
    }

    /// A tensor of [`Config::tensors`], by its name without the `model.` prefix.
    pub fn tensor(&self, name: &str) -> Result<CheckpointTensor<'_>, CheckpointError> {
        self.find(name).ok_or_else(|| {
            let (path, tensor) = (self.home.clone(), name.to_owned());
            CheckpointError::MissingTensor { path, tensor, expected: Vec::new() }
        })
    }

    fn find(&self, name: &str) -> Option<CheckpointTensor<'_>> {
        let stored = self.tensors.get(name)?;
        let file = self.files.get(stored.file)?;
        let bytes = file.map.get(stored.bytes.clone())?;
        let StoredTensor { name, shape, encoding, .. } = stored;
        Some(CheckpointTensor { name, path: &file.path, encoding, shape, bytes })
    }
}

impl<'a> CheckpointTensor<'a> {
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

    /// Reads the values `start..start + out.len()` in storage order (the last dimension varies fastest).
    pub fn read(&self, start: usize, out: &mut [f32]) -> Result<(), CheckpointError> {
        let count = out.len();
        let ended = || {
            let problem = format!("ends before value {}", start.saturating_add(count));
            CheckpointError::malformed(self.path)(MalformedFile::tensor(self.name, problem))
        };

        let end = start.checked_add(count).filter(|end| *end <= self.len()).ok_or_else(ended)?;
        let bytes = |width: usize| self.bytes.get(start * width..end * width).ok_or_else(ended);

        match self.encoding {
            Encoding::F32 => convert(bytes(4)?, out, f32::from_le_bytes),
            Encoding::F16 => convert(bytes(2)?, out, |b| f16::from_le_bytes(b).to_f32()),
            Encoding::Bf16 => convert(bytes(2)?, out, |b| bf16::from_le_bytes(b).to_f32()),
            Encoding::Int16 { scale } => convert(bytes(2)?, out, |b| f32::from(i16::from_le_bytes(b)) / scale),
            Encoding::Int8 { scales } => {
                let row = (self.len() / scales.len().max(1)).max(1);
                for ((value, byte), index) in out.iter_mut().zip(bytes(1)?).zip(start..) {
                    let scale = scales.get(index / row).copied().unwrap_or(f32::NAN);
                    *value = f32::from(byte.cast_signed()) / scale;
                }
            }
            Encoding::Blocks(format) => format.decode(self.bytes, start, out).ok_or_else(ended)?,
            Encoding::Unsupported(found) => {
                let (path, tensor) = (self.path.to_owned(), self.name.to_owned());
                return Err(CheckpointError::Dtype { path, tensor, found: found.clone() });
            }
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
    // SAFETY: the map is read only. If another process rewrites the checkpoint during the install, the weights are wrong or
    // the process gets SIGBUS, as with every reader of such files; reading 3 GB into memory instead is not affordable.
    unsafe { Mmap::map(file) }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], from: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = from(*chunk);
    }
}
