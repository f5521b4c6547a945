//! Loads, unloads and lists of the app, sent over HTTP. What to send and what answers mean is [`App`]'s to say.

use hush_residency::RunnerLoss;
use tokio::time::{Duration, Instant, sleep, timeout_at};

use super::RunnersShared;
use super::app_runs::RunNumber;
use super::observation::{AppObservation, ObservedContent, find_listed};
use super::presence_record::RecordError;
use crate::app::{ActionStepOutcome, App, AppAction, AppAnswer, AppAnswerError, ListedModel, ModelPresence};
use crate::upstream::{Upstream, UpstreamError};

/// The pauses between two looks at the list while a model comes or goes: short at first, when it is most likely to.
const FIRST_LIST_PAUSE: Duration = Duration::from_millis(20);
const LATER_LIST_PAUSE: Duration = Duration::from_millis(250);

/// Why an action of the app did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    /// The app has work; nothing has changed.
    #[error("{0}")]
    Busy(String),
    #[error("{cause}")]
    Failed { cause: String, out_of_memory: bool },
    /// The app said that it unloads the model, and still lists it.
    #[error("the app still lists the model {seconds} s after it was asked to unload it")]
    Unconfirmed { seconds: u64 },
    #[error("the app has not loaded the model after {seconds} s")]
    LoadTimedOut { seconds: u64 },
    #[error("the app does not run: {0}")]
    AppIsDown(#[source] UpstreamError),
    /// What was loaded is gone, and what was sent may have reached either run.
    #[error("the app was started anew meanwhile")]
    Restarted,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the app gave no answer: {0}")]
    NoAnswer(#[source] UpstreamError),
}

/// A model that the app has loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadedInApp {
    pub(super) run: RunNumber,
    /// As the app's list names it; `None`: it does not.
    pub(super) instance: Option<String>,
    /// The app had it before, so that its use of the device has not grown.
    pub(super) was_there: bool,
}

impl From<UpstreamError> for ActionError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Refused { .. } => Self::AppIsDown(error),
            other => Self::NoAnswer(other),
        }
    }
}

/// Why the app's list is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the app does not tell its work on port {port}; name the right one with --busy-port")]
    BusyPort { port: u16, source: UpstreamError },
    #[error(transparent)]
    Answer(#[from] AppAnswerError),
}

/// Lists the models; `None`: the app has no list.
pub(super) async fn list_models(
    app: &App,
    upstream: &Upstream,
    names: &[String],
) -> Result<Option<Vec<ListedModel>>, ListError> {
    let Some(requests) = app.list(names) else { return Ok(None) };

    let mut answers: Vec<AppAnswer> = Vec::with_capacity(requests.len());
    for request in &requests {
        answers.push(upstream.call(request).await?);
    }

    Ok(Some(app.read_list(names, &answers)?))
}

/// One look at the app's list.
pub(super) async fn observe(app: &App, upstream: &Upstream, names: &[String], run: RunNumber) -> AppObservation {
    let asked = Instant::now();

    let content = match list_models(app, upstream, names).await {
        Ok(Some(models)) => ObservedContent::Listed(models),
        Ok(None) => held_models(app, upstream, names).await.unwrap_or_else(|error| not_observed(&error.into())),
        Err(error) => not_observed(&error),
    };
    AppObservation { asked, run, content }
}

/// What an app without a list shows of its models: those whose unload would not be confirmed now are in memory. An app
/// that shows nothing of them is asked who it is, so that its end becomes known.
async fn held_models(app: &App, upstream: &Upstream, names: &[String]) -> Result<ObservedContent, UpstreamError> {
    let mut held = Vec::new();
    let mut is_told = false;
    for name in names {
        let Some(request) = app.confirm_unload(name) else { continue };
        is_told = true;
        let answer = upstream.call(&request).await?;
        if !app.is_unload_confirmed(name, &answer) {
            held.push(name.clone());
        }
    }

    if let Some(request) = app.identify().first().filter(|_| !is_told) {
        upstream.call(request).await?;
    }
    Ok(if is_told { ObservedContent::Held(held) } else { ObservedContent::Unknown })
}

fn not_observed(error: &ListError) -> ObservedContent {
    if let ListError::Upstream(UpstreamError::Refused { .. }) = error {
        return ObservedContent::Down;
    }

    tracing::debug!(error = hush_log::explain(error), "the app's list is not known");
    ObservedContent::Unknown
}

