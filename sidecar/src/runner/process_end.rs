//! The end of the app's process when its last model leaves, and its start for the next load. What is to end is
//! [`AppUsers`]'s to say; the turn of loads is held meanwhile, so that no model enters a process that is about to end.

use std::sync::{MutexGuard, PoisonError};

use hush_contract::admin::{ProcessOutcome, UnloadMethod};
use tokio::time::{Duration, timeout};

use super::RunnersShared;
use super::app_calls::{ActionError, LoadedInApp, list_models};
use super::app_users::{AppUsers, StopPlan};
use crate::app::ModelPresence;
use crate::process::AppControl;
use crate::status::AppStatus;

/// How long a load waits until the watch has seen that an app which has just become ready answers.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a load has brought into memory.
pub(super) struct LoadedContent {
    pub(super) loaded: LoadedInApp,
    /// The app was started for it.
    pub(super) was_started: bool,
}

impl RunnersShared {
    pub(super) fn users(&self) -> MutexGuard<'_, AppUsers> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the app if it was ended with its last model, and waits until it can load. The caller holds the turn. Returns
    /// whether the app was started.
    async fn start_process(&self, model: &str) -> Result<bool, ActionError> {
        let Some(control) = &self.settings.control else { return Ok(false) };

        let started = control.start().await.map_err(|cause| {
            // A process that is of no use for the load must not stay behind.
            self.users().wish_end(model);
            ActionError::Failed { cause: format!("the app could not be started: {cause}"), out_of_memory: false }
        })?;
        if !started {
            return Ok(false);
        }

        let (mut status, mut run) = (self.settings.status.clone(), self.settings.runs.follow());
        let answers = async {
            let _ = run.wait_for(|run| run.is_up).await;
            let _ =
                status.wait_for(|status| !matches!(status, AppStatus::Stopped | AppStatus::Unreachable { .. })).await;
        };
        // The load itself shows what an app that is late can do.
        let _ = timeout(IDENTIFY_TIMEOUT, answers).await;
        Ok(true)
    }

    /// Has the model in memory, and the app before it. The caller holds the turn.
    pub(super) async fn bring_in(&self, model: &str) -> Result<LoadedContent, ActionError> {
        let was_started = self.start_process(model).await?;
        let loaded = self.load_model(model).await;
        if was_started && loaded.is_err() {
            self.users().wish_end(model);
        }
        loaded.map(|loaded| LoadedContent { loaded, was_started })
    }

    /// How the model leaves now.
    pub(super) async fn plan_stop(&self, model: &str, method: UnloadMethod) -> StopPlan {
        let has_others = self.app_has_others(model).await;
        let can_end = self.settings.control.is_some();

        self.users().plan_stop(model, method, can_end, has_others)
    }

    /// Whether the app itself lists other models in memory, which may be none of those that the sidecar governs.
    async fn app_has_others(&self, model: &str) -> bool {
        let names = [model.to_owned()];
        let listed = list_models(&self.settings.app, &self.settings.upstream, &names).await.ok().flatten();
        let is_other = |presence: &ModelPresence| {
            matches!(presence, ModelPresence::Loaded | ModelPresence::Loading | ModelPresence::Unloading)
        };

        listed.is_some_and(|models| models.iter().any(|other| other.name != model && is_other(&other.presence)))
    }

    /// Ends the process together with its only model; another outcome than [`ProcessOutcome::Ended`]: nothing was ended,
    /// because another model has come meanwhile.
    pub(super) async fn end_process_with(&self, model: &str) -> ProcessOutcome {
        let Some(control) = &self.settings.control else { return ProcessOutcome::CannotEnd };
        // The semaphore is never closed.
        let _turn = self.load_turn.acquire().await;
        if self.users().has_others(model) {
            return ProcessOutcome::KeptForOthers;
        }

        self.end_process(control).await;
        ProcessOutcome::Ended
    }

    async fn end_process(&self, control: &AppControl) {
        control.end().await;

        // What the next process loads is not taken for what this one had.
        self.settings.runs.end(self.settings.runs.current().number);
        self.users().ended();
    }

    /// Ends the process if no model is in it.
    pub(super) async fn end_unused_process(&self) {
        let Some(control) = &self.settings.control else { return };
        let _turn = self.load_turn.acquire().await;
        if !self.users().is_unused() || self.app_has_others("").await {
            return;
        }

        self.end_process(control).await;
    }

    /// The model is out of memory. Ends the process where an earlier unload has asked for that.
    pub(super) async fn leave(&self, model: &str) {
        let is_due = {
            let mut users = self.users();
            users.leave(model);
            users.is_due()
        };

        if is_due {
            self.end_unused_process().await;
        }
    }
}
