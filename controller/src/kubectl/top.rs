//! `kubectl hush top`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use hush_log::{explain, outln};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::args::TopArgs;
use super::client::ControllerEndpoint;
use super::discovery::PluginContext;
use super::fleet::FleetView;
use super::format::{count, duration_between, reclaimed_memory, short_uuid, terminal_line};
use super::outlook::outlook_cell;
use super::response::RecordView;
use super::screen::{self, Screen};
use super::table::TextTable;
use crate::amount::gib;
use crate::option_values::OutputFormat;
use crate::web::view::{GpuView, ModelStateView};

const BAR_CELLS: usize = 24;
/// How many of the last commands the live view shows.
const RECORDS_SHOWN: usize = 5;
/// Pods of controllers come and go, so that they are listed again after this time.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(30);

pub async fn run(context: PluginContext, args: &TopArgs) -> anyhow::Result<ExitCode> {
    if args.output == OutputFormat::Text && !args.once && screen::is_available() {
        return run_live(&context, args.interval).await;
    }

    let fleet = FleetView::load(&context).await?.within(context.requested_namespace.as_deref());
    match args.output {
        OutputFormat::Json => outln!("{}", serde_json::to_string_pretty(&fleet).context("writing the state")?),
        OutputFormat::Text => {
            page_lines(&fleet, Timestamp::now(), 0).iter().for_each(|line| outln!("{line}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_live(context: &PluginContext, interval: Duration) -> anyhow::Result<ExitCode> {
    let mut watch = FleetWatch { context, controllers: Vec::new(), discovered_at: None };
    // The first fetch comes before the alternate screen, so that its error stays visible.
    let mut shown = page_lines(&watch.fetch().await?, Timestamp::now(), RECORDS_SHOWN);

    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut resized = signal(SignalKind::window_change())?;
    let mut screen = Screen::open().context("the terminal")?;

    let mut next = tokio::time::Instant::now() + interval;
    loop {
        screen.draw(&shown).context("the terminal")?;
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = resized.recv() => continue,
            Some(key) = screen.keys.recv() => if matches!(key, b'q' | b'Q' | 0x1b) { break },
            () = tokio::time::sleep_until(next) => {}
        }

        match watch.fetch().await {
            Ok(fleet) => shown = page_lines(&fleet, Timestamp::now(), RECORDS_SHOWN),
            Err(error) => show_error(&mut shown, &explain(error.as_ref())),
        }
        next = tokio::time::Instant::now() + interval;
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the error above the last figures, in place of the last error.
fn show_error(shown: &mut Vec<String>, error: &str) {
    shown.retain(|line| !line.starts_with("! "));
    shown.splice(0..0, error.lines().map(|line| format!("! {}", terminal_line(line))));
}

struct FleetWatch<'a> {
    context: &'a PluginContext,
    controllers: Vec<ControllerEndpoint>,
    /// `None`: the controllers are listed again at the next fetch.
    discovered_at: Option<Instant>,
}

impl FleetWatch<'_> {
    async fn fetch(&mut self) -> anyhow::Result<FleetView> {
        if self.discovered_at.is_none_or(|at| at.elapsed() > DISCOVERY_INTERVAL) {
            self.controllers = self.context.controllers().await?;
            self.discovered_at = Some(Instant::now());
        }

        let fleet = FleetView::fetch(&self.controllers).await;
        let all_responded = fleet.as_ref().is_ok_and(|fleet| fleet.reports.len() >= self.controllers.len());
        if !all_responded {
            self.discovered_at = None;
        }
        fleet.map(|fleet| fleet.within(self.context.requested_namespace.as_deref()))
    }
}

/// `records_shown`: how many of the last commands are shown.
fn page_lines(fleet: &FleetView, now: Timestamp, records_shown: usize) -> Vec<String> {
    let mut lines = vec![title(fleet, now)];
    let problems = fleet.problems.iter().flat_map(|problem| problem.lines());
    lines.extend(problems.map(|line| format!("! {}", terminal_line(line))));

    let paused = fleet.policies.iter().filter_map(|policy| Some((&policy.name, policy.paused.as_ref()?)));
    lines.extend(paused.map(|(name, paused)| {
        terminal_line(&format!("! {name} is {}: it only shows what it would do", paused.summary()))
    }));

    if !fleet.gpus.is_empty() {
        lines.push(String::new());
        lines.extend(gpus_table(fleet).lines());
    }

    lines.push(String::new());
    let models = models_table(fleet);
    if models.is_empty() {
        lines.push("no model is known yet".to_owned());
    } else {
        lines.extend(models.lines());
    }

    let not_answering = fleet.servers.iter().filter(|server| server.state != "answering");
    lines.extend(not_answering.map(|server| {
        let failure = server.failure.as_deref().unwrap_or("it has not answered yet");
        terminal_line(&format!("! {} is {}: {failure}", server.server, server.state))
    }));

    let last = fleet.records.iter().rev().take(records_shown);
    let last: Vec<String> = last.map(|record| record_line(record)).collect();
    if !last.is_empty() {
        lines.push(String::new());
        lines.extend(last);
    }
    lines
}

fn title(fleet: &FleetView, now: Timestamp) -> String {
    let loaded = fleet.models.iter().filter(|model| model.is_ready()).count();
    let versions: BTreeSet<&str> = fleet.controllers.iter().map(|controller| controller.version.as_str()).collect();

    terminal_line(&format!(
        "hush {}  {}, {}  {}, {} ({loaded} loaded)  {}",
        versions.into_iter().collect::<Vec<_>>().join(", "),
        count(fleet.controllers.len(), "controller"),
        fleet.acting_summary(),
        count(fleet.gpus.len(), "GPU"),
        count(fleet.models.len(), "model"),
        now.strftime("%H:%M:%SZ"),
    ))
}

fn gpus_table(fleet: &FleetView) -> TextTable {
    let mut table =
        TextTable::new(&["NODE", "GPU", "#OURS =OTHERS .FREE", "OURS", "OTHERS", "FREE", "OF", "PRESSURE", "BELOW"]);

    for gpu in &fleet.gpus {
        let pressure = if gpu.fresh { gpu.pressure_and_reason() } else { "too old".to_owned() };
        let below: Vec<String> =
            gpu.thresholds.iter().map(|t| format!("{} {}", t.level.to_lowercase(), gib(t.below_bytes))).collect();

        table.push_row([
            gpu.node.clone(),
            short_uuid(&gpu.uuid),
            memory_bar(gpu),
            gib(gpu.ours_bytes),
            gib(gpu.others_bytes),
            gib(gpu.free_bytes),
            gib(gpu.total_bytes),
            pressure,
            below.join(", "),
        ]);
    }
    table
}

/// The memory of a GPU as a bar: `#` ours, `=` of others, `.` free. Pressure begins when the held memory reaches a mark:
/// `!` hard, `|` soft.
fn memory_bar(gpu: &GpuView) -> String {
    let cells = |bytes: u64| {
        let cells = u128::from(bytes) * BAR_CELLS as u128 / u128::from(gpu.total_bytes.max(1));
        usize::try_from(cells).unwrap_or(BAR_CELLS).min(BAR_CELLS)
    };
    let (ours, held) = (cells(gpu.ours_bytes), cells(gpu.ours_bytes.saturating_add(gpu.others_bytes)));

    let mut bar: Vec<char> = (0..BAR_CELLS)
        .map(|cell| match cell {
            _ if cell < ours => '#',
            _ if cell < held => '=',
            _ => '.',
        })
        .collect();

    for threshold in &gpu.thresholds {
        let index = cells(gpu.total_bytes.saturating_sub(threshold.below_bytes));
        // A hard mark is not overwritten by a soft one.
        if let Some(cell) = bar.get_mut(index).filter(|cell| **cell != '!') {
            *cell = if threshold.level == "Hard" { '!' } else { '|' };
        }
    }
    format!("[{}]", bar.into_iter().collect::<String>())
}

fn models_table(fleet: &FleetView) -> TextTable {
    let mut table = TextTable::new(&[
        "POD",
        "APP",
        "MODEL",
        "STATE",
        "GPU",
        "MEMORY",
        "IDLE",
        "UNLOADS IN",
        "POLICIES",
        "WHY IT STAYS",
    ]);

    for model in &fleet.models {
        let at = fleet.as_of(&model.server);
        let decision = fleet.decision(model);
        let policies = model.rules.as_ref().map_or_else(|| "none".to_owned(), |rules| rules.policies.join(", "));
        let reason = decision.map(|decision| decision.reason.clone());
        let reason = reason.or_else(|| model.why.first().map(|why| why.reason.clone())).unwrap_or_default();

        table.push_row([
            model.server.clone(),
            model.app.clone(),
            model.model.clone(),
            state_cell(model),
            model.gpu.as_deref().map(short_uuid).unwrap_or_default(),
            memory_cell(model),
            model.idle_since.map(|since| duration_between(since.0, at)).unwrap_or_default(),
            outlook_cell(model, decision, at),
            policies,
            reason,
        ]);
    }
    table
}

fn memory_cell(model: &ModelStateView) -> String {
    match model.demand_bytes {
        Some(demand) if demand > 0 => format!("wants {}", gib(demand)),
        Some(_) => String::new(),
        None if model.held_bytes() == 0 => String::new(),
        None => gib(model.held_bytes()),
    }
}

/// The state with the number of requests, or with a question mark when the figures are too old.
fn state_cell(model: &ModelStateView) -> String {
    match (model.fresh, model.requests()) {
        (false, _) => format!("{}?", model.state),
        (true, 0) => model.state.clone(),
        (true, requests) => format!("{} ({requests})", model.state),
    }
}

/// A command and its outcome in one line.
pub fn record_line(record: &RecordView) -> String {
    let by = if record.policy.is_empty() { String::new() } else { format!(", {}", record.policy) };
    let outcome = match reclaimed_memory(record) {
        Some(memory) => format!("unloaded, {memory}"),
        None => {
            let message = record.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
            format!("{}{message}", record.outcome.to_lowercase())
        }
    };

    terminal_line(&format!(
        "{}  {} {} {} ({}{by}): {outcome}",
        record.time.strftime("%H:%M:%SZ"),
        record.action.to_lowercase(),
        record.server,
        record.model,
        record.reason
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bar_shows_who_holds_what_and_where_pressure_begins() {
        let gpu = |ours: u64, others: u64, below: &[(&str, u64)]| -> GpuView {
            let thresholds: Vec<_> =
                below.iter().map(|(l, b)| json!({"level": l, "belowBytes": b, "policy": "p"})).collect();
            serde_json::from_value(json!({"uuid": "G", "totalBytes": 24, "oursBytes": ours, "othersBytes": others,
                "freeBytes": 24 - ours - others, "fresh": true, "pressure": "None", "thresholds": thresholds}))
            .unwrap()
        };

        assert_eq!(memory_bar(&gpu(3, 5, &[("Hard", 2), ("Soft", 6)])), "[###=====..........|...!.]");
        assert_eq!(memory_bar(&gpu(0, 0, &[])), format!("[{}]", ".".repeat(24)));
        assert_eq!(memory_bar(&gpu(24, 0, &[("Soft", 24)])), format!("[|{}]", "#".repeat(23)));

        let without_size = GpuView { total_bytes: 0, ..gpu(0, 0, &[]) };
        assert_eq!(memory_bar(&without_size).chars().count(), BAR_CELLS + 2, "a GPU that reports no size");
    }

    #[test]
    fn the_kind_of_app_stands_beside_its_model() {
        let old = json!({"server": "m/a", "model": "base", "state": "Unloaded", "generation": 1, "vramBytes": 0, "fresh": true});
        let mut llm = old.clone();
        for (field, value) in [("server", "m/b"), ("app", "ollama"), ("model", "llama3.2:3b")] {
            llm[field] = json!(value);
        }
        let mut fleet = FleetView::merge(Vec::new(), Vec::new());
        fleet.models = serde_json::from_value(json!([old, llm])).unwrap();

        let lines = models_table(&fleet).lines();
        assert!(lines[0].starts_with("POD  APP      MODEL        STATE"), "{lines:?}");
        assert!(lines[1].starts_with("m/a  whisper  base "), "a controller that does not report it: {lines:?}");
        assert!(lines[2].starts_with("m/b  ollama   llama3.2:3b "), "{lines:?}");
    }

    #[test]
    fn a_command_and_its_outcome() {
        let line = |fields: serde_json::Value| {
            let mut record = json!({"time": "2026-01-01T10:11:12Z", "server": "m/w", "model": "base", "action": "Unload",
                "reason": "HardPressure", "policy": "/floor"});
            fields.as_object().unwrap().iter().for_each(|(key, value)| record[key] = value.clone());
            record_line(&serde_json::from_value(record).unwrap())
        };

        assert_eq!(
            line(json!({"outcome": "Unloaded", "reclaimedBytes": 3_u64 << 30, "residualBytes": 1 << 28})),
            "10:11:12Z  unload m/w base (HardPressure, /floor): unloaded, 3.00Gi came back, 0.25Gi did not"
        );
        assert_eq!(
            line(
                json!({"outcome": "Refused", "code": "busy", "message": "2 in flight", "policy": "", "reason": "Manual"})
            ),
            "10:11:12Z  unload m/w base (Manual): refused: 2 in flight"
        );
    }
}
