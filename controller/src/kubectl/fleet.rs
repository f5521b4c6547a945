//! The states of all controllers as one. Several look at the same servers and cards: of each, the word of the one that
//! would act on it counts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Serialize;

use super::find::Place;
use super::read::{Decision, Gpu, Item, Model, Policy, Record, Server, State};
use super::wire::{Ask, Controller, STATE};
use super::words::{count, plain};

const AT_ONCE: usize = 16;
/// More help nobody who has mistyped a name.
const NAMED: usize = 10;

/// A controller that answered.
#[derive(Clone)]
pub struct Seen {
    pub controller: Controller,
    pub state: State,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    #[serde(skip)]
    pub seen: Vec<Seen>,
    pub controllers: Vec<About>,
    pub gpus: Vec<Item<Gpu>>,
    pub servers: Vec<Item<Server>>,
    pub models: Vec<Item<Model>>,
    pub decisions: Vec<Item<Decision>>,
    pub policies: Vec<Item<Policy>>,
    /// Of the last commands those of whoever acts, oldest first.
    pub records: Vec<Item<Record>>,
    /// What was left out by controllers, and controllers that did not answer.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub name: String,
    pub version: String,
    pub acting: bool,
    pub actions: bool,
    pub at: Timestamp,
}

impl Fleet {
    /// Asks all of them; fails when none answers.
    pub async fn look(controllers: &[Controller]) -> anyhow::Result<Self> {
        let asked = controllers.iter().map(async |controller| {
            let state = controller.ask::<State>(&Ask::get(STATE.to_owned())).await;
            (controller.clone(), state)
        });
        let answers: Vec<_> = futures_util::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
        let (mut seen, mut troubles) = (Vec::new(), Vec::new());
        for (controller, state) in answers {
            match state {
                Ok(state) => seen.push(Seen { controller, state }),
                Err(trouble) => troubles.push(trouble.to_string()),
            }
        }
        troubles.sort();
        anyhow::ensure!(!seen.is_empty(), "{}", troubles.join("\n"));
        Ok(Self::of(seen, troubles))
    }

    pub async fn at(place: &Place) -> anyhow::Result<Self> {
        Self::look(&place.controllers().await?).await
    }

    fn of(mut seen: Vec<Seen>, troubles: Vec<String>) -> Self {
        seen.sort_by(|a, b| a.controller.name.cmp(&b.controller.name));
        let mut problems: BTreeSet<String> = troubles.into_iter().collect();
        let mut gpus: BTreeMap<&str, (bool, bool, &Item<Gpu>)> = BTreeMap::new();
        let mut policies: BTreeMap<&str, (bool, &Item<Policy>)> = BTreeMap::new();
        for Seen { state, .. } in &seen {
            problems.extend(state.problems.iter().cloned());
            for gpu in &state.gpus {
                let known = gpus.get(gpu.uuid.as_str()).map(|&(acting, fresh, _)| (acting, fresh));
                if known.is_none_or(|known| known < (state.acting, gpu.fresh)) {
                    gpus.insert(&gpu.uuid, (state.acting, gpu.fresh, gpu));
                }
            }
            for policy in &state.policies {
                if policies.get(policy.name.as_str()).is_none_or(|&(acting, _)| !acting && state.acting) {
                    policies.insert(&policy.name, (state.acting, policy));
                }
            }
        }
        let names: BTreeSet<&str> = seen.iter().flat_map(|s| &s.state.servers).map(|s| s.server.as_str()).collect();
        let mut fleet = Self {
            seen: Vec::new(),
            controllers: seen.iter().map(about).collect(),
            gpus: gpus.into_values().map(|(_, _, gpu)| gpu.clone()).collect(),
            servers: Vec::new(),
            models: Vec::new(),
            decisions: Vec::new(),
            policies: policies.into_values().map(|(_, policy)| policy.clone()).collect(),
            records: Vec::new(),
            problems: problems.into_iter().collect(),
        };
        fleet.gpus.sort_by(|a, b| (&a.node, &a.uuid).cmp(&(&b.node, &b.uuid)));
        for server in names {
            let Some(best) = by_rank(&seen, server).next() else { continue };
            let state = &best.state;
            fleet.servers.extend(state.servers.iter().filter(|other| other.server == server).cloned());
            fleet.models.extend(state.models.iter().filter(|model| model.server == server).cloned());
            fleet.decisions.extend(state.decisions.iter().filter(|decision| decision.server == server).cloned());
            fleet.records.extend(state.records.iter().filter(|record| record.server == server).cloned());
        }
        fleet.records.sort_by_key(|record| record.time);
        fleet.seen = seen;
        fleet
    }

