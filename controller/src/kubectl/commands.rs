//! `kubectl hush unload`, `load`, `pause`, `resume`. Each command carries the generation that the plugin has shown or read
//! before, so that it has no effect on a model that has changed since.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use hush_contract::percent::query_value;
use hush_log::{errorln, explain, outln, printable_lines};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::{LoadArgs, PauseArgs, ResumeArgs, TargetArgs, UnloadArgs};
use super::client::{ControllerRequest, ControllerRequestError, REQUEST_TIMEOUT};
use super::discovery::PluginContext;
use super::fleet::{ControllerReport, FleetView};
use super::format::{LINE_MAX_CHARS, count, duration, reclaimed_memory, terminal_line, whole_seconds};
use super::response::RecordView;
use crate::amount::gib;
use crate::web::WITHHELD;
use crate::web::view::{
    LoadModelRequest, ModelStateView, PauseRequest, PausedView, ResumeRequest, ResumedView, UnloadModelRequest,
};

/// The controller waits this long beyond the drain, and then responds that the outcome is not known yet.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(75);

/// A command that is sent for each of the models that its arguments name.
struct ModelCommand<'a> {
    verb: &'static str,
    body: &'a dyn Fn(&ModelStateView) -> serde_json::Result<String>,
    /// The conditions of the command besides the generation, for `--dry-run`.
    conditions: String,
    /// Why nothing is to be done for a model; `None`: the command is sent.
    nothing_to_do: fn(&ModelStateView) -> Option<&'static str>,
    drain: Duration,
    args: &'a TargetArgs,
}

pub async fn unload(context: &PluginContext, args: &UnloadArgs) -> anyhow::Result<ExitCode> {
    let body = |model: &ModelStateView| {
        serde_json::to_string(&UnloadModelRequest {
            if_generation: model.generation,
            drain_seconds: args.drain.map(whole_seconds),
            hold_seconds: args.hold.map(whole_seconds),
        })
    };

    let busy = match args.drain {
        Some(drain) => format!("; requests in flight may go on for {}", duration(whole_seconds(drain) * 1000)),
        None => " and not busy".to_owned(),
    };
    let hold = args.hold.map(|hold| format!("; it stays away for {}", duration(whole_seconds(hold) * 1000)));

    let nothing_to_do = |model: &ModelStateView| match model.state.as_str() {
        "Unloaded" => Some("is not loaded"),
        "Draining" | "Unloading" => Some("is leaving already"),
        _ => None,
    };
    let command = ModelCommand {
        verb: "unload",
        body: &body,
        conditions: format!("{busy}{}", hold.unwrap_or_default()),
        nothing_to_do,
        drain: args.drain.unwrap_or_default(),
        args: &args.target,
    };
    run(context, command).await
}

pub async fn load(context: &PluginContext, args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let body = |model: &ModelStateView| serde_json::to_string(&LoadModelRequest { if_generation: model.generation });
    let nothing_to_do = |model: &ModelStateView| match model.state.as_str() {
        "Ready" => Some("is loaded"),
        "Loading" => Some("is being loaded already"),
        _ => None,
    };

    let command = ModelCommand {
        verb: "load",
        body: &body,
        conditions: String::new(),
        nothing_to_do,
        drain: Duration::ZERO,
        args: &args.target,
    };
    run(context, command).await
}

