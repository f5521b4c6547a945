//! From the samples of many servers to one world.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hush_core::{Gpu, GpuId, Labels, Model, ModelKey, ServerName, World};

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
}

/// A card as one server reports it.
struct Report<'a> {
    server: &'a ServerName,
    node: &'a str,
    total_bytes: u64,
    used_bytes: u64,
    age: Duration,
}

/// The world, and what is to be said of it.
#[derive(Debug)]
pub struct Assembled {
    pub world: World,
    /// What was left out, and why.
    pub problems: Vec<String>,
    /// Servers whose word on a card is older than another's and differs from it: worth asking before their turn.
    pub outdated: Vec<ServerName>,
}

/// Reports of one card that differ by less say the same.
const NOTEWORTHY_BYTES: u64 = 64 << 20;

/// Puts the world together.
///
/// Several servers see one card. If they do not agree on its size, one of them is wrong, and the card is left out: no
/// decision rests on it. Of what they say is used, the lower median of the fresh reports counts, so that no single
/// server can make another's model leave, and of many none can hide a pressure.
pub fn assemble(
    frame: &Frame<'_>,
    targets: &Targets,
    seen: &BTreeMap<ServerName, Observation>,
    backs_off: impl Fn(&ModelKey) -> bool,
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
            let back_off = backs_off(&key);
            models.push(model(key, target, sample, age, back_off));
        }
        for (uuid, gpu) in &sample.gpus {
            reports.entry(uuid).or_default().push(report(server, target, gpu, age));
        }
    }
    let mut gpus = Vec::with_capacity(reports.len());
    for (uuid, reports) in reports {
        outdated.extend(behind(&reports).cloned());
        match agree(uuid, reports, frame.stale_after) {
            Ok(gpu) => gpus.push(gpu),
            Err(problem) => problems.push(problem),
        }
    }
    let world = World { stale_after: frame.stale_after, gpus, models, namespaces: frame.namespaces.clone() };
    Assembled { world, problems, outdated }
}

fn behind<'a>(reports: &[Report<'a>]) -> impl Iterator<Item = &'a ServerName> {
    let newest = reports.iter().min_by_key(|report| report.age).map(|report| (report.age, report.used_bytes));
    let differs = move |report: &&Report<'a>| {
        newest.is_some_and(|(age, used)| report.age > age && report.used_bytes.abs_diff(used) > NOTEWORTHY_BYTES)
    };
    reports.iter().filter(differs).map(|report| report.server)
}

fn report<'a>(server: &'a ServerName, target: &'a Target, gpu: &GpuSample, age: Duration) -> Report<'a> {
    // A card that does not answer has figures of unknown age.
    let age = if gpu.up { age.saturating_add(gpu.age) } else { Duration::MAX };
    Report { server, node: &target.node, total_bytes: gpu.total_bytes, used_bytes: gpu.used_bytes, age }
}

fn agree(uuid: &GpuId, reports: Vec<Report<'_>>, stale_after: Duration) -> Result<Gpu, String> {
    let fresh = reports.iter().any(|report| report.age <= stale_after);
    let mut reports: Vec<_> = reports.into_iter().filter(|report| !fresh || report.age <= stale_after).collect();
    reports.sort_by_key(|report| (report.used_bytes, report.age));
    if let Some(pair) = reports.windows(2).find(|pair| pair[0].total_bytes != pair[1].total_bytes) {
        let [one, other] = [&pair[0], &pair[1]].map(|report| format!("{} by {}", report.total_bytes, report.server));
        return Err(format!(
            "GPU {uuid}: its servers do not agree on its size: {one}, {other} bytes; it is left alone"
        ));
    }
    let middle = reports.get(reports.len().saturating_sub(1) / 2).ok_or_else(|| format!("GPU {uuid}: no report"))?;
    Ok(Gpu {
        uuid: uuid.clone(),
        node: middle.node.to_owned(),
        total_bytes: middle.total_bytes,
        used_bytes: middle.used_bytes,
        sample_age: middle.age,
    })
}

fn model(key: ModelKey, target: &Target, sample: &ModelSample, age: Duration, back_off: bool) -> Model {
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
        back_off,
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
            let target = Target { url: BaseUrl::http("h:1"), labels: Labels::new(), node: "n1".into() };
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
            let frame = Frame { now: self.now, stale_after: Duration::from_secs(15), namespaces: &namespaces };
            assemble(&frame, &self.targets, &self.seen, |_| false)
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
        assert!(world.world.gpus.is_empty());
        assert!(world.problems[0].contains("do not agree on its size"), "{:?}", world.problems);
        assert_eq!(world.world.models.len(), 2, "its models are shown all the same");
    }
}
