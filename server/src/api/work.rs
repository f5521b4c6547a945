//! From a request to samples: the part that all routes share.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hush_whisper::TranscribeOptions;

use super::ApiState;
use super::error::{ApiError, FieldError};
use super::speech::Speech;
use super::upload::{self, FormFile, Upload, Wanted};
use crate::audio;
use crate::job::JobError;
use crate::recording::Recording;
use crate::request;

/// A header that says what may be wrong with an answer.
pub(super) const WARNING: HeaderName = HeaderName::from_static("hush-warning");

/// The form of whisper-asr-webservice; everything but the file is in the query.
const AUDIO_FILE: Wanted = Wanted { file: "audio_file", keeps: |_| false };

impl ApiState {
    /// Reads the form, then reports what is wrong with the query and the file together, as the peer does.
    pub(super) async fn receive<Q>(
        &self,
        headers: &HeaderMap,
        body: Body,
        query: Result<Q, Vec<FieldError>>,
    ) -> Result<(Q, Upload), ApiError> {
        let file = upload::receive(headers, body, AUDIO_FILE, &self.config.upload).await?.file;
        let (query, mut faults) = match query {
            Ok(query) => (Some(query), Vec::new()),
            Err(faults) => (None, faults),
        };
        match (query, file) {
            (Some(query), FormFile::File(upload)) => return Ok((query, upload)),
            (_, FormFile::File(_)) => {}
            (_, FormFile::Missing) => faults.push(FieldError::missing_file()),
            (_, FormFile::Text(text)) => faults.push(FieldError::not_a_file(text)),
        }
        Err(ApiError::Fields(faults))
    }

    /// Refuses `vad_filter` where the operator has not installed what it needs.
    pub(super) fn check_vad(&self, options: &TranscribeOptions) -> Result<(), ApiError> {
        if options.vad.is_some() && !self.config.has_vad { Err(ApiError::NoVad) } else { Ok(()) }
    }

    /// Refuses what the model was not trained for, before anything is decoded or loaded. What it does badly is a warning,
    /// which goes into the log and into [`WARNING`].
    pub(super) fn check_abilities(
        &self,
        speech: &dyn Speech,
        options: &TranscribeOptions,
    ) -> Result<Option<HeaderValue>, ApiError> {
        let Some(abilities) = speech.abilities() else { return Ok(None) };
        abilities.check(options).map_err(|error| JobError::Invalid(error.to_string()))?;
        Ok(abilities.warning(options).map(|warning| {
            tracing::warn!(model = speech.model(), "{warning}");
            HeaderValue::from_static(warning)
        }))
    }

    /// The audio of an upload; without `encode` its samples are what it holds.
    pub(super) async fn decode(&self, upload: Upload, encode: bool) -> Result<Recording, ApiError> {
        if !encode {
            return self.raw(upload);
        }
        Ok(self.decoder.open(upload.content, upload.file_name).await?)
    }

    /// As [`Self::decode`], for a look at the first seconds.
    pub(super) async fn decode_beginning(&self, upload: Upload, encode: bool) -> Result<Recording, ApiError> {
        if !encode {
            return self.raw(upload);
        }
        Ok(self.decoder.beginning(upload.content, upload.file_name).await?)
    }

    fn raw(&self, upload: Upload) -> Result<Recording, ApiError> {
        let pcm = audio::decode_raw_s16le(upload.content, self.decoder.options().limit_seconds)?;
        request::note(|facts| {
            facts.audio_decode_seconds = Some(0.0);
            facts.audio_seconds = Some(pcm.duration_seconds());
        });
        Ok(pcm.into())
    }
}
