//! Log-mel to keys and values on the device: the window is copied from pinned memory, and the host does not wait for the
//! result.

use ort::{
    memory::MemoryInfo,
    session::{IoBinding, RunOptions, Session},
    value::TensorElementType,
};

use super::{
    DeviceContext,
    memory::{CudaEvent, DeviceBuffer, PinnedMemory},
    run_bound, run_options,
};
use crate::{checkpoint::Config, engine::encoder::CrossTensor};

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
    hidden_shape: [usize; 3],
    mel_shape: [usize; 3],
}

impl DeviceEncoder {
    pub fn new(session: Session, context: DeviceContext, config: &Config) -> Result<Self, ort::Error> {
        let info: MemoryInfo = context.memory_info()?;

        let mel_shape = [1, config.num_mel_bins, config.mel_frames()];
        let hidden_shape = [1, config.max_source_positions, config.d_model];
        let mel_bytes = 4 * mel_shape.iter().product::<usize>();
        let mel = DeviceBuffer::new(context.cuda.clone(), mel_bytes)?;

        let mut binding = session.create_binding()?;
        binding.bind_input("mel", &mel.tensor(&info, TensorElementType::Float32, 0, &mel_shape)?)?;

        Ok(Self {
            binding,
            options: run_options(None)?,
            mel,
            host_mel: PinnedMemory::new(context.cuda.clone(), mel_bytes)?,
            mel_copied: CudaEvent::new(context.cuda.clone())?,
            hidden_shape,
            mel_shape,
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
        self.copy_input(mel)?;
        for CrossTensor { name, tensor } in cross {
            self.binding.bind_output(&*name, tensor)?;
        }
        run_bound(&mut self.session, &self.options, &self.binding)
    }

    /// The encoder's output for a window, `[frames, width]`, for checks.
    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        self.copy_input(mel)?;

        let info = self.context.memory_info()?;
        let values: usize = self.hidden_shape.iter().product();
        let device = DeviceBuffer::new(self.context.cuda.clone(), 4 * values)?;
        let mut host = PinnedMemory::new(self.context.cuda.clone(), 4 * values)?;

        // A separate binding, because the outputs of the other one are bound to the KV slot of a window.
        let mut binding = self.session.create_binding()?;
        binding.bind_input("mel", &self.mel.tensor(&info, TensorElementType::Float32, 0, &self.mel_shape)?)?;
        let mut hidden = device.tensor(&info, TensorElementType::Float32, 0, &self.hidden_shape)?;
        binding.bind_output("hidden", &mut hidden)?;
        run_bound(&mut self.session, &self.options, &binding)?;

        device.copy_to_pinned(0..4 * values, &host, 0, &self.context.stream)?;
        self.context.stream.synchronize()?;

        Ok(host.f32_mut(0, values)?.to_vec())
    }

    /// Copies a window's log-mel to the device.
    fn copy_input(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        let expected: usize = self.mel_shape.iter().product();
        if mel.len() != expected {
            return Err(ort::Error::new(format!("a window of {} values, expected {expected}", mel.len())));
        }

        self.mel_copied.wait()?;
        self.host_mel.f32_mut(0, mel.len())?.copy_from_slice(mel);
        let stream = &self.context.stream;
        self.mel.copy_from_pinned(0, &self.host_mel, 0..4 * mel.len(), stream)?;
        self.mel_copied.record(stream)?;

        if !self.has_weights {
            self.context.weights.wait_for_encoder(stream)?;
            self.has_weights = true;
        }

        Ok(())
    }
}
