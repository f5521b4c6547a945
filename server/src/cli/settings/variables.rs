//! Variables as sources of options.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::Arg;

use super::SettingError;
use super::merge::{OptionSource, check_value, is_list, is_path};
use crate::cli::command_line::variable;
use crate::cli::env::Env;
use crate::cli::values::{AsrEngine, ValueError};

/// The `HUSH_` variable of each option. An empty variable is not set.
pub struct HushVariables<'a>(pub &'a Env);

impl OptionSource for HushVariables<'_> {
    fn values(&mut self, option: &Arg) -> Result<Option<Vec<OsString>>, SettingError> {
        let Some(long) = option.get_long() else { return Ok(None) };
        let name = variable(long);
        if is_path(option) {
            return Ok(self.0.os(&name).map(|path| vec![path.to_owned()]));
        }
        let Some(text) = self.0.text(&name)? else { return Ok(None) };

        let mut items = vec![text.trim()];
        if is_list(option) || long == "model" {
            items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
        }
        if !is_list(option) {
            // `HUSH_MODEL` names the models of `serve`; `transcribe` takes the first.
            items.truncate(1);
        }

        for item in &items {
            check_value(option, item.as_ref()).map_err(|error| bad_variable(&name, text, error))?;
        }
        let values: Vec<OsString> = items.into_iter().map(OsString::from).collect();
        Ok(Some(values).filter(|values| !values.is_empty()))
    }
}

/// A variable of whisper-asr-webservice that stands for an option here.
struct LegacyVariable {
    name: &'static str,
    /// Without dashes.
    option: &'static str,
    /// Its value as the option takes it.
    translate: fn(&str) -> Result<String, ValueError>,
}

const LEGACY_VARIABLES: [LegacyVariable; 6] = [
    LegacyVariable { name: "ASR_MODEL", option: "model", translate: unchanged },
    LegacyVariable { name: "ASR_MODEL_PATH", option: "models-dir", translate: unchanged },
    LegacyVariable { name: "ASR_DEVICE", option: "device", translate: legacy_device },
    LegacyVariable { name: "ASR_QUANTIZATION", option: "precision", translate: legacy_precision },
    LegacyVariable { name: "ASR_ENGINE", option: "asr-engine", translate: legacy_engine },
    LegacyVariable { name: "MODEL_IDLE_TIMEOUT", option: "idle-timeout", translate: legacy_seconds },
];

fn unchanged(text: &str) -> Result<String, ValueError> {
    Ok(text.to_owned())
}

fn legacy_device(text: &str) -> Result<String, ValueError> {
    match text {
        "cpu" | "cuda" => Ok(text.to_owned()),
        _ => Err(ValueError("expected cuda or cpu".to_owned())),
    }
}

fn legacy_precision(text: &str) -> Result<String, ValueError> {
    match text {
        "float32" => Ok("fp32".to_owned()),
        "float16" => Ok("fp16".to_owned()),
        "int8" => Ok("int8".to_owned()),
        _ => Err(ValueError("expected float32, float16 or int8".to_owned())),
    }
}

fn legacy_engine(text: &str) -> Result<String, ValueError> {
    match text.parse::<AsrEngine>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => {
            let fix = "expected openai_whisper or faster_whisper (there is one engine here; the name picks the shape of the \
                       JSON)";
            Err(ValueError(fix.to_owned()))
        }
    }
}

fn legacy_seconds(text: &str) -> Result<String, ValueError> {
    match text.parse::<u64>() {
        Ok(seconds) => Ok(seconds.to_string()),
        Err(_) => Err(ValueError("expected whole seconds such as 300, or 0 to keep the model loaded".to_owned())),
    }
}

/// The variables of whisper-asr-webservice, for its users.
pub struct LegacyVariables<'a> {
    env: &'a Env,
    pub used: Vec<LegacyUse>,
}

impl<'a> LegacyVariables<'a> {
    pub fn new(env: &'a Env) -> Self {
        Self { env, used: Vec::new() }
    }
}

impl OptionSource for LegacyVariables<'_> {
    fn values(&mut self, option: &Arg) -> Result<Option<Vec<OsString>>, SettingError> {
        // The precisions that `install` builds are not the one that a server computes with.
        if option.get_long() == Some("precision") && is_list(option) {
            return Ok(None);
        }
        let stands_for = |legacy: &&LegacyVariable| option.get_long() == Some(legacy.option);
        let Some(legacy) = LEGACY_VARIABLES.iter().find(stands_for) else { return Ok(None) };
        let Some(written) = self.env.os(legacy.name) else { return Ok(None) };

        let value = match is_path(option) {
            true => written.to_owned(),
            false => {
                let text = self.env.text(legacy.name)?.unwrap_or_default();
                (legacy.translate)(text.trim()).map_err(|error| bad_variable(legacy.name, text, error))?.into()
            }
        };

        let written = written.to_string_lossy().into_owned();
        self.used.push(LegacyUse { variable: legacy.name, value: written, option: legacy.option });
        Ok(Some(vec![value]))
    }
}

/// A variable of whisper-asr-webservice that decided something; `serve` logs each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyUse {
    pub variable: &'static str,
    pub value: String,
    /// The option that it stands for, without dashes.
    pub option: &'static str,
}

impl fmt::Display for LegacyUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable: name, value, option } = self;
        write!(f, "{name}={value} is used for --{option}; its name here is {}", variable(option))
    }
}

/// The folder for models where no other source names one: it depends on variables of the system.
pub struct DataFolder<'a>(pub &'a Env);

impl OptionSource for DataFolder<'_> {
    fn values(&mut self, option: &Arg) -> Result<Option<Vec<OsString>>, SettingError> {
        if option.get_long() != Some("models-dir") {
            return Ok(None);
        }

        // The XDG rules: a relative path there is to be ignored.
        let xdg_data = self.0.path("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let home_data = || self.0.path("HOME").map(|home| home.join(".local/share"));
        let data: Option<PathBuf> = xdg_data.or_else(home_data);

        match data {
            Some(data) => Ok(Some(vec![data.join("hush/models").into()])),
            None => {
                let problem = "there is no HOME to keep models in; give --models-dir or HUSH_MODELS_DIR";
                Err(SettingError::Combination(problem.to_owned()))
            }
        }
    }
}

fn bad_variable(variable: &str, value: &str, error: ValueError) -> SettingError {
    SettingError::Variable { variable: variable.to_owned(), value: value.to_owned(), problem: error.0 }
}
