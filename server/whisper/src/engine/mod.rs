//! A loaded model: sessions, tokenizer and the buffers that they work on.
//!
//! An [`Engine`] is shared by as many jobs as there are, each on a thread of its own. One more thread owns the sessions
//! ([`owner`]): a job has it listen to a [`Window`] and search it, and the rows of all searches share the decoder's
//! steps.

mod align;
mod buffer;
mod device;
mod dimensions;
mod encoder;
mod host_kv_cache;
mod kv_cache;
mod owner;
mod pending_session;
mod seats;
mod session;
mod wide;
mod window;

pub use align::Alignment;
pub use encoder::Cross;
pub use window::Window;

use std::{
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use ort::{environment::Environment, session::Session, value::TensorElementType};

use crate::{
    checkpoint::{Config, SpecialTokens},
    cuda::{self, CudaError},
    decoding::ChoiceLayout,
    graph::{Precision, choice},
    mel::LogMel,
    model_dir::{ALIGN, DECODER, ENCODER, Manifest, ModelDir, TOKENIZER, WEIGHTS},
    onnx::external_tensors,
    runtime::{self, RuntimeError},
    tokenizer::{Tokenizer, TokenizerError},
    transcribe::MOST_CANDIDATES,
};
use align::Aligner;
use device::{
    DeviceContext,
    cuda_api::{CudaApi, CudaCallError},
    encoder::DeviceEncoder,
    kv_cache::GraphNumbers,
    memory::Stream,
    weights::{DeviceWeights, UploadError},
};
use encoder::{Encoder, HostEncoder};
use kv_cache::{Backend, Decoder, Shape};
use owner::{Limits, Owner};
use pending_session::{Outcome, PendingSession};
use session::SessionPlace;
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
    /// Of the device, for each session's arena; `None`: as much as there is.
    pub memory_limit_bytes: Option<u64>,
    /// On a GPU: a decode step is captured once and then launched as a whole. Without, each of its kernels is launched by
    /// itself; for comparisons.
    pub cuda_graphs: bool,
}

