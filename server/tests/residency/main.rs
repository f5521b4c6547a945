//! Models in real child processes: loads, unloads, signals, crashes, hangs, crowds, races.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

#[path = "../audio_support/mod.rs"]
mod audio_support;
mod busy;
mod hostile_audio;
mod life;
mod loads;
mod losses;
#[path = "../scripted/mod.rs"]
mod scripted;
mod shutdown;
mod unloads;

use std::sync::Arc;
use std::time::Duration;

use hush_contract::{UnloadReason, UnloadRefusal};
use hush_server::job::{JobError, JobOutcome};
use hush_server::metrics::ServerMetrics;
use hush_server::residency::{
    LifecycleSettings, ResidencyRule, SpeechJobs, SpeechModelHandle, SpeechModelSettings, SpeechModels, UnloadCommand,
};
use hush_server::runner;

use scripted::{audio, settings, spec, sum, work};

#[test]
fn runner_child() {
    scripted::child_entry();
}

/// A variable in the environment of the runners of one test.
const MARK: &str = "HUSH_TEST_MARK";

struct ModelFixture {
    models: SpeechModels,
    metrics: Arc<ServerMetrics>,
}

impl ModelFixture {
    fn start(script: &str, lifecycle: LifecycleSettings, runners: runner::RunnerSettings) -> Self {
        let metrics = Arc::new(ServerMetrics::new().unwrap());
        let (name, spec) = ("tiny".to_owned(), spec(script));
        let model = SpeechModelSettings { name, spec, precision: None, lifecycle, account: None };
        let models = SpeechModels::start(vec![model], runners, None, &metrics.residency).unwrap();
        Self { models, metrics }
    }

    fn new(script: &str) -> Self {
        Self::start(
            script,
            LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() },
            settings(),
        )
    }

    fn model(&self) -> &SpeechModelHandle {
        self.models.default_model()
    }

    /// The value of one sample on `/metrics`.
    fn metric(&self, sample: &str) -> f64 {
        let text = String::from_utf8(self.metrics.encode().unwrap()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
    }

    /// Transcribes two seconds of audio and returns the process that did it.
    async fn ask(&self, script: &str) -> Result<u32, JobError> {
        ask(self.model(), script).await
    }

    async fn unload(&self) -> Result<(), UnloadRefusal> {
        self.model().unload(UnloadCommand::now(UnloadReason::Manual)).await.map(|_| ())
    }

    fn pid(&self) -> u32 {
        self.model().snapshot().runner_pid.unwrap()
    }
}

async fn ask(model: &SpeechModelHandle, script: &str) -> Result<u32, JobError> {
    let (outcome, segments) = model.gather(audio(2), work(script), None).await?;
    assert!(matches!(outcome, JobOutcome::Transcribed(transcript) if transcript.duration_seconds == 2.0));

    let (pid, heard) = segments[0].text.split_once(' ').unwrap();
    assert_eq!(heard.parse::<i64>().unwrap(), sum(&crate::scripted::samples(2)), "every sample, once");
    Ok(pid.parse().unwrap())
}

fn idle_after(millis: u64) -> LifecycleSettings {
    LifecycleSettings {
        residency: ResidencyRule::Idle(Some(Duration::from_millis(millis))),
        ..LifecycleSettings::default()
    }
}
