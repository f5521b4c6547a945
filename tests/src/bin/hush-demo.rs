//! `make demo`: two real servers and a real controller share a scripted GPU; what happens is told as it happens.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_nvml::ProcessMemory;
use hush_tests::gpus::{GIB, Gpus, UUID};
use hush_tests::{Controller, Server, fixtures, http, wait::wait_for};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(40);

/// A line per event, with the seconds since the start.
struct EventPrinter<'a> {
    start: Instant,
    servers: [(&'static str, &'a Server); 2],
    controller: &'a Controller,
    states: BTreeMap<&'static str, String>,
    told: usize,
}

impl EventPrinter<'_> {
    fn tell(&self, who: &str, what: &str) {
        println!("{:6.1} s  {who:<11} {what}", self.start.elapsed().as_secs_f64());
    }

    /// Tells what has changed; returns what the models hold.
    fn look(&mut self) -> Result<()> {
        for (name, server) in self.servers {
            let text = http::get(server.ops, "/metrics")?.text();
            let value = |series: String| http::series(&text, &series).map(Option::unwrap_or_default);
            let state = |state: &&str| {
                let series = format!("hush_model_state{{model=\"{}\",state=\"{state}\"}}", fixtures::MODEL);
                value(series).is_ok_and(|one| one == 1.0)
            };
            let all = ["unloaded", "loading", "ready", "draining", "unloading", "waiting_for_memory", "failed"];
            let now = all.into_iter().find(state).unwrap_or("unknown").to_owned();
            let before = self.states.insert(name, now.clone());
            if before.as_ref() == Some(&now) {
                continue;
            }
            match now.as_str() {
                "ready" => {
                    let took = value(format!("hush_model_last_load_seconds{{model=\"{}\"}}", fixtures::MODEL))?;
                    self.tell(name, &format!("model is on the GPU, loaded in {took:.2} s"));
                }
                "waiting_for_memory" => self
                    .tell(name, "wants to load and waits: there is no room, or it was asked to stay away for a while"),
                "unloaded" if before.is_some() => self.tell(name, "model and process are gone"),
                _ => {}
            }
        }
        let records = self.controller.audit()?;
        for record in &records[self.told.min(records.len())..] {
            self.tell("controller", &verdict(record));
        }
        self.told = records.len();
        Ok(())
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        wait_for(what, PATIENCE, || {
            self.look()?;
            Ok(holds(self)?.then_some(()))
        })
    }

    fn is(&self, name: &str, state: &str) -> bool {
        self.states.get(name).is_some_and(|now| now == state)
    }

    /// Sends a recording to a server and returns the transcript.
    fn speak(&mut self, name: &'static str, file: &'static str) -> Result<()> {
        let server = self.servers.iter().find(|(known, _)| *known == name).context("no such server")?.1;
        let api = server.api;
        let bytes = fixtures::audio(file)?;
        self.tell("a client", &format!("sends {file} to {name}"));
        let asked = Instant::now();
        let request = std::thread::spawn(move || http::upload(api, "/asr?output=txt", file, &bytes));
        self.until("an answer", |_| Ok(request.is_finished()))?;
        let answer = request.join().map_err(|_| anyhow::anyhow!("the client failed"))??;
        self.tell("a client", &format!("reads after {:.2} s: {}", asked.elapsed().as_secs_f64(), answer.text().trim()));
        Ok(())
    }
}

fn verdict(record: &Value) -> String {
    let text = |field: &str| record[field].as_str().unwrap_or("?").to_owned();
    let (who, why, policy) = (text("server"), text("reason"), text("policy"));
    let seconds = record["seconds"].as_f64().unwrap_or_default();
    match record["outcome"].as_str() {
        Some("Unloaded") => {
            let back = record["reclaimedBytes"].as_u64().unwrap_or(0);
            format!("made {who} leave: {why}, by policy {policy}; {} back after {seconds:.2} s", gib(back))
        }
        _ => format!("{} {who}: {why}, by policy {policy}: {}", text("action"), text("outcome")),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIB as f64)
}

fn main() -> Result<()> {
    let policies = fs::read_to_string(fixtures::workspace().join("tests/demo/policies.yaml"))?;
    println!("Two servers share one scripted GPU of 8 GiB ({UUID}).\n{policies}");
    let mut gpus = Gpus::one()?;
    let holds = |gib: u64| ProcessMemory { bytes: gib * GIB, ..ProcessMemory::default() };
    let subtitles = gpus.server(holds(3), &[])?;
    let dictation = gpus.server(holds(2), &[])?;
    let targets =
        [format!("media/subtitles=http://{}", subtitles.ops), format!("office/dictation=http://{}", dictation.ops)];
    let controller = Controller::start(&policies, &["--target", &targets[0], "--target", &targets[1]])?;
    let mut story = EventPrinter {
        start: Instant::now(),
        servers: [("subtitles", &subtitles), ("dictation", &dictation)],
        controller: &controller,
        states: BTreeMap::new(),
        told: 0,
    };
    story.look()?;
    story.tell("GPU", "empty: two servers run, and no model is in memory");

    story.speak("subtitles", "en-1.wav")?;
    story.speak("dictation", "de-1.wav")?;
    story.tell("GPU", "5.00 of 8 GiB are held by the two models");
    story
        .until("subtitles is idle for its timeout", |story| Ok(story.is("subtitles", "unloaded") && story.told == 1))?;

    story.speak("subtitles", "fr-1.wav")?;
    gpus.change(|gpu| gpu.used_bytes = 2 * GIB + GIB / 2)?;
    story.tell("another app", "takes 2.50 GiB: 0.50 GiB are left, less than the policies want");
    story.until("the less dear one leaves", |story| Ok(story.is("subtitles", "unloaded") && story.told == 2))?;
    story.tell("GPU", "dictation stayed: it has the higher priority");

    gpus.change(|gpu| gpu.used_bytes = 0)?;
    story.tell("another app", "gives its 2.50 GiB back");
    story.speak("subtitles", "es-1.wav")?;
    story.tell("GPU", "both models are loaded again by requests; no process was restarted by hand");
    Ok(())
}
