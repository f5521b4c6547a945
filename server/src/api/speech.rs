//! What the API needs of a model: residency has it, tests stand in for it.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::ModelState;
use hush_whisper::{LanguageProbability, PcmSource, TranscribeOptions};
use tokio_util::sync::CancellationToken;

use crate::audio::Pcm;
use crate::job::{Audio, JobError, Outcome, Transcription, Work};
use crate::residency::ModelHandle;

/// One model that does work when it is asked, loaded or not. Dropping a future cancels its work.
pub trait Speech: Send + Sync + 'static {
    /// Its name, as answers call it.
    fn model(&self) -> &str;

    fn state(&self) -> ModelState;

    /// What keeps it from ever answering (its files, the runtime library, a server that ends), one line each. Empty
    /// when it is able, also while it is cold or busy.
    fn missing(&self) -> Vec<String>;

    fn transcribe(&self, pcm: Pcm, options: TranscribeOptions) -> BoxFuture<'_, Result<Transcription, JobError>>;

    /// Most probable first.
    fn detect_language(&self, pcm: Pcm) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>>;
}

/// A model of residency, and what it cannot do without.
pub struct ServedModel {
    handle: ModelHandle,
    needs: Vec<PathBuf>,
    shutdown: CancellationToken,
}

impl ServedModel {
    /// `needs`: files and directories without which it will never load.
    pub fn new(handle: ModelHandle, needs: Vec<PathBuf>, shutdown: CancellationToken) -> Self {
        Self { handle, needs, shutdown }
    }
}

impl Speech for ServedModel {
    fn model(&self) -> &str {
        self.handle.name()
    }

    fn state(&self) -> ModelState {
        self.handle.snapshot().state
    }

    fn missing(&self) -> Vec<String> {
        let absent = self.needs.iter().filter(|path| !path.exists());
        let mut missing: Vec<String> = absent.map(|path| format!("{} is missing", path.display())).collect();
        if self.shutdown.is_cancelled() {
            missing.push(JobError::ShuttingDown.to_string());
        }
        missing
    }

    fn transcribe(&self, pcm: Pcm, options: TranscribeOptions) -> BoxFuture<'_, Result<Transcription, JobError>> {
        async move {
            match self.handle.gather(Arc::new(pcm), Work::Transcribe(options), None).await? {
                (Outcome::Transcribed(transcript), segments) => Ok(Transcription { transcript, segments }),
                (Outcome::Languages(_), _) => Err(other_answer()),
            }
        }
        .boxed()
    }

    fn detect_language(&self, pcm: Pcm) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>> {
        async move {
            match self.handle.gather(Arc::new(pcm), Work::DetectLanguage, None).await? {
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

impl Audio for Pcm {
    fn len_samples(&self) -> u64 {
        Pcm::len_samples(self)
    }

    fn source(&self) -> Box<dyn PcmSource> {
        Box::new(Pcm::source(self))
    }
}
