//! An app, a sidecar in front of it, and the scripted GPU that both share.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::apps::standins::{JournalEntry, JournalEvent, StandInKind, ViolationKind};
use hush_tests::apps::{
    AppCall, LiveAnswer, LlamaRouter, OllamaServer, RealApp, RunningSidecar, SidecarOptions, StandInApp, TestedApp,
    TritonServer, find_real_app, post, post_bytes,
};
use hush_tests::gpus::Gpus;
use hush_tests::http::Response;
use hush_tests::wait::wait_for;

use crate::support::SOON;

/// How long a drain lasts that must end before the app's long call.
pub const SHORT_DRAIN: f64 = 0.5;
/// How long one may last that waits for it.
pub const LONG_DRAIN: f64 = 60.0;

/// An app that a scenario runs on; the real ones only where they are.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    StandIn(StandInKind),
    Real(RealApp),
}

impl Subject {
    /// `None`: it is not here, and the scenario is skipped.
    fn app(self, gpus: &Gpus) -> Result<Option<Box<dyn TestedApp>>> {
        let real = match self {
            Self::StandIn(kind) => return Ok(Some(Box::new(StandInApp::new(kind, &[])?.on_gpus(gpus.path())))),
            Self::Real(real) => real,
        };
        let Some(path) = find_real_app(real)? else { return Ok(None) };
        Ok(Some(match real {
            RealApp::Triton => {
                Box::new(TritonServer::new(&path, Duration::from_millis(300), Duration::from_millis(200))?)
            }
            RealApp::Ollama => Box::new(OllamaServer::new(&path)?),
            RealApp::LlamaServer => Box::new(LlamaRouter::new(&path, &[])?),
            RealApp::Xllamacpp => anyhow::bail!("the server of the wheel has no API for loading: see process_mode"),
        }))
    }

    /// The app, not started yet.
    pub fn prepare(self) -> Result<Option<Governed>> {
        let gpus = Gpus::one()?;
        Ok(self.app(&gpus)?.map(|app| Governed { app, sidecar: None, gpus }))
    }

    /// The app and the sidecar, both ready.
    pub fn govern(self) -> Result<Option<Governed>> {
        let Some(mut governed) = self.prepare()? else { return Ok(None) };
        governed.app.start()?;
        governed.start_sidecar(&[])?;
        governed.sidecar()?.wait_until_ready()?;
        Ok(Some(governed))
    }
}

pub struct Governed {
    pub app: Box<dyn TestedApp>,
    sidecar: Option<RunningSidecar>,
    pub gpus: Gpus,
}

impl Governed {
    /// A stand-in with further arguments, and a sidecar that is not waited for.
    pub fn standin(kind: StandInKind, args: &[&str]) -> Result<Self> {
        let gpus = Gpus::one()?;
        let mut app = StandInApp::new(kind, args)?.on_gpus(gpus.path());
        app.start()?;
        let mut governed = Self { app: Box::new(app), sidecar: None, gpus };
        governed.start_sidecar(&[])?;
        Ok(governed)
    }

    pub fn start_sidecar(&mut self, args: &[&str]) -> Result<()> {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let options = SidecarOptions { args, gpus: Some(self.gpus.path()) };
        self.sidecar = Some(RunningSidecar::start(self.app.as_ref(), &options)?);
        Ok(())
    }

    pub fn sidecar(&self) -> Result<&RunningSidecar> {
        self.sidecar.as_ref().context("no sidecar runs")
    }

    /// SIGKILL.
    pub fn kill_sidecar(&mut self) -> Result<()> {
        let mut sidecar = self.sidecar.take().context("no sidecar runs")?;
        sidecar.kill().map(|_| ())
    }

    /// Brings the model away, whether the app began with it or not.
    pub fn make_away(&self) -> Result<()> {
        let sidecar = self.sidecar()?;
        let state = sidecar.wait_for_status("a settled state", SOON, |status| {
            ["ready", "unloaded"].contains(&status["state"].as_str().unwrap_or_default())
        })?;
        if state["state"] == "ready" {
            sidecar.unload_after_drain(LONG_DRAIN)?;
        }
        sidecar.wait_for_state("unloaded", SOON).map(|_| ())
    }

