//! The engine alone, without a server, for `tests/bench/run.py`. Prints one JSON line of milliseconds per run.
//!
//! usage: hush-bench COMMAND MODEL_DIR LIBRARY THREADS RUNS TOKENS        HUSH_BENCH_CUDA=N: on that GPU,
//! HUSH_BENCH_CUDA_GRAPHS=off: there without CUDA graphs
//!
//! | command | what one run does |
//! |---|---|
//! | `engine` | one window, tokens forced |
//! | `batch=N` | N windows one after the other, then N at once |
//! | `beams=N` | one window greedily, then with N beams |
//! | `marked=N` or `marked=NxB` | N windows are encoded, then decoded at once, greedily or with B beams; each part is marked in the log of the double of CUDA |
//!
//! The end of text is forbidden, so that every run decodes the same number of tokens; one run more comes first and warms
//! up.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use hush_whisper::decoding::{BeamSearch, ForcedSearch, SamplingSearch, Search, SearchConstraints, TokenRules};
use hush_whisper::{Engine, EngineDevice, EngineOptions, ModelDir, runtime};
use libloading::Library;
use serde_json::{Value, json};

/// Start of transcript, English, transcribe, no timestamps: of the multilingual vocabulary.
const PROMPT: [u32; 4] = [50_258, 50_259, 50_359, 50_363];

fn main() -> Result<()> {
    runtime::restart_without_telemetry().context("starting without the telemetry of ONNX Runtime")?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, model, library, threads, runs, tokens] = arguments.as_slice() else {
        bail!("usage: hush-bench engine|batch=N|beams=N|marked=N MODEL_DIR LIBRARY THREADS RUNS TOKENS");
    };
    let (command, count) = command.split_once('=').unwrap_or((command, "1"));
    let (count, beams) = count.split_once('x').unwrap_or((count, "1"));
    let beams: usize = beams.parse()?;
    let (count, threads, runs, tokens): (usize, usize, usize, usize) =
        (count.parse()?, threads.parse()?, runs.parse()?, tokens.parse()?);
    runtime::init(Path::new(library))?;
    let model = ModelDir::open(Path::new(model))?;
    // As the peers do: they arrange their weights at load time, too.
    let max_batch = if matches!(command, "batch" | "marked") { count } else { 1 };
    let device = match std::env::var("HUSH_BENCH_CUDA") {
        Ok(index) => EngineDevice::Cuda { index: index.parse().context("HUSH_BENCH_CUDA")? },
        Err(_) => EngineDevice::Cpu,
    };
    let cuda_graphs = std::env::var("HUSH_BENCH_CUDA_GRAPHS").map_or(true, |choice| choice != "off");
    let options = EngineOptions { device, threads, prepack: true, max_batch, memory_limit_bytes: None, cuda_graphs };
    let engine = Engine::load(&model, &options)?;
    let bench = Bench { engine, tokens };
    for _ in 0..=runs {
        let line = match command {
            "engine" => bench.forced()?,
            "batch" => bench.batch(count)?,
            "beams" => bench.beams(count)?,
            "marked" => bench.marked(count, beams)?,
            other => bail!("there is no bench `{other}`"),
        };
        println!("{line}");
    }
    Ok(())
}

struct Bench {
    engine: Engine,
    tokens: usize,
}

impl Bench {
    fn forced(&self) -> Result<Value> {
        let tokens = (0..self.tokens).map(|token| 1000 + token as u32).collect();
        let (encode_ms, total_ms) = self.window(Box::new(ForcedSearch::new(tokens, 1, |_, _| ())))?;
        Ok(json!({"encode_ms": encode_ms, "total_ms": total_ms, "tokens": self.tokens}))
    }

