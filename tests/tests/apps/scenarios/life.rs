//! Load, unload, requests that work meanwhile, and storms.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hush_tests::gpus::GIB;
use hush_tests::wait::wait_for;
use serde_json::json;

use super::fixture::{Governed, LONG_DRAIN, SHORT_DRAIN, Subject};
use crate::support::SOON;

const CLIENTS: usize = 8;
const STORM: Duration = Duration::from_secs(6);

pub fn cold_request_loads_its_model(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_away()?;
    governed.wait_until_app_has_model(false)?;
    let before = governed.sidecar()?.generation()?;
    governed.short()?;
    governed.sidecar()?.wait_for_state("ready", SOON)?;
    assert_eq!(governed.sidecar()?.generation()?, before + 1);
    governed.wait_until_app_has_model(true)?;
    governed.assert_no_violation()
}

pub fn unload_gives_the_memory_back(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let has_scripted_memory = governed.app.journal()?.is_some();
    if has_scripted_memory {
        governed.sidecar()?.wait_for_status("the memory is known", SOON, |status| status["vram_bytes"] == 2 * GIB)?;
    }
    governed.wait_until_idle()?;
    let proof = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(proof["outcome"], "unloaded");
    if has_scripted_memory {
        assert_eq!((&proof["reclaimed_bytes"], &proof["residual_bytes"]), (&(2 * GIB).into(), &0.into()), "{proof}");
    }
    governed.wait_until_app_has_model(false)?;
    governed.assert_no_violation()
}

/// The unload is refused when its drain ends, the stream goes on to its end, and the next unload is carried out.
pub fn stream_is_never_cut_by_an_unload(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let stream = governed.begin_long()?;
    let refused = governed.sidecar()?.unload(&json!({"drain_seconds": SHORT_DRAIN}))?;
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.text().contains("busy"), "{}", refused.text());
    let by_condition = governed.sidecar()?.unload(&json!({"if_idle_seconds": 0, "drain_seconds": LONG_DRAIN}))?;
    assert_eq!(by_condition.status, 409, "{}", by_condition.text());

    let waiting = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(waiting["outcome"], "unloaded");
    governed.assert_complete(&stream.finish()?)?;
    governed.wait_until_app_has_model(false)?;
    governed.assert_no_violation()
}

/// A refused unload opens the gate again: who waited is served by the same generation.
pub fn refused_unload_changes_nothing(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let before = governed.sidecar()?.generation()?;
    let stream = governed.begin_long()?;
    let refused = governed.sidecar()?.unload(&json!({"drain_seconds": SHORT_DRAIN, "hold_seconds": 600}))?;
    assert_eq!(refused.status, 409, "{}", refused.text());
    governed.short()?;
    assert_eq!(governed.sidecar()?.generation()?, before);
    governed.assert_complete(&stream.finish()?)?;
    governed.assert_no_violation()
}

/// Eight clients ask without a pause while the model is unloaded again and again.
pub fn storm_of_unloads_loses_no_request(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let is_over = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let unloads = std::thread::scope(|scope| -> Result<usize> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (governed, is_over, sent) = (&governed, &is_over, &sent);
                scope.spawn(move || -> Result<()> {
                    for round in 0.. {
                        if is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        governed.short_marked(&format!("storm-{client}-{round}"))?;
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let unloads = storm(&governed);
        is_over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        unloads
    })?;

    // A real model takes seconds to load on a busy machine.
    let least = if governed.app.journal()?.is_some() { 3 } else { 1 };
    ensure!(unloads >= least, "only {unloads} unloads in {STORM:?}");
    if governed.app.journal()?.is_some() {
        let mut arrivals = governed.arrivals(|marker| marker.starts_with("storm-"))?;
        assert_eq!(arrivals.len(), sent.load(Ordering::Relaxed), "each request arrives once");
        arrivals.sort();
        arrivals.dedup();
        assert_eq!(arrivals.len(), sent.load(Ordering::Relaxed), "none arrives twice");
    }
    governed.assert_no_violation()
}

/// Unloads until the time is over; returns how many were carried out.
fn storm(governed: &Governed) -> Result<usize> {
    let begun = Instant::now();
    let mut carried_out = 0;
    while begun.elapsed() < STORM {
        let answer = governed.sidecar()?.unload(&json!({"drain_seconds": 5}))?;
        match answer.status {
            200 => carried_out += 1,
            409 => std::thread::sleep(Duration::from_millis(20)),
            other => anyhow::bail!("an unload is answered with {other}: {}", answer.text()),
        }
    }
    Ok(carried_out)
}

/// A client that leaves in the middle gives its lease back, and the unload after that cuts nothing.
pub fn client_that_leaves_holds_nothing(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let stream = governed.begin_long()?;
    stream.leave()?;
    let proof = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(proof["outcome"], "unloaded");
    governed.wait_until_app_has_model(false)?;
    governed.assert_no_violation()?;
    governed.short().map(|_| ())
}

pub fn hold_keeps_requests_away_from_the_app(subject: Subject) -> Result<()> {
    const HOLD: Duration = Duration::from_secs(3);

    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let answer = governed.sidecar()?.unload(&json!({"drain_seconds": 5, "hold_seconds": HOLD.as_secs()}))?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let unloaded = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let held = scope.spawn(|| governed.short_marked("held"));
        governed.sidecar()?.wait_for_status("a request waits", SOON, |status| status["queued"] == 1)?;
        wait_for("half of the hold", SOON, || Ok((unloaded.elapsed() > HOLD / 2).then_some(())))?;
        assert!(governed.arrivals(|marker| marker == "held")?.is_empty(), "no byte of it goes to the app");
        held.join().ok().context("the client panicked")??;
        Ok(())
    })?;
    // The hold begins with the end of the unload, which was before its answer.
    assert!(unloaded.elapsed() > HOLD - Duration::from_millis(500), "{:?}", unloaded.elapsed());
    governed.assert_no_violation()
}
