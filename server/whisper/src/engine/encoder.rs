//! Log-mel to the cross-attention's keys and values, one window at a time.

use ort::{
    memory::Allocator,
    session::{IoBinding, Session},
    value::{DynTensor, Tensor, ValueType},
};

use crate::checkpoint::Config;

/// An output of the encoder that is an input of the decoder, and stays in place.
pub struct Cross {
    pub name: String,
    pub tensor: DynTensor,
}

pub struct Encoder {
    session: Session,
    binding: IoBinding,
    mel: Tensor<f32>,
    cross: Vec<Cross>,
    hidden_size: usize,
}

impl Encoder {
    pub fn new(session: Session, config: &Config, memory: &Allocator) -> Result<Self, ort::Error> {
        let mut binding = session.create_binding()?;
        let mel = Tensor::<f32>::new(&Allocator::default(), [1, config.num_mel_bins, config.mel_frames()])?;
        let mut cross = Vec::new();
        for outlet in session.outputs().iter().filter(|outlet| outlet.name().starts_with("cross_")) {
            let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { continue };
            // What has no fixed size is the number of windows.
            let shape: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).unwrap_or(1)).collect();
            let mut tensor = DynTensor::new(memory, *ty, shape)?;
            binding.bind_output(outlet.name(), &mut tensor)?;
            cross.push(Cross { name: outlet.name().to_owned(), tensor });
        }
        let hidden_size = config.max_source_positions * config.d_model;
        Ok(Self { session, binding, mel, cross, hidden_size })
    }

    /// Where the keys and values of the last window lie. Exclusive, because some graphs want them bound as outputs too.
    pub fn cross(&mut self) -> &mut [Cross] {
        &mut self.cross
    }

    pub fn encode(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        self.hear(mel)?;
        // Bound anew each time: on a GPU that is what copies it.
        self.binding.bind_input("mel", &self.mel)?;
        self.session.run_binding(&self.binding)?;
        Ok(())
    }

    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        self.hear(mel)?;
        let outputs = self.session.run(ort::inputs!["mel" => &self.mel])?;
        let (_, hidden) = outputs["hidden"].try_extract_tensor::<f32>()?;
        debug_assert_eq!(hidden.len(), self.hidden_size);
        Ok(hidden.to_vec())
    }

    fn hear(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        let (shape, into) = self.mel.try_extract_tensor_mut::<f32>()?;
        if into.len() != mel.len() {
            return Err(ort::Error::new(format!("a window of {} values does not fill {shape}", mel.len())));
        }
        into.copy_from_slice(mel);
        Ok(())
    }
}
