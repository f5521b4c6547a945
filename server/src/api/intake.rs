//! The steps from a request to its audio, which all routes share.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hush_whisper::TranscribeOptions;

use super::ApiState;
use super::error::{ApiError, FieldError};
use super::speech::SpeechModel;
use super::upload::{self, FormFile, FormSpec, UploadedFile};
use crate::audio;
use crate::job::JobError;
use crate::recording::Recording;
use crate::request;

/// A header with a warning about the answer.
pub(super) const WARNING: HeaderName = HeaderName::from_static("hush-warning");

/// The form of whisper-asr-webservice. All parameters besides the file are in the query.
const AUDIO_FILE: FormSpec = FormSpec { file_field: "audio_file", is_kept: |_| false };

impl ApiState {
    /// Reads the form, then reports the faults of the query and of the file together, as whisper-asr-webservice does.
    pub(super) async fn receive<Q>(
        &self,
        headers: &HeaderMap,
        body: Body,
        query: Result<Q, Vec<FieldError>>,
    ) -> Result<(Q, UploadedFile), ApiError> {
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

    /// Refuses `vad_filter` where the model that it needs is not installed.
    pub(super) fn check_vad(&self, options: &TranscribeOptions) -> Result<(), ApiError> {
        if options.vad.is_some() && !self.config.has_vad { Err(ApiError::NoVad) } else { Ok(()) }
    }

    /// Refuses a task that the model was not trained for, before the audio is decoded and the model loaded. A task that the model
    /// does badly gives a warning, which goes to the log and into [`WARNING`].
    pub(super) fn check_abilities(
        &self,
        speech: &dyn SpeechModel,
        options: &TranscribeOptions,
    ) -> Result<Option<HeaderValue>, ApiError> {
        let Some(abilities) = speech.abilities() else { return Ok(None) };

        abilities.check(options).map_err(|error| JobError::Invalid(error.to_string()))?;
        Ok(abilities.warning(options).map(|warning| {
            tracing::warn!(model = speech.model(), "{warning}");
            HeaderValue::from_static(warning)
        }))
    }

    /// Opens the audio of an upload. Without `encode` the upload is raw samples.
    pub(super) async fn decode(&self, upload: UploadedFile, encode: bool) -> Result<Recording, ApiError> {
        if !encode {
            return self.raw(upload);
        }
        Ok(self.decoder.open(upload.content, upload.file_name).await?)
    }

    /// As [`Self::decode`], for the first seconds alone.
    pub(super) async fn decode_beginning(&self, upload: UploadedFile, encode: bool) -> Result<Recording, ApiError> {
        if !encode {
            return self.raw(upload);
        }
        Ok(self.decoder.beginning(upload.content, upload.file_name).await?)
    }

    fn raw(&self, upload: UploadedFile) -> Result<Recording, ApiError> {
        let pcm = audio::decode_raw_s16le(upload.content, self.decoder.options().limit_seconds)?;
        request::note(|facts| {
            facts.audio_decode_seconds = Some(0.0);
            facts.audio_seconds = Some(pcm.duration_seconds());
        });
        Ok(pcm.into())
    }
}
