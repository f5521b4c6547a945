//! A server on a real socket, a model that does what the test says, and a client that sees every byte.

// Clippy takes only functions marked #[test] for tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::ModelState;
use hush_server::api::{ApiConfig, ApiState, LiveFeed, SingleModelCatalogue, TranscriptionModel};
use hush_server::job::{JobError, JobTask, Transcription};
use hush_server::metrics::ServerMetrics;
use hush_server::recording::Recording;
use hush_server::serve::{ServeOptions, serve};
use hush_whisper::{Abilities, LanguageProbability, Segment, TranscribeOptions, Transcript};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Far longer than anything here takes; a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A model in the hands of the test.
pub struct FakeModel {
    segments: Vec<Segment>,
    error: Box<dyn Fn() -> Option<JobError> + Send + Sync>,
    /// One permit lets one job end.
    pub gate: Semaphore,
    /// One permit lets one segment out of a stream.
    pub segment_gate: Semaphore,
    pub missing: Mutex<Vec<String>>,
    /// What was asked, with the length of the audio in samples.
    pub asked: Mutex<Vec<(JobTask, u64)>>,
    pub running: AtomicUsize,
    pub cancelled: AtomicUsize,
    abilities: Option<Abilities>,
}

impl FakeModel {
    pub fn answering(segments: Vec<Segment>) -> Self {
        Self {
            segments,
            error: Box::new(|| None),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            segment_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            missing: Mutex::default(),
            asked: Mutex::default(),
            running: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            abilities: None,
        }
    }

    /// As a model that was trained for this.
    pub fn able(self, abilities: Abilities) -> Self {
        Self { abilities: Some(abilities), ..self }
    }

    /// Accepts jobs and ends none until the gate opens.
    pub fn loading(segments: Vec<Segment>) -> Self {
        Self { gate: Semaphore::new(0), ..Self::answering(segments) }
    }

    /// Streams a segment for each permit of `segment_gate`, of which there are this many.
    pub fn streaming(segments: Vec<Segment>, permits: usize) -> Self {
        Self { segment_gate: Semaphore::new(permits), ..Self::answering(segments) }
    }

    pub fn failing(error: impl Fn() -> JobError + Send + Sync + 'static) -> Self {
        Self::failing_after(Vec::new(), error)
    }

    /// Streams these segments and then fails.
    pub fn failing_after(segments: Vec<Segment>, error: impl Fn() -> JobError + Send + Sync + 'static) -> Self {
        Self { error: Box::new(move || Some(error())), ..Self::answering(segments) }
    }

    pub fn asked(&self) -> Vec<(JobTask, u64)> {
        self.asked.lock().unwrap().clone()
    }

    /// `answer` is told how many seconds the audio lasts.
    fn work<T: Send + 'static>(
        &self,
        mut recording: Recording,
        work: JobTask,
        answer: impl FnOnce(f64) -> T + Send + 'static,
    ) -> BoxFuture<'_, Result<T, JobError>> {
        async move {
            let pcm = recording.decode().await?;
            let answer = answer(pcm.duration_seconds());
            self.asked.lock().unwrap().push((work, pcm.len_samples()));
            self.running.fetch_add(1, Ordering::SeqCst);
            let mut running = RunningJob { fake: self, ended: false };
            self.gate.acquire().await.unwrap().forget();
            running.ended = true;
            drop(pcm);
            (self.error)().map_or(Ok(answer), Err)
        }
        .boxed()
    }
}

/// Counts a job that was dropped before its end as cancelled.
struct RunningJob<'a> {
    fake: &'a FakeModel,
    ended: bool,
}

