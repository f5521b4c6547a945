//! What the API needs of a model. The models of the residency implement it; tests have an implementation of their own.

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

use crate::job::{JobError, JobOutcome, JobTask, Transcription};
use crate::recording::Recording;
use crate::residency::{SpeechJobs, SpeechModelHandle};

/// One model that transcribes on request, whether it is loaded or not. Dropping a future cancels its work.
pub trait TranscriptionModel: Send + Sync + 'static {
    /// The name of the model, as answers write it.
    fn model(&self) -> &str;

    fn state(&self) -> ModelState;

    /// The options for requests that do not set them.
    fn defaults(&self) -> TranscribeOptions {
        TranscribeOptions::default()
    }

    /// The tasks that the model was trained for; `None` where this is not known yet, and then the engine refuses what
    /// it cannot do.
    fn abilities(&self) -> Option<Abilities> {
        None
    }

    /// What prevents the model from ever answering (a missing file, a missing runtime library, a shutdown), one line
    /// for each problem. Empty when the model is able to answer, also while it is not loaded or busy.
    fn missing(&self) -> Vec<String>;

    /// `max_wait`: how long to wait for a model that is not loaded; `None`: without a limit.
    fn transcribe(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        max_wait: Option<Duration>,
    ) -> BoxFuture<'_, Result<Transcription, JobError>>;

    /// As [`Self::transcribe`], but sends the segments as they are decoded. A slow receiver does not hold back the
    /// model.
    fn stream(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        max_wait: Option<Duration>,
        segments: mpsc::Sender<Segment>,
    ) -> BoxFuture<'_, Result<Transcript, JobError>>;

    /// The bytes of each token; `None` for tokens that are not text (timestamps and other special tokens).
    fn token_bytes(&self, tokens: Vec<u32>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, JobError>>;

    /// The languages of the first 30 seconds, most probable first.
    fn detect_language(&self, recording: Recording) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>>;
}

/// A model of the residency with its files.
pub struct ServedModel {
    handle: SpeechModelHandle,
    dir: PathBuf,
    library: PathBuf,
    shutdown: CancellationToken,
    defaults: TranscribeOptions,
    abilities: Option<Abilities>,
    /// The vocabulary, which is read for the first request that needs it, because few do.
    vocabulary: OnceCell<Arc<TokenVocabulary>>,
}

/// The tokens as bytes.
struct TokenVocabulary {
    tokenizer: Tokenizer,
    /// The first token that is not text.
    end_of_text: u32,
}

impl TokenVocabulary {
    fn open(dir: &Path) -> Result<Self, JobError> {
        let failed = |error: &dyn std::error::Error| JobError::Failed(error.to_string());

        let model = ModelDir::open(dir).map_err(|error| failed(&error))?;
        let tokenizer = Tokenizer::open(&dir.join(TOKENIZER), model.manifest().config.vocab_size)
            .map_err(|error| failed(&error))?;
        Ok(Self { tokenizer, end_of_text: model.manifest().tokens.eot })
    }
}

impl ServedModel {
    /// `dir`: the folder of the model; `library`: the file of the runtime library. Without both the model never loads.
    pub fn new(handle: SpeechModelHandle, dir: PathBuf, library: PathBuf, shutdown: CancellationToken) -> Self {
        let manifest = ModelDir::open(&dir).ok();
        let abilities = manifest.map(|model| Abilities::new(&model.manifest().config, &model.manifest().tokens));
        let defaults = TranscribeOptions::default();
        Self { handle, dir, library, shutdown, defaults, abilities, vocabulary: OnceCell::new() }
    }

    /// Sets the options for requests that do not set them.
    pub fn with_defaults(self, defaults: TranscribeOptions) -> Self {
        Self { defaults, ..self }
    }

    async fn vocabulary(&self) -> Result<Arc<TokenVocabulary>, JobError> {
        let opened = self.vocabulary.get_or_try_init(|| async {
            let dir = self.dir.clone();
            let opened = tokio::task::spawn_blocking(move || TokenVocabulary::open(&dir)).await;
            opened.map_err(|panicked| JobError::Failed(panicked.to_string()))?.map(Arc::new)
        });
        opened.await.cloned()
    }
}

impl TranscriptionModel for ServedModel {
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
        max_wait: Option<Duration>,
    ) -> BoxFuture<'_, Result<Transcription, JobError>> {
        async move {
            match self.handle.gather(recording, JobTask::Transcribe(options), max_wait).await? {
                (JobOutcome::Transcribed(transcript), segments) => Ok(Transcription { transcript, segments }),
                (JobOutcome::Languages(_), _) => Err(unexpected_outcome()),
            }
        }
        .boxed()
    }

    fn stream(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        max_wait: Option<Duration>,
        segments: mpsc::Sender<Segment>,
    ) -> BoxFuture<'_, Result<Transcript, JobError>> {
        async move {
            match self.handle.run(recording, JobTask::Transcribe(options), segments, max_wait).await? {
                JobOutcome::Transcribed(transcript) => Ok(transcript),
                JobOutcome::Languages(_) => Err(unexpected_outcome()),
            }
        }
        .boxed()
    }

    fn token_bytes(&self, tokens: Vec<u32>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, JobError>> {
        async move {
            let vocabulary = self.vocabulary().await?;

            let text =
                |token: u32| (token < vocabulary.end_of_text).then(|| vocabulary.tokenizer.bytes(token).to_vec());
            Ok(tokens.into_iter().map(text).collect())
        }
        .boxed()
    }

    fn detect_language(&self, recording: Recording) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>> {
        async move {
            match self.handle.gather(recording, JobTask::DetectLanguage, None).await? {
                (JobOutcome::Languages(languages), _) => Ok(languages),
                (JobOutcome::Transcribed(_), _) => Err(unexpected_outcome()),
            }
        }
        .boxed()
    }
}

fn unexpected_outcome() -> JobError {
    JobError::Failed("the model answered another question".to_owned())
}
