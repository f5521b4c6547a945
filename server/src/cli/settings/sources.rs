//! One option's value from where it may come: the flag, the `HUSH_` variable, a variable of whisper-asr-webservice.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::super::args::{EngineArgs, LogArgs, MemoryArgs, StoreArgs};
use super::super::config::ConfigFile;
use super::super::env::Env;
use super::super::values::{
    AsrEngine, DeviceChoice, LogFormat, LogLevel, Precision, PrecisionChoice, Span, Switch, ValueError,
};
use super::super::variable;
use super::{EngineSettings, FallbackSettings, LegacyUse, LogSettings, MemorySettings, SettingError};

/// A whole number as a variable.
pub(super) struct Count(pub usize);

impl FromStr for Count {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| ValueError("expected a whole number".to_owned()))
    }
}

/// A number as a variable.
pub(super) struct Number(pub f32);

impl FromStr for Number {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        text.parse().map(Self).map_err(|_| ValueError("expected a number".to_owned()))
    }
}

/// Any text.
struct Text(String);

impl FromStr for Text {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Ok(Self(text.to_owned()))
    }
}

pub(super) fn legacy_seconds(text: &str) -> Result<Duration, ValueError> {
    let wrong = |_| ValueError("expected whole seconds such as 300, or 0 for ever".to_owned());
    text.parse().map(Duration::from_secs).map_err(wrong)
}

fn legacy_device(text: &str) -> Result<DeviceChoice, ValueError> {
    match text {
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::CUDA),
        _ => Err(ValueError("expected cuda or cpu".to_owned())),
    }
}

fn legacy_precision(text: &str) -> Result<PrecisionChoice, ValueError> {
    match text {
        "float32" => Ok(PrecisionChoice::Exactly(Precision::Fp32)),
        "float16" => Ok(PrecisionChoice::Exactly(Precision::Fp16)),
        "int8" => Ok(PrecisionChoice::Exactly(Precision::Int8)),
        _ => Err(ValueError("expected float32, float16 or int8".to_owned())),
    }
}

fn legacy_engine(text: &str) -> Result<AsrEngine, ValueError> {
    text.parse().map_err(|_| {
        let fix = "expected openai_whisper or faster_whisper (there is one engine here; the name picks the shape of the JSON)";
        ValueError(fix.to_owned())
    })
}

/// Where values come from besides the flags.
pub(super) struct Sources<'a> {
    pub env: &'a Env,
    /// Of `serve`.
    pub file: Option<&'a ConfigFile>,
    pub legacy: Vec<LegacyUse>,
}

impl<'a> Sources<'a> {
    pub fn new(env: &'a Env) -> Self {
        Self { env, file: None, legacy: Vec::new() }
    }

    /// The flag, the option's variable, or the configuration file.
    pub fn value<T: FromStr<Err = ValueError>>(
        &self,
        option: &str,
        flag: Option<T>,
    ) -> Result<Option<T>, SettingError> {
        match self.given(option, flag)? {
            Some(value) => Ok(Some(value)),
            None => self.filed(option),
        }
    }

