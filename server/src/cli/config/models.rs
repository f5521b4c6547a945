//! What a configuration file says of single models.

use std::path::PathBuf;
use std::str::FromStr;

use hush_whisper::{MAX_CANDIDATES, TranscribeOptions, VadOptions};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Checked;
use crate::cli::values::{
    DeviceChoice, DurationArg, Language, PrecisionChoice, ResidencyChoice, Switch, ValueError, WholeNumber,
};

/// One model. What it says beats the settings for the whole server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ModelConfig {
    /// An installed name (`base`) or a model of the hub (`openai/whisper-base`); with `path`, what requests call it.
    pub name: Option<String>,
    /// A model directory, instead of an installed name.
    pub path: Option<PathBuf>,
    /// Other names that requests may use for it.
    pub aliases: Vec<String>,
    /// `resident`, `idle` or `on-demand`.
    pub residency: Option<Checked<ResidencyChoice>>,
    /// How long it stays loaded when idle; 0: it is never unloaded.
    pub idle_timeout: Option<Checked<DurationArg>>,
    /// `fp32`, `fp16`, `int8` or `auto`.
    pub precision: Option<Checked<PrecisionChoice>>,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: Option<Checked<DeviceChoice>>,
    /// Threads that compute on the CPU.
    pub threads: Option<Checked<WholeNumber>>,
    /// Requests that may wait for it.
    pub max_queue: Option<Checked<WholeNumber>>,
    /// For requests that do not say otherwise.
    pub defaults: DecodingDefaults,
}

impl ModelConfig {
    /// The model as `--model` takes it.
    pub fn source(&self) -> Option<String> {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        path.or_else(|| self.name.clone())
    }
}

/// How a model decodes where a request does not say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DecodingDefaults {
    /// A code such as `en`, an English name such as `english`, or `auto`.
    pub language: Option<Checked<Language>>,
    /// Names and spellings that the model should know.
    pub prompt: Option<String>,
    /// Leave out what is not speech: `true` or `false`.
    pub vad_filter: Option<Checked<Switch>>,
    /// As `vadFilter`, and the pieces of a long recording are written side by side: `true` or `false`.
    pub vad_parallel: Option<Checked<Switch>>,
    /// Beams of the search where the temperature is 0: from 1 to 32.
    pub beam_size: Option<Checked<CandidateCount>>,
    /// Candidates where the temperature is above 0: from 1 to 32.
    pub best_of: Option<Checked<CandidateCount>>,
}

impl DecodingDefaults {
    /// The same for the engine.
    pub fn options(&self) -> TranscribeOptions {
        let is_on = |switch: Option<Checked<Switch>>| switch.is_some_and(|Checked(Switch(on))| on);
        let parallel = is_on(self.vad_parallel);
        let has_vad = parallel || is_on(self.vad_filter);

        let engine_defaults = TranscribeOptions::default();
        TranscribeOptions {
            language: self.language.and_then(|Checked(Language(choice))| choice.into_code()),
            initial_prompt: self.prompt.clone(),
            vad: has_vad.then(|| VadOptions { parallel, ..VadOptions::default() }),
            beam_size: self.beam_size.map(|Checked(CandidateCount(count))| count),
            best_of: self.best_of.map_or(engine_defaults.best_of, |Checked(CandidateCount(count))| count),
            ..engine_defaults
        }
    }
}

/// As many beams or candidates as the engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CandidateCount(pub usize);

impl FromStr for CandidateCount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let count = text.parse().ok().filter(|count| (1..=MAX_CANDIDATES).contains(count));
        count.map(Self).ok_or_else(|| ValueError(format!("expected a whole number from 1 to {MAX_CANDIDATES}")))
    }
}
