//! Uploads that want more than their part of the server: slow ones, many, and all at once.

use std::time::Duration;

use hush_listener::budget::ByteBudget;
use hush_server::api::{ApiConfig, UploadOptions};
use hush_server::serve::ServeOptions;

use crate::support::{ApiFixture, FakeModel, RawClient, audio_file, golden, half_a_second, post, until};

const FORM: &str = "multipart/form-data; boundary=B";

async fn server(upload: UploadOptions) -> ApiFixture {
    let config = ApiConfig { upload, ..ApiConfig::default() };
    ApiFixture::with(FakeModel::loading(golden()), config, ServeOptions::default()).await
}

/// Sends the head and the first part of an upload, and stops.
async fn stalled(server: &ApiFixture, path: &str, length: usize, sent: usize) -> RawClient {
    let mut client = server.connect().await;
    let request = post(path, FORM, &audio_file(&vec![1; length]));
    let head = request.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    client.write(&request[..head + sent]).await;
    client
}

#[tokio::test]
async fn an_upload_that_trickles_is_ended() {
    let upload = UploadOptions {
        least_bytes_per_second: 10_000,
        slow_after: Duration::from_millis(300),
        ..UploadOptions::default()
    };
    let server = server(upload).await;
    for (path, code) in [("/asr", None), ("/v1/audio/transcriptions", Some("upload_too_slow"))] {
        // Much at first is no excuse for what comes later.
        let mut client = stalled(&server, path, 1_000_000, 100_000).await;
        let mut bytes = 0;
        while tokio::time::timeout(Duration::from_millis(20), client.stream.readable()).await.is_err() {
            client.write(b"\x01").await;
            bytes += 1;
            assert!(bytes < 500, "it goes on and on");
        }
        let answer = client.answer().await;
        assert_eq!(answer.status, "408 Request Timeout");
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        let message = if code.is_some() { &body["error"]["message"] } else { &body["detail"] };
        assert!(message.as_str().unwrap().contains("at least 10000 bytes a second"), "{}", answer.body);
        assert_eq!(body["error"]["code"].as_str(), code);
        assert!(client.closed().await);
    }
}

#[tokio::test]
async fn an_upload_that_is_fast_enough_is_served() {
    let upload = UploadOptions {
        least_bytes_per_second: 1_000,
        slow_after: Duration::from_millis(100),
        ..UploadOptions::default()
    };
    let server = server(upload).await;
    server.fake.gate.add_permits(1);
    let mut client = server.connect().await;
    for piece in post("/asr?encode=false&output=txt", FORM, &audio_file(&half_a_second())).chunks(1_000) {
        client.write(piece).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.answer().await.status, "200 OK");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_uploads_share_the_memory_and_then_go_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, all) = (ByteBudget::new("memory", 1_000_000), ByteBudget::new("uploads", 20_000_000));
    let upload = UploadOptions {
        memory_bytes: 400_000,
        dir: Some(dir.path().to_owned()),
        memory_budget: Some(memory.clone()),
        budget: Some(all.clone()),
        ..UploadOptions::default()
    };
    let server = server(upload).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(stalled(&server, "/asr", 400_000, 350_000).await);
    }
    // Some 64 KiB of each wait for the disk.
    until(|| all.used_bytes() > 20 * 250_000).await;
    assert!(memory.used_bytes() <= 1_000_000, "{}", memory.used_bytes());
    drop(clients);
    until(|| all.used_bytes() == 0 && memory.used_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_all_uploads_may_hold_is_507_and_comes_back() {
    let all = ByteBudget::new("there is no room for the upload (--max-spool)", 1_000_000);
    let upload = UploadOptions { budget: Some(all.clone()), ..UploadOptions::default() };
    let server = server(upload).await;
    let mut waiting = server.connect().await;
    waiting.write(&post("/asr?encode=false", FORM, &audio_file(&vec![0; 900_000]))).await;
    server.until(|fake| fake.asked().len() == 1).await;
    let answer = server.post("/asr?encode=false", &audio_file(&vec![0; 200_000])).await;
    assert_eq!(answer.status, "507 Insufficient Storage");
    assert_eq!(answer.headers["retry-after"], "30");
    assert!(answer.body.contains("--max-spool"), "{}", answer.body);
    let form = crate::support::form(&[crate::support::part("name=\"file\"; filename=\"a\"", &vec![0; 200_000])]);
    let answer = server.post("/v1/audio/transcriptions", &form).await;
    assert_eq!(answer.status, "507 Insufficient Storage");
    assert!(answer.body.contains("storage_full") && answer.headers["retry-after"] == "30", "{}", answer.body);
    server.fake.gate.add_permits(2);
    assert_eq!(waiting.answer().await.status, "200 OK");
    until(|| all.used_bytes() == 0).await;
    assert_eq!(server.post("/asr?encode=false", &audio_file(&vec![0; 200_000])).await.status, "200 OK");
}
