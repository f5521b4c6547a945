//! What a program plugs in: the thing that holds a model in memory and does its work.
//!
//! A runner is whatever can be started with a model, told to end, and seen to be gone: a child process of this program, or
//! another server that this program governs through its API. Its memory is not asked of it: [`crate::gpu`] measures the
//! processes that the runner names.

use std::future::Future;
use std::io;
use std::time::Duration;

use hush_contract::admin::ProcessOutcome;

use crate::machine::RunnerLoss;

/// Starts the runners of one kind of application. Cheap to clone; clones share what they hold.
pub trait RunnerFactory: Clone + Send + Sync + 'static {
    /// What all runners have in common.
    type Settings;
    /// Which model to load, and how.
    type Spec: RunnerSpec;
    type Runner: ModelRunner;

    /// Must be called inside a tokio runtime.
    fn new(settings: Self::Settings) -> io::Result<Self>;

    /// Starts a runner that loads `spec`, without waiting for it. Everything that becomes of the runner is reported to
    /// `on_event`, also that it could not be started.
    fn start(&self, spec: Self::Spec, on_event: OnRunnerEvent) -> Self::Runner;

    /// A runner for a model that is in memory already, although no runner loaded it. It reports its processes, where it
    /// knows them, and never [`RunnerEvent::Loaded`]. Only asked for after [`crate::ModelHandle::appeared`].
    fn adopt(&self, spec: Self::Spec, on_event: OnRunnerEvent) -> Self::Runner {
        self.start(spec, on_event)
    }

    /// Ends the process that has held models, where it outlives them, once no model is in it. Does not wait for that.
    fn end_unused_process(&self) {}

    /// Ends what the factory itself holds, such as a spare runner, and waits until it is gone.
    fn shutdown(&self) -> impl Future<Output = ()> + Send;
}

/// A model as a runner loads it.
pub trait RunnerSpec: Clone + Send + Sync + 'static {
    /// Where the model is loaded: `cpu`, `cuda:0`.
    fn device(&self) -> &str;

    /// The same, with at most this much device memory; `None`: without a limit.
    #[must_use]
    fn with_memory_limit(self, bytes: Option<u64>) -> Self;
}

/// A runner. Clones are handles to the same one; when the last is dropped, the runner is asked to exit.
pub trait ModelRunner: Clone + Send + Sync + 'static {
    /// Asks the runner to exit. A runner that takes too long must be killed by its factory. A runner that turns out to
    /// have work answers [`RunnerEvent::StopRefused`], and goes on as if it had not been asked.
    fn stop(&self);

    /// As [`Self::stop`]; a process that outlives its models ends too, unless others are in it. Where that is not possible,
    /// the runner reports [`RunnerEvent::ProcessKept`].
    fn stop_with_process(&self) {
        self.stop();
    }

    /// Ends the runner without waiting for its work.
    fn kill(&self);
}

/// Receives the events of one runner, in their order. It must not block.
pub type OnRunnerEvent = Box<dyn Fn(RunnerEvent) + Send + Sync>;

/// What becomes of a runner.
#[derive(Clone, Debug)]
pub enum RunnerEvent {
    /// The runner has these processes, its main process first. A runner that starts more of them later sends the event
    /// again, with all of them.
    Started { pids: Vec<u32> },
    /// The runner can work.
    Loaded(LoadTimings),
    /// All of the model is loaded, this long after the sessions were begun. [`Self::LoadFailed`] may come in its place.
    FullyLoaded(Duration),
    /// The model could not be loaded; may come even after [`Self::Loaded`]. `out_of_memory`: the device had too little.
    LoadFailed { cause: String, out_of_memory: bool },
    /// Work failed for lack of device memory. Sent before the job that failed learns of it.
    OutOfMemory(String),
    /// The runner is of no use any more. Sent before any of its jobs ends, so that the actor of the model is the first to
    /// know.
    Lost(RunnerLoss),
    /// The runner was asked to exit and has work that no request stands for. Nothing has changed.
    StopRefused { cause: String },
    /// The process that holds the model goes on after its unload. Without this event before [`Self::Exited`] it has ended.
    ProcessKept(ProcessOutcome),
    /// The model was unloaded from elsewhere. [`Self::Exited`] follows.
    LeftByItself,
    /// None of the runner's processes is left, or the runner holds the model no more. The last event.
    Exited,
}

/// The phases of a load. Those that were over before the load began, with a spare runner for example, are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadTimings {
    /// Until the process runs.
    pub spawn: Duration,
    /// Until the process has its libraries.
    pub libraries: Duration,
    /// Until the model is in memory and can work.
    pub sessions: Duration,
    /// From the command to load until the runner can work.
    pub total: Duration,
}