impl Drop for RunningJob<'_> {
    fn drop(&mut self) {
        self.fake.running.fetch_sub(1, Ordering::SeqCst);
        if !self.ended {
            self.fake.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl TranscriptionModel for FakeModel {
    fn model(&self) -> &str {
        "tiny"
    }

    fn state(&self) -> ModelState {
        ModelState::Unloaded
    }

    fn abilities(&self) -> Option<Abilities> {
        self.abilities
    }

    fn missing(&self) -> Vec<String> {
        self.missing.lock().unwrap().clone()
    }

    fn transcribe(
        &self,
        recording: Recording,
        options: TranscribeOptions,
        _max_wait: Option<Duration>,
    ) -> BoxFuture<'_, Result<Transcription, JobError>> {
        let language = options.language.clone().unwrap_or("en".to_owned());
        let segments = self.segments.clone();
        self.work(recording, JobTask::Transcribe(options), |duration_seconds| {
            let transcript =
                Transcript { language, language_probability: None, duration_seconds, ..Transcript::default() };
            Transcription { transcript, segments }
        })
    }

    fn stream(
        &self,
        mut recording: Recording,
        options: TranscribeOptions,
        _max_wait: Option<Duration>,
        to: mpsc::Sender<Segment>,
    ) -> BoxFuture<'_, Result<Transcript, JobError>> {
        let language = options.language.clone().unwrap_or("en".to_owned());
        async move {
            let pcm = recording.decode().await?;
            let duration_seconds = pcm.duration_seconds();
            let transcript =
                Transcript { language, language_probability: None, duration_seconds, ..Transcript::default() };
            self.asked.lock().unwrap().push((JobTask::Transcribe(options), pcm.len_samples()));
            self.running.fetch_add(1, Ordering::SeqCst);
            let mut running = RunningJob { fake: self, ended: false };
            for segment in &self.segments {
                self.segment_gate.acquire().await.unwrap().forget();
                to.send(segment.clone()).await.unwrap();
            }
            self.gate.acquire().await.unwrap().forget();
            running.ended = true;
            drop(pcm);
            (self.error)().map_or(Ok(transcript), Err)
        }
        .boxed()
    }

    /// The token `n` is the letter `n`; from 50257 on there is no text.
    fn token_bytes(&self, tokens: Vec<u32>) -> BoxFuture<'_, Result<Vec<Option<Vec<u8>>>, JobError>> {
        let bytes = |token: u32| (token < 50_257).then(|| vec![u8::try_from(token).unwrap()]);
        std::future::ready(Ok(tokens.into_iter().map(bytes).collect())).boxed()
    }

    fn detect_language(&self, recording: Recording) -> BoxFuture<'_, Result<Vec<LanguageProbability>, JobError>> {
        let languages = [("en", 0.98), ("zh", 0.01)]
            .map(|(code, probability)| LanguageProbability { code: code.to_owned(), probability });
        self.work(recording, JobTask::DetectLanguage, move |_| languages.to_vec())
    }
}

pub fn segment(id: usize, start_seconds: f64, end_seconds: f64, text: &str) -> Segment {
    Segment {
        id,
        seek: 0,
        start_seconds,
        end_seconds,
        text: text.to_owned(),
        tokens: vec![50364],
        temperature: 0.0,
        avg_logprob: -0.25,
        compression_ratio: 1.0,
        no_speech_prob: 1e-5,
        ..Segment::default()
    }
}

/// The transcript of reference/whisper-asr-api.md, a.2.
pub fn golden() -> Vec<Segment> {
    vec![segment(0, 0.0, 2.5, " Hello\tworld --> é."), segment(1, 3661.2345, 3663.0, " Bye.")]
}

pub const GOLDEN_SRT: &str = "1\n00:00:00,000 --> 00:00:02,500\nHello\tworld -> é.\n\n\
                              2\n01:01:01,234 --> 01:01:03,000\nBye.\n\n";

pub struct ApiFixture {
    pub address: SocketAddr,
    pub fake: Arc<FakeModel>,
    /// Without what is around them.
    pub routes: axum::Router,
    pub metrics: Arc<ServerMetrics>,
    pub shutdown: CancellationToken,
    pub served: tokio::task::JoinHandle<()>,
}

impl ApiFixture {
    pub async fn start(fake: FakeModel) -> Self {
        Self::with(fake, ApiConfig::default(), ServeOptions::default()).await
    }

    pub async fn with(fake: FakeModel, config: ApiConfig, options: ServeOptions) -> Self {
        Self::showing(LiveFeed::default(), fake, config, options).await
    }

    pub async fn showing(live: LiveFeed, fake: FakeModel, config: ApiConfig, options: ServeOptions) -> Self {
        let fake = Arc::new(fake);
        let metrics = Arc::new(ServerMetrics::new().unwrap());
        let speech: Arc<dyn TranscriptionModel> = fake.clone();
        let state = ApiState::new(Arc::new(SingleModelCatalogue(speech)), Arc::clone(&metrics), config).with_live(live);
        let routes = hush_server::api::routes(state.clone());
        let router = hush_server::api::router(state);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, router, shutdown.clone(), options));
        Self { address, fake, routes, metrics, shutdown, served }
    }

    pub async fn connect(&self) -> RawClient {
        RawClient { stream: TcpStream::connect(self.address).await.unwrap(), read: Vec::new() }
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: impl AsRef<[u8]>) -> RawResponse {
        let mut client = self.connect().await;
        client.write(request.as_ref()).await;
        client.answer().await
    }

    pub async fn get(&self, path: &str) -> RawResponse {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await
    }

    pub async fn post(&self, path_and_query: &str, body: &[u8]) -> RawResponse {
        self.send(post(path_and_query, "multipart/form-data; boundary=B", body)).await
    }

    /// Waits until `done` is true of the model.
    pub async fn until(&self, done: impl Fn(&FakeModel) -> bool) {
        until(|| done(&self.fake)).await;
    }
}