/// Rows of beams and candidates for each window of a batch: enough for the usual five.
const ROWS_PER_WINDOW: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("opening {graph} failed: {source}")]
    Session { graph: &'static str, source: ort::Error },
    #[error("CUDA cannot be used: {missing}")]
    Cuda { missing: CudaError, source: ort::Error },
    #[error(transparent)]
    Unusable(#[from] CudaError),
    #[error("CUDA: {0}")]
    Device(#[from] CudaCallError),
    #[error("copying the weights to the device: {0}")]
    Weights(#[from] UploadError),
    #[error("reading {graph}: {source}")]
    Graph { graph: &'static str, source: io::Error },
    #[error("model.json: `config.{field}` is {stated}, but {graph} was made for {found}; repeat `hush-server install`")]
    Dimension { graph: &'static str, field: &'static str, stated: usize, found: i64 },
    #[error(transparent)]
    Tokenizer(TokenizerError),
    #[error("a thread could not be started: {0}")]
    Thread(#[from] io::Error),
    #[error(transparent)]
    Decoder(ort::Error),
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
    /// Once it was waited for.
    tokenizer_outcome: OnceLock<Result<(), LoadError>>,
    /// Made for the first job.
    log_mel: OnceLock<LogMel>,
    line: Arc<Line>,
    decoder: Outcome,
    /// On a device: the weights, and whether all of them arrived.
    weights: Option<(Arc<DeviceWeights>, Outcome)>,
    /// Used on the engine's thread, which alone has the windows.
    aligner: Arc<Mutex<Aligner>>,
    vad_model: OnceLock<PathBuf>,
    max_batch: usize,
}

impl Engine {
    /// Creates the sessions; `runtime::init` comes before. On a CPU it returns when the encoder is there: the decoder's
    /// weights are still being packed while the first window is listened to ([`Self::settle`]).
    pub fn load(model: &ModelDir, options: &EngineOptions) -> Result<Self, LoadError> {
        let environment = runtime::environment()?;
        dimensions::check(model)?;
        let context = match options.device {
            Device::Cpu => None,
            Device::Cuda { index } => Some(device_context(model, index)?),
        };

        let place = |captures| match &context {
            None => SessionPlace::Host,
            Some(context) => SessionPlace::Device { context: context.clone(), captures },
        };

        // The kernel of 8-bit blocks needs its weights packed: without, it unpacks all of them at each step.
        let prepack = options.prepack || model.manifest().precision == Precision::Int8;

        // To open a session keeps one core busy. What the others do meanwhile is not left for the time in which the encoder
        // wants all of them.
        let (decoder, outcome) = {
            let (environment, path, options) = (environment.clone(), model.file(DECODER), options.clone());
            let place = place(options.cuda_graphs);
            PendingSession::begin(move || open(&environment, DECODER, &path, &options, prepack, &place))?
        };

        let tokenizer = PendingTokenizer::start(model)?;
        let encoder = open(&environment, ENCODER, &model.file(ENCODER), options, options.prepack, &place(false));
        let encoder = encoder.inspect_err(|_| {
            // A process must not end around a session that is being opened.
            let _ = outcome.wait();
        })?;

        let owner = owner(encoder, decoder, context.clone(), model.manifest(), options)?;
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("engine".into()).spawn(move || owner.run(&inbox))?;
        let Manifest { config, tokens, .. } = model.manifest();
        let line = Arc::new(Line::new(orders, thread));
        let aligner =
            Aligner::new(environment, model.file(ALIGN), options.clone(), prepack, place(false), config.d_model);
        let shared = Shared {
            config: config.clone(),
            special: tokens.clone(),
            tokenizer,
            tokenizer_outcome: OnceLock::new(),
            log_mel: OnceLock::new(),
            line,
            decoder: outcome,
            weights: context.map(|context| (context.weights, Outcome::default())),
            aligner: Arc::new(Mutex::new(aligner)),
            vad_model: OnceLock::new(),
            max_batch: options.max_batch.max(1),
        };

        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits until all of it is loaded.
    pub fn settle(&self) -> Result<(), &LoadError> {
        self.shared.decoder.wait().as_ref().copied()?;
        let tokenizer = || self.tokenizer().map(drop).map_err(LoadError::Tokenizer);
        self.shared.tokenizer_outcome.get_or_init(tokenizer).as_ref().copied()?;
        let Some((weights, outcome)) = &self.shared.weights else { return Ok(()) };
        outcome.get_or_init(|| weights.settle().map_err(LoadError::Decoder)).as_ref().copied()
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

    pub(crate) fn log_mel(&self) -> LogMel {
        self.shared.log_mel.get_or_init(|| LogMel::new(self.shared.config.num_mel_bins)).clone()
    }

    /// Listens to one window: log-mel `[bins, 3000]`. Waits while as many windows are held as may be; `mel` may be used
    /// again for the next.
    pub fn listen(&self, mel: &mut Vec<f32>) -> Result<Window, ort::Error> {
        Window::encode(&self.shared.line, mel)
    }

    /// Where each of `tokens` (a prompt, what was said, the end) listened in `window`.
    pub fn align(&self, window: &Window, tokens: Vec<u32>) -> Result<Alignment, ort::Error> {
        let aligner = Arc::clone(&self.shared.aligner);
        window.with_cross(move |cross| aligner.lock().unwrap_or_else(PoisonError::into_inner).align(&tokens, cross))
    }

    /// Where Silero's model is, for requests with [`crate::VadOptions`]; they open it. The first call counts.
    pub fn use_vad(&self, model: PathBuf) {
        let _ = self.shared.vad_model.set(model);
    }

    /// Windows that are held at the same time.
    pub(crate) fn max_batch(&self) -> usize {
        self.shared.max_batch
    }

    pub(crate) fn vad_model(&self) -> Option<&Path> {
        self.shared.vad_model.get().map(PathBuf::as_path)
    }

    /// What the encoder makes of a window, `[1500, width]`, for checks.
    pub fn hidden(&self, mel: Vec<f32>) -> Result<Vec<f32>, ort::Error> {
        self.shared.line.hidden(mel)
    }
}

fn open(
    environment: &Environment,
    graph: &'static str,
    path: &Path,
    options: &EngineOptions,
    prepack: bool,
    place: &SessionPlace,
) -> Result<Session, LoadError> {
    session::open(environment, path, options, prepack, place).map_err(|source| explain(graph, source, options.device))
}

/// The device, and the weights on their way to it.
fn device_context(model: &ModelDir, index: i32) -> Result<DeviceContext, LoadError> {
    let library = runtime::library()?;
    cuda::prepare(Device::Cuda { index }, model.manifest().precision)?;
    let cuda = CudaApi::open(&library, index).map(Arc::new).map_err(|error| match cuda::probe(&library, index) {
        Err(missing) => LoadError::Cuda { missing, source: error.into() },
        Ok(_) => LoadError::Device(error),
    })?;

    let stream = Arc::new(Stream::new(cuda.clone())?);
    let tensors = external_tensors(&model.file(ENCODER));
    let tensors = tensors.map_err(|source| LoadError::Graph { graph: ENCODER, source })?;
    let encoder_bytes = tensors.iter().map(|(_, placed)| placed.offset + placed.length).max().unwrap_or_default();
    let weights = Arc::new(DeviceWeights::begin(cuda.clone(), &model.file(WEIGHTS), encoder_bytes)?);

    Ok(DeviceContext { cuda, stream, weights })
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

fn owner(
    encoder: Session,
    decoder: PendingSession,
    context: Option<DeviceContext>,
    manifest: &Manifest,
    options: &EngineOptions,
) -> Result<Owner, LoadError> {
    let config = &manifest.config;
    let real = match manifest.precision {
        Precision::Fp16 => TensorElementType::Float16,
        Precision::Fp32 | Precision::Int8 => TensorElementType::Float32,
    };
    let (encoder, backend) = match context {
        None => (HostEncoder::new(encoder, config).map(Encoder::Host), Backend::Host),
        Some(context) => {
            let encoder = DeviceEncoder::new(encoder, context.clone(), config).map(Encoder::Device);
            (encoder, Backend::Device { context, graphs: GraphNumbers::default() })
        }
    };
    let encoder = encoder.map_err(LoadError::Buffers)?;
    let cross = encoder.cross_shapes();
    let choice = (manifest.precision == Precision::Fp16).then(|| {
        let timestamps = manifest.tokens.timestamp_begin;
        ChoiceLayout { likeliest: choice::likeliest(config.vocab_size, timestamps as usize), timestamps }
    });
    let decoder = Decoder { session: decoder, backend, shape: Shape::new(config, real), cross, choice };
    let windows = options.max_batch.max(1);
    let limits = Limits { windows, rows: (ROWS_PER_WINDOW * windows).max(MOST_CANDIDATES) };
    Owner::new(encoder, decoder, limits).map_err(LoadError::Buffers)
}

/// A tokenizer that is read on a thread of its own: the first window is encoded before text is needed.
struct PendingTokenizer {
    path: PathBuf,
    vocab_size: usize,
    reading: Mutex<Option<JoinHandle<Result<Tokenizer, TokenizerError>>>>,
    ready: OnceLock<Tokenizer>,
}

impl PendingTokenizer {
    fn start(model: &ModelDir) -> io::Result<Self> {
        let (path, vocab_size) = (model.file(TOKENIZER), model.manifest().config.vocab_size);
        let reading = {
            let path = path.clone();
            thread::Builder::new().name("tokenizer".into()).spawn(move || Tokenizer::open(&path, vocab_size))?
        };
        Ok(Self { path, vocab_size, reading: Mutex::new(Some(reading)), ready: OnceLock::new() })
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
            None => Tokenizer::open(&self.path, self.vocab_size)?,
        };

        Ok(self.ready.get_or_init(|| tokenizer))
    }
}
