//! Assembles the samples of many servers into one world.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use hush_contract::WHISPER;
use hush_core::{GpuId, Labels, ModelKey, ObservedModel, ProcessEnding, ServerName, World};

use super::app_sample::AppProblem;
use super::reports::{self, DisagreeingReport, DisputeTracker, GpuReport, MergeSettings};
use super::sample::{GpuSample, ServerSample};
use super::store::Observation;
use super::target::{ScrapeTarget, Targets};

/// What the world is made of beside the samples.
#[derive(Clone, Copy, Debug)]
pub struct AssemblyContext<'a> {
    pub now: Instant,
    pub stale_after: Duration,
    /// Labels by namespace, for the namespace selector of cluster policies.
    pub namespaces: &'a BTreeMap<String, Labels>,
    pub trust: ReportTrust,
}

/// Which servers' reports on a GPU count for the models of other servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportTrust {
    /// All of them: the operator has named every server.
    AllTargets,
    /// By namespace: a user who may create a pod in a namespace can have a server there.
    ByNamespace,
}

/// The assembled world, and what users should know about it.
#[derive(Debug)]
pub struct AssembledWorld {
    pub world: World,
    /// What was left out, and why.
    pub problems: Vec<String>,
    /// Servers whose report on a GPU is older than another report and differs from it: they are worth a scrape before their
    /// turn.
    pub outdated: Vec<ServerName>,
    /// Servers whose reports on a GPU disagree with those of others.
    pub disagreeing: Vec<DisagreeingReport>,
    /// What sidecars report of apps that they cannot govern, by server.
    pub app_problems: Vec<ServerAppProblem>,
}

/// A sidecar and a problem with its app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAppProblem {
    pub server: ServerName,
    /// The name of the app.
    pub app: String,
    pub problem: AppProblem,
}

impl fmt::Display for ServerAppProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.server, self.app, self.problem.text)
    }
}

/// Reports on one GPU agree when their used memory differs by at most this much.
const SAME_USED_BYTES: u64 = 64 << 20;

/// Assembles the world. Where several servers report the same GPU, [`super::reports`] merges their reports.
pub fn assemble(
    context: &AssemblyContext<'_>,
    targets: &Targets,
    seen: &BTreeMap<ServerName, Observation>,
    disputes: &mut DisputeTracker,
) -> AssembledWorld {
    let mut models_by_node = Vec::new();
    let mut reports: BTreeMap<&GpuId, Vec<GpuReport<'_>>> = BTreeMap::new();
    let mut problems = Vec::new();
    let mut app_problems = Vec::new();
    for (server, target) in targets {
        let Some((taken, sample)) = seen.get(server).and_then(|seen| seen.last.as_ref()) else { continue };
        let age = context.now.saturating_duration_since(*taken);
        problems.extend(sample.problems.iter().map(|problem| format!("{server}: {problem}")));

        app_problems.extend(server_app_problems(server, sample));
        let app = sample.app.as_ref().map_or(WHISPER, |app| app.name.as_str());
        // Each unload of hush-server ends the process of the model.
        let process_ending = sample.app.as_ref().map_or(ProcessEnding::Always, |app| app.process_ending);
        for (name, sample) in &sample.models {
            let key = ModelKey { server: server.clone(), model: name.clone() };
            let model = ObservedModel {
                key,
                app: app.to_owned(),
                process_ending,
                labels: target.labels.clone(),
                sample: sample.clone(),
                sample_age: age,
                back_off: false,
            };
            models_by_node.push((target.node.as_str(), model));
        }
        for (uuid, gpu) in &sample.gpus {
            reports.entry(uuid).or_default().push(report(context, server, target, gpu, age));
        }
    }

    problems.extend(app_problems.iter().map(ToString::to_string));

    let by_namespace = context.trust == ReportTrust::ByNamespace;
    let settings = MergeSettings { now: context.now, stale_after: context.stale_after, compare_nodes: by_namespace };
    disputes.retain(|uuid| reports.contains_key(uuid));

    let mut gpus = BTreeMap::new();
    let (mut outdated, mut disagreeing) = (Vec::new(), Vec::new());
    for (uuid, reports) in reports {
        outdated.extend(outdated_servers(&reports).cloned());
        if let Some(merged) = reports::merge(uuid, reports, settings, disputes) {
            disagreeing.extend(merged.disagreeing);
            gpus.insert(uuid, merged.gpu);
        }
    }
    disagreeing.sort();
    disagreeing.dedup();
    problems.extend(disagreeing.iter().map(|report| report.note.clone()).collect::<BTreeSet<_>>());

    let mut models = Vec::with_capacity(models_by_node.len());
    for (node, mut model) in models_by_node {
        // A model is never on a GPU of another node, whatever its server reports.
        let gpu = model.sample.gpu.as_ref().and_then(|uuid| gpus.get(uuid));
        if by_namespace && gpu.is_some_and(|gpu| !gpu.node.is_empty() && gpu.node != node) {
            model.sample.gpu = None;
        }
        models.push(model);
    }

    let world = World {
        stale_after: context.stale_after,
        gpus: gpus.into_values().collect(),
        models,
        namespaces: context.namespaces.clone(),
    };
    AssembledWorld { world, problems, outdated, disagreeing, app_problems }
}

