//! The weights file of a model's graphs. It is written as a stream: a tensor is held whole only if it is transposed.

use std::collections::HashMap;
use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::ElementType;

/// Each tensor begins on a new page, so that tensors can be mapped one by one.
const PAGE: u64 = 4096;

/// Position and type of a tensor in the weights file.
#[derive(Clone, Debug)]
pub struct PlacedTensor {
    pub element: ElementType,
    pub shape: Vec<usize>,
    pub offset: u64,
    pub length: u64,
}

/// Length and digest of a finished weights file.
#[derive(Clone, Debug)]
pub struct WeightsSummary {
    pub bytes: u64,
    pub sha256: String,
}

/// Receives the values of a tensor in [`WeightsFile::add`].
pub type TensorWriter<'a> = &'a mut dyn Write;

/// Writes the weights file, or plans its length.
pub struct WeightsFile<'a> {
    sink: WeightsOutput<'a>,
    /// Bytes that are written or planned.
    length: u64,
    hash: Sha256,
    placed: HashMap<String, PlacedTensor>,
}

enum WeightsOutput<'a> {
    /// Only the length is computed: nothing is read or written.
    Plan,
    Write {
        out: &'a mut dyn Write,
        progress: &'a mut dyn FnMut(u64),
    },
}

impl<'a> WeightsFile<'a> {
    /// The name of the file, to which the graphs refer.
    pub const NAME: &'static str = "weights.bin";

    /// Plans a file without writing it, to compute its length.
    pub fn plan() -> Self {
        Self::with(WeightsOutput::Plan)
    }

    /// Writes a file; `progress` is called with the bytes written so far.
    pub fn write(out: &'a mut dyn Write, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self::with(WeightsOutput::Write { out, progress })
    }

    fn with(sink: WeightsOutput<'a>) -> Self {
        Self { sink, length: 0, hash: Sha256::new(), placed: HashMap::new() }
    }

    pub fn planned_bytes(&self) -> u64 {
        self.length
    }

    /// The position of tensor `name`. If the file does not contain it yet, `fill` writes it.
    pub fn add<E: From<io::Error>>(
        &mut self,
        name: &str,
        element: ElementType,
        shape: &[usize],
        fill: impl FnOnce(TensorWriter<'_>) -> Result<(), E>,
    ) -> Result<PlacedTensor, E> {
        if let Some(placed) = self.placed.get(name) {
            return Ok(placed.clone());
        }

        let length = (shape.iter().product::<usize>() * element.bytes()) as u64;
        self.pad()?;
        let offset = self.length;
        if matches!(self.sink, WeightsOutput::Plan) {
            self.length += length;
        } else {
            fill(self)?;
        }

        if self.length - offset != length {
            let written = self.length - offset;
            return Err(io::Error::other(format!("tensor `{name}`: {written} bytes written, not {length}")).into());
        }

        let placed = PlacedTensor { element, shape: shape.to_vec(), offset, length };
        self.placed.insert(name.to_owned(), placed.clone());
        Ok(placed)
    }

    fn pad(&mut self) -> io::Result<()> {
        let gap = self.length.next_multiple_of(PAGE) - self.length;
        if matches!(self.sink, WeightsOutput::Plan) {
            self.length += gap;
            return Ok(());
        }

        let zeros = [0; PAGE as usize];
        self.write_all(&zeros[..gap as usize])
    }

    pub fn finish(self) -> WeightsSummary {
        WeightsSummary { bytes: self.length, sha256: hex(&self.hash.finalize()) }
    }
}

impl Write for WeightsFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let WeightsOutput::Write { out, progress } = &mut self.sink else { return Ok(bytes.len()) };
        out.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        progress(self.length);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            WeightsOutput::Plan => Ok(()),
            WeightsOutput::Write { out, .. } => out.flush(),
        }
    }
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
