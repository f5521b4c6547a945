//! The watch over the app: whether it can be governed, what it has in memory, and whether it has work that did not pass
//! through the proxy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hush_contract::ModelState;
use hush_residency::{ModelHandle, ModelLease, Models};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::app_calls::{app_work, observe};
use super::app_presence::{AppPresence, PresenceChange};
use super::observation::{AppObservation, ObservedContent};
use super::port_check::is_port_exposed;
use super::presence_record::PresenceRecord;
use super::recorded_calls::check_assumption;
use super::state_file::{AppLock, AppLockError};
use super::{AppMetrics, AppRuns, ModelMode, SidecarRunners};
use crate::app::{App, AppAnswer, ModelPresence};
use crate::process::AppControl;
use crate::status::AppStatus;
use crate::upstream::{Upstream, UpstreamError};

/// How often an app is asked again who it is, while it is known.
const IDENTIFY_EVERY: Duration = Duration::from_secs(30);

/// How long the connection that tells of the app's run may be later than the app's first answer.
const RUN_TIMEOUT: Duration = Duration::from_secs(1);

const NOT_ASKED: &str = "it has not been asked yet";
const NOT_ACCEPTING: &str = "it does not accept connections";

/// How the app is watched.
#[derive(Clone, Debug)]
pub struct WatchSettings {
    /// The pause between two looks. Ollama's list is not made for less than a second.
    pub interval: Duration,
    /// How models are loaded and unloaded.
    pub mode: ModelMode,
    /// Where the right to govern the app is taken; `None`: nowhere, and two sidecars may govern it.
    pub lock_folder: Option<PathBuf>,
    /// The app that the sidecar ends and starts between its loads.
    pub control: Option<AppControl>,
}

/// The channels in which the watch publishes what it sees.
pub struct AppWatch {
    app: Arc<App>,
    upstream: Upstream,
    settings: WatchSettings,
    metrics: AppMetrics,
    runs: AppRuns,
    record: PresenceRecord,
    lock: Mutex<Option<AppLock>>,
    presence_changed: Notify,
    status: watch::Sender<AppStatus>,
    observation: watch::Sender<AppObservation>,
}

impl AppWatch {
    pub fn new(
        app: Arc<App>,
        upstream: Upstream,
        settings: WatchSettings,
        metrics: AppMetrics,
        runs: AppRuns,
        record: PresenceRecord,
    ) -> Self {
        let (status, observation) =
            (watch::Sender::new(not_asked_yet()), watch::Sender::new(AppObservation::unknown()));

        Self {
            app,
            upstream,
            settings,
            metrics,
            runs,
            record,
            lock: Mutex::default(),
            presence_changed: Notify::new(),
            status,
            observation,
        }
    }

    pub fn status(&self) -> watch::Receiver<AppStatus> {
        self.status.subscribe()
    }

    pub fn observations(&self) -> watch::Receiver<AppObservation> {
        self.observation.subscribe()
    }

