//! `kubectl hush top`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use hush_log::{explain, outln};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use super::args::TopArgs;
use super::fate::leaves;
use super::find::Place;
use super::fleet::Fleet;
use super::read::{Gpu, Model, Record};
use super::screen::{self, Screen};
use super::table::Table;
use super::wire::Controller;
use super::words::{between, came_back, card, count, plain};
use crate::amount::gib;
use crate::cli::Output;

const BAR: usize = 24;
/// Of the last commands so many are shown live.
const RECORDS: usize = 5;
/// Pods of controllers come and go.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(30);

pub async fn run(place: Place, args: &TopArgs) -> anyhow::Result<ExitCode> {
    if args.output == Output::Json {
        let fleet = Fleet::at(&place).await?.within(place.only.as_deref());
        outln!("{}", serde_json::to_string_pretty(&fleet).context("writing the state")?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.once || !screen::is_there() {
        let fleet = Fleet::at(&place).await?.within(place.only.as_deref());
        page(&fleet, Timestamp::now(), 0).iter().for_each(|line| outln!("{line}"));
        return Ok(ExitCode::SUCCESS);
    }
    live(&place, args.interval).await
}

async fn live(place: &Place, interval: Duration) -> anyhow::Result<ExitCode> {
    // What is wrong from the start is said where it stays.
    let mut watched = Watched { place, controllers: Vec::new(), since: None };
    let mut shown = page(&watched.look().await?, Timestamp::now(), RECORDS);
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
        match watched.look().await {
            Ok(fleet) => shown = page(&fleet, Timestamp::now(), RECORDS),
            // The last figures stay, marked.
            Err(error) => {
                shown.retain(|line| !line.starts_with("! "));
                let trouble = explain(error.as_ref());
                shown.splice(0..0, trouble.lines().map(|line| format!("! {}", plain(line))));
            }
        }
        next = tokio::time::Instant::now() + interval;
    }
    Ok(ExitCode::SUCCESS)
}

struct Watched<'a> {
    place: &'a Place,
    controllers: Vec<Controller>,
    since: Option<Instant>,
}

impl Watched<'_> {
    async fn look(&mut self) -> anyhow::Result<Fleet> {
        if self.since.is_none_or(|since| since.elapsed() > LOOK_AROUND_EVERY) {
            self.controllers = self.place.controllers().await?;
            self.since = Some(Instant::now());
        }
        let fleet = Fleet::look(&self.controllers).await;
        if fleet.as_ref().map_or(true, |fleet| fleet.seen.len() < self.controllers.len()) {
            self.since = None;
        }
        fleet.map(|fleet| fleet.within(self.place.only.as_deref()))
    }
}

/// `records`: so many of the last commands.
fn page(fleet: &Fleet, now: Timestamp, records: usize) -> Vec<String> {
    let mut lines = vec![head(fleet, now)];
    lines.extend(fleet.problems.iter().flat_map(|problem| problem.lines()).map(|line| format!("! {}", plain(line))));
    let paused = fleet.policies.iter().filter_map(|policy| Some((&policy.name, policy.paused.as_ref()?)));
    lines.extend(
        paused.map(|(name, paused)| plain(&format!("! {name} is {}: it only shows what it would do", paused.words()))),
    );
    if !fleet.gpus.is_empty() {
        lines.push(String::new());
        lines.extend(gpus(fleet).lines());
    }
    lines.push(String::new());
    let models = models(fleet);
    if models.is_empty() {
        lines.push("no model is known yet".to_owned());
    } else {
        lines.extend(models.lines());
    }
    let silent = fleet.servers.iter().filter(|server| server.state != "answering");
    let silent = silent.map(|server| {
        let failure = server.failure.as_deref().unwrap_or("it has not answered yet");
        plain(&format!("! {} is {}: {failure}", server.server, server.state))
    });
    lines.extend(silent);
    let last = fleet.records.iter().rev().take(records);
    let last: Vec<String> = last.map(|item| record(item)).collect();
    if !last.is_empty() {
        lines.push(String::new());
        lines.extend(last);
    }
    lines
}

fn head(fleet: &Fleet, now: Timestamp) -> String {
    let loaded = fleet.models.iter().filter(|model| model.is_ready()).count();
    let versions: std::collections::BTreeSet<&str> = fleet.controllers.iter().map(|c| c.version.as_str()).collect();
    plain(&format!(
        "hush {}  {}, {}  {}, {} ({loaded} loaded)  {}",
        versions.into_iter().collect::<Vec<_>>().join(", "),
        count(fleet.controllers.len(), "controller"),
        fleet.who_acts(),
        count(fleet.gpus.len(), "GPU"),
        count(fleet.models.len(), "model"),
        now.strftime("%H:%M:%SZ"),
    ))
}

fn gpus(fleet: &Fleet) -> Table {
    let mut table =
        Table::new(&["NODE", "GPU", "#OURS =OTHERS .FREE", "OURS", "OTHERS", "FREE", "OF", "PRESSURE", "BELOW"]);
    for gpu in &fleet.gpus {
        let pressure = if gpu.fresh { gpu.pressure_and_reason() } else { "too old".to_owned() };
        let below = gpu.thresholds.iter().map(|t| format!("{} {}", t.level.to_lowercase(), gib(t.below_bytes)));
        table.row([
            gpu.node.clone(),
            card(&gpu.uuid),
            bar(gpu),
            gib(gpu.ours_bytes),
            gib(gpu.others_bytes),
            gib(gpu.free_bytes),
            gib(gpu.total_bytes),
            pressure,
            below.collect::<Vec<_>>().join(", "),
        ]);
    }
    table
}

