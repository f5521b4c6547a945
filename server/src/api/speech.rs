//! What the API needs of a model: residency has it, tests stand in for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::ModelState;
use hush_whisper::model_dir::TOKENIZER;
use hush_whisper::tokenizer::Tokenizer;
use hush_whisper::{Abilities, LanguageProbability, ModelDir, Segment, TranscribeOptions, Transcript};
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::CancellationToken;

use crate::job::{JobError, Outcome, Transcription, Work};
use crate::recording::Recording;
use crate::residency::{ModelHandle, SpeechJobs};

/// One model that does work when it is asked, loaded or not. Dropping a future cancels its work.
pub trait Speech: Send + Sync + 'static {
    /// Its name, as answers call it.
    fn model(&self) -> &str;

    fn state(&self) -> ModelState;

    /// For requests that do not say otherwise.
    fn defaults(&self) -> TranscribeOptions {
        TranscribeOptions::default()
    }

    /// What it was trained for; `None` where that is not known yet: the engine refuses what it cannot do.
    fn abilities(&self) -> Option<Abilities> {
        None
    }

    /// What keeps it from ever answering (its files, the runtime library, a server that ends), one line each. Empty
    /// when it is able, also while it is cold or busy.
    fn missing(&self) -> Vec<String>;

    /// `patience`: how long to wait for a model that is not loaded; `None`: for as long as it takes.
    fn transcribe(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        patience: Option<Duration>,
    ) -> BoxFuture<'_, Result<Transcription, JobError>>;

    /// As [`Self::transcribe`], with the segments as they are decoded. A slow reader does not hold back the model.
    fn stream(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        patience: Option<Duration>,
        segments: mpsc::Sender<Segment>,
    ) -> BoxFuture<'_, Result<Transcript, JobError>>;

    /// The bytes that each token stands for; `None` for tokens that stand for no text (timestamps and the like).
    fn token_bytes(&self, tokens: Vec<u32>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, JobError>>;

    /// Most probable first.
    fn detect_language(&self, recording: Recording) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>>;
}

/// A model of residency, and what it cannot do without.
pub struct ServedModel {
    handle: ModelHandle,
    dir: PathBuf,
    library: PathBuf,
    shutdown: CancellationToken,
    defaults: TranscribeOptions,
    abilities: Option<Abilities>,
    /// Read when the first request wants it: few do.
    vocabulary: OnceCell<Arc<Vocabulary>>,
}

/// Tokens as bytes.
struct Vocabulary {
    tokenizer: Tokenizer,
    /// From here on tokens are no text.
    eot: u32,
}

impl Vocabulary {
    fn open(dir: &Path) -> Result<Self, JobError> {
        let failed = |error: &dyn std::error::Error| JobError::Failed(error.to_string());
        let model = ModelDir::open(dir).map_err(|error| failed(&error))?;
        let tokenizer = Tokenizer::open(&dir.join(TOKENIZER), model.manifest().config.vocab_size)
            .map_err(|error| failed(&error))?;
        Ok(Self { tokenizer, eot: model.manifest().tokens.eot })
    }
}

impl ServedModel {
    /// `dir`: the model's own; `library`: the runtime's. Without either it will never load.
    pub fn new(handle: ModelHandle, dir: PathBuf, library: PathBuf, shutdown: CancellationToken) -> Self {
        let manifest = ModelDir::open(&dir).ok();
        let abilities = manifest.map(|model| Abilities::new(&model.manifest().config, &model.manifest().tokens));
        let defaults = TranscribeOptions::default();
        Self { handle, dir, library, shutdown, defaults, abilities, vocabulary: OnceCell::new() }
    }

    /// How it decodes where a request does not say.
    pub fn with_defaults(self, defaults: TranscribeOptions) -> Self {
        Self { defaults, ..self }
    }

    async fn vocabulary(&self) -> Result<Arc<Vocabulary>, JobError> {
        let opened = self.vocabulary.get_or_try_init(|| async {
            let dir = self.dir.clone();
            let opened = tokio::task::spawn_blocking(move || Vocabulary::open(&dir)).await;
            opened.map_err(|panicked| JobError::Failed(panicked.to_string()))?.map(Arc::new)
        });
        opened.await.cloned()
    }
}

impl Speech for ServedModel {
    fn model(&self) -> &str {
        self.handle.name()
    }

    fn state(&self) -> ModelState {
        self.handle.snapshot().state
    }

    fn defaults(&self) -> TranscribeOptions {
        self.defaults.clone()
    }

    fn abilities(&self) -> Option<Abilities> {
        self.abilities
    }

    fn missing(&self) -> Vec<String> {
        let absent = [&self.library, &self.dir].into_iter().filter(|path| !path.exists());
        let mut missing: Vec<String> = absent.map(|path| format!("{} is missing", path.display())).collect();
        if self.shutdown.is_cancelled() {
            missing.push(JobError::ShuttingDown.to_string());
        }
        missing
    }

    fn transcribe(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        patience: Option<Duration>,
    ) -> BoxFuture<'_, Result<Transcription, JobError>> {
        async move {
            match self.handle.gather(recording, Work::Transcribe(options), patience).await? {
                (Outcome::Transcribed(transcript), segments) => Ok(Transcription { transcript, segments }),
                (Outcome::Languages(_), _) => Err(other_answer()),
            }
        }
        .boxed()
    }

    fn stream(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        patience: Option<Duration>,
        segments: mpsc::Sender<Segment>,
    ) -> BoxFuture<'_, Result<Transcript, JobError>> {
        async move {
            match self.handle.run(recording, Work::Transcribe(options), segments, patience).await? {
                Outcome::Transcribed(transcript) => Ok(transcript),
                Outcome::Languages(_) => Err(other_answer()),
            }
        }
        .boxed()
    }

    fn token_bytes(&self, tokens: Vec<u32>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, JobError>> {
        async move {
            let vocabulary = self.vocabulary().await?;
            let text = |token: u32| (token < vocabulary.eot).then(|| vocabulary.tokenizer.bytes(token).to_vec());
            Ok(tokens.into_iter().map(text).collect())
        }
        .boxed()
    }

    fn detect_language(&self, recording: Recording) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>> {
        async move {
            match self.handle.gather(recording, Work::DetectLanguage, None).await? {
                (Outcome::Languages(languages), _) => Ok(languages),
                (Outcome::Transcribed(_), _) => Err(other_answer()),
            }
        }
        .boxed()
    }
}

fn other_answer() -> JobError {
    JobError::Failed("the model answered another question".to_owned())
}
