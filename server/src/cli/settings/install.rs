//! The settings of `install` and `models`.

use clap::{ArgAction, Args};

use super::merge::MergedSettings;
use super::shared::{LogSettings, StoreSettings, check_precision};
use super::{LegacyUse, SettingError, none_if_zero};
use crate::cli::values::{DeviceChoice, PrecisionChoice, Switch};

#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_long_help = crate::cli::command_line::INSTALL_NOTES)]
pub struct InstallSettings {
    /// Checkpoint (a folder of Hugging Face or CTranslate2, OpenAI's base.pt, whisper.cpp's ggml-base.bin), model of
    /// the hub (openai/whisper-base), or one of the usual short names (tiny, base.en, large-v3, turbo, distil-large-v3,
    /// ...).
    ///
    /// For a name, a copy on this machine is used before anything is downloaded: in the models folder, the caches of
    /// huggingface_hub and faster-whisper, and ~/.cache/whisper.
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,

    /// Name under which the model is installed; only with one SOURCE. Default: the folder's or file's name, or the
    /// short name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Precisions to build: fp32, fp16, int8 or auto; several with commas or by repeating the option.
    ///
    /// auto is int8 for the CPU and fp16 for CUDA.
    #[arg(long = "precision", value_name = "PRECISION", value_delimiter = ',', default_value = "auto")]
    pub precisions: Vec<PrecisionChoice>,

    /// The device that --precision auto builds for: cpu, cuda or auto, which is the one that `serve` would take. cuda
    /// takes fp16 only.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Branch, tag or commit of the hub's repository. Default: main.
    // `None` is `main`.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// Install models again that are installed already.
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
    pub force: bool,

    /// Keep the downloaded checkpoint in .download below the models folder instead of removing it afterwards.
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
    pub keep_download: bool,

    #[command(flatten)]
    pub store: StoreSettings,

    #[command(flatten)]
    pub log: LogSettings,

    #[arg(skip)]
    pub legacy: Vec<LegacyUse>,
}

impl InstallSettings {
    pub(super) fn complete(merged: MergedSettings<Self>, legacy: Vec<LegacyUse>) -> Result<Self, SettingError> {
        let mut settings = Self { legacy, ..merged.settings };
        none_if_zero(&mut settings.name);
        none_if_zero(&mut settings.revision);

        if settings.name.is_some() && settings.sources.len() > 1 {
            return Err(SettingError::Combination("--name needs exactly one SOURCE".to_owned()));
        }
        for precision in &settings.precisions {
            check_precision(settings.device, *precision, "", &settings.legacy)?;
        }
        Ok(settings)
    }
}

#[derive(Args, Clone, Debug, PartialEq)]
pub struct ModelsSettings {
    /// Print JSON instead of a table.
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
    pub json: bool,

    #[command(flatten)]
    pub store: StoreSettings,

    #[command(flatten)]
    pub log: LogSettings,

    #[arg(skip)]
    pub legacy: Vec<LegacyUse>,
}
