//! Reads the body of a request into a spool. The body is read at once and to its end, whatever the model does: an
//! upload that stalls because the GPU is busy makes Bazarr wait for 24 hours.

use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;

use super::error::UploadFormError;
use crate::request;
use hush_listener::budget::ByteBudget;
use hush_listener::header::{HeaderParameters, decode};
use hush_listener::multipart::{MultipartEvent, MultipartParser};
use hush_listener::spool::{Spool, SpoolOptions, Spooled};

/// Files are written to the spool in pieces of this size, on a thread that may wait for a disk.
const WRITE_BYTES: usize = 64 << 10;
/// Room for boundaries, headers and fields besides the file.
const OVERHEAD_BYTES: u64 = 1 << 20;
/// Limits of whisper-asr-webservice.
const FIELD_LIMIT_BYTES: usize = 1 << 20;
const PARTS_LIMIT: usize = 1000;

/// Limits and places of uploads.
#[derive(Clone, Debug)]
pub struct UploadOptions {
    /// A larger file is refused with 413.
    pub max_upload_bytes: u64,
    /// A body that is refused is still read, up to this many bytes: clients that send everything before they read then
    /// see the answer and no reset connection.
    pub max_drain_bytes: u64,
    /// Longest silence within a body; after it the answer is 408.
    pub idle_timeout: Duration,
    /// A client that sends fewer bytes per second, measured over [`Self::slow_after`], gets 408. Zero: no limit.
    pub least_bytes_per_second: u64,
    /// The period over which the rate of a client is measured. Only time spent waiting for the client counts.
    pub slow_after: Duration,
    /// An upload is held in memory up to this size, then in a file.
    pub memory_bytes: usize,
    /// The folder of that file; `None`: the system's temporary folder.
    pub dir: Option<std::path::PathBuf>,
    /// Limit for the memory of all uploads together; beyond it uploads go to files.
    pub memory_budget: Option<ByteBudget>,
    /// Limit for all uploads together, in memory and in files; beyond it the answer is 507.
    pub budget: Option<ByteBudget>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            // 35 hours of audio as Bazarr sends it.
            max_upload_bytes: 4 << 30,
            max_drain_bytes: 4 << 30,
            idle_timeout: Duration::from_secs(300),
            least_bytes_per_second: 1 << 10,
            slow_after: Duration::from_secs(60),
            memory_bytes: hush_listener::spool::DEFAULT_MEMORY_BYTES,
            dir: None,
            memory_budget: None,
            budget: None,
        }
    }
}

/// The fields of a form that a route reads.
#[derive(Clone, Copy)]
pub struct FormSpec {
    /// The name of the field that holds the file.
    pub file_field: &'static str,
    /// Whether the text of a field is kept; other fields are only counted.
    pub is_kept: fn(&str) -> bool,
}

/// A form that was read to its end.
#[derive(Debug)]
pub struct ReceivedForm {
    pub file: FormFile,
    /// The fields that were kept, in their order.
    pub fields: Vec<(String, String)>,
}

/// The content of the file field. If the form has several, the last one counts.
#[derive(Debug)]
pub enum FormFile {
    /// The form has no such field.
    Missing,
    /// The field is text.
    Text(String),
    File(UploadedFile),
}

#[derive(Debug)]
pub struct UploadedFile {
    pub content: Spooled,
    /// The name that the client sent; never used as a path.
    pub file_name: String,
    /// The media type that the client sent, in lower case and without parameters.
    pub content_type: Option<String>,
}

/// Reads a form to its end. Its fields may come in any order.
pub async fn receive(
    headers: &HeaderMap,
    body: Body,
    spec: FormSpec,
    options: &UploadOptions,
) -> Result<ReceivedForm, UploadFormError> {
    let mut body = BodyChunks::new(body, options);
    let began = Instant::now();
    let form = read_form(headers, &mut body, spec, options).await;
    request::note(|facts| {
        let seconds = began.elapsed().as_secs_f64();
        facts.upload_seconds = Some(seconds);
        facts.ended("upload", seconds);
    });

    match form {
        Err(
            error
            @ (UploadFormError::ClientGone(_) | UploadFormError::Stalled { .. } | UploadFormError::TooSlow { .. }),
        ) => Err(error),
        // A client that sent `Expect` has not sent its body yet, and waits for the answer.
        Err(error) if headers.contains_key(header::EXPECT) => Err(error),
        Err(error) => {
            body.drain(options.max_drain_bytes).await;
            Err(error)
        }
        form => form,
    }
}

/// Reads and drops a body, so that the client sees the answer.
pub async fn discard(headers: &HeaderMap, body: Body, options: &UploadOptions) {
    if !headers.contains_key(header::EXPECT) {
        let mut body = BodyChunks::new(body, options);
        body.drain(options.max_drain_bytes).await;
    }
}

