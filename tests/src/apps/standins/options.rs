//! Command line of `hush-app-standin`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

/// Which program is stood in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StandInKind {
    Ollama,
    /// llama-server with its router.
    LlamaServer,
    Vllm,
    Sglang,
    Triton,
    Comfyui,
    Localai,
    Speaches,
    A1111,
}

impl StandInKind {
    /// As on the command line, which is the name that the sidecar has for the app.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Triton => "triton",
            Self::Comfyui => "comfyui",
            Self::Localai => "localai",
            Self::Speaches => "speaches",
            Self::A1111 => "a1111",
        }
    }
}

/// A flag of the original that is wrong, or a fault that it has at times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Manner {
    /// llama-server without `--no-models-autoload`.
    Autoload,
    /// vLLM without `VLLM_SERVER_DEV_MODE=1`: it has no routes of sleep.
    NoDevMode,
    /// vLLM without `--enable-sleep-mode`: the routes exist and free nothing.
    NoSleepMode,
    /// vLLM before its sleep waited: it says 200, and its engine is dead, if requests were in flight.
    DiesWhenBusy,
    /// SGLang without `--enable-memory-saver`: the routes exist and free nothing.
    NoMemorySaver,
    /// SGLang without `--enable-weights-cpu-backup`: weights come back as garbage.
    NoWeightsBackup,
    /// Triton without `--model-control-mode=explicit`: load and unload are refused.
    NoModelControl,
    /// An unload ends the entry in the list, and its process stays with the memory.
    ChildSurvives,
    /// Each load ends with success, and nothing is in memory though the list says so.
    LoadLies,
    /// Each load fails.
    LoadFails,
    /// A load never ends.
    LoadHangs,
    /// An unload never ends.
    UnloadHangs,
}

/// `NAME` or `NAME=BYTES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    pub name: String,
    /// Device memory that it holds.
    pub bytes: u64,
}

impl FromStr for ModelSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.rsplit_once('=') {
            Some((name, bytes)) => {
                let bytes =
                    bytes.parse().with_context(|| format!("{text}: the part behind = must be a number of bytes"))?;
                Ok(Self { name: name.to_owned(), bytes })
            }
            None => Ok(Self { name: text.to_owned(), bytes: 1 << 30 }),
        }
    }
}

/// A stand-in for another model server, for tests: see tests/src/apps/standins.
#[derive(Clone, Debug, Parser)]
pub struct StandInOptions {
    #[arg(long, value_enum)]
    pub app: StandInKind,
    /// On the loopback.
    #[arg(long)]
    pub port: u16,
    /// NAME or NAME=BYTES; a name alone holds 1 GiB.
    #[arg(long = "model", required = true)]
    pub models: Vec<ModelSpec>,
    /// File for the journal; further lines are appended.
    #[arg(long)]
    pub journal: Option<PathBuf>,
    /// UUID of the scripted GPU that models are loaded to; without it they hold no memory.
    #[arg(long)]
    pub gpu: Option<String>,
    /// What the process itself holds once it has used the GPU, beside its models.
    #[arg(long, default_value_t = 0)]
    pub context_bytes: u64,
    /// Loads the models at the start.
    #[arg(long)]
    pub loaded: bool,
    #[arg(long, default_value_t = 100)]
    pub load_ms: u64,
    #[arg(long, default_value_t = 50)]
    pub unload_ms: u64,
    /// How long an app that is busy waits before it cuts, or refuses.
    #[arg(long, default_value_t = 1000)]
    pub stop_ms: u64,
    #[arg(long, default_value_t = 20)]
    pub token_ms: u64,
    /// How long work lasts that is not made of tokens: an image, a transcript.
    #[arg(long, default_value_t = 200)]
    pub request_ms: u64,
    /// The app's own idle timeout, where it has one; without it there is none, as the sidecar requires.
    #[arg(long)]
    pub own_idle_ms: Option<u64>,
    #[arg(long = "manner", value_enum)]
    pub manners: Vec<Manner>,
}

impl StandInOptions {
    pub fn has(&self, manner: Manner) -> bool {
        self.manners.contains(&manner)
    }

    pub const fn load_time(&self) -> Duration {
        Duration::from_millis(self.load_ms)
    }

    pub const fn unload_time(&self) -> Duration {
        Duration::from_millis(self.unload_ms)
    }

    pub const fn stop_time(&self) -> Duration {
        Duration::from_millis(self.stop_ms)
    }

    pub const fn token_time(&self) -> Duration {
        Duration::from_millis(self.token_ms)
    }

    pub const fn request_time(&self) -> Duration {
        Duration::from_millis(self.request_ms)
    }
}
