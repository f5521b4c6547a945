//! The body of a request on its way into a spool. It is read at once and to its end, whatever the model does: a body
//! that stalls because the GPU is busy costs a Bazarr user 24 hours.

use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;

use super::error::UploadError;
use super::header::{Parameters, decode};
use super::multipart::{Event, Parser};
use crate::budget::ByteBudget;
use crate::request;
use crate::spool::{Spool, SpoolOptions, Spooled};

/// Files travel to the spool in pieces of this size, on a thread that may wait for a disk.
const PIECE_BYTES: usize = 64 << 10;
/// Room for boundaries, headers and fields beside the file.
const OVERHEAD_BYTES: u64 = 1 << 20;
/// The peer's limits.
const FIELD_LIMIT_BYTES: usize = 1 << 20;
const PARTS_LIMIT: usize = 1000;

/// How uploads are taken in.
#[derive(Clone, Debug)]
pub struct UploadOptions {
    /// A larger file is refused: 413.
    pub max_upload_bytes: u64,
    /// What is refused is still read, up to this much, so that clients which send everything before they read see
    /// the answer rather than a reset connection.
    pub max_drain_bytes: u64,
    /// Longest silence in the middle of a body: 408.
    pub idle_timeout: Duration,
    /// Fewer bytes a second than this, over [`Self::slow_after`]: 408. Zero: no limit.
    pub least_bytes_per_second: u64,
    /// How long a client may be slow: each stretch of waiting so long for it is judged by itself.
    pub slow_after: Duration,
    /// Held in memory up to here, then in a file.
    pub memory_bytes: usize,
    /// Where that file goes.
    pub dir: Option<std::path::PathBuf>,
    /// What all uploads together may hold in memory; then they go to files.
    pub memory_budget: Option<ByteBudget>,
    /// What all uploads together may hold, in memory and in files: 507 beyond it.
    pub budget: Option<ByteBudget>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            // 35 hours as Bazarr sends them.
            max_upload_bytes: 4 << 30,
            max_drain_bytes: 4 << 30,
            idle_timeout: Duration::from_secs(300),
            least_bytes_per_second: 1 << 10,
            slow_after: Duration::from_secs(60),
            memory_bytes: crate::spool::DEFAULT_MEMORY_BYTES,
            dir: None,
            memory_budget: None,
            budget: None,
        }
    }
}

/// What a route wants of a form.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// The field that holds the file.
    pub file: &'static str,
    /// Whether the text of a field is of interest; what is not is counted and forgotten.
    pub keeps: fn(&str) -> bool,
}

/// A form that was read to its end.
#[derive(Debug)]
pub struct Received {
    pub file: FormFile,
    /// The fields that were wanted, in their order.
    pub fields: Vec<(String, String)>,
}

/// What the form holds under the name that was asked for; the last of several counts.
#[derive(Debug)]
pub enum FormFile {
    Missing,
    /// A plain field.
    Text(String),
    File(Upload),
}

#[derive(Debug)]
pub struct Upload {
    pub content: Spooled,
    /// As the client calls it; never used as a path.
    pub file_name: String,
    /// As the client calls it, in lower case and without parameters.
    pub content_type: Option<String>,
}

/// Reads a form to its end and keeps what is wanted, in whatever order it comes.
pub async fn receive(
    headers: &HeaderMap,
    body: Body,
    wanted: Wanted,
    options: &UploadOptions,
) -> Result<Received, UploadError> {
    let mut body = Chunks::new(body, options);
    let began = Instant::now();
    let form = read_form(headers, &mut body, wanted, options).await;
    request::note(|facts| {
        let seconds = began.elapsed().as_secs_f64();
        facts.upload_seconds = Some(seconds);
        facts.ended("upload", seconds);
    });
    match form {
        Err(error @ (UploadError::ClientGone(_) | UploadError::Stalled { .. } | UploadError::TooSlow { .. })) => {
            Err(error)
        }
        // A client that asked first waits for the answer with its body in hand.
        Err(error) if headers.contains_key(header::EXPECT) => Err(error),
        Err(error) => {
            body.drain(options.max_drain_bytes).await;
            Err(error)
        }
        received => received,
    }
}

/// Reads what nobody asked for, so that the answer is seen.
pub async fn discard(headers: &HeaderMap, body: Body, options: &UploadOptions) {
    if !headers.contains_key(header::EXPECT) {
        let mut body = Chunks::new(body, options);
        body.drain(options.max_drain_bytes).await;
    }
}

