//! The runner of a Whisper model, as the life of a model needs it.

use std::io;

use hush_residency::{ModelRunner, Notify, RunnerFactory, RunnerSpec};

use crate::runner::wire::LoadSpec;
use crate::runner::{self, Runner, Runners};

impl RunnerSpec for LoadSpec {
    fn device(&self) -> &str {
        &self.device
    }

    fn with_memory_limit(self, bytes: Option<u64>) -> Self {
        Self { memory_limit_bytes: bytes, ..self }
    }
}

impl RunnerFactory for Runners {
    type Settings = runner::Settings;
    type Spec = LoadSpec;
    type Runner = Runner;

    fn new(settings: runner::Settings) -> io::Result<Self> {
        Self::new(settings)
    }

    fn start(&self, spec: LoadSpec, notify: Notify) -> Runner {
        Self::start(self, spec, notify)
    }

    async fn shutdown(&self) {
        Self::shutdown(self).await;
    }
}

impl ModelRunner for Runner {
    fn stop(&self) {
        Self::stop(self);
    }

    fn kill(&self) {
        Self::kill(self);
    }
}
