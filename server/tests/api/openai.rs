//! OpenAI's audio API, byte for byte.

use hush_server::api::{ApiConfig, UploadOptions};
use hush_server::job::{JobError, JobTask};
use hush_server::serve::ServeOptions;
use hush_whisper::{Segment, SpeechTask, TranscribeOptions, Word};

use crate::support::{ApiFixture, FakeModel, GOLDEN_SRT, RawResponse, form, golden, half_a_second, part, segment};

pub const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

/// Half a second of raw samples.
pub fn file() -> Vec<u8> {
    let head =
        b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.pcm\"\r\nContent-Type: audio/pcm\r\n\r\n";
    [head.as_slice(), &half_a_second(), b"\r\n"].concat()
}

/// The file first, then the fields.
pub fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| part(&format!("name=\"{name}\""), value.as_bytes()));
    form(&[vec![file()], fields.collect()].concat())
}

#[track_caller]
pub fn is_error(answer: &RawResponse, status: &str, r#type: &str, param: &str, code: &str) {
    let quote = |text: &str| if text == "null" { text.to_owned() } else { format!("\"{text}\"") };
    let tail = format!("\",\"type\":\"{type}\",\"param\":{},\"code\":{}}}}}", quote(param), quote(code));
    assert_eq!((answer.status.as_str(), answer.headers["content-type"].as_str()), (status, "application/json"));
    assert!(answer.body.starts_with("{\"error\":{\"message\":\"") && answer.body.ends_with(&tail), "{}", answer.body);
    assert!(answer.id.is_some());
}

#[tokio::test]
async fn every_format() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let post = async |format: &str| {
        server.post(TRANSCRIPTIONS, &with(&[("model", "whisper-1"), ("response_format", format)])).await
    };
    let text = "Hello\tworld --> é. Bye.";
    let json =
        format!("{{\"text\":\"{}\",\"usage\":{{\"type\":\"duration\",\"seconds\":1}}}}", text.replace('\t', "\\t"));
    post("json").await.is_json("200 OK", &json);
    server.post(TRANSCRIPTIONS, &with(&[])).await.is_json("200 OK", &json);
    let is = |answer: &RawResponse, content_type: &str, body: &str| {
        let length = body.len().to_string();
        answer.is("200 OK", &[("content-length", &length), ("content-type", content_type)], body);
    };
    is(&post("text").await, "text/plain; charset=utf-8", &format!("{text}\n"));
    is(&post("srt").await, "text/plain; charset=utf-8", GOLDEN_SRT);
    let vtt = "WEBVTT\n\n00:00.000 --> 00:02.500\nHello\tworld -> é.\n\n01:01:01.234 --> 01:01:03.000\nBye.\n\n";
    is(&post("vtt").await, "text/vtt; charset=utf-8", vtt);
    let verbose = "{\"task\":\"transcribe\",\"language\":\"english\",\"duration\":0.5,\
        \"text\":\"Hello\\tworld --> é. Bye.\",\"segments\":[\
        {\"id\":0,\"seek\":0,\"start\":0.0,\"end\":2.5,\"text\":\" Hello\\tworld --> é.\",\"tokens\":[50364],\
        \"temperature\":0.0,\"avg_logprob\":-0.25,\"compression_ratio\":1.0,\"no_speech_prob\":1e-05},\
        {\"id\":1,\"seek\":0,\"start\":3661.2345,\"end\":3663.0,\"text\":\" Bye.\",\"tokens\":[50364],\
        \"temperature\":0.0,\"avg_logprob\":-0.25,\"compression_ratio\":1.0,\"no_speech_prob\":1e-05}],\
        \"usage\":{\"type\":\"duration\",\"seconds\":1}}";
    post("verbose_json").await.is_json("200 OK", verbose);
}

