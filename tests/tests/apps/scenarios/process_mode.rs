//! llama.cpp's real server, started and ended by the sidecar.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::apps::{
    LiveAnswer, LlamaProcess, RealApp, RunningSidecar, SidecarOptions, TestedApp, find_real_app, post, post_bytes,
};
use hush_tests::process;
use hush_tests::wait::wait_for;
use rustix::process::Signal;
use serde_json::json;

use super::fixture::{LONG_DRAIN, SHORT_DRAIN};
use crate::support::SOON;

struct ProcessFixture {
    app: LlamaProcess,
    sidecar: RunningSidecar,
}

impl ProcessFixture {
    fn start() -> Result<Option<Self>> {
        let Some(package) = find_real_app(RealApp::Xllamacpp)? else { return Ok(None) };
        let app = LlamaProcess::new(&package)?;
        let sidecar = RunningSidecar::start(&app, &SidecarOptions::default())?;
        sidecar.wait_until_ready()?;
        Ok(Some(Self { app, sidecar }))
    }

    fn short(&self) -> Result<()> {
        let answer = post(self.sidecar.api, &self.app.short_call(), &[])?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    }

    fn begin_long(&self) -> Result<LiveAnswer> {
        let stream =
            LiveAnswer::open(self.sidecar.api, &post_bytes(self.sidecar.api, &self.app.long_call().call, &[]))?;
        stream.wait_for_body(SOON)?;
        Ok(stream)
    }

    /// The processes of the app that live: those that name its script, but not those of the sidecar, which start it.
    fn app_processes(&self) -> Result<Vec<u32>> {
        let script = self.app.script().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // A process that has ended meanwhile has no command line.
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The keeper lives a little longer than the app; a process that the sidecar forks has its name until it starts another
            // program.
            let is_own = command.starts_with("hush-keeper") || program.starts_with("hush-sidecar");
            let names_script = command.contains(&script) && !is_own;
            if names_script && pid != self.sidecar.pid() && process::state(pid).is_some_and(|state| state != 'Z') {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

#[test]
fn an_unload_leaves_no_process_and_the_next_request_starts_one() -> Result<()> {
    let Some(fixture) = ProcessFixture::start()? else { return Ok(()) };
    fixture.short()?;
    assert!(!fixture.app_processes()?.is_empty());
    let proof = fixture.sidecar.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(proof["outcome"], "unloaded");
    assert_eq!(fixture.app_processes()?, [0_u32; 0], "at the answer, not later");
    fixture.short()?;
    assert_eq!(fixture.sidecar.generation()?, 2);
    Ok(())
}

#[test]
fn a_stream_of_a_process_is_never_cut_by_an_unload() -> Result<()> {
    let Some(fixture) = ProcessFixture::start()? else { return Ok(()) };
    fixture.short()?;
    let stream = fixture.begin_long()?;
    let refused = fixture.sidecar.unload(&json!({"drain_seconds": SHORT_DRAIN}))?;
    assert_eq!(refused.status, 409, "{}", refused.text());
    let waiting = fixture.sidecar.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(waiting["outcome"], "unloaded");
    let answer = stream.finish()?;
    assert!(fixture.app.is_complete(&answer)?, "{}", answer.text());
    Ok(())
}

#[test]
fn unloads_of_a_process_lose_no_request_of_eight_clients() -> Result<()> {
    let Some(fixture) = ProcessFixture::start()? else { return Ok(()) };
    fixture.short()?;
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..10).try_for_each(|_| fixture.short()))).collect();
        let mut carried_out = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            carried_out += usize::from(fixture.sidecar.unload(&json!({"drain_seconds": 5}))?.status == 200);
            std::thread::sleep(Duration::from_millis(100));
        }
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        assert!(carried_out > 0);
        Ok(())
    })
}

#[test]
fn a_process_that_is_killed_is_started_again() -> Result<()> {
    let Some(fixture) = ProcessFixture::start()? else { return Ok(()) };
    fixture.short()?;
    let stream = fixture.begin_long()?;
    for pid in fixture.app_processes()? {
        process::send(pid, Signal::KILL)?;
    }
    assert!(stream.finish().is_err(), "the client learns that its answer broke off");
    wait_for("requests are served again", SOON, || Ok(fixture.short().is_ok().then_some(())))?;
    assert!(fixture.sidecar.generation()? >= 2);
    Ok(())
}

#[test]
fn the_end_of_the_sidecar_ends_the_app_that_it_started() -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        let Some(mut fixture) = ProcessFixture::start()? else { return Ok(()) };
        fixture.short()?;
        let processes = fixture.app_processes()?;
        processes.first().context("no process of the app")?;
        if signal == Signal::TERM {
            fixture.sidecar.terminate()?;
        } else {
            fixture.sidecar.kill()?;
        }
        wait_for("the app has ended", SOON, || Ok(fixture.app_processes()?.is_empty().then_some(())))?;
    }
    Ok(())
}
