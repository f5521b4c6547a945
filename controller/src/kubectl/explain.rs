//! `kubectl hush explain`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use hush_contract::percent::query_value;
use hush_log::outln;
use serde_json::Value;

use super::args::ExplainArgs;
use super::client::ControllerRequest;
use super::discovery::PluginContext;
use super::fleet::FleetView;
use super::format::{duration_between, setting, terminal_line};
use super::outlook::outlook;
use super::response::{AccountView, ExplainResponse, MatchingPolicyView, ModelExplanation, RawItem};
use super::table::TextTable;
use super::top::record_line;
use crate::amount::gib;
use crate::option_values::OutputFormat;
use crate::web::view::{GpuView, PausedView};

/// How many of the last commands are shown.
const RECORDS_SHOWN: usize = 5;

/// The pauses in force, by the name of the policy.
type PausesByPolicy<'a> = BTreeMap<&'a str, &'a PausedView>;

pub async fn run(context: &PluginContext, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let fleet = FleetView::load(context).await?;
    let servers = fleet.servers_named(context.namespace.as_deref(), &args.target)?;

    let mut explanations: Vec<(String, RawItem<ExplainResponse>)> = Vec::with_capacity(servers.len());
    for server in servers {
        let path = format!("/api/v1/explain?server={}", query_value(server));
        let best = fleet.controllers_of(server).next().context("its controller is gone")?;
        let explanation = best.controller.send(&ControllerRequest::get(path)).await?;
        explanations.push((best.controller.name.clone(), explanation));
    }

    if args.output == OutputFormat::Json {
        let raw: Vec<&Value> = explanations.iter().map(|(_, explanation)| &explanation.raw).collect();
        outln!("{}", serde_json::to_string_pretty(&raw).context("writing the explanation")?);
        return Ok(ExitCode::SUCCESS);
    }

    let paused = fleet.policies.iter().filter_map(|policy| Some((policy.name.as_str(), policy.paused.as_ref()?)));
    let paused: PausesByPolicy<'_> = paused.collect();
    for (index, (controller, explanation)) in explanations.iter().enumerate() {
        if index > 0 {
            outln!();
        }
        server_lines(controller, explanation, &paused).iter().for_each(|line| outln!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn server_lines(controller: &str, explanation: &ExplainResponse, paused: &PausesByPolicy<'_>) -> Vec<String> {
    let server = &explanation.server;
    let node = if server.node.is_empty() { String::new() } else { format!(" on {}", server.node) };
    let failure = server.failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
    let title = format!("{}{node}: {}{failure} (asked: {controller})", server.server, server.state);

    let mut lines = vec![terminal_line(&title)];
    lines.extend(explanation.gpus.iter().flat_map(gpu_lines));

    for model in &explanation.models {
        lines.push(String::new());
        lines.extend(model_lines(explanation, model, paused));
    }
    if explanation.models.is_empty() {
        lines.push("nothing is known of its models yet".to_owned());
    }

    let last = explanation.records.iter().rev().take(RECORDS_SHOWN);
    let last: Vec<String> = last.map(|record| format!("  {}", record_line(record))).collect();
    if !last.is_empty() {
        lines.extend([String::new(), "Lately:".to_owned()]);
        lines.extend(last);
    }
    lines
}

fn gpu_lines(gpu: &GpuView) -> Vec<String> {
    let target = gpu.target_bytes.map(|bytes| format!(", until {} are free", gib(bytes))).unwrap_or_default();
    let stale = if gpu.fresh { "" } else { "; the figures are too old to act on" };

    let mut lines = vec![terminal_line(&format!(
        "{}: {} free of {}, {} ours, {} of others; pressure {}{target}{stale}",
        gpu.uuid,
        gib(gpu.free_bytes),
        gib(gpu.total_bytes),
        gib(gpu.ours_bytes),
        gib(gpu.others_bytes),
        gpu.pressure_and_reason(),
    ))];
    lines.extend(gpu.thresholds.iter().map(|threshold| {
        let level = threshold.level.to_lowercase();
        terminal_line(&format!("  {level} pressure below {}, by {}", gib(threshold.below_bytes), threshold.policy))
    }));
    lines
}

fn model_lines(
    explanation: &ExplainResponse,
    ModelExplanation { model, account }: &ModelExplanation,
    paused: &PausesByPolicy<'_>,
) -> Vec<String> {
    let at = explanation.at;
    let decision = explanation.decisions.iter().find(|decision| decision.model == model.model);
    let memory = match (model.held_bytes(), model.needed_bytes()) {
        (0, Some(needed)) => format!(", needs {}", gib(needed)),
        (0, None) => String::new(),
        (held, _) => format!(", {}", gib(held)),
    };
    let idle = model.idle_since.map(|since| format!(", idle for {}", duration_between(since.0, at)));
    let idle = idle.unwrap_or_default();

    let mut lines = vec![
        format!("{}: {}{memory}, generation {}{idle}", model.model_and_app(), model.state, model.generation),
        format!("  It {}.", outlook(model, decision, at)),
    ];
    // Without a policy, the outlook has said already why nothing is done.
    for why in model.why.iter().filter(|_| !account.policies.is_empty()) {
        let detail = if why.detail.is_empty() { String::new() } else { format!(": {}", why.detail) };
        lines.push(format!("  Left alone because of {}{detail}.", why.reason));
    }
    if model.process_stays {
        let app = &model.app;
        lines.push(format!(
            "  An unload leaves the process of {app}: it was not started by its sidecar, which cannot end it."
        ));
    }
    lines.extend(policies_line(account, paused));

    let mut lines: Vec<String> = lines.iter().map(|line| terminal_line(line)).collect();
    if !account.terms.is_empty() {
        lines.extend(terms_table(account).lines().into_iter().map(|line| format!("  {line}")));
    }
    lines
}

/// `None`: no policy selects the model, and the outlook has said so already.
fn policies_line(account: &AccountView, paused: &PausesByPolicy<'_>) -> Option<String> {
    if account.policies.is_empty() {
        return None;
    }

    let policies: Vec<String> = account.policies.iter().map(|policy| policy_with_marks(policy, paused)).collect();
    Some(format!("  Selected by {}.", policies.join(", ")))
}

fn policy_with_marks(policy: &MatchingPolicyView, paused: &PausesByPolicy<'_>) -> String {
    let only_shows = || match paused.get(policy.policy.as_str()) {
        Some(paused) => format!("{}: only shows what it would do", paused.summary()),
        None => "only shows what it would do".to_owned(),
    };

    let marks = [
        policy.dry_run.then(only_shows),
        policy.window_open.then(|| "its window is open".to_owned()),
        policy.budget_bytes.map(|bytes| format!("budget {}", gib(bytes))),
    ];
    let marks: Vec<String> = marks.into_iter().flatten().collect();
    if marks.is_empty() { policy.policy.clone() } else { format!("{} ({})", policy.policy, marks.join(", ")) }
}

/// For each field: the value that applies, its policy, and the values that other policies ask for.
fn terms_table(account: &AccountView) -> TextTable {
    let mut table = TextTable::new(&["FIELD", "HOLDS", "FROM", "ALSO ASKED FOR"]);

    for term in &account.terms {
        let others: Vec<String> =
            term.others.iter().map(|asked| format!("{} by {}", setting(&asked.value), asked.policy)).collect();
        let from = match &term.policy {
            Some(policy) if term.by_default => format!("{policy}'s default"),
            Some(policy) => policy.clone(),
            None => "default".to_owned(),
        };
        table.push_row([term.field.clone(), setting(&term.value), from, others.join(", ")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pause(until: Option<&str>) -> PausedView {
        let since = "2026-01-01T00:00:00Z".parse().unwrap();
        PausedView { since, until: until.map(|until| until.parse().unwrap()), claimed_by: Some("anna".to_owned()) }
    }

    #[test]
    fn an_explanation_shows_the_server_its_gpus_its_models_and_the_last_commands() {
        let explanation = json!({
            "at": "2026-01-01T00:10:00Z", "acting": true,
            "server": {"server": "m/w", "node": "n1", "labels": {}, "state": "answering", "failure": null},
            "gpus": [{"uuid": "GPU-a", "node": "n1", "totalBytes": 8_u64 << 30, "oursBytes": 3_u64 << 30, "othersBytes": 0,
                "freeBytes": 5_u64 << 30, "fresh": true, "pressure": "None", "thresholds": [{"level": "Hard", "belowBytes": 1 << 30,
                "targetBytes": 1 << 30, "policy": "/floor"}]}],
            "models": [{
                "model": {"server": "m/w", "model": "base", "gpu": "GPU-a", "state": "Ready", "generation": 4, "vramBytes": 3_u64 << 30,
                    "idleSince": "2026-01-01T00:08:00Z", "loadedSince": "2026-01-01T00:00:00Z", "leavesAt": "2026-01-01T00:13:00Z",
                    "fresh": true, "idleTimeoutMs": {"value": 300_000, "policy": "/floor"}, "rules": {"policies": ["/floor", "m/idle"],
                    "residency": {"value": "Idle", "policy": "m/idle"}}, "why": [{"reason": "NotIdle", "detail": "2m of 5m"}]},
                "account": {"policies": [{"policy": "/floor", "dryRun": false}, {"policy": "m/idle", "budgetBytes": 1 << 30},
                    {"policy": "m/trial", "dryRun": true, "windowOpen": true}],
                    "terms": [{"field": "residency.idleTimeout", "value": {"milliseconds": 300_000}, "policy": "/floor", "others":
                    [{"value": {"milliseconds": 600_000}, "policy": "m/idle"}]}, {"field": "priority", "value": {"number": 0}, "policy": "/floor", "byDefault": true, "others":
                    [{"value": {"number": 9}, "policy": "m/idle"}]}, {"field": "minLoaded", "value": {"number": 0}, "others": []}]},
            }],
            "records": [{"time": "2026-01-01T00:01:00Z", "server": "m/w", "model": "base", "action": "Load", "reason": "Manual",
                "outcome": "Loading"}],
        });
        let explanation = serde_json::from_value(explanation).unwrap();
        let lines = server_lines("h/c-0", &explanation, &BTreeMap::from([("m/idle", &pause(None))]));

        let expected = [
            "m/w on n1: answering (asked: h/c-0)",
            "GPU-a: 5.00Gi free of 8.00Gi, 3.00Gi ours, 0.00Gi of others; pressure None",
            "  hard pressure below 1.00Gi, by /floor",
            "",
            "base: Ready, 3.00Gi, generation 4, idle for 2m",
            "  It unloads in 3m unless a request comes: an idle timeout of 5m by /floor.",
            "  Left alone because of NotIdle: 2m of 5m.",
            "  Selected by /floor, m/idle (budget 1.00Gi), m/trial (only shows what it would do, its window is open).",
            "  FIELD                  HOLDS  FROM              ALSO ASKED FOR",
            "  residency.idleTimeout  5m     /floor            10m by m/idle",
            "  priority               0      /floor's default  9 by m/idle",
            "  minLoaded              0      default           -",
            "",
            "Lately:",
            "  00:01:00Z  load m/w base (Manual): loading",
        ];
        assert_eq!(lines, expected);
    }

    /// The lines about a model, without those about its server.
    fn lines_of(model: serde_json::Value, policies: &serde_json::Value, paused: &PausesByPolicy<'_>) -> Vec<String> {
        let explanation = json!({
            "at": "2026-01-01T00:10:00Z", "server": {"server": "m/w", "state": "answering"}, "gpus": [],
            "models": [{"model": model, "account": {"policies": policies, "terms": []}}],
        });
        server_lines("c", &serde_json::from_value(explanation).unwrap(), paused).split_off(2)
    }

    #[test]
    fn a_model_that_is_not_loaded_holds_no_memory_and_one_without_a_policy_is_a_sentence() {
        let unloaded = json!({"server": "m/w", "model": "base", "state": "Unloaded", "generation": 4, "vramBytes": 0,
            "needBytes": 3_u64 << 30, "fresh": true, "heldUntil": "2026-01-01T00:19:30Z",
            "why": [{"reason": "NotLoaded", "detail": ""}]});
        let policy = json!([{"policy": "/floor", "dryRun": true}]);
        let pause = pause(Some("2026-01-01T01:00:00Z"));
        let lines = lines_of(unloaded.clone(), &policy, &BTreeMap::from([("/floor", &pause)]));

        let expected = [
            "base: Unloaded, needs 3.00Gi, generation 4",
            "  It is not loaded and is held for 9m30s more, until 2026-01-01T00:19:30Z: no request loads it before.",
            "  Left alone because of NotLoaded.",
            "  Selected by /floor (paused until 2026-01-01T01:00:00Z, asked for by anna as the request says: only shows what \
             it would do).",
        ];
        assert_eq!(lines, expected);

        // A controller of an older version writes the bytes that the model needs into the other field.
        let mut older = unloaded;
        older["needBytes"] = json!(null);
        older["vramBytes"] = json!(3_u64 << 30);
        assert_eq!(lines_of(older, &policy, &BTreeMap::new())[0], expected[0]);

        let alone = json!({"server": "m/w", "model": "base", "state": "Ready", "generation": 1, "vramBytes": 1 << 30,
            "fresh": true, "why": [{"reason": "NotGoverned", "detail": "no policy selects it"}]});
        let lines = lines_of(alone, &json!([]), &BTreeMap::new());
        let expected = [
            "base: Ready, 1.00Gi, generation 1",
            "  It leaves when its server's own settings say so: no policy selects it.",
        ];
        assert_eq!(lines, expected);
    }
}
