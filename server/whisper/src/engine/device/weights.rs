//! The weights of a model on the device: one block, an image of the weights file, which all three graphs read. So the
//! decoder and the align graph share their weights.
//!
//! Threads read pieces of the file into pinned memory, from which the device copies them while the next pieces are read.
//! The encoder's weights come first in the file, so that the first window is encoded while the decoder's are still copied.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use ort::value::{DynTensor, TensorElementType};

use super::{
    cuda_api::CudaApi,
    memory::{CudaEvent, CudaStream, DeviceBuffer, PinnedMemory},
    memory_info,
};
use crate::onnx::{ElementType, PlacedTensor, external_tensors};

/// Bytes of a piece. Each reader has two pieces of pinned memory.
const PIECE_BYTES: usize = 16 << 20;
/// One thread copies some 8 GB/s out of the page cache, and a card accepts 25 GB/s or more.
const READERS: usize = 4;

pub struct DeviceWeights {
    cuda: Arc<CudaApi>,
    memory: Arc<DeviceBuffer>,
    upload: Arc<WeightUpload>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

/// The state that the readers share.
struct WeightUpload {
    stream: CudaStream,
    progress: Mutex<UploadProgress>,
    changed: Condvar,
    cancelled: AtomicBool,
    /// The next piece to read.
    next: AtomicUsize,
    pieces: usize,
    /// Pieces that the encoder needs.
    encoder_pieces: usize,
    /// Recorded after the copies of the encoder's pieces.
    encoder_copied: CudaEvent,
    /// Recorded after the copies of all pieces.
    all_copied: CudaEvent,
}

#[derive(Default)]
struct UploadProgress {
    /// Pieces of the encoder whose copies are in the stream.
    encoder_submitted: usize,
    /// Pieces whose copies are in the stream.
    submitted: usize,
    failure: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum WeightUploadError {
    #[error("{path}: {source}")]
    Read { path: String, source: io::Error },
    #[error(transparent)]
    Cuda(#[from] super::cuda_api::CudaCallError),
}

impl DeviceWeights {
    /// Begins to copy the weights file. The encoder's weights are before the byte `encoder_bytes`.
    pub fn begin(cuda: Arc<CudaApi>, path: &Path, encoder_bytes: u64) -> Result<Self, WeightUploadError> {
        let failed = |source| WeightUploadError::Read { path: path.display().to_string(), source };
        let file = Arc::new(File::open(path).map_err(failed)?);
        let bytes = usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
        let memory = Arc::new(DeviceBuffer::new(cuda.clone(), bytes)?);

        let pieces = bytes.div_ceil(PIECE_BYTES);
        let encoder_pieces = (usize::try_from(encoder_bytes).unwrap_or(bytes)).div_ceil(PIECE_BYTES).min(pieces);
        let upload = Arc::new(WeightUpload {
            stream: CudaStream::new(cuda.clone())?,
            progress: Mutex::default(),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            pieces,
            encoder_pieces,
            encoder_copied: CudaEvent::new(cuda.clone())?,
            all_copied: CudaEvent::new(cuda.clone())?,
        });

        let mut readers = Vec::new();

        for index in 0..READERS.min(pieces) {
            let (cuda, memory, file, upload) = (cuda.clone(), memory.clone(), file.clone(), upload.clone());
            let name = path.display().to_string();
            let read = move || {
                if let Err(error) = upload.run_reader(&cuda, &memory, &file, bytes, &name) {
                    upload.fail(error.to_string());
                }
            };

            readers.push(thread::Builder::new().name(format!("weights-{index}")).spawn(read).map_err(failed)?);
        }

        Ok(Self { cuda, memory, upload, readers: Mutex::new(readers) })
    }

    /// The initialisers of a graph as tensors on the device. Their content may not be copied yet.
    pub fn initialisers(&self, graph: &Path) -> Result<HashMap<String, DynTensor>, ort::Error> {
        let info = memory_info(self.cuda.device())?;

        let tensors = external_tensors(graph).map_err(|error| ort::Error::new(error.to_string()))?;
        let view = |(name, placed): (String, PlacedTensor)| {
            let offset = usize::try_from(placed.offset).unwrap_or(usize::MAX);
            let tensor = self.memory.tensor(&info, element(placed.element), offset, &placed.shape)?;
            Ok((name, tensor))
        };

        tensors.into_iter().map(view).collect()
    }

    /// Makes later operations of `stream` see the encoder's weights. Waits until their copies are in the upload's stream.
    pub fn wait_for_encoder(&self, stream: &CudaStream) -> Result<(), ort::Error> {
        let upload = &self.upload;
        upload.wait_until(|progress| progress.encoder_submitted >= upload.encoder_pieces)?;
        Ok(stream.wait_for(&upload.encoder_copied)?)
    }

    /// Makes later operations of `stream` see all weights. Waits until their copies are in the upload's stream.
    pub fn wait_for_decoder(&self, stream: &CudaStream) -> Result<(), ort::Error> {
        let upload = &self.upload;
        upload.wait_until(|progress| progress.submitted >= upload.pieces)?;
        Ok(stream.wait_for(&upload.all_copied)?)
    }

    /// Waits until all weights are on the device.
    pub fn wait_until_copied(&self) -> Result<(), ort::Error> {
        let upload = &self.upload;
        upload.wait_until(|progress| progress.submitted >= upload.pieces)?;
        Ok(upload.all_copied.wait()?)
    }
}

impl Drop for DeviceWeights {
    fn drop(&mut self) {
        self.upload.cancelled.store(true, Ordering::Relaxed);

        for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A failure was already stored for those who wait for the weights.
            let _ = reader.join();
        }

        // Copies in the stream still read pinned memory and write this block.
        let _ = self.upload.stream.synchronize();
    }
}

impl WeightUpload {
    /// Reads and submits pieces until none is left.
    fn run_reader(
        &self,
        cuda: &Arc<CudaApi>,
        memory: &DeviceBuffer,
        file: &File,
        bytes: usize,
        name: &str,
    ) -> Result<(), ort::Error> {
        cuda.use_device()?;
        let size = PIECE_BYTES.min(bytes);
        let mut buffers = [0, 1].map(|_| None::<(PinnedMemory, CudaEvent)>);

        for index in (0..2).cycle() {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces || self.cancelled.load(Ordering::Relaxed) {
                break;
            }

            let buffer = &mut buffers[index];
            let (pinned, copied) = match buffer {
                Some(buffer) => buffer,
                none => none.insert((PinnedMemory::new(cuda.clone(), size)?, CudaEvent::new(cuda.clone())?)),
            };

            // The copy of the piece before the last one must have read the buffer.
            copied.wait()?;

            let start = piece * PIECE_BYTES;
            let length = PIECE_BYTES.min(bytes - start);
            let read = file.read_exact_at(&mut pinned.bytes_mut()[..length], start as u64);
            read.map_err(|source| ort::Error::new(format!("{name}: {source}")))?;

            self.submit(piece, || {
                memory.copy_from_pinned(start, pinned, 0..length, &self.stream)?;
                Ok(copied.record(&self.stream)?)
            })?;
        }

        // The buffers must not be freed before their copies are executed.
        for (_, copied) in buffers.iter().flatten() {
            copied.wait()?;
        }

        Ok(())
    }

