//! Whether the model is in memory, for an app that has it from its start on and does not tell: SGLang ends when it is asked
//! to resume what it has not released, or to release it twice. What was sent in one run of the app is no truth about
//! another run, and a sidecar that was started anew reads what the one before it has written.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::app_runs::{AppRuns, RunIdentity};
use super::state_file::StateFile;

/// What is known of the model in the current run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedPresence {
    Loaded,
    Away,
    /// A request that changes it is on its way.
    Changing,
    Unknown {
        cause: String,
    },
}

/// What the file says. A change is written before it is sent, so that no file says less than the app has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredPresence {
    /// The start of the machine: sockets are numbered anew with each.
    boot: String,
    listeners: Vec<u64>,
    model: StoredModelState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StoredModelState {
    Loaded,
    Away,
    Changing,
}

/// Why nothing can be recorded, or was.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("what is about to change cannot be written down")]
    Write(#[source] io::Error),
    #[error("the app was started anew")]
    OtherRun,
    #[error("a change of the model is on its way already")]
    Changing,
}

/// The record of one app. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct PresenceRecord {
    inner: Arc<PresenceRecordInner>,
}

struct PresenceRecordInner {
    runs: AppRuns,
    boot: String,
    /// `None`: no folder was found for it.
    file: Option<StateFile>,
    state: Mutex<RecordState>,
}

struct RecordState {
    /// Until the first run is known.
    stored: Result<Option<StoredPresence>, String>,
    run: Option<RunIdentity>,
    presence: RecordedPresence,
    /// That the model is there was neither recorded nor seen.
    is_assumed: bool,
}

impl PresenceRecord {
    /// `Err` of `stored`: why the record of an earlier sidecar is not known.
    pub fn new(
        runs: AppRuns,
        boot: String,
        file: Option<StateFile>,
        stored: Result<Option<StoredPresence>, String>,
    ) -> Self {
        let state = RecordState { stored, run: None, presence: RecordedPresence::Changing, is_assumed: false };

        Self { inner: Arc::new(PresenceRecordInner { runs, boot, file, state: Mutex::new(state) }) }
    }

    /// The current run, and what is known of it; `None`: the app is away.
    pub fn current(&self) -> Option<(RunIdentity, RecordedPresence)> {
        let mut state = self.lock();

        let run = self.follow_run(&mut state)?;
        Some((run, state.presence.clone()))
    }

    /// Why the app must be left alone; `None`: it must not.
    pub fn doubt(&self) -> Option<String> {
        match self.current()? {
            (_, RecordedPresence::Unknown { cause }) => Some(cause),
            _ => None,
        }
    }

    /// Whether the model is taken to be in memory only because nothing speaks against it.
    pub fn is_assumed(&self) -> bool {
        let mut state = self.lock();

        self.follow_run(&mut state).is_some() && state.is_assumed
    }

    /// Whether the app agrees with what was assumed.
    pub fn settle_assumption(&self, is_true: bool) {
        let mut state = self.lock();
        if !std::mem::take(&mut state.is_assumed) || is_true || state.presence != RecordedPresence::Loaded {
            return;
        }

        let cause = restart_it("it does not look as after its start, and no record of an earlier sidecar was found");
        state.presence = RecordedPresence::Unknown { cause };
    }

    /// Calls `act` if the model is in memory, and lets nothing change that meanwhile. It must not block.
    pub fn if_loaded(&self, act: impl FnOnce(&RunIdentity)) {
        let mut state = self.lock();

        if let Some(run) = self.follow_run(&mut state)
            && state.presence == RecordedPresence::Loaded
        {
            act(&run);
        }
    }

    /// Writes down that a request which changes the model is about to be sent.
    ///
    /// # Errors
    /// If it cannot be written: then nothing may be sent.
    pub async fn begin_change(&self, run: &RunIdentity) -> Result<PresenceChangeGuard, RecordError> {
        {
            let mut state = self.lock();
            match self.follow_run(&mut state) {
                Some(current) if current.is_same(run) => {}
                _ => return Err(RecordError::OtherRun),
            }
            if state.presence == RecordedPresence::Changing {
                return Err(RecordError::Changing);
            }
            state.presence = RecordedPresence::Changing;
        }

        let guard = PresenceChangeGuard { record: self.clone(), run: run.clone(), is_over: false };
        if let Err(error) = self.write(run, StoredModelState::Changing).await {
            return Err(RecordError::Write(error));
        }
        Ok(guard)
    }

