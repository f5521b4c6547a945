//! Silero's network on ONNX Runtime. It always runs on the CPU, where one thread processes an hour of audio in some twenty
//! seconds.

use std::{
    io,
    path::{Path, PathBuf},
};

use ort::{
    session::{Session, builder::GraphOptimizationLevel},
    value::Tensor,
};

use super::WINDOW_SAMPLES;
use crate::runtime::{self, RuntimeError, SPIN_MICROSECONDS};

/// The environment variable with the path of the model's file, for a runner.
pub const PATH_VARIABLE: &str = "HUSH_VAD_MODEL";
/// Name of the model's file in the usual folders.
pub const FILE: &str = "silero_vad.onnx";
/// The origin of the file.
pub const SOURCE: &str = "silero_vad/data/silero_vad_16k_sequence.onnx of the package silero-vad on PyPI";

/// Samples from the end of the previous window that are part of each input.
const CONTEXT_SAMPLES: usize = 64;
const INPUT_SAMPLES: usize = CONTEXT_SAMPLES + WINDOW_SAMPLES;
const STATE: usize = 128;

#[derive(Debug, thiserror::Error)]
pub enum VadError {
    #[error(
        "voice activity detection needs Silero's model, which is not installed; `make vad` fetches it into .hush/lib, \
         and --vad-model or HUSH_VAD_MODEL names it elsewhere"
    )]
    NoModel,
    #[error("opening {}: {source}; it must be {SOURCE}", path.display())]
    Open { path: PathBuf, source: ort::Error },
    #[error("opening {}: a model with the inputs {inputs}; it must be {SOURCE}", path.display())]
    WrongModel { path: PathBuf, inputs: String },
    #[error(transparent)]
    NotReady(#[from] RuntimeError),
    #[error("reading the audio failed: {0}")]
    Source(#[from] io::Error),
    #[error("cancelled")]
    Cancelled,
    #[error("voice activity detection failed: {0}")]
    TranscriptionRun(#[from] ort::Error),
}

/// The network, and its state after the audio so far.
pub struct SpeechModel {
    session: Session,
    outputs: [String; 3],
    state: [Vec<f32>; 2],
    /// The windows of a call, each after its context.
    input: Vec<f32>,
    context: [f32; CONTEXT_SAMPLES],
}

impl SpeechModel {
    /// `threads`: those of a call. Most of the work is convolutions over the windows of a call, which share it.
    pub fn open(path: &Path, threads: usize) -> Result<Self, VadError> {
        let environment = runtime::environment()?;
        let open = || -> Result<Session, ort::Error> {
            Session::builder(&environment)?
                .with_optimization_level(GraphOptimizationLevel::Level3)?
                .with_intra_threads(threads)?
                .with_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)?
                .commit_from_file(path)
        };

        let session = open().map_err(|source| VadError::Open { path: path.to_owned(), source })?;
        let inputs: Vec<&str> = session.inputs().iter().map(|input| input.name()).collect();
        let outputs: Vec<String> = session.outputs().iter().map(|output| output.name().to_owned()).collect();
        let (["input", "h", "c"], Ok(outputs)) = (inputs.as_slice(), <[String; 3]>::try_from(outputs)) else {
            return Err(VadError::WrongModel { path: path.to_owned(), inputs: inputs.join(", ") });
        };

        let state = [vec![0.0; STATE], vec![0.0; STATE]];

        Ok(Self { session, outputs, state, input: Vec::new(), context: [0.0; CONTEXT_SAMPLES] })
    }

    /// Resets the state for another recording.
    pub fn reset(&mut self) {
        self.state.iter_mut().for_each(|state| state.fill(0.0));
        self.context.fill(0.0);
        self.input.clear();
    }

    /// The probability of speech in each window of `samples`; an incomplete last window is filled with silence. All
    /// samples of a recording must be passed in order.
    pub fn probabilities(&mut self, samples: &[f32]) -> Result<Vec<f32>, VadError> {
        let windows = samples.len().div_ceil(WINDOW_SAMPLES);
        if windows == 0 {
            return Ok(Vec::new());
        }

        self.input.clear();

        for window in samples.chunks(WINDOW_SAMPLES) {
            self.input.extend_from_slice(&self.context);

            // A NaN or an infinity would stay in the state for the rest of the recording.
            self.input.extend(window.iter().map(|sample| if sample.is_finite() { *sample } else { 0.0 }));
            let filled = self.input.len().next_multiple_of(INPUT_SAMPLES);
            self.input.resize(filled, 0.0);
            self.context.copy_from_slice(&self.input[filled - CONTEXT_SAMPLES..]);
        }

        let [hidden, cell] = self.state.clone();
        let inputs = ort::inputs![
            "input" => Tensor::from_array(([windows, INPUT_SAMPLES], self.input.clone()))?,
            "h" => Tensor::from_array(([1, 1, STATE], hidden))?,
            "c" => Tensor::from_array(([1, 1, STATE], cell))?,
        ];

        let outputs = self.session.run(inputs)?;
        let read = |name: &str| Ok::<_, ort::Error>(outputs[name].try_extract_tensor::<f32>()?.1.to_vec());
        let [probabilities, hidden, cell] = &self.outputs;
        let state = [read(hidden)?, read(cell)?];
        let probabilities = read(probabilities)?;

        if probabilities.len() != windows || state.iter().any(|state| state.len() != STATE) {
            let problem = format!("{} probabilities for {windows} windows", probabilities.len());
            return Err(VadError::TranscriptionRun(ort::Error::new(problem)));
        }

        self.state = state;

        Ok(probabilities)
    }
}
