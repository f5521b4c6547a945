//! What becomes of the runner, passed to the machine and to the account of the device.

use tokio::time::Instant;

use super::ModelActor;
use crate::gpu::ModelAccount;
use crate::machine::{MachineEvent, RunnerLoss};
use crate::memory;
use crate::record_metrics::record_load;
use crate::runner::{LoadTimings, RunnerEvent, RunnerFactory};

impl<F: RunnerFactory> ModelActor<F> {
    pub(super) fn runner_changed(&mut self, generation: u64, event: RunnerEvent) {
        let is_current = generation == self.machine.generation();

        match event {
            RunnerEvent::Started { pids } => {
                if is_current {
                    self.pids = pids;
                    self.publish();
                    self.count_memory_of_adopted();
                }
            }
            RunnerEvent::Loaded(timings) => {
                if is_current {
                    self.note_load(generation, timings);
                }
                self.step(MachineEvent::Loaded { generation });
            }
            RunnerEvent::FullyLoaded(took) => {
                tracing::debug!(model = self.model, generation, load_seconds = took.as_secs_f64(), "fully loaded");
                self.step(MachineEvent::FullyLoaded { generation });
            }
            RunnerEvent::LoadFailed { cause, out_of_memory } => {
                tracing::warn!(model = self.model, generation, "load failed: {cause}");
                if out_of_memory && is_current {
                    self.with_account(ModelAccount::out_of_memory);
                }
                self.step(MachineEvent::LoadFailed { generation, cause, out_of_memory });
            }
            RunnerEvent::OutOfMemory(cause) => {
                tracing::warn!(model = self.model, generation, "out of memory: {cause}");
                if is_current {
                    self.with_account(ModelAccount::out_of_memory);
                }
                self.step(MachineEvent::OutOfMemory { generation });
            }
            RunnerEvent::Lost(loss) => self.runner_lost(generation, loss),
            RunnerEvent::StopRefused { cause } => {
                tracing::info!(model = self.model, generation, "not unloaded: {cause}");
                if is_current {
                    self.with_account(ModelAccount::cancel_unload);
                }
                self.step(MachineEvent::StopRefused { generation });
            }
            RunnerEvent::ProcessKept(outcome) => self.step(MachineEvent::ProcessKept { generation, outcome }),
            RunnerEvent::LeftByItself => {
                tracing::warn!(model = self.model, generation, "the model was unloaded from elsewhere");
                self.step(MachineEvent::LeftByItself { generation });
            }
            RunnerEvent::Exited => {
                if is_current {
                    self.forget_runner();
                }
                self.step(MachineEvent::Exited { generation });
            }
        }
    }

    fn note_load(&mut self, generation: u64, timings: LoadTimings) {
        self.loaded_since = Some(Instant::now());
        self.last_load = Some(timings.total);
        record_load(&self.metrics, &self.model, generation, timings);

        self.count_memory();
    }

    /// Measures what the load took: by the processes of the runner, or by what the device's use grew by.
    fn count_memory(&self) {
        let Some(account) = self.account.clone() else { return };

        let pids = self.pids.clone();
        tokio::spawn(async move { account.loaded(&pids).await });
    }

    /// A runner that is loaded already and names its processes only now, or other ones, is measured by these.
    fn count_memory_of_adopted(&self) {
        if self.machine.state().is_loaded() && !self.pids.is_empty() {
            self.count_memory();
        }
    }

    fn runner_lost(&mut self, generation: u64, loss: RunnerLoss) {
        if generation == self.machine.generation() {
            self.with_account(ModelAccount::begin_unload);
        }

        self.step(MachineEvent::RunnerLost { generation, loss });
    }

    /// The runner is reaped.
    fn forget_runner(&mut self) {
        self.runner = None;
        self.slot = None;
        self.pids.clear();
        self.loaded_since = None;
        self.with_account(ModelAccount::runner_exited);
        tokio::task::spawn_blocking(memory::give_back);

        // With an account the settings stay for now: the account still has to see the memory come back.
        if self.account.is_none() {
            self.adopt_settings();
        }
    }
}