/// The servers whose report is older than the newest one and differs from it.
fn outdated_servers<'a>(reports: &[GpuReport<'a>]) -> impl Iterator<Item = &'a ServerName> {
    let newest = reports.iter().min_by_key(|report| report.age).map(|report| (report.age, report.used_bytes));
    let is_outdated = move |report: &&GpuReport<'a>| {
        newest.is_some_and(|(age, used)| report.age > age && report.used_bytes.abs_diff(used) > SAME_USED_BYTES)
    };
    reports.iter().filter(is_outdated).map(|report| report.server)
}

fn report<'a>(
    context: &AssemblyContext<'_>,
    server: &'a ServerName,
    target: &'a ScrapeTarget,
    gpu: &GpuSample,
    age: Duration,
) -> GpuReport<'a> {
    let is_trusted = match context.trust {
        ReportTrust::AllTargets => true,
        ReportTrust::ByNamespace => reports::is_trusted(context.namespaces.get(server.namespace()), &target.node),
    };
    // The figures of a GPU that does not answer are of unknown age.
    let age = if gpu.up { age.saturating_add(gpu.age) } else { Duration::MAX };

    GpuReport { server, node: &target.node, is_trusted, total_bytes: gpu.total_bytes, used_bytes: gpu.used_bytes, age }
}

