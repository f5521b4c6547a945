//! Spectrogram, encoder and logits compared with the reference's values.

use std::sync::{Arc, Mutex};

use hush_whisper::{
    PcmSource, Precision,
    decoding::ForcedSearch,
    mel::{LogMel, Spectrogram, WINDOW_FRAMES},
};

use crate::support::{array, audio, batched, engine, json};

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
fn the_encoder_computes_the_reference_s_output() {
    let engine = engine(Precision::Fp32);

    for (name, file) in RECORDINGS {
        let (shape, expected) = array(&format!("parity/{name}.encoder.npy"));
        assert_eq!(shape, [1500, 128]);
        let hidden = engine.hidden(first_window(&mut audio(file), 80)).unwrap();
        let difference = largest_difference(&hidden, &expected);
        println!("{name}: {difference:.1e}");
        assert!(difference < 1e-3, "{name}: {difference}");
    }
}

/// Compares the logits of greedy steps after the reference's prompt, in one row or in each of several.
fn logits_of_steps(rows: usize, limit: f32, precision: Precision) {
    let engine = engine(precision);

    for (name, file) in RECORDINGS {
        let steps = json(&format!("parity/{name}.steps.json"));
        let tokens = |key: &str| -> Vec<u32> { serde_json::from_value(steps[key].clone()).unwrap() };
        let (prompt, generated, ids) = (tokens("prompt"), tokens("generated"), tokens("logit_ids"));
        let (shape, expected) = array(&format!("parity/{name}.logits.npy"));

        assert_eq!(shape, [generated.len(), ids.len() + 1]);

        let mut window = engine.encode(&mut first_window(&mut audio(file), 80)).unwrap();

        // In two parts, like in a transcription.
        window.prefill(&prompt[..1], true).unwrap();
        window.prefill(&prompt[1..], false).unwrap();

        // The logits that the reference's file contains, row after row, step after step.
        let found = Arc::new(Mutex::new(Vec::new()));
        let collected = found.clone();
        let forced = ForcedSearch::new(generated.clone(), rows, move |_, logits| {
            collected.lock().unwrap().extend(ids.iter().map(|id| logits[*id as usize]));
        });
        window.decode(Box::new(forced), &mut || true).unwrap();

        let found = found.lock().unwrap();
        let (kept, step) = (shape[1] - 1, (shape[1] - 1) * rows);

        assert_eq!(found.len(), (generated.len() + 1) * step);

        let mut worst = 0.0_f32;
        for (step, expected) in found.chunks_exact(step).zip(expected.chunks_exact(kept + 1)) {
            for row in step.chunks_exact(kept) {
                worst = worst.max(largest_difference(row, &expected[..kept]));
            }
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
fn logits_in_16_bits_are_near() {
    logits_of_steps(1, 0.1, Precision::Fp16);
    logits_of_steps(5, 0.1, Precision::Fp16);
}

#[test]
fn logits_in_8_bits_are_near() {
    logits_of_steps(1, 0.5, Precision::Int8);
}

#[test]
fn a_row_longer_than_the_cache_is_refused() {
    let engine = batched(Precision::Fp32, 2);
    let mut window = engine.encode(&mut vec![0.0; 80 * WINDOW_FRAMES]).unwrap();
    for rows in [1, 3] {
        window.prefill(&[50_258; 448], true).unwrap();
        let error =
            window.decode(Box::new(ForcedSearch::new(vec![50_258], rows, |_, _| ())), &mut || true).unwrap_err();
        assert!(error.to_string().contains("room for 448 tokens"), "{error}");
    }

    let error = window.prefill(&[50_258], false).unwrap_err().to_string();
    assert!(error.contains("room for 448 tokens"), "{error}");
    assert!(engine.encode(&mut vec![0.0; 7]).is_err());

    // The window can still be used.
    window.prefill(&[50_258; 2], true).unwrap();
}

#[test]
fn a_window_s_keys_and_values_can_be_read() {
    let engine = batched(Precision::Fp32, 3);
    let mut mel = first_window(&mut audio("audio/en-1.wav"), 80);
    let mut silence = vec![0.0; mel.len()];
    let [first, _other, again] = [&mut mel.clone(), &mut silence, &mut mel].map(|mel| engine.encode(mel).unwrap());
    let read = |window: &hush_whisper::engine::EncodedWindow| {
        window.with_cross(|cross| {
            let cross = cross.iter().map(|cross| {
                let (shape, values) = cross.tensor.try_extract_tensor::<f32>()?;
                Ok((cross.name.clone(), shape.to_vec(), values.to_vec()))
            });
            cross.collect::<Result<Vec<_>, ort::Error>>()
        })
    };

    let cross = read(&first).unwrap();
    assert!(cross.iter().any(|(name, shape, _)| name == "cross_k_0" && shape[0] == 1 && shape[2] == 1500));
    assert_eq!(read(&again).unwrap(), cross);

    drop(first);
    assert_eq!(read(&again).unwrap(), cross, "it moved, and is still the same");
}

#[test]
fn a_row_that_cannot_continue_fails_alone() {
    let engine = batched(Precision::Fp32, 3);
    let tokens: Vec<u32> = (0..40).map(|token| 1000 + token).collect();

    // The first values of the logits of every step.
    let force = |prompt_length: usize| {
        let mut window = engine.encode(&mut first_window(&mut audio("audio/en-1.wav"), 80)).unwrap();
        window.prefill(&vec![50_258; prompt_length], true).unwrap();

        let found = Arc::new(Mutex::new(Vec::new()));
        let collected = found.clone();
        let forced = ForcedSearch::new(tokens.clone(), 1, move |_, logits| {
            collected.lock().unwrap().extend_from_slice(&logits[..8]);
        });
        window.decode(Box::new(forced), &mut || true).map(|_| found.lock().unwrap().clone())
    };

    let alone = force(3).unwrap();
    assert_eq!(alone.len(), 8 * (tokens.len() + 1));

    std::thread::scope(|scope| {
        let fits = [(); 2].map(|()| scope.spawn(|| force(3).unwrap()));
        let error = scope.spawn(|| force(440)).join().unwrap().unwrap_err().to_string();
        assert!(error.contains("room for 448 tokens"), "{error}");
        for fits in fits {
            assert!(largest_difference(&fits.join().unwrap(), &alone) < 1e-3);
        }
    });
}
