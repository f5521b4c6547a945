//! `kubectl hush log-level`. Each controller has its own log, so that the request goes to all of them.

use std::process::ExitCode;

use hush_log::outln;
use hyper::Method;

use super::args::LogLevelArgs;
use super::client::{ControllerRequest, REQUEST_TIMEOUT};
use super::commands::token;
use super::discovery::PluginContext;
use super::fleet::{ControllerReport, FleetView};
use super::format::terminal_line;
use crate::web::view::{ChangeLogLevelRequest, LogLevelView};

const PATH: &str = "/api/v1/log-level";

pub async fn run(context: &PluginContext, args: &LogLevelArgs) -> anyhow::Result<ExitCode> {
    let fleet = FleetView::load(context).await?;
    let change = change(args);

    for report in &fleet.reports {
        let level = match &change {
            Some(change) => send_change(context, report, change).await?,
            None => report.controller.send(&ControllerRequest::get(PATH.to_owned())).await?,
        };
        outln!("{}", terminal_line(&summary(&report.controller.name, &level)));
    }
    Ok(ExitCode::SUCCESS)
}

/// `None`: the level is only shown.
fn change(args: &LogLevelArgs) -> Option<ChangeLogLevelRequest> {
    if args.reset {
        return Some(ChangeLogLevelRequest::default());
    }

    let level = args.level.clone()?;
    let duration = args.duration.map(|duration| format!("{}ms", duration.as_millis()));
    Some(ChangeLogLevelRequest { level: Some(level), duration })
}

async fn send_change(
    context: &PluginContext,
    report: &ControllerReport,
    change: &ChangeLogLevelRequest,
) -> anyhow::Result<LogLevelView> {
    let token = token(context, report).await?;
    let request = ControllerRequest {
        method: Method::POST,
        path: PATH.to_owned(),
        token: Some(&token),
        body: serde_json::to_string(change)?,
        timeout: REQUEST_TIMEOUT,
    };
    Ok(report.controller.send(&request).await?)
}

fn summary(name: &str, level: &LogLevelView) -> String {
    let LogLevelView { level, configured_level, until } = level;
    match until {
        Some(until) => format!("{name} logs {level} until {until:.0}, then {configured_level}"),
        None if level == configured_level => format!("{name} logs {level}"),
        None => format!("{name} logs {level} instead of {configured_level}"),
    }
}
