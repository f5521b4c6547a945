//! Mirrors the relevant part of some objects, kept up to date by a watch.
//!
//! After every error the objects are listed anew: only a complete list shows that the API server has recovered, and it
//! misses no change.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api_server::ROLE_HINT;
use crate::control_loop::Readiness;
use crate::metrics::ControllerMetrics;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The mirrored objects; `None` until the first list is complete: a part of the policies would be another configuration.
pub type MirroredObjects<K, V> = Option<Arc<BTreeMap<K, V>>>;

/// What is mirrored, and what is kept of each object.
pub struct Mirror<O, K, V> {
    /// The name of the part in [`Readiness`].
    pub part: &'static str,
    /// The objects in messages for users, such as `pods`.
    pub what: &'static str,
    pub api: Api<O>,
    pub config: watcher::Config,
    pub keep: fn(&O) -> (K, V),
}

impl<O, K, V> Mirror<O, K, V>
where
    O: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K: Ord + Clone + Send + Sync + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    /// Lists the objects once.
    pub async fn once(&self) -> Result<BTreeMap<K, V>, kube::Error> {
        let parameters = ListParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            ..ListParams::default()
        };

        Ok(self.api.list(&parameters).await?.items.iter().map(self.keep).collect())
    }

    /// The resource as the API server calls it, such as `pods`.
    fn resource(&self) -> &str {
        self.api.resource_url().rsplit_once('/').map_or("", |(_, resource)| resource)
    }

    /// Keeps `mirrored` up to date until all its receivers are gone.
    pub async fn run(
        self,
        mirrored: watch::Sender<MirroredObjects<K, V>>,
        readiness: Readiness,
        metrics: Arc<ControllerMetrics>,
    ) {
        let restarts = metrics.watch_restarts_total.with_label_values(&[self.resource()]);
        readiness.set(self.part, Some(format!("the {} have not been listed yet", self.what)));

        let mut pause = FIRST_PAUSE;
        while !mirrored.is_closed() {
            let error = tokio::select! {
                error = self.follow(&mirrored, &readiness, &mut pause) => error,
                () = mirrored.closed() => return,
            };

            let code = status_code(&error);
            if code == Some(404) {
                // Without the kind there is no object of that kind.
                mirrored.send_if_modified(|objects| objects.take().is_some());
            }
            let problem = explain(self.what, self.api.resource_url(), code, &error);
            tracing::warn!(part = self.part, "{problem}");
            readiness.set(self.part, Some(problem));
            restarts.inc();

            sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Lists and watches the objects until an error.
    async fn follow(
        &self,
        mirrored: &watch::Sender<MirroredObjects<K, V>>,
        readiness: &Readiness,
        pause: &mut Duration,
    ) -> watcher::Error {
        let events = watcher(self.api.clone(), self.config.clone());
        pin_mut!(events);

        let mut listed = BTreeMap::new();
        loop {
            match events.next().await {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    let (key, value) = (self.keep)(&object);
                    listed.insert(key, value);
                }
                Some(Ok(Event::InitDone)) => {
                    replace(mirrored, std::mem::take(&mut listed));
                    readiness.set(self.part, None);
                    *pause = FIRST_PAUSE;
                }
                Some(Ok(Event::Apply(object))) => {
                    let (key, value) = (self.keep)(&object);
                    let differs = |all: &BTreeMap<K, V>| all.get(&key) != Some(&value);
                    change(mirrored, differs, |all| drop(all.insert(key.clone(), value.clone())));
                }
                Some(Ok(Event::Delete(object))) => {
                    let (key, _) = (self.keep)(&object);
                    change(mirrored, |all| all.contains_key(&key), |all| drop(all.remove(&key)));
                }
                Some(Err(error)) => return error,
                // The stream of a watcher does not end.
                None => return watcher::Error::NoResourceVersion,
            }
        }
    }
}

/// Publishes a complete list, if it differs from the one before.
fn replace<K: Ord, V: PartialEq>(mirrored: &watch::Sender<MirroredObjects<K, V>>, complete: BTreeMap<K, V>) {
    mirrored.send_if_modified(|objects| {
        let changed = objects.as_deref() != Some(&complete);
        if changed {
            *objects = Some(Arc::new(complete));
        }
        changed
    });
}

/// Applies the change of one object, if it differs from what is mirrored.
fn change<K: Ord + Clone, V: Clone>(
    mirrored: &watch::Sender<MirroredObjects<K, V>>,
    differs: impl FnOnce(&BTreeMap<K, V>) -> bool,
    apply: impl FnOnce(&mut BTreeMap<K, V>),
) {
    mirrored.send_if_modified(|objects| {
        // There is always a list here: a watch begins where a list has ended.
        let Some(all) = objects.as_mut().filter(|all| differs(all)) else { return false };
        apply(Arc::make_mut(all));
        true
    });
}

fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// The error as a message for users: what is missing, and how to fix it.
fn explain(what: &str, path: &str, code: Option<u16>, error: &watcher::Error) -> String {
    match code {
        // The API server may know the kind in another version.
        Some(404) => format!("the API server has no {what} at `{path}`: apply the definitions in `crds/`"),
        Some(401) => format!("the API server does not accept the credential that the {what} are listed with"),
        Some(403) => format!("the API server does not let this account list and watch {what}: {ROLE_HINT}"),
        Some(410) => format!("the watch of the {what} was too old and begins anew"),
        Some(429) => format!("the API server is busy; the {what} are listed again soon"),
        _ => format!("the {what} cannot be watched: {error}"),
    }
}
