//! The audio of a request on its way to a model. Long audio stays as it was uploaded until the model is about to hear it:
//! a request that waits holds its upload, and no samples.
//!
//! ```text
//! upload -> its first seconds are decoded: is it audio at all? -> queue -> decoded -> runner
//! ```

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::audio::{self, AudioError, DecodeOptions, Head, KeepGoing, Pcm};
use crate::request;
use crate::spool::Spooled;

/// Requests of the whole server that wait for a model and have been decoded already, so that the model does not wait for
/// the next one of them.
const AHEAD_MAX: usize = 2;

/// Decodes uploads, a bounded number at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Decoder {
    options: Arc<DecodeOptions>,
    running: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
}

/// An upload that has been looked into.
#[derive(Debug)]
pub struct Recording {
    form: Form,
}

#[derive(Debug)]
enum Form {
    Decoded(Pcm),
    Encoded { upload: Spooled, file_name: String, decoder: Decoder },
}

impl From<Pcm> for Recording {
    fn from(pcm: Pcm) -> Self {
        Self { form: Form::Decoded(pcm) }
    }
}

impl Decoder {
    /// `concurrent`: files that are decoded at the same time; the others wait.
    pub fn new(options: DecodeOptions, concurrent: usize) -> Self {
        let (running, ahead) = (Semaphore::new(concurrent.max(1)), Semaphore::new(AHEAD_MAX));
        Self { options: Arc::new(options), running: Arc::new(running), ahead: Arc::new(ahead) }
    }

    pub fn options(&self) -> &DecodeOptions {
        &self.options
    }

    /// Decodes the first seconds of an upload; what is no audio is refused here. Short audio is decoded with that.
    pub async fn open(&self, upload: Spooled, file_name: String) -> Result<Recording, AudioError> {
        let form = match self.head(upload.clone(), file_name.clone()).await? {
            Head::Whole(pcm) => Form::Decoded(pcm),
            Head::Beginning(_) => Form::Encoded { upload, file_name, decoder: self.clone() },
        };
        Ok(Recording { form })
    }

    /// The first seconds alone, for those who need no more ([`audio::HEAD_SECONDS`]).
    pub async fn beginning(&self, upload: Spooled, file_name: String) -> Result<Recording, AudioError> {
        match self.head(upload, file_name).await? {
            Head::Whole(pcm) | Head::Beginning(pcm) => Ok(pcm.into()),
        }
    }

    async fn head(&self, upload: Spooled, file_name: String) -> Result<Head, AudioError> {
        let work = move |options: &DecodeOptions, keep_going: &KeepGoing<'_>| {
            audio::decode_head(&upload, Some(&file_name), options, keep_going)
        };
        let head = self.run(work).await?;
        let (Head::Whole(pcm) | Head::Beginning(pcm)) = &head;
        let seconds = pcm.duration_seconds();
        request::note(|facts| facts.audio_seconds = Some(seconds));
        Ok(head)
    }

    /// On a blocking thread. Dropping the future ends the work.
    async fn run<T: Send + 'static>(
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
        matches!(self.form, Form::Decoded(_))
    }

    /// The samples; from now on they are held, and the upload is not.
    pub async fn decode(&mut self) -> Result<Pcm, AudioError> {
        let (upload, file_name, decoder) = match &self.form {
            Form::Decoded(pcm) => return Ok(pcm.clone()),
            Form::Encoded { upload, file_name, decoder } => (upload.clone(), file_name.clone(), decoder.clone()),
        };
        let work = move |options: &DecodeOptions, keep_going: &KeepGoing<'_>| {
            audio::decode(&upload, Some(&file_name), options, keep_going)
        };
        let pcm = decoder.run(work).await?;
        let seconds = pcm.duration_seconds();
        request::note(|facts| facts.audio_seconds = Some(seconds));
        self.form = Form::Decoded(pcm.clone());
        Ok(pcm)
    }

    /// Waits for a place among the few that are decoded while they wait for a model. Must be kept for as long as they do.
    pub async fn place_ahead(&self) -> OwnedSemaphorePermit {
        if let Form::Encoded { decoder, .. } = &self.form
            && let Ok(place) = Arc::clone(&decoder.ahead).acquire_owned().await
        {
            return place;
        }
        std::future::pending().await
    }
}
