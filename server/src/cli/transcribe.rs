//! `hush-server transcribe`: transcribes files with the engine of the server, without a server.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use hush_log::{errorln, explain};
use hush_whisper::{Abilities, Engine, Segment, TranscribeOptions, TranscriptSink};
use indicatif::{ProgressBar, ProgressStyle};

use super::Env;
use super::progress::TerminalProgress;
use super::settings::TranscribeSettings;
use super::values::OutputFormat;
use crate::app::api_config::{decode_options, json_shape};
use crate::app::local_engine::load_engine;
use crate::audio;
use crate::format::{TranscriptFormat, TranscriptWriter, WordOutput};
use hush_listener::spool::{Spool, SpoolOptions, Spooled};

/// Stands for standard input among the files.
const STANDARD_INPUT: &str = "-";

/// The name of standard input in the name of a transcript's file.
const STANDARD_INPUT_NAME: &str = "standard-input";

/// Transcribes all files. A file that fails is reported and makes the status 1; the other files are still transcribed.
///
/// # Errors
/// If the folder of the transcripts cannot be used, or the engine cannot be loaded.
pub fn run(settings: &TranscribeSettings, env: &Env) -> anyhow::Result<ExitCode> {
    let outputs = output_paths(settings)?;
    let engine = load_engine(settings, env, &TerminalProgress)?;

    let mut has_failed = false;
    for (file, output) in settings.files.iter().zip(outputs) {
        if let Err(error) = transcribe(&engine, settings, file, output.as_deref()) {
            let file = if is_standard_input(file) { Path::new("standard input") } else { file };
            errorln!("error: {}: {}", file.display(), explain(error.as_ref()));
            has_failed = true;
        }
    }
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_standard_input(file: &Path) -> bool {
    file == Path::new(STANDARD_INPUT)
}

/// The file for the transcript of each input; `None`: standard output.
fn output_paths(settings: &TranscribeSettings) -> anyhow::Result<Vec<Option<PathBuf>>> {
    let standard_inputs = settings.files.iter().filter(|file| is_standard_input(file)).count();
    ensure!(standard_inputs <= 1, "`{STANDARD_INPUT}` is given twice; standard input can be read only once");

    let Some(dir) = &settings.output_dir else { return Ok(vec![None; settings.files.len()]) };
    fs::create_dir_all(dir).with_context(|| format!("--output-dir {}", dir.display()))?;

    let mut paths: Vec<Option<PathBuf>> = Vec::new();
    for file in &settings.files {
        let path = dir.join(output_name(settings, file)?);
        ensure!(
            !paths.iter().flatten().any(|earlier| *earlier == path),
            "two of the files would be written to {}; give them in two calls with different --output-dir",
            path.display()
        );
        paths.push(Some(path));
    }
    Ok(paths)
}

fn output_name(settings: &TranscribeSettings, file: &Path) -> anyhow::Result<OsString> {
    let mut name = match is_standard_input(file) {
        true => STANDARD_INPUT_NAME.into(),
        false => file.file_stem().with_context(|| format!("{} is not a file", file.display()))?.to_owned(),
    };
    name.push(".");
    name.push(settings.output.as_str());
    Ok(name)
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

    let options = transcribe_options(settings);
    if let Some(warning) = Abilities::new(engine.config(), engine.special()).warning(&options) {
        tracing::warn!("{warning}");
    }

    let out: Box<dyn Write> = match output {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(io::stdout()),
    };
    let writer = TranscriptWriter::with_words(transcript_format(settings), settings.words, out)?;
    let mut sink = TranscriptFileSink { writer, write_error: None, bar: progress_bar(file) };

    let transcript = engine.transcribe(&mut pcm.source(), &options, &mut sink);
    sink.bar.finish_and_clear();
    if let Some(error) = sink.write_error {
        bail!(anyhow::Error::new(error).context("writing the text"));
    }
    sink.writer.finish(&transcript?).context("writing the text")?;
    Ok(())
}

fn transcribe_options(settings: &TranscribeSettings) -> TranscribeOptions {
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
        word_timestamps: settings.words != WordOutput::Without,
        vad: settings.vad.clone(),
        ..defaults
    };
    settings.engine.apply(options)
}

fn transcript_format(settings: &TranscribeSettings) -> TranscriptFormat {
    match settings.output {
        OutputFormat::Txt => TranscriptFormat::Txt,
        OutputFormat::Vtt => TranscriptFormat::Vtt,
        OutputFormat::Srt => TranscriptFormat::Srt,
        OutputFormat::Tsv => TranscriptFormat::Tsv,
        OutputFormat::Json => TranscriptFormat::Json(json_shape(settings.asr_engine)),
    }
}

/// The decoders seek in what they read: a file is read as it is, anything else (a pipe) is copied to a spool first.
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

/// Shows on a terminal how much of the file is transcribed; elsewhere nothing.
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

struct TranscriptFileSink {
    writer: TranscriptWriter<Box<dyn Write>>,
    /// The first write that failed. It ends the transcription.
    write_error: Option<io::Error>,
    bar: ProgressBar,
}

impl TranscriptSink for TranscriptFileSink {
    fn segment(&mut self, segment: Segment) {
        if self.write_error.is_none() {
            self.write_error = self.bar.suspend(|| self.writer.segment(segment)).err();
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of audio, for a bar")]
    fn progress(&mut self, done_seconds: f64, total_seconds: f64) {
        self.bar.set_length(total_seconds as u64);
        self.bar.set_position(done_seconds as u64);
    }

    fn keep_going(&mut self) -> bool {
        self.write_error.is_none()
    }
}
