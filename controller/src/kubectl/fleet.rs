//! The states of all controllers, merged. Several controllers may see the same servers and GPUs; each of these is taken
//! from the controller that would act on it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;

use super::client::{ControllerEndpoint, ControllerRequest, STATE_PATH};
use super::discovery::PluginContext;
use super::format::{count, terminal_line};
use super::response::{DecisionView, RawItem, RecordView, StateResponse};
use crate::web::view::{GpuView, ModelStateView, PolicyView, ServerView};

const CONCURRENT_REQUESTS: usize = 16;
/// An error about a name that does not exist lists at most this many names that do.
const LISTED_NAMES_MAX: usize = 10;

/// A controller that has responded.
#[derive(Clone)]
pub struct ControllerReport {
    pub controller: ControllerEndpoint,
    pub state: StateResponse,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetView {
    #[serde(skip)]
    pub reports: Vec<ControllerReport>,
    pub controllers: Vec<ControllerSummary>,
    pub gpus: Vec<RawItem<GpuView>>,
    pub servers: Vec<RawItem<ServerView>>,
    pub models: Vec<RawItem<ModelStateView>>,
    pub decisions: Vec<RawItem<DecisionView>>,
    pub policies: Vec<RawItem<PolicyView>>,
    /// The last commands of the controllers that act, oldest first.
    pub records: Vec<RawItem<RecordView>>,
    /// What controllers left out of their worlds, and the errors of controllers that did not respond.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ControllerSummary {
    pub name: String,
    pub version: String,
    pub acting: bool,
    pub actions: bool,
    pub at: Timestamp,
}

impl From<&ControllerReport> for ControllerSummary {
    fn from(ControllerReport { controller, state }: &ControllerReport) -> Self {
        Self {
            name: controller.name.clone(),
            version: state.version.clone(),
            acting: state.acting,
            actions: state.actions,
            at: state.at,
        }
    }
}

/// The best item of each name.
struct BestItems<'a, T, Rank> {
    by_name: BTreeMap<&'a str, (Rank, &'a RawItem<T>)>,
}

impl<'a, T: Clone, Rank: PartialOrd> BestItems<'a, T, Rank> {
    const fn new() -> Self {
        Self { by_name: BTreeMap::new() }
    }

    /// Keeps the first one of several items of the same rank.
    fn offer(&mut self, name: &'a str, rank: Rank, item: &'a RawItem<T>) {
        if self.by_name.get(name).is_none_or(|(known, _)| *known < rank) {
            self.by_name.insert(name, (rank, item));
        }
    }

    fn into_items(self) -> Vec<RawItem<T>> {
        self.by_name.into_values().map(|(_, item)| item.clone()).collect()
    }
}

impl FleetView {
    /// Finds all controllers and merges their states; an error when none responds.
    pub async fn load(context: &PluginContext) -> anyhow::Result<Self> {
        Self::fetch(&context.controllers().await?).await
    }