    /// Servers of this namespace alone, and what is theirs; cards stay, since all share them.
    #[must_use]
    pub fn within(mut self, namespace: Option<&str>) -> Self {
        let Some(namespace) = namespace else { return self };
        self.servers.retain(|server| is_in(namespace, &server.server));
        self.models.retain(|model| is_in(namespace, &model.server));
        self.decisions.retain(|decision| is_in(namespace, &decision.server));
        self.records.retain(|record| is_in(namespace, &record.server));
        self
    }

    /// Those that know the server, the one that would act on it first.
    pub fn controllers_of<'a>(&'a self, server: &'a str) -> impl Iterator<Item = &'a Seen> {
        by_rank(&self.seen, server)
    }

    /// Each that is the first for some server; without servers, the first of all.
    pub fn leading(&self) -> Vec<&Seen> {
        let names: BTreeSet<&str> = self.servers.iter().map(|server| server.server.as_str()).collect();
        let mut places: BTreeSet<usize> = BTreeSet::new();
        for name in names {
            let first = self.controllers_of(name).next();
            places.extend(first.and_then(|first| self.seen.iter().position(|other| std::ptr::eq(other, first))));
        }
        if places.is_empty() {
            places.extend(self.seen.iter().position(|seen| seen.state.acting).or((!self.seen.is_empty()).then_some(0)));
        }
        places.into_iter().map(|place| &self.seen[place]).collect()
    }

    /// When the figures of a server were right.
    pub fn as_of(&self, server: &str) -> Timestamp {
        self.controllers_of(server).next().map_or(Timestamp::UNIX_EPOCH, |seen| seen.state.at)
    }

    pub fn decision(&self, model: &Model) -> Option<&Decision> {
        self.decisions.iter().find(|d| d.server == model.server && d.model == model.model).map(|decision| &**decision)
    }

    /// Servers by the name of a pod, as `POD`, `pod/POD` or `NAMESPACE/POD`, else those that have a model of this name.
    pub fn servers_named(&self, namespace: Option<&str>, target: &str) -> anyhow::Result<Vec<&str>> {
        let target = target.strip_prefix("pod/").or_else(|| target.strip_prefix("pods/")).unwrap_or(target);
        let inside = |server: &str| namespace.is_none_or(|namespace| is_in(namespace, server));
        let pods = self.servers.iter().map(|server| server.server.as_str()).filter(|server| {
            *server == target || (inside(server) && server.split_once('/').is_some_and(|(_, pod)| pod == target))
        });
        let pods: Vec<&str> = pods.collect();
        if !pods.is_empty() {
            return Ok(pods);
        }
        let with_model = self.models.iter().filter(|model| model.model == target && inside(&model.server));
        let servers: BTreeSet<&str> = with_model.map(|model| model.server.as_str()).collect();
        if servers.is_empty() {
            Err(wrong(&self.nothing_named(namespace, target)))
        } else {
            Ok(servers.into_iter().collect())
        }
    }

    /// Models by the name of their pod or their own.
    pub fn models_named(
        &self,
        namespace: Option<&str>,
        target: &str,
        model: Option<&str>,
    ) -> anyhow::Result<Vec<&Model>> {
        let servers = self.servers_named(namespace, target)?;
        let found = self.models.iter().map(|model| &**model).filter(|m| servers.contains(&m.server.as_str()));
        let found: Vec<&Model> = found.collect();
        // A pod first: a model of the same name is then one of several.
        let by_pod = servers.iter().any(|server| server.rsplit('/').next() == target.rsplit('/').next());
        let wanted = model.or_else(|| (!by_pod).then_some(target));
        let Some(wanted) = wanted else {
            return if found.is_empty() {
                Err(wrong(&format!("nothing is known yet of the models of {}", servers.join(", "))))
            } else {
                Ok(found)
            };
        };
        let chosen: Vec<&Model> = found.iter().copied().filter(|model| model.model == wanted).collect();
        if chosen.is_empty() {
            let known: BTreeSet<&str> = found.iter().map(|model| model.model.as_str()).collect();
            return Err(wrong(&format!("{} has no model `{wanted}`; {}", servers.join(", "), listed(known))));
        }
        Ok(chosen)
    }

