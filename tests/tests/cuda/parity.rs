//! The engine on the double of CUDA against the engine on the CPU, both in fp16: the same tokens.
//!
//! Both run in this process, on the ONNX Runtime with the CUDA provider. Without a script the double has one GPU.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hush_server::audio::{self, DecodeOptions};
use hush_server::spool::Spooled;
use hush_tests::{cuda_double, fixtures};
use hush_whisper::{
    EncoderContext, Engine, EngineDevice, EngineOptions, ModelDir, PcmSource, Precision, Segment, TranscribeError,
    TranscribeOptions, TranscriptSink, VadOptions, cuda, runtime,
};

const ROWS: usize = 8;
const TIME_TOLERANCE_SECONDS: f64 = 0.041;
/// The tolerance for fp16, whose sums are formed in another order.
const PROBABILITY_TOLERANCE: f64 = 0.02;

struct Engines {
    cpu: Engine,
    gpu: Engine,
}

/// Both engines, for one test at a time; `None`, and a word about it, where the double is not built.
fn engines() -> Result<Option<MutexGuard<'static, Engines>>> {
    static ENGINES: OnceLock<Mutex<Engines>> = OnceLock::new();
    static OPENING: Mutex<()> = Mutex::new(());
    let Some(library) = cuda_double::library("libonnxruntime.so") else {
        eprintln!("skipped: the double of the CUDA runtime is not built: run `make cuda-double` first");
        return Ok(None);
    };
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if ENGINES.get().is_none() {
        runtime::init(&library)?;
        let model = ModelDir::open(&fixtures::models_dir("fp16")?.join(fixtures::MODEL).join("fp16"))?;
        let load = |device| -> Result<Engine> {
            cuda::prepare(device, Precision::Fp16)?;
            let options = EngineOptions {
                device,
                threads: 2,
                prepack: true,
                max_batch: ROWS,
                memory_limit_bytes: None,
                cuda_graphs: true,
            };
            let engine = Engine::load(&model, &options)?;
            if let Some(vad) = vad_model() {
                engine.use_vad(vad);
            }
            Ok(engine)
        };
        let engines = Engines { cpu: load(EngineDevice::Cpu)?, gpu: load(EngineDevice::Cuda { index: 0 })? };
        ENGINES.get_or_init(|| Mutex::new(engines));
    }
    let engines = ENGINES.get().context("no engines")?;
    Ok(Some(engines.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// `make vad` puts it beside the CPU's ONNX Runtime.
fn vad_model() -> Option<PathBuf> {
    Some(fixtures::workspace().join(".hush/lib/silero_vad.onnx")).filter(|path| path.is_file())
}

#[derive(Default)]
struct ReferenceRun {
    segments: Vec<Segment>,
    /// Ends the work at this question.
    stop_at: Option<usize>,
    asked: usize,
}

impl TranscriptSink for ReferenceRun {
    fn segment(&mut self, segment: Segment) {
        self.segments.push(segment);
    }

    fn keep_going(&mut self) -> bool {
        self.asked += 1;
        self.stop_at.is_none_or(|stop| self.asked < stop)
    }
}

fn recording(name: &str) -> Result<impl PcmSource> {
    let file = fs::File::open(fixtures::fixture("audio").join(name))?;
    let pcm = audio::decode(&Spooled::from_file(file)?, Some(name), &DecodeOptions::default(), &|| true)?;
    let mut samples = vec![0.0; usize::try_from(pcm.source().len())?];
    pcm.source().read(0, &mut samples)?;
    Ok(samples)
}

fn recordings() -> Result<Vec<String>> {
    let entries = fs::read_dir(fixtures::fixture("audio"))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    ensure!(names.len() >= 20, "{names:?}");
    Ok(names)
}

fn transcribe(engine: &Engine, name: &str, options: &TranscribeOptions) -> Result<Vec<Segment>> {
    let mut kept = ReferenceRun::default();
    engine.transcribe(&mut recording(name)?, options, &mut kept)?;
    Ok(kept.segments)
}

/// Greedy, at one temperature.
fn plain() -> TranscribeOptions {
    TranscribeOptions { temperatures: vec![0.0], ..TranscribeOptions::default() }
}

/// What is different; empty where all agrees.
fn differences(name: &str, cpu: &[Segment], gpu: &[Segment]) -> Vec<String> {
    let mut different = Vec::new();
    if cpu.len() != gpu.len() {
        different.push(format!("{name}: {} segments, {} on the CPU", gpu.len(), cpu.len()));
    }
    for (cpu, gpu) in cpu.iter().zip(gpu) {
        if cpu.tokens != gpu.tokens {
            different.push(format!("{name}: {:?}, {:?} on the CPU", gpu.text, cpu.text));
        }
        let id = cpu.id;
        let near = |what: &str, cpu: f64, gpu: f64, tolerance: f64| {
            let is_near = (cpu - gpu).abs() <= tolerance;
            (!is_near).then(|| format!("{name}: segment {id}: {what} {gpu}, {cpu} on the CPU"))
        };
        // Two frames: rounding may move the end of a word, and with words that is the end of its segment, and where the next
        // window begins. Another window has other probabilities.
        different.extend(near("end", cpu.end_seconds, gpu.end_seconds, TIME_TOLERANCE_SECONDS));
        if cpu.seek == gpu.seek {
            different.extend(near("avg_logprob", cpu.avg_logprob, gpu.avg_logprob, PROBABILITY_TOLERANCE));
            different.extend(near("no_speech_prob", cpu.no_speech_prob, gpu.no_speech_prob, PROBABILITY_TOLERANCE));
        }
        for (cpu, gpu) in cpu.words.iter().zip(&gpu.words) {
            different.extend(near("start of a word", cpu.start_seconds, gpu.start_seconds, TIME_TOLERANCE_SECONDS));
            different.extend(near("end of a word", cpu.end_seconds, gpu.end_seconds, TIME_TOLERANCE_SECONDS));
            different.extend(near("probability", cpu.probability.into(), gpu.probability.into(), 0.05));
        }
        let words = |segment: &Segment| segment.words.iter().map(|word| word.text.clone()).collect::<Vec<_>>();
        if words(cpu) != words(gpu) {
            different.push(format!("{name}: {:?}, {:?} on the CPU", words(gpu), words(cpu)));
        }
    }
    different
}

fn all_agree(names: &[String], options: &TranscribeOptions) -> Result<()> {
    let Some(engines) = engines()? else { return Ok(()) };
    let begun = Instant::now();
    let mut wrong = Vec::new();
    for name in names {
        let (cpu, gpu) = (transcribe(&engines.cpu, name, options)?, transcribe(&engines.gpu, name, options)?);
        wrong.extend(differences(name, &cpu, &gpu));
    }
    ensure!(wrong.is_empty(), "{} differences in {} recordings:\n{}", wrong.len(), names.len(), wrong.join("\n"));
    println!("{} recordings with the CPU's tokens, {:.0} s", names.len(), begun.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn every_recording_greedy() -> Result<()> {
    all_agree(&recordings()?, &plain())
}

#[test]
fn every_recording_with_five_beams() -> Result<()> {
    all_agree(&recordings()?, &TranscribeOptions { beam_size: Some(5), ..plain() })
}

fn some() -> Vec<String> {
    ["en-1.wav", "de-1.wav", "long-en.flac", "zh-1.wav", "noisy-fr.flac"].map(str::to_owned).to_vec()
}

#[test]
fn best_of_five_at_a_temperature() -> Result<()> {
    // Equal seeds draw equal tokens as long as no probability lies within rounding of a draw.
    let options = TranscribeOptions { temperatures: vec![0.4], best_of: 5, ..plain() };
    all_agree(&some()[..2], &options)
}

#[test]
fn with_a_prompt() -> Result<()> {
    let prompt = "The server is open. The window is closed.".to_owned();
    all_agree(&some(), &TranscribeOptions { initial_prompt: Some(prompt), ..plain() })
}

#[test]
fn with_words() -> Result<()> {
    all_agree(&some(), &TranscribeOptions { word_timestamps: true, ..plain() })
}

#[test]
fn with_voice_activity_detection() -> Result<()> {
    if vad_model().is_none() {
        eprintln!("skipped: there is no model for voice activity detection: run `make vad` first");
        return Ok(());
    }
    let options = TranscribeOptions { vad: Some(VadOptions::default()), ..plain() };
    all_agree(&["pauses-es.flac", "noise.flac", "en-2.wav"].map(str::to_owned), &options)
}

/// Windows that are encoded without most of the silence after the sound.
fn short() -> TranscribeOptions {
    TranscribeOptions { encoder_context: EncoderContext::Short, ..plain() }
}

#[test]
fn with_short_windows() -> Result<()> {
    for words in [false, true] {
        all_agree(&some(), &TranscribeOptions { word_timestamps: words, logprob_threshold: None, ..short() })?;
    }
    all_agree(&some()[..2], &TranscribeOptions { beam_size: Some(5), ..short() })
}

/// Eight jobs of one engine with different searches and lengths of windows, which share its steps.
#[test]
fn eight_mixed_requests_at_once() -> Result<()> {
    let Some(engines) = engines()? else { return Ok(()) };
    let beams = TranscribeOptions { beam_size: Some(5), ..plain() };
    let words = TranscribeOptions { word_timestamps: true, ..plain() };
    let prompt = TranscribeOptions { initial_prompt: Some("The server is open.".to_owned()), ..plain() };
    let mixed = [
        ("en-1.wav", short()),
        ("de-1.wav", TranscribeOptions { encoder_context: EncoderContext::Short, ..beams.clone() }),
        ("long-de.flac", plain()),
        ("fr-1.wav", TranscribeOptions { encoder_context: EncoderContext::Short, ..words.clone() }),
        ("long-en.flac", beams),
        ("es-1.wav", prompt),
        ("zh-1.wav", short()),
        ("noisy-fr.flac", words),
    ];
    let gpu = &engines.gpu;
    let together: Vec<Result<Vec<Segment>>> = std::thread::scope(|scope| {
        let jobs: Vec<_> =
            mixed.iter().map(|(name, options)| scope.spawn(move || transcribe(gpu, name, options))).collect();
        jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a job panicked")))).collect()
    });
    let mut wrong = Vec::new();
    for ((name, options), together) in mixed.iter().zip(together) {
        wrong.extend(differences(name, &transcribe(&engines.cpu, name, options)?, &together?));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A request that ends in the middle of its steps harms neither those beside it nor those behind it.
#[test]
fn a_request_that_is_cancelled_in_the_middle_of_its_steps() -> Result<()> {
    let Some(engines) = engines()? else { return Ok(()) };
    let gpu = &engines.gpu;
    let expected = transcribe(&engines.cpu, "de-1.wav", &plain())?;
    for stop_at in [2, 3, 5] {
        let beside = std::thread::scope(|scope| -> Result<Vec<Segment>> {
            let beside = scope.spawn(move || transcribe(gpu, "de-1.wav", &plain()));
            let mut kept = ReferenceRun { stop_at: Some(stop_at), ..ReferenceRun::default() };
            let options = TranscribeOptions { beam_size: Some(5), ..plain() };
            let ended = gpu.transcribe(&mut recording("long-en.flac")?, &options, &mut kept);
            ensure!(matches!(ended, Err(TranscribeError::Cancelled)), "{ended:?}");
            beside.join().map_err(|_| anyhow::anyhow!("a job panicked"))?
        })?;
        ensure!(differences("de-1.wav", &expected, &beside).is_empty(), "beside it: {beside:?}");
        let behind = transcribe(gpu, "de-1.wav", &plain())?;
        ensure!(differences("de-1.wav", &expected, &behind).is_empty(), "behind it: {behind:?}");
    }
    Ok(())
}
