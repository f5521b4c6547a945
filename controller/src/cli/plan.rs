//! `hush-controller plan`.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use hush_core::{Decision, GpuPlan, Plan};

use super::{Output, PlanArgs};
use crate::{policies, world};

pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let mut scene = world::read(&args.world)?;
    for path in &args.policy {
        scene.policies.extend(policies::read(path)?);
    }
    let plan = hush_core::step(&mut scene.memory, scene.now, &scene.world, &scene.policies);
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&plan).context("writing the plan")?),
        Output::Text => print!("{}", text(&plan)),
    }
    Ok(ExitCode::SUCCESS)
}

/// For people: the cards, what is to be done, and why nothing else.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for gpu in &plan.gpus {
        line(&mut out, &gpu_line(gpu));
    }
    for decision in &plan.decisions {
        line(&mut out, &decision_line(decision));
    }
    if plan.decisions.is_empty() {
        line(&mut out, "nothing to do");
    }
    for skip in &plan.skips {
        line(&mut out, &format!("  not {} {}: {} ({})", skip.server, skip.model, skip.reason, skip.detail));
    }
    out
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

fn gpu_line(gpu: &GpuPlan) -> String {
    let reason = gpu.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let target = gpu.target.map(|target| format!(", wants {}", gib(target))).unwrap_or_default();
    format!("{}: pressure {}{reason}, {} available{target}", gpu.uuid, gpu.pressure, gib(gpu.available))
}

fn decision_line(decision: &Decision) -> String {
    let Decision { server, model, action, reason, policy, .. } = decision;
    let mut text = format!("{action} {server} {model}: {reason}, {} by {policy}", gib(decision.vram_bytes));
    let conditions = [
        ("if generation", decision.if_generation),
        ("if idle for s", decision.if_idle_seconds),
        ("drain s", decision.drain_seconds),
        ("hold s", decision.hold_seconds),
    ];
    for (name, value) in conditions {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if decision.dry_run { format!("dry run: {text}") } else { text }
}

/// Two decimals, rounded down.
fn gib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100) >> 30;
    format!("{}.{:02}Gi", hundredths / 100, hundredths % 100)
}
