//! A model that is loaded and unloaded through the app's API.

use std::sync::Arc;

use hush_contract::admin::{ProcessOutcome, UnloadMethod};
use hush_residency::{LoadTimings, OnRunnerEvent, RunnerEvent};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};

use super::app_calls::{ActionError, ListError, LoadedInApp, app_ended, load_timed_out};
use super::app_runs::RunNumber;
use super::app_users::StopPlan;
use super::observation::ObservedContent;
use super::process_end::LoadedContent;
use super::{RunnersShared, SidecarSpec};
use crate::app::ModelPresence;
use crate::process::{AppControl, app_processes};
use crate::status::AppStatus;
use crate::upstream::UpstreamError;

/// How long a load waits for an app that does not answer: one that restarts answers soon.
const APP_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// A runner. Clones are handles to the same one.
#[derive(Clone)]
pub struct ApiRunner {
    commands: mpsc::UnboundedSender<RunnerCommand>,
}

enum RunnerCommand {
    Stop(UnloadMethod),
    Kill,
}

impl ApiRunner {
    /// Loads the model. Must be called inside a tokio runtime, as [`Self::adopt`].
    pub(super) fn load(shared: Arc<RunnersShared>, spec: SidecarSpec, notify: OnRunnerEvent) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        shared.users().enter(&spec.app_name);
        let task = RunnerTask { shared, name: spec.name, model: spec.app_name, notify, inbox, loaded: None };

        tokio::spawn(task.run_from_load());
        Self { commands }
    }

    /// Takes over a model that the app has loaded by itself.
    pub(super) fn adopt(shared: Arc<RunnersShared>, spec: SidecarSpec, notify: OnRunnerEvent) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let loaded = Some(LoadedInstance::adopted(&shared, &spec.app_name));
        shared.users().enter(&spec.app_name);
        let task = RunnerTask { shared, name: spec.name, model: spec.app_name, notify, inbox, loaded };

        tokio::spawn(task.run_adopted());
        Self { commands }
    }

    pub(super) fn stop(&self) {
        // Without a task the runner has ended already.
        let _ = self.commands.send(RunnerCommand::Stop(UnloadMethod::App));
    }

    pub(super) fn stop_with_process(&self) {
        let _ = self.commands.send(RunnerCommand::Stop(UnloadMethod::Process));
    }

    pub(super) fn kill(&self) {
        let _ = self.commands.send(RunnerCommand::Kill);
    }
}

/// What the app was seen to have loaded.
struct LoadedInstance {
    since: Instant,
    /// It ends with this run of the app.
    run: RunNumber,
    instance: Option<String>,
    /// An app without a list has shown that the model is in memory. One that loads it with the first request shows it late.
    was_held: bool,
}

impl LoadedInstance {
    /// What the app has loaded by itself, as it was seen last.
    fn adopted(shared: &RunnersShared, model: &str) -> Self {
        let observation = shared.settings.observations.borrow();
        let instance = observation.find(model).and_then(|listed| listed.instance);
        let run = if shared.settings.app.starts_loaded() {
            shared.settings.record.current().map(|(run, _)| run.number)
        } else {
            Some(observation.run)
        };

        let run = run.unwrap_or_else(|| shared.settings.runs.current().number);
        Self { since: Instant::now(), run, instance, was_held: true }
    }
}

/// How the life of a runner goes on.
enum NextPhase {
    Loaded,
    Over,
}

struct RunnerTask {
    shared: Arc<RunnersShared>,
    /// The name in metrics.
    name: String,
    /// The name under which the app knows the model.
    model: String,
    notify: OnRunnerEvent,
    inbox: mpsc::UnboundedReceiver<RunnerCommand>,
    loaded: Option<LoadedInstance>,
}

impl RunnerTask {
    async fn run_from_load(mut self) {
        match self.load().await {
            NextPhase::Loaded => self.run_loaded().await,
            NextPhase::Over => self.finish().await,
        }
    }

    /// The model holds nothing of the app any more.
    async fn finish(&self) {
        self.shared.leave(&self.model).await;
        (self.notify)(RunnerEvent::Exited);
    }

    async fn run_adopted(self) {
        self.name_processes_if_alone().await;
        self.run_loaded().await;
    }

    /// What a model holds that was there before can only be told by the processes of the app, and only if they hold nothing
    /// else.
    async fn name_processes_if_alone(&self) {
        let is_alone = self.shared.settings.observations.borrow().is_alone(&self.model);

        if is_alone || self.shared.settings.app.has_one_model() {
            self.name_processes().await;
        }
    }