    /// Puts the copy of a piece into the stream, and records an event after the last piece of the encoder and of all.
    fn submit(&self, piece: usize, copy: impl FnOnce() -> Result<(), ort::Error>) -> Result<(), ort::Error> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        copy()?;
        progress.submitted += 1;

        if piece < self.encoder_pieces {
            progress.encoder_submitted += 1;
            if progress.encoder_submitted == self.encoder_pieces {
                self.encoder_copied.record(&self.stream)?;
            }
        }

        if progress.submitted == self.pieces {
            self.all_copied.record(&self.stream)?;
        }

        drop(progress);
        self.changed.notify_all();

        Ok(())
    }

    fn fail(&self, failure: String) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).failure.get_or_insert(failure);
        self.cancelled.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn wait_until(&self, done: impl Fn(&UploadProgress) -> bool) -> Result<(), ort::Error> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);

        loop {
            if let Some(failure) = &progress.failure {
                return Err(ort::Error::new(format!("copying the weights to the device failed: {failure}")));
            }
            if done(&progress) {
                return Ok(());
            }
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn element(element: ElementType) -> TensorElementType {
    match element {
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::I32 => TensorElementType::Int32,
        ElementType::I64 => TensorElementType::Int64,
        ElementType::I8 => TensorElementType::Int8,
        ElementType::U8 => TensorElementType::Uint8,
    }
}
