//! A runner that is no process and knows no model: the life of a model needs nothing but the traits.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hush_contract::admin::UnloadOutcome;
use hush_contract::{ModelState, UnloadReason};
use hush_residency::{
    AcquireError, AttemptError, LifecycleSettings, LoadTimings, LossCause, ModelJob, ModelLease, ModelRunner,
    ModelSettings, Models, OnRunnerEvent, ResidencyMetrics, RunnerEvent, RunnerFactory, RunnerLoss, RunnerSpec,
    UnloadCommand,
};
use prometheus::Registry;

#[derive(Clone)]
struct EchoSpec {
    can_load: bool,
}

impl RunnerSpec for EchoSpec {
    fn device(&self) -> &str {
        "cpu"
    }

    fn with_memory_limit(self, bytes: Option<u64>) -> Self {
        assert_eq!(bytes, None, "no device is measured");
        self
    }
}

/// Counts the runners that live.
#[derive(Clone, Default)]
struct EchoRunners {
    living: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct EchoRunner {
    on_event: Arc<OnRunnerEvent>,
    has_ended: Arc<AtomicBool>,
    living: Arc<AtomicUsize>,
}

impl RunnerFactory for EchoRunners {
    type Settings = Self;
    type Spec = EchoSpec;
    type Runner = EchoRunner;

    fn new(settings: Self) -> io::Result<Self> {
        Ok(settings)
    }

    fn start(&self, spec: EchoSpec, on_event: OnRunnerEvent) -> EchoRunner {
        self.living.fetch_add(1, Ordering::Relaxed);
        let on_event = Arc::new(on_event);

        on_event(RunnerEvent::Started { pids: Vec::new() });
        on_event(match spec.can_load {
            true => RunnerEvent::Loaded(LoadTimings::default()),
            false => RunnerEvent::LoadFailed { cause: "no such model".to_owned(), out_of_memory: false },
        });

        EchoRunner { on_event, has_ended: Arc::default(), living: Arc::clone(&self.living) }
    }

    async fn shutdown(&self) {}
}

impl EchoRunner {
    fn end(&self, loss: Option<RunnerLoss>) {
        if self.has_ended.swap(true, Ordering::Relaxed) {
            return;
        }

        self.living.fetch_sub(1, Ordering::Relaxed);
        if let Some(loss) = loss {
            (self.on_event)(RunnerEvent::Lost(loss));
        }
        (self.on_event)(RunnerEvent::Exited);
    }
}

impl ModelRunner for EchoRunner {
    fn stop(&self) {
        self.end(None);
    }

    fn kill(&self) {
        self.end(None);
    }
}

/// Returns its text, after it has ended so many runners.
struct EchoJob {
    text: &'static str,
    deadly_attempts: usize,
    attempts: usize,
}

#[derive(Debug, PartialEq)]
enum EchoError {
    Refused(AcquireError),
    RunnerLost(String),
}

impl EchoJob {
    const fn new(text: &'static str, deadly_attempts: usize) -> Self {
        Self { text, deadly_attempts, attempts: 0 }
    }
}

impl ModelJob<EchoRunners> for EchoJob {
    type Output = &'static str;
    type Error = EchoError;

    async fn wait_for_lease(
        &mut self,
        lease: impl Future<Output = Result<ModelLease<EchoRunners>, AcquireError>> + Send,
    ) -> Result<ModelLease<EchoRunners>, EchoError> {
        lease.await.map_err(EchoError::Refused)
    }

    async fn attempt(&mut self, runner: &EchoRunner) -> Result<&'static str, AttemptError<EchoError>> {
        self.attempts += 1;
        if self.attempts > self.deadly_attempts {
            return Ok(self.text);
        }

        let loss = RunnerLoss { cause: LossCause::Exited, detail: "it ended".to_owned() };
        runner.end(Some(loss.clone()));
        Err(AttemptError::RunnerLost(loss))
    }

    fn restart(&mut self) -> bool {
        true
    }

    fn runner_lost(&self, cause: String) -> EchoError {
        EchoError::RunnerLost(cause)
    }
}

fn model(name: &str, can_load: bool) -> ModelSettings<EchoSpec> {
    ModelSettings {
        name: name.to_owned(),
        spec: EchoSpec { can_load },
        precision: None,
        lifecycle: LifecycleSettings::default(),
        account: None,
    }
}

fn start(models: Vec<ModelSettings<EchoSpec>>, max_loaded: Option<usize>) -> (Models<EchoRunners>, Arc<AtomicUsize>) {
    let runners = EchoRunners::default();
    let living = Arc::clone(&runners.living);
    let max_loaded = max_loaded.and_then(NonZeroUsize::new);
    let metrics = ResidencyMetrics::new(&Registry::new()).unwrap();

    (Models::start_limited(models, max_loaded, runners, None, &metrics).unwrap(), living)
}

#[tokio::test]
async fn a_job_loads_the_model_and_an_unload_ends_its_runner() {
    let (models, living) = start(vec![model("a", true)], None);
    let a = models.default_model();

    assert_eq!(a.perform(&mut EchoJob::new("hello", 0), None).await, Ok("hello"));
    let loaded = a.snapshot();
    assert_eq!((loaded.state, loaded.generation, loaded.runner_pid), (ModelState::Ready, 1, None));
    assert_eq!(living.load(Ordering::Relaxed), 1);

    let report = a.unload(UnloadCommand::now(UnloadReason::Manual)).await.unwrap();
    assert_eq!((report.outcome, report.generation), (UnloadOutcome::Unloaded, 1));
    assert_eq!((a.snapshot().state, living.load(Ordering::Relaxed)), (ModelState::Unloaded, 0));
}

#[tokio::test]
async fn a_job_survives_the_loss_of_one_runner_and_not_of_two() {
    let (models, _) = start(vec![model("a", true)], None);
    let a = models.default_model();

    assert_eq!(a.perform(&mut EchoJob::new("again", 1), None).await, Ok("again"));
    assert_eq!(a.snapshot().generation, 2);

    let mut deadly = EchoJob::new("never", 9);
    let lost = a.perform(&mut deadly, None).await;
    assert_eq!((lost, deadly.attempts), (Err(EchoError::RunnerLost("it ended".to_owned())), 2));
}

#[tokio::test]
async fn a_load_that_fails_refuses_the_job_with_its_cause() {
    let (models, living) = start(vec![model("a", false)], None);

    let refused = models.default_model().perform(&mut EchoJob::new("never", 0), None).await;

    let cause = "no such model".to_owned();
    assert_eq!(refused, Err(EchoError::Refused(AcquireError::LoadFailed { cause, retry_after_seconds: 1 })));
    models.shutdown(std::time::Duration::from_secs(5)).await;
    assert_eq!(living.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_idle_model_gives_its_slot_to_another() {
    let (models, living) = start(vec![model("a", true), model("b", true)], Some(1));
    let (a, b) = (models.get("a").unwrap(), models.get("b").unwrap());

    for _ in 0..3 {
        assert_eq!(a.perform(&mut EchoJob::new("a", 0), None).await, Ok("a"));
        assert_eq!(b.perform(&mut EchoJob::new("b", 0), None).await, Ok("b"));
        assert_eq!((a.snapshot().state, b.snapshot().state), (ModelState::Unloaded, ModelState::Ready));
        assert_eq!(living.load(Ordering::Relaxed), 1);
    }
}
