//! API keys: who gets in, and how the others are refused.

use hush_access::KeyFile;
use hush_server::api::ApiConfig;
use hush_server::serve::ServeOptions;

use crate::support::{ApiFixture, FakeModel, GOLDEN_SRT, audio_file, golden, half_a_second};

const KEY: &str = "0123456789abcdef";

async fn guarded(dir: &tempfile::TempDir) -> ApiFixture {
    let path = dir.path().join("keys");
    std::fs::write(&path, format!("# for Bazarr\nbazarr {KEY}\nfedcba9876543210\n")).unwrap();
    let config = ApiConfig { keys: Some(KeyFile::open(path).unwrap()), ..ApiConfig::default() };
    ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await
}

fn upload(header: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /asr?output=srt&encode=false HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=B\r\n\
         Content-Length: {}\r\n{header}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_key_opens_the_api_in_either_header() {
    let dir = tempfile::tempdir().unwrap();
    let server = guarded(&dir).await;
    let body = audio_file(&half_a_second());
    for header in [
        "Authorization: Bearer 0123456789abcdef\r\n",
        "authorization: bearer fedcba9876543210\r\n",
        "X-API-Key: 0123456789abcdef\r\n",
    ] {
        server.send(upload(header, &body)).await.is_transcript("audio_file.srt", GOLDEN_SRT);
    }
}

#[tokio::test]
async fn without_a_key_the_api_says_401_in_its_own_words_and_no_work_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let server = guarded(&dir).await;
    let body = audio_file(&vec![0; 4 << 20]);
    let headers =
        |length| [("content-length", length), ("content-type", "application/json"), ("www-authenticate", "Bearer")];
    let answer = server.send(upload("", &body)).await;
    answer.is("401 Unauthorized", &headers("30"), r#"{"detail":"Not authenticated"}"#);
    for header in ["Authorization: Bearer 0123456789abcdee\r\n", "X-API-Key: 0123456789abcdef0\r\n"] {
        let answer = server.send(upload(header, &body)).await;
        answer.is("401 Unauthorized", &headers("28"), r#"{"detail":"Invalid API key"}"#);
    }
    for header in ["Authorization: Basic 0123456789abcdef\r\n", "X-API-Key:\r\n", "Authorization: Bearer\r\n"] {
        let answer = server.send(upload(header, &body)).await;
        answer.is("401 Unauthorized", &headers("30"), r#"{"detail":"Not authenticated"}"#);
    }
    assert_eq!(server.fake.asked(), []);
    assert_eq!(server.get("/status").await.status, "401 Unauthorized");
}

#[tokio::test]
async fn probes_need_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = guarded(&dir).await;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(server.get(path).await.status, "200 OK", "{path}");
    }
    assert_eq!(server.get("/").await.status, "307 Temporary Redirect", "to the reference");
    assert_eq!(server.get("/nope").await.status, "404 Not Found");
}
