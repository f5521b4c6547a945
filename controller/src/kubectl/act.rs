//! `kubectl hush unload`, `load`, `pause`, `resume`: commands with the condition that the person saw.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use hush_contract::percent::query_value;
use hush_log::{errorln, explain, outln, printable_lines};
use hyper::Method;
use serde_json::{Value, json};

use super::args::{LoadArgs, PauseArgs, ResumeArgs, TargetArgs, UnloadArgs};
use super::find::Place;
use super::fleet::{Fleet, Seen};
use super::read::{Model, Record};
use super::wire::{Ask, Trouble};
use super::words::{LINE_MAX_CHARS, came_back, count, plain, span};
use crate::amount::gib;
use crate::web::WITHHELD;

/// The controller waits this long beyond the drain, and then says that it does not know.
const PATIENCE: Duration = Duration::from_secs(75);

/// One command, for each of some models.
struct Command<'a> {
    verb: &'static str,
    body: &'a dyn Fn(&Model) -> Value,
    /// What comes with it, for people.
    with: String,
    /// `Some`: why nothing is to be done.
    done: fn(&Model) -> Option<&'static str>,
    drain: Duration,
    args: &'a TargetArgs,
}

pub async fn unload(place: &Place, args: &UnloadArgs) -> anyhow::Result<ExitCode> {
    let seconds = |span: Duration| span.as_secs() + u64::from(span.subsec_nanos() > 0);
    let body = |model: &Model| {
        let mut body = json!({"ifGeneration": model.generation});
        if let Some(drain) = args.drain {
            body["drainSeconds"] = json!(seconds(drain));
        }
        if let Some(hold) = args.hold {
            body["holdSeconds"] = json!(seconds(hold));
        }
        body
    };
    let busy = args.drain.map_or_else(
        || " and not busy".to_owned(),
        |drain| format!("; requests in flight may go on for {}", span(seconds(drain) * 1000)),
    );
    let hold = args.hold.map(|hold| format!("; it stays away for {}", span(seconds(hold) * 1000))).unwrap_or_default();
    let done = |model: &Model| match model.state.as_str() {
        "Unloaded" => Some("is not loaded"),
        "Draining" | "Unloading" => Some("is leaving already"),
        _ => None,
    };
    let drain = args.drain.unwrap_or_default();
    let with = format!("{busy}{hold}");
    command(place, Command { verb: "unload", body: &body, with, done, drain, args: &args.target }).await
}

pub async fn load(place: &Place, args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let body = |model: &Model| json!({"ifGeneration": model.generation});
    let done = |model: &Model| match model.state.as_str() {
        "Ready" => Some("is loaded"),
        "Loading" => Some("is being loaded already"),
        _ => None,
    };
    let (with, drain) = (String::new(), Duration::ZERO);
    command(place, Command { verb: "load", body: &body, with, done, drain, args: &args.target }).await
}

