//! Loads and unloads of an app that has its model in memory from its start on, does not tell whether it has, and ends when it
//! is asked twice. What to send follows from the record of the current run, and each request goes over a connection of its
//! own, which is seen to lead to that run before anything is sent.

use tokio::time::Instant;

use super::RunnersShared;
use super::app_calls::{ActionError, LoadedInApp, step_result};
use super::app_runs::RunIdentity;
use super::presence_record::{PresenceRecord, RecordError, RecordedPresence};
use crate::app::{ActionStepOutcome, App, AppAction, AppAnswer};
use crate::upstream::{Upstream, UpstreamError};

/// How the steps of an action ended.
enum StepsEnd {
    Done,
    /// Nothing has changed: the app has refused the first step, or none was sent.
    Unchanged(ActionError),
    /// Some of it may have happened.
    Unclear(ActionError),
}

/// Asks an app that is taken to have its model in memory whether it looks so. What it says holds for the run that is
/// there: another one begins with its model in memory.
pub(super) async fn check_assumption(
    app: &App,
    upstream: &Upstream,
    record: &PresenceRecord,
) -> Result<(), UpstreamError> {
    let Some(request) = app.ask_unknown().filter(|_| app.starts_loaded() && record.is_assumed()) else { return Ok(()) };

    let answer = upstream.call(&request).await?;
    record.settle_assumption(!app.is_unknown(&answer));
    Ok(())
}

impl RunnersShared {
    /// Loads the model, if the app does not have it.
    pub(super) async fn load_recorded(&self, model: &str) -> Result<LoadedInApp, ActionError> {
        let app = &self.settings.app;
        check_assumption(app, &self.settings.upstream, &self.settings.record).await?;
        let (run, presence) = self.settings.record.current().ok_or(ActionError::Restarted)?;
        let was_there = presence == RecordedPresence::Loaded;
        let loaded = LoadedInApp { run: run.number, instance: None, was_there };

        let Some(action) = app.load(model).filter(|_| !was_there) else {
            return if self.settings.runs.is_still(&run).await { Ok(loaded) } else { Err(ActionError::Restarted) };
        };
        refuse_unless_settled(&presence)?;
        let read = |step, answer: &AppAnswer| app.read_load_step(model, step, answer);
        self.change_recorded(&run, &action, true, read).await.map(|()| loaded)
    }

    /// Unloads the model, if the app has it.
    pub(super) async fn unload_recorded(&self, model: &str) -> Result<(), ActionError> {
        let app = &self.settings.app;
        let (run, presence) = self.settings.record.current().ok_or(ActionError::Restarted)?;
        if presence == RecordedPresence::Away {
            return Ok(());
        }
        refuse_unless_settled(&presence)?;

        let Some(action) = app.unload(model) else {
            let cause = "the app has no route that unloads a model: start it through the sidecar".to_owned();
            return Err(ActionError::Failed { cause, out_of_memory: false });
        };
        let deadline = Instant::now() + self.settings.timeouts.unload;
        let read = |step, answer: &AppAnswer| app.read_unload_step(model, step, answer);
        self.change_recorded(&run, &action, false, read).await?;
        self.confirm_unload(model, deadline).await
    }

    /// Performs an action in this run, and records what becomes of the model.
    async fn change_recorded(
        &self,
        run: &RunIdentity,
        action: &AppAction,
        loads: bool,
        read: impl Fn(usize, &AppAnswer) -> ActionStepOutcome,
    ) -> Result<(), ActionError> {
        let change = self.settings.record.begin_change(run).await.map_err(|error| match error {
            RecordError::OtherRun => ActionError::Restarted,
            other => ActionError::Record(other),
        })?;

        let end = self.send_steps(run, action, read).await;
        self.send_always(action).await;
        match end {
            StepsEnd::Done => {
                change.finish(loads).await;
                Ok(())
            }
            StepsEnd::Unchanged(error) => {
                change.finish(!loads).await;
                Err(error)
            }
            // The drop of the change leaves the model unknown.
            StepsEnd::Unclear(error) => Err(error),
        }
    }

    async fn send_steps(
        &self,
        run: &RunIdentity,
        action: &AppAction,
        read: impl Fn(usize, &AppAnswer) -> ActionStepOutcome,
    ) -> StepsEnd {
        for (index, step) in action.steps.iter().enumerate() {
            let is_first = index == 0;
            let sent = self.settings.upstream.call_if(step, || self.settings.runs.is_still(run)).await;

            let (error, is_unchanged) = match sent {
                Ok(Some(answer)) => match step_result(read(index, &answer)) {
                    Ok(()) => continue,
                    Err(error) => (error, is_first && answer.status.is_client_error()),
                },
                Ok(None) => (ActionError::Restarted, is_first),
                Err(error) => {
                    let is_unsent = error.is_unsent();
                    (error.into(), is_first && is_unsent)
                }
            };
            return if is_unchanged { StepsEnd::Unchanged(error) } else { StepsEnd::Unclear(error) };
        }

        StepsEnd::Done
    }
}

/// Nothing is sent to an app of which nothing is known.
fn refuse_unless_settled(presence: &RecordedPresence) -> Result<(), ActionError> {
    match presence {
        RecordedPresence::Loaded | RecordedPresence::Away => Ok(()),
        RecordedPresence::Changing => Err(ActionError::Record(RecordError::Changing)),
        RecordedPresence::Unknown { cause } => Err(ActionError::Failed { cause: cause.clone(), out_of_memory: false }),
    }
}
