//! A loaded model: sessions, tokenizer and the buffers that they work on.

mod decoder;
mod encoder;
mod session;
mod speech;

pub use speech::Speech;

use std::{
    io,
    panic::resume_unwind,
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::{
    cuda::{self, CudaError},
    graph::Precision,
    mel::LogMel,
    model_dir::{DECODER, ENCODER, ModelDir, TOKENIZER},
    runtime::{self, RuntimeError},
    tokenizer::{Tokenizer, TokenizerError},
};

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// Fails rather than falling back to the CPU.
    Cuda {
        index: i32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    pub device: Device,
    /// Threads of each session; they do not work at the same time.
    pub threads: usize,
    /// Copies weights into the layout that kernels like best: slower to load, and then faster to run. The decoder of
    /// an 8-bit model always does.
    pub prepack: bool,
    /// Of the device, for each session's arena; `None`: as much as there is.
    pub memory_limit_bytes: Option<u64>,
}

/// Where the time of a load went. The tokenizer is read beside the sessions and is not part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadTimings {
    pub encoder_seconds: f64,
    pub decoder_seconds: f64,
    /// From the first to the last of it: the sessions are created side by side.
    pub total_seconds: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("opening {graph} failed: {source}")]
    Session { graph: &'static str, source: ort::Error },
    #[error("CUDA cannot be used: {missing}")]
    Cuda { missing: CudaError, source: ort::Error },
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    #[error("preparing the buffers failed: {0}")]
    Buffers(#[source] ort::Error),
}

/// A model that listens and writes. One owner, one request at a time.
pub struct Engine {
    pub(crate) mel: LogMel,
    pub(crate) speech: Speech,
    pub(crate) tokenizer: PendingTokenizer,
}

impl Engine {
    /// Creates the sessions; `runtime::init` comes before.
    pub fn load(model: &ModelDir, options: &EngineOptions, timings: &mut LoadTimings) -> Result<Self, LoadError> {
        let environment = runtime::environment()?;
        let started = Instant::now();
        let tokenizer = PendingTokenizer::start(model)?;
        // The kernel of 8-bit blocks needs its weights packed: without, it unpacks all of them at each step.
        let blocks = model.manifest().precision == Precision::Int8;
        let open = |graph: &'static str, prepack: bool| {
            let started = Instant::now();
            let session = session::open(&environment, &model.file(graph), options, prepack)
                .map_err(|source| explain(graph, source, options.device))?;
            Ok::<_, LoadError>((session, started.elapsed().as_secs_f64()))
        };
        let (encoder, decoder) = thread::scope(|scope| {
            let encoder = thread::Builder::new()
                .name("encoder-session".into())
                .spawn_scoped(scope, || open(ENCODER, options.prepack))?;
            let decoder = open(DECODER, options.prepack || blocks);
            let encoder = encoder.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok::<_, LoadError>((encoder?, decoder?))
        })?;
        (timings.encoder_seconds, timings.decoder_seconds) = (encoder.1, decoder.1);
        let speech = Speech::new(encoder.0, decoder.0, model.manifest(), options.device).map_err(LoadError::Buffers)?;
        timings.total_seconds = started.elapsed().as_secs_f64();
        Ok(Self { mel: LogMel::new(model.manifest().config.num_mel_bins), speech, tokenizer })
    }

    /// The forward passes alone, for measurements and checks.
    pub fn speech(&mut self) -> &mut Speech {
        &mut self.speech
    }
}

/// What ONNX Runtime says of CUDA is that it does not work; what is missing has to be looked for.
fn explain(graph: &'static str, source: ort::Error, device: Device) -> LoadError {
    if let Device::Cuda { index } = device
        && let Ok(library) = runtime::library()
        && let Err(missing) = cuda::probe(&library, index)
    {
        return LoadError::Cuda { missing, source };
    }
    LoadError::Session { graph, source }
}

/// A tokenizer that is read on a thread of its own: the first window is encoded before text is needed.
pub(crate) struct PendingTokenizer {
    path: PathBuf,
    reading: Option<JoinHandle<Result<Tokenizer, TokenizerError>>>,
    ready: Option<Tokenizer>,
}

impl PendingTokenizer {
    fn start(model: &ModelDir) -> io::Result<Self> {
        let path = model.file(TOKENIZER);
        let reading = {
            let path = path.clone();
            thread::Builder::new().name("tokenizer".into()).spawn(move || Tokenizer::open(&path))?
        };
        Ok(Self { path, reading: Some(reading), ready: None })
    }

    /// Waits for the first reading; reads again where that failed.
    pub(crate) fn get(&mut self) -> Result<&Tokenizer, TokenizerError> {
        let tokenizer = match (self.ready.take(), self.reading.take()) {
            (Some(ready), _) => ready,
            (None, Some(reading)) => reading.join().unwrap_or_else(|panic| resume_unwind(panic))?,
            (None, None) => Tokenizer::open(&self.path)?,
        };
        Ok(self.ready.insert(tokenizer))
    }
}