fn server_app_problems<'a>(
    server: &'a ServerName,
    sample: &'a ServerSample,
) -> impl Iterator<Item = ServerAppProblem> + 'a {
    sample.app.iter().flat_map(move |app| {
        app.problems.iter().map(move |problem| ServerAppProblem {
            server: server.clone(),
            app: app.name.clone(),
            problem: problem.clone(),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hush_core::{ModelSample, ResidencyState};

    use super::*;
    use crate::observe::{AppProblemKind, AppSample, BaseUrl, ServerSample};

    const GIB: u64 = 1 << 30;

    struct ReportFixture {
        targets: Targets,
        seen: BTreeMap<ServerName, Observation>,
        now: Instant,
    }

    impl ReportFixture {
        fn new() -> Self {
            Self { targets: Targets::new(), seen: BTreeMap::new(), now: Instant::now() + Duration::from_secs(3600) }
        }

        /// Adds a server that sampled GPU-1 this many seconds ago.
        fn server(mut self, name: &str, age_seconds: u64, total_gib: u64, used_gib: u64) -> Self {
            let server = ServerName(format!("a/{name}"));
            let target =
                ScrapeTarget { url: BaseUrl::http("h:1"), labels: Labels::new(), node: "n1".into(), audience: None };
            self.targets.insert(server.clone(), target);

            let gpu =
                GpuSample { total_bytes: total_gib * GIB, used_bytes: used_gib * GIB, age: Duration::ZERO, up: true };
            let model = ModelSample {
                state: ResidencyState::Ready,
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

            let sample = ServerSample {
                models: BTreeMap::from([("m".to_owned(), model)]),
                gpus: BTreeMap::from([("GPU-1".into(), gpu)]),
                app: None,
                problems: Vec::new(),
            };

            let taken = self.now.checked_sub(Duration::from_secs(age_seconds)).unwrap();
            self.seen.insert(server, Observation { last: Some((taken, Arc::new(sample))), ..Observation::default() });
            self
        }

        fn assemble(&self) -> AssembledWorld {
            let namespaces = BTreeMap::new();
            let trust = ReportTrust::AllTargets;
            let context =
                AssemblyContext { now: self.now, stale_after: Duration::from_secs(15), namespaces: &namespaces, trust };
            assemble(&context, &self.targets, &self.seen, &mut DisputeTracker::default())
        }
    }

    fn used(assembled: &AssembledWorld) -> Vec<(u64, u64)> {
        assembled.world.gpus.iter().map(|gpu| (gpu.used_bytes / GIB, gpu.sample_age.as_secs())).collect()
    }

    #[test]
    fn a_gpu_that_several_servers_report_is_one_gpu() {
        let world = ReportFixture::new().server("x", 1, 8, 4).server("y", 2, 8, 4).assemble();
        assert_eq!(used(&world), [(4, 1)]);
        assert_eq!(world.world.models.len(), 2);
        assert!(world.outdated.is_empty() && world.problems.is_empty());
    }

    #[test]
    fn a_single_false_report_neither_fills_a_gpu_nor_hides_its_use_from_two_others() {
        assert_eq!(used(&ReportFixture::new().server("x", 1, 8, 3).server("false", 0, 8, 8).assemble()), [(3, 1)]);
        assert_eq!(
            used(&ReportFixture::new().server("x", 1, 8, 7).server("y", 1, 8, 7).server("false", 0, 8, 0).assemble()),
            [(7, 1)]
        );
    }

    #[test]
    fn a_server_with_an_outdated_report_is_scraped_again() {
        let world = ReportFixture::new().server("x", 1, 8, 3).server("y", 0, 8, 7).assemble();
        assert_eq!(world.outdated, ["a/x".into()]);
    }

    #[test]
    fn a_model_of_a_sidecar_has_the_kind_of_its_app_and_the_app_s_problem_names_the_server() {
        let mut fixture = ReportFixture::new().server("speech", 1, 8, 4).server("chat", 1, 8, 4);
        let problem = AppProblem { kind: AppProblemKind::Unsuitable, text: "set OLLAMA_KEEP_ALIVE=-1".to_owned() };
        let app = AppSample {
            name: "ollama".to_owned(),
            version: String::new(),
            process_ending: ProcessEnding::OnRequest,
            problems: vec![problem.clone()],
        };
        let (taken, sample) = fixture.seen[&"a/chat".into()].last.clone().unwrap();
        let sample = ServerSample { app: Some(app), ..ServerSample::clone(&sample) };
        fixture.seen.get_mut(&"a/chat".into()).unwrap().last = Some((taken, Arc::new(sample)));

        let assembled = fixture.assemble();
        let apps: Vec<_> = assembled.world.models.iter().map(|m| (m.key.server.as_str(), m.app.as_str())).collect();
        assert_eq!(apps, [("a/chat", "ollama"), ("a/speech", "whisper")]);
        let endings: Vec<_> = assembled.world.models.iter().map(|model| model.process_ending).collect();
        assert_eq!(endings, [ProcessEnding::OnRequest, ProcessEnding::Always]);
        assert_eq!(
            assembled.app_problems,
            [ServerAppProblem { server: "a/chat".into(), app: "ollama".to_owned(), problem }]
        );
        assert_eq!(assembled.problems, ["a/chat (ollama): set OLLAMA_KEEP_ALIVE=-1"]);
    }

    #[test]
    fn stale_reports_count_only_when_there_is_no_fresh_one() {
        assert_eq!(used(&ReportFixture::new().server("x", 16, 8, 3).server("y", 1, 8, 7).assemble()), [(7, 1)]);
        assert_eq!(used(&ReportFixture::new().server("x", 16, 8, 3).server("y", 20, 8, 3).assemble()), [(3, 16)]);
    }

    #[test]
    fn a_gpu_on_whose_size_servers_disagree_is_left_alone() {
        let world = ReportFixture::new().server("x", 1, 8, 3).server("y", 1, 80, 3).assemble();
        assert!(world.world.gpus[0].disputed);
        assert!(world.problems[0].contains("do not agree on its size"), "{:?}", world.problems);
        assert_eq!(world.world.models.len(), 2, "its models are shown all the same");
    }

    /// Servers of a cluster, each as `namespace/pod`, its node, and the used and total GiB that it reports.
    struct ClusterReportFixture {
        fixture: ReportFixture,
        namespaces: BTreeMap<String, Labels>,
        disputes: DisputeTracker,
    }

    impl ClusterReportFixture {
        fn new(servers: &[(&str, &str, u64, u64)]) -> Self {
            let mut fixture = ReportFixture::new();
            for (server, node, used_gib, total_gib) in servers {
                fixture = fixture.server("made", 1, *total_gib, *used_gib);
                let (made, name) = (ServerName::from("a/made"), ServerName::from(*server));
                let (mut target, seen) = (fixture.targets.remove(&made).unwrap(), fixture.seen.remove(&made).unwrap());

                target.node = (*node).to_owned();
                fixture.targets.insert(name.clone(), target);
                fixture.seen.insert(name, seen);
            }
            Self { fixture, namespaces: BTreeMap::new(), disputes: DisputeTracker::default() }
        }

        fn trusting(mut self, namespace: &str, value: &str) -> Self {
            let labels = Labels::from([(reports::TRUSTED_LABEL.to_owned(), value.to_owned())]);
            self.namespaces.insert(namespace.to_owned(), labels);
            self
        }

        fn assemble_after(&mut self, after: Duration) -> AssembledWorld {
            let now = self.fixture.now + after;
            // Every server has a new sample.
            for seen in self.fixture.seen.values_mut() {
                let (_, sample) = seen.last.clone().unwrap();
                seen.last = Some((now.checked_sub(Duration::from_secs(1)).unwrap(), sample));
            }

            let trust = ReportTrust::ByNamespace;
            let context =
                AssemblyContext { now, stale_after: Duration::from_secs(15), namespaces: &self.namespaces, trust };
            assemble(&context, &self.fixture.targets, &self.fixture.seen, &mut self.disputes)
        }

        /// After the time from which a difference makes a GPU disputed: the used GiB, whether the GPU is disputed, and the
        /// servers that disagree.
        fn after_a_while(&mut self) -> (u64, bool, Vec<String>) {
            self.assemble_after(Duration::ZERO);
            let assembled = self.assemble_after(Duration::from_secs(11));
            let gpu = &assembled.world.gpus[0];
            let servers = assembled.disagreeing.iter().map(|report| report.server.to_string()).collect();
            (gpu.used_bytes / GIB, gpu.disputed, servers)
        }
    }

    #[test]
    fn the_servers_of_one_namespace_do_not_make_a_gpu_full() {
        let servers = [("a/victim", "n1", 3, 8), ("e/1", "n1", 8, 8), ("e/2", "n1", 8, 8), ("e/3", "n1", 8, 8)];
        let mut fixture = ClusterReportFixture::new(&servers);
        let first = fixture.assemble_after(Duration::ZERO);
        assert_eq!((first.world.gpus[0].used_bytes / GIB, first.world.gpus[0].disputed), (3, false));
        assert!(first.disagreeing.is_empty(), "reports are made at different times");

        let (used, disputed, disagreeing) = fixture.after_a_while();
        assert_eq!((used, disputed), (3, true));
        assert_eq!(disagreeing, ["a/victim", "e/1", "e/2", "e/3"], "where two domains differ, both are named");

        let mut three = ClusterReportFixture::new(&[("a/x", "n1", 3, 8), ("b/x", "n1", 3, 8), ("e/1", "n1", 8, 8)]);
        assert_eq!(three.after_a_while(), (3, true, vec!["e/1".to_owned()]));
        let mut agreed = ClusterReportFixture::new(&[("a/x", "n1", 7, 8), ("b/x", "n1", 7, 8)]);
        assert_eq!(agreed.after_a_while(), (7, false, Vec::new()));
    }

    #[test]
    fn where_the_operator_trusts_a_namespace_only_its_reports_count() {
        let servers = [("a/x", "n1", 3, 8), ("e/1", "n1", 8, 8), ("e/2", "n1", 8, 8)];
        for value in ["true", "n1"] {
            let mut fixture = ClusterReportFixture::new(&servers).trusting("a", value);
            assert_eq!(fixture.after_a_while(), (3, false, vec!["e/1".to_owned(), "e/2".to_owned()]), "{value}");
        }

        let (_, disputed, _) = ClusterReportFixture::new(&servers).trusting("a", "n2").after_a_while();
        assert!(disputed, "trusted for another node");
        let (_, disputed, _) = ClusterReportFixture::new(&[("a/x", "n1", 3, 8), ("e/1", "n2", 8, 80)])
            .trusting("a", "true")
            .after_a_while();
        assert!(!disputed, "neither node nor size of another count");
    }

    #[test]
    fn a_report_counts_only_from_the_node_of_the_gpu() {
        let servers = [("a/x", "n1", 7, 8), ("b/x", "n1", 7, 8), ("e/1", "n2", 0, 8), ("e/2", "n2", 0, 8)];
        let assembled = ClusterReportFixture::new(&servers).assemble_after(Duration::ZERO);
        let gpu = &assembled.world.gpus[0];
        assert_eq!((gpu.used_bytes / GIB, gpu.disputed, gpu.node.as_str()), (7, false, "n1"));

        let disagreeing: Vec<&str> = assembled.disagreeing.iter().map(|report| report.server.as_str()).collect();
        assert_eq!(disagreeing, ["e/1", "e/2"]);
        let models_on_gpu = assembled.world.models.iter().filter(|model| model.sample.gpu.is_some());
        let servers_on_gpu: Vec<&str> = models_on_gpu.map(|model| model.key.server.as_str()).collect();
        assert_eq!(servers_on_gpu, ["a/x", "b/x"], "a model is on no GPU of another node");

        let tie = ClusterReportFixture::new(&[("a/x", "n1", 3, 8), ("e/1", "n2", 8, 8)]).assemble_after(Duration::ZERO);
        assert!(tie.world.gpus[0].disputed);
        assert!(!tie.disagreeing.is_empty());
    }

    #[test]
    fn a_size_on_which_namespaces_differ_is_disputed_at_once() {
        let servers = [("a/x", "n1", 3, 8), ("b/x", "n1", 3, 8), ("e/1", "n1", 79, 80)];
        let assembled = ClusterReportFixture::new(&servers).assemble_after(Duration::ZERO);
        assert!(assembled.world.gpus[0].disputed);
        let disagreeing: Vec<&str> = assembled.disagreeing.iter().map(|report| report.server.as_str()).collect();
        assert_eq!(disagreeing, ["e/1"]);
    }
}
