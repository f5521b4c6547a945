//! A copy of what matters of some objects, kept up to date by a watch.
//!
//! After any error it lists anew: that is the one way in which a recovery can be seen, and nothing is missed by it.

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
use crate::metrics::Metrics;
use crate::run::Readiness;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// `None` until the first list is complete: half of the policies are not what somebody asked for.
pub type Copied<K, V> = Option<Arc<BTreeMap<K, V>>>;

/// What is mirrored, and what is kept of each object.
pub struct Mirror<O, K, V> {
    /// Of [`Readiness`].
    pub part: &'static str,
    /// As a person calls it, such as `pods`.
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
    /// What there is now, for a single look.
    pub async fn once(&self) -> Result<BTreeMap<K, V>, kube::Error> {
        let parameters = ListParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            ..ListParams::default()
        };
        Ok(self.api.list(&parameters).await?.items.iter().map(self.keep).collect())
    }

    /// As the API server calls it, such as `pods`.
    fn resource(&self) -> &str {
        self.api.resource_url().rsplit_once('/').map_or("", |(_, resource)| resource)
    }

    /// Until nobody listens any more.
    pub async fn run(self, told: watch::Sender<Copied<K, V>>, readiness: Readiness, metrics: Arc<Metrics>) {
        let restarts = metrics.watch_restarts_total.with_label_values(&[self.resource()]);
        readiness.set(self.part, Some(format!("the {} have not been listed yet", self.what)));
        let mut pause = FIRST_PAUSE;
        while !told.is_closed() {
            let error = tokio::select! {
                error = self.follow(&told, &readiness, &mut pause) => error,
                () = told.closed() => return,
            };
            let code = code(&error);
            if code == Some(404) {
                // Where there is no such kind there is no such object.
                told.send_if_modified(|copied| copied.take().is_some());
            }
            let trouble = explain(self.what, self.api.resource_url(), code, &error);
            tracing::warn!(part = self.part, "{trouble}");
            readiness.set(self.part, Some(trouble));
            restarts.inc();
            sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until something fails.
    async fn follow(
        &self,
        told: &watch::Sender<Copied<K, V>>,
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
                    let complete = std::mem::take(&mut listed);
                    told.send_if_modified(|copied| {
                        let changed = copied.as_deref() != Some(&complete);
                        if changed {
                            *copied = Some(Arc::new(complete));
                        }
                        changed
                    });
                    readiness.set(self.part, None);
                    *pause = FIRST_PAUSE;
                }
                Some(Ok(Event::Apply(object))) => {
                    let (key, value) = (self.keep)(&object);
                    change(
                        told,
                        |all| all.get(&key) != Some(&value),
                        |all| drop(all.insert(key.clone(), value.clone())),
                    );
                }
                Some(Ok(Event::Delete(object))) => {
                    let (key, _) = (self.keep)(&object);
                    change(told, |all| all.contains_key(&key), |all| drop(all.remove(&key)));
                }
                Some(Err(error)) => return error,
                // The stream of a watcher does not end.
                None => return watcher::Error::NoResourceVersion,
            }
        }
    }
}

fn change<K: Ord + Clone, V: Clone>(
    told: &watch::Sender<Copied<K, V>>,
    differs: impl FnOnce(&BTreeMap<K, V>) -> bool,
    apply: impl FnOnce(&mut BTreeMap<K, V>),
) {
    told.send_if_modified(|copied| {
        // A watch begins where a list has ended.
        let Some(all) = copied.as_mut().filter(|all| differs(all)) else { return false };
        apply(Arc::make_mut(all));
        true
    });
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// What is missing, and who can help.
fn explain(what: &str, path: &str, code: Option<u16>, error: &watcher::Error) -> String {
    match code {
        // The kind may be known in another version.
        Some(404) => format!("the API server knows no {what} at `{path}`: apply the definitions in `crds/`"),
        Some(401) => format!("the API server does not accept the credential that the {what} are listed with"),
        Some(403) => format!("the API server does not let this account list and watch {what}: {ROLE_HINT}"),
        Some(410) => format!("the watch of the {what} was too old and begins anew"),
        Some(429) => format!("the API server is busy; the {what} are listed again soon"),
        _ => format!("the {what} cannot be watched: {error}"),
    }
}