    pub fn make_ready(&self) -> Result<()> {
        self.short()?;
        self.sidecar()?.wait_for_state("ready", SOON)?;
        // A request of an app that queues its work counts until the app is seen idle.
        self.wait_until_idle()
    }

    /// A short request through the sidecar, which must succeed.
    pub fn short(&self) -> Result<Response> {
        self.short_marked("-")
    }

    pub fn short_marked(&self, marker: &str) -> Result<Response> {
        let answer = post(self.sidecar()?.api, &self.app.short_call(), &[&format!("X-Test-Marker: {marker}")])?;
        ensure!(answer.status == 200, "{}: {} {}", self.app.name(), answer.status, answer.text());
        Ok(answer)
    }

    pub fn send(&self, call: &AppCall) -> Result<Response> {
        post(self.sidecar()?.api, call, &[])
    }

    /// Begins the app's long work through the sidecar and waits until it is at work.
    pub fn begin_long(&self) -> Result<LiveAnswer> {
        let long = self.app.long_call();
        let sidecar = self.sidecar()?;
        let answer = LiveAnswer::open(sidecar.api, &post_bytes(sidecar.api, &long.call, &[]))?;
        sidecar.wait_for_status("a request in flight", SOON, |status| status["inflight"].as_u64() >= Some(1))?;
        if long.streams {
            answer.wait_for_body(SOON)?;
        }
        Ok(answer)
    }

    pub fn assert_complete(&self, answer: &Response) -> Result<()> {
        ensure!(
            self.app.is_complete(answer)?,
            "{}: not complete: {} {}",
            self.app.name(),
            answer.status,
            answer.text()
        );
        Ok(())
    }

    pub fn assert_new_generation(&self, before: u64) -> Result<()> {
        let (sidecar, name) = (self.sidecar()?, self.app.name());
        let generation = sidecar.generation()?;

        ensure!(generation > before, "{name}: the model is still generation {before}\n{}", sidecar.log().join("\n"));
        Ok(())
    }

    /// Waits until no request holds the model.
    pub fn wait_until_idle(&self) -> Result<()> {
        self.sidecar()?.wait_for_status("no request in flight", SOON, |status| status["inflight"] == 0).map(|_| ())
    }

    pub fn journal(&self) -> Result<Vec<JournalEntry>> {
        Ok(self.app.journal()?.unwrap_or_default())
    }

    /// Nothing that the app cannot bear has reached it.
    pub fn assert_no_violation(&self) -> Result<()> {
        self.assert_no_violation_but(&[])
    }

    pub fn assert_no_violation_but(&self, allowed: &[ViolationKind]) -> Result<()> {
        let entries = self.journal()?.into_iter();
        let violations: Vec<String> = entries
            .filter_map(|entry| match entry.event {
                JournalEvent::Violation { kind, detail } if !allowed.contains(&kind) => {
                    Some(format!("{kind:?}: {detail}"))
                }
                _ => None,
            })
            .collect();
        ensure!(violations.is_empty(), "{}: {violations:#?}", self.app.name());
        Ok(())
    }

    /// How often requests with these markers reached the app.
    pub fn arrivals(&self, is_meant: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let entries = self.journal()?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry.event {
                JournalEvent::Request { marker: Some(marker), .. } if is_meant(&marker) => Some(marker),
                _ => None,
            })
            .collect())
    }

    /// Waits until the app itself says so; an app that does not say is believed.
    pub fn wait_until_app_has_model(&self, expected: bool) -> Result<()> {
        wait_for(&format!("the app has the model: {expected}"), SOON, || {
            Ok(self.app.is_loaded()?.is_none_or(|loaded| loaded == expected).then_some(()))
        })
    }
}