impl RunnersShared {
    /// Sends the steps of a load, and waits until the app lists the model as loaded.
    pub(super) async fn load_model(&self, model: &str) -> Result<LoadedInApp, ActionError> {
        let limit = self.settings.timeouts.load;
        let deadline = Instant::now() + limit;

        let load = async {
            if self.settings.app.starts_loaded() {
                self.load_recorded(model).await
            } else {
                self.load_listed(model, deadline).await
            }
        };
        let loaded = timeout_at(deadline, load).await;
        loaded.unwrap_or(Err(ActionError::LoadTimedOut { seconds: limit.as_secs() }))
    }

    async fn load_listed(&self, model: &str, deadline: Instant) -> Result<LoadedInApp, ActionError> {
        let (app, runs) = (&self.settings.app, &self.settings.runs);
        let run_before = runs.current().number;
        if let Some(there) = self.find_loaded(model, run_before).await {
            return Ok(there);
        }

        if let Some(action) = app.load(model) {
            let read = |step, answer: &AppAnswer| app.read_load_step(model, step, answer);
            self.perform(&action, read).await?;
        }
        let listed = self.wait_until_loaded(model, deadline).await?;

        // Without a list nothing says in which run the model was loaded.
        let loaded = listed.unwrap_or(LoadedInApp { run: run_before, instance: None, was_there: false });
        if loaded.run == runs.current().number { Ok(loaded) } else { Err(ActionError::Restarted) }
    }

    /// The model, if the app lists it as loaded: Triton would load it a second time, and hold it twice for a moment.
    async fn find_loaded(&self, model: &str, run: RunNumber) -> Option<LoadedInApp> {
        let names = [model.to_owned()];
        let listed = list_models(&self.settings.app, &self.settings.upstream, &names).await.ok()??;
        let entry = find_listed(&listed, model);

        let is_there = entry.presence == ModelPresence::Loaded && self.settings.runs.current().number == run;
        is_there.then_some(LoadedInApp { run, instance: entry.instance, was_there: true })
    }

    /// Waits until the app lists the model as loaded; `None`: the app has no list.
    async fn wait_until_loaded(&self, model: &str, deadline: Instant) -> Result<Option<LoadedInApp>, ActionError> {
        self.wait_for_list(model, deadline, |run, listed| match &listed.presence {
            ModelPresence::Loaded => Some(Ok(LoadedInApp { run, instance: listed.instance.clone(), was_there: false })),
            ModelPresence::Failed { cause } => {
                Some(Err(ActionError::Failed { cause: cause.clone(), out_of_memory: false }))
            }
            ModelPresence::Away | ModelPresence::Loading | ModelPresence::Unloading => None,
        })
        .await
        .unwrap_or_else(|| Err(ActionError::LoadTimedOut { seconds: self.settings.timeouts.load.as_secs() }))
    }

    /// Sends the steps of an unload, and waits until the app lists the model no more.
    pub(super) async fn unload_model(&self, model: &str) -> Result<(), ActionError> {
        let app = &self.settings.app;
        if app.starts_loaded() {
            return self.unload_recorded(model).await;
        }
        let deadline = Instant::now() + self.settings.timeouts.unload;

        let listed = list_models(app, &self.settings.upstream, &[model.to_owned()]).await.ok().flatten();
        let action = match &listed {
            Some(listed) => app.unload_listed(model, listed),
            None => app.unload(model),
        };
        let Some(action) = action else {
            let cause = "the app has no route that unloads a model: start it through the sidecar".to_owned();
            return Err(ActionError::Failed { cause, out_of_memory: false });
        };
        let read = |step, answer: &AppAnswer| app.read_unload_step(model, step, answer);
        self.perform(&action, read).await?;
        self.confirm_unload(model, deadline).await?;

        // An instance that was killed at its end may be listed as failed: it is gone all the same.
        self.wait_for_list(model, deadline, |_, listed| match listed.presence {
            ModelPresence::Away | ModelPresence::Failed { .. } => Some(Ok(())),
            ModelPresence::Loaded | ModelPresence::Loading | ModelPresence::Unloading => None,
        })
        .await
        .unwrap_or_else(|| Err(ActionError::Unconfirmed { seconds: self.settings.timeouts.unload.as_secs() }))
        .map(drop)
    }

    /// Asks an app without a list whether its unload is complete, where it says that otherwise.
    pub(super) async fn confirm_unload(&self, model: &str, deadline: Instant) -> Result<(), ActionError> {
        let Some(request) = self.settings.app.confirm_unload(model) else { return Ok(()) };

        let confirmed = poll_until(deadline, || async {
            match self.settings.upstream.call(&request).await {
                Ok(answer) if self.settings.app.is_unload_confirmed(model, &answer) => Some(Ok(())),
                Err(error @ UpstreamError::Refused { .. }) => Some(Err(error.into())),
                Ok(_) | Err(_) => None,
            }
        })
        .await;
        confirmed.unwrap_or_else(|| Err(ActionError::Unconfirmed { seconds: self.settings.timeouts.unload.as_secs() }))
    }