    /// A policy by `NAME`, `NAMESPACE/NAME`, or `/NAME` of the cluster kind.
    pub fn policy_named(&self, namespace: Option<&str>, name: &str) -> anyhow::Result<&str> {
        let names = self.policies.iter().map(|policy| policy.name.as_str());
        let fits = |full: &str| match full.split_once('/') {
            _ if full == name => true,
            Some((of, short)) => short == name && namespace.is_none_or(|namespace| namespace == of),
            None => false,
        };
        let found: Vec<&str> = names.clone().filter(|full| fits(full)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(wrong(&format!("there is no policy `{name}`; {}", listed(names.collect())))),
            several => Err(wrong(&format!("several policies are called `{name}`: {}", several.join(", ")))),
        }
    }

    fn nothing_named(&self, namespace: Option<&str>, target: &str) -> String {
        let place = namespace.map(|namespace| format!(" in the namespace `{namespace}`")).unwrap_or_default();
        let known = self.servers.iter().map(|server| server.server.as_str()).collect();
        format!(
            "no controller knows a server or a model `{target}`{place}; a server's pod has the label \
             gpu.hush.dev/server=true; {}",
            listed(known)
        )
    }

    /// Whoever acts, for the first line.
    pub fn who_acts(&self) -> String {
        let acting: Vec<&str> = self.controllers.iter().filter(|c| c.acting).map(|c| c.name.as_str()).collect();
        match acting.as_slice() {
            [] => "none acts".to_owned(),
            [one] => format!("{one} acts"),
            several => format!("{} of them act", several.len()),
        }
    }
}

fn about(Seen { controller, state }: &Seen) -> About {
    About {
        name: controller.name.clone(),
        version: state.version.clone(),
        acting: state.acting,
        actions: state.actions,
        at: state.at,
    }
}

/// The one in the server's own pod first: while it acts nobody else does.
fn by_rank<'a>(seen: &'a [Seen], server: &'a str) -> impl Iterator<Item = &'a Seen> {
    let knows = move |seen: &&'a Seen| seen.state.servers.iter().any(|other| other.server == server);
    let mut known: Vec<&Seen> = seen.iter().filter(knows).collect();
    known.sort_by_key(|seen| {
        let fresh = seen.state.models.iter().any(|model| model.server == server && model.fresh);
        Reverse((seen.state.acting, seen.controller.name == server, fresh))
    });
    known.into_iter()
}

fn is_in(namespace: &str, server: &str) -> bool {
    server.split_once('/').is_some_and(|(of, _)| of == namespace)
}

/// Names come from elsewhere.
fn wrong(text: &str) -> anyhow::Error {
    anyhow::anyhow!(plain(text))
}