#[tokio::test]
async fn words_alone_and_beside_segments() {
    let word = Word { text: " Bye.".to_owned(), start_seconds: 0.5, end_seconds: 1.0, probability: 0.9 };
    let said = Segment { words: vec![word], ..segment(0, 0.0, 1.0, " Bye.") };
    let server = ApiFixture::start(FakeModel::answering(vec![said])).await;
    let verbose = ("response_format", "verbose_json");
    let words = "\"words\":[{\"word\":\"Bye.\",\"start\":0.5,\"end\":1.0}]";
    for name in ["timestamp_granularities[]", "timestamp_granularities"] {
        let alone = server.post(TRANSCRIPTIONS, &with(&[verbose, (name, "word")])).await;
        assert!(alone.body.contains(words) && !alone.body.contains("segments"), "{}", alone.body);
        let both = server.post(TRANSCRIPTIONS, &with(&[verbose, (name, "word"), (name, "segment")])).await;
        assert!(both.body.contains(words) && both.body.contains("\"segments\":[{\"id\":0,"), "{}", both.body);
        let none = server.post(TRANSCRIPTIONS, &with(&[verbose, (name, "segment")])).await;
        assert!(!none.body.contains("words") && none.body.contains("segments"), "{}", none.body);
        let json = server.post(TRANSCRIPTIONS, &with(&[(name, "word")])).await;
        is_error(&json, "400 Bad Request", "invalid_request_error", "timestamp_granularities", "unsupported_value");
    }
}

#[tokio::test]
async fn fields_come_before_or_behind_the_file() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let fields = [
        part("name=\"model\"", b"tiny"),
        part("name=\"language\"", b"de"),
        part("name=\"prompt\"", b"Gr\xc3\xbc\xc3\x9fe"),
        part("name=\"temperature\"", b"0.2"),
        part("name=\"known_speaker_names[]\"", b"Anna"),
    ];
    let before = form(&[fields.to_vec(), vec![file()]].concat());
    let behind = form(&[vec![file()], fields.to_vec()].concat());
    for body in [before, behind] {
        assert_eq!(server.post(TRANSCRIPTIONS, &body).await.status, "200 OK");
    }
    let options = TranscribeOptions {
        language: Some("de".to_owned()),
        initial_prompt: Some("Grüße".to_owned()),
        temperatures: vec![0.2],
        ..TranscribeOptions::default()
    };
    assert_eq!(server.fake.asked(), vec![(JobTask::Transcribe(options), 8000); 2]);
}

#[tokio::test]
async fn translations_are_english() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let answer = server.post("/v1/audio/translations", &with(&[("response_format", "verbose_json")])).await;
    assert!(answer.body.starts_with("{\"task\":\"translate\",\"language\":\"english\","), "{}", answer.body);
    let options = TranscribeOptions { task: SpeechTask::Translate, ..TranscribeOptions::default() };
    assert_eq!(server.fake.asked(), [(JobTask::Transcribe(options), 8000)]);
}

#[tokio::test]
async fn logprobs_are_those_of_tokens_with_text() {
    let said = Segment {
        tokens: vec![50_364, 72, 0xc3],
        token_logprobs: vec![-0.5, -0.25, -0.125],
        ..segment(0, 0.0, 1.0, " H")
    };
    let server = ApiFixture::start(FakeModel::answering(vec![said])).await;
    let answer = server.post(TRANSCRIPTIONS, &with(&[("include[]", "logprobs")])).await;
    let expected = "{\"text\":\"H\",\"logprobs\":[{\"token\":\"H\",\"logprob\":-0.25,\"bytes\":[72]},\
        {\"token\":\"bytes:\\\\xc3\",\"logprob\":-0.125,\"bytes\":[195]}],\"usage\":{\"type\":\"duration\",\"seconds\":1}}";
    answer.is_json("200 OK", expected);
}

