//! `kubectl hush explain`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use hush_contract::percent::query_value;
use hush_log::outln;
use serde_json::Value;

use super::args::ExplainArgs;
use super::fate::fate;
use super::find::Place;
use super::fleet::Fleet;
use super::read::{Account, Accounted, Explained, Gpu, Item, Paused};
use super::table::Table;
use super::top::record;
use super::wire::Ask;
use super::words::{between, plain, setting};
use crate::amount::gib;
use crate::cli::Output;

pub async fn run(place: &Place, args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::at(place).await?;
    let servers = fleet.servers_named(place.namespace.as_deref(), &args.target)?;
    let mut all: Vec<(String, Item<Explained>)> = Vec::with_capacity(servers.len());
    for server in servers {
        let path = format!("/api/v1/explain?server={}", query_value(server));
        // Who named it knows it.
        let best = fleet.controllers_of(server).next().context("its controller is gone")?;
        all.push((best.controller.name.clone(), best.controller.ask(&Ask::get(path)).await?));
    }
    if args.output == Output::Json {
        let whole: Vec<&Value> = all.iter().map(|(_, explained)| &explained.whole).collect();
        outln!("{}", serde_json::to_string_pretty(&whole).context("writing the explanation")?);
        return Ok(ExitCode::SUCCESS);
    }
    let paused = fleet.policies.iter().filter_map(|policy| Some((policy.name.as_str(), policy.paused.as_ref()?)));
    let paused: BTreeMap<&str, &Paused> = paused.collect();
    for (place, (controller, explained)) in all.iter().enumerate() {
        if place > 0 {
            outln!();
        }
        text(controller, explained, &paused).iter().for_each(|line| outln!("{line}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// `paused`: the policies that are, by name.
fn text(controller: &str, explained: &Explained, paused: &BTreeMap<&str, &Paused>) -> Vec<String> {
    let server = &explained.server;
    let node = if server.node.is_empty() { String::new() } else { format!(" on {}", server.node) };
    let failure = server.failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
    let mut lines = vec![plain(&format!("{}{node}: {}{failure} (asked: {controller})", server.server, server.state))];
    lines.extend(explained.gpus.iter().flat_map(gpu));
    for accounted in &explained.models {
        lines.push(String::new());
        lines.extend(model(explained, accounted, paused));
    }
    if explained.models.is_empty() {
        lines.push("nothing is known of its models yet".to_owned());
    }
    let last = explained.records.iter().rev().take(5);
    let last: Vec<String> = last.map(|item| format!("  {}", record(item))).collect();
    if !last.is_empty() {
        lines.extend([String::new(), "Lately:".to_owned()]);
        lines.extend(last);
    }
    lines
}

fn gpu(gpu: &Gpu) -> Vec<String> {
    let target = gpu.target_bytes.map(|bytes| format!(", until {} are free", gib(bytes))).unwrap_or_default();
    let stale = if gpu.fresh { "" } else { "; the figures are too old to act on" };
    let mut lines = vec![plain(&format!(
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
        plain(&format!("  {level} pressure below {}, by {}", gib(threshold.below_bytes), threshold.policy))
    }));
    lines
}

fn model(
    explained: &Explained,
    Accounted { model, account }: &Accounted,
    paused: &BTreeMap<&str, &Paused>,
) -> Vec<String> {
    let decision = explained.decisions.iter().find(|decision| decision.model == model.model);
    let memory = match (model.held_bytes(), model.needed_bytes()) {
        (0, Some(needed)) => format!(", needs {}", gib(needed)),
        (0, None) => String::new(),
        (held, _) => format!(", {}", gib(held)),
    };
    let idle = model.idle_since.map(|since| format!(", idle for {}", between(since, explained.at))).unwrap_or_default();
    let mut lines = vec![
        format!("{}: {}{memory}, generation {}{idle}", model.model, model.state, model.generation),
        format!("  It {}.", fate(model, decision, explained.at)),
    ];
    // Without a policy there is nothing more to say than that.
    for why in model.why.iter().filter(|_| !account.policies.is_empty()) {
        let detail = if why.detail.is_empty() { String::new() } else { format!(": {}", why.detail) };
        lines.push(format!("  Left alone because of {}{detail}.", why.reason));
    }
    lines.extend(policies(account, paused));
    let mut lines: Vec<String> = lines.iter().map(|line| plain(line)).collect();
    if !account.terms.is_empty() {
        lines.extend(terms(account).lines().into_iter().map(|line| format!("  {line}")));
    }
    lines
}

fn policies(account: &Account, paused: &BTreeMap<&str, &Paused>) -> Vec<String> {
    // What becomes of it says so already.
    if account.policies.is_empty() {
        return Vec::new();
    }
    let policy = |policy: &super::read::Matching| {
        let shows_only = || match paused.get(policy.policy.as_str()) {
            Some(paused) => format!("{}: only shows what it would do", paused.words()),
            None => "only shows what it would do".to_owned(),
        };
        let marks = [
            policy.dry_run.then(shows_only),
            policy.window_open.then(|| "its window is open".to_owned()),
            policy.budget_bytes.map(|bytes| format!("budget {}", gib(bytes))),
        ];
        let marks: Vec<String> = marks.into_iter().flatten().collect();
        if marks.is_empty() { policy.policy.clone() } else { format!("{} ({})", policy.policy, marks.join(", ")) }
    };
    let all: Vec<String> = account.policies.iter().map(policy).collect();
    vec![format!("  Selected by {}.", all.join(", "))]
}

/// Of each field the value that holds, whose it is, and who else asked.
fn terms(account: &Account) -> Table {
    let mut table = Table::new(&["FIELD", "HOLDS", "FROM", "ALSO ASKED FOR"]);
    for term in &account.terms {
        let others: Vec<String> =
            term.others.iter().map(|asked| format!("{} by {}", setting(&asked.value), asked.policy)).collect();
        let from = match &term.policy {
            Some(policy) if term.by_default => format!("{policy}'s default"),
            Some(policy) => policy.clone(),
            None => "default".to_owned(),
        };
        table.row([term.field.clone(), setting(&term.value), from, others.join(", ")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_a_person_asks_is_told() {
        let explained = json!({
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
        let pause = Paused { until: None, claimed_by: Some("anna".to_owned()) };
        let lines = text("h/c-0", &serde_json::from_value(explained).unwrap(), &BTreeMap::from([("m/idle", &pause)]));
        let expected = [
            "m/w on n1: answering (asked: h/c-0)",
            "GPU-a: 5.00Gi free of 8.00Gi, 3.00Gi ours, 0.00Gi of others; pressure None",
            "  hard pressure below 1.00Gi, by /floor",
            "",
            "base: Ready, 3.00Gi, generation 4, idle for 2m",
            "  It unloads in 3m if nobody asks for it: an idle timeout of 5m by /floor.",
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

    fn told(model: serde_json::Value, policies: &serde_json::Value, paused: &BTreeMap<&str, &Paused>) -> Vec<String> {
        let explained = json!({
            "at": "2026-01-01T00:10:00Z", "server": {"server": "m/w", "state": "answering"}, "gpus": [],
            "models": [{"model": model, "account": {"policies": policies, "terms": []}}],
        });
        text("c", &serde_json::from_value(explained).unwrap(), paused).split_off(2)
    }

    #[test]
    fn a_model_that_is_not_loaded_holds_no_memory_and_one_without_a_policy_is_a_sentence() {
        let unloaded = json!({"server": "m/w", "model": "base", "state": "Unloaded", "generation": 4, "vramBytes": 0,
            "needBytes": 3_u64 << 30, "fresh": true, "heldUntil": "2026-01-01T00:19:30Z",
            "why": [{"reason": "NotLoaded", "detail": ""}]});
        let policy = json!([{"policy": "/floor", "dryRun": true}]);
        let until = Some("2026-01-01T01:00:00Z".parse().unwrap());
        let pause = Paused { until, claimed_by: Some("anna".to_owned()) };
        let lines = told(unloaded.clone(), &policy, &BTreeMap::from([("/floor", &pause)]));
        let expected = [
            "base: Unloaded, needs 3.00Gi, generation 4",
            "  It is not loaded and is held for 9m30s more, until 2026-01-01T00:19:30Z: no request loads it before.",
            "  Left alone because of NotLoaded.",
            "  Selected by /floor (paused until 2026-01-01T01:00:00Z, asked for by anna as the request says: only shows what \
             it would do).",
        ];
        assert_eq!(lines, expected);

        // A controller of an older version tells what it needs in the other field.
        let mut older = unloaded;
        older["needBytes"] = json!(null);
        older["vramBytes"] = json!(3_u64 << 30);
        assert_eq!(told(older, &policy, &BTreeMap::new())[0], expected[0]);

        let alone = json!({"server": "m/w", "model": "base", "state": "Ready", "generation": 1, "vramBytes": 1 << 30,
            "fresh": true, "why": [{"reason": "NotGoverned", "detail": "no policy selects it"}]});
        let lines = told(alone, &json!([]), &BTreeMap::new());
        let expected = [
            "base: Ready, 1.00Gi, generation 1",
            "  It leaves when its server's own settings say so: no policy selects it.",
        ];
        assert_eq!(lines, expected);
    }
}
