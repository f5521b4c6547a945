//! Groups of options that several commands take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hush_whisper::{EncoderContext, TranscribeOptions};
use serde::Serialize;

use super::{LegacyUse, SettingError, none_if_zero};
use crate::cli::values::{
    DeviceChoice, DurationArg, EncoderContextWord, LogFilter, LogFormat, PrecisionChoice, PrecisionWord, WholeNumber,
};

#[derive(Args, Clone, Debug, PartialEq, Serialize)]
pub struct StoreSettings {
    /// Folder that holds the installed models, as NAME/PRECISION below it.
    ///
    /// Default: $XDG_DATA_HOME/hush/models, or ~/.local/share/hush/models.
    // Required of clap only once the default is known, which depends on variables.
    #[arg(long, value_name = "DIR", required = false)]
    pub models_dir: PathBuf,
}

#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(next_help_heading = "Engine")]
pub struct EngineSettings {
    /// Where the model runs: cpu, cuda, cuda:N (N is the number of the GPU, from 0), cuda:UUID or auto.
    ///
    /// auto takes CUDA when the ONNX Runtime library has its CUDA part beside it and a small graph runs on the first
    /// GPU, else the CPU, and logs the reason. If cuda is requested explicitly and cannot be used, the server does not
    /// start.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// How the model's numbers are stored: fp32, fp16, int8 or auto.
    ///
    /// auto is int8 on a CPU (if that one is not installed, one that is) and fp16 on CUDA, which supports no other.
    #[arg(long, value_name = "PRECISION", default_value = "auto")]
    pub precision: PrecisionChoice,

    /// Threads that compute on the CPU; 0 is one for each core that this process may use.
    #[arg(long, value_name = "N", value_parser = WholeNumber::read, default_value = "0")]
    pub threads: Option<usize>,

    /// ONNX Runtime's shared library, such as /usr/lib/libonnxruntime.so.
    ///
    /// Default: ORT_DYLIB_PATH, else beside this program, in ../lib of it, and in the usual library folders.
    #[arg(long, value_name = "PATH")]
    pub ort_lib: Option<PathBuf>,

    /// Silero's model for voice activity detection, which requests with vad_filter need.
    ///
    /// Default: silero_vad.onnx beside ONNX Runtime's library, beside this program or in ../lib of it; without it such
    /// requests are refused with an error that says so.
    #[arg(long, value_name = "PATH")]
    pub vad_model: Option<PathBuf>,

    /// The ffmpeg program, used for audio and video that the built-in decoders cannot read.
    ///
    /// Default: ffmpeg in PATH; without it such files are refused with an error that says so.
    #[arg(long, value_name = "PATH")]
    pub ffmpeg: Option<PathBuf>,

    #[command(flatten)]
    #[serde(flatten)]
    pub fallback: FallbackSettings,

    /// How much of a recording of a few seconds the encoder hears: auto or full.
    ///
    /// auto encodes it with the six seconds of silence after it, 12 s at least, and encodes the 30 s that Whisper was trained
    /// on only if the text is doubtful, with models for which this was measured to cost no accuracy (tiny and base); full
    /// always encodes 30 s.
    #[arg(long, value_name = "LENGTH", default_value = "auto")]
    pub encoder_context: EncoderContextWord,
}

impl EngineSettings {
    pub(super) fn complete(&mut self) {
        none_if_zero(&mut self.threads);
        none_if_zero(&mut self.fallback.tokens);
        none_if_zero(&mut self.fallback.time);
    }

    /// The options of a transcription with what these settings determine.
    pub fn apply(&self, options: TranscribeOptions) -> TranscribeOptions {
        let encoder_context = match self.encoder_context {
            EncoderContextWord::Auto => EncoderContext::Auto,
            EncoderContextWord::Full => EncoderContext::Full,
        };
        TranscribeOptions { encoder_context, ..self.fallback.apply(options) }
    }
}

/// What a window may cost beyond its first attempt; `None` is no limit.
#[derive(Args, Clone, Copy, Debug, PartialEq, Serialize)]
#[command(next_help_heading = "Engine")]
pub struct FallbackSettings {
    /// Limit for the tokens that are decoded at higher temperatures for a window of 30 s, of all candidates together; 0
    /// is no limit.
    ///
    /// Text that is unlikely or repeats itself is tried again at higher temperatures. At the limit the best result so
    /// far is used, and this is logged. The limit of a shorter window is smaller in proportion.
    #[arg(long = "fallback-tokens", value_name = "N", value_parser = WholeNumber::read, default_value = "2400")]
    pub tokens: Option<usize>,

    /// Limit for the time that is spent on a window at higher temperatures; 0 is no limit.
    ///
    /// Like --fallback-tokens, for slow machines. With it the text depends on how busy the machine is.
    #[arg(long = "fallback-time", value_name = "DURATION", value_parser = DurationArg::read, default_value = "20s")]
    pub time: Option<Duration>,
}

impl FallbackSettings {
    fn apply(&self, options: TranscribeOptions) -> TranscribeOptions {
        let fallback_seconds = self.time.map(|time| time.as_secs_f32());
        TranscribeOptions { fallback_tokens: self.tokens, fallback_seconds, ..options }
    }
}

#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize)]
#[command(next_help_heading = "Log")]
pub struct LogSettings {
    /// Form of the log lines on standard error: text or json.
    #[arg(long = "log-format", value_name = "FORMAT", default_value = "text")]
    pub format: LogFormat,

    /// What to log: error, warn, info, debug or trace, or a filter such as info,hush_server=debug.
    #[arg(long = "log-level", value_name = "LEVEL", value_parser = LogFilter::read, default_value = "info")]
    pub level: String,
}

/// CUDA takes fp16 only. `auto`, as the device or as the precision, is not refused: it means what goes with the other.
///
/// `prefix` begins the message; the message names the legacy variables that decided.
pub(super) fn check_precision(
    device: DeviceChoice,
    precision: PrecisionChoice,
    prefix: &str,
    legacy: &[LegacyUse],
) -> Result<(), SettingError> {
    let (DeviceChoice::Cuda(_), PrecisionChoice::Exactly(precision)) = (device, precision) else { return Ok(()) };
    if precision == PrecisionWord::Fp16 {
        return Ok(());
    }

    let mut problem = format!(
        "{prefix}--precision {precision} does not run on --device {device}: CUDA takes fp16 only. Use --precision fp16 or \
         leave it out, or take --device cpu"
    );
    for used in legacy.iter().filter(|used| ["device", "precision"].contains(&used.option)) {
        problem.push_str(&format!(" ({used})"));
    }
    Err(SettingError::Combination(problem))
}
