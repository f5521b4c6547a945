//! The targets, policies and namespaces that the control loop works with: from files, or from a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hush_core::{Labels, ModelPolicy};
use tokio::sync::{mpsc, watch};

use super::kubernetes::ClusterController;
use super::run::RunArgs;
use crate::act::{DryRunGate, Gate, OpenGate};
use crate::cluster::{Policies, ScopeGate};
use crate::control_loop::{LoopEvent, LoopSnapshot, Readiness};
use crate::lease::LeaderWatcher;
use crate::metrics::ControllerMetrics;
use crate::observe::Targets;
use crate::sources::{self, FileSource, PolicyFiles, TargetsFile};

/// How often the metrics and the readiness follow the right to act, which may end without an event.
const ACTING_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Where the control loop's inputs come from, and whether it may act on them.
pub struct ControlSources {
    pub targets: watch::Receiver<Arc<Targets>>,
    pub policies: watch::Receiver<Arc<Vec<ModelPolicy>>>,
    pub namespaces: watch::Receiver<Arc<BTreeMap<String, Labels>>>,
    pub gate: Arc<dyn Gate>,
    /// Takes what is reported as an Event; `None`: there are no Events.
    pub records: Option<mpsc::Sender<LoopEvent>>,
}

impl ControlSources {
    /// Reads the files of the options, and follows them from now on.
    pub fn watch_files(args: &RunArgs, metrics: &Arc<ControllerMetrics>) -> anyhow::Result<Self> {
        let (policy_files, targets_file) = (Arc::new(args.fleet.policies()), Arc::new(args.fleet.targets()));
        let policies = policy_files.read()?;
        let targets = targets_file.read()?;
        for source in [PolicyFiles::NAME, TargetsFile::NAME] {
            metrics.source_valid.with_label_values(&[source]).set(1);
        }
        tracing::info!(policies = policies.len(), targets = targets.len(), "policies and targets from files");

        let (policy_values, policies) = watch::channel(Arc::new(policies));
        let (target_values, targets) = watch::channel(Arc::new(targets));
        tokio::spawn(sources::follow(policy_files, policy_values, Arc::clone(metrics)));
        tokio::spawn(sources::follow(targets_file, target_values, Arc::clone(metrics)));

        let gate: Arc<dyn Gate> = if args.dry_run { Arc::new(DryRunGate) } else { Arc::new(OpenGate) };
        metrics.acting.set(i64::from(!args.dry_run));
        let namespaces = watch::channel(Arc::default()).1;
        Ok(Self { targets, policies, namespaces, gate, records: None })
    }

    /// Follows the API server. Unless `--dry-run` is given, also starts to report in Events and in the status of policies.
    pub fn watch_cluster(
        args: &RunArgs,
        cluster: &ClusterController,
        snapshots: watch::Receiver<Arc<LoopSnapshot>>,
        metrics: &Arc<ControllerMetrics>,
        readiness: &Readiness,
    ) -> Self {
        let sources = &cluster.sources;
        tokio::spawn(publish_invalid_policies(sources.objects.clone(), Arc::clone(metrics)));

        let (gate, records): (Arc<dyn Gate>, _) = if args.dry_run {
            (Arc::new(DryRunGate), None)
        } else {
            tokio::spawn(publish_acting(Arc::clone(&cluster.gate), Arc::clone(metrics), readiness.clone()));
            (cluster.gate.clone(), Some(cluster.start_reporting(snapshots, metrics, readiness)))
        };

        Self {
            targets: sources.targets.clone(),
            policies: sources.policies.clone(),
            namespaces: sources.namespaces.clone(),
            gate,
            records,
        }
    }
}

async fn publish_invalid_policies(mut objects: watch::Receiver<Policies>, metrics: Arc<ControllerMetrics>) {
    loop {
        let invalid = objects.borrow_and_update().values().filter(|object| object.policy.is_err()).count();
        metrics.policies_invalid.set(i64::try_from(invalid).unwrap_or(i64::MAX));

        if objects.changed().await.is_err() {
            return;
        }
    }
}

/// Shows in the metrics, the readiness and the log whether this controller acts. A claim ends by the passing of time, so that
/// it is checked at an interval.
async fn publish_acting(gate: Arc<ScopeGate>, metrics: Arc<ControllerMetrics>, readiness: Readiness) {
    let mut last_conflict = None;

    loop {
        let conflict = gate.conflicting_installation();
        if conflict != last_conflict {
            match &conflict {
                Some(reason) => tracing::warn!("{reason}"),
                None => tracing::info!("no other installation acts any more"),
            }
            last_conflict.clone_from(&conflict);
        }

        readiness.set("lease", conflict.or_else(|| gate.claim.last_error()));
        readiness.set("leases of controllers for more", gate.wider.iter().find_map(LeaderWatcher::last_error));
        metrics.acting.set(i64::from(gate.check_leadership().is_ok()));
        let transitions = gate.claim.leader_changes().saturating_sub(metrics.leader_transitions_total.get());
        metrics.leader_transitions_total.inc_by(transitions);

        tokio::time::sleep(ACTING_CHECK_INTERVAL).await;
    }
}
