//! The runner of a Whisper model, as the life of a model needs it.

use std::io;

use hush_residency::{ModelRunner, OnRunnerEvent, RunnerFactory, RunnerSpec};

use crate::runner::wire::LoadSpec;
use crate::runner::{self, RunnerHandle, Runners};

impl RunnerSpec for LoadSpec {
    fn device(&self) -> &str {
        &self.device
    }

    fn with_memory_limit(self, bytes: Option<u64>) -> Self {
        Self { memory_limit_bytes: bytes, ..self }
    }
}

impl RunnerFactory for Runners {
    type Settings = runner::RunnerSettings;
    type Spec = LoadSpec;
    type Runner = RunnerHandle;

    fn new(settings: runner::RunnerSettings) -> io::Result<Self> {
        Self::new(settings)
    }

    fn start(&self, spec: LoadSpec, on_event: OnRunnerEvent) -> RunnerHandle {
        Self::start(self, spec, on_event)
    }

    async fn shutdown(&self) {
        Self::shutdown(self).await;
    }
}

impl ModelRunner for RunnerHandle {
    fn stop(&self) {
        Self::stop(self);
    }

    fn kill(&self) {
        Self::kill(self);
    }
}
