//! `POST /asr` and `POST /detect-language` when all goes well.

use hush_server::api::ApiConfig;
use hush_server::format::JsonShape;
use hush_server::job::JobTask;
use hush_server::serve::ServeOptions;
use hush_whisper::{Segment, SpeechTask, TranscribeOptions, VadOptions, Word};

use crate::support::{ApiFixture, FakeModel, GOLDEN_SRT, audio_file, form, golden, half_a_second, part, post};

/// Byte for byte what Bazarr sends (reference/whisper-asr-api.md, a.5), and what it gets.
#[tokio::test]
async fn bazarr() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let samples = half_a_second();
    let boundary = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
    let body = [
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"audio_file\"\r\n\r\n")
            .as_bytes(),
        &samples,
        format!("\r\n--{boundary}--\r\n").as_bytes(),
    ]
    .concat();
    let request = |target: &str| {
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nUser-Agent: Subliminal/2.1\r\n\
             Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\
             Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    };
    // One session: both requests on one connection.
    let mut client = server.connect().await;
    client.write(&request("/detect-language?encode=false&video_file=%2Ffilms%2Fa+film.mkv")).await;
    let detected = client.answer().await;
    detected.is_json("200 OK", r#"{"detected_language":"english","language_code":"en","confidence":0.98}"#);
    client.write(&request("/asr?task=translate&language=fr&output=srt&encode=false")).await;
    client.answer().await.is_transcript("audio_file.srt", GOLDEN_SRT);
    let options = TranscribeOptions {
        task: SpeechTask::Translate,
        language: Some("fr".to_owned()),
        ..TranscribeOptions::default()
    };
    assert_eq!(server.fake.asked(), [(JobTask::DetectLanguage, 8000), (JobTask::Transcribe(options), 8000)]);
}

#[tokio::test]
async fn paths_with_a_slash_too_many_are_the_route() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    for path in ["/asr", "//asr", "/asr/"] {
        let answer = server.post(&format!("{path}?encode=false&output=srt"), &audio_file(&half_a_second())).await;
        answer.is_transcript("audio_file.srt", GOLDEN_SRT);
    }
    for path in ["/detect-language", "//detect-language", "/detect-language/"] {
        let answer = server.post(&format!("{path}?encode=false"), &audio_file(&half_a_second())).await;
        assert_eq!(answer.status, "200 OK");
    }
}

#[tokio::test]
async fn every_output_is_plain_text() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let text = "Hello\tworld --> é.\nBye.\n";
    let cases = [
        ("", "txt", text),
        ("&output=txt", "txt", text),
        ("&output=srt", "srt", GOLDEN_SRT),
        ("&output=tsv", "tsv", "start\tend\ttext\n0\t2500\tHello world --> é.\n3661234\t3663000\tBye.\n"),
        (
            "&output=vtt",
            "vtt",
            "WEBVTT\n\n00:00.000 --> 00:02.500\nHello\tworld -> é.\n\n01:01:01.234 --> 01:01:03.000\nBye.\n\n",
        ),
        // Unknown and empty fall through to text, and the name keeps what was asked.
        ("&output=foo", "foo", text),
        ("&output=", "", text),
        ("&output", "", text),
        ("&output=%22%0d%0aX", "%22%0D%0AX", text),
    ];
    for (query, extension, expected) in cases {
        let answer = server.post(&format!("/asr?encode=false{query}"), &audio_file(&half_a_second())).await;
        answer.is_transcript(&format!("audio_file.{extension}"), expected);
    }
    let answer = server.post("/asr?encode=false&output=json", &audio_file(&half_a_second())).await;
    assert!(answer.body.starts_with("{\"text\": \" Hello\\tworld --> \\u00e9. Bye.\", \"segments\": [{\"id\": 0, "));
    assert!(answer.body.ends_with("\"no_speech_prob\": 1e-05}], \"language\": \"en\"}"), "{}", answer.body);
}

