//! `hush-controller plan`.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hush_core::{Decision, GpuPlan, Memory, Plan, span};
use hush_log::{errorln, out, outln};
use jiff::Timestamp;

use super::{Output, PlanArgs};
use crate::amount::gib;
use crate::cluster::{self, ClusterInventory as Look, NamespaceSelector, ServerNamespaces};
use crate::metrics::Metrics;
use crate::observe::{self, AssemblyContext as Frame, DisputeTracker as Disputes, ReportTrust as Trust};
use crate::sources::Source;
use crate::{policies, world};

/// Between the looks of one plan there is none.
const STALE_AFTER: Duration = Duration::from_secs(15);

pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let plan = match &args.world {
        Some(path) => of_file(path, args)?,
        None => of_servers(args)?,
    };
    match args.output {
        Output::Json => outln!("{}", serde_json::to_string_pretty(&plan).context("writing the plan")?),
        Output::Text => out!("{}", text(&plan)),
    }
    Ok(ExitCode::SUCCESS)
}

fn of_file(path: &Path, args: &PlanArgs) -> anyhow::Result<Plan> {
    let mut scene = world::read(path)?;
    for path in &args.fleet.policy {
        scene.policies.extend(policies::read_input(path)?);
    }
    Ok(hush_core::step(&mut scene.memory, scene.now, &scene.world, &scene.policies))
}

/// Asks each server once. Without a past, a grace period begins now.
fn of_servers(args: &PlanArgs) -> anyhow::Result<Plan> {
    let fleet = &args.fleet;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let of_cluster = fleet.target.is_empty() && fleet.targets.is_none();
    let mut look = if of_cluster { runtime.block_on(of_kubeconfig(&args.server_namespaces))? } else { Look::default() };
    if !of_cluster {
        anyhow::ensure!(!fleet.policy.is_empty(), "no policy: give a file with --policy");
        look.targets = fleet.targets().read().map_err(anyhow::Error::msg)?;
    }
    if !fleet.policy.is_empty() {
        look.policies.extend(fleet.policies().read().map_err(anyhow::Error::msg)?);
    }
    look.problems.iter().for_each(|problem| errorln!("{problem}"));
    let metrics = Arc::new(Metrics::new().context("setting up the metrics")?);
    let authorities = fleet.authorities()?;
    let scraper = fleet.scraper(Duration::from_secs(1), &metrics, authorities.as_ref())?;
    runtime.block_on(observe::once(&scraper, &look.targets));
    let seen = scraper.store.all();
    for (server, seen) in &seen {
        if let Some(failure) = &seen.failure {
            errorln!("{server} cannot be observed: {failure}");
        }
    }
    let trust = if of_cluster { Trust::ByNamespace } else { Trust::AllTargets };
    let frame = Frame { now: Instant::now(), stale_after: STALE_AFTER, namespaces: &look.namespaces, trust };
    let assembled = observe::assemble(&frame, &look.targets, &seen, &mut Disputes::default());
    assembled.problems.iter().for_each(|problem| errorln!("{problem}"));
    Ok(hush_core::step(&mut Memory::default(), Timestamp::now(), &assembled.world, &look.policies))
}

async fn of_kubeconfig(selectors: &[NamespaceSelector]) -> anyhow::Result<Look> {
    let all = || vec![NamespaceSelector::all()];
    let allowed = ServerNamespaces(if selectors.is_empty() { all() } else { selectors.to_vec() });
    let client = super::kubernetes::client()
        .await
        .context("nothing to plan: give --world, or --policy with --target or --targets, or a kubeconfig")?;
    cluster::look(&client, &allowed).await.context("listing servers and policies")
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
    let seconds = |seconds: Option<u64>| seconds.map(|seconds| span(Duration::from_secs(seconds)));
    let conditions = [
        ("if generation", decision.if_generation.map(|generation| generation.to_string())),
        ("if idle for", seconds(decision.if_idle_seconds)),
        ("drain", seconds(decision.drain_seconds)),
        ("hold", seconds(decision.hold_seconds)),
    ];
    for (name, value) in conditions {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if decision.dry_run { format!("dry run: {text}") } else { text }
}
