//! Bodies and queries of the public API, through its router: forms that are damaged, cut, repeated, and split differently by
//! the network.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use futures_util::stream;
use hush_server::api::{self, ApiConfig, ApiState, SingleModelCatalogue, TranscriptionModel, UploadOptions};
use hush_server::metrics::ServerMetrics;
use proptest::prelude::*;
use tower::ServiceExt;

use crate::api_support::{FakeModel, form, golden, part};
use crate::damage::{Damages, damages};
use crate::harness::{FuzzLimits, fuzz};

/// A file is held in memory up to 64 kB, a field up to 1 MB; a boundary, headers and the response are small.
const LIMITS: FuzzLimits = FuzzLimits { bytes: 8 << 20, time: Duration::from_secs(30) };

/// Repeated, each of these is some megabytes that the server must not hold.
const PATTERNS: [&[u8]; 9] =
    [b"\r\n", b"-", b"\r\n--B", b"\r\n--B\r\n\r\n", b" ", b"\r", b"X: y\r\n", b"\0", b"--B\r\nContent-Disposition: "];
const PATTERN_BYTES: usize = 64 << 10;

#[derive(Clone, Debug)]
enum BodyPiece {
    /// The next bytes of the form, at most so many.
    Form(usize),
    Bytes(Vec<u8>),
    Pattern(usize, usize),
}

#[derive(Clone, Debug)]
struct UploadCase {
    path: &'static str,
    /// The boundary in the header; that of the form is `B`.
    boundary: String,
    fields: Vec<(String, String)>,
    audio: Vec<u8>,
    damages: Option<Damages>,
    pieces: Vec<BodyPiece>,
}

fn uploads() -> impl Strategy<Value = UploadCase> {
    let path = prop::sample::select(vec![
        "/asr?encode=false&output=srt",
        "/asr?output=json",
        "/detect-language?encode=false",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    ]);

    let boundary = prop_oneof![9 => Just("B".to_owned()), 1 => "[ -~]{0,80}"];
    let name = prop_oneof![
        prop::sample::select(vec!["model", "language", "response_format", "temperature", "stream", "beam_size"])
            .prop_map(str::to_owned),
        "[a-z\\[\\]_\"\\\\;=]{0,12}",
    ];

    let piece = prop_oneof![
        6 => (1_usize..3000).prop_map(BodyPiece::Form),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(BodyPiece::Bytes),
        1 => (0..PATTERNS.len(), 1_usize..64).prop_map(|(pattern, times)| BodyPiece::Pattern(pattern, times)),
    ];

    (
        path,
        boundary,
        prop::collection::vec((name, ".{0,30}"), 0..6),
        prop::collection::vec(any::<u8>(), 0..4000),
        prop::option::weighted(0.7, damages()),
        prop::collection::vec(piece, 0..24),
    )
        .prop_map(|(path, boundary, fields, audio, damages, pieces)| UploadCase {
            path,
            boundary,
            fields,
            audio,
            damages,
            pieces,
        })
}

impl UploadCase {
    fn body(&self) -> Vec<Bytes> {
        let file = if self.path.starts_with("/v1") { "file" } else { "audio_file" };
        let mut parts: Vec<_> =
            self.fields.iter().map(|(name, value)| part(&format!("name=\"{name}\""), value.as_bytes())).collect();
        parts.push(part(&format!("name=\"{file}\"; filename=\"a.pcm\""), &self.audio));
        let mut whole = form(&parts);
        if let Some(damages) = &self.damages {
            damages.apply(&mut whole);
        }

        let mut rest = Bytes::from(whole);
        let mut body = Vec::new();

        for piece in &self.pieces {
            match piece {
                BodyPiece::Form(length) => body.push(rest.split_to((*length).min(rest.len()))),
                BodyPiece::Bytes(bytes) => body.push(Bytes::from(bytes.clone())),
                BodyPiece::Pattern(pattern, times) => {
                    let pattern = PATTERNS[*pattern];
                    // One block of memory, sent several times.
                    let repeated = Bytes::from(pattern.repeat(PATTERN_BYTES / pattern.len()));
                    body.extend(std::iter::repeat_n(repeated, *times));
                }
            }
        }

        body.push(rest);

        body
    }
}

fn router() -> axum::Router {
    let upload = UploadOptions { memory_bytes: 64 << 10, max_upload_bytes: 1 << 20, ..UploadOptions::default() };
    let speech: Arc<dyn TranscriptionModel> = Arc::new(FakeModel::answering(golden()));
    let config = ApiConfig { upload, ..ApiConfig::default() };
    api::router(ApiState::new(Arc::new(SingleModelCatalogue(speech)), Arc::new(ServerMetrics::new().unwrap()), config))
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// The router's response, computed on this thread.
fn response(router: &axum::Router, request: Request<Body>) -> Response {
    RUNTIME.block_on(router.clone().oneshot(request)).unwrap()
}

fn assert_expected(status: StatusCode) {
    let is_refusal = matches!(status.as_u16(), 400 | 404 | 413 | 422);
    assert!(status.is_success() || is_refusal, "{status}");
}

#[test]
fn forms() {
    let router = router();
    fuzz("forms", 300, LIMITS, uploads(), |upload| {
        let pieces = upload.body().into_iter().map(Ok::<_, std::convert::Infallible>);
        let content_type = format!("multipart/form-data; boundary=\"{}\"", upload.boundary);
        let request = Request::post(upload.path).header("content-type", content_type);
        assert_expected(response(&router, request.body(Body::from_stream(stream::iter(pieces))).unwrap()).status());
    });
}

#[test]
fn queries() {
    let names = [
        "encode",
        "task",
        "language",
        "initial_prompt",
        "vad_filter",
        "vad_parallel",
        "word_timestamps",
        "output",
        "highlight_words",
        "max_line_width",
        "max_line_count",
        "max_words_per_line",
        "diarize",
        "min_speakers",
    ];

    let value = prop_oneof![
        "[ -~]{0,12}",
        "-?[0-9]{1,40}(\\.[0-9]{0,9})?",
        prop::sample::select(vec!["true", "false", "1", "0", "srt", "json", "translate", "de", "%00", "%ff%fe"])
            .prop_map(str::to_owned),
    ];

    let pairs = prop::collection::vec((prop::sample::select(names.to_vec()), value), 0..10);
    let router = router();

    fuzz("queries", 300, LIMITS, pairs, |pairs| {
        let escape =
            |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02x}") };
        let query: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", value.bytes().map(escape).collect::<String>()))
            .collect();

        let audio = form(&[part("name=\"audio_file\"; filename=\"a\"", &[0; 3200])]);
        let request = Request::post(format!("/asr?{}", query.join("&")));
        let request = request.header("content-type", "multipart/form-data; boundary=B");

        assert_expected(response(&router, request.body(Body::from(audio)).unwrap()).status());
    });
}