#[tokio::test]
async fn the_shape_of_the_other_engine() {
    let config = ApiConfig { json_shape: JsonShape::FasterWhisper, ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await;
    let answer = server.post("/asr?encode=false&output=json", &audio_file(&half_a_second())).await;
    assert_eq!(answer.headers["asr-engine"], "faster_whisper");
    assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    assert!(answer.body.starts_with("{\"language\": \"en\", \"segments\": [{\"id\": 1, "), "{}", answer.body);
    assert!(answer.body.ends_with("\"text\": \" Hello\\tworld --> \\u00e9. Bye.\"}"), "{}", answer.body);
}

#[tokio::test]
async fn silence_has_an_empty_transcript() {
    let server = ApiFixture::start(FakeModel::answering(Vec::new())).await;
    let cases = [
        ("txt", ""),
        ("srt", ""),
        ("vtt", "WEBVTT\n\n"),
        ("tsv", "start\tend\ttext\n"),
        ("json", "{\"text\": \"\", \"segments\": [], \"language\": \"en\"}"),
    ];
    for (output, expected) in cases {
        let answer = server.post(&format!("/asr?encode=false&output={output}"), &audio_file(&half_a_second())).await;
        answer.is_transcript(&format!("audio_file.{output}"), expected);
    }
}

#[tokio::test]
async fn options_come_from_the_query_alone() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let fields = ["output", "language", "task", "encode"].map(|name| part(&format!("name=\"{name}\""), b"nonsense"));
    let file = part("name=\"audio_file\"; filename=\"a.raw\"", &half_a_second());
    let body = form(&[fields.concat(), file]);
    let answer = server
        .post("/asr?encode=off&language=German&initial_prompt=Na+so%20was&zzz=1&diarize=on&word_timestamps=t", &body)
        .await;
    answer.is_transcript("a.raw.txt", "Hello\tworld --> é.\nBye.\n");
    let options = TranscribeOptions {
        language: Some("de".to_owned()),
        initial_prompt: Some("Na so was".to_owned()),
        word_timestamps: true,
        ..TranscribeOptions::default()
    };
    assert_eq!(server.fake.asked(), [(JobTask::Transcribe(options), 8000)]);
}

/// The peer's openai_whisper engine makes one subtitle of segments without a pause, its faster_whisper engine does not.
#[tokio::test]
async fn words_flow_into_subtitles_as_in_the_peer_s_engines() {
    let word = |text: &str, start_seconds, end_seconds| Word {
        text: text.to_owned(),
        start_seconds,
        end_seconds,
        probability: 0.5,
    };
    let segment = |start_seconds, end_seconds, words: Vec<Word>| Segment {
        start_seconds,
        end_seconds,
        text: words.iter().map(|word| word.text.as_str()).collect(),
        words,
        ..Segment::default()
    };
    let first = vec![word(" One", 0.0, 0.5), word(" two.", 0.5, 1.0)];
    let segments = vec![segment(0.0, 1.0, first), segment(2.0, 3.0, vec![word(" Three.", 2.0, 3.0)])];
    let flowing = "1\n00:00:00,000 --> 00:00:03,000\nOne two. Three.\n\n";
    let apart = "1\n00:00:00,000 --> 00:00:01,000\nOne two.\n\n2\n00:00:02,000 --> 00:00:03,000\nThree.\n\n";
    for (json_shape, expected) in [(JsonShape::OpenAiWhisper, flowing), (JsonShape::FasterWhisper, apart)] {
        let config = ApiConfig { json_shape, ..ApiConfig::default() };
        let server = ApiFixture::with(FakeModel::answering(segments.clone()), config, ServeOptions::default()).await;
        let words = "/asr?encode=false&output=srt&word_timestamps=true";
        let answer = server.post(words, &audio_file(&half_a_second())).await;
        assert_eq!((answer.status.as_str(), answer.body.as_str()), ("200 OK", expected));
        // Asked for by name, both do the same.
        let answer = server.post(&format!("{words}&max_words_per_line=5"), &audio_file(&half_a_second())).await;
        assert_eq!(answer.body, apart);
    }
}

