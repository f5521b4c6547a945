//! Loads, unloads and lists of the app, sent over HTTP. What to send and what answers mean is [`App`]'s to say.

use hush_residency::RunnerLoss;
use tokio::time::{Duration, Instant, sleep};

use super::RunnersShared;
use super::observation::{AppObservation, ObservedContent, find_listed};
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
    #[error("the app does not run: {0}")]
    AppIsDown(#[source] UpstreamError),
    #[error("the app gave no answer: {0}")]
    NoAnswer(#[source] UpstreamError),
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
pub(super) async fn observe(app: &App, upstream: &Upstream, names: &[String]) -> AppObservation {
    let asked = Instant::now();

    let content = match list_models(app, upstream, names).await {
        Ok(Some(models)) => ObservedContent::Listed(models),
        Ok(None) => held_models(app, upstream, names).await.unwrap_or_else(|error| not_observed(&error.into())),
        Err(error) => not_observed(&error),
    };
    AppObservation { asked, content }
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
    pub(super) async fn load_model(&self, model: &str) -> Result<Option<String>, ActionError> {
        let app = &self.settings.app;
        let deadline = Instant::now() + self.settings.timeouts.load;

        // An app that starts with its model in memory must not be asked to load it.
        let is_there = self.settings.start.take_fresh() && app.starts_loaded();
        let Some(action) = app.load(model).filter(|_| !is_there) else { return Ok(None) };
        let read = |step, answer: &AppAnswer| app.read_load_step(model, step, answer);
        self.perform(&action, read).await?;

        self.wait_for_list(model, deadline, |listed| match &listed.presence {
            ModelPresence::Loaded => Some(Ok(listed.instance.clone())),
            ModelPresence::Failed { cause } => {
                Some(Err(ActionError::Failed { cause: cause.clone(), out_of_memory: false }))
            }
            ModelPresence::Away | ModelPresence::Loading | ModelPresence::Unloading => None,
        })
        .await
        .unwrap_or_else(|| {
            let seconds = self.settings.timeouts.load.as_secs();
            let cause = format!("the app does not list the model as loaded after {seconds} s");
            Err(ActionError::Failed { cause, out_of_memory: false })
        })
    }

    /// Sends the steps of an unload, and waits until the app lists the model no more.
    pub(super) async fn unload_model(&self, model: &str) -> Result<(), ActionError> {
        let app = &self.settings.app;
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
        self.wait_for_list(model, deadline, |listed| match listed.presence {
            ModelPresence::Away | ModelPresence::Failed { .. } => Some(Ok(None)),
            ModelPresence::Loaded | ModelPresence::Loading | ModelPresence::Unloading => None,
        })
        .await
        .unwrap_or_else(|| Err(ActionError::Unconfirmed { seconds: self.settings.timeouts.unload.as_secs() }))
        .map(drop)
    }

    /// Asks an app without a list whether its unload is complete, where it says that otherwise.
    async fn confirm_unload(&self, model: &str, deadline: Instant) -> Result<(), ActionError> {
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

        for request in &action.always {
            if let Err(error) = self.settings.upstream.call(request).await {
                tracing::warn!(path = request.path, error = hush_log::explain(&error), "the app did not answer");
            }
        }
        result
    }

    /// Looks at the app's list until `judge` has a verdict; `None`: the time is over. An app without a list has done what
    /// its answer says.
    async fn wait_for_list(
        &self,
        model: &str,
        deadline: Instant,
        judge: impl Fn(&ListedModel) -> Option<Result<Option<String>, ActionError>>,
    ) -> Option<Result<Option<String>, ActionError>> {
        let names = [model.to_owned()];

        poll_until(deadline, || async {
            match list_models(&self.settings.app, &self.settings.upstream, &names).await {
                Ok(None) => Some(Ok(None)),
                Ok(Some(models)) => judge(&find_listed(&models, model)),
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

fn step_result(outcome: ActionStepOutcome) -> Result<(), ActionError> {
    match outcome {
        ActionStepOutcome::Done => Ok(()),
        ActionStepOutcome::Busy { cause } => Err(ActionError::Busy(cause)),
        ActionStepOutcome::Failed { cause, out_of_memory } => Err(ActionError::Failed { cause, out_of_memory }),
    }
}

/// The loss of a runner whose app does not run any more.
pub(super) fn app_ended() -> RunnerLoss {
    let detail = "the app does not accept connections any more".to_owned();

    RunnerLoss { cause: hush_residency::LossCause::Exited, detail }
}
