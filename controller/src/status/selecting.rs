//! The condition `Selecting`: whether a policy selects a model, and what to compare where it does not.

use std::collections::BTreeSet;

use hush_core::{Labels, ModelPolicy, ObservedModel, ServerName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::conditions::{INVALID, NOTHING_SELECTED, condition, first_names};
use super::{StatusContext, StatusSubject};

pub const SELECTING: &str = "Selecting";

/// A condition of its own beside `Ready`: a policy that selects no server is valid and in force, and its labels may still
/// be a mistake.
pub fn selecting(context: &StatusContext<'_>, subject: &StatusSubject<'_>, selected: &[&ObservedModel]) -> Condition {
    let Some(enforced) = subject.enforced else {
        return condition(SELECTING, "Unknown", INVALID, "the policy is not valid");
    };
    if !selected.is_empty() {
        return condition(SELECTING, "True", "Selected", "models of servers that answer are selected");
    }

    let servers = selected_servers(context, &enforced.policy);
    if servers.is_empty() {
        let message = "no server is selected; compare `selector` with the labels of the servers: \
                       `kubectl get pods --all-namespaces --selector gpu.hush.dev/server=true --show-labels`";
        return condition(SELECTING, "False", NOTHING_SELECTED, message);
    }

    let answering: BTreeSet<&ServerName> = context.world.models.iter().map(|model| &model.key.server).collect();
    let silent: BTreeSet<&str> = servers.difference(&answering).map(|server| server.as_str()).collect();
    if silent.is_empty() {
        let names: BTreeSet<&str> = servers.iter().map(|server| server.as_str()).collect();
        let message = format!("no model of {} has a name that `models` takes", first_names(names));
        return condition(SELECTING, "False", NOTHING_SELECTED, message);
    }
    condition(SELECTING, "Unknown", "NoAnswer", format!("no answer so far from {}", first_names(silent)))
}

/// The servers that the policy selects, whether they answer or not.
fn selected_servers<'a>(context: &StatusContext<'a>, policy: &ModelPolicy) -> BTreeSet<&'a ServerName> {
    let no_labels = Labels::new();
    let is_selected = |server: &ServerName, labels: &Labels| {
        let namespace_labels = context.world.namespaces.get(server.namespace()).unwrap_or(&no_labels);
        policy.selects_server(server, labels, namespace_labels)
    };

    let selected = context.targets.iter().filter(|(server, target)| is_selected(server, &target.labels));
    selected.map(|(server, _)| server).collect()
}

#[cfg(test)]
mod tests {
    use hush_core::{Glob, PolicyKey, PolicySpec, Selector};
    use hush_crds::PolicyStatus;

    use super::*;
    use crate::cluster::EnforcedPolicy;
    use crate::control_loop::LoopSnapshot;
    use crate::observe::test_model::observed_model;
    use crate::observe::{BaseUrl, ScrapeTarget, Targets};

    fn labels(name: &str) -> Labels {
        Labels::from([("gpu.hush.dev/name".to_owned(), name.to_owned())])
    }

    /// The condition of a policy for servers with the name `selected_name`, where one server `media/pod` with the name
    /// `speech` has these models; `only`: the globs of the policy's `models`.
    fn condition_of(selected_name: &str, models: &[&str], only: &[&str]) -> (String, String, String) {
        let name = PolicyKey { namespace: Some("media".to_owned()), name: "own".to_owned() };
        let policy = ModelPolicy {
            name: name.clone(),
            selector: Selector { labels: labels(selected_name), expressions: Vec::new() },
            namespace_selector: None,
            models: only.iter().map(|glob| Glob::new(*glob)).collect(),
            dry_run: false,
            asks: PolicySpec::default(),
        };
        let target = ScrapeTarget {
            url: BaseUrl::http("pod:9001"),
            labels: labels("speech"),
            node: "n1".to_owned(),
            audience: None,
        };
        let targets = Targets::from([("media/pod".into(), target)]);

        let mut snapshot = LoopSnapshot::empty();
        let observed = models.iter().map(|name| observed_model("media/pod", name));
        snapshot.world.models = observed.map(|model| ObservedModel { labels: labels("speech"), ..model }).collect();
        let conflicts = BTreeSet::new();
        let context = StatusContext {
            world: &snapshot.world,
            plan: &snapshot.plan,
            records: &[],
            conflicts: &conflicts,
            targets: &targets,
            failing: &[],
            app_problems: &[],
            paused: &snapshot.paused,
        };

        let enforced = EnforcedPolicy { generation: 1, policy: policy.clone(), spec: String::new() };
        let before = PolicyStatus::default();
        let subject = StatusSubject {
            name: &name,
            generation: 1,
            policy: Ok(&policy),
            enforced: Some(&enforced),
            before: &before,
        };

        let selected = super::super::selected_models(&context, &subject);
        let Condition { status, reason, message, .. } = selecting(&context, &subject, &selected);
        (status, reason, message)
    }

    #[test]
    fn a_policy_that_selects_nothing_says_what_to_compare() {
        let (status, reason, message) = condition_of("hush", &["base"], &[]);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "NothingSelected"));
        assert!(message.contains("compare `selector`"), "{message}");

        let (status, reason, message) = condition_of("speech", &["base"], &["large*"]);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "NothingSelected"));
        assert!(message.contains("media/pod") && message.contains("`models`"), "{message}");
    }

    #[test]
    fn a_server_that_does_not_answer_is_no_mistake_of_the_policy() {
        let (status, reason, message) = condition_of("speech", &[], &[]);
        assert_eq!((status.as_str(), reason.as_str()), ("Unknown", "NoAnswer"));
        assert!(message.contains("media/pod"), "{message}");

        let (status, reason, _) = condition_of("speech", &["base"], &["b*"]);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Selected"));
    }
}