    /// Watches until it is dropped. `names`: for each model the name under which the app knows it.
    pub async fn run(self, models: Arc<Models<SidecarRunners>>, names: BTreeMap<String, String>) {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut occupied: BTreeMap<String, ModelLease<SidecarRunners>> = BTreeMap::new();
        let mut identified: Option<Instant> = None;

        let watch = Arc::new(self);
        let _presence = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&watch).watch_presence()));

        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = watch.presence_changed.notified() => identified = None,
            }
            let handles: Vec<ModelHandle<SidecarRunners>> = models.iter().collect();

            if let ModelMode::Process(_) = watch.settings.mode {
                watch.watch_process(&handles);
            } else if watch.is_app_absent() {
                watch.publish_absence();
                identified = None;
            } else {
                let is_due = identified.is_none_or(|at| at.elapsed() >= IDENTIFY_EVERY);
                if is_due || !matches!(&*watch.status.borrow(), AppStatus::Running { .. }) {
                    watch.identify(&handles).await;
                    identified = Some(Instant::now());
                    watch.check_port().await;
                }
                watch.watch_list(&handles, &names).await;
                watch.watch_start(&handles).await;
            }

            watch.watch_work(&handles, &names, &mut occupied).await;
        }
    }

    /// In process mode the states of the models are the states of the app.
    fn watch_process(&self, handles: &[ModelHandle<SidecarRunners>]) {
        let is_running = handles.iter().any(|model| model.snapshot().state.is_loaded());
        let status = if is_running { AppStatus::Running { version: None } } else { AppStatus::Stopped };

        self.publish_status(status);
    }

    /// Whether the app was ended because its models left. It is started again by the next load.
    fn is_app_absent(&self) -> bool {
        self.settings.control.as_ref().is_some_and(AppControl::is_absent)
    }

    /// While the app is away on purpose its models are too, and a request for one of them starts it.
    fn publish_absence(&self) {
        self.publish_status(AppStatus::Stopped);
        self.observation.send_if_modified(|observation| {
            let is_news = observation.content != ObservedContent::Down;
            if is_news {
                *observation = AppObservation::down(self.runs.current().number);
            }
            is_news
        });
    }

    fn publish_unreachable(&self, cause: String) {
        if self.is_app_absent() {
            self.publish_absence();
        } else {
            self.publish_status(AppStatus::Unreachable { cause });
        }
    }

    async fn identify(&self, handles: &[ModelHandle<SidecarRunners>]) {
        let mut answers: Vec<AppAnswer> = Vec::new();
        for request in self.app.identify() {
            match self.upstream.call(&request).await {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    self.publish_unreachable(hush_log::explain(&error));
                    return;
                }
            }
        }

        if self.app.starts_loaded() {
            self.wait_for_run().await;
            self.check_assumption().await;
        }
        self.publish_status(match self.app.read_identity(&answers) {
            Ok(identity) => match self.obstacle() {
                Some(cause) => AppStatus::Unsuitable { cause },
                None => {
                    // Before the status changes, so that an app that is shown as ready is shown with its model.
                    self.adopt_from_start(handles);
                    self.log_warnings(&identity.warnings);
                    AppStatus::Running { version: identity.version }
                }
            },
            Err(unsuitable) => AppStatus::Unsuitable { cause: unsuitable.to_string() },
        });
    }

    /// Waits until the run that has answered is known, so that the record is one of this run.
    async fn wait_for_run(&self) {
        let mut run = self.runs.follow();

        // An app that has ended since is seen by the next look.
        let _ = timeout(RUN_TIMEOUT, run.wait_for(|run| run.is_up)).await;
    }

    async fn check_assumption(&self) {
        if let Err(error) = check_assumption(&self.app, &self.upstream, &self.record).await {
            tracing::debug!(error = hush_log::explain(&error), "whether the app is loaded is not known");
        }
    }

    /// Why the app is left alone although it is the right one.
    fn obstacle(&self) -> Option<String> {
        self.take_lock().err().map(|error| error.to_string()).or_else(|| self.presence_doubt())
    }

    /// Takes the right to govern the app, so that two sidecars do not fight over it.
    fn take_lock(&self) -> Result<(), AppLockError> {
        let Some(folder) = &self.settings.lock_folder else { return Ok(()) };
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() {
            return Ok(());
        }

        match AppLock::take(folder, self.upstream.authority()) {
            Ok(taken) => *lock = Some(taken),
            Err(error @ AppLockError::Taken { .. }) => return Err(error),
            Err(error @ AppLockError::Unusable { .. }) => {
                tracing::debug!(error = hush_log::explain(&error), "a second sidecar would not be noticed");
            }
        }
        Ok(())
    }

    /// Why it is not known whether the app has its model in memory, where only the sidecar's own record tells.
    fn presence_doubt(&self) -> Option<String> {
        self.record.doubt().filter(|_| self.app.starts_loaded())
    }

    /// Logs what should be set otherwise, once while the app runs.
    fn log_warnings(&self, warnings: &[String]) {
        if matches!(&*self.status.borrow(), AppStatus::Running { .. }) {
            return;
        }

        for warning in warnings {
            tracing::warn!(app = self.app.name(), "{warning}");
        }
    }

    /// Finds out whether clients can pass by the sidecar.
    async fn check_port(&self) {
        let Some(is_exposed) = is_port_exposed(self.upstream.settings()).await else { return };

        if self.metrics.note_port_exposed(is_exposed) && is_exposed {
            let address = self.upstream.authority();
            tracing::warn!(
                app = self.app.name(),
                "the app's own port can be reached from other machines, and what goes there is cut off by an unload: have \
                 it listen on the loopback alone ({address})"
            );
        }
    }

    fn publish_status(&self, status: AppStatus) {
        let app = self.app.name();
        let changed = self.status.send_if_modified(|current| {
            // The words of the cause differ with the moment; the app is away all the same.
            let is_known_away = matches!(
                (&*current, &status),
                (AppStatus::Unreachable { cause }, AppStatus::Unreachable { .. }) if cause != NOT_ASKED
            );
            let is_new = *current != status && !is_known_away;
            if is_new {
                *current = status.clone();
            }
            is_new
        });
        if !changed {
            return;
        }

        match &status {
            AppStatus::Running { version } => tracing::info!(app, version, "the app answers"),
            AppStatus::Unreachable { cause } => tracing::warn!(app, "the app does not answer: {cause}"),
            AppStatus::Unsuitable { cause } => tracing::error!(app, "the app cannot be governed: {cause}"),
            AppStatus::Stopped => {}
        }
    }

    /// Looks at the app's list. A model that is in memory although its state says otherwise has appeared by itself; the
    /// runner of a model that has left learns it from the observation.
    async fn watch_list(&self, handles: &[ModelHandle<SidecarRunners>], names: &BTreeMap<String, String>) {
        let before: BTreeMap<&str, (ModelState, u64)> = handles.iter().map(away_facts).collect();
        let app_names: Vec<String> = names.values().cloned().collect();

        let run = self.runs.current().number;
        let observation = observe(&self.app, &self.upstream, &app_names, run).await;
        if observation.content == ObservedContent::Down {
            self.runs.end(run);
            self.publish_unreachable(NOT_ACCEPTING.to_owned());
        } else if self.runs.current().number != run {
            // Nothing is known of the run that is there now.
            return;
        }
        self.observation.send_replace(observation.clone());

        if !matches!(&*self.status.borrow(), AppStatus::Running { .. }) {
            return;
        }
        for handle in handles {
            let (name, after) = away_facts(handle);
            let is_away = !after.0.holds_memory();
            let was_the_same = before.get(name) == Some(&after);
            let listed = names.get(name).and_then(|app_name| observation.find(app_name));

            // The answer is older than a change of the state otherwise.
            if is_away && was_the_same && listed.is_some_and(|listed| listed.presence == ModelPresence::Loaded) {
                if after.0 == ModelState::WaitingForMemory || handle.snapshot().hold.is_some() {
                    self.metrics.loads_behind_hold_total.with_label_values(&[name]).inc();
                    tracing::warn!(model = name, "the app has loaded the model by itself although it was to stay away");
                }
                handle.appeared();
            }
        }
    }

    /// Publishes at once that the app has ended, so that no request goes to an app that has lost its models.
    async fn watch_presence(self: Arc<Self>) {
        let mut presence = AppPresence::new(&self.upstream, self.runs.clone());

        loop {
            let change = presence.changed().await;
            let has_ended = matches!(change, PresenceChange::Gone | PresenceChange::Restarted);

            if has_ended && matches!(self.settings.mode, ModelMode::Api) {
                self.observation.send_replace(AppObservation::down(self.runs.current().number));
            }
            if change == PresenceChange::Gone && matches!(self.settings.mode, ModelMode::Api) {
                self.publish_unreachable(NOT_ACCEPTING.to_owned());
            }
            self.presence_changed.notify_one();
        }
    }

    /// An app without a list that has its model in memory from its start on has it whenever it comes.
    async fn watch_start(&self, handles: &[ModelHandle<SidecarRunners>]) {
        if !self.app.starts_loaded() || !matches!(&*self.status.borrow(), AppStatus::Running { .. }) {
            return;
        }
        self.check_assumption().await;
        if let Some(cause) = self.presence_doubt() {
            self.publish_status(AppStatus::Unsuitable { cause });
            return;
        }

        self.adopt_from_start(handles);
    }

    /// An unload changes the record before its runner ends, and waits for this: the model is told to be here while its life
    /// cannot have gone past the unload.
    fn adopt_from_start(&self, handles: &[ModelHandle<SidecarRunners>]) {
        if !self.app.starts_loaded() {
            return;
        }

        self.record.if_loaded(|_| {
            for handle in handles {
                handle.appeared();
            }
        });
    }

    /// Holds a lease for each model whose app has work although no request of the proxy is at it.
    async fn watch_work(
        &self,
        handles: &[ModelHandle<SidecarRunners>],
        names: &BTreeMap<String, String>,
        occupied: &mut BTreeMap<String, ModelLease<SidecarRunners>>,
    ) {
        for handle in handles {
            let snapshot = handle.snapshot();
            let is_held = occupied.contains_key(handle.name());
            let other_leases = snapshot.inflight - usize::from(is_held).min(snapshot.inflight);
            let Some(app_name) = names.get(handle.name()) else { continue };
            if !snapshot.state.is_loaded() || other_leases > 0 {
                occupied.remove(handle.name());
                continue;
            }

            match app_work(&self.app, &self.upstream, app_name).await {
                Ok(0) => {
                    occupied.remove(handle.name());
                }
                Ok(_) if !is_held => {
                    self.metrics.unattributed_work_total.with_label_values(&[handle.name()]).inc();
                    if let Some(lease) = handle.occupy().await {
                        occupied.insert(handle.name().to_owned(), lease);
                    }
                }
                Ok(_) => {}
                Err(super::app_calls::ListError::Upstream(UpstreamError::Refused { .. })) => {
                    occupied.remove(handle.name());
                }
                // Not known: as it was.
                Err(error) => tracing::debug!(error = hush_log::explain(&error), "the app's work is not known"),
            }
        }
    }
}

fn not_asked_yet() -> AppStatus {
    AppStatus::Unreachable { cause: NOT_ASKED.to_owned() }
}

fn away_facts(handle: &ModelHandle<SidecarRunners>) -> (&str, (ModelState, u64)) {
    let snapshot = handle.snapshot();

    (handle.name(), (snapshot.state, snapshot.generation))
}
