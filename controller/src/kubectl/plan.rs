//! `kubectl hush plan`: what would be done now, by the policies in force or by edited ones.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use hush_log::{errorln, outln};
use hyper::Method;
use serde_json::json;

use super::act::token;
use super::args::PlanArgs;
use super::find::Place;
use super::fleet::Fleet;
use super::read::{Decision, Edited, Gpu, Item, Model, WhatIf};
use super::table::Table;
use super::wire::{Ask, PATIENCE};
use super::words::{condition, count, plain};
use crate::amount::gib;
use crate::cli::Output;

/// What would be done, by whichever policies.
struct Plan {
    edited: Vec<Item<Edited>>,
    decisions: Vec<Item<Decision>>,
    gpus: Vec<Item<Gpu>>,
    models: Vec<Item<Model>>,
}

pub async fn run(place: &Place, args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let policies = read(&args.policy)?;
    let fleet = Fleet::at(place).await?;
    fleet.problems.iter().for_each(|problem| errorln!("{}", plain(problem)));
    let plan = if args.policy.is_empty() {
        let Fleet { decisions, gpus, models, .. } = fleet.clone();
        Plan { edited: Vec::new(), decisions, gpus, models }
    } else {
        what_if(place, &fleet, policies).await?
    };
    let what_if = !args.policy.is_empty();
    match args.output {
        Output::Json => {
            let whole =
                json!({"policies": plan.edited, "decisions": plan.decisions, "gpus": plan.gpus, "models": plan.models});
            outln!("{}", serde_json::to_string_pretty(&whole).context("writing the plan")?);
        }
        Output::Text => text(&plan, what_if.then_some(&*fleet.decisions)).iter().for_each(|line| outln!("{line}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Checked here, where the names of the files are known.
fn read(paths: &[PathBuf]) -> anyhow::Result<String> {
    let mut all = Vec::with_capacity(paths.len());
    for path in paths {
        all.push(crate::policies::checked_input(path)?.1);
    }
    Ok(all.join("\n---\n"))
}

async fn what_if(place: &Place, fleet: &Fleet, policies: String) -> anyhow::Result<Plan> {
    let mut plan = Plan { edited: Vec::new(), decisions: Vec::new(), gpus: Vec::new(), models: Vec::new() };
    for seen in fleet.leading() {
        let token = token(place, seen).await?;
        let ask = Ask {
            method: Method::POST,
            path: "/api/v1/plan".to_owned(),
            token: Some(&token),
            body: policies.clone(),
            patience: PATIENCE,
        };
        let part: WhatIf = seen.controller.ask(&ask).await?;
        // Of each server the word of whoever acts on it.
        let theirs = |server: &str| {
            fleet.controllers_of(server).next().is_some_and(|first| first.controller.name == seen.controller.name)
        };
        plan.decisions.extend(part.decisions.into_iter().filter(|decision| theirs(&decision.server)));
        plan.models.extend(part.models.into_iter().filter(|model| theirs(&model.server)));
        let known: BTreeSet<String> = plan.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        plan.gpus.extend(part.gpus.into_iter().filter(|gpu| !known.contains(&gpu.uuid)));
        for edited in part.policies {
            match plan.edited.iter_mut().find(|other| other.name == edited.name) {
                // One that is everywhere selects here and there.
                Some(other) if other.models < edited.models => *other = edited,
                Some(_) => {}
                None => plan.edited.push(edited),
            }
        }
    }
    Ok(plan)
}

/// `now`: what would be done anyway, to tell what is new.
fn text(plan: &Plan, now: Option<&[Item<Decision>]>) -> Vec<String> {
    let mut lines = Vec::new();
    for edited in &plan.edited {
        lines.push(plain(&format!("{} is {} and selects {}", edited.name, edited.is, count(edited.models, "model"))));
    }
    for gpu in &plan.gpus {
        let target = gpu.target_bytes.map(|bytes| format!(", wants {}", gib(bytes))).unwrap_or_default();
        let (pressure, free) = (gpu.pressure_and_reason(), gib(gpu.free_bytes));
        let line = format!("{}: pressure {pressure}, {free} free{target}", gpu.uuid);
        lines.push(plain(&line));
    }
    lines.push(String::new());
    let mut table = Table::new(&["ACTION", "POD", "MODEL", "REASON", "POLICY", "MEMORY", "CONDITION", "MARKS"]);
    for decision in &plan.decisions {
        let is_new = now.is_some_and(|now| !now.iter().any(|other| same(other, decision)));
        let marks = [decision.dry_run.then_some("dry run"), is_new.then_some("new")];
        table.row(row(decision, &marks.into_iter().flatten().collect::<Vec<_>>().join(", ")));
    }
    for gone in now.unwrap_or_default().iter().filter(|gone| !plan.decisions.iter().any(|other| same(other, gone))) {
        table.row(row(gone, "not any more"));
    }
    if table.is_empty() {
        lines.push("nothing to do".to_owned());
    } else {
        lines.extend(table.lines());
    }
    let mut kept = Table::new(&["LEFT ALONE", "MODEL", "WHY", "DETAIL"]);
    for model in &plan.models {
        for why in &model.why {
            kept.row([model.server.clone(), model.model.clone(), why.reason.clone(), why.detail.clone()]);
        }
    }
    if !kept.is_empty() {
        lines.push(String::new());
        lines.extend(kept.lines());
    }
    lines
}

fn same(a: &Decision, b: &Decision) -> bool {
    (&a.server, &a.model, &a.action, &a.reason, a.dry_run) == (&b.server, &b.model, &b.action, &b.reason, b.dry_run)
}

fn row(decision: &Decision, marks: &str) -> [String; 8] {
    [
        decision.action.clone(),
        decision.server.clone(),
        decision.model.clone(),
        decision.reason.clone(),
        decision.policy.clone(),
        gib(decision.vram_bytes),
        condition(decision),
        marks.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(model: &str, reason: &str) -> Item<Decision> {
        let decision = json!({"server": "m/w", "model": model, "action": "Unload", "reason": reason, "policy": "m/p",
            "ifGeneration": 3, "ifIdleSeconds": 300, "holdSeconds": 120, "vramBytes": 1 << 30, "dryRun": false});
        serde_json::from_value(decision).unwrap()
    }

    #[test]
    fn what_is_new_and_what_is_not_done_any_more() {
        let edited = serde_json::from_value(json!({"name": "m/p", "is": "changed", "models": 1})).unwrap();
        let plan = Plan {
            edited: vec![edited],
            decisions: vec![decision("a", "IdleTimeout"), decision("b", "IdleTimeout")],
            gpus: Vec::new(),
            models: Vec::new(),
        };
        let now = [decision("b", "IdleTimeout"), decision("c", "IdleTimeout")];
        let lines = text(&plan, Some(&now));
        assert_eq!(lines[0], "m/p is changed and selects 1 model");
        let condition = "1.00Gi  if generation 3 and idle for 5m, hold 2m";
        assert_eq!(lines[3], format!("Unload  m/w  a      IdleTimeout  m/p     {condition}  new"));
        assert_eq!(lines[4], format!("Unload  m/w  b      IdleTimeout  m/p     {condition}  -"));
        assert_eq!(lines[5], format!("Unload  m/w  c      IdleTimeout  m/p     {condition}  not any more"));
        let nothing = Plan { edited: Vec::new(), decisions: Vec::new(), gpus: Vec::new(), models: Vec::new() };
        assert_eq!(text(&nothing, None), ["", "nothing to do"]);
    }

    #[test]
    fn a_file_with_mistakes_is_named_before_anybody_is_asked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "kind: Pod\n").unwrap();
        let error = read(&[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()) && error.contains("`apiVersion` must be"), "{error}");
    }
}