async fn run(context: &PluginContext, command: ModelCommand<'_>) -> anyhow::Result<ExitCode> {
    let TargetArgs { target, model, all, dry_run, yes } = command.args;
    let verb = command.verb;
    let fleet = FleetView::load(context).await?;

    let named = fleet.models_named(context.namespace.as_deref(), target, model.as_deref())?;
    if named.len() > 1 && !all {
        let names: Vec<String> = named.iter().map(|model| format!("  {}", terminal_line(&model.name()))).collect();
        bail!(
            "`{target}` is several models; name one with POD MODEL, or {verb} them all with --all:\n{}",
            names.join("\n")
        );
    }

    let (done, pending): (Vec<&ModelStateView>, Vec<&ModelStateView>) =
        named.into_iter().partition(|model| (command.nothing_to_do)(model).is_some());
    for model in done {
        outln!("{} {}", terminal_line(&model.name()), (command.nothing_to_do)(model).unwrap_or_default());
    }

    if *dry_run {
        pending.into_iter().for_each(|model| print_dry_run(&command, model));
        return Ok(ExitCode::SUCCESS);
    }

    let breaks_off_requests = command.drain > Duration::ZERO && pending.iter().any(|model| model.requests() > 0);
    if (pending.len() > 1 || breaks_off_requests) && !yes {
        let names: Vec<String> = pending.iter().map(|model| terminal_line(&model.name())).collect();
        let question = format!("{verb} {}: {}", count(pending.len(), "model"), names.join(", "));
        if !confirm(&question)? {
            bail!("nothing was done");
        }
    }

    let mut status = ExitCode::SUCCESS;
    for model in pending {
        match send_to_model(context, &fleet, model, &command).await {
            Ok(record) => outln!("{}", terminal_line(&outcome(model, &record))),
            Err(error) => {
                let error = printable_lines(&explain(error.as_ref()), LINE_MAX_CHARS);
                errorln!("{}: {error}", terminal_line(&model.name()));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn print_dry_run(command: &ModelCommand<'_>, model: &ModelStateView) {
    let bytes = model.held_bytes().max(model.needed_bytes().unwrap_or(0));
    let memory = if bytes == 0 { String::new() } else { format!(" ({})", gib(bytes)) };
    let (verb, name, generation) = (command.verb, terminal_line(&model.name()), model.generation);

    outln!("would {verb} {name}{memory} if it is still generation {generation}{}", command.conditions);
}

/// Sends the command to one controller after the other until one may act; those before it have sent nothing to the server.
async fn send_to_model(
    context: &PluginContext,
    fleet: &FleetView,
    model: &ModelStateView,
    command: &ModelCommand<'_>,
) -> anyhow::Result<RecordView> {
    let verb = command.verb;
    let path = format!("/api/v1/{verb}?server={}&model={}", query_value(&model.server), query_value(&model.model));
    let mut withheld = Vec::new();

    for report in fleet.controllers_of(&model.server) {
        let token = token(context, report).await?;
        let request = ControllerRequest {
            method: Method::POST,
            path: path.clone(),
            token: Some(&token),
            body: (command.body)(model)?,
            timeout: COMMAND_TIMEOUT + command.drain,
        };

        match report.controller.send(&request).await {
            Ok(record) => return Ok(record),
            Err(ControllerRequestError::Refused(refusal)) if refusal.code == WITHHELD => {
                withheld.push(format!("  {}: {}", refusal.controller, refusal.message));
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no controller may act on it now:\n{}", withheld.join("\n"))
}

/// The token that the controller requires for commands and for plans with other policies.
pub async fn token(context: &PluginContext, report: &ControllerReport) -> anyhow::Result<String> {
    let name = &report.controller.name;
    anyhow::ensure!(
        report.state.actions,
        "actions are off at {name}: give it a token with --page-token-file (`controller.pageToken` of the chart)"
    );
    context.token(&report.controller).await
}

pub async fn pause(context: &PluginContext, args: &PauseArgs) -> anyhow::Result<ExitCode> {
    let (fleet, name) = find_policy(context, &args.policy).await?;
    let request = PauseRequest {
        duration: args.duration.map(|duration| format!("{}ms", duration.as_millis())),
        until_resumed: args.duration.is_none(),
        claimed_by: context.user().await,
    };
    let _: Vec<PausedView> = send_to_acting(context, &fleet, "pause", &name, &request).await?;

    let until = match args.duration {
        Some(time) => format!("for {}", duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))),
        None => "until it is resumed".to_owned(),
    };
    outln!("{name} only shows what it would do, {until}");
    Ok(ExitCode::SUCCESS)
}

pub async fn resume(context: &PluginContext, args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let (fleet, name) = find_policy(context, &args.policy).await?;
    let request = ResumeRequest { claimed_by: context.user().await };
    let responses: Vec<ResumedView> = send_to_acting(context, &fleet, "resume", &name, &request).await?;

    let was_paused = responses.iter().any(|response| response.resumed);
    outln!("{name} {}", if was_paused { "is in force again" } else { "was not paused" });
    Ok(ExitCode::SUCCESS)
}

async fn find_policy(context: &PluginContext, name: &str) -> anyhow::Result<(FleetView, String)> {
    let fleet = FleetView::load(context).await?;
    let name = fleet.policy_named(context.namespace.as_deref(), name)?.to_owned();
    Ok((fleet, name))
}

/// Sends a request about a policy to every controller that acts, because each of them acts by the policy.
async fn send_to_acting<T: DeserializeOwned>(
    context: &PluginContext,
    fleet: &FleetView,
    verb: &str,
    policy: &str,
    body: &impl Serialize,
) -> anyhow::Result<Vec<T>> {
    let acting: Vec<&ControllerReport> = fleet.reports.iter().filter(|report| report.state.acting).collect();
    anyhow::ensure!(!acting.is_empty(), "no controller acts now, so that there is nothing to {verb}");

    let mut responses = Vec::with_capacity(acting.len());
    for report in acting {
        let token = token(context, report).await?;
        let request = ControllerRequest {
            method: Method::POST,
            path: format!("/api/v1/{verb}?policy={}", query_value(policy)),
            token: Some(&token),
            body: serde_json::to_string(body)?,
            timeout: REQUEST_TIMEOUT,
        };
        responses.push(report.controller.send(&request).await?);
    }
    Ok(responses)
}

fn outcome(model: &ModelStateView, record: &RecordView) -> String {
    match (reclaimed_memory(record), record.outcome.as_str()) {
        (Some(memory), _) => format!("{} unloaded, {memory}", model.name()),
        (None, "Loading") => format!("{} is being loaded", model.name()),
        (None, outcome) => format!("{} {}", model.name(), outcome.to_lowercase()),
    }
}

fn confirm(question: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    anyhow::ensure!(input.is_terminal(), "{question}: give --yes, because without a terminal there is no confirmation");

    let mut screen = std::io::stderr();
    write!(screen, "{question}? [y/N] ").and_then(|()| screen.flush()).context("asking for a confirmation")?;

    let mut answer = String::new();
    input.lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