    /// Names the processes of an app on this machine, so that their memory counts.
    async fn name_processes(&self) {
        let upstream = self.shared.settings.upstream.settings();
        if !upstream.is_local() {
            return;
        }

        let port = upstream.port;
        let pids = tokio::task::spawn_blocking(move || app_processes(port)).await.unwrap_or_default();
        (self.notify)(RunnerEvent::Started { pids });
    }

    async fn load(&mut self) -> NextPhase {
        (self.notify)(RunnerEvent::Started { pids: Vec::new() });
        // A model that comes with the first request is not there yet when its load is over: only its process tells later.
        if self.comes_with_first_request() {
            self.name_processes().await;
        }
        if let Err(cause) = self.wait_for_app().await {
            (self.notify)(RunnerEvent::LoadFailed { cause, out_of_memory: false });
            return NextPhase::Over;
        }

        let began = Instant::now();
        let (shared, model) = (Arc::clone(&self.shared), self.model.clone());
        let load = async {
            // The semaphore is never closed.
            let _turn = shared.load_turn.acquire().await;
            shared.bring_in(&model).await
        };
        tokio::pin!(load);
        let loaded = tokio::select! {
            loaded = &mut load => loaded,
            // Asked to end while it loads. The app goes on loading: it is unloaded when it has.
            _ = self.inbox.recv() => {
                if shared.settings.app.starts_loaded() {
                    // Nothing else would tell later what became of the load.
                    let _ = load.await;
                }
                self.end_whatever_it_does().await;
                return NextPhase::Over;
            }
        };

        self.finish_load(loaded, began.elapsed()).await
    }

    /// Reports how a load that took `total` has ended.
    async fn finish_load(&mut self, loaded: Result<LoadedContent, ActionError>, total: Duration) -> NextPhase {
        match loaded {
            Ok(LoadedContent { loaded: LoadedInApp { run, instance, was_there }, was_started }) => {
                self.loaded = Some(LoadedInstance { since: Instant::now(), run, instance, was_held: false });
                // Before the app was started there was no process to name.
                if was_started && self.comes_with_first_request() {
                    self.name_processes().await;
                } else if was_there && !was_started {
                    self.name_processes_if_alone().await;
                }
                (self.notify)(RunnerEvent::Loaded(LoadTimings { sessions: total, total, ..LoadTimings::default() }));
                (self.notify)(RunnerEvent::FullyLoaded(total));
                NextPhase::Loaded
            }
            Err(ActionError::Restarted) => {
                (self.notify)(RunnerEvent::Lost(app_ended()));
                NextPhase::Over
            }
            Err(error @ ActionError::LoadTimedOut { .. }) => {
                (self.notify)(RunnerEvent::Lost(load_timed_out(&error)));
                self.end_whatever_it_does().await;
                NextPhase::Over
            }
            Err(error) => {
                let out_of_memory = matches!(error, ActionError::Failed { out_of_memory: true, .. });
                let cause = hush_log::explain(&error);
                (self.notify)(RunnerEvent::LoadFailed { cause, out_of_memory });
                self.end_whatever_it_does().await;
                NextPhase::Over
            }
        }
    }

    fn comes_with_first_request(&self) -> bool {
        self.shared.settings.app.load(&self.model).is_none() && self.shared.settings.app.has_one_model()
    }

    /// Waits until the app has said who it is.
    async fn wait_for_app(&self) -> Result<(), String> {
        let mut status = self.shared.settings.status.clone();
        let answered = status.wait_for(|status| !matches!(status, AppStatus::Unreachable { .. }));
        // A status that does not change any more is as good as one that is late.
        let mut run = self.shared.settings.runs.follow();
        let is_there = async {
            // An app that was ended on purpose is started by the load.
            let is_stopped = answered.await.is_ok_and(|status| matches!(*status, AppStatus::Stopped));
            if !is_stopped {
                let _ = run.wait_for(|run| run.is_up).await;
            }
        };
        let _ = timeout(APP_ANSWER_TIMEOUT, is_there).await;

        let status = self.shared.settings.status.borrow();
        match &*status {
            AppStatus::Running { .. } | AppStatus::Stopped => Ok(()),
            AppStatus::Unreachable { cause } => Err(format!("the app does not answer: {cause}")),
            AppStatus::Unsuitable { cause } => Err(format!("the app cannot be governed: {cause}")),
        }
    }

