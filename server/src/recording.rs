//! The audio of a request on its way to a model. Long audio stays an encoded upload until the model is about to transcribe it, so
//! that a waiting request holds its upload and no samples.
//!
//! ```text
//! upload -> the first seconds are decoded: is it audio? -> queue -> decoded -> runner
//! ```

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::audio::{self, AudioError, DecodeOptions, DecodedHead, KeepGoing, Pcm};
use crate::request;
use hush_listener::spool::Spooled;

/// Waiting requests of the whole server whose audio may be decoded ahead, so that the model does not wait for the
/// decoding of the next one.
const DECODED_AHEAD_MAX: usize = 2;

/// Decodes uploads, a limited number at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AudioDecoder {
    options: Arc<DecodeOptions>,
    running: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
}

/// An upload whose first seconds were decoded.
#[derive(Debug)]
pub struct Recording {
    content: RecordingContent,
}

#[derive(Debug)]
enum RecordingContent {
    Decoded(Pcm),
    Encoded { upload: Spooled, file_name: String, decoder: AudioDecoder },
}

impl From<Pcm> for Recording {
    fn from(pcm: Pcm) -> Self {
        Self { content: RecordingContent::Decoded(pcm) }
    }
}

impl AudioDecoder {
    /// `concurrent`: the number of files that are decoded at the same time; further files wait.
    pub fn new(options: DecodeOptions, concurrent: usize) -> Self {
        let (running, ahead) = (Semaphore::new(concurrent.max(1)), Semaphore::new(DECODED_AHEAD_MAX));
        Self { options: Arc::new(options), running: Arc::new(running), ahead: Arc::new(ahead) }
    }

    pub fn options(&self) -> &DecodeOptions {
        &self.options
    }

    /// Decodes the first seconds of an upload, and refuses what is not audio. Short audio is decoded completely.
    pub async fn open(&self, upload: Spooled, file_name: String) -> Result<Recording, AudioError> {
        let content = match self.decode_head(upload.clone(), file_name.clone()).await? {
            DecodedHead::Whole(pcm) => RecordingContent::Decoded(pcm),
            DecodedHead::Beginning(_) => RecordingContent::Encoded { upload, file_name, decoder: self.clone() },
        };
        Ok(Recording { content })
    }

    /// Decodes only the first seconds ([`audio::HEAD_SECONDS`]).
    pub async fn beginning(&self, upload: Spooled, file_name: String) -> Result<Recording, AudioError> {
        match self.decode_head(upload, file_name).await? {
            DecodedHead::Whole(pcm) | DecodedHead::Beginning(pcm) => Ok(pcm.into()),
        }
    }

    async fn decode_head(&self, upload: Spooled, file_name: String) -> Result<DecodedHead, AudioError> {
        let work = move |options: &DecodeOptions, keep_going: &KeepGoing<'_>| {
            audio::decode_head(&upload, Some(&file_name), options, keep_going)
        };

        let head = self.run_blocking(work).await?;
        let (DecodedHead::Whole(pcm) | DecodedHead::Beginning(pcm)) = &head;

        let seconds = pcm.duration_seconds();
        request::note(|facts| facts.audio_seconds = Some(seconds));
        Ok(head)
    }

    /// Runs work on a blocking thread. Dropping the future cancels the work.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DecodeOptions, &KeepGoing<'_>) -> Result<T, AudioError> + Send + 'static,
    ) -> Result<T, AudioError> {
        let began = Instant::now();
        let permit = Arc::clone(&self.running).acquire_owned().await.map_err(|_| AudioError::Cancelled)?;
        let cancelled = CancellationToken::new();
        let _cancel_on_drop = cancelled.clone().drop_guard();

        let options = Arc::clone(&self.options);
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&options, &|| !cancelled.is_cancelled())
        });

        let done = done.await.map_err(|panicked| AudioError::Failed { reason: panicked.to_string() })?;
        request::note(|facts| {
            let seconds = began.elapsed().as_secs_f64();
            *facts.audio_decode_seconds.get_or_insert(0.0) += seconds;
            facts.ended("decode audio", seconds);
        });
        done
    }
}

impl Recording {
    pub fn is_decoded(&self) -> bool {
        matches!(self.content, RecordingContent::Decoded(_))
    }

    /// Decodes the upload. From then on the samples are held, and the upload is not.
    pub async fn decode(&mut self) -> Result<Pcm, AudioError> {
        let (upload, file_name, decoder) = match &self.content {
            RecordingContent::Decoded(pcm) => return Ok(pcm.clone()),
            RecordingContent::Encoded { upload, file_name, decoder } => {
                (upload.clone(), file_name.clone(), decoder.clone())
            }
        };

        let work = move |options: &DecodeOptions, keep_going: &KeepGoing<'_>| {
            audio::decode(&upload, Some(&file_name), options, keep_going)
        };

        let pcm = decoder.run_blocking(work).await?;
        let seconds = pcm.duration_seconds();
        request::note(|facts| facts.audio_seconds = Some(seconds));

        self.content = RecordingContent::Decoded(pcm.clone());
        Ok(pcm)
    }

    /// Waits for one of the few slots of waiting requests that are decoded ahead. The permit must be kept while the
    /// request waits.
    pub async fn slot_ahead(&self) -> OwnedSemaphorePermit {
        if let RecordingContent::Encoded { decoder, .. } = &self.content
            && let Ok(permit) = Arc::clone(&decoder.ahead).acquire_owned().await
        {
            return permit;
        }

        std::future::pending().await
    }
}
