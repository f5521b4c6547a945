//! The engine of `hush-whisper` as the backend of a runner.

use std::env;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use hush_log::explain;
use hush_whisper::vad::VadError;
use hush_whisper::{
    Engine, EngineDevice, EngineOptions, LanguageProbability, ModelDir, PcmSource, TranscribeError, TranscribeOptions,
    Transcript, TranscriptSink, runtime, vad,
};

use super::child::{LoadedModel, RunnerBackend, WorkFailure};
use super::wire::LoadSpec;

/// `hush-whisper` on the ONNX Runtime that [`runtime::PATH_VARIABLE`] names, or that is in one of the usual folders.
pub struct EngineBackend;

impl RunnerBackend for EngineBackend {
    type Model = Engine;

    fn start() -> Result<(Self, String), String> {
        let library = runtime::find_library(None).map_err(|error| explain(&error))?;
        let info = runtime::init(&library).map_err(|error| explain(&error))?;

        Ok((Self, format!("ONNX Runtime {}", info.version)))
    }

    fn load(&mut self, spec: &LoadSpec) -> Result<Engine, String> {
        let available_threads = || available_parallelism().map_or(1, NonZeroUsize::get);
        let options = EngineOptions {
            device: parse_device(&spec.device)?,
            threads: spec.threads.unwrap_or_else(available_threads),
            prepack: spec.prepack,
            max_batch: spec.max_batch,
            memory_limit_bytes: spec.memory_limit_bytes,
            cuda_graphs: true,
        };

        let dir = ModelDir::open(&spec.model_dir).map_err(|error| explain(&error))?;
        let engine = Engine::load(&dir, &options).map_err(|error| explain(&error))?;
        if let Some(model) = env::var_os(vad::PATH_VARIABLE).filter(|path| !path.is_empty()) {
            engine.use_vad(model.into());
        }
        Ok(engine)
    }
}

impl LoadedModel for Engine {
    fn wait_until_loaded(&self) -> Result<(), String> {
        Self::wait_until_loaded(self).map_err(|error| explain(error))
    }

    fn transcribe(
        &self,
        audio: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, WorkFailure> {
        Self::transcribe(self, audio, options, sink).map_err(work_failure)
    }

    fn detect_language(&self, audio: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, WorkFailure> {
        Self::detect_language(self, audio).map_err(work_failure)
    }
}

fn parse_device(name: &str) -> Result<EngineDevice, String> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(EngineDevice::Cpu),
        None if name == "cuda" => Ok(EngineDevice::Cuda { index: 0 }),
        Some(("cuda", index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
            index.parse().map(|index| EngineDevice::Cuda { index }).map_err(|_| format!("unknown device `{name}`"))
        }
        _ => Err(format!("unknown device `{name}`; a device is `cpu`, `cuda` or `cuda:N`")),
    }
}

fn work_failure(error: TranscribeError) -> WorkFailure {
    match error {
        TranscribeError::Cancelled => WorkFailure::Cancelled,
        TranscribeError::UnknownLanguage { .. }
        | TranscribeError::InvalidOption { .. }
        | TranscribeError::EnglishOnly
        | TranscribeError::EnglishOnlyLanguage { .. }
        | TranscribeError::CannotTranslate
        | TranscribeError::Vad(VadError::NoModel) => WorkFailure::Invalid(error.to_string()),
        TranscribeError::Source(_)
        | TranscribeError::Tokenizer(_)
        | TranscribeError::Runtime(_)
        | TranscribeError::Vad(_) => WorkFailure::of_engine(explain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_exactly() {
        assert_eq!(parse_device("cpu"), Ok(EngineDevice::Cpu));
        assert_eq!(parse_device("cuda"), Ok(EngineDevice::Cuda { index: 0 }));
        assert_eq!(parse_device("cuda:3"), Ok(EngineDevice::Cuda { index: 3 }));

        for wrong in ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999"] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
