//! What goes into the machine and what comes out.

use std::fmt;
use std::time::Duration;

use hush_contract::UnloadRefusal;
use hush_contract::admin::{ProcessOutcome, UnloadMethod};

use super::report::{MemoryAvailability, MetricEvent, ReclaimReport, RunnerLoss, UnloadReport};
use super::settings::{LifecycleSettings, LoadCommand, UnloadCommand};
use super::time::MachineTime;

/// One request for the model, from its arrival to its end. An id is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// One command that wants an answer. An id is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// A request wants the model. `again`: the request has lost its runner and has waited its turn already. `patience`:
    /// how long the request waits for a model that is not in memory; `None`: as long as it takes.
    Arrive {
        lease: LeaseId,
        again: bool,
        patience: Option<Duration>,
    },
    /// A request has ended, whether it was waiting or held the model.
    End {
        lease: LeaseId,
    },
    /// Have the model in memory, for no request in particular.
    Load {
        command: CommandId,
        load: LoadCommand,
    },
    Unload {
        command: CommandId,
        unload: UnloadCommand,
    },
    /// The runner can work.
    Loaded {
        generation: u64,
    },
    /// The whole model is loaded: no part of the load can fail any more.
    FullyLoaded {
        generation: u64,
    },
    /// May come even after [`MachineEvent::Loaded`], when a part of the load that was left to the first work fails.
    /// `out_of_memory`: the device had too little memory, whatever was measured before.
    LoadFailed {
        generation: u64,
        cause: String,
        out_of_memory: bool,
    },
    /// The answer to [`MachineEffect::Measure`]; also each new measurement while the model waits for memory.
    Memory {
        memory: MemoryAvailability,
    },
    /// The other answer to [`MachineEffect::Measure`]: the model is larger than the device.
    NeverFits {
        cause: String,
    },
    /// Work failed because the device had too little memory.
    OutOfMemory {
        generation: u64,
    },
    /// The answer to [`MachineEffect::Reclaim`]; `None`: nothing could be measured.
    Reclaimed {
        generation: u64,
        memory: Option<ReclaimReport>,
    },
    /// The runner is of no use any more. [`MachineEvent::Exited`] follows when it is reaped.
    RunnerLost {
        generation: u64,
        loss: RunnerLoss,
    },
    /// The runner refuses to end, because it has work that no request stands for. Nothing has changed.
    StopRefused {
        generation: u64,
    },
    /// The process that holds the model goes on after the unload that is under way. [`MachineEvent::Exited`] follows.
    ProcessKept {
        generation: u64,
        outcome: ProcessOutcome,
    },
    /// The model is in memory although nothing loaded it from here.
    Appeared,
    /// A request that is at work already, seen only now, if the model is in memory. It waits for nothing and loads
    /// nothing.
    Occupy {
        lease: LeaseId,
    },
    /// A request that uses nothing of the model, but must find it in memory: it is no activity, waits for nothing and loads
    /// nothing. The model is not unloaded before it has ended.
    Visit {
        lease: LeaseId,
    },
    /// The runner has unloaded the model by itself. [`MachineEvent::Exited`] follows when its memory may be back.
    LeftByItself {
        generation: u64,
    },
    /// The runner is reaped: none of its processes is left.
    Exited {
        generation: u64,
    },
    /// These settings apply from now on. They refuse no request that waits already.
    ChangeSettings {
        lifecycle: LifecycleSettings,
    },
    /// Serve the requests that have arrived, accept no new ones, then stop; at `deadline` stop without waiting further.
    Shutdown {
        deadline: MachineTime,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEffect {
    /// Measure whether the device has room: [`MachineEvent::Memory`] or [`MachineEvent::NeverFits`] must follow.
    Measure,
    /// The runner is reaped. Watch its memory come back, for a bounded time: [`MachineEvent::Reclaimed`] must follow.
    Reclaim {
        generation: u64,
    },
    /// Start a runner and load the model.
    StartRunner {
        generation: u64,
    },
    /// Take over the model that is in memory already.
    AdoptRunner {
        generation: u64,
    },
    /// Ask the runner to exit, and kill it if it does not. `method`: whether the process of its app ends too.
    StopRunner {
        generation: u64,
        method: UnloadMethod,
    },
    /// The model is not in memory: end the process that held it, unless other models are in it.
    EndUnusedProcess,
    KillRunner {
        generation: u64,
    },
    Grant {
        lease: LeaseId,
        generation: u64,
    },
    Refuse {
        lease: LeaseId,
        refusal: ModelRefusal,
    },
    /// The lease has ended with its runner; its request may arrive again under a new one.
    Lost {
        lease: LeaseId,
        why: LeaseLossCause,
    },
    /// The answer to a load: the generation that is in memory, or why there is none.
    ReplyLoad {
        command: CommandId,
        result: Result<u64, ModelRefusal>,
    },
    /// The verdict on an unload: it will happen, or nothing has changed.
    ReplyUnload {
        command: CommandId,
        result: Result<(), UnloadRefusal>,
    },
    /// An accepted unload was given up: nothing has changed.
    UnloadGivenUp {
        command: CommandId,
        refusal: UnloadRefusal,
    },
    /// An accepted unload is complete.
    Unloaded {
        command: CommandId,
        report: UnloadReport,
    },
    Count(MetricEvent),
    /// The answer to [`MachineEvent::Shutdown`]: no runner is left.
    Stopped,
}

/// Why a request lost the model that it held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseLossCause {
    Runner(RunnerLoss),
    /// An unload did not wait any longer for the request.
    Displaced,
}

/// Why a request or a load command does not get the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRefusal {
    QueueFull {
        limit: usize,
        retry_after: Duration,
    },
    LoadFailed {
        cause: String,
        retry_after: Duration,
    },
    /// The request waited as long as it was to wait for a model that is not in memory.
    ColdHold {
        waited: Duration,
        why: ColdReason,
        retry_after: Duration,
    },
    /// The model was loaded again since the command was decided.
    GenerationChanged,
    /// The model is not in memory, and the request was to find it there.
    NotLoaded,
    /// An unload forbade further loads for a while.
    Held {
        retry_after: Duration,
    },
    ShuttingDown,
}

/// Why a model that a request waits for is not in memory yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColdReason {
    Loading,
    /// The device has no room for the model.
    NoRoom(MemoryAvailability),
    /// The command that unloaded the model forbade further loads for a while.
    Held,
}

impl fmt::Display for ColdReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading => f.write_str("it is still loading"),
            Self::Held => f.write_str("it was unloaded to make room and stays away for a while"),
            Self::NoRoom(MemoryAvailability { available_bytes, demand_bytes }) => {
                let available = available_bytes.unwrap_or_default();
                write!(f, "its device has {available} bytes free and it needs {demand_bytes}")
            }
        }
    }
}
