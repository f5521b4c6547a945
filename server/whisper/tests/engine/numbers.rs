//! Spectrogram, encoder and logits against the reference's values.

use hush_whisper::{
    PcmSource, Precision,
    decoding::Forward,
    mel::{LogMel, Spectrogram, WINDOW_FRAMES},
};

use crate::support::{array, audio, engine, json};

const RECORDINGS: [(&str, &str); 2] = [("en-1", "audio/en-1.wav"), ("long-de", "audio/long-de.flac")];

fn first_window(source: &mut dyn PcmSource, bins: usize) -> Vec<f32> {
    let mut window = vec![0.0; bins * WINDOW_FRAMES];
    let mut mel = LogMel::new(bins);
    Spectrogram::scan_start(source, &mut mel, &mut || true).unwrap().window(0, WINDOW_FRAMES, &mut window).unwrap();
    window
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn spectrograms_are_the_reference_s() {
    for (name, file) in RECORDINGS {
        for bins in [80, 128] {
            let (shape, expected) = array(&format!("parity/{name}.mel{bins}.npy"));
            assert_eq!(shape, [bins, WINDOW_FRAMES]);
            let difference = largest_difference(&first_window(&mut audio(file), bins), &expected);
            println!("{name}, {bins} bins: {difference:.1e}");
            assert!(difference < 1e-4, "{name}, {bins} bins: {difference}");
        }
    }
}

#[test]
fn the_encoder_hears_what_the_reference_hears() {
    let mut engine = engine(Precision::Fp32);
    for (name, file) in RECORDINGS {
        let (shape, expected) = array(&format!("parity/{name}.encoder.npy"));
        assert_eq!(shape, [1500, 128]);
        let hidden = engine.speech().hidden(&first_window(&mut audio(file), 80)).unwrap();
        let difference = largest_difference(&hidden, &expected);
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-3, "{name}: {difference}");
    }
}

/// Greedy steps from the reference's prompt, all in one row or in each of several.
fn logits_of_steps(rows: usize, limit: f32, precision: Precision) {
    let mut engine = engine(precision);
    let speech = engine.speech();
    for (name, file) in RECORDINGS {
        let steps = json(&format!("parity/{name}.steps.json"));
        let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(steps[key].clone()).unwrap() };
        let (prompt, generated, ids) = (tokens("prompt"), tokens("generated"), tokens("logit_ids"));
        let (shape, expected) = array(&format!("parity/{name}.logits.npy"));
        assert_eq!(shape, [generated.len(), ids.len() + 1]);
        speech.encode(&first_window(&mut audio(file), 80)).unwrap();
        speech.restart().unwrap();
        let vocabulary = speech.config().vocab_size;
        // In two parts, as decoding feeds it.
        speech.feed(&prompt[..1]).unwrap();
        let mut logits = speech.feed(&prompt[1..]).unwrap().repeat(rows);
        speech.fork(rows).unwrap();
        let mut worst = 0.0_f32;
        for (token, expected) in generated.iter().zip(expected.chunks_exact(ids.len() + 1)) {
            for row in logits.chunks_exact(vocabulary) {
                for (id, expected) in ids.iter().zip(expected) {
                    worst = worst.max((row[*id as usize] - expected).abs());
                }
            }
            logits = speech.step(&vec![*token; rows]).unwrap().to_vec();
        }
        println!("{name}, {rows} rows, {precision}: {worst:.1e}");
        assert!(worst < limit, "{name}, {rows} rows, {precision}: {worst}");
    }
}

#[test]
fn logits_are_the_reference_s() {
    logits_of_steps(1, 1e-3, Precision::Fp32);
    logits_of_steps(5, 1e-3, Precision::Fp32);
}

#[test]
fn logits_in_8_bits_are_near() {
    logits_of_steps(1, 0.5, Precision::Int8);
}

#[test]
fn a_row_longer_than_the_cache_is_refused() {
    let mut engine = engine(Precision::Fp32);
    let speech = engine.speech();
    speech.encode(&vec![0.0; 80 * WINDOW_FRAMES]).unwrap();
    speech.restart().unwrap();
    speech.feed(&[50_258; 448]).unwrap();
    speech.fork(1).unwrap();
    let error = speech.step(&[50_258]).unwrap_err().to_string();
    assert!(error.contains("448 slots"), "{error}");
    assert!(speech.encode(&[0.0; 7]).is_err());
}