    fn batch(&self, count: usize) -> Result<Value> {
        let begun = Instant::now();
        for _ in 0..count {
            self.window(Box::new(SamplingSearch::greedy(self.frame())))?;
        }
        let alone_ms = milliseconds(begun);
        let begun = Instant::now();
        thread::scope(|scope| {
            let jobs: Vec<_> = (0..count)
                .map(|_| scope.spawn(|| self.window(Box::new(SamplingSearch::greedy(self.frame())))))
                .collect();
            jobs.into_iter().try_for_each(|job| match job.join() {
                Ok(result) => result.map(|_| ()),
                Err(_) => bail!("a job panicked"),
            })
        })?;
        Ok(json!({"alone_ms": alone_ms, "together_ms": milliseconds(begun), "tokens": self.tokens}))
    }

    fn beams(&self, count: usize) -> Result<Value> {
        let (encode_ms, greedy_ms) = self.window(Box::new(SamplingSearch::greedy(self.frame())))?;
        let (_, beams_ms) = self.window(Box::new(BeamSearch::new(self.frame(), count, None)))?;
        Ok(json!({"encode_ms": encode_ms, "greedy_ms": greedy_ms, "beams_ms": beams_ms, "tokens": self.tokens}))
    }

    fn marked(&self, count: usize, beams: usize) -> Result<Value> {
        let config = self.engine.config();
        let mut mel = noise(config.num_mel_bins * 2 * config.max_source_positions);
        let begun = Instant::now();
        let mut windows = Vec::with_capacity(count);
        for _ in 0..count {
            mark(c"window");
            let mut window = self.engine.encode(&mut mel).context("encoding")?;
            mark(c"prompt");
            window.prefill(&PROMPT, true).context("the prompt")?;
            windows.push(window);
        }
        mark(c"together");
        thread::scope(|scope| {
            let jobs: Vec<_> = windows
                .iter_mut()
                .map(|window| {
                    let search: Box<dyn Search> = match beams {
                        1 => Box::new(SamplingSearch::greedy(self.frame())),
                        _ => Box::new(BeamSearch::new(self.frame(), beams, None)),
                    };
                    scope.spawn(move || window.decode(search, &mut || true).map(drop))
                })
                .collect();
            jobs.into_iter().try_for_each(|job| match job.join() {
                Ok(result) => Ok(result?),
                Err(_) => bail!("a job panicked"),
            })
        })?;
        mark(c"end");
        Ok(json!({"total_ms": milliseconds(begun), "tokens": self.tokens}))
    }

    /// From log-mel to text; milliseconds of the encoder and of everything.
    fn window(&self, search: Box<dyn Search>) -> Result<(f64, f64)> {
        let config = self.engine.config();
        let mut mel = noise(config.num_mel_bins * 2 * config.max_source_positions);
        let expected = self.tokens;
        let begun = Instant::now();
        let mut window = self.engine.encode(&mut mel).context("encoding")?;
        let encode_ms = milliseconds(begun);
        window.prefill(&PROMPT, true).context("the prompt")?;
        let found = window.decode(search, &mut || true)?;
        if let Some(wrong) = found.iter().find(|candidate| candidate.tokens.len() != expected) {
            bail!("{} tokens instead of {expected}", wrong.tokens.len());
        }
        Ok((encode_ms, milliseconds(begun)))
    }

    /// Every search goes on until it has the tokens.
    fn frame(&self) -> SearchConstraints {
        let end = self.engine.special().eot;
        let rules = Arc::new(TokenRules { blank: vec![], suppressed: vec![end], timestamps: None });
        SearchConstraints {
            rules,
            end_of_text: end,
            prompt_length: PROMPT.len(),
            context: 2 * self.tokens,
            max_sampled: self.tokens,
        }
    }
}

/// Sets a mark in the log of the double of CUDA, where the process runs on it.
#[allow(unsafe_code, reason = "one function of the double, which takes a text")]
fn mark(name: &CStr) {
    type Mark = unsafe extern "C" fn(*const c_char);
    // SAFETY: the library is open already; on a real one there is no such function.
    let library = unsafe { Library::new("libcudart.so.13") };
    let Ok(library) = library else { return };
    // SAFETY: the type is that of `tests/cuda/src/log.h`.
    if let Ok(mark) = unsafe { library.get::<Mark>(b"cuda_double_mark") } {
        // SAFETY: a text that ends in a zero.
        unsafe { mark(name.as_ptr()) };
    }
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
