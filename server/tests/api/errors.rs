//! What goes wrong, and the bytes that say so. The 4xx of the peer were measured on FastAPI 0.115.14 with
//! python-multipart 0.0.20 and pydantic 2.14.

use hush_server::job::JobError;

use crate::openai::{TRANSCRIPTIONS, is_error, with};
use crate::support::{ApiFixture, FakeModel, audio_file, form, golden, half_a_second, part, post};

const MISSING: &str =
    r#"{"detail":[{"type":"missing","loc":["body","audio_file"],"msg":"Field required","input":null}]}"#;

#[tokio::test]
async fn faults_of_the_query() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let bool_parsing = |name: &str, input: &str| {
        format!(
            r#"{{"type":"bool_parsing","loc":["query","{name}"],"msg":"Input should be a valid boolean, unable to interpret input","input":"{input}"}}"#
        )
    };
    let int_parsing = |name: &str, input: &str| {
        format!(
            r#"{{"type":"int_parsing","loc":["query","{name}"],"msg":"Input should be a valid integer, unable to parse string as an integer","input":"{input}"}}"#
        )
    };
    let cases = [
        ("encode=maybe", bool_parsing("encode", "maybe")),
        ("encode=", bool_parsing("encode", "")),
        ("encode=%ff", bool_parsing("encode", "\u{fffd}")),
        ("encode=mayb%C3%A9", bool_parsing("encode", "maybé")),
        ("encode=a%22b%5C%0A%00", bool_parsing("encode", r#"a\"b\\\n\u0000"#)),
        ("vad_filter=x", bool_parsing("vad_filter", "x")),
        ("word_timestamps=2", bool_parsing("word_timestamps", "2")),
        ("min_speakers=a", int_parsing("min_speakers", "a")),
        ("max_speakers=1.5", int_parsing("max_speakers", "1.5")),
        (
            "min_speakers=x&diarize=q&encode=maybe",
            [bool_parsing("encode", "maybe"), bool_parsing("diarize", "q"), int_parsing("min_speakers", "x")].join(","),
        ),
        (
            "task=foo",
            r#"{"type":"enum","loc":["query","task"],"msg":"Input should be 'transcribe' or 'translate'","input":"foo","ctx":{"expected":"'transcribe' or 'translate'"}}"#.to_owned(),
        ),
        (
            "language=zz",
            r#"{"type":"value_error","loc":["query","language"],"msg":"Value error, unknown language; give a code such as 'en', an English name such as 'english', or 'auto'","input":"zz","ctx":{"error":{}}}"#.to_owned(),
        ),
    ];
    for (query, entries) in cases {
        let answer = server.post(&format!("/asr?{query}"), &audio_file(&half_a_second())).await;
        answer.is_json("422 Unprocessable Entity", &format!(r#"{{"detail":[{entries}]}}"#));
    }
    let answer = server.post("/asr?encode=maybe", b"--B--\r\n").await;
    let missing = MISSING.strip_prefix(r#"{"detail":["#).unwrap();
    answer
        .is_json("422 Unprocessable Entity", &format!(r#"{{"detail":[{},{missing}"#, bool_parsing("encode", "maybe")));
    let answer = server.post("/detect-language?encode=q", &audio_file(&half_a_second())).await;
    answer.is_json("422 Unprocessable Entity", &format!(r#"{{"detail":[{}]}}"#, bool_parsing("encode", "q")));
    assert_eq!(server.fake.asked(), []);
}

#[tokio::test]
async fn faults_of_the_form() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let not_a_file = |input: &str| {
        format!(
            r#"{{"detail":[{{"type":"value_error","loc":["body","audio_file"],"msg":"Value error, Expected UploadFile, received: <class 'str'>","input":"{input}","ctx":{{"error":{{}}}}}}]}}"#
        )
    };
    let unparsed = r#"{"detail":"There was an error parsing the body"}"#;
    let unnamed = r#"{"detail":"The Content-Disposition header field \"name\" must be provided."}"#;
    let (invalid, bad) = ("422 Unprocessable Entity", "400 Bad Request");
    let whole = audio_file(b"abcd");
    let cases: Vec<(Vec<u8>, &str, String)> = vec![
        (b"--B--\r\n".to_vec(), invalid, MISSING.to_owned()),
        (Vec::new(), invalid, MISSING.to_owned()),
        (whole[..whole.len() - 8].to_vec(), invalid, MISSING.to_owned()),
        (whole[..20].to_vec(), invalid, MISSING.to_owned()),
        (form(&[part("name=\"file\"; filename=\"a\"", b"abcd")]), invalid, MISSING.to_owned()),
        (form(&[part("name=\"audio_file\"", "ab\"cdé".as_bytes())]), invalid, not_a_file(r#"ab\"cdé"#)),
        (form(&[part("name=\"audio_file\"", b"ab\xff")]), invalid, not_a_file("abÿ")),
        (form(&[part("name=\"audio_file\"", b"")]), invalid, not_a_file("")),
        (
            form(&[part("name=\"audio_file\"; filename=\"a\"", b"abcd"), part("name=\"audio_file\"", b"xy")]),
            invalid,
            not_a_file("xy"),
        ),
        (b"garbage".to_vec(), bad, unparsed.to_owned()),
        ([b"preamble\r\n", whole.as_slice()].concat(), bad, unparsed.to_owned()),
        (b"--B\r\nX: y\r\n\r\nabc\r\n--B--\r\n".to_vec(), bad, unnamed.to_owned()),
        (form(&[part("filename=\"x\"", b"abcd")]), bad, unnamed.to_owned()),
        (
            form(&[part("name=\"other\"", &vec![b'x'; 1_100_000]), part("name=\"audio_file\"; filename=\"a\"", b"")]),
            bad,
            r#"{"detail":"Part exceeded maximum size of 1024KB."}"#.to_owned(),
        ),
        (
            form(&[part("name=\"f\"", b"x").repeat(1001)]),
            bad,
            r#"{"detail":"Too many fields. Maximum number of fields is 1000."}"#.to_owned(),
        ),
        (
            form(&[part("name=\"f\"; filename=\"q\"", b"x").repeat(1001)]),
            bad,
            r#"{"detail":"Too many files. Maximum number of files is 1000."}"#.to_owned(),
        ),
    ];
    for (body, status, expected) in cases {
        for path in ["/asr", "/detect-language"] {
            server.post(path, &body).await.is_json(status, &expected);
        }
    }
    let answer = server.send(post("/asr", "multipart/form-data", &whole)).await;
    answer.is_json(bad, r#"{"detail":"Missing boundary in multipart."}"#);
    server.send(post("/asr", "multipart/form-data; boundary=C", &whole)).await.is_json(bad, unparsed);
    for content_type in ["application/json", "audio/wav", "multipart/mixed; boundary=B"] {
        server.send(post("/asr", content_type, &whole)).await.is_json(invalid, MISSING);
    }
    server.send("POST /asr HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await.is_json(invalid, MISSING);
    assert_eq!(server.fake.asked(), []);
}

#[tokio::test]
async fn faults_of_the_audio_are_the_callers() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let empty = r#"{"detail":"the upload is empty"}"#;
    server.post("/asr", &audio_file(b"")).await.is_json("400 Bad Request", empty);
    server.post("/asr?encode=false", &audio_file(b"")).await.is_json("400 Bad Request", empty);
    let odd = r#"{"detail":"raw 16-bit audio must have an even number of bytes, and 3 is odd"}"#;
    server.post("/detect-language?encode=false", &audio_file(b"abc")).await.is_json("400 Bad Request", odd);
    let answer = server.post("/asr?output=srt", &audio_file(&b"this is not audio. ".repeat(100))).await;
    assert_eq!(answer.status, "400 Bad Request");
    assert!(answer.body.starts_with(r#"{"detail":"#), "{}", answer.body);
    assert_eq!(server.fake.asked(), []);
}

/// Builds the failure of the model with this name.
type FailureOf = fn(String) -> JobError;

#[tokio::test]
async fn failures_of_the_model() {
    let model = || "tiny".to_owned();
    let ask = async |error: FailureOf| {
        let server = ApiFixture::start(FakeModel::failing(move || error(model()))).await;
        let body = audio_file(&half_a_second());
        let answer = server.post("/asr?encode=false&output=srt", &body).await;
        let detected = server.post("/detect-language?encode=false", &body).await;
        assert_eq!(
            (&answer.status, &answer.headers, &answer.body),
            (&detected.status, &detected.headers, &detected.body)
        );
        answer
    };
    let internal: [FailureOf; 3] = [
        |model| JobError::RunnerLost { model, cause: "killed".to_owned() },
        |_| JobError::Failed("no idea".to_owned()),
        |_| JobError::Spool(std::io::Error::other("gone")),
    ];
    for error in internal {
        let headers = [("content-length", "21"), ("content-type", "text/plain; charset=utf-8")];
        ask(error).await.is("500 Internal Server Error", &headers, "Internal Server Error");
    }
    let invalid = ask(|_| JobError::Invalid("this model knows no language but en".to_owned())).await;
    invalid.is_json("400 Bad Request", r#"{"detail":"this model knows no language but en"}"#);
    let unavailable: [(FailureOf, &str, &str); 4] = [
        (
            |model| JobError::QueueFull { model, limit: 8, retry_after_seconds: 7 },
            "7",
            r#"{"detail":"the queue of model `tiny` is full (8 requests); try again in 7 s"}"#,
        ),
        (
            |model| JobError::LoadFailed { model, cause: "no file".to_owned(), retry_after_seconds: 30 },
            "30",
            r#"{"detail":"model `tiny` could not be loaded: no file; next try in 30 s"}"#,
        ),
        (
            |model| JobError::ColdHold {
                model,
                cause: "it is still loading".to_owned(),
                waited_seconds: 60,
                retry_after_seconds: 15,
            },
            "15",
            r#"{"detail":"model `tiny` is not in memory: it is still loading; waited 60 s, try again in 15 s"}"#,
        ),
        (|_| JobError::ShuttingDown, "10", r#"{"detail":"the server is shutting down"}"#),
    ];
    for (error, retry_after, body) in unavailable {
        let length = body.len().to_string();
        let headers =
            [("content-length", length.as_str()), ("content-type", "application/json"), ("retry-after", retry_after)];
        ask(error).await.is("503 Service Unavailable", &headers, body);
    }
}

#[tokio::test]
async fn a_panic_costs_one_request() {
    let server = ApiFixture::start(FakeModel::failing(|| panic!("on purpose"))).await;
    let mut client = server.connect().await;
    client.write(&post("/asr?encode=false", "multipart/form-data; boundary=B", &audio_file(&half_a_second()))).await;
    let headers = [("content-length", "21"), ("content-type", "text/plain; charset=utf-8")];
    client.answer().await.is("500 Internal Server Error", &headers, "Internal Server Error");
    // In the words of the API that was asked.
    let answer = server.post(TRANSCRIPTIONS, &with(&[])).await;
    is_error(&answer, "500 Internal Server Error", "server_error", "null", "internal");
    client.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.answer().await.body, "ok");
}
