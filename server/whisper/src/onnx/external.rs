//! The weights file that the graphs of a model share. Written as a stream: a tensor is never held whole unless its
//! transposition needs it.

use std::collections::HashMap;
use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::Element;

/// Tensors begin on a page of their own, so that they can be mapped one by one.
const PAGE: u64 = 4096;

/// Where a tensor lies in the weights file.
#[derive(Clone, Debug)]
pub struct Placed {
    pub element: Element,
    pub shape: Vec<usize>,
    pub offset: u64,
    pub length: u64,
}

#[derive(Clone, Debug)]
pub struct WeightsSummary {
    pub bytes: u64,
    pub sha256: String,
}

/// What [`WeightsFile::add`] gives to the code that writes a tensor's values.
pub type Fill<'a> = &'a mut dyn Write;

pub struct WeightsFile<'a> {
    sink: Sink<'a>,
    /// Bytes written, or planned.
    length: u64,
    hash: Sha256,
    placed: HashMap<String, Placed>,
}

enum Sink<'a> {
    /// Only adds up: nothing is read and nothing is written.
    Plan,
    Write {
        out: &'a mut dyn Write,
        progress: &'a mut dyn FnMut(u64),
    },
}

impl<'a> WeightsFile<'a> {
    /// Name of the file, as the graphs refer to it.
    pub const NAME: &'static str = "weights.bin";

    /// A file that is not written, to learn its length.
    pub fn plan() -> Self {
        Self::with(Sink::Plan)
    }

    /// `progress` hears the bytes written so far.
    pub fn write(out: &'a mut dyn Write, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self::with(Sink::Write { out, progress })
    }

    fn with(sink: Sink<'a>) -> Self {
        Self { sink, length: 0, hash: Sha256::new(), placed: HashMap::new() }
    }

    pub fn planned_bytes(&self) -> u64 {
        self.length
    }

    /// The place of tensor `name`, which `fill` writes if it is not there yet.
    pub fn add<E: From<io::Error>>(
        &mut self,
        name: &str,
        element: Element,
        shape: &[usize],
        fill: impl FnOnce(Fill<'_>) -> Result<(), E>,
    ) -> Result<Placed, E> {
        if let Some(placed) = self.placed.get(name) {
            return Ok(placed.clone());
        }
        let length = (shape.iter().product::<usize>() * element.bytes()) as u64;
        self.pad()?;
        let offset = self.length;
        if matches!(self.sink, Sink::Plan) {
            self.length += length;
        } else {
            fill(self)?;
        }
        if self.length - offset != length {
            let written = self.length - offset;
            return Err(io::Error::other(format!("tensor `{name}`: {written} bytes written, not {length}")).into());
        }
        let placed = Placed { element, shape: shape.to_vec(), offset, length };
        self.placed.insert(name.to_owned(), placed.clone());
        Ok(placed)
    }

    fn pad(&mut self) -> io::Result<()> {
        let gap = self.length.next_multiple_of(PAGE) - self.length;
        if matches!(self.sink, Sink::Plan) {
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
        let Sink::Write { out, progress } = &mut self.sink else { return Ok(bytes.len()) };
        out.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        progress(self.length);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::Plan => Ok(()),
            Sink::Write { out, .. } => out.flush(),
        }
    }
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