async fn read_form(
    headers: &HeaderMap,
    body: &mut Chunks,
    wanted: Wanted,
    options: &UploadOptions,
) -> Result<Received, UploadError> {
    let limit_bytes = options.max_upload_bytes;
    let too_large = |bytes: u64| bytes > limit_bytes.saturating_add(OVERHEAD_BYTES);
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(too_large) {
        return Err(UploadError::TooLarge { limit_bytes });
    }
    let content_type = Parameters::parse(headers.get(header::CONTENT_TYPE).map_or(b"", |value| value.as_bytes()));
    if content_type.value != "multipart/form-data" {
        body.drain(options.max_drain_bytes).await;
        return Ok(Received { file: FormFile::Missing, fields: Vec::new() });
    }
    let boundary = content_type.get("boundary").ok_or(UploadError::NoBoundary)?;
    let mut parser = Parser::new(boundary);
    let mut form = Form::new(wanted, options);
    let mut read_bytes = 0;
    while let Some(chunk) = body.next().await? {
        read_bytes += chunk.len() as u64;
        if too_large(read_bytes) {
            return Err(UploadError::TooLarge { limit_bytes });
        }
        parser.push(&chunk, |event| form.take(event))?;
        form.write_through(PIECE_BYTES).await?;
    }
    form.write_through(1).await?;
    Ok(form.finish())
}

/// The body, chunk by chunk, with a limit on silence and on slowness.
struct Chunks {
    stream: BodyDataStream,
    idle_timeout: Duration,
    least_bytes_per_second: u64,
    slow_after: Duration,
    /// Of the stretch that is judged next: time spent waiting for the client, and what came in it. The time in which the
    /// bytes are stored is not the client's.
    waited: Duration,
    received_bytes: u64,
}

impl Chunks {
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

