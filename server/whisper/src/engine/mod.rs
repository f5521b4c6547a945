//! A loaded model: sessions, tokenizer and the buffers that they work on.
//!
//! An [`Engine`] is shared by as many jobs as there are, each on a thread of its own. One more thread owns the sessions
//! ([`owner`]): a job has it listen to a [`Window`] and search it, and the rows of all searches share the decoder's
//! steps.

mod band;
mod buffer;
mod encoder;
mod owner;
mod seats;
mod session;
mod wide;
mod window;

pub use encoder::Cross;
pub use window::Window;

use std::{
    io,
    panic::resume_unwind,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};

use ort::{session::Session, value::TensorElementType};

use crate::{
    checkpoint::{Config, SpecialTokens},
    graph::Precision,
    model_dir::{DECODER, ENCODER, Manifest, ModelDir, TOKENIZER},
    runtime::{self, RuntimeError},
    tokenizer::{Tokenizer, TokenizerError},
    transcribe::MOST_CANDIDATES,
};
use band::{Decoder, Shape};
use encoder::Encoder;
use owner::{Limits, Owner};
use window::Line;

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
    /// Windows that are held at the same time, and so the jobs that make progress at the same time; at least 1.
    pub max_batch: usize,
}

/// Rows of beams and candidates for each window of a batch: enough for the usual five.
const ROWS_PER_WINDOW: usize = 5;

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
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    #[error("preparing the buffers failed: {0}")]
    Buffers(#[source] ort::Error),
}

/// A model that listens and writes, for any number of jobs at once. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    special: SpecialTokens,
    tokenizer: PendingTokenizer,
    line: Arc<Line>,
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
                .map_err(|source| LoadError::Session { graph, source })?;
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
        let owner = owner(encoder.0, decoder.0, model.manifest(), options).map_err(LoadError::Buffers)?;
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("engine".into()).spawn(move || owner.run(&inbox))?;
        timings.total_seconds = started.elapsed().as_secs_f64();
        let Manifest { config, tokens, .. } = model.manifest();
        let line = Arc::new(Line::new(orders, thread));
        let shared = Shared { config: config.clone(), special: tokens.clone(), tokenizer, line };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.shared.special
    }

    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, TokenizerError> {
        self.shared.tokenizer.get()
    }

    /// Listens to one window: log-mel `[bins, 3000]`. Waits while as many windows are held as may be; `mel` may be used
    /// again for the next.
    pub fn listen(&self, mel: &mut Vec<f32>) -> Result<Window, ort::Error> {
        Window::encode(&self.shared.line, mel)
    }

    /// What the encoder makes of a window, `[1500, width]`, for checks.
    pub fn hidden(&self, mel: Vec<f32>) -> Result<Vec<f32>, ort::Error> {
        self.shared.line.hidden(mel)
    }
}

fn owner(
    encoder: Session,
    decoder: Session,
    manifest: &Manifest,
    options: &EngineOptions,
) -> Result<Owner, ort::Error> {
    let config = &manifest.config;
    let real = match manifest.precision {
        Precision::Fp16 => TensorElementType::Float16,
        Precision::Fp32 | Precision::Int8 => TensorElementType::Float32,
    };
    let encoder = Encoder::new(encoder, config)?;
    let memory = session::device_memory(&decoder, options.device)?;
    let cross = encoder.cross_shapes();
    let decoder = Decoder { session: decoder, memory, shape: Shape::new(config, real), cross };
    let windows = options.max_batch.max(1);
    Owner::new(encoder, decoder, Limits { windows, rows: (ROWS_PER_WINDOW * windows).max(MOST_CANDIDATES) })
}

/// A tokenizer that is read on a thread of its own: the first window is encoded before text is needed.
struct PendingTokenizer {
    path: PathBuf,
    reading: Mutex<Option<JoinHandle<Result<Tokenizer, TokenizerError>>>>,
    ready: OnceLock<Tokenizer>,
}

impl PendingTokenizer {
    fn start(model: &ModelDir) -> io::Result<Self> {
        let path = model.file(TOKENIZER);
        let reading = {
            let path = path.clone();
            thread::Builder::new().name("tokenizer".into()).spawn(move || Tokenizer::open(&path))?
        };
        Ok(Self { path, reading: Mutex::new(Some(reading)), ready: OnceLock::new() })
    }

    /// Waits for the first reading; reads again where that failed.
    fn get(&self) -> Result<&Tokenizer, TokenizerError> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let tokenizer = match reading.take() {
            Some(reading) => reading.join().unwrap_or_else(|panic| resume_unwind(panic))?,
            None => Tokenizer::open(&self.path)?,
        };
        Ok(self.ready.get_or_init(|| tokenizer))
    }
}
