//! Words out of a fixed set.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::{ValueError, expected};

/// Declares an enum with its words, its parser, its display and its JSON form.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl FromStr for $name {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => expected(format!("expected one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

words! {
    /// When a model stays in memory.
    ResidencyChoice {
        /// It is loaded at start and stays.
        Resident = "resident",
        /// The first request loads it; it is unloaded after the idle timeout.
        Idle = "idle",
        /// It is unloaded as soon as no request is queued.
        OnDemand = "on-demand",
    }
}

words! {
    /// How the numbers of a model are stored.
    PrecisionWord {
        Fp32 = "fp32",
        Fp16 = "fp16",
        Int8 = "int8",
    }
}

words! {
    /// How much of a window the encoder hears.
    EncoderContextWord {
        /// Windows that are mostly silence without most of it, where that costs no accuracy.
        Auto = "auto",
        Full = "full",
    }
}

words! {
    /// The engine of whisper-asr-webservice whose JSON `/asr` imitates.
    AsrEngine {
        OpenaiWhisper = "openai_whisper",
        FasterWhisper = "faster_whisper",
    }
}

words! {
    /// The form of log lines.
    LogFormat {
        Text = "text",
        Json = "json",
    }
}

words! {
    /// The format of a transcript.
    OutputFormat {
        Txt = "txt",
        Vtt = "vtt",
        Srt = "srt",
        Tsv = "tsv",
        Json = "json",
    }
}

words! {
    TaskWord {
        Transcribe = "transcribe",
        Translate = "translate",
    }
}

impl From<PrecisionWord> for hush_whisper::Precision {
    fn from(precision: PrecisionWord) -> Self {
        match precision {
            PrecisionWord::Fp32 => Self::Fp32,
            PrecisionWord::Fp16 => Self::Fp16,
            PrecisionWord::Int8 => Self::Int8,
        }
    }
}

impl From<TaskWord> for hush_whisper::SpeechTask {
    fn from(task: TaskWord) -> Self {
        match task {
            TaskWord::Transcribe => Self::Transcribe,
            TaskWord::Translate => Self::Translate,
        }
    }
}

/// `auto`, or one precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// `int8` on a CPU, `fp16` on CUDA, else what is installed.
    #[default]
    Auto,
    Exactly(PrecisionWord),
}

impl FromStr for PrecisionChoice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(precision) => Ok(Self::Exactly(precision)),
            Err(_) => expected("expected one of auto, fp32, fp16, int8"),
        }
    }
}

impl Serialize for PrecisionChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(precision) => precision.serialize(serializer),
        }
    }
}