    async fn run_loaded(mut self) {
        let mut observations = self.shared.settings.observations.clone();
        let mut current_run = self.shared.settings.runs.follow();

        loop {
            if self.loaded.as_ref().is_some_and(|loaded| loaded.run != current_run.borrow_and_update().number) {
                (self.notify)(RunnerEvent::Lost(app_ended()));
                break;
            }

            tokio::select! {
                changed = current_run.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                command = self.inbox.recv() => match command {
                    Some(RunnerCommand::Stop(_)) if self.shared.settings.detach.is_set() => break,
                    Some(RunnerCommand::Stop(method)) => match self.stop(method).await {
                        Ok(outcome) => {
                            self.report_process(outcome);
                            break;
                        }
                        Err(cause) => (self.notify)(RunnerEvent::StopRefused { cause }),
                    },
                    Some(RunnerCommand::Kill) => {
                        if !self.shared.settings.detach.is_set() {
                            self.end_whatever_it_does().await;
                        }
                        self.report_process(ProcessOutcome::Kept);
                        break;
                    }
                    // The sidecar ends.
                    None => return,
                },
                changed = observations.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let event = self.judge_observation(&observations);
                    if let Some(event) = event {
                        if matches!(event, RunnerEvent::LeftByItself) {
                            self.report_process(ProcessOutcome::Kept);
                        }
                        (self.notify)(event);
                        break;
                    }
                }
            }
        }

        self.finish().await;
    }

    fn report_process(&self, outcome: ProcessOutcome) {
        if outcome != ProcessOutcome::Ended {
            (self.notify)(RunnerEvent::ProcessKept(outcome));
        }
    }

    /// What an observation says about the loaded model; `None`: it is as it was.
    fn judge_observation(
        &mut self,
        observations: &tokio::sync::watch::Receiver<super::AppObservation>,
    ) -> Option<RunnerEvent> {
        let observation = observations.borrow();
        let loaded = self.loaded.as_mut()?;
        if observation.asked <= loaded.since {
            return None;
        }

        if observation.content == ObservedContent::Down {
            return Some(RunnerEvent::Lost(app_ended()));
        }

        if let ObservedContent::Held(names) = &observation.content {
            let is_held = names.contains(&self.model);
            let has_left = loaded.was_held && !is_held;
            loaded.was_held |= is_held;
            return has_left.then_some(RunnerEvent::LeftByItself);
        }

        let listed = observation.find(&self.model)?;
        let is_same = listed.presence == ModelPresence::Loaded && listed.instance == loaded.instance;
        let has_left = match listed.presence {
            ModelPresence::Away | ModelPresence::Failed { .. } => true,
            ModelPresence::Loaded => !is_same,
            // On its way: the next observation shows what becomes of it.
            ModelPresence::Loading | ModelPresence::Unloading => false,
        };
        has_left.then_some(RunnerEvent::LeftByItself)
    }

    /// Unloads the model; a command that comes meanwhile, or the end of the sidecar, ends the wait for the app.
    async fn stop(&mut self, method: UnloadMethod) -> Result<ProcessOutcome, String> {
        tokio::select! {
            unloaded = unload(&self.shared, &self.name, &self.model, method) => unloaded,
            _ = self.inbox.recv() => Ok(ProcessOutcome::Kept),
        }
    }

    /// Unloads the model and accepts whatever the app answers.
    async fn end_whatever_it_does(&self) {
        // An app that was started for this load, and is not ready, has nothing to unload: it is ended.
        if self.shared.settings.control.as_ref().is_some_and(AppControl::is_absent) {
            self.shared.users().wish_end(&self.model);
            return;
        }

        if let Err(error) = self.shared.unload_model(&self.model).await {
            tracing::warn!(model = self.model, error = hush_log::explain(&error), "the app did not unload the model");
        }
    }
}

/// Unloads a model, if the app has no work for it, and ends the process of the app where that is due.
async fn unload(
    shared: &RunnersShared,
    name: &str,
    model: &str,
    method: UnloadMethod,
) -> Result<ProcessOutcome, String> {
    let is_down = match shared.app_work(model).await {
        Ok(0) => false,
        Ok(work) => return Err(format!("the app has work for it: {work} requests")),
        // Without the app its models are not in memory.
        Err(ListError::Upstream(UpstreamError::Refused { .. })) => true,
        Err(error) => return Err(format!("the app does not say whether it has work: {}", hush_log::explain(&error))),
    };

    let outcome = match shared.plan_stop(model, method).await {
        StopPlan::EndProcess => shared.end_process_with(model).await,
        StopPlan::UnloadInApp(outcome) => outcome,
    };
    if outcome == ProcessOutcome::Ended || is_down {
        return Ok(outcome);
    }

    match shared.unload_model(model).await {
        Ok(()) | Err(ActionError::AppIsDown(_) | ActionError::Restarted) => {
            if outcome == ProcessOutcome::KeptForOthers {
                shared.users().wish_end(model);
            }
            Ok(outcome)
        }
        Err(error) => {
            if let ActionError::Unconfirmed { .. } = error {
                shared.settings.metrics.unloads_unconfirmed_total.with_label_values(&[name]).inc();
            }
            Err(hush_log::explain(&error))
        }
    }
}