    async fn write(&self, run: &RunIdentity, model: StoredModelState) -> io::Result<()> {
        let Some(file) = self.inner.file.clone() else { return Ok(()) };
        let stored = StoredPresence { boot: self.inner.boot.clone(), listeners: run.listeners.clone(), model };

        let written = tokio::task::spawn_blocking(move || file.write(&stored)).await;
        written.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn set(&self, run: &RunIdentity, presence: RecordedPresence) {
        let mut state = self.lock();

        if state.run.as_ref().is_some_and(|known| known.is_same(run)) {
            state.presence = presence;
        }
    }

    /// Brings the record to the current run.
    fn follow_run(&self, state: &mut RecordState) -> Option<RunIdentity> {
        let run = self.inner.runs.identity()?;
        let is_first = state.run.is_none();
        if state.run.as_ref().is_some_and(|known| known.is_same(&run)) {
            return Some(run);
        }

        let before = state.run.replace(run.clone());
        state.presence = if is_first {
            let stored = std::mem::replace(&mut state.stored, Ok(None));
            state.is_assumed = !run.was_seen_starting && stored == Ok(None);
            presence_at_start(&run, &self.inner.boot, stored, self.inner.file.is_some())
        } else {
            state.is_assumed = false;
            let may_be_same = before.is_some_and(|before| before.number == run.number);
            presence_after(&state.presence, may_be_same)
        };
        Some(run)
    }

    fn lock(&self) -> MutexGuard<'_, RecordState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change that is on its way. Its drop without [`Self::finish`] leaves the model unknown.
pub struct PresenceChangeGuard {
    record: PresenceRecord,
    run: RunIdentity,
    is_over: bool,
}

impl PresenceChangeGuard {
    /// The app has said what became of the model.
    pub async fn finish(mut self, is_loaded: bool) {
        self.is_over = true;
        let (stored, presence) = if is_loaded {
            (StoredModelState::Loaded, RecordedPresence::Loaded)
        } else {
            (StoredModelState::Away, RecordedPresence::Away)
        };

        // The file still says that a change was on its way, which is less than is known.
        if let Err(error) = self.record.write(&self.run, stored).await {
            tracing::warn!(error = hush_log::explain(&error), "what became of the model cannot be written down");
        }
        self.record.set(&self.run, presence);
    }
}

impl Drop for PresenceChangeGuard {
    fn drop(&mut self) {
        if !self.is_over {
            let cause =
                restart_it("it has not said what became of its model when it was asked to load or to unload it");
            self.record.set(&self.run, RecordedPresence::Unknown { cause });
        }
    }
}

/// What is known of the first run that a sidecar sees. `has_file`: an earlier sidecar could have left a record.
fn presence_at_start(
    run: &RunIdentity,
    boot: &str,
    stored: Result<Option<StoredPresence>, String>,
    has_file: bool,
) -> RecordedPresence {
    if run.was_seen_starting {
        return RecordedPresence::Loaded;
    }

    let stored = match stored {
        Err(cause) => return RecordedPresence::Unknown { cause: restart_it(&cause) },
        Ok(None) if !has_file => {
            let cause = "it ran before this sidecar, which has no folder for its records (--state-dir)";
            return RecordedPresence::Unknown { cause: restart_it(cause) };
        }
        // No sidecar has sent anything to this app.
        Ok(None) => return RecordedPresence::Loaded,
        Ok(Some(stored)) => stored,
    };

    let can_compare = !stored.listeners.is_empty() && !run.listeners.is_empty();
    let is_other =
        stored.boot != boot || can_compare && !stored.listeners.iter().any(|socket| run.listeners.contains(socket));
    match stored.model {
        // Each run begins with its model in memory.
        _ if is_other => RecordedPresence::Loaded,
        StoredModelState::Loaded => RecordedPresence::Loaded,
        StoredModelState::Away if can_compare => RecordedPresence::Away,
        StoredModelState::Away => RecordedPresence::Unknown {
            cause: restart_it("an earlier sidecar has unloaded its model, and it may have been started anew since"),
        },
        StoredModelState::Changing => RecordedPresence::Unknown {
            cause: restart_it("an earlier sidecar ended while it loaded or unloaded the model"),
        },
    }
}

/// What is known after the sidecar has lost sight of the run for a moment. `may_be_same`: nothing says that another
/// process listens.
fn presence_after(before: &RecordedPresence, may_be_same: bool) -> RecordedPresence {
    if !may_be_same || *before == RecordedPresence::Loaded {
        return RecordedPresence::Loaded;
    }

    RecordedPresence::Unknown { cause: restart_it("its model was unloaded, and it may have been started anew since") }
}

fn restart_it(cause: &str) -> String {
    format!("whether its model is in memory is not known: {cause}. Start it anew; it is left alone until then")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(listeners: &[u64], was_seen_starting: bool) -> RunIdentity {
        let mut run = RunIdentity::default();
        run.listeners = listeners.to_vec();
        run.was_seen_starting = was_seen_starting;
        run
    }

    fn stored(listeners: &[u64], model: StoredModelState) -> Result<Option<StoredPresence>, String> {
        Ok(Some(StoredPresence { boot: "b".to_owned(), listeners: listeners.to_vec(), model }))
    }

    fn at_start(run: &RunIdentity, stored: Result<Option<StoredPresence>, String>) -> RecordedPresence {
        presence_at_start(run, "b", stored, true)
    }

    #[test]
    fn a_run_that_the_sidecar_has_seen_starting_has_its_model() {
        for record in
            [stored(&[7], StoredModelState::Away), stored(&[], StoredModelState::Changing), Err("?".to_owned())]
        {
            assert_eq!(at_start(&run(&[7], true), record), RecordedPresence::Loaded);
        }
    }

    #[test]
    fn a_record_counts_for_its_own_run_alone() {
        let here = run(&[7, 8], false);

        assert_eq!(at_start(&here, stored(&[8], StoredModelState::Away)), RecordedPresence::Away);
        assert_eq!(at_start(&here, stored(&[9], StoredModelState::Away)), RecordedPresence::Loaded);
        assert_eq!(at_start(&here, stored(&[9], StoredModelState::Changing)), RecordedPresence::Loaded);
        assert_eq!(
            presence_at_start(&here, "later", stored(&[8], StoredModelState::Away), true),
            RecordedPresence::Loaded
        );
    }

    #[test]
    fn nothing_is_assumed_where_nothing_is_known() {
        let doubtful = [
            at_start(&run(&[7], false), stored(&[7], StoredModelState::Changing)),
            at_start(&run(&[], false), stored(&[7], StoredModelState::Away)),
            at_start(&run(&[7], false), stored(&[], StoredModelState::Away)),
            at_start(&run(&[7], false), Err("the file is broken".to_owned())),
            presence_at_start(&run(&[7], false), "b", Ok(None), false),
        ];

        for presence in doubtful {
            assert!(matches!(&presence, RecordedPresence::Unknown { cause } if cause.contains("Start it anew")));
        }
    }

    #[test]
    fn an_app_that_no_sidecar_has_touched_has_its_model() {
        assert_eq!(at_start(&run(&[7], false), Ok(None)), RecordedPresence::Loaded);
        assert_eq!(at_start(&run(&[], false), stored(&[7], StoredModelState::Loaded)), RecordedPresence::Loaded);
    }

    #[test]
    fn a_moment_out_of_sight_makes_only_an_unloaded_model_doubtful() {
        assert_eq!(presence_after(&RecordedPresence::Loaded, true), RecordedPresence::Loaded);
        assert_eq!(presence_after(&RecordedPresence::Away, false), RecordedPresence::Loaded);
        assert!(matches!(presence_after(&RecordedPresence::Away, true), RecordedPresence::Unknown { .. }));
    }
}
