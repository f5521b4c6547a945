//! Bodies that are slow, large, cut off or too much.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hush_server::api::{ApiConfig, UploadOptions};
use hush_server::serve::ServeOptions;

use crate::support::{ApiFixture, FakeModel, GOLDEN_SRT, audio_file, form, golden, half_a_second, part, post, until};

fn config(upload: UploadOptions) -> ApiConfig {
    ApiConfig { upload, ..ApiConfig::default() }
}

/// Every byte is taken while the model loads, however slowly it comes.
#[tokio::test]
async fn a_slow_upload_meets_a_loading_model() {
    let server = ApiFixture::start(FakeModel::loading(golden())).await;
    let target = "/asr?encode=false&output=srt";
    let mut waiting = server.connect().await;
    waiting.write(&post(target, "multipart/form-data; boundary=B", &audio_file(&half_a_second()))).await;
    server.until(|fake| fake.asked().len() == 1).await;
    let mut slow = server.connect().await;
    for piece in post(target, "multipart/form-data; boundary=B", &audio_file(&half_a_second())).chunks(97) {
        slow.write(piece).await;
        tokio::task::yield_now().await;
    }
    server.until(|fake| fake.asked().len() == 2).await;
    assert_eq!(server.get("/healthz").await.body, "ok");
    server.fake.gate.add_permits(2);
    for client in [&mut waiting, &mut slow] {
        client.answer().await.is_transcript("audio_file.srt", GOLDEN_SRT);
    }
    assert!(server.fake.asked().iter().all(|(_, samples)| *samples == 8000));
}

/// More than all socket buffers hold, from several clients at once: only a server that reads can take it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_do_not_wait_for_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let upload = UploadOptions { memory_bytes: 1 << 20, dir: Some(dir.path().to_owned()), ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::loading(golden()), config(upload), ServeOptions::default()).await;
    let samples: Vec<u8> = (0..20_000_000u32).map(|at| (at % 251) as u8).collect();
    let request = post("/asr?encode=false&output=srt", "multipart/form-data; boundary=B", &audio_file(&samples));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = server.connect().await;
        client.write(&request).await;
        clients.push(client);
    }
    server.until(|fake| fake.asked().len() == 4).await;
    assert_eq!(open_files(dir.path()), 4);
    server.fake.gate.add_permits(4);
    for client in &mut clients {
        client.answer().await.is_transcript("audio_file.srt", GOLDEN_SRT);
    }
    assert!(server.fake.asked().iter().all(|(_, length)| *length == 10_000_000));
    until(|| open_files(dir.path()) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once() {
    let server = Arc::new(ApiFixture::start(FakeModel::loading(golden())).await);
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let server = Arc::clone(&server);
            tokio::spawn(
                async move { server.post("/asr?encode=false&output=srt", &audio_file(&half_a_second())).await },
            )
        })
        .collect();
    server.until(|fake| fake.running.load(Ordering::SeqCst) == 200).await;
    assert_eq!(server.get("/healthz").await.body, "ok");
    server.fake.gate.add_permits(200);
    for client in clients {
        client.await.unwrap().is_transcript("audio_file.srt", GOLDEN_SRT);
    }
}