    /// How much work the app has for the model; zero where it does not say.
    pub(super) async fn app_work(&self, model: &str) -> Result<u64, ListError> {
        app_work(&self.settings.app, &self.settings.upstream, model).await
    }

    async fn perform(
        &self,
        action: &AppAction,
        read: impl Fn(usize, &AppAnswer) -> ActionStepOutcome,
    ) -> Result<(), ActionError> {
        let mut result = Ok(());
        for (index, step) in action.steps.iter().enumerate() {
            result = match self.settings.upstream.call(step).await {
                Ok(answer) => step_result(read(index, &answer)),
                Err(error) => Err(error.into()),
            };
            if result.is_err() {
                break;
            }
        }

        self.send_always(action).await;
        result
    }

    /// Sends what follows the steps, however they ended.
    pub(super) async fn send_always(&self, action: &AppAction) {
        for request in &action.always {
            if let Err(error) = self.settings.upstream.call(request).await {
                tracing::warn!(path = request.path, error = hush_log::explain(&error), "the app did not answer");
            }
        }
    }

    /// Looks at the app's list until `judge` has a verdict on what one run of the app said; `None`: the time is over. An
    /// app without a list, for which the verdict is `None`, has done what its answer says.
    async fn wait_for_list<T>(
        &self,
        model: &str,
        deadline: Instant,
        judge: impl Fn(RunNumber, &ListedModel) -> Option<Result<T, ActionError>>,
    ) -> Option<Result<Option<T>, ActionError>> {
        let names = [model.to_owned()];

        poll_until(deadline, || async {
            let run = self.settings.runs.current().number;
            match list_models(&self.settings.app, &self.settings.upstream, &names).await {
                Ok(None) => Some(Ok(None)),
                Ok(Some(_)) if run != self.settings.runs.current().number => None,
                Ok(Some(models)) => judge(run, &find_listed(&models, model)).map(|verdict| verdict.map(Some)),
                Err(ListError::Upstream(error @ UpstreamError::Refused { .. })) => Some(Err(error.into())),
                // The app may be too busy to answer while a model comes or goes.
                Err(error) => {
                    tracing::debug!(model, error = hush_log::explain(&error), "the list is not known");
                    None
                }
            }
        })
        .await
    }
}

/// Looks again with growing pauses until there is a verdict; `None`: the time is over.
async fn poll_until<T, F: Future<Output = Option<T>>>(deadline: Instant, mut look: impl FnMut() -> F) -> Option<T> {
    let mut pause = FIRST_LIST_PAUSE;

    loop {
        if let Some(verdict) = look().await {
            return Some(verdict);
        }
        if Instant::now() >= deadline {
            return None;
        }

        sleep(pause).await;
        pause = (pause * 2).min(LATER_LIST_PAUSE);
    }
}

/// How much work the app has for the model; zero where it does not say.
pub(super) async fn app_work(app: &App, upstream: &Upstream, model: &str) -> Result<u64, ListError> {
    let answer = match (app.busy(model), app.busy_on_port(model)) {
        (Some(request), _) => upstream.call(&request).await?,
        (None, Some((port, request))) => {
            let port = upstream.settings().busy_port.unwrap_or(port);
            upstream.with_port(port).call(&request).await.map_err(|source| ListError::BusyPort { port, source })?
        }
        (None, None) => return Ok(0),
    };
    Ok(app.read_busy(model, &answer)?)
}

pub(super) fn step_result(outcome: ActionStepOutcome) -> Result<(), ActionError> {
    match outcome {
        ActionStepOutcome::Done => Ok(()),
        ActionStepOutcome::Busy { cause } => Err(ActionError::Busy(cause)),
        ActionStepOutcome::Failed { cause, out_of_memory } => Err(ActionError::Failed { cause, out_of_memory }),
    }
}

/// The loss of a runner whose app has not loaded the model in time.
pub(super) fn load_timed_out(error: &ActionError) -> RunnerLoss {
    RunnerLoss { cause: hush_residency::LossCause::LoadTimeout, detail: error.to_string() }
}

/// The loss of a runner whose app does not run any more.
pub(super) fn app_ended() -> RunnerLoss {
    let detail = "the app does not accept connections any more".to_owned();

    RunnerLoss { cause: hush_residency::LossCause::Exited, detail }
}