    /// What the configuration file says; it has been checked.
    pub fn filed<T: FromStr<Err = ValueError>>(&self, option: &str) -> Result<Option<T>, SettingError> {
        let Some(text) = self.file.and_then(|file| file.option(option)) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: ValueError| SettingError::Config(format!("{option}: {error}")))
    }

    /// The flag, or the option's variable.
    pub fn given<T: FromStr<Err = ValueError>>(
        &self,
        option: &str,
        flag: Option<T>,
    ) -> Result<Option<T>, SettingError> {
        if flag.is_some() {
            return Ok(flag);
        }
        let name = variable(option);
        let Some(text) = self.env.text(&name)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|error: ValueError| bad(name, text, error))
    }

    /// As [`Self::value`], for types of other modules.
    pub fn parsed<T: FromStr>(&self, option: &str, flag: Option<T>) -> Result<Option<T>, SettingError>
    where
        T::Err: fmt::Display,
    {
        Ok(self.list(option, flag.into_iter().collect())?.into_iter().next())
    }

    pub fn switch(&self, option: &str, flag: Option<Switch>) -> Result<Option<bool>, SettingError> {
        Ok(self.value(option, flag)?.map(|switch| switch.0))
    }

    pub fn text(&self, option: &str, flag: Option<String>) -> Result<Option<String>, SettingError> {
        Ok(self.value(option, flag.map(Text))?.map(|text| text.0).filter(|text| !text.is_empty()))
    }

    pub fn path(&self, option: &str, flag: Option<PathBuf>) -> Option<PathBuf> {
        flag.or_else(|| self.env.path(&variable(option))).or_else(|| self.file?.path(option))
    }

    /// The flags, or the variable with commas between the values.
    pub fn list<T: FromStr>(&self, option: &str, flags: Vec<T>) -> Result<Vec<T>, SettingError>
    where
        T::Err: fmt::Display,
    {
        if !flags.is_empty() {
            return Ok(flags);
        }
        let name = variable(option);
        let Some(text) = self.env.text(&name)? else { return Ok(Vec::new()) };
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items
            .map(|item| item.parse().map_err(|error: T::Err| bad(name.clone(), text, ValueError(error.to_string()))))
            .collect()
    }

    pub fn at_least_one(&self, option: &str, flag: Option<usize>) -> Result<Option<usize>, SettingError> {
        match self.value(option, flag.map(Count))? {
            Some(Count(0)) => Err(SettingError::Combination(format!("--{option} must be at least 1"))),
            count => Ok(count.map(|count| count.0)),
        }
    }

    pub fn positive(&self, option: &str, flag: Option<Span>, default: Duration) -> Result<Duration, SettingError> {
        match self.value(option, flag)? {
            Some(Span(span)) if span.is_zero() => {
                Err(SettingError::Combination(format!("--{option} must be longer than 0")))
            }
            Some(Span(span)) => Ok(span),
            None => Ok(default),
        }
    }

    /// A variable of whisper-asr-webservice; asked only when neither flag nor `HUSH_` variable is there.
    pub fn legacy<T>(
        &mut self,
        option: &'static str,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, SettingError> {
        let Some(text) = self.env.text(name)? else { return Ok(None) };
        let value = parse(text.trim()).map_err(|error| bad(name.to_owned(), text, error))?;
        self.legacy.push(LegacyUse { variable: name, value: text.to_owned(), option });
        Ok(Some(value))
    }

    /// The flag, the option's variable, the variable of whisper-asr-webservice, or the configuration file.
    fn with_legacy<T: FromStr<Err = ValueError>>(
        &mut self,
        option: &'static str,
        flag: Option<T>,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, SettingError> {
        if let Some(value) = self.given(option, flag)? {
            return Ok(Some(value));
        }
        match self.legacy(option, name, parse)? {
            Some(value) => Ok(Some(value)),
            None => self.filed(option),
        }
    }

    pub fn device(&mut self, flag: Option<DeviceChoice>) -> Result<DeviceChoice, SettingError> {
        self.with_legacy("device", flag, "ASR_DEVICE", legacy_device).map(Option::unwrap_or_default)
    }

    pub fn asr_engine(&mut self, flag: Option<AsrEngine>) -> Result<AsrEngine, SettingError> {
        let engine = self.with_legacy("asr-engine", flag, "ASR_ENGINE", legacy_engine)?;
        Ok(engine.unwrap_or(AsrEngine::OpenaiWhisper))
    }

    pub fn engine(&mut self, args: EngineArgs) -> Result<EngineSettings, SettingError> {
        let device = self.device(args.device)?;
        let precision = self.with_legacy("precision", args.precision, "ASR_QUANTIZATION", legacy_precision)?;
        let precision = precision.unwrap_or_default();
        Ok(EngineSettings {
            device,
            precision,
            threads: self.value("threads", args.threads.map(Count))?.map(|count| count.0).filter(|&count| count > 0),
            ort_lib: self.path("ort-lib", args.ort_lib),
            vad_model: self.path("vad-model", args.vad_model),
            ffmpeg: self.path("ffmpeg", args.ffmpeg),
            fallback: self.fallback(args.fallback_tokens, args.fallback_time)?,
        })
    }

    /// Zero is no limit.
    fn fallback(&self, tokens: Option<usize>, time: Option<Span>) -> Result<FallbackSettings, SettingError> {
        let usual = FallbackSettings::default();
        let tokens = self.value("fallback-tokens", tokens.map(Count))?;
        let time = self.value("fallback-time", time)?;
        Ok(FallbackSettings {
            tokens: tokens.map_or(usual.tokens, |Count(tokens)| (tokens > 0).then_some(tokens)),
            time: time.map_or(usual.time, |Span(time)| (!time.is_zero()).then_some(time)),
        })
    }

    pub fn memory(&self, args: MemoryArgs) -> Result<MemorySettings, SettingError> {
        let interval = Duration::from_secs(1);
        Ok(MemorySettings {
            nvml_lib: self.path("nvml-lib", args.nvml_lib),
            sample_interval: self.positive("gpu-sample-interval", args.gpu_sample_interval, interval)?,
            headroom_bytes: self.value("headroom", args.headroom)?.map_or(256 << 20, |size| size.0),
            reclaim_timeout: self
                .value("reclaim-timeout", args.reclaim_timeout)?
                .map_or(Duration::from_secs(5), |span| span.0),
            reclaimer: self.value("memory-reclaimer", args.memory_reclaimer)?.and_then(|percent| percent.0),
            account_gpu: self.value("account-gpu", args.account_gpu)?.map(|gpu| gpu.0),
        })
    }

    pub fn log(&self, args: LogArgs) -> Result<LogSettings, SettingError> {
        Ok(LogSettings {
            format: self.value("log-format", args.log_format)?.unwrap_or(LogFormat::Text),
            level: self.value("log-level", args.log_level)?.map_or("info".to_owned(), |level: LogLevel| level.0),
        })
    }

    pub fn models_dir(&mut self, args: StoreArgs) -> Result<PathBuf, SettingError> {
        let given = args.models_dir.or_else(|| self.env.path(&variable("models-dir")));
        if let Some(dir) = given {
            return Ok(dir);
        }
        if let Some(dir) = self.env.path("ASR_MODEL_PATH") {
            let value = dir.display().to_string();
            self.legacy.push(LegacyUse { variable: "ASR_MODEL_PATH", value, option: "models-dir" });
            return Ok(dir);
        }
        if let Some(dir) = self.file.and_then(|file| file.path("models-dir")) {
            return Ok(dir);
        }
        // The XDG rules: a relative path there is to be ignored.
        let data = self.env.path("XDG_DATA_HOME").filter(|path| path.is_absolute());
        let data = data.or_else(|| self.env.path("HOME").map(|home| home.join(".local/share")));
        let problem = "there is no HOME to keep models in; give --models-dir or HUSH_MODELS_DIR";
        data.map(|data| data.join("hush/models")).ok_or_else(|| SettingError::Combination(problem.to_owned()))
    }
}

fn bad(variable: String, value: &str, error: ValueError) -> SettingError {
    SettingError::Variable { variable, value: value.to_owned(), problem: error.0 }
}
