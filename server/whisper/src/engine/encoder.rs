//! Log-mel to cross-attention keys and values, one window at a time.

use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, TensorElementType, ValueType},
};

use super::device::encoder::DeviceEncoder;
use crate::graph::STEP_POSITIONS;

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
    /// Without the number of windows, for the longest window.
    pub shape: Vec<usize>,
    /// The side of `shape` that is shorter for a shorter window; `None` for the same shape always.
    pub positions_axis: Option<usize>,
}

impl CrossShape {
    /// The shape for a window with so many positions.
    pub fn with_positions(&self, positions: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(side) = self.positions_axis.and_then(|axis| shape.get_mut(axis)) {
            *side = positions;
        }
        shape
    }
}

/// The lengths of windows that the graphs of a model accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLengths {
    pub mel_bins: usize,
    /// Positions of a window of 30 s; the mel has twice as many frames.
    pub longest: usize,
    /// Whether shorter windows are accepted: graphs of older installs have a fixed length.
    pub accepts_shorter: bool,
    /// Whether the decoder has the input `cross_last_frame`.
    pub has_last_frame: bool,
}

impl WindowLengths {
    /// Positions of a window with this log-mel, `[bins, frames]`.
    pub fn positions(&self, mel: &[f32]) -> Result<usize, ort::Error> {
        let Self { mel_bins, longest, accepts_shorter, .. } = *self;
        let positions = mel.len() / (2 * mel_bins).max(1);
        let is_step = accepts_shorter && positions > 0 && positions.is_multiple_of(STEP_POSITIONS);
        if positions * 2 * mel_bins != mel.len() || positions > longest || (positions < longest && !is_step) {
            let problem =
                format!("a window of {} values does not fill {mel_bins} bins of {longest} positions", mel.len());
            return Err(ort::Error::new(problem));
        }
        Ok(positions)
    }
}

/// The encoder's session and the buffers of its calls.
pub enum Encoder {
    Host(HostEncoder),
    Device(DeviceEncoder),
}

impl Encoder {
    /// The tensors that the encoder computes for one window. `longest`: positions of a window of 30 s.
    pub fn cross_shapes(&self, longest: usize) -> Vec<CrossShape> {
        let session = match self {
            Self::Host(encoder) => &encoder.session,
            Self::Device(encoder) => encoder.session(),
        };

        let outlets = session.outputs().iter().filter(|outlet| outlet.name().starts_with("cross_"));
        let shapes = outlets.filter_map(|outlet| {
            let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return None };
            let sides = shape.iter().skip(1);
            let shape = sides.clone().map(|side| usize::try_from(*side).unwrap_or(longest)).collect();
            let positions_axis = sides.clone().position(|side| *side < 0);
            Some(CrossShape { name: outlet.name().to_owned(), element: *ty, shape, positions_axis })
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
    lengths: WindowLengths,
    mel: Tensor<f32>,
}

impl HostEncoder {
    pub fn new(session: Session, lengths: WindowLengths) -> Result<Self, ort::Error> {
        let binding = session.create_binding()?;
        let mel = mel_tensor(lengths, lengths.longest)?;

        Ok(Self { session, binding, lengths, mel })
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

        Ok(hidden.to_vec())
    }

    fn set_input(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        let positions = self.lengths.positions(mel)?;
        if self.mel.extract_tensor().1.len() != mel.len() {
            self.mel = mel_tensor(self.lengths, positions)?;
        }

        self.mel.extract_tensor_mut().1.copy_from_slice(mel);
        Ok(())
    }
}

fn mel_tensor(lengths: WindowLengths, positions: usize) -> Result<Tensor<f32>, ort::Error> {
    Tensor::<f32>::new(&Allocator::default(), [1, lengths.mel_bins, 2 * positions])
}
