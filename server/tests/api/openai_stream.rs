//! `stream=true`: what comes when.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hush_server::api::ApiConfig;
use hush_server::job::JobError;
use hush_server::serve::ServeOptions;
use hush_whisper::Segment;

use crate::openai::{TRANSCRIPTIONS, with};
use crate::support::{ApiFixture, FakeModel, RawClient, golden, post, segment};

/// A client that has sent its request.
async fn client(server: &ApiFixture, fields: &[(&str, &str)]) -> RawClient {
    let mut client = server.connect().await;
    let fields = [&[("stream", "true")], fields].concat();
    client.write(&post(TRANSCRIPTIONS, "multipart/form-data; boundary=B", &with(&fields))).await;
    client
}

const FIRST: &str = "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Hello\\tworld --> é.\"}\n\n";
const SECOND: &str = "data: {\"type\":\"transcript.text.delta\",\"delta\":\" Bye.\"}\n\n";
const DONE: &str = "data: {\"type\":\"transcript.text.done\",\"text\":\"Hello\\tworld --> é. Bye.\",\"usage\":\
    {\"type\":\"tokens\",\"input_tokens\":25,\"output_tokens\":2,\"total_tokens\":27}}\n\n";

#[tokio::test]
async fn each_segment_arrives_before_the_next_is_made() {
    let server = ApiFixture::start(FakeModel::streaming(golden(), 0)).await;
    let mut client = client(&server, &[]).await;
    server.fake.segment_gate.add_permits(1);
    let head = client.head().await;
    assert_eq!(
        (head.status.as_str(), head.headers["content-type"].as_str()),
        ("200 OK", "text/event-stream; charset=utf-8")
    );
    assert_eq!(
        (head.headers["cache-control"].as_str(), head.headers["x-accel-buffering"].as_str()),
        ("no-cache", "no")
    );
    // The model cannot go on until this test has read the first piece.
    assert_eq!(client.chunk().await.as_deref(), Some(FIRST));
    server.fake.segment_gate.add_permits(1);
    assert_eq!(client.chunk().await.as_deref(), Some(SECOND));
    assert_eq!(client.chunk().await.as_deref(), Some(DONE));
    assert_eq!(client.chunk().await, None);
    let text = String::from_utf8(server.metrics.encode().unwrap()).unwrap();
    assert!(text.contains("hush_audio_seconds_total{model=\"tiny\"} 0.5\n"), "{text}");
}

/// An extension of OpenAI's API: a request for the granularity `segment` gets the times of each segment, and the language and
/// duration of the whole.
#[tokio::test]
async fn pieces_have_times_where_they_are_asked_for() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let mut client = client(&server, &[("timestamp_granularities[]", "segment")]).await;
    client.head().await;
    let first =
        "data: {\"type\":\"transcript.text.delta\",\"delta\":\"Hello\\tworld --> é.\",\"start\":0.0,\"end\":2.5}\n\n";
    assert_eq!(client.chunk().await.as_deref(), Some(first));
    let second =
        "data: {\"type\":\"transcript.text.delta\",\"delta\":\" Bye.\",\"start\":3661.2345,\"end\":3663.0}\n\n";
    assert_eq!(client.chunk().await.as_deref(), Some(second));
    let done = client.chunk().await.unwrap();
    assert!(done.ends_with(",\"language\":\"english\",\"duration\":0.5}\n\n"), "{done}");
}

#[tokio::test]
async fn what_fails_before_the_first_word_has_a_status() {
    let full = || JobError::QueueFull { model: "tiny".to_owned(), limit: 4, retry_after_seconds: 7 };
    let server = ApiFixture::start(FakeModel::failing(full)).await;
    let answer = client(&server, &[]).await.answer().await;
    assert_eq!((answer.status.as_str(), answer.headers["retry-after"].as_str()), ("429 Too Many Requests", "7"));
}

#[tokio::test]
async fn what_fails_later_is_an_event() {
    let lost = || JobError::RunnerLost { model: "tiny".to_owned(), cause: "signal 9".to_owned() };
    let server = ApiFixture::start(FakeModel::failing_after(golden(), lost)).await;
    let answer = client(&server, &[]).await.answer().await;
    let events: Vec<&str> = answer.body.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 3, "{}", answer.body);
    assert!(
        events[2].starts_with("data: {\"type\":\"error\",\"error\":{\"message\":\"The server had"),
        "{}",
        events[2]
    );
    assert!(
        events[2].ends_with("\"type\":\"server_error\",\"param\":null,\"code\":\"runner_lost\"}}"),
        "{}",
        events[2]
    );
}

#[tokio::test]
async fn a_silent_model_is_heard_to_live() {
    let config = ApiConfig { stream_heartbeat: Duration::from_millis(20), ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::streaming(golden(), 0), config, ServeOptions::default()).await;
    let mut client = client(&server, &[]).await;
    assert_eq!(client.head().await.status, "200 OK");
    for _ in 0..3 {
        assert_eq!(client.chunk().await.as_deref(), Some(": working\n\n"));
    }
    server.fake.segment_gate.add_permits(2);
    let mut events = Vec::new();
    while let Some(piece) = client.chunk().await {
        events.extend((!piece.starts_with(':')).then_some(piece));
    }
    assert_eq!(events, [FIRST, SECOND, DONE]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work() {
    let server =
        ApiFixture::start(FakeModel::streaming(vec![segment(0, 0.0, 1.0, " a"), segment(1, 1.0, 2.0, " b")], 1)).await;
    let mut client = client(&server, &[]).await;
    client.head().await;
    assert!(client.chunk().await.is_some());
    assert_eq!(server.fake.running.load(Ordering::SeqCst), 1);
    drop(client);
    server.until(|fake| fake.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn segments_without_text_are_no_events_and_logprobs_gather() {
    let said = Segment { tokens: vec![72], token_logprobs: vec![-0.25], ..segment(1, 0.0, 1.0, " H") };
    let server = ApiFixture::start(FakeModel::answering(vec![segment(0, 0.0, 0.0, ""), said])).await;
    let answer = client(&server, &[("include[]", "logprobs")]).await.answer().await;
    let logprobs = "\"logprobs\":[{\"token\":\"H\",\"logprob\":-0.25,\"bytes\":[72]}]";
    let expected = format!(
        "data: {{\"type\":\"transcript.text.delta\",\"delta\":\"H\",{logprobs}}}\n\n\
         data: {{\"type\":\"transcript.text.done\",\"text\":\"H\",{logprobs},\"usage\":\
         {{\"type\":\"tokens\",\"input_tokens\":25,\"output_tokens\":2,\"total_tokens\":27}}}}\n\n"
    );
    assert_eq!(answer.body, expected);
}
