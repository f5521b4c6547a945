//! What the core remembers from step to step. Losing it lengthens a grace period and never shortens one.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::command_log::{CommandLog, CommandOutcome};
use crate::plan::Decision;
use crate::policy::PolicyKey;
use crate::pressure_timers::{PressureMemory, PressureTimers};
use crate::world::{GpuId, ModelKey};

/// The state that [`crate::step`] continues from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepMemory {
    pub(crate) timers: PressureTimers,
    /// For each policy in dry run, the timers as they would be if it were enforced.
    pub(crate) dry_run: BTreeMap<PolicyKey, PressureTimers>,
    pub(crate) commands: CommandLog,
    pub(crate) learners: Learners,
}

impl StepMemory {
    /// A memory that continues what another one wrote down.
    pub fn restore(now: Timestamp, pressure: &[PressureMemory], last_unload: &[(GpuId, Timestamp)]) -> Self {
        let mut memory = Self::default();
        for entry in pressure {
            memory.timers.restore(now, entry);
        }
        memory.commands.restore(last_unload);
        memory
    }

    /// Records a command that was given beside the plan, as if the plan had given it.
    pub fn commanded(&mut self, now: Timestamp, decision: &Decision) {
        self.commands.record(now, std::slice::from_ref(decision));
    }

    /// Records how the command for a model ended. Until then no decision names the model, and its GPU is left alone.
    pub fn settle(&mut self, key: &ModelKey, outcome: CommandOutcome) {
        self.commands.settle(key, outcome);
    }
}