async fn command(place: &Place, command: Command<'_>) -> anyhow::Result<ExitCode> {
    let TargetArgs { target, model, all, dry_run, yes } = command.args;
    let verb = command.verb;
    let fleet = Fleet::at(place).await?;
    let found = fleet.models_named(place.namespace.as_deref(), target, model.as_deref())?;
    if found.len() > 1 && !all {
        let names: Vec<String> = found.iter().map(|model| format!("  {}", plain(&model.name()))).collect();
        bail!(
            "`{target}` is several models; name one with POD MODEL, or {verb} them all with --all:\n{}",
            names.join("\n")
        );
    }
    let (idle, todo): (Vec<&Model>, Vec<&Model>) = found.into_iter().partition(|model| (command.done)(model).is_some());
    for model in idle {
        outln!("{} {}", plain(&model.name()), (command.done)(model).unwrap_or_default());
    }
    if *dry_run {
        for model in todo {
            let bytes = model.held_bytes().max(model.needed_bytes().unwrap_or(0));
            let memory = if bytes == 0 { String::new() } else { format!(" ({})", gib(bytes)) };
            let (name, generation, with) = (plain(&model.name()), model.generation, &command.with);
            outln!("would {verb} {name}{memory} if it is still generation {generation}{with}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let dangerous = todo.len() > 1 || (command.drain > Duration::ZERO && todo.iter().any(|model| model.requests() > 0));
    if dangerous && !yes {
        let names: Vec<String> = todo.iter().map(|model| plain(&model.name())).collect();
        let question = format!("{verb} {}: {}", count(todo.len(), "model"), names.join(", "));
        if !confirmed(&question)? {
            bail!("nothing was done");
        }
    }
    let mut ended = ExitCode::SUCCESS;
    for model in todo {
        match send(place, &fleet, model, &command).await {
            Ok(record) => outln!("{}", plain(&end(model, &record))),
            Err(error) => {
                errorln!("{}: {}", plain(&model.name()), printable_lines(&explain(error.as_ref()), LINE_MAX_CHARS));
                ended = ExitCode::FAILURE;
            }
        }
    }
    Ok(ended)
}

/// Asks one controller after the other until one may act: the others have sent nothing.
async fn send(place: &Place, fleet: &Fleet, model: &Model, command: &Command<'_>) -> anyhow::Result<Record> {
    let verb = command.verb;
    let path = format!("/api/v1/{verb}?server={}&model={}", query_value(&model.server), query_value(&model.model));
    let mut withheld = Vec::new();
    for seen in fleet.controllers_of(&model.server) {
        let token = token(place, seen).await?;
        let ask = Ask {
            method: Method::POST,
            path: path.clone(),
            token: Some(&token),
            body: (command.body)(model).to_string(),
            patience: PATIENCE + command.drain,
        };
        match seen.controller.ask(&ask).await {
            Ok(record) => return Ok(record),
            Err(Trouble::Refused(refusal)) if refusal.code == WITHHELD => {
                withheld.push(format!("  {}: {}", refusal.controller, refusal.message));
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
    bail!("no controller may act on it now:\n{}", withheld.join("\n"))
}

/// What the controller asks of those who act, and of those who try out policies.
pub async fn token(place: &Place, seen: &Seen) -> anyhow::Result<String> {
    let name = &seen.controller.name;
    anyhow::ensure!(
        seen.state.actions,
        "actions are off at {name}: give it a token with --page-token-file (`controller.pageToken` of the chart)"
    );
    place.token(&seen.controller).await
}

pub async fn pause(place: &Place, args: &PauseArgs) -> anyhow::Result<ExitCode> {
    let mut body = match args.span {
        Some(span) => json!({"duration": format!("{}ms", span.as_millis())}),
        None => json!({"untilResumed": true}),
    };
    let (fleet, name) = policy(place, &args.policy).await?;
    body["claimedBy"] = json!(place.user().await);
    tell(place, &fleet, "pause", &name, body).await?;
    let until = args.span.map(|time| span(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
    let until = until.map_or_else(|| "until it is resumed".to_owned(), |span| format!("for {span}"));
    outln!("{name} only shows what it would do, {until}");
    Ok(ExitCode::SUCCESS)
}

pub async fn resume(place: &Place, args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let (fleet, name) = policy(place, &args.policy).await?;
    let body = json!({"claimedBy": place.user().await});
    let answers = tell(place, &fleet, "resume", &name, body).await?;
    let was = answers.iter().any(|answer| answer["resumed"] == true);
    outln!("{name} {}", if was { "is in force again" } else { "was not paused" });
    Ok(ExitCode::SUCCESS)
}

async fn policy(place: &Place, name: &str) -> anyhow::Result<(Fleet, String)> {
    let fleet = Fleet::at(place).await?;
    let name = fleet.policy_named(place.namespace.as_deref(), name)?.to_owned();
    Ok((fleet, name))
}

/// Every controller that acts, since each acts by the policy.
async fn tell(place: &Place, fleet: &Fleet, verb: &str, policy: &str, body: Value) -> anyhow::Result<Vec<Value>> {
    let acting: Vec<&Seen> = fleet.seen.iter().filter(|seen| seen.state.acting).collect();
    anyhow::ensure!(!acting.is_empty(), "no controller acts now, so that there is nothing to {verb}");
    let mut answers = Vec::with_capacity(acting.len());
    for seen in acting {
        let token = token(place, seen).await?;
        let ask = Ask {
            method: Method::POST,
            path: format!("/api/v1/{verb}?policy={}", query_value(policy)),
            token: Some(&token),
            body: body.to_string(),
            patience: super::wire::PATIENCE,
        };
        answers.push(seen.controller.ask(&ask).await?);
    }
    Ok(answers)
}

fn end(model: &Model, record: &Record) -> String {
    match (came_back(record), record.outcome.as_str()) {
        (Some(memory), _) => format!("{} unloaded, {memory}", model.name()),
        (None, "Loading") => format!("{} is being loaded", model.name()),
        (None, outcome) => format!("{} {}", model.name(), outcome.to_lowercase()),
    }
}

fn confirmed(question: &str) -> anyhow::Result<bool> {
    let input = std::io::stdin();
    anyhow::ensure!(input.is_terminal(), "{question}: say --yes where nobody can be asked");
    let mut screen = std::io::stderr();
    write!(screen, "{question}? [y/N] ").and_then(|()| screen.flush()).context("asking for a confirmation")?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