/// Where what is held reaches a line, pressure begins.
fn bar(gpu: &Gpu) -> String {
    let cells = |bytes: u64| {
        let cells = u128::from(bytes) * BAR as u128 / u128::from(gpu.total_bytes.max(1));
        usize::try_from(cells).unwrap_or(BAR).min(BAR)
    };
    let (ours, held) = (cells(gpu.ours_bytes), cells(gpu.ours_bytes.saturating_add(gpu.others_bytes)));
    let mut bar: Vec<char> = (0..BAR)
        .map(|cell| match cell {
            _ if cell < ours => '#',
            _ if cell < held => '=',
            _ => '.',
        })
        .collect();
    for threshold in &gpu.thresholds {
        let line = cells(gpu.total_bytes.saturating_sub(threshold.below_bytes));
        if let Some(cell) = bar.get_mut(line).filter(|cell| **cell != '!') {
            *cell = if threshold.level == "Hard" { '!' } else { '|' };
        }
    }
    format!("[{}]", bar.into_iter().collect::<String>())
}

fn models(fleet: &Fleet) -> Table {
    let mut table =
        Table::new(&["POD", "MODEL", "STATE", "GPU", "MEMORY", "IDLE", "UNLOADS IN", "POLICIES", "WHY IT STAYS"]);
    for model in &fleet.models {
        let at = fleet.as_of(&model.server);
        let decision = fleet.decision(model);
        let memory = match model.demand_bytes {
            Some(demand) if demand > 0 => format!("wants {}", gib(demand)),
            Some(_) => String::new(),
            None if model.held_bytes() == 0 => String::new(),
            None => gib(model.held_bytes()),
        };
        let policies = model.rules.as_ref().map_or_else(|| "none".to_owned(), |rules| rules.policies.join(", "));
        let why = decision.map(|decision| decision.reason.clone());
        let why = why.or_else(|| model.why.first().map(|why| why.reason.clone())).unwrap_or_default();
        table.row([
            model.server.clone(),
            model.model.clone(),
            state(model),
            model.gpu.as_deref().map(card).unwrap_or_default(),
            memory,
            model.idle_since.map(|since| between(since, at)).unwrap_or_default(),
            leaves(model, decision, at),
            policies,
            why,
        ]);
    }
    table
}

fn state(model: &Model) -> String {
    match (model.fresh, model.requests()) {
        (false, _) => format!("{}?", model.state),
        (true, 0) => model.state.clone(),
        (true, requests) => format!("{} ({requests})", model.state),
    }
}

/// One of the last commands and its end.
pub fn record(record: &Record) -> String {
    let by = if record.policy.is_empty() { String::new() } else { format!(", {}", record.policy) };
    let end = came_back(record).map(|memory| format!("unloaded, {memory}")).unwrap_or_else(|| {
        let message = record.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        format!("{}{message}", record.outcome.to_lowercase())
    });
    plain(&format!(
        "{}  {} {} {} ({}{by}): {end}",
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
        let gpu = |ours: u64, others: u64, below: &[(&str, u64)]| -> Gpu {
            let thresholds: Vec<_> =
                below.iter().map(|(l, b)| json!({"level": l, "belowBytes": b, "policy": "p"})).collect();
            serde_json::from_value(json!({"uuid": "G", "totalBytes": 24, "oursBytes": ours, "othersBytes": others,
                "freeBytes": 24 - ours - others, "fresh": true, "pressure": "None", "thresholds": thresholds}))
            .unwrap()
        };
        assert_eq!(bar(&gpu(3, 5, &[("Hard", 2), ("Soft", 6)])), "[###=====..........|...!.]");
        assert_eq!(bar(&gpu(0, 0, &[])), format!("[{}]", ".".repeat(24)));
        assert_eq!(bar(&gpu(24, 0, &[("Soft", 24)])), format!("[|{}]", "#".repeat(23)));
        let nothing = Gpu { total_bytes: 0, ..gpu(0, 0, &[]) };
        assert_eq!(bar(&nothing).chars().count(), BAR + 2, "a card that says nothing of its size");
    }

    #[test]
    fn a_command_and_its_end() {
        let read = |more: serde_json::Value| {
            let mut text = json!({"time": "2026-01-01T10:11:12Z", "server": "m/w", "model": "base", "action": "Unload",
                "reason": "HardPressure", "policy": "/floor"});
            more.as_object().unwrap().iter().for_each(|(key, value)| text[key] = value.clone());
            record(&serde_json::from_value(text).unwrap())
        };
        assert_eq!(
            read(json!({"outcome": "Unloaded", "reclaimedBytes": 3_u64 << 30, "residualBytes": 1 << 28})),
            "10:11:12Z  unload m/w base (HardPressure, /floor): unloaded, 3.00Gi came back, 0.25Gi did not"
        );
        assert_eq!(
            read(
                json!({"outcome": "Refused", "code": "busy", "message": "2 in flight", "policy": "", "reason": "Manual"})
            ),
            "10:11:12Z  unload m/w base (Manual): refused: 2 in flight"
        );
    }
}