pub async fn until(done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.expect("the condition was not reached");
}

pub fn post(path_and_query: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path_and_query} HTTP/1.1\r\nHost: h\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A part without its closing boundary.
pub fn part(disposition: &str, data: &[u8]) -> Vec<u8> {
    [format!("--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\n").as_bytes(), data, b"\r\n"].concat()
}

pub fn form(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), b"--B--\r\n".to_vec()].concat()
}

/// The one part that Bazarr sends.
pub fn audio_file(data: &[u8]) -> Vec<u8> {
    form(&[part("name=\"audio_file\"; filename=\"audio_file\"", data)])
}

/// Raw samples: half a second.
pub fn half_a_second() -> Vec<u8> {
    vec![0; 16_000]
}

pub struct RawClient {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl RawClient {
    pub async fn write(&mut self, bytes: &[u8]) {
        tokio::time::timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("the server did not read").unwrap();
    }

    async fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut buffer));
        let read = read.await.expect("the server did not answer").unwrap();
        self.read.extend_from_slice(&buffer[..read]);
        read > 0
    }

    /// Reads up to and with `end`.
    async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end) {
                return self.read.drain(..at + end.len()).collect();
            }
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.read));
        }
        self.read.drain(..length).collect()
    }

    /// The answer to a request with a body (not to HEAD).
    pub async fn answer(&mut self) -> RawResponse {
        let mut answer = self.head().await;
        if let Some(length) = answer.headers.get("content-length") {
            answer.body = String::from_utf8(self.exactly(length.parse().unwrap()).await).unwrap();
        } else if answer.headers.contains_key("transfer-encoding") {
            let mut body = Vec::new();
            loop {
                let size = String::from_utf8(self.until(b"\r\n").await).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                body.extend(self.exactly(size).await);
                assert_eq!(self.exactly(2).await, b"\r\n");
                if size == 0 {
                    break;
                }
            }
            answer.body = String::from_utf8(body).unwrap();
        }
        answer
    }

    /// One piece of a chunked body; `None` behind the last.
    pub async fn chunk(&mut self) -> Option<String> {
        let size = String::from_utf8(self.until(b"\r\n").await).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let data = self.exactly(size).await;
        assert_eq!(self.exactly(2).await, b"\r\n");
        (size > 0).then(|| String::from_utf8(data).unwrap())
    }

    /// Status and headers, without the two that differ each time.
    pub async fn head(&mut self) -> RawResponse {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap().to_owned();
        let mut headers: BTreeMap<String, String> =
            lines.map(|line| line.split_once(": ").unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        headers.remove("date");
        RawResponse { id: headers.remove("x-request-id"), status, headers, body: String::new() }
    }

    /// Whether the server has closed the connection.
    pub async fn closed(&mut self) -> bool {
        let mut buffer = [0; 1];
        let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut buffer)).await.expect("still open");
        !matches!(read, Ok(1))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct RawResponse {
    pub id: Option<String>,
    pub status: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl RawResponse {
    #[track_caller]
    pub fn is(&self, status: &str, headers: &[(&str, &str)], body: &str) {
        let found: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!((self.status.as_str(), found.as_slice(), self.body.as_str()), (status, headers, body));
    }

    /// A refusal as FastAPI writes it.
    #[track_caller]
    pub fn is_json(&self, status: &str, body: &str) {
        let length = body.len().to_string();
        self.is(status, &[("content-length", &length), ("content-type", "application/json")], body);
    }

    #[track_caller]
    pub fn is_transcript(&self, file_name: &str, body: &str) {
        let headers = [
            ("asr-engine", "openai_whisper"),
            ("content-disposition", &format!("attachment; filename=\"{file_name}\"")),
            ("content-type", "text/plain; charset=utf-8"),
            ("transfer-encoding", "chunked"),
        ];
        self.is("200 OK", &headers, body);
    }
}
