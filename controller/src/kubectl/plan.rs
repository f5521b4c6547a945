//! `kubectl hush plan`: what would be done now, by the policies in force or with edited ones.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use hush_log::{errorln, outln};
use hyper::Method;
use serde_json::json;

use super::args::PlanPolicyArgs;
use super::client::{ControllerRequest, REQUEST_TIMEOUT};
use super::commands::token;
use super::discovery::PluginContext;
use super::fleet::FleetView;
use super::format::{condition, count, terminal_line};
use super::response::{DecisionView, RawItem, WhatIfResponse};
use super::table::TextTable;
use crate::amount::gib;
use crate::option_values::OutputFormat;
use crate::web::view::{EditedView, GpuView, ModelStateView};

/// What would be done now.
#[derive(Default)]
struct PlanPreview {
    /// Empty: the plan is that of the policies in force.
    edited: Vec<RawItem<EditedView>>,
    decisions: Vec<RawItem<DecisionView>>,
    gpus: Vec<RawItem<GpuView>>,
    models: Vec<RawItem<ModelStateView>>,
}

pub async fn run(context: &PluginContext, args: &PlanPolicyArgs) -> anyhow::Result<ExitCode> {
    let policies = read_policies(&args.policy)?;
    let fleet = FleetView::load(context).await?;
    fleet.problems.iter().for_each(|problem| errorln!("{}", terminal_line(problem)));

    let has_edited_policies = !args.policy.is_empty();
    let plan = if has_edited_policies {
        request_plan(context, &fleet, policies).await?
    } else {
        let FleetView { decisions, gpus, models, .. } = fleet.clone();
        PlanPreview { edited: Vec::new(), decisions, gpus, models }
    };

    match args.output {
        OutputFormat::Json => {
            let plan =
                json!({"policies": plan.edited, "decisions": plan.decisions, "gpus": plan.gpus, "models": plan.models});
            outln!("{}", serde_json::to_string_pretty(&plan).context("writing the plan")?);
        }
        OutputFormat::Text => {
            let in_force = has_edited_policies.then_some(&*fleet.decisions);
            text_lines(&plan, in_force).iter().for_each(|line| outln!("{line}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of all files. It is checked here, because an error of the controller cannot name the file.
fn read_policies(paths: &[PathBuf]) -> anyhow::Result<String> {
    let mut texts = Vec::with_capacity(paths.len());
    for path in paths {
        texts.push(crate::policies::checked_input(path)?.1);
    }
    Ok(texts.join("\n---\n"))
}

/// Asks the leading controllers for plans with the edited policies, and merges them.
async fn request_plan(context: &PluginContext, fleet: &FleetView, policies: String) -> anyhow::Result<PlanPreview> {
    let mut plan = PlanPreview::default();

    for report in fleet.leading() {
        let token = token(context, report).await?;
        let request = ControllerRequest {
            method: Method::POST,
            path: "/api/v1/plan".to_owned(),
            token: Some(&token),
            body: policies.clone(),
            timeout: REQUEST_TIMEOUT,
        };
        let part: WhatIfResponse = report.controller.send(&request).await?;

        // Each server is taken from the plan of the controller that would act on it.
        let is_theirs = |server: &str| {
            fleet.controllers_of(server).next().is_some_and(|first| first.controller.name == report.controller.name)
        };
        plan.decisions.extend(part.decisions.into_iter().filter(|decision| is_theirs(&decision.server)));
        plan.models.extend(part.models.into_iter().filter(|model| is_theirs(&model.server)));

        let known: BTreeSet<String> = plan.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        plan.gpus.extend(part.gpus.into_iter().filter(|gpu| !known.contains(&gpu.uuid)));
        part.policies.into_iter().for_each(|edited| merge_edited(&mut plan.edited, edited));
    }
    Ok(plan)
}

/// Keeps the entry with most models where several plans have the same policy: controllers see different models.
fn merge_edited(all: &mut Vec<RawItem<EditedView>>, edited: RawItem<EditedView>) {
    match all.iter_mut().find(|other| other.name == edited.name) {
        Some(other) if other.models < edited.models => *other = edited,
        Some(_) => {}
        None => all.push(edited),
    }
}

/// `in_force`: the decisions of the policies in force; the plan's differences from them are marked.
fn text_lines(plan: &PlanPreview, in_force: Option<&[RawItem<DecisionView>]>) -> Vec<String> {
    let mut lines = Vec::new();
    for edited in &plan.edited {
        let models = count(edited.models, "model");
        lines.push(terminal_line(&format!("{} is {} and selects {models}", edited.name, edited.is)));
    }
    for gpu in &plan.gpus {
        let target = gpu.target_bytes.map(|bytes| format!(", wants {}", gib(bytes))).unwrap_or_default();
        let (pressure, free) = (gpu.pressure_and_reason(), gib(gpu.free_bytes));
        lines.push(terminal_line(&format!("{}: pressure {pressure}, {free} free{target}", gpu.uuid)));
    }

    lines.push(String::new());
    let decisions = decisions_table(plan, in_force);
    if decisions.is_empty() {
        lines.push("nothing to do".to_owned());
    } else {
        lines.extend(decisions.lines());
    }

    let left_alone = left_alone_table(plan);
    if !left_alone.is_empty() {
        lines.push(String::new());
        lines.extend(left_alone.lines());
    }
    lines
}

fn decisions_table(plan: &PlanPreview, in_force: Option<&[RawItem<DecisionView>]>) -> TextTable {
    let mut table = TextTable::new(&["ACTION", "POD", "MODEL", "REASON", "POLICY", "MEMORY", "CONDITION", "MARKS"]);

    for decision in &plan.decisions {
        let is_new = in_force.is_some_and(|in_force| !in_force.iter().any(|other| is_same(other, decision)));
        let marks = [decision.dry_run.then_some("dry run"), is_new.then_some("new")];
        let marks: Vec<&str> = marks.into_iter().flatten().collect();
        table.push_row(decision_row(plan, decision, &marks.join(", ")));
    }

    let is_planned = |decision: &DecisionView| plan.decisions.iter().any(|other| is_same(other, decision));
    for dropped in in_force.unwrap_or_default().iter().filter(|decision| !is_planned(decision)) {
        table.push_row(decision_row(plan, dropped, "not any more"));
    }
    table
}

fn left_alone_table(plan: &PlanPreview) -> TextTable {
    let mut table = TextTable::new(&["LEFT ALONE", "MODEL", "WHY", "DETAIL"]);

    for model in &plan.models {
        for why in &model.why {
            table.push_row([model.server.clone(), model.model_and_app(), why.reason.clone(), why.detail.clone()]);
        }
    }
    table
}

fn is_same(a: &DecisionView, b: &DecisionView) -> bool {
    let what = |decision: &DecisionView| (decision.action.clone(), decision.reason.clone(), decision.unload.clone());

    (&a.server, &a.model, a.dry_run) == (&b.server, &b.model, b.dry_run) && what(a) == what(b)
}

fn decision_row(plan: &PlanPreview, decision: &DecisionView, marks: &str) -> [String; 8] {
    let is_its_model =
        |model: &&RawItem<ModelStateView>| (&model.server, &model.model) == (&decision.server, &decision.model);
    let model = plan.models.iter().find(is_its_model);

    [
        decision.action.clone(),
        decision.server.clone(),
        model.map_or_else(|| decision.model.clone(), |model| model.model_and_app()),
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

    fn decision(model: &str, reason: &str) -> RawItem<DecisionView> {
        let decision = json!({"server": "m/w", "model": model, "action": "Unload", "reason": reason, "policy": "m/p",
            "ifGeneration": 3, "ifIdleSeconds": 300, "holdSeconds": 120, "vramBytes": 1 << 30, "dryRun": false});
        serde_json::from_value(decision).unwrap()
    }

    #[test]
    fn what_is_new_and_what_is_not_done_any_more() {
        let edited = serde_json::from_value(json!({"name": "m/p", "is": "changed", "models": 1})).unwrap();
        let plan = PlanPreview {
            edited: vec![edited],
            decisions: vec![decision("a", "IdleTimeout"), decision("b", "IdleTimeout")],
            ..PlanPreview::default()
        };
        let in_force = [decision("b", "IdleTimeout"), decision("c", "IdleTimeout")];
        let lines = text_lines(&plan, Some(&in_force));

        assert_eq!(lines[0], "m/p is changed and selects 1 model");
        let condition = "1.00Gi  if generation 3 and idle for 5m, hold 2m";
        assert_eq!(lines[3], format!("Unload  m/w  a      IdleTimeout  m/p     {condition}  new"));
        assert_eq!(lines[4], format!("Unload  m/w  b      IdleTimeout  m/p     {condition}  -"));
        assert_eq!(lines[5], format!("Unload  m/w  c      IdleTimeout  m/p     {condition}  not any more"));

        assert_eq!(text_lines(&PlanPreview::default(), None), ["", "nothing to do"]);
    }

    #[test]
    fn the_kind_of_app_and_the_end_of_its_process_are_shown() {
        let ending = json!({"server": "m/w", "model": "a", "action": "Unload", "reason": "IdleTimeout", "policy": "m/p",
            "ifGeneration": 3, "unload": "Process", "vramBytes": 1 << 30, "dryRun": false});
        let model = json!({"server": "m/w", "model": "a", "app": "vllm", "gpu": null, "state": "Ready", "generation": 3,
            "vramBytes": 1 << 30, "fresh": true});
        let plan = PlanPreview {
            decisions: vec![serde_json::from_value(ending).unwrap()],
            models: vec![serde_json::from_value(model).unwrap()],
            ..PlanPreview::default()
        };

        let in_force = [decision("a", "IdleTimeout")];
        let lines = text_lines(&plan, Some(&in_force));
        assert!(lines[2].contains("a (vllm)") && lines[2].contains("if generation 3, ends its process"), "{lines:?}");
        assert!(
            lines[2].ends_with("new") && lines[3].ends_with("not any more"),
            "another end is another command: {lines:?}"
        );
    }

    #[test]
    fn a_file_with_mistakes_is_named_before_a_controller_is_asked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "kind: Pod\n").unwrap();

        let error = read_policies(&[file.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains(&*file.path().to_string_lossy()) && error.contains("`apiVersion` must be"), "{error}");
    }
}
