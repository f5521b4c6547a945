//! `hush-controller plan`.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hush_core::{Decision, GpuPlan, Plan, PolicyUnload, StepMemory, format_duration};
use hush_log::{errorln, out, outln};
use jiff::Timestamp;
use tokio::runtime::Runtime;

use super::PlanArgs;
use crate::amount::gib;
use crate::cluster::{self, ClusterInventory, NamespaceSelector, ServerNamespaces};
use crate::metrics::ControllerMetrics;
use crate::observe::{self, AssemblyContext, DisputeTracker, ReportTrust};
use crate::option_values::OutputFormat;
use crate::sources::FileSource;
use crate::{policies, world};

/// All servers are scraped once, right before the plan, so that no sample is older than this.
const STALE_AFTER: Duration = Duration::from_secs(15);

pub fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let plan = match &args.world {
        Some(path) => plan_world_file(path, args)?,
        None => plan_servers(args)?,
    };

    match args.output {
        OutputFormat::Json => outln!("{}", serde_json::to_string_pretty(&plan).context("writing the plan")?),
        OutputFormat::Text => out!("{}", text(&plan)),
    }
    Ok(ExitCode::SUCCESS)
}

fn plan_world_file(path: &Path, args: &PlanArgs) -> anyhow::Result<Plan> {
    let mut inputs = world::read(path)?;
    for path in &args.fleet.policy {
        inputs.policies.extend(policies::read_input(path)?);
    }
    Ok(hush_core::step(&mut inputs.memory, inputs.now, &inputs.world, &inputs.policies))
}

/// Scrapes each server once. Nothing is remembered, so that grace periods begin now.
fn plan_servers(args: &PlanArgs) -> anyhow::Result<Plan> {
    let fleet = &args.fleet;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let uses_cluster = fleet.target.is_empty() && fleet.targets.is_none();
    let look = find_servers(args, uses_cluster, &runtime)?;
    look.problems.iter().for_each(|problem| errorln!("{problem}"));

    let metrics = Arc::new(ControllerMetrics::new().context("setting up the metrics")?);
    let authorities = fleet.authorities()?;
    let scraper = fleet.scraper(Duration::from_secs(1), &metrics, authorities.as_ref())?;
    runtime.block_on(observe::scrape_all_once(&scraper, &look.targets));
    let seen = scraper.store.all();
    for (server, seen) in &seen {
        if let Some(failure) = &seen.failure {
            errorln!("{server} cannot be observed: {failure}");
        }
    }

    let trust = if uses_cluster { ReportTrust::ByNamespace } else { ReportTrust::AllTargets };
    let frame = AssemblyContext { now: Instant::now(), stale_after: STALE_AFTER, namespaces: &look.namespaces, trust };
    let assembled = observe::assemble(&frame, &look.targets, &seen, &mut DisputeTracker::default());
    assembled.problems.iter().for_each(|problem| errorln!("{problem}"));

    Ok(hush_core::step(&mut StepMemory::default(), Timestamp::now(), &assembled.world, &look.policies))
}

/// The servers and policies of the cluster, or those that the options name.
fn find_servers(args: &PlanArgs, uses_cluster: bool, runtime: &Runtime) -> anyhow::Result<ClusterInventory> {
    let fleet = &args.fleet;
    let mut look = if uses_cluster {
        runtime.block_on(list_cluster(&args.server_namespaces))?
    } else {
        anyhow::ensure!(!fleet.policy.is_empty(), "no policy: give a file with --policy");
        ClusterInventory { targets: fleet.targets().read()?, ..ClusterInventory::default() }
    };

    if !fleet.policy.is_empty() {
        look.policies.extend(fleet.policies().read()?);
    }
    Ok(look)
}

async fn list_cluster(selectors: &[NamespaceSelector]) -> anyhow::Result<ClusterInventory> {
    let allowed = if selectors.is_empty() { vec![NamespaceSelector::all()] } else { selectors.to_vec() };
    let client = super::kubernetes::connect_without_metrics()
        .await
        .context("nothing to plan: give --world, or --policy with --target or --targets, or a kubeconfig")?;

    cluster::read_once(&client, &ServerNamespaces(allowed)).await.context("listing servers and policies")
}

/// The GPUs, what is to be done, and why nothing is done with the other models.
fn text(plan: &Plan) -> String {
    let mut text = String::new();

    for gpu in &plan.gpus {
        push_line(&mut text, &gpu_line(gpu));
    }
    for decision in &plan.decisions {
        push_line(&mut text, &decision_line(decision));
    }
    if plan.decisions.is_empty() {
        push_line(&mut text, "nothing to do");
    }
    for skip in &plan.skips {
        let line = format!("  not {} {}: {} ({})", skip.server, skip.model, skip.reason, skip.detail);
        push_line(&mut text, &line);
    }
    text
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

fn gpu_line(gpu: &GpuPlan) -> String {
    let reason = gpu.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    let target = gpu.target.map(|target| format!(", wants {}", gib(target))).unwrap_or_default();
    format!("{}: pressure {}{reason}, {} available{target}", gpu.uuid, gpu.pressure, gib(gpu.available))
}

fn decision_line(decision: &Decision) -> String {
    let Decision { server, model, action, reason, policy, .. } = decision;
    let seconds = |seconds: Option<u64>| seconds.map(|seconds| format_duration(Duration::from_secs(seconds)));
    let conditions = [
        ("if generation", decision.if_generation.map(|generation| generation.to_string())),
        ("if idle for", seconds(decision.if_idle_seconds)),
        ("drain", seconds(decision.drain_seconds)),
        ("hold", seconds(decision.hold_seconds)),
        ("ends", (decision.unload == PolicyUnload::Process).then(|| "its process".to_owned())),
    ];

    let mut line = format!("{action} {server} {model}: {reason}, {} by {policy}", gib(decision.vram_bytes));
    for (name, value) in conditions {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = write!(line, ", {name} {value}");
        }
    }
    if decision.dry_run { format!("dry run: {line}") } else { line }
}
