//! What the controllers log. Each has its own log, so all of them are asked and told.

use std::process::ExitCode;

use hush_log::outln;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::act::token;
use super::args::LogLevelArgs;
use super::find::Place;
use super::fleet::{Fleet, Seen};
use super::wire::{Ask, PATIENCE};
use super::words::plain;

const PATH: &str = "/api/v1/log-level";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogLevel {
    level: String,
    configured_level: String,
    until: Option<jiff::Timestamp>,
}

pub async fn run(place: &Place, args: &LogLevelArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::at(place).await?;
    let change = change(args);
    for seen in &fleet.seen {
        let level = match &change {
            Some(change) => tell(place, seen, change).await?,
            None => seen.controller.ask(&Ask::get(PATH.to_owned())).await?,
        };
        outln!("{}", plain(&line(&seen.controller.name, &level)));
    }
    Ok(ExitCode::SUCCESS)
}

/// `None`: nothing is to be changed.
fn change(args: &LogLevelArgs) -> Option<Value> {
    if args.reset {
        return Some(json!({}));
    }
    let level = args.level.as_ref()?;
    Some(match args.span {
        Some(span) => json!({"level": level, "duration": format!("{}ms", span.as_millis())}),
        None => json!({"level": level}),
    })
}

async fn tell(place: &Place, seen: &Seen, change: &Value) -> anyhow::Result<LogLevel> {
    let token = token(place, seen).await?;
    let ask = Ask {
        method: Method::POST,
        path: PATH.to_owned(),
        token: Some(&token),
        body: change.to_string(),
        patience: PATIENCE,
    };
    Ok(seen.controller.ask(&ask).await?)
}

fn line(name: &str, level: &LogLevel) -> String {
    let LogLevel { level, configured_level, until } = level;
    match until {
        Some(until) => format!("{name} logs {level} until {until:.0}, then {configured_level}"),
        None if level == configured_level => format!("{name} logs {level}"),
        None => format!("{name} logs {level} instead of {configured_level}"),
    }
}
