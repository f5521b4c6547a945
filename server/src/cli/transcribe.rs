//! `hush-server transcribe`: the engine of the server on files, without a server.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;

use anyhow::{Context, bail, ensure};
use hush_log::{errorln, explain};
use hush_whisper::vad::VadError;
use hush_whisper::{Abilities, Engine, EngineOptions, ModelDir, Segment, Sink, TranscribeOptions, runtime};
use indicatif::{ProgressBar, ProgressStyle};

use super::cuda;
use super::env::Env;
use super::install::{Missing, find_or_install};
use super::model_placement::find_model;
use super::ort_lib;
use super::resolve::Store;
use super::serve::decode_options;
use super::settings::TranscribeSettings;
use super::vad_model;
use super::values::{AsrEngine, Device, OutputFormat};
use crate::audio;
use crate::format::{Format, JsonShape, Words, Writer};
use crate::spool::{Spool, SpoolOptions, Spooled};

/// What stands for standard input among the files.
const STANDARD_INPUT: &str = "-";
/// How messages and transcripts in a folder call it.
const STANDARD_INPUT_NAME: &str = "standard-input";

/// Chunks of a file that are transcribed at once with --vad-parallel.
const PARALLEL_WINDOWS: usize = 8;

/// Goes through all files; a file that fails is told and makes the status 1, the others are still done.
pub fn run(settings: &TranscribeSettings, env: &Env) -> anyhow::Result<ExitCode> {
    let outputs = outputs(settings)?;
    let engine = load(settings, env)?;
    let mut failed = false;
    for (file, output) in settings.files.iter().zip(outputs) {
        if let Err(error) = transcribe(&engine, settings, file, output.as_deref()) {
            let file = if is_standard_input(file) { Path::new("standard input") } else { file };
            errorln!("error: {}: {}", file.display(), explain(error.as_ref()));
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_standard_input(file: &Path) -> bool {
    file == Path::new(STANDARD_INPUT)
}

/// Where each file's text goes; `None`: standard output.
fn outputs(settings: &TranscribeSettings) -> anyhow::Result<Vec<Option<PathBuf>>> {
    let read_from_standard_input = settings.files.iter().filter(|file| is_standard_input(file)).count();
    ensure!(read_from_standard_input <= 1, "`{STANDARD_INPUT}` is given twice; standard input can be read only once");
    let Some(dir) = &settings.output_dir else { return Ok(vec![None; settings.files.len()]) };
    fs::create_dir_all(dir).with_context(|| format!("--output-dir {}", dir.display()))?;
    let mut taken: Vec<Option<PathBuf>> = Vec::new();
    for file in &settings.files {
        let mut name = match is_standard_input(file) {
            true => STANDARD_INPUT_NAME.into(),
            false => file.file_stem().with_context(|| format!("{} is not a file", file.display()))?.to_owned(),
        };
        name.push(".");
        name.push(settings.output.as_str());
        let path = dir.join(name);
        ensure!(
            !taken.iter().flatten().any(|earlier| *earlier == path),
            "two of the files would be written to {}; give them in two calls with different --output-dir",
            path.display()
        );
        taken.push(Some(path));
    }
    Ok(taken)
}

fn load(settings: &TranscribeSettings, env: &Env) -> anyhow::Result<Engine> {
    let program = std::env::current_exe().context("finding this program")?;
    let library = ort_lib::find(settings.engine.ort_lib.as_deref(), env, &program)?;
    let vad_model = vad_model::find(settings.engine.vad_model.as_deref(), &library, &program)?;
    if settings.vad.is_some() && vad_model.is_none() {
        return Err(anyhow::Error::new(VadError::NoModel).context("--vad-filter"));
    }
    let store = Store::new(&settings.store.models_dir);
    let name = match &settings.model {
        Some(name) => name.clone(),
        None => store.default_model()?,
    };
    let precision = settings.engine.precision;
    let missing = if settings.install_missing { Missing::Install } else { Missing::Refuse };
    let asked = settings.engine.device;
    let (model, placement) = find_model(
        asked,
        || cuda::placement(asked, &program, Some(&library), env),
        precision,
        |device| find_or_install(&store, &name, precision, device, missing, env),
        |device| store.find(&name, precision, device),
    )?;
    if let Some(reason) = &placement.reason {
        tracing::info!("--device {asked} is the CPU here: {reason}");
    }
    let device = engine_device(placement.device, env)?;
    runtime::init(&library)?;
    let options = EngineOptions {
        device,
        threads: settings.engine.threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZeroUsize::get)),
        // Worth its while: all files go through one load.
        prepack: true,
        // One file at a time; of its chunks several.
        max_batch: if settings.vad.as_ref().is_some_and(|vad| vad.parallel) { PARALLEL_WINDOWS } else { 1 },
        memory_limit_bytes: None,
        cuda_graphs: true,
    };
    let engine = Engine::load(&ModelDir::open(&model.dir)?, &options)?;
    if let Some(model) = vad_model {
        engine.use_vad(model);
    }
    Ok(engine)
}

fn engine_device(device: Device, env: &Env) -> anyhow::Result<hush_whisper::Device> {
    match device {
        Device::Cpu => Ok(hush_whisper::Device::Cpu),
        Device::Cuda(gpu) => Ok(hush_whisper::Device::Cuda { index: i32::try_from(cuda::index_here(gpu, env)?)? }),
    }
}

fn transcribe(
    engine: &Engine,
    settings: &TranscribeSettings,
    file: &Path,
    output: Option<&Path>,
) -> anyhow::Result<()> {
    let decode = decode_options(settings.engine.ffmpeg.as_deref(), None, audio::DEFAULT_PCM_MEMORY_BYTES);
    let name = file.file_name().filter(|_| !is_standard_input(file)).map(|name| name.to_string_lossy());
    let pcm = audio::decode(&open(file)?, name.as_deref(), &decode, &|| true)?;
    let defaults = TranscribeOptions::default();
    let search = settings.search;
    let options = TranscribeOptions {
        task: settings.task.into(),
        language: settings.language.clone(),
        initial_prompt: settings.initial_prompt.clone(),
        temperatures: search.temperature.map_or_else(|| defaults.temperatures.clone(), |temperature| vec![temperature]),
        best_of: search.best_of.unwrap_or(defaults.best_of),
        beam_size: search.beam_size,
        patience: search.patience,
        length_penalty: search.length_penalty,
        word_timestamps: settings.words != Words::Without,
        vad: settings.vad.clone(),
        ..defaults
    };
    let options = settings.engine.fallback.apply(options);
    if let Some(warning) = Abilities::new(engine.config(), engine.special()).warning(&options) {
        tracing::warn!("{warning}");
    }
    let format = match settings.output {
        OutputFormat::Txt => Format::Txt,
        OutputFormat::Vtt => Format::Vtt,
        OutputFormat::Srt => Format::Srt,
        OutputFormat::Tsv => Format::Tsv,
        OutputFormat::Json => Format::Json(match settings.asr_engine {
            AsrEngine::OpenaiWhisper => JsonShape::OpenAiWhisper,
            AsrEngine::FasterWhisper => JsonShape::FasterWhisper,
        }),
    };
    let out: Box<dyn Write> = match output {
        Some(path) => {
            Box::new(BufWriter::new(File::create(path).with_context(|| format!("writing {}", path.display()))?))
        }
        None => Box::new(io::stdout()),
    };
    let mut sink =
        FileSink { writer: Writer::with_words(format, settings.words, out)?, broken: None, bar: progress_bar(file) };
    let transcript = engine.transcribe(&mut pcm.source(), &options, &mut sink);
    sink.bar.finish_and_clear();
    if let Some(error) = sink.broken {
        bail!(anyhow::Error::new(error).context("writing the text"));
    }
    sink.writer.finish(&transcript?).context("writing the text")?;
    Ok(())
}

/// The decoders go back and forth in what they read: a file as it is, anything else (a pipe) through a spool.
fn open(path: &Path) -> anyhow::Result<Spooled> {
    let mut input = match is_standard_input(path) {
        true => File::from(io::stdin().as_fd().try_clone_to_owned().context("opening it")?),
        false => File::open(path).context("opening it")?,
    };
    if input.metadata().context("opening it")?.is_file() {
        return Spooled::from_file(input).context("opening it");
    }
    let mut spool = Spool::new(SpoolOptions::default());
    let mut piece = vec![0; 256 << 10];
    loop {
        match input.read(&mut piece).context("reading it")? {
            0 => return Ok(spool.finish()),
            length => spool.write(&piece[..length])?,
        }
    }
}

/// On a terminal the share of the file that is done; nothing elsewhere.
fn progress_bar(file: &Path) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0).with_message(file.display().to_string());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} s, {eta} left") {
        bar.set_style(style);
    }
    bar
}

struct FileSink {
    writer: Writer<Box<dyn Write>>,
    /// The first failed write; ends the work.
    broken: Option<io::Error>,
    bar: ProgressBar,
}

impl Sink for FileSink {
    fn segment(&mut self, segment: Segment) {
        if self.broken.is_none() {
            self.broken = self.bar.suspend(|| self.writer.segment(segment)).err();
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of audio, for a bar")]
    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.bar.set_length(total_seconds as u64);
        self.bar.set_position(done_seconds as u64);
    }

    fn keep_going(&mut self) -> bool {
        self.broken.is_none()
    }
}
