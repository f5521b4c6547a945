//! The settings of `transcribe`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use hush_whisper::VadOptions;

use super::merge::MergedSettings;
use super::shared::{EngineSettings, LogSettings, StoreSettings, check_precision};
use super::{LegacyUse, SettingError, none_if_zero};
use crate::cli::values::{AsrEngine, Language, OutputFormat, Switch, TaskWord, ValueError, WholeNumber, read_decimal};
use crate::format::{SubtitleLayout, WordOutput};

#[derive(Args, Clone, Debug, PartialEq)]
pub struct TranscribeSettings {
    /// Audio or video files; - is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Format of the transcript: txt, vtt, srt, tsv or json.
    #[arg(long, value_name = "FORMAT", default_value = "txt")]
    pub output: OutputFormat,

    /// Folder for the transcripts, one file each, named after the input. Default: everything on standard output.
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Language that is spoken: a code (en, de-AT, yue), an English name, or auto.
    ///
    /// Default: auto, detected in the first 30 seconds.
    #[arg(long, value_name = "LANGUAGE", value_parser = language_code)]
    pub language: Option<String>,

    /// transcribe writes what is said; translate writes it in English.
    #[arg(long, value_name = "TASK", default_value = "transcribe")]
    pub task: TaskWord,

    /// Text that comes before the audio: names and spellings that the model should know.
    #[arg(long, value_name = "TEXT")]
    pub initial_prompt: Option<String>,

    #[command(flatten)]
    pub search: SearchSettings,

    /// Transcribe only what is speech (voice activity detection).
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    vad_filter: bool,

    /// As --vad-filter, and stretches of up to 30 s are transcribed side by side, each without the text before it.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    vad_parallel: bool,

    /// Shape of the json format, after the engines of whisper-asr-webservice: openai_whisper or faster_whisper.
    #[arg(long, value_name = "ENGINE", default_value = "openai_whisper")]
    pub asr_engine: AsrEngine,

    /// Model to use: an installed name (base), a model of the hub (openai/whisper-base) or a model directory.
    ///
    /// Default: the installed model if there is exactly one, else base.
    #[arg(long, value_name = "NAME|DIR")]
    pub model: Option<String>,

    #[command(flatten)]
    pub store: StoreSettings,

    /// Whether a model that is not installed is downloaded from the hub and installed first: true or false.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        default_value = "true"
    )]
    pub install_missing: bool,

    #[command(flatten)]
    subtitles: SubtitleOptions,

    #[command(flatten)]
    pub engine: EngineSettings,

    #[command(flatten)]
    pub log: LogSettings,

    /// What the options for words and subtitles come to.
    #[arg(skip)]
    pub words: WordOutput,

    /// What the options for voice activity detection come to.
    #[arg(skip)]
    pub vad: Option<VadOptions>,

    #[arg(skip)]
    pub legacy: Vec<LegacyUse>,
}

/// How text is searched. `None` is what the engine does by itself; the engine also checks the values.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
pub struct SearchSettings {
    /// Keep this many likeliest sequences side by side (beam search) instead of always the likeliest token.
    /// Default: no beams.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read)]
    pub beam_size: Option<usize>,

    /// How long a beam search waits for sequences to end: 2 is until twice as many as beams have. Default: 1.
    #[arg(long, value_name = "FACTOR", value_parser = read_decimal)]
    pub patience: Option<f32>,

    /// Candidates that are drawn at each temperature above zero. Default: 5.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read)]
    pub best_of: Option<usize>,

    /// Weight of long candidates against short ones, from 0 to 1. Default: the mean per token decides.
    #[arg(long, value_name = "EXPONENT", value_parser = read_decimal)]
    pub length_penalty: Option<f32>,

    /// Use only this temperature, from 0 to 2. Default: 0, and higher ones up to 1 where the text repeats itself or is
    /// unlikely.
    #[arg(long, value_name = "T", value_parser = read_decimal)]
    pub temperature: Option<f32>,
}

#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Words and subtitles")]
struct SubtitleOptions {
    /// Find out when each word is spoken: words in json, subtitles made of words.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    word_timestamps: bool,

    /// In srt and vtt, underline each word while it is spoken. Needs --word-timestamps.
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    highlight_words: bool,

    /// Characters in a line of a subtitle. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read)]
    max_line_width: Option<usize>,

    /// Lines in a subtitle; takes effect with --max-line-width. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read)]
    max_line_count: Option<usize>,

    /// Words in a subtitle; no effect with both of the above. Needs --word-timestamps. Default: no limit.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read)]
    max_words_per_line: Option<usize>,
}

impl TranscribeSettings {
    pub(super) fn complete(merged: MergedSettings<Self>, legacy: Vec<LegacyUse>) -> Result<Self, SettingError> {
        let mut settings = Self { legacy, ..merged.settings };
        none_if_zero(&mut settings.language);
        none_if_zero(&mut settings.initial_prompt);
        settings.engine.complete();

        settings.words = settings.subtitles.words()?;
        let parallel = settings.vad_parallel;
        settings.vad = (settings.vad_filter || parallel).then(|| VadOptions { parallel, ..VadOptions::default() });

        let engine = &settings.engine;
        check_precision(engine.device, engine.precision, "", &settings.legacy)?;
        Ok(settings)
    }
}

impl SubtitleOptions {
    fn words(&self) -> Result<WordOutput, SettingError> {
        let layout = SubtitleLayout {
            highlight_words: self.highlight_words,
            max_line_width: at_least_one("max-line-width", self.max_line_width)?,
            max_line_count: at_least_one("max-line-count", self.max_line_count)?,
            max_words_per_line: at_least_one("max-words-per-line", self.max_words_per_line)?,
        };

        if self.word_timestamps {
            return Ok(WordOutput::LaidOut(layout));
        }
        if layout != SubtitleLayout::default() {
            let problem = "--highlight-words, --max-line-width, --max-line-count and --max-words-per-line need \
                           --word-timestamps";
            return Err(SettingError::Combination(problem.to_owned()));
        }
        Ok(WordOutput::Without)
    }
}

/// The code of a language; empty for `auto`.
fn language_code(text: &str) -> Result<String, ValueError> {
    Language::read(text).map(|choice| choice.into_code().unwrap_or_default())
}

fn at_least_one(option: &str, count: Option<usize>) -> Result<Option<usize>, SettingError> {
    match count {
        Some(0) => Err(SettingError::Combination(format!("--{option} must be at least 1"))),
        count => Ok(count),
    }
}
