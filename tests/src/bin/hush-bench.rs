//! The engine alone, without a server, for `tests/bench/run.py`. Prints one JSON line of milliseconds per run.
//!
//! usage: hush-bench engine MODEL_DIR LIBRARY THREADS RUNS TOKENS        HUSH_BENCH_CUDA=N: on that GPU
//!
//! Prompt and tokens are forced, so that every run does the same work; one run more comes first and warms up.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use hush_whisper::decoding::Forward;
use hush_whisper::engine::LoadTimings;
use hush_whisper::{Device, Engine, EngineOptions, ModelDir, runtime};
use serde_json::json;

/// Start of transcript, English, transcribe, no timestamps: of the multilingual vocabulary.
const PROMPT: [u32; 4] = [50_258, 50_259, 50_359, 50_363];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, model, library, threads, runs, tokens] = arguments.as_slice() else {
        bail!("usage: hush-bench engine MODEL_DIR LIBRARY THREADS RUNS TOKENS");
    };
    if command != "engine" {
        bail!("there is no bench `{command}`");
    }
    let (threads, runs, tokens): (usize, usize, u32) = (threads.parse()?, runs.parse()?, tokens.parse()?);
    runtime::init(Path::new(library))?;
    let model = ModelDir::open(Path::new(model))?;
    // As the peers do: they arrange their weights at load time, too.
    let device = match std::env::var("HUSH_BENCH_CUDA") {
        Ok(index) => Device::Cuda { index: index.parse().context("HUSH_BENCH_CUDA")? },
        Err(_) => Device::Cpu,
    };
    let options = EngineOptions { device, threads, prepack: true, memory_limit_bytes: None };
    let mut engine = Engine::load(&model, &options, &mut LoadTimings::default())?;
    let speech = engine.speech();
    let frames = 2 * speech.config().max_source_positions;
    let mel: Vec<f32> = noise(speech.config().num_mel_bins * frames);
    for _ in 0..=runs {
        let begun = Instant::now();
        speech.encode(&mel).context("encoding")?;
        let encode_ms = milliseconds(begun);
        speech.restart()?;
        speech.feed(&PROMPT).context("the prompt")?;
        speech.fork(1)?;
        for token in 0..tokens {
            speech.step(&[1000 + token]).context("a step")?;
        }
        let total_ms = milliseconds(begun);
        println!("{}", json!({"encode_ms": encode_ms, "total_ms": total_ms, "tokens": tokens}));
    }
    Ok(())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Between -1 and 1, always the same (a linear congruential generator; Numerical Recipes' constants).
fn noise(length: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(u16::MAX)) / 32_768.0 - 1.0
    };
    (0..length).map(|_| next()).collect()
}