    /// Merges the states of these controllers; an error when none responds.
    pub async fn fetch(controllers: &[ControllerEndpoint]) -> anyhow::Result<Self> {
        let requests = controllers.iter().map(async |controller| {
            let state = controller.send::<StateResponse>(&ControllerRequest::get(STATE_PATH.to_owned())).await;
            (controller.clone(), state)
        });
        let responses: Vec<_> =
            futures_util::stream::iter(requests).buffer_unordered(CONCURRENT_REQUESTS).collect().await;

        let (mut reports, mut errors) = (Vec::new(), Vec::new());
        for (controller, state) in responses {
            match state {
                Ok(state) => reports.push(ControllerReport { controller, state }),
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors.sort();
        anyhow::ensure!(!reports.is_empty(), "{}", errors.join("\n"));

        Ok(Self::merge(reports, errors))
    }

    pub(super) fn merge(mut reports: Vec<ControllerReport>, errors: Vec<String>) -> Self {
        reports.sort_by(|a, b| a.controller.name.cmp(&b.controller.name));

        let mut problems: BTreeSet<String> = errors.into_iter().collect();
        let mut gpus = BestItems::new();
        let mut policies = BestItems::new();
        for ControllerReport { state, .. } in &reports {
            problems.extend(state.problems.iter().cloned());
            for gpu in &state.gpus {
                gpus.offer(&gpu.uuid, (state.acting, gpu.fresh), gpu);
            }
            for policy in &state.policies {
                policies.offer(&policy.name, state.acting, policy);
            }
        }

        let mut fleet = Self {
            reports: Vec::new(),
            controllers: reports.iter().map(ControllerSummary::from).collect(),
            gpus: gpus.into_items(),
            servers: Vec::new(),
            models: Vec::new(),
            decisions: Vec::new(),
            policies: policies.into_items(),
            records: Vec::new(),
            problems: problems.into_iter().collect(),
        };
        fleet.gpus.sort_by(|a, b| (&a.node, &a.uuid).cmp(&(&b.node, &b.uuid)));

        let servers: BTreeSet<&str> =
            reports.iter().flat_map(|report| &report.state.servers).map(|server| server.server.as_str()).collect();
        for server in servers {
            let Some(best) = rank_reports(&reports, server).next() else { continue };
            fleet.add_server(&best.state, server);
        }
        fleet.records.sort_by_key(|record| record.time);
        fleet.reports = reports;
        fleet
    }

    /// Takes a server, and everything that belongs to it, from one controller's state.
    fn add_server(&mut self, state: &StateResponse, server: &str) {
        self.servers.extend(state.servers.iter().filter(|other| other.server == server).cloned());
        self.models.extend(state.models.iter().filter(|model| model.server == server).cloned());
        self.decisions.extend(state.decisions.iter().filter(|decision| decision.server == server).cloned());
        self.records.extend(state.records.iter().filter(|record| record.server == server).cloned());
    }

    /// Keeps only the servers of this namespace, and what belongs to them; GPUs stay, since all namespaces share them.
    #[must_use]
    pub fn within(mut self, namespace: Option<&str>) -> Self {
        let Some(namespace) = namespace else { return self };

        self.servers.retain(|server| is_in_namespace(namespace, &server.server));
        self.models.retain(|model| is_in_namespace(namespace, &model.server));
        self.decisions.retain(|decision| is_in_namespace(namespace, &decision.server));
        self.records.retain(|record| is_in_namespace(namespace, &record.server));
        self
    }

    /// The controllers that know the server; the one that would act on it comes first.
    pub fn controllers_of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a ControllerReport> {
        rank_reports(&self.reports, server)
    }

    /// The controllers that come first for some server; without servers, one that acts, or else the first of all.
    pub fn leading(&self) -> Vec<&ControllerReport> {
        let servers: BTreeSet<&str> = self.servers.iter().map(|server| server.server.as_str()).collect();

        let mut indices: BTreeSet<usize> = BTreeSet::new();
        for server in servers {
            let first = self.controllers_of(server).next();
            indices.extend(first.and_then(|first| self.reports.iter().position(|other| std::ptr::eq(other, first))));
        }
        if indices.is_empty() {
            let acting = self.reports.iter().position(|report| report.state.acting);
            indices.extend(acting.or((!self.reports.is_empty()).then_some(0)));
        }
        indices.into_iter().map(|index| &self.reports[index]).collect()
    }

    /// The time of the figures of a server.
    pub fn as_of(&self, server: &str) -> Timestamp {
        self.controllers_of(server).next().map_or(Timestamp::UNIX_EPOCH, |report| report.state.at)
    }

    pub fn decision(&self, model: &ModelStateView) -> Option<&DecisionView> {
        let decision = self.decisions.iter().find(|d| d.server == model.server && d.model == model.model);
        decision.map(|decision| &**decision)
    }

    /// Servers by the name of a pod, as `POD`, `pod/POD` or `NAMESPACE/POD`, else those that have a model of this name.
    pub fn servers_named(&self, namespace: Option<&str>, target: &str) -> anyhow::Result<Vec<&str>> {
        let target = target.strip_prefix("pod/").or_else(|| target.strip_prefix("pods/")).unwrap_or(target);
        let is_inside = |server: &str| namespace.is_none_or(|namespace| is_in_namespace(namespace, server));

        let has_name = |server: &&str| {
            let pod = server.split_once('/').map(|(_, pod)| pod);
            *server == target || (is_inside(server) && pod == Some(target))
        };
        let pods: Vec<&str> = self.servers.iter().map(|server| server.server.as_str()).filter(has_name).collect();
        if !pods.is_empty() {
            return Ok(pods);
        }

        let with_model = self.models.iter().filter(|model| model.model == target && is_inside(&model.server));
        let servers: BTreeSet<&str> = with_model.map(|model| model.server.as_str()).collect();
        if servers.is_empty() {
            return Err(printable_error(&self.unknown_target(namespace, target)));
        }
        Ok(servers.into_iter().collect())
    }

    /// Models by the name of their pod or their own.
    pub fn models_named(
        &self,
        namespace: Option<&str>,
        target: &str,
        model: Option<&str>,
    ) -> anyhow::Result<Vec<&ModelStateView>> {
        let servers = self.servers_named(namespace, target)?;
        let found = self.models.iter().map(|model| &**model).filter(|m| servers.contains(&m.server.as_str()));
        let found: Vec<&ModelStateView> = found.collect();

        // The name of a pod takes precedence over that of a model: it then means all models of the pod.
        let is_pod = servers.iter().any(|server| server.rsplit('/').next() == target.rsplit('/').next());
        let Some(name) = model.or_else(|| (!is_pod).then_some(target)) else {
            if found.is_empty() {
                let message = format!("nothing is known yet of the models of {}", servers.join(", "));
                return Err(printable_error(&message));
            }
            return Ok(found);
        };

        let chosen: Vec<&ModelStateView> = found.iter().copied().filter(|model| model.model == name).collect();
        if chosen.is_empty() {
            let known: BTreeSet<&str> = found.iter().map(|model| model.model.as_str()).collect();
            let message = format!("{} has no model `{name}`; {}", servers.join(", "), list_names(known));
            return Err(printable_error(&message));
        }
        Ok(chosen)
    }

    /// A policy by `NAME`, `NAMESPACE/NAME`, or `/NAME` of the cluster kind.
    pub fn policy_named(&self, namespace: Option<&str>, name: &str) -> anyhow::Result<&str> {
        let names = self.policies.iter().map(|policy| policy.name.as_str());
        let has_name = |full: &str| match full.split_once('/') {
            _ if full == name => true,
            Some((own, short)) => short == name && namespace.is_none_or(|namespace| namespace == own),
            None => false,
        };

        let found: Vec<&str> = names.clone().filter(|full| has_name(full)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(printable_error(&format!("there is no policy `{name}`; {}", list_names(names.collect())))),
            several => Err(printable_error(&format!("several policies are called `{name}`: {}", several.join(", ")))),
        }
    }

    fn unknown_target(&self, namespace: Option<&str>, target: &str) -> String {
        let searched = namespace.map(|namespace| format!(" in the namespace `{namespace}`")).unwrap_or_default();
        let known = self.servers.iter().map(|server| server.server.as_str()).collect();

        format!(
            "no controller knows a server or a model `{target}`{searched}; a server's pod has the label \
             gpu.hush.dev/server=true; {}",
            list_names(known)
        )
    }

    /// Says which controllers act, such as `hush/c-0 acts`.
    pub fn acting_summary(&self) -> String {
        let acting: Vec<&str> = self.controllers.iter().filter(|c| c.acting).map(|c| c.name.as_str()).collect();
        match acting.as_slice() {
            [] => "none acts".to_owned(),
            [one] => format!("{one} acts"),
            several => format!("{} of them act", several.len()),
        }
    }
}

/// The controllers that know the server, the best first: one that acts before others, and of several that act the one in
/// the server's own pod, because no other acts while that one does.
fn rank_reports<'a>(reports: &'a [ControllerReport], server: &'a str) -> impl Iterator<Item = &'a ControllerReport> {
    let knows_server =
        move |report: &&'a ControllerReport| report.state.servers.iter().any(|other| other.server == server);
    let mut known: Vec<&ControllerReport> = reports.iter().filter(knows_server).collect();

    known.sort_by_key(|report| {
        let fresh = report.state.models.iter().any(|model| model.server == server && model.fresh);
        Reverse((report.state.acting, report.controller.name == server, fresh))
    });
    known.into_iter()
}

fn is_in_namespace(namespace: &str, server: &str) -> bool {
    server.split_once('/').is_some_and(|(own, _)| own == namespace)
}

/// An error about names that come from other programs, made safe for a terminal.
fn printable_error(text: &str) -> anyhow::Error {
    anyhow::anyhow!(terminal_line(text))
}

fn list_names(names: BTreeSet<&str>) -> String {
    let all = names.len();
    if all == 0 {
        return "there is none".to_owned();
    }

    let mut listed = names.into_iter().take(LISTED_NAMES_MAX).collect::<Vec<_>>().join(", ");
    if all > LISTED_NAMES_MAX {
        listed.push_str(&format!(", and {}", count(all - LISTED_NAMES_MAX, "other")));
    }
    format!("there are: {listed}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::HttpClient;
    use crate::kubectl::client::ControllerRoute;

    /// A controller whose models' skip reasons carry its name, with these fields of the state besides.
    fn report(name: &str, acting: bool, servers: &[&str], fields: Value) -> ControllerReport {
        let model = |server: &&str| {
            json!({"server": server, "model": "base", "gpu": "GPU-a", "state": "Ready", "generation": 1, "vramBytes": 3,
                "fresh": true, "why": [{"reason": name, "detail": ""}]})
        };
        let server = |server: &&str| json!({"server": server, "state": "answering", "unknown": 1});
        let mut state = json!({
            "at": "2026-01-01T00:00:00Z", "version": "1", "acting": acting, "actions": true,
            "gpus": [{"uuid": "GPU-a", "node": name, "totalBytes": 8, "oursBytes": 3, "othersBytes": 1, "freeBytes": 4,
                "fresh": true, "pressure": "None"}],
            "servers": servers.iter().map(server).collect::<Vec<_>>(),
            "models": servers.iter().map(model).collect::<Vec<_>>(),
        });
        for (key, value) in fields.as_object().unwrap() {
            state[key] = value.clone();
        }

        let route = ControllerRoute::Direct { client: HttpClient::new(None).unwrap(), url: "http://h".to_owned() };
        let controller = ControllerEndpoint { name: name.to_owned(), route, token_secret: None };
        ControllerReport { controller, state: serde_json::from_value(state).unwrap() }
    }

    fn names(reports: Vec<&ControllerReport>) -> Vec<&str> {
        reports.into_iter().map(|report| report.controller.name.as_str()).collect()
    }

    /// The controller that each model was taken from.
    fn origins(fleet: &FleetView) -> Vec<&str> {
        fleet.models.iter().map(|model| model.why[0].reason.as_str()).collect()
    }

    #[test]
    fn the_state_of_the_leader_counts_before_that_of_its_followers() {
        let record = json!({"time": "2026-01-01T00:00:00Z", "server": "m/w", "model": "base", "action": "Unload",
            "reason": "Manual", "outcome": "Withheld"});
        let follower = report("h/c-0", false, &["m/w"], json!({"records": [record]}));
        let leader = report("h/c-1", true, &["m/w"], json!({}));
        let fleet = FleetView::merge(vec![follower, leader], vec!["late".to_owned()]);

        assert_eq!((origins(&fleet), fleet.gpus[0].node.as_str()), (vec!["h/c-1"], "h/c-1"));
        assert!(fleet.records.is_empty(), "what a follower did not send is no news");
        assert_eq!(names(fleet.controllers_of("m/w").collect()), ["h/c-1", "h/c-0"]);
        assert_eq!(names(fleet.leading()), ["h/c-1"]);
        assert_eq!(fleet.acting_summary(), "h/c-1 acts");
        assert_eq!(fleet.problems, ["late"]);

        let json = serde_json::to_value(&fleet).unwrap();
        assert_eq!(json["servers"][0]["unknown"], 1, "what this plugin does not know is passed on");
        assert_eq!(json["controllers"][1]["acting"], true);
    }

    #[test]
    fn each_sidecar_counts_for_its_own_server_and_each_node_for_its_own() {
        let both = ["m/a", "m/b"];
        let sidecars = vec![report("m/b", true, &both, json!({})), report("m/a", true, &both, json!({}))];
        let fleet = FleetView::merge(sidecars, Vec::new());
        assert_eq!(origins(&fleet), ["m/a", "m/b"]);
        assert_eq!((names(fleet.leading()), fleet.acting_summary().as_str()), (vec!["m/a", "m/b"], "2 of them act"));

        // While the controller of the cluster leads, the sidecar does not act.
        let with_leader = vec![report("m/a", false, &both, json!({})), report("h/c", true, &both, json!({}))];
        let fleet = FleetView::merge(with_leader, Vec::new());
        assert_eq!(origins(&fleet), ["h/c", "h/c"]);

        let idle = FleetView::merge(vec![report("h/c", false, &[], json!({}))], Vec::new());
        assert_eq!((names(idle.leading()), idle.acting_summary().as_str()), (vec!["h/c"], "none acts"));
    }

    #[test]
    fn servers_and_models_by_name() {
        let fleet = FleetView::merge(vec![report("h/c", true, &["m/w-0", "m/w-1", "n/w-0"], json!({}))], Vec::new());
        let servers = |namespace, target| fleet.servers_named(namespace, target);

        assert_eq!(servers(Some("m"), "w-0").unwrap(), ["m/w-0"]);
        assert_eq!(servers(Some("m"), "pod/w-1").unwrap(), ["m/w-1"]);
        assert_eq!(servers(Some("m"), "n/w-0").unwrap(), ["n/w-0"], "a full name needs no namespace");
        assert_eq!(servers(None, "w-0").unwrap(), ["m/w-0", "n/w-0"]);
        assert_eq!(servers(Some("m"), "base").unwrap(), ["m/w-0", "m/w-1"]);
        let error = servers(Some("m"), "w-9").unwrap_err().to_string();
        assert!(error.contains("`w-9` in the namespace `m`") && error.contains("there are: m/w-0, m/w-1, n/w-0"));

        let within = fleet.clone().within(Some("n"));
        assert_eq!((within.servers.len(), within.models.len(), within.gpus.len()), (1, 1, 1));

        let models = |target, model| fleet.models_named(Some("m"), target, model).map(|models| models.len());
        assert_eq!(models("base", None).unwrap(), 2);
        assert_eq!(models("w-0", None).unwrap(), 1);
        assert_eq!(
            models("w-0", Some("large")).unwrap_err().to_string(),
            "m/w-0 has no model `large`; there are: base"
        );
    }

    #[test]
    fn policies_by_name() {
        let policies = json!({"policies": [{"name": "/floor"}, {"name": "m/idle"}, {"name": "n/idle"}]});
        let fleet = FleetView::merge(vec![report("h/c", true, &[], policies)], Vec::new());

        assert_eq!(fleet.policy_named(Some("m"), "idle").unwrap(), "m/idle");
        assert_eq!(fleet.policy_named(Some("m"), "/floor").unwrap(), "/floor");
        assert!(fleet.policy_named(None, "idle").unwrap_err().to_string().contains("several policies"));
        assert!(fleet.policy_named(None, "x").unwrap_err().to_string().contains("there are: /floor, m/idle, n/idle"));
    }
}