async fn read_form(
    headers: &HeaderMap,
    body: &mut BodyChunks,
    spec: FormSpec,
    options: &UploadOptions,
) -> Result<ReceivedForm, UploadFormError> {
    let limit_bytes = options.max_upload_bytes;
    let too_large = |bytes: u64| bytes > limit_bytes.saturating_add(OVERHEAD_BYTES);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(too_large) {
        return Err(UploadFormError::TooLarge { limit_bytes });
    }

    let content_type = HeaderParameters::parse(headers.get(header::CONTENT_TYPE).map_or(b"", |value| value.as_bytes()));
    if content_type.value != "multipart/form-data" {
        body.drain(options.max_drain_bytes).await;
        return Ok(ReceivedForm { file: FormFile::Missing, fields: Vec::new() });
    }

    let boundary = content_type.get("boundary").ok_or(UploadFormError::NoBoundary)?;
    let mut parser = MultipartParser::new(boundary);
    let mut form = FormReader::new(spec, options);
    let mut read_bytes = 0;

    while let Some(chunk) = body.next().await? {
        read_bytes += chunk.len() as u64;
        if too_large(read_bytes) {
            return Err(UploadFormError::TooLarge { limit_bytes });
        }

        parser.push(&chunk, |event| form.handle(event))?;
        form.write_pending(WRITE_BYTES).await?;
    }

    form.write_pending(1).await?;

    Ok(form.finish())
}

/// The chunks of a body, with limits on silence and on slowness.
struct BodyChunks {
    stream: BodyDataStream,
    idle_timeout: Duration,
    least_bytes_per_second: u64,
    slow_after: Duration,
    /// Time spent waiting for the client in the current period, and the bytes that came in it. The time that the server
    /// needs to store the bytes does not count.
    waited: Duration,
    received_bytes: u64,
}