fn listed(names: BTreeSet<&str>) -> String {
    let (all, mut shown) = (names.len(), names.into_iter().take(NAMED).collect::<Vec<_>>().join(", "));
    if all > NAMED {
        shown.push_str(&format!(", and {}", count(all - NAMED, "other")));
    }
    if all == 0 { "there is none".to_owned() } else { format!("there are: {shown}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::Client;
    use crate::kubectl::wire::Way;

    fn seen(name: &str, acting: bool, servers: &[&str], more: Value) -> Seen {
        let model = |server: &&str| {
            json!({"server": server, "model": "base", "gpu": "GPU-a", "state": "Ready", "generation": 1, "vramBytes": 3,
                "fresh": true, "why": [{"reason": name, "detail": ""}]})
        };
        let mut state = json!({
            "at": "2026-01-01T00:00:00Z", "version": "1", "acting": acting, "actions": true,
            "gpus": [{"uuid": "GPU-a", "node": name, "totalBytes": 8, "oursBytes": 3, "othersBytes": 1, "freeBytes": 4,
                "fresh": true, "pressure": "None"}],
            "servers": servers.iter().map(|s| json!({"server": s, "state": "answering", "unknown": 1})).collect::<Vec<_>>(),
            "models": servers.iter().map(model).collect::<Vec<_>>(),
        });
        for (key, value) in more.as_object().unwrap() {
            state[key] = value.clone();
        }
        let way = Way::Direct { client: Client::new(None).unwrap(), url: "http://h".to_owned() };
        let controller = Controller { name: name.to_owned(), way, token_secret: None };
        Seen { controller, state: serde_json::from_value(state).unwrap() }
    }

    fn names(seen: Vec<&Seen>) -> Vec<&str> {
        seen.into_iter().map(|seen| seen.controller.name.as_str()).collect()
    }

    fn whose(fleet: &Fleet) -> Vec<&str> {
        fleet.models.iter().map(|model| model.why[0].reason.as_str()).collect()
    }

    #[test]
    fn the_leader_speaks_for_its_followers() {
        let record = json!({"time": "2026-01-01T00:00:00Z", "server": "m/w", "model": "base", "action": "Unload",
            "reason": "Manual", "outcome": "Withheld"});
        let follower = seen("h/c-0", false, &["m/w"], json!({"records": [record]}));
        let fleet = Fleet::of(vec![follower, seen("h/c-1", true, &["m/w"], json!({}))], vec!["late".to_owned()]);
        assert_eq!((whose(&fleet), fleet.gpus[0].node.as_str()), (vec!["h/c-1"], "h/c-1"));
        assert!(fleet.records.is_empty(), "what a follower did not send is no news");
        assert_eq!(names(fleet.controllers_of("m/w").collect()), ["h/c-1", "h/c-0"]);
        assert_eq!(names(fleet.leading()), ["h/c-1"]);
        assert_eq!(fleet.who_acts(), "h/c-1 acts");
        assert_eq!(fleet.problems, ["late"]);
        let whole = serde_json::to_value(&fleet).unwrap();
        assert_eq!(whole["servers"][0]["unknown"], 1, "what this plugin does not know is passed on");
        assert_eq!(whole["controllers"][1]["acting"], true);
    }

    #[test]
    fn each_sidecar_speaks_for_its_own_server_and_each_node_for_its_own() {
        let both = ["m/a", "m/b"];
        let fleet =
            Fleet::of(vec![seen("m/b", true, &both, json!({})), seen("m/a", true, &both, json!({}))], Vec::new());
        assert_eq!(whose(&fleet), ["m/a", "m/b"]);
        assert_eq!((names(fleet.leading()), fleet.who_acts().as_str()), (vec!["m/a", "m/b"], "2 of them act"));
        // A controller for more leads: the sidecar steps back.
        let fleet =
            Fleet::of(vec![seen("m/a", false, &both, json!({})), seen("h/c", true, &both, json!({}))], Vec::new());
        assert_eq!(whose(&fleet), ["h/c", "h/c"]);
        let idle = Fleet::of(vec![seen("h/c", false, &[], json!({}))], Vec::new());
        assert_eq!((names(idle.leading()), idle.who_acts().as_str()), (vec!["h/c"], "none acts"));
    }

    #[test]
    fn servers_and_models_by_name() {
        let fleet = Fleet::of(vec![seen("h/c", true, &["m/w-0", "m/w-1", "n/w-0"], json!({}))], Vec::new());
        let servers = |namespace, target| fleet.servers_named(namespace, target);
        assert_eq!(servers(Some("m"), "w-0").unwrap(), ["m/w-0"]);
        assert_eq!(servers(Some("m"), "pod/w-1").unwrap(), ["m/w-1"]);
        assert_eq!(servers(Some("m"), "n/w-0").unwrap(), ["n/w-0"], "a full name needs no namespace");
        assert_eq!(servers(None, "w-0").unwrap(), ["m/w-0", "n/w-0"]);
        assert_eq!(servers(Some("m"), "base").unwrap(), ["m/w-0", "m/w-1"]);
        let error = servers(Some("m"), "w-9").unwrap_err().to_string();
        assert!(error.contains("`w-9` in the namespace `m`") && error.contains("there are: m/w-0, m/w-1, n/w-0"));
        let theirs = fleet.clone().within(Some("n"));
        assert_eq!((theirs.servers.len(), theirs.models.len(), theirs.gpus.len()), (1, 1, 1));
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
        let fleet = Fleet::of(vec![seen("h/c", true, &[], policies)], Vec::new());
        assert_eq!(fleet.policy_named(Some("m"), "idle").unwrap(), "m/idle");
        assert_eq!(fleet.policy_named(Some("m"), "/floor").unwrap(), "/floor");
        assert!(fleet.policy_named(None, "idle").unwrap_err().to_string().contains("several policies"));
        assert!(fleet.policy_named(None, "x").unwrap_err().to_string().contains("there are: /floor, m/idle, n/idle"));
    }
}
