//! Log-mel to cross-attention keys and values, one window at a time.

use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, TensorElementType, ValueType},
};

use super::device::encoder::DeviceEncoder;
use crate::checkpoint::Config;

/// Cross-attention keys or values: an output of the encoder that is an input of the decoder, for one window or for
/// several, `[windows, ...]`.
pub struct CrossTensor {
    pub name: String,
    pub tensor: DynTensor,
}

/// Name, element type and shape of a [`CrossTensor`] for one window.
#[derive(Clone)]
pub struct CrossShape {
    pub name: String,
    pub element: TensorElementType,
    /// Without the number of windows.
    pub shape: Vec<usize>,
}

/// The encoder's session and the buffers of its calls.
pub enum Encoder {
    Host(HostEncoder),
    Device(DeviceEncoder),
}

impl Encoder {
    /// The tensors that the encoder computes for one window.
    pub fn cross_shapes(&self) -> Vec<CrossShape> {
        let session = match self {
            Self::Host(encoder) => &encoder.session,
            Self::Device(encoder) => encoder.session(),
        };

        let outlets = session.outputs().iter().filter(|outlet| outlet.name().starts_with("cross_"));
        let shapes = outlets.filter_map(|outlet| {
            let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return None };
            let shape = shape.iter().skip(1).map(|side| usize::try_from(*side).unwrap_or(1)).collect();
            Some(CrossShape { name: outlet.name().to_owned(), element: *ty, shape })
        });

        shapes.collect()
    }

    /// Encodes one window and writes to `cross`.
    pub fn encode(&mut self, mel: &[f32], cross: &mut [CrossTensor]) -> Result<(), ort::Error> {
        match self {
            Self::Host(encoder) => encoder.encode(mel, cross),
            Self::Device(encoder) => encoder.encode(mel, cross),
        }
    }

    /// The encoder's output for a window, `[frames, width]`, for checks.
    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        match self {
            Self::Host(encoder) => encoder.hidden(mel),
            Self::Device(encoder) => encoder.hidden(mel),
        }
    }
}

pub struct HostEncoder {
    session: Session,
    binding: IoBinding,
    mel: Tensor<f32>,
    hidden_size: usize,
}

impl HostEncoder {
    pub fn new(session: Session, config: &Config) -> Result<Self, ort::Error> {
        let binding = session.create_binding()?;

        let mel = Tensor::<f32>::new(&Allocator::default(), [1, config.num_mel_bins, config.mel_frames()])?;
        let hidden_size = config.max_source_positions * config.d_model;

        Ok(Self { session, binding, mel, hidden_size })
    }

    /// Encodes one window and writes its keys and values to `cross`.
    pub fn encode(&mut self, mel: &[f32], cross: &mut [CrossTensor]) -> Result<(), ort::Error> {
        self.set_input(mel)?;

        // ort copies the input to the session's device when it is bound.
        self.binding.bind_input("mel", &self.mel)?;
        for CrossTensor { name, tensor } in cross {
            self.binding.bind_output(&*name, tensor)?;
        }

        self.session.run_binding(&self.binding)?;

        Ok(())
    }

    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        self.set_input(mel)?;
        let outputs = self.session.run(ort::inputs!["mel" => &self.mel])?;
        let (_, hidden) = outputs["hidden"].try_extract_tensor::<f32>()?;

        debug_assert_eq!(hidden.len(), self.hidden_size);
        Ok(hidden.to_vec())
    }

    fn set_input(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        let (shape, into) = self.mel.try_extract_tensor_mut::<f32>()?;
        if into.len() != mel.len() {
            return Err(ort::Error::new(format!("a window of {} values does not fill {shape}", mel.len())));
        }

        into.copy_from_slice(mel);
        Ok(())
    }
}
