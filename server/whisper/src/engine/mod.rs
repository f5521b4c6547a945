//! A loaded model: sessions, tokenizer and buffers.
//!
//! All requests share an [`Engine`], each on its own thread. The [decode worker](decode_worker), one more thread, owns the
//! sessions: a request encodes an [`EncodedWindow`] and runs searches on it, and the rows of all searches share the
//! decoder's steps.

mod align;
mod beam_batch;
mod buffer;
mod decode_worker;
mod device;
mod dimensions;
mod encoded_window;
mod encoder;
mod host_kv_cache;
mod kv_cache;
mod kv_slots;
mod pending_session;
mod session;
mod worker_handle;

pub use align::Alignment;
pub use encoded_window::EncodedWindow;
pub use encoder::CrossTensor;

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
    transcribe::MAX_CANDIDATES,
};
use align::Aligner;
use decode_worker::{DecodeWorker, EngineLimits};
use device::{
    DeviceContext,
    cuda_api::{CudaApi, CudaCallError},
    encoder::DeviceEncoder,
    kv_cache::GraphNumbers,
    memory::CudaStream,
    weights::{DeviceWeights, WeightUploadError},
};
use encoder::{Encoder, HostEncoder, WindowLengths};
use kv_cache::{DecoderMemory, DecoderSession, DecoderShape};
use pending_session::{EngineLoadOutcome, PendingSession};
use session::SessionTarget;
use worker_handle::WorkerHandle;

/// The device on which the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineDevice {
    Cpu,
    /// Loading fails if CUDA cannot be used; there is no fallback to the CPU.
    Cuda {
        index: i32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    pub device: EngineDevice,
    /// Threads of each session; the sessions do not work at the same time.
    pub threads: usize,
    /// Copies weights into the layout that the kernels prefer: slower to load, faster to run. The decoder of an 8-bit
    /// model is always prepacked.
    pub prepack: bool,
    /// Windows that are held at the same time, and so requests that make progress at the same time; at least 1.
    pub max_batch: usize,
    /// Limit of each session's arena on the device; `None`: all of the device's memory.
    pub memory_limit_bytes: Option<u64>,
    /// On a GPU, a decode step is captured as a CUDA graph and launched as a whole. `false` launches each kernel by itself;
    /// for comparisons.
    pub cuda_graphs: bool,
}

