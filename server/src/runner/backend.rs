//! The engine as a runner's backend.

use std::env;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use hush_log::explain;
use hush_whisper::vad::VadError;
use hush_whisper::{
    Device, Engine, EngineOptions, LanguageProbability, ModelDir, PcmSource, Sink, TranscribeError, TranscribeOptions,
    Transcript, runtime, vad,
};

use super::child::{Backend, Model, WorkFailure};
use super::wire::LoadSpec;

/// `hush-whisper` on the ONNX Runtime that [`runtime::PATH_VARIABLE`] names, or that lies in one of the usual places.
pub struct EngineBackend;

impl Backend for EngineBackend {
    type Model = Engine;

    fn start() -> Result<(Self, String), String> {
        let library = runtime::find_library(None).map_err(|error| explain(&error))?;
        let info = runtime::init(&library).map_err(|error| explain(&error))?;
        Ok((Self, format!("ONNX Runtime {}", info.version)))
    }

    fn load(&mut self, spec: &LoadSpec) -> Result<Engine, String> {
        let device = device(&spec.device)?;
        let threads = spec.threads.unwrap_or_else(|| available_parallelism().map_or(1, NonZeroUsize::get));
        let (prepack, memory_limit_bytes, max_batch) = (spec.prepack, spec.memory_limit_bytes, spec.max_batch);
        let options = EngineOptions { device, threads, prepack, max_batch, memory_limit_bytes, cuda_graphs: true };
        let model = ModelDir::open(&spec.model_dir).map_err(|error| explain(&error))?;
        let engine = Engine::load(&model, &options).map_err(|error| explain(&error))?;
        if let Some(model) = env::var_os(vad::PATH_VARIABLE).filter(|path| !path.is_empty()) {
            engine.use_vad(model.into());
        }
        Ok(engine)
    }
}

impl Model for Engine {
    fn settle(&self) -> Result<(), String> {
        Self::settle(self).map_err(|error| explain(error))
    }

    fn transcribe(
        &self,
        audio: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn Sink,
    ) -> Result<Transcript, WorkFailure> {
        Self::transcribe(self, audio, options, sink).map_err(failure)
    }

    fn detect_language(&self, audio: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, WorkFailure> {
        Self::detect_language(self, audio).map_err(failure)
    }
}

fn device(name: &str) -> Result<Device, String> {
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        None if name == "cuda" => Ok(Device::Cuda { index: 0 }),
        Some(("cuda", index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => {
            index.parse().map(|index| Device::Cuda { index }).map_err(|_| format!("unknown device `{name}`"))
        }
        _ => Err(format!("unknown device `{name}`; a device is `cpu`, `cuda` or `cuda:N`")),
    }
}

fn failure(error: TranscribeError) -> WorkFailure {
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
        assert_eq!(device("cpu"), Ok(Device::Cpu));
        assert_eq!(device("cuda"), Ok(Device::Cuda { index: 0 }));
        assert_eq!(device("cuda:3"), Ok(Device::Cuda { index: 3 }));
        for wrong in ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "cuda:99999999999"] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
    }
}