#[tokio::test]
async fn voice_activity_detection_needs_its_model() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let answer = server.post("/asr?encode=false&vad_filter=true", &audio_file(&half_a_second())).await;
    assert_eq!(answer.status, "400 Bad Request");
    assert!(answer.body.contains("make vad") && answer.body.contains("--vad-model"), "{}", answer.body);
    assert!(server.fake.asked().is_empty());
    let config = ApiConfig { has_vad: true, ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await;
    let answer = server.post("/asr?encode=false&vad_filter=true", &audio_file(&half_a_second())).await;
    assert_eq!(answer.status, "200 OK");
    let options = TranscribeOptions { vad: Some(VadOptions::default()), ..TranscribeOptions::default() };
    assert_eq!(server.fake.asked(), [(JobTask::Transcribe(options), 8000)]);
}

#[tokio::test]
async fn files_are_decoded_unless_they_are_raw() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/audio/en-1.wav");
    let wav = std::fs::read(path).unwrap();
    let answer = server.post("/asr?output=srt", &audio_file(&wav)).await;
    answer.is_transcript("audio_file.srt", GOLDEN_SRT);
    let answer = server.post("/detect-language", &audio_file(&wav)).await;
    assert_eq!(answer.status, "200 OK");
    let asked = server.fake.asked();
    // The WAV file is 16-bit mono at 16 kHz: 44 bytes of header, then the samples.
    assert_eq!(asked[0].1, (wav.len() as u64 - 44) / 2);
    assert_eq!(asked[1], (JobTask::DetectLanguage, asked[0].1));
}

/// Measured: FastAPI 0.115.14, python-multipart 0.0.20.
#[tokio::test]
async fn the_name_of_the_upload_comes_back_quoted() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let cases = [
        ("filename=\"a b é.wav\"", "a%20b%20%C3%A9.wav"),
        ("filename=token.wav", "token.wav"),
        ("filename=\"x.wav\"; filename*=UTF-8''a%20b%20%C3%A9.wav", "a%20b%20%C3%A9.wav"),
        ("filename=\"日本 😀.wav\"", "%E6%97%A5%E6%9C%AC%20%F0%9F%98%80.wav"),
        ("filename=\"../../etc/passwd\"", "../../etc/passwd"),
        ("filename=\"a;b/c~d-e_f.g%h+i'(j)!.wav\"", "a%3Bb/c~d-e_f.g%25h%2Bi%27%28j%29%21.wav"),
        ("filename=\"\"", ""),
    ];
    for (file_name, expected) in cases {
        let body = form(&[part(&format!("name=\"audio_file\"; {file_name}"), &half_a_second())]);
        let answer = server.post("/asr?encode=false&output=srt", &body).await;
        answer.is_transcript(&format!("{expected}.srt"), GOLDEN_SRT);
    }
    // The last of several files counts.
    let first = part("name=\"audio_file\"; filename=\"first\"", b"abcd");
    let second = part("name=\"audio_file\"; filename=\"second\"", &half_a_second());
    let answer = server.post("/asr?encode=false", &form(&[first, second])).await;
    answer.is_transcript("second.txt", "Hello\tworld --> é.\nBye.\n");
    assert_eq!(server.fake.asked().last().unwrap().1, 8000);
}

#[tokio::test]
async fn boundaries_may_be_quoted_and_bodies_chunked() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let body = audio_file(&half_a_second());
    let answer = server.send(post("/asr?encode=false", "Multipart/Form-Data; Boundary=\"B\"", &body)).await;
    assert_eq!(answer.status, "200 OK");
    let mut chunked = b"POST /asr?encode=false HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
                        Content-Type: multipart/form-data; boundary=B\r\n\r\n"
        .to_vec();
    for piece in body.chunks(777) {
        chunked.extend(format!("{:x}\r\n", piece.len()).into_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = server.send(chunked).await;
    answer.is_transcript("audio_file.txt", "Hello\tworld --> é.\nBye.\n");
}
