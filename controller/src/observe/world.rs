//! From the samples of many servers to one world.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hush_core::{GpuId, Labels, Model, ModelKey, ServerName, World};

use super::reports::{self, Disputes, Judgement, OddReport, Report};
use super::sample::{GpuSample, ModelSample};
use super::store::Observation;
use super::target::{Target, Targets};

/// What else the world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub now: Instant,
    pub stale_after: Duration,
    /// Labels by namespace, for the cluster kind's namespace selector.
    pub namespaces: &'a BTreeMap<String, Labels>,
    pub trust: Trust,
}

/// Whose reports of a card count for the models of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The operator has named every server.
    AllTargets,
    /// A user who may create a pod in a namespace can have a server there.
    ByNamespace,
}

/// The world, and what is to be said of it.
#[derive(Debug)]
pub struct Assembled {
    pub world: World,
    /// What was left out, and why.
    pub problems: Vec<String>,
    /// Servers whose word on a card is older than another's and differs from it: worth asking before their turn.
    pub outdated: Vec<ServerName>,
    /// Servers that do not agree with others on a card.
    pub odd: Vec<OddReport>,
}

/// Reports of one card that differ by less say the same.
const NOTEWORTHY_BYTES: u64 = 64 << 20;

/// Puts the world together; [`super::reports`] says what counts of what several servers report of one card.
pub fn assemble(
    frame: &Frame<'_>,
    targets: &Targets,
    seen: &BTreeMap<ServerName, Observation>,
    disputes: &mut Disputes,
) -> Assembled {
    let mut models = Vec::new();
    let mut reports: BTreeMap<&GpuId, Vec<Report<'_>>> = BTreeMap::new();
    let (mut problems, mut outdated) = (Vec::new(), Vec::new());
    for (server, target) in targets {
        let Some((taken, sample)) = seen.get(server).and_then(|seen| seen.last.as_ref()) else { continue };
        let age = frame.now.saturating_duration_since(*taken);
        problems.extend(sample.problems.iter().map(|problem| format!("{server}: {problem}")));
        for (name, sample) in &sample.models {
            let key = ModelKey { server: server.clone(), model: name.clone() };
            models.push((target.node.as_str(), model(key, target, sample, age)));
        }
        for (uuid, gpu) in &sample.gpus {
            reports.entry(uuid).or_default().push(report(frame, server, target, gpu, age));
        }
    }

    let by_namespace = frame.trust == Trust::ByNamespace;
    let judgement = Judgement { now: frame.now, stale_after: frame.stale_after, compare_nodes: by_namespace };
    disputes.retain(|uuid| reports.contains_key(uuid));
    let (mut gpus, mut odd) = (BTreeMap::new(), Vec::new());
    for (uuid, reports) in reports {
        outdated.extend(behind(&reports).cloned());
        if let Some(card) = reports::merge(uuid, reports, judgement, disputes) {
            odd.extend(card.odd);
            gpus.insert(uuid, card.gpu);
        }
    }
    odd.sort();
    odd.dedup();
    problems.extend(odd.iter().map(|odd| odd.note.clone()).collect::<BTreeSet<_>>());

    let mut placed = Vec::with_capacity(models.len());
    for (node, mut model) in models {
        // A model is on no card of another node, whatever its server says.
        let card = model.gpu.as_ref().and_then(|uuid| gpus.get(uuid));
        if by_namespace && card.is_some_and(|card| !card.node.is_empty() && card.node != node) {
            model.gpu = None;
        }
        placed.push(model);
    }
    let world = World {
        stale_after: frame.stale_after,
        gpus: gpus.into_values().collect(),
        models: placed,
        namespaces: frame.namespaces.clone(),
    };
    Assembled { world, problems, outdated, odd }
}