impl BodyChunks {
    fn new(body: Body, options: &UploadOptions) -> Self {
        Self {
            stream: body.into_data_stream(),
            idle_timeout: options.idle_timeout,
            least_bytes_per_second: options.least_bytes_per_second,
            slow_after: options.slow_after,
            waited: Duration::ZERO,
            received_bytes: 0,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, UploadFormError> {
        let silence_began = Instant::now();
        loop {
            let began = Instant::now();
            let silence_left = self.idle_timeout.saturating_sub(silence_began.elapsed());
            let period_left = match self.least_bytes_per_second {
                0 => Duration::MAX,
                _ => self.slow_after.saturating_sub(self.waited),
            };

            let max_wait = silence_left.min(period_left);
            let chunk = tokio::time::timeout(max_wait, self.stream.next()).await;
            self.waited += began.elapsed();
            match chunk {
                Ok(Some(Ok(chunk))) => {
                    self.received_bytes += chunk.len() as u64;
                    self.check_rate()?;
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => return Err(UploadFormError::ClientGone(error)),
                Ok(None) => return Ok(None),
                Err(_) => {
                    self.check_rate()?;
                    if silence_began.elapsed() >= self.idle_timeout {
                        return Err(UploadFormError::Stalled { seconds: self.idle_timeout.as_secs() });
                    }
                }
            }
        }
    }

    /// Checks the rate of the client where a period is over, and begins the next period.
    fn check_rate(&mut self) -> Result<(), UploadFormError> {
        if self.least_bytes_per_second == 0 || self.waited < self.slow_after {
            return Ok(());
        }

        let (received_bytes, waited) = (self.received_bytes, self.waited);
        (self.received_bytes, self.waited) = (0, Duration::ZERO);
        if (received_bytes as f64) < self.least_bytes_per_second as f64 * waited.as_secs_f64() {
            let (seconds, least_bytes) = (waited.as_secs(), self.least_bytes_per_second);
            return Err(UploadFormError::TooSlow { received_bytes, seconds, least_bytes });
        }
        Ok(())
    }

    async fn drain(&mut self, max_bytes: u64) {
        let mut read_bytes = 0;
        while let Ok(Some(chunk)) = self.next().await {
            read_bytes += chunk.len() as u64;
            if read_bytes > max_bytes {
                return;
            }
        }
    }
}

/// The part of the form that is being read.
enum CurrentPart {
    Ignored,
    /// A field that is not kept: only its length counts.
    OtherField(usize),
    Field {
        name: String,
        text: Vec<u8>,
    },
    /// Text in the file field.
    Text(Vec<u8>),
    File {
        file_name: String,
        content_type: Option<String>,
        spool: Spool,
    },
}

/// Collects the parts of a form as they arrive.
struct FormReader<'a> {
    spec: FormSpec,
    options: &'a UploadOptions,
    current: CurrentPart,
    /// Bytes of the file that are not in the spool yet, because they go to a disk.
    pending: Vec<u8>,
    /// The last complete part of the file field.
    file: CompleteFile,
    texts: Vec<(String, String)>,
    /// Length of all kept fields together.
    text_bytes: usize,
    field_count: usize,
    file_count: usize,
}

enum CompleteFile {
    Missing,
    Text(String),
    File {
        file_name: String,
        content_type: Option<String>,
        spool: Spool,
        /// The end of the file, where it came in the same chunk as bytes that follow it.
        tail: Vec<u8>,
    },
}

impl<'a> FormReader<'a> {
    fn new(spec: FormSpec, options: &'a UploadOptions) -> Self {
        Self {
            spec,
            options,
            current: CurrentPart::Ignored,
            pending: Vec::new(),
            file: CompleteFile::Missing,
            texts: Vec::new(),
            text_bytes: 0,
            field_count: 0,
            file_count: 0,
        }
    }

    fn handle(&mut self, event: MultipartEvent<'_>) -> Result<(), UploadFormError> {
        match event {
            MultipartEvent::Begin { name, file_name, content_type } => self.begin_part(name, file_name, content_type),
            MultipartEvent::Data(data) => self.append(data),
            MultipartEvent::End => {
                self.end_part();
                Ok(())
            }
        }
    }

    fn begin_part(
        &mut self,
        name: String,
        file_name: Option<String>,
        content_type: Option<String>,
    ) -> Result<(), UploadFormError> {
        let is_file = file_name.is_some();
        let (count, refusal) = if is_file {
            (&mut self.file_count, UploadFormError::TooManyFiles)
        } else {
            (&mut self.field_count, UploadFormError::TooManyFields)
        };

        *count += 1;

        if *count > PARTS_LIMIT {
            return Err(refusal);
        }

        self.current = match file_name {
            Some(file_name) if name == self.spec.file_field => {
                CurrentPart::File { file_name, content_type, spool: Spool::new(self.spool_options()) }
            }
            Some(_) => CurrentPart::Ignored,
            None if name == self.spec.file_field => CurrentPart::Text(Vec::new()),
            None if (self.spec.is_kept)(&name) => CurrentPart::Field { name, text: Vec::new() },
            None => CurrentPart::OtherField(0),
        };
        Ok(())
    }

    fn append(&mut self, data: &[u8]) -> Result<(), UploadFormError> {
        let field_bytes = match &mut self.current {
            CurrentPart::Ignored => 0,
            CurrentPart::File { spool, .. } => {
                if self.pending.is_empty() && spool.stays_in_memory(data.len()) {
                    spool.write(data)?;
                } else {
                    self.pending.extend_from_slice(data);
                }

                0
            }
            CurrentPart::Text(text) => {
                text.extend_from_slice(data);
                text.len()
            }
            CurrentPart::Field { text, .. } => {
                text.extend_from_slice(data);
                self.text_bytes += data.len();
                self.text_bytes
            }
            CurrentPart::OtherField(len_bytes) => {
                *len_bytes += data.len();
                *len_bytes
            }
        };

        if field_bytes > FIELD_LIMIT_BYTES { Err(UploadFormError::FieldTooLarge) } else { Ok(()) }
    }

    fn end_part(&mut self) {
        match std::mem::replace(&mut self.current, CurrentPart::Ignored) {
            CurrentPart::Ignored | CurrentPart::OtherField(_) => {}
            CurrentPart::Field { name, text } => self.texts.push((name, decode(&text))),
            CurrentPart::Text(text) => self.file = CompleteFile::Text(decode(&text)),
            CurrentPart::File { file_name, content_type, spool } => {
                let tail = std::mem::take(&mut self.pending);
                self.file = CompleteFile::File { file_name, content_type, spool, tail };
            }
        }
    }

    fn spool_options(&self) -> SpoolOptions {
        SpoolOptions {
            memory_bytes: self.options.memory_bytes,
            limit_bytes: Some(self.options.max_upload_bytes),
            dir: self.options.dir.clone(),
            memory_budget: self.options.memory_budget.clone(),
            budget: self.options.budget.clone(),
        }
    }

    /// Writes the pending bytes of the current file once there are at least `least` of them, and those of a complete
    /// file.
    async fn write_pending(&mut self, least: usize) -> Result<(), UploadFormError> {
        if let CompleteFile::File { spool, tail, .. } = &mut self.file
            && !tail.is_empty()
        {
            write_blocking(spool, tail).await?;
        }

        if let CurrentPart::File { spool, .. } = &mut self.current
            && self.pending.len() >= least
        {
            write_blocking(spool, &mut self.pending).await?;
        }
        Ok(())
    }

    fn finish(self) -> ReceivedForm {
        let file = match self.file {
            CompleteFile::Missing => FormFile::Missing,
            CompleteFile::Text(text) => FormFile::Text(text),
            CompleteFile::File { file_name, content_type, spool, .. } => {
                FormFile::File(UploadedFile { content: spool.finish(), file_name, content_type })
            }
        };

        ReceivedForm { file, fields: self.texts }
    }
}

/// Writes `bytes` to the spool on a blocking thread, and leaves an empty buffer with its capacity.
async fn write_blocking(spool: &mut Spool, bytes: &mut Vec<u8>) -> Result<(), UploadFormError> {
    let mut moved_spool = std::mem::replace(spool, Spool::new(SpoolOptions::default()));
    let mut moved_bytes = std::mem::take(bytes);

    let written = tokio::task::spawn_blocking(move || {
        let result = moved_spool.write(&moved_bytes);
        moved_bytes.clear();
        result.map(|()| (moved_spool, moved_bytes))
    });

    let result = written.await.map_err(|panicked| std::io::Error::other(panicked.to_string()));
    (*spool, *bytes) = result.map_err(hush_listener::spool::SpoolError::Disk)??;
    Ok(())
}