#[tokio::test]
async fn too_large() {
    let upload = UploadOptions { max_upload_bytes: 2_000_000, ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config(upload), ServeOptions::default()).await;
    let refused = r#"{"detail":"the upload is larger than this server's limit of 2000000 bytes"}"#;
    let status = "413 Payload Too Large";
    let content_type = "multipart/form-data; boundary=B";
    // Seen in the file itself, and seen in Content-Length; the connection lives on.
    for length in [2_000_001, 10_000_000] {
        let mut client = server.connect().await;
        client.write(&post("/asr?encode=false", content_type, &audio_file(&vec![0; length]))).await;
        client.answer().await.is_json(status, refused);
        client.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
        assert_eq!(client.answer().await.body, "ok");
    }
    // The body is chunked, so its length is unknown before its end.
    let mut client = server.connect().await;
    let head = "POST /asr HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n";
    client.write(head.as_bytes()).await;
    let body = audio_file(&vec![0; 5_000_000]);
    client.write(&[format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
    client.answer().await.is_json(status, refused);
    // A client that asks first is told before it sends anything.
    let mut client = server.connect().await;
    let head = format!(
        "POST /asr HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 50000000\r\nContent-Type: {content_type}\r\n\r\n"
    );
    client.write(head.as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status.as_str(), answer.body.as_str()), (status, refused));
    assert_eq!(server.fake.asked(), []);
    // The limit itself is allowed.
    let answer = server.post("/asr?encode=false&output=srt", &audio_file(&vec![0; 2_000_000])).await;
    answer.is_transcript("audio_file.srt", GOLDEN_SRT);
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let mut client = server.connect().await;
    let body = audio_file(&half_a_second());
    let head = format!(
        "POST /asr?encode=false&output=srt HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\
         Content-Type: multipart/form-data; boundary=B\r\n\r\n",
        body.len()
    );
    client.write(head.as_bytes()).await;
    assert_eq!(client.head().await.status, "100 Continue");
    client.write(&body).await;
    client.answer().await.is_transcript("audio_file.srt", GOLDEN_SRT);
}

#[tokio::test]
async fn a_refused_body_is_drained_up_to_a_bound() {
    let upload = UploadOptions { max_upload_bytes: 1000, max_drain_bytes: 3_000_000, ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config(upload), ServeOptions::default()).await;
    let mut client = server.connect().await;
    client.write(b"POST /asr HTTP/1.1\r\nHost: h\r\nContent-Length: 99000000000\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n").await;
    // One byte more than it is willing to read, so that it has read everything when it closes.
    client.write(&vec![0; 3_000_001]).await;
    assert_eq!(client.answer().await.status, "413 Payload Too Large");
    assert!(client.closed().await);
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    let upload = UploadOptions { idle_timeout: Duration::from_millis(100), ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config(upload), ServeOptions::default()).await;
    let mut client = server.connect().await;
    client.write(b"POST /asr HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\nContent-Type: multipart/form-data; boundary=B\r\n\r\n--B").await;
    let answer = client.answer().await;
    assert_eq!(answer.status, "408 Request Timeout");
    assert_eq!(answer.body, r#"{"detail":"no byte of the upload came for 0 s"}"#);
    assert!(client.closed().await);
}

/// A client that goes away in the middle leaves nothing behind.
#[tokio::test]
async fn a_client_leaves_in_the_middle_of_its_upload() {
    let dir = tempfile::tempdir().unwrap();
    let upload = UploadOptions { memory_bytes: 1000, dir: Some(dir.path().to_owned()), ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config(upload), ServeOptions::default()).await;
    let mut client = server.connect().await;
    let request = post("/asr?encode=false", "multipart/form-data; boundary=B", &audio_file(&vec![0; 3_000_000]));
    client.write(&request[..2_000_000]).await;
    until(|| open_files(dir.path()) == 1).await;
    drop(client);
    until(|| open_files(dir.path()) == 0).await;
    assert_eq!(server.fake.asked(), []);
}

#[tokio::test]
async fn no_place_for_the_upload() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("spool");
    let upload = UploadOptions { memory_bytes: 1000, dir: Some(dir.clone()), ..UploadOptions::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config(upload), ServeOptions::default()).await;
    let problem = format!("the folder for uploads, {}, cannot be used: No such file or directory", dir.display());

    let answer = server.post("/asr?encode=false", &audio_file(&half_a_second())).await;
    assert_eq!(answer.status, "507 Insufficient Storage");
    assert!(answer.body.contains(&problem), "{}", answer.body);
    let raw = part("name=\"file\"; filename=\"a\"", &half_a_second());
    let answer = server.post("/v1/audio/transcriptions", &form(&[raw])).await;
    assert_eq!(answer.status, "507 Insufficient Storage");
    assert!(answer.body.contains(&problem) && answer.body.contains("\"code\":\"storage_full\""), "{}", answer.body);
    let answer = server.get("/readyz").await;
    assert_eq!(answer.status, "503 Service Unavailable");
    assert!(answer.body.starts_with(&problem), "{}", answer.body);
    assert_eq!(server.get("/healthz").await.status, "200 OK");

    // What fits in memory needs no disk.
    let mut small = part("name=\"audio_file\"; filename=\"a\"", &[0; 500]);
    small.extend_from_slice(b"--B--\r\n");
    assert_eq!(server.post("/asr?encode=false", &small).await.status, "200 OK");

    std::fs::create_dir(&dir).unwrap();
    assert_eq!(server.get("/readyz").await.status, "200 OK");
    assert_eq!(server.post("/asr?encode=false", &audio_file(&half_a_second())).await.status, "200 OK");
}

/// Files of this process in `dir`, unlinked ones too.
fn open_files(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).filter(|target| target.starts_with(dir)).count()
}
