//! Word error rates: 8-bit weights must not increase them.

use hush_whisper::{Precision, TranscribeOptions};

use crate::support::{CollectedTranscript, audio, engine, json, on_device};

/// Words to compare, or characters for languages without spaces.
fn units(text: &str, language: &str) -> Vec<String> {
    if language == "zh" {
        return text.chars().filter(|letter| letter.is_alphanumeric()).map(String::from).collect();
    }
    let plain: String =
        text.to_lowercase().chars().filter(|letter| letter.is_alphanumeric() || *letter == ' ').collect();
    plain.split_whitespace().map(str::to_owned).collect()
}

fn edits(a: &[String], b: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(left != right));
            diagonal = above;
        }
    }

    row[b.len()]
}

/// Error rates in percent of the engine and of the reference, over all utterances.
fn error_rates(precision: Precision) -> (f64, f64) {
    let engine = engine(precision);
    let (mut ours, mut reference, mut total) = (0, 0, 0);

    for utterance in json("wer/manifest.json").as_array().unwrap() {
        let text = |key: &str| utterance[key].as_str().unwrap();
        let language = text("language");
        let options = TranscribeOptions {
            language: Some(language.into()),
            temperatures: vec![0.0],
            without_timestamps: true,
            ..TranscribeOptions::default()
        };

        let mut kept = CollectedTranscript::default();

        engine.transcribe(&mut audio(text("file")), &options, &mut kept).unwrap();
        let said = units(text("text"), language);
        if on_device(precision) == Precision::Fp32 {
            assert_eq!(kept.text().trim(), text("reference_greedy"), "{}", text("file"));
        }

        ours += edits(&said, &units(&kept.text(), language));
        reference += edits(&said, &units(text("reference_greedy"), language));
        total += said.len();
    }

    let percent = |errors: usize| 100.0 * errors as f64 / total as f64;

    (percent(ours), percent(reference))
}

#[test]
fn fp32_writes_the_reference_s_words() {
    let (ours, reference) = error_rates(Precision::Fp32);
    assert_eq!(ours, reference);
}

#[test]
fn fp16_is_within_half_a_point() {
    let (ours, reference) = error_rates(Precision::Fp16);
    println!("fp16 {ours:.2} %, reference {reference:.2} %");
    assert!(ours <= reference + 0.5, "fp16 {ours:.2} %, reference {reference:.2} %");
}

#[test]
fn int8_is_within_half_a_point() {
    let (ours, reference) = error_rates(Precision::Int8);
    println!("int8 {ours:.2} %, reference {reference:.2} %");
    assert!(ours <= reference + 0.5, "int8 {ours:.2} %, reference {reference:.2} %");
}
