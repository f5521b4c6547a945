//! The speech engine of Hush: a published Whisper checkpoint becomes ONNX graphs ([`install`]), and samples become
//! text ([`engine`]). No HTTP and no processes here.
//!
//! ```text
//! checkpoint -> graph -> model_dir            (install: once, no ONNX Runtime needed)
//! PcmSource -> vad -> mel -> engine -> decoding -> timing -> transcribe -> Segment   (run: one owner of the sessions)
//! ```

mod abilities;
mod bounds;
pub mod checkpoint;
pub mod cuda;
pub mod decoding;
mod encoder_context;
pub mod engine;
mod fallback;
pub mod graph;
pub mod install;
pub mod kernels;
pub mod language;
pub mod mel;
pub mod model_dir;
mod onnx;
pub mod operators;
mod options;
mod parallel;
pub mod runtime;
pub mod segments;
mod small_file;
mod sound;
pub mod task;
pub mod timing;
pub mod tokenizer;
mod transcribe;
pub mod vad;

pub use abilities::Abilities;
pub use encoder_context::{EncoderContext, WindowCounts};
pub use engine::{Engine, EngineDevice, EngineOptions};
pub use graph::Precision;
pub use install::{InstallError, InstallOptions, InstallProgress, install};
pub use model_dir::{Manifest, ModelDir, ModelDirError};
pub use task::{
    FALLBACK_SECONDS, FALLBACK_TOKENS, FirstToken, LanguageProbability, PcmSource, Segment, SpeechTask,
    TranscribeOptions, Transcript, TranscriptSink, Word,
};
pub use transcribe::{MAX_CANDIDATES, TranscribeError};
pub use vad::VadOptions;

/// Samples per second of all audio that the engine processes.
pub const SAMPLE_RATE: u32 = 16_000;