/// Rows of beams and candidates for each window of a batch: enough for the usual five.
const ROWS_PER_WINDOW: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum EngineLoadError {
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
    Weights(#[from] WeightUploadError),
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

/// A model that transcribes for any number of requests at once. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<EngineShared>,
}

struct EngineShared {
    config: Config,
    special: SpecialTokens,
    tokenizer: PendingTokenizer,
    /// How reading the tokenizer ended; set by the first wait for it.
    tokenizer_outcome: OnceLock<Result<(), EngineLoadError>>,
    /// Created for the first request.
    log_mel: OnceLock<LogMel>,
    worker: Arc<WorkerHandle>,
    decoder: EngineLoadOutcome,
    /// On a device: the weights, and how their upload ended.
    weights: Option<(Arc<DeviceWeights>, EngineLoadOutcome)>,
    /// Runs on the worker's thread, which alone may use the windows' memory.
    aligner: Arc<Mutex<Aligner>>,
    vad_model: OnceLock<PathBuf>,
    max_batch: usize,
    threads: usize,
    lengths: WindowLengths,
}

impl Engine {
    /// Opens the sessions; `runtime::init` must be called before. On a CPU it returns when the encoder is open: the
    /// decoder's weights are still being packed while the first window is encoded ([`Self::wait_until_loaded`] waits for them).
    pub fn load(model: &ModelDir, options: &EngineOptions) -> Result<Self, EngineLoadError> {
        let environment = runtime::environment()?;
        let lengths = dimensions::check(model)?;
        if !model.is_newest_format() {
            tracing::info!(
                model = %model.path().display(),
                "an older version of Hush installed this model; repeat `hush-server install` to transcribe faster"
            );
        }

        let context = match options.device {
            EngineDevice::Cpu => None,
            EngineDevice::Cuda { index } => Some(device_context(model, index)?),
        };

        let target = |captures| match &context {
            None => SessionTarget::Host,
            Some(context) => SessionTarget::Device { context: context.clone(), captures },
        };

        // The kernel of 8-bit blocks needs packed weights: otherwise it unpacks all of them at each step.
        let prepack = options.prepack || model.manifest().precision == Precision::Int8;

        // Opening a session keeps a single core busy, so the decoder's session and the tokenizer are loaded on other
        // threads meanwhile; later the encoder needs all cores.
        let (decoder, outcome) = {
            let (environment, path, options) = (environment.clone(), model.file(DECODER), options.clone());
            let target = target(options.cuda_graphs);
            PendingSession::begin(move || open(&environment, DECODER, &path, &options, prepack, &target))?
        };

        let tokenizer = PendingTokenizer::start(model)?;
        let encoder = open(&environment, ENCODER, &model.file(ENCODER), options, options.prepack, &target(false));
        let encoder = encoder.inspect_err(|_| {
            // The process must not end while another thread opens a session.
            let _ = outcome.wait();
        })?;

        let worker = decode_worker(encoder, decoder, context.clone(), model.manifest(), lengths, options)?;
        let (commands, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("engine".into()).spawn(move || worker.run(&inbox))?;
        let Manifest { config, tokens, .. } = model.manifest();
        let worker = Arc::new(WorkerHandle::new(commands, thread));
        let aligner =
            Aligner::new(environment, model.file(ALIGN), options.clone(), prepack, target(false), config.d_model);

        let shared = EngineShared {
            config: config.clone(),
            special: tokens.clone(),
            tokenizer,
            tokenizer_outcome: OnceLock::new(),
            log_mel: OnceLock::new(),
            worker,
            decoder: outcome,
            weights: context.map(|context| (context.weights, EngineLoadOutcome::default())),
            aligner: Arc::new(Mutex::new(aligner)),
            vad_model: OnceLock::new(),
            max_batch: options.max_batch.max(1),
            threads: options.threads,
            lengths,
        };

        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits until decoder, tokenizer and weights are loaded.
    pub fn wait_until_loaded(&self) -> Result<(), &EngineLoadError> {
        self.shared.decoder.wait().as_ref().copied()?;
        let tokenizer = || self.tokenizer().map(drop).map_err(EngineLoadError::Tokenizer);
        self.shared.tokenizer_outcome.get_or_init(tokenizer).as_ref().copied()?;

        let Some((weights, outcome)) = &self.shared.weights else { return Ok(()) };
        outcome.get_or_init(|| weights.wait_until_copied().map_err(EngineLoadError::Decoder)).as_ref().copied()
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

    /// Encodes one window: log-mel `[bins, 3000]`, or fewer frames if [`Self::accepts_short_windows`]. Waits while as many
    /// windows are held as may be; the memory of `mel` can be used again for the next window.
    pub fn encode(&self, mel: &mut Vec<f32>) -> Result<EncodedWindow, ort::Error> {
        EncodedWindow::encode(&self.shared.worker, mel)
    }

    /// The attention of each of `tokens` (prompt, text, end) to the frames of `window`.
    pub fn align(&self, window: &EncodedWindow, tokens: Vec<u32>) -> Result<Alignment, ort::Error> {
        let aligner = Arc::clone(&self.shared.aligner);
        window.with_cross(move |cross| aligner.lock().unwrap_or_else(PoisonError::into_inner).align(&tokens, cross))
    }

    /// Sets the path of Silero's model, which requests with [`crate::VadOptions`] open. Only the first call has an effect.
    pub fn use_vad(&self, model: PathBuf) {
        let _ = self.shared.vad_model.set(model);
    }

    /// Whether the encoder accepts windows of less than 30 s.
    pub fn accepts_short_windows(&self) -> bool {
        self.shared.lengths.accepts_shorter
    }

    /// Windows that are held at the same time.
    pub(crate) fn max_batch(&self) -> usize {
        self.shared.max_batch
    }

    /// Threads of each session.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads
    }

    pub(crate) fn vad_model(&self) -> Option<&Path> {
        self.shared.vad_model.get().map(PathBuf::as_path)
    }

    /// The encoder's output for a window, `[1500, width]`, for checks.
    pub fn hidden(&self, mel: Vec<f32>) -> Result<Vec<f32>, ort::Error> {
        self.shared.worker.hidden(mel)
    }
}

fn open(
    environment: &Environment,
    graph: &'static str,
    path: &Path,
    options: &EngineOptions,
    prepack: bool,
    target: &SessionTarget,
) -> Result<Session, EngineLoadError> {
    session::open(environment, path, options, prepack, target).map_err(|source| explain(graph, source, options.device))
}

/// Opens the device and begins to copy the weights to it.
fn device_context(model: &ModelDir, index: i32) -> Result<DeviceContext, EngineLoadError> {
    let library = runtime::library()?;
    cuda::prepare(EngineDevice::Cuda { index }, model.manifest().precision)?;
    let cuda = CudaApi::open(&library, index).map(Arc::new).map_err(|error| match cuda::probe(&library, index) {
        Err(missing) => EngineLoadError::Cuda { missing, source: error.into() },
        Ok(_) => EngineLoadError::Device(error),
    })?;

    let stream = Arc::new(CudaStream::new(cuda.clone())?);
    let tensors = external_tensors(&model.file(ENCODER));
    let tensors = tensors.map_err(|source| EngineLoadError::Graph { graph: ENCODER, source })?;
    let encoder_bytes = tensors.iter().map(|(_, placed)| placed.offset + placed.length).max().unwrap_or_default();
    let weights = Arc::new(DeviceWeights::begin(cuda.clone(), &model.file(WEIGHTS), encoder_bytes)?);

    Ok(DeviceContext { cuda, stream, weights })
}

/// ONNX Runtime only reports that CUDA does not work; this looks for the missing part.
fn explain(graph: &'static str, source: ort::Error, device: EngineDevice) -> EngineLoadError {
    if let EngineDevice::Cuda { index } = device
        && let Ok(library) = runtime::library()
        && let Err(missing) = cuda::probe(&library, index)
    {
        return EngineLoadError::Cuda { missing, source };
    }

    EngineLoadError::Session { graph, source }
}

fn decode_worker(
    encoder: Session,
    decoder: PendingSession,
    context: Option<DeviceContext>,
    manifest: &Manifest,
    lengths: WindowLengths,
    options: &EngineOptions,
) -> Result<DecodeWorker, EngineLoadError> {
    let config = &manifest.config;
    let float_type = match manifest.precision {
        Precision::Fp16 => TensorElementType::Float16,
        Precision::Fp32 | Precision::Int8 => TensorElementType::Float32,
    };

    let (encoder, memory) = match context {
        None => (HostEncoder::new(encoder, lengths).map(Encoder::Host), DecoderMemory::Host),
        Some(context) => {
            let encoder = DeviceEncoder::new(encoder, context.clone(), lengths, config.d_model).map(Encoder::Device);
            (encoder, DecoderMemory::Device { context, graphs: GraphNumbers::default() })
        }
    };

    let encoder = encoder.map_err(EngineLoadError::Buffers)?;
    let cross = encoder.cross_shapes(lengths.longest);

    let choice = (manifest.precision == Precision::Fp16).then(|| {
        let timestamps = manifest.tokens.timestamp_begin;
        ChoiceLayout { likeliest: choice::likeliest(config.vocab_size, timestamps as usize), timestamps }
    });

    let decoder = DecoderSession {
        session: decoder,
        memory,
        shape: DecoderShape::new(config, float_type),
        cross,
        lengths,
        choice,
    };
    let windows = options.max_batch.max(1);
    let limits = EngineLimits { windows, rows: (ROWS_PER_WINDOW * windows).max(MAX_CANDIDATES) };

    DecodeWorker::new(encoder, decoder, limits).map_err(EngineLoadError::Buffers)
}

/// A tokenizer that a thread of its own reads: the first window is encoded before text is needed.
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

    /// Waits for the thread; reads again after a failure.
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