fn behind<'a>(reports: &[Report<'a>]) -> impl Iterator<Item = &'a ServerName> {
    let newest = reports.iter().min_by_key(|report| report.age).map(|report| (report.age, report.used_bytes));
    let differs = move |report: &&Report<'a>| {
        newest.is_some_and(|(age, used)| report.age > age && report.used_bytes.abs_diff(used) > NOTEWORTHY_BYTES)
    };
    reports.iter().filter(differs).map(|report| report.server)
}

fn report<'a>(
    frame: &Frame<'_>,
    server: &'a ServerName,
    target: &'a Target,
    gpu: &GpuSample,
    age: Duration,
) -> Report<'a> {
    let trusted = match frame.trust {
        Trust::AllTargets => true,
        Trust::ByNamespace => reports::is_trusted(frame.namespaces.get(server.namespace()), &target.node),
    };
    // A card that does not answer has figures of unknown age.
    let age = if gpu.up { age.saturating_add(gpu.age) } else { Duration::MAX };
    Report { server, node: &target.node, trusted, total_bytes: gpu.total_bytes, used_bytes: gpu.used_bytes, age }
}

fn model(key: ModelKey, target: &Target, sample: &ModelSample, age: Duration) -> Model {
    Model {
        key,
        gpu: sample.gpu.clone(),
        labels: target.labels.clone(),
        state: sample.state,
        idle: sample.idle,
        idle_since: sample.idle_since,
        inflight: sample.inflight,
        queued: sample.queued,
        vram_bytes: sample.vram_bytes,
        generation: sample.generation,
        loaded_for: sample.loaded_for,
        reload: sample.reload,
        demand_bytes: sample.demand_bytes,
        sample_age: age,
        back_off: false,
        arrivals: sample.arrivals.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hush_core::State;

    use super::*;
    use crate::observe::{BaseUrl, Sample};

    const GIB: u64 = 1 << 30;

    struct Scene {
        targets: Targets,
        seen: BTreeMap<ServerName, Observation>,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { targets: Targets::new(), seen: BTreeMap::new(), now: Instant::now() + Duration::from_secs(3600) }
        }

        /// A server that saw GPU-1 so many seconds ago.
        fn server(mut self, name: &str, age_seconds: u64, total_gib: u64, used_gib: u64) -> Self {
            let server = ServerName(format!("a/{name}"));
            let target = Target { url: BaseUrl::http("h:1"), labels: Labels::new(), node: "n1".into(), audience: None };
            self.targets.insert(server.clone(), target);
            let gpu =
                GpuSample { total_bytes: total_gib * GIB, used_bytes: used_gib * GIB, age: Duration::ZERO, up: true };
            let model = ModelSample {
                state: State::Ready,
                idle: Duration::ZERO,
                idle_since: None,
                inflight: 0,
                queued: 0,
                generation: 1,
                gpu: Some("GPU-1".into()),
                vram_bytes: GIB,
                demand_bytes: 0,
                loaded_for: Duration::ZERO,
                reload: Duration::ZERO,
                hold: Duration::ZERO,
                arrivals: None,
            };
            let sample = Sample {
                models: BTreeMap::from([("m".to_owned(), model)]),
                gpus: BTreeMap::from([("GPU-1".into(), gpu)]),
                problems: Vec::new(),
            };
            let taken = self.now.checked_sub(Duration::from_secs(age_seconds)).unwrap();
            self.seen.insert(server, Observation { last: Some((taken, Arc::new(sample))), ..Observation::default() });
            self
        }

        fn assemble(&self) -> Assembled {
            let namespaces = BTreeMap::new();
            let trust = Trust::AllTargets;
            let frame = Frame { now: self.now, stale_after: Duration::from_secs(15), namespaces: &namespaces, trust };
            assemble(&frame, &self.targets, &self.seen, &mut Disputes::default())
        }
    }

    fn used(assembled: &Assembled) -> Vec<(u64, u64)> {
        assembled.world.gpus.iter().map(|gpu| (gpu.used_bytes / GIB, gpu.sample_age.as_secs())).collect()
    }

    #[test]
    fn one_card_seen_by_several_servers_is_one_card() {
        let world = Scene::new().server("x", 1, 8, 4).server("y", 2, 8, 4).assemble();
        assert_eq!(used(&world), [(4, 1)]);
        assert_eq!(world.world.models.len(), 2);
        assert!(world.outdated.is_empty() && world.problems.is_empty());
    }

    #[test]
    fn one_liar_makes_nobody_leave_and_of_three_hides_nothing() {
        assert_eq!(used(&Scene::new().server("x", 1, 8, 3).server("liar", 0, 8, 8).assemble()), [(3, 1)]);
        assert_eq!(
            used(&Scene::new().server("x", 1, 8, 7).server("y", 1, 8, 7).server("liar", 0, 8, 0).assemble()),
            [(7, 1)]
        );
    }

    #[test]
    fn a_report_that_is_behind_is_asked_for_again() {
        let world = Scene::new().server("x", 1, 8, 3).server("y", 0, 8, 7).assemble();
        assert_eq!(world.outdated, ["a/x".into()]);
    }

    #[test]
    fn stale_reports_count_only_when_there_is_no_fresh_one() {
        assert_eq!(used(&Scene::new().server("x", 16, 8, 3).server("y", 1, 8, 7).assemble()), [(7, 1)]);
        assert_eq!(used(&Scene::new().server("x", 16, 8, 3).server("y", 20, 8, 3).assemble()), [(3, 16)]);
    }

    #[test]
    fn a_card_on_whose_size_nobody_agrees_is_left_alone() {
        let world = Scene::new().server("x", 1, 8, 3).server("y", 1, 80, 3).assemble();
        assert!(world.world.gpus[0].disputed);
        assert!(world.problems[0].contains("do not agree on its size"), "{:?}", world.problems);
        assert_eq!(world.world.models.len(), 2, "its models are shown all the same");
    }

    /// Servers of a cluster: `namespace/pod`, its node, what it says is used and how big the card is.
    struct ClusterScene {
        scene: Scene,
        namespaces: BTreeMap<String, Labels>,
        disputes: Disputes,
    }

    impl ClusterScene {
        fn new(servers: &[(&str, &str, u64, u64)]) -> Self {
            let mut scene = Scene::new();
            for (server, node, used_gib, total_gib) in servers {
                scene = scene.server("made", 1, *total_gib, *used_gib);
                let (made, name) = (ServerName::from("a/made"), ServerName::from(*server));
                let (mut target, seen) = (scene.targets.remove(&made).unwrap(), scene.seen.remove(&made).unwrap());
                target.node = (*node).to_owned();
                scene.targets.insert(name.clone(), target);
                scene.seen.insert(name, seen);
            }
            Self { scene, namespaces: BTreeMap::new(), disputes: Disputes::default() }
        }

        fn trusting(mut self, namespace: &str, value: &str) -> Self {
            let labels = Labels::from([(reports::TRUSTED_LABEL.to_owned(), value.to_owned())]);
            self.namespaces.insert(namespace.to_owned(), labels);
            self
        }

        fn look(&mut self, after: Duration) -> Assembled {
            let now = self.scene.now + after;
            // Every server is seen anew.
            for seen in self.scene.seen.values_mut() {
                let (_, sample) = seen.last.clone().unwrap();
                seen.last = Some((now.checked_sub(Duration::from_secs(1)).unwrap(), sample));
            }
            let trust = Trust::ByNamespace;
            let frame = Frame { now, stale_after: Duration::from_secs(15), namespaces: &self.namespaces, trust };
            assemble(&frame, &self.scene.targets, &self.scene.seen, &mut self.disputes)
        }

        /// What is used, in GiB, whether the card is disputed, and who is odd.
        fn at_last(&mut self) -> (u64, bool, Vec<String>) {
            self.look(Duration::ZERO);
            let looked = self.look(Duration::from_secs(11));
            let card = &looked.world.gpus[0];
            let odd = looked.odd.iter().map(|odd| odd.server.to_string()).collect();
            (card.used_bytes / GIB, card.disputed, odd)
        }
    }

    #[test]
    fn the_servers_of_one_namespace_do_not_make_a_card_full() {
        let fakes = [("a/victim", "n1", 3, 8), ("e/1", "n1", 8, 8), ("e/2", "n1", 8, 8), ("e/3", "n1", 8, 8)];
        let mut scene = ClusterScene::new(&fakes);
        let first = scene.look(Duration::ZERO);
        assert_eq!((first.world.gpus[0].used_bytes / GIB, first.world.gpus[0].disputed), (3, false));
        assert!(first.odd.is_empty(), "reports are made at different times");
        let (used, disputed, odd) = scene.at_last();
        assert_eq!((used, disputed), (3, true));
        assert_eq!(odd, ["a/victim", "e/1", "e/2", "e/3"], "of two that differ, both");

        let mut three = ClusterScene::new(&[("a/x", "n1", 3, 8), ("b/x", "n1", 3, 8), ("e/1", "n1", 8, 8)]);
        assert_eq!(three.at_last(), (3, true, vec!["e/1".to_owned()]));
        let mut agreed = ClusterScene::new(&[("a/x", "n1", 7, 8), ("b/x", "n1", 7, 8)]);
        assert_eq!(agreed.at_last(), (7, false, Vec::new()));
    }

    #[test]
    fn where_the_operator_trusts_a_namespace_its_reports_alone_count() {
        let servers = [("a/x", "n1", 3, 8), ("e/1", "n1", 8, 8), ("e/2", "n1", 8, 8)];
        for value in ["true", "n1"] {
            let mut scene = ClusterScene::new(&servers).trusting("a", value);
            assert_eq!(scene.at_last(), (3, false, vec!["e/1".to_owned(), "e/2".to_owned()]), "{value}");
        }
        let (_, disputed, _) = ClusterScene::new(&servers).trusting("a", "n2").at_last();
        assert!(disputed, "trusted for another node");
        let (_, disputed, _) =
            ClusterScene::new(&[("a/x", "n1", 3, 8), ("e/1", "n2", 8, 80)]).trusting("a", "true").at_last();
        assert!(!disputed, "neither node nor size of another count");
    }

    #[test]
    fn a_report_counts_only_from_the_node_of_the_card() {
        let servers = [("a/x", "n1", 7, 8), ("b/x", "n1", 7, 8), ("e/1", "n2", 0, 8), ("e/2", "n2", 0, 8)];
        let looked = ClusterScene::new(&servers).look(Duration::ZERO);
        let card = &looked.world.gpus[0];
        assert_eq!((card.used_bytes / GIB, card.disputed, card.node.as_str()), (7, false, "n1"));
        let odd: Vec<&str> = looked.odd.iter().map(|odd| odd.server.as_str()).collect();
        assert_eq!(odd, ["e/1", "e/2"]);
        let on_card = |model: &&Model| model.gpu.is_some();
        let on_card: Vec<&str> = looked.world.models.iter().filter(on_card).map(|m| m.key.server.as_str()).collect();
        assert_eq!(on_card, ["a/x", "b/x"], "a model is on no card of another node");

        let tie = ClusterScene::new(&[("a/x", "n1", 3, 8), ("e/1", "n2", 8, 8)]).look(Duration::ZERO);
        assert!(tie.world.gpus[0].disputed);
        assert!(!tie.odd.is_empty());
    }

    #[test]
    fn a_size_on_which_namespaces_differ_is_disputed_at_once() {
        let servers = [("a/x", "n1", 3, 8), ("b/x", "n1", 3, 8), ("e/1", "n1", 79, 80)];
        let looked = ClusterScene::new(&servers).look(Duration::ZERO);
        assert!(looked.world.gpus[0].disputed);
        assert_eq!(looked.odd.iter().map(|odd| odd.server.as_str()).collect::<Vec<_>>(), ["e/1"]);
    }
}
