//! What a model was not trained for is refused, or answered with a warning.

use hush_whisper::Abilities;

use crate::openai::{TRANSCRIPTIONS, is_error, with};
use crate::support::{ApiFixture, FakeModel, audio_file, golden, half_a_second};

const ENGLISH: Abilities = Abilities { is_multilingual: false, has_pruned_decoder: false };
const TURBO: Abilities = Abilities { is_multilingual: true, has_pruned_decoder: true };
const TRANSLATIONS: &str = "/v1/audio/translations";
const ASR: &str = "/asr?encode=false";

fn half() -> Vec<u8> {
    audio_file(&half_a_second())
}

#[tokio::test]
async fn an_english_model_refuses_other_languages_and_translation_before_any_work() {
    let server = ApiFixture::start(FakeModel::answering(golden()).able(ENGLISH)).await;
    let language = "this model knows only English, and was asked for `es` (spanish); take a model of all languages";
    let task = "this model knows only English, so it cannot translate; take a model of all languages";
    let detail = |text: &str| format!("{{\"detail\":\"{text}\"}}");
    for query in ["&language=es", "&language=Spanish"] {
        server.post(&format!("{ASR}{query}"), &half()).await.is_json("400 Bad Request", &detail(language));
    }
    server.post(&format!("{ASR}&task=translate"), &half()).await.is_json("400 Bad Request", &detail(task));
    for (path, fields) in [
        (TRANSCRIPTIONS, vec![("language", "es")]),
        (TRANSCRIPTIONS, vec![("language", "es"), ("stream", "true")]),
        (TRANSLATIONS, vec![]),
    ] {
        let answer = server.post(path, &with(&fields)).await;
        is_error(&answer, "400 Bad Request", "invalid_request_error", "null", "invalid_value");
        assert!(answer.body.contains("only English"), "{}", answer.body);
    }
    assert!(server.fake.asked().is_empty(), "the model was asked");
    for query in ["", "&language=en", "&language=english"] {
        assert_eq!(server.post(&format!("{ASR}{query}"), &half()).await.status, "200 OK", "{query}");
    }
}

#[tokio::test]
async fn a_translation_by_a_model_that_was_not_trained_for_it_has_a_warning() {
    let server = ApiFixture::start(FakeModel::answering(golden()).able(TURBO)).await;
    let warning = "hush-warning";
    let translated = [
        server.post(&format!("{ASR}&task=translate"), &half()).await,
        server.post(TRANSLATIONS, &with(&[])).await,
        server.post(TRANSLATIONS, &with(&[("stream", "true")])).await,
    ];
    for answer in translated {
        assert_eq!(answer.status, "200 OK");
        assert!(answer.headers[warning].contains("not trained to translate"), "{:?}", answer.headers);
    }
    for answer in [server.post(ASR, &half()).await, server.post(TRANSCRIPTIONS, &with(&[])).await] {
        assert!(!answer.headers.contains_key(warning), "{:?}", answer.headers);
    }
}
