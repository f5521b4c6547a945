//! Bazarr's whisper provider, byte for byte (`subliminal_patch/providers/whisperai.py`): it bans a provider for a day
//! after one connection error, and takes whatever body it reads for the subtitle.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::{Server, fixtures, http};

const BOUNDARY: &str = "b6e1ba7f2fd1443c8b0cf2a5dd2bb28f";

/// Raw 16-bit PCM of a WAV fixture: the payload Bazarr's ffmpeg makes.
fn pcm(name: &str) -> Result<Vec<u8>> {
    let file = fixtures::audio(name)?;
    let data = file.windows(4).position(|w| w == b"data").context("no data chunk")?;
    Ok(file[data + 8..].to_vec())
}

/// The request of Python's `requests`, as the provider makes it.
fn request(address: SocketAddr, path_and_query: &str, payload: &[u8]) -> Vec<u8> {
    let mut body =
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"audio_file\"\r\n\r\n")
            .into_bytes();
    body.extend_from_slice(payload);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let mut request = format!(
        "POST {path_and_query} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: Subliminal/2.2.1\r\n\
         Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.append(&mut body);
    request
}

#[test]
fn subtitles_of_a_slow_upload_while_the_model_loads() -> Result<()> {
    let server = Server::start(&[])?;
    let bytes = request(server.api, "/asr?task=transcribe&language=en&output=srt&encode=false", &pcm("en-1.wav")?);
    // Another client makes the model load while this one still sends.
    let (api, other) = (server.api, fixtures::audio("fr-1.wav")?);
    let first = std::thread::spawn(move || http::upload(api, "/asr?language=fr", "fr-1.wav", &other));
    let mut stream = http::connect(server.api)?;
    for piece in bytes.chunks(bytes.len() / 40) {
        stream.write_all(piece)?;
        std::thread::sleep(Duration::from_millis(25));
    }
    let answer = http::read_response(stream)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.text(), "1\n00:00:00,000 --> 00:00:00,735\nClean the light.\n\n");
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"audio_file.srt\""));
    assert_eq!(first.join().map_err(|_| anyhow::anyhow!("the other client panicked"))??.status, 200);
    Ok(())
}

#[test]
fn translation_with_the_name_of_the_video() -> Result<()> {
    let server = Server::start(&[])?;
    let query = "/asr?task=translate&language=de&output=srt&encode=false&video_file=%2Fmedia%2FDer+Film.mkv";
    let answer = http::exchange(server.api, &request(server.api, query, &pcm("de-1.wav")?))?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().starts_with("1\n00:00:00,000 --> "), "{}", answer.text());
    Ok(())
}

#[test]
fn older_versions_ask_with_two_slashes() -> Result<()> {
    let server = Server::start(&[])?;
    let query = "//asr?task=transcribe&language=fr&output=srt&encode=false";
    let answer = http::exchange(server.api, &request(server.api, query, &pcm("fr-1.wav")?))?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("Nettoie le chat."), "{}", answer.text());
    Ok(())
}

#[test]
fn the_language_of_a_track() -> Result<()> {
    let server = Server::start(&[])?;
    let bytes = request(server.api, "/detect-language?encode=false", &pcm("es-1.wav")?);
    let answer = http::exchange(server.api, &bytes)?;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json()?;
    assert_eq!((json["language_code"].as_str(), json["detected_language"].as_str()), (Some("es"), Some("spanish")));
    Ok(())
}

#[test]
fn the_connection_test_finds_a_version() -> Result<()> {
    let server = Server::start(&[])?;
    let answer = http::get(server.api, "/status")?;
    assert_eq!(answer.status, 200);
    assert!(answer.json()?["version"].as_str().is_some_and(|v| !v.is_empty()), "{}", answer.text());
    Ok(())
}

#[test]
fn requests_that_come_two_at_a_time_are_both_served() -> Result<()> {
    let server = Server::start(&[])?;
    let detect = request(server.api, "/detect-language?encode=false", &pcm("zh-1.wav")?);
    let asr = request(server.api, "/asr?task=transcribe&language=zh&output=srt&encode=false", &pcm("zh-1.wav")?);
    std::thread::scope(|scope| {
        for bytes in [&detect, &asr, &detect, &asr] {
            scope.spawn(|| match http::exchange(server.api, bytes) {
                Ok(answer) => assert_eq!(answer.status, 200, "{}", answer.text()),
                Err(error) => panic!("{error:#}"),
            });
        }
    });
    Ok(())
}