    async fn next(&mut self) -> Result<Option<Bytes>, UploadError> {
        let silence_began = Instant::now();
        loop {
            let began = Instant::now();
            let silence_left = self.idle_timeout.saturating_sub(silence_began.elapsed());
            let stretch_left = match self.least_bytes_per_second {
                0 => Duration::MAX,
                _ => self.slow_after.saturating_sub(self.waited),
            };
            let patience = silence_left.min(stretch_left);
            let chunk = tokio::time::timeout(patience, self.stream.next()).await;
            self.waited += began.elapsed();
            match chunk {
                Ok(Some(Ok(chunk))) => {
                    self.received_bytes += chunk.len() as u64;
                    self.judge()?;
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => return Err(UploadError::ClientGone(error)),
                Ok(None) => return Ok(None),
                Err(_) => {
                    self.judge()?;
                    if silence_began.elapsed() >= self.idle_timeout {
                        return Err(UploadError::Stalled { seconds: self.idle_timeout.as_secs() });
                    }
                }
            }
        }
    }

    /// Begins a new stretch when one is over.
    fn judge(&mut self) -> Result<(), UploadError> {
        if self.least_bytes_per_second == 0 || self.waited < self.slow_after {
            return Ok(());
        }
        let (received_bytes, waited) = (self.received_bytes, self.waited);
        (self.received_bytes, self.waited) = (0, Duration::ZERO);
        if (received_bytes as f64) < self.least_bytes_per_second as f64 * waited.as_secs_f64() {
            let (seconds, least_bytes) = (waited.as_secs(), self.least_bytes_per_second);
            return Err(UploadError::TooSlow { received_bytes, seconds, least_bytes });
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

/// Where the part that is being read goes.
enum Current {
    Ignored,
    /// A field that nobody wants: only its length counts.
    OtherField(usize),
    Field {
        name: String,
        text: Vec<u8>,
    },
    /// A field where a file should be.
    Text(Vec<u8>),
    File {
        file_name: String,
        content_type: Option<String>,
        spool: Spool,
    },
}

/// The parts of a form, as they come.
struct Form<'a> {
    wanted: Wanted,
    options: &'a UploadOptions,
    current: Current,
    /// What the file has got and the spool has not: it goes to a disk.
    pending: Vec<u8>,
    /// The last whole part of that name.
    kept: Kept,
    texts: Vec<(String, String)>,
    /// Of all wanted fields together.
    text_bytes: usize,
    fields: usize,
    files: usize,
}

enum Kept {
    Missing,
    Text(String),
    File {
        file_name: String,
        content_type: Option<String>,
        spool: Spool,
        /// Its end, when the chunk that ended it also held some of it.
        tail: Vec<u8>,
    },
}

impl<'a> Form<'a> {
    fn new(wanted: Wanted, options: &'a UploadOptions) -> Self {
        Self {
            wanted,
            options,
            current: Current::Ignored,
            pending: Vec::new(),
            kept: Kept::Missing,
            texts: Vec::new(),
            text_bytes: 0,
            fields: 0,
            files: 0,
        }
    }

    fn take(&mut self, event: Event<'_>) -> Result<(), UploadError> {
        match event {
            Event::Begin { name, file_name, content_type } => self.begin(name, file_name, content_type),
            Event::Data(data) => self.data(data),
            Event::End => {
                self.end();
                Ok(())
            }
        }
    }

    fn begin(
        &mut self,
        name: String,
        file_name: Option<String>,
        content_type: Option<String>,
    ) -> Result<(), UploadError> {
        let is_file = file_name.is_some();
        let (count, refusal) = if is_file {
            (&mut self.files, UploadError::TooManyFiles)
        } else {
            (&mut self.fields, UploadError::TooManyFields)
        };
        *count += 1;
        if *count > PARTS_LIMIT {
            return Err(refusal);
        }
        self.current = match file_name {
            Some(file_name) if name == self.wanted.file => {
                Current::File { file_name, content_type, spool: Spool::new(self.spool_options()) }
            }
            Some(_) => Current::Ignored,
            None if name == self.wanted.file => Current::Text(Vec::new()),
            None if (self.wanted.keeps)(&name) => Current::Field { name, text: Vec::new() },
            None => Current::OtherField(0),
        };
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), UploadError> {
        let field_bytes = match &mut self.current {
            Current::Ignored => 0,
            Current::File { spool, .. } => {
                if self.pending.is_empty() && spool.stays_in_memory(data.len()) {
                    spool.write(data)?;
                } else {
                    self.pending.extend_from_slice(data);
                }
                0
            }
            Current::Text(text) => {
                text.extend_from_slice(data);
                text.len()
            }
            Current::Field { text, .. } => {
                text.extend_from_slice(data);
                self.text_bytes += data.len();
                self.text_bytes
            }
            Current::OtherField(len_bytes) => {
                *len_bytes += data.len();
                *len_bytes
            }
        };
        if field_bytes > FIELD_LIMIT_BYTES { Err(UploadError::FieldTooLarge) } else { Ok(()) }
    }

    fn end(&mut self) {
        match std::mem::replace(&mut self.current, Current::Ignored) {
            Current::Ignored | Current::OtherField(_) => {}
            Current::Field { name, text } => self.texts.push((name, decode(&text))),
            Current::Text(text) => self.kept = Kept::Text(decode(&text)),
            Current::File { file_name, content_type, spool } => {
                self.kept = Kept::File { file_name, content_type, spool, tail: std::mem::take(&mut self.pending) };
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

    /// Writes what waits once there is `least` of it.
    async fn write_through(&mut self, least: usize) -> Result<(), UploadError> {
        if let Kept::File { spool, tail, .. } = &mut self.kept
            && !tail.is_empty()
        {
            write(spool, tail).await?;
        }
        if let Current::File { spool, .. } = &mut self.current
            && self.pending.len() >= least
        {
            write(spool, &mut self.pending).await?;
        }
        Ok(())
    }

    fn finish(self) -> Received {
        let file = match self.kept {
            Kept::Missing => FormFile::Missing,
            Kept::Text(text) => FormFile::Text(text),
            Kept::File { file_name, content_type, spool, .. } => {
                FormFile::File(Upload { content: spool.finish(), file_name, content_type })
            }
        };
        Received { file, fields: self.texts }
    }
}

/// Moves `bytes` into the spool, on a disk, and leaves the buffer empty, with its room.
async fn write(spool: &mut Spool, bytes: &mut Vec<u8>) -> Result<(), UploadError> {
    let mut moved_spool = std::mem::replace(spool, Spool::new(SpoolOptions::default()));
    let mut moved_bytes = std::mem::take(bytes);
    let written = tokio::task::spawn_blocking(move || {
        let result = moved_spool.write(&moved_bytes);
        moved_bytes.clear();
        result.map(|()| (moved_spool, moved_bytes))
    });
    let written = written.await.map_err(|panicked| std::io::Error::other(panicked.to_string()));
    (*spool, *bytes) = written.map_err(crate::spool::SpoolError::Disk)??;
    Ok(())
}