#[tokio::test]
async fn models() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let model = r#"{"id":"tiny","object":"model","created":0,"owned_by":"hush"}"#;
    server.get("/v1/models").await.is_json("200 OK", &format!(r#"{{"object":"list","data":[{model}]}}"#));
    for name in ["tiny", "whisper-1", "openai/whisper-tiny", "openai%2Fwhisper-tiny"] {
        server.get(&format!("/v1/models/{name}")).await.is_json("200 OK", model);
    }
    let answer = server.get("/v1/models/large").await;
    is_error(&answer, "404 Not Found", "invalid_request_error", "model", "model_not_found");
    assert!(answer.body.contains("It has: tiny."), "{}", answer.body);
    let answer = server.post(TRANSCRIPTIONS, &with(&[("model", "gpt-4o-transcribe-diarize")])).await;
    is_error(&answer, "404 Not Found", "invalid_request_error", "model", "model_not_found");
    for name in ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe-2025-12-15"] {
        assert_eq!(server.post(TRANSCRIPTIONS, &with(&[("model", name)])).await.status, "200 OK", "{name}");
    }
}

#[tokio::test]
async fn errors_have_the_shape_of_openai_everywhere_below_v1() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let invalid = "invalid_request_error";
    is_error(&server.get("/v1/nope").await, "404 Not Found", invalid, "null", "unknown_url");
    is_error(&server.post("/v1/chat/completions", &with(&[])).await, "404 Not Found", invalid, "null", "unknown_url");
    let answer = server.get(TRANSCRIPTIONS).await;
    is_error(&answer, "405 Method Not Allowed", invalid, "null", "method_not_allowed");
    assert_eq!(answer.headers["allow"], "POST");
    let post = async |body: &[u8]| server.post(TRANSCRIPTIONS, body).await;
    is_error(&post(b"--B--\r\n").await, "400 Bad Request", invalid, "file", "missing_required_parameter");
    let text = form(&[part("name=\"file\"", b"x")]);
    is_error(&post(&text).await, "400 Bad Request", invalid, "file", "invalid_value");
    is_error(&post(b"no form").await, "400 Bad Request", invalid, "null", "invalid_form");
    let noise = form(&[part("name=\"file\"; filename=\"a.mp3\"", b"this is no audio at all")]);
    is_error(&post(&noise).await, "400 Bad Request", invalid, "file", "invalid_file_format");
    let empty = form(&[part("name=\"file\"; filename=\"a.mp3\"", b"")]);
    is_error(&post(&empty).await, "400 Bad Request", invalid, "file", "empty_file");
    let format = with(&[("response_format", "tsv")]);
    is_error(&post(&format).await, "400 Bad Request", invalid, "response_format", "unsupported_value");
    let prompt = with(&[("prompt", &"x".repeat(2 << 20))]);
    is_error(&post(&prompt).await, "400 Bad Request", invalid, "null", "invalid_form");
    assert_eq!(server.fake.asked(), []);
}

#[tokio::test]
async fn a_file_that_is_too_large() {
    let upload = UploadOptions { max_upload_bytes: 1000, ..UploadOptions::default() };
    let config = ApiConfig { upload, ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await;
    let answer = server.post(TRANSCRIPTIONS, &with(&[])).await;
    is_error(&answer, "413 Payload Too Large", "server_error", "null", "null");
    assert!(answer.body.contains("Maximum content size limit (1000) exceeded"), "{}", answer.body);
}

#[tokio::test]
async fn a_model_that_cannot_now() {
    let full = || JobError::QueueFull { model: "tiny".to_owned(), limit: 4, retry_after_seconds: 500 };
    let server = ApiFixture::start(FakeModel::failing(full)).await;
    let answer = server.post(TRANSCRIPTIONS, &with(&[])).await;
    is_error(&answer, "429 Too Many Requests", "rate_limit_error", "null", "queue_full");
    assert_eq!(answer.headers["retry-after"], "120");
    let server = ApiFixture::start(FakeModel::failing(|| JobError::Failed("at /models/x".to_owned()))).await;
    let answer = server.post(TRANSCRIPTIONS, &with(&[])).await;
    is_error(&answer, "500 Internal Server Error", "server_error", "null", "transcription_failed");
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert!(!answer.body.contains("/models"), "{}", answer.body);
}
