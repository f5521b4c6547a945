//! Log-mel to keys and values on the device: the window is copied from pinned memory, and the host does not wait for the
//! result.

use ort::{
    memory::MemoryInfo,
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, TensorElementType},
};

use super::{
    DeviceContext,
    memory::{CudaEvent, DeviceBuffer, PinnedMemory},
    run_bound, run_options,
};
use crate::engine::encoder::{CrossTensor, WindowLengths};

pub struct DeviceEncoder {
    // Dropped before the context, whose stream and weights the session uses.
    session: Session,
    binding: IoBinding,
    options: RunOptions,
    context: DeviceContext,
    /// Whether the stream already waits for the encoder's weights.
    has_weights: bool,
    mel: DeviceBuffer,
    host_mel: PinnedMemory,
    /// Recorded after the last copy from `host_mel`.
    mel_copied: CudaEvent,
    lengths: WindowLengths,
    model_width: usize,
    /// Positions of the window that is bound.
    bound_positions: usize,
}

impl DeviceEncoder {
    pub fn new(
        session: Session,
        context: DeviceContext,
        lengths: WindowLengths,
        model_width: usize,
    ) -> Result<Self, ort::Error> {
        let mel_bytes = 4 * mel_shape(lengths, lengths.longest).iter().product::<usize>();
        let mel = DeviceBuffer::new(context.cuda.clone(), mel_bytes)?;

        Ok(Self {
            binding: session.create_binding()?,
            options: run_options(None)?,
            mel,
            host_mel: PinnedMemory::new(context.cuda.clone(), mel_bytes)?,
            mel_copied: CudaEvent::new(context.cuda.clone())?,
            lengths,
            model_width,
            bound_positions: 0,
            session,
            context,
            has_weights: false,
        })
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Encodes one window; its keys and values are written to `cross` when the stream executes the call.
    pub fn encode(&mut self, mel: &[f32], cross: &mut [CrossTensor]) -> Result<(), ort::Error> {
        let positions = self.copy_input(mel)?;
        if self.bound_positions != positions {
            self.binding.bind_input("mel", &self.mel_view(positions)?)?;
            self.bound_positions = positions;
        }

        for CrossTensor { name, tensor } in cross {
            self.binding.bind_output(&*name, tensor)?;
        }
        run_bound(&mut self.session, &self.options, &self.binding)
    }

    /// The encoder's output for a window, `[frames, width]`, for checks.
    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        let positions = self.copy_input(mel)?;

        let info = self.context.memory_info()?;
        let shape = [1, positions, self.model_width];
        let values: usize = shape.iter().product();
        let device = DeviceBuffer::new(self.context.cuda.clone(), 4 * values)?;
        let mut host = PinnedMemory::new(self.context.cuda.clone(), 4 * values)?;

        // A separate binding, because the outputs of the other one are bound to the KV slot of a window.
        let mut binding = self.session.create_binding()?;
        binding.bind_input("mel", &self.mel_view(positions)?)?;
        let mut hidden = device.tensor(&info, TensorElementType::Float32, 0, &shape)?;
        binding.bind_output("hidden", &mut hidden)?;
        run_bound(&mut self.session, &self.options, &binding)?;

        device.copy_to_pinned(0..4 * values, &host, 0, &self.context.stream)?;
        self.context.stream.synchronize()?;

        Ok(host.f32_mut(0, values)?.to_vec())
    }

    fn mel_view(&self, positions: usize) -> Result<DynTensor, ort::Error> {
        let info: MemoryInfo = self.context.memory_info()?;
        self.mel.tensor(&info, TensorElementType::Float32, 0, &mel_shape(self.lengths, positions))
    }

    /// Copies a window's log-mel to the device; returns its positions.
    fn copy_input(&mut self, mel: &[f32]) -> Result<usize, ort::Error> {
        let positions = self.lengths.positions(mel)?;

        self.mel_copied.wait()?;
        self.host_mel.f32_mut(0, mel.len())?.copy_from_slice(mel);
        let stream = &self.context.stream;
        self.mel.copy_from_pinned(0, &self.host_mel, 0..4 * mel.len(), stream)?;
        self.mel_copied.record(stream)?;

        if !self.has_weights {
            self.context.weights.wait_for_encoder(stream)?;
            self.has_weights = true;
        }

        Ok(positions)
    }
}

fn mel_shape(lengths: WindowLengths, positions: usize) -> [usize; 3] {
    [1, lengths.mel_bins, 2 * positions]
}
