//! Apps and sidecars that end in the middle, or are not there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{AppCall, RunningSidecar, SidecarOptions, post};
use hush_tests::gpus::GIB;
use hush_tests::wait::wait_for;
use serde_json::json;

use super::fixture::{Governed, LONG_DRAIN, Subject};
use crate::support::SOON;

/// The client learns of it, later requests are refused with a time to come back, and the app that is there again serves.
pub fn killed_app_breaks_its_streams_and_comes_back(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let before = governed.sidecar()?.generation()?;
    let stream = governed.begin_long()?;
    governed.app.kill()?;
    // A short answer that queues work may have come already.
    if governed.app.long_call().streams {
        let is_complete = stream.finish().is_ok_and(|answer| answer.status == 200);
        assert!(!is_complete, "an answer that broke off must not look like a whole one");
    }

    governed.app.start()?;
    // The sidecar sees the end within milliseconds. A request that comes before gets the answer of an app without its model.
    std::thread::sleep(Duration::from_millis(500));
    wait_for("requests are served again", SOON, || {
        let answer = post(governed.sidecar()?.api, &governed.app.short_call(), &[])?;
        assert!([200, 502, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
        Ok((answer.status == 200).then_some(()))
    })?;
    governed.assert_new_generation(before)
}

/// The app is not touched, and the next sidecar takes over what is there.
pub fn killed_sidecar_leaves_the_app_alone(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    governed.kill_sidecar()?;
    std::thread::sleep(Duration::from_millis(500));
    governed.wait_until_app_has_model(true)?;

    governed.start_sidecar(&[])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.short()?;
    governed.wait_until_idle()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.short()?;
    governed.assert_no_violation()
}

/// A sidecar that is started anew knows that its model is away, and loads it when it is asked for.
pub fn restarted_sidecar_knows_that_the_model_is_away(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.kill_sidecar()?;

    governed.start_sidecar(&[])?;
    governed.sidecar()?.wait_until_ready()?;
    // Long enough for several looks at the app.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(governed.sidecar()?.state()?, "unloaded");
    governed.short()?;
    governed.wait_until_app_has_model(true)?;
    governed.wait_until_idle()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.assert_no_violation()
}

/// Killed and started again while requests come all the time and the model is unloaded again and again: whatever run of the
/// app a command was meant for, it does not reach another one.
pub fn restarts_in_a_storm_of_unloads_do_no_harm(subject: Subject) -> Result<()> {
    const ROUNDS: usize = 5;

    let Some(mut governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    for round in 0..ROUNDS {
        let before = governed.sidecar()?.generation()?;
        let api = governed.sidecar()?.api;
        let (call, ops) = (governed.app.short_call(), governed.sidecar()?.unloader());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        // Between two runs of the app requests fail.
                        let _ = post(api, &call, &[]);
                    }
                });
            }
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = ops.unload(&json!({"drain_seconds": 1}));
                    std::thread::sleep(Duration::from_millis(30));
                }
            });

            // Each round hits another moment.
            std::thread::sleep(Duration::from_millis(300 + 70 * round as u64));
            let restarted = governed.app.kill().and_then(|()| governed.app.start());
            std::thread::sleep(Duration::from_millis(300));
            is_over.store(true, Ordering::Relaxed);
            restarted
        })?;

        wait_for("requests are served again", SOON, || {
            Ok((post(api, &governed.app.short_call(), &[])?.status == 200).then_some(()))
        })?;
        governed.assert_new_generation(before)?;
        governed.assert_no_violation_but(&[ViolationKind::RequestWhileAway])?;
    }
    Ok(())
}

pub fn app_that_restarts_is_a_new_generation(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let before = governed.sidecar()?.generation()?;
    governed.app.terminate()?;
    governed.sidecar()?.wait_for_status("the model is away", SOON, |status| status["state"] != "ready")?;
    governed.app.start()?;
    wait_for("requests are served again", SOON, || {
        let answer = post(governed.sidecar()?.api, &governed.app.short_call(), &[])?;
        Ok((answer.status == 200).then_some(()))
    })?;
    governed.assert_new_generation(before)?;
    governed.assert_no_violation()
}

pub fn app_that_comes_later_is_found(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.prepare()? else { return Ok(()) };
    governed.start_sidecar(&["--cold-hold", "2s"])?;
    let early = post(governed.sidecar()?.api, &governed.app.short_call(), &[])?;
    assert_eq!(early.status, 503, "{}", early.text());
    let retry_after: u64 = early.header("retry-after").unwrap_or_default().parse()?;
    assert!((1..=120).contains(&retry_after), "openai-python gives up above 120: {retry_after}");
    assert_ne!(governed.sidecar()?.readiness()?.status, 200);

    governed.app.start()?;
    governed.sidecar()?.wait_until_ready()?;
    wait_for("requests are served", SOON, || {
        let answer = post(governed.sidecar()?.api, &governed.app.short_call(), &[])?;
        Ok((answer.status == 200).then_some(()))
    })?;
    governed.assert_no_violation()
}

#[test]
fn a_load_that_fails_is_told_with_a_time_to_come_back() -> Result<()> {
    for kind in [StandInKind::Ollama, StandInKind::LlamaServer, StandInKind::Triton, StandInKind::Localai] {
        let governed = Governed::standin(kind, &["--manner", "load-fails"])?;
        let answer = governed.send(&governed.app.short_call())?;
        assert_eq!(answer.status, 503, "{kind:?}: {}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{kind:?}");
        governed.sidecar()?.wait_for_state("failed", SOON)?;
        governed.assert_no_violation()?;
    }
    Ok(())
}

#[test]
fn a_model_that_does_not_fit_waits_for_memory() -> Result<()> {
    let mut governed = Governed::standin(StandInKind::Ollama, &[])?;
    governed.sidecar()?.wait_until_ready()?;
    // The first load teaches what it needs.
    governed.make_ready()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.gpus.change(|gpu| gpu.used_bytes = 7 * GIB)?;
    std::thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| governed.short());
        governed.sidecar()?.wait_for_state("waiting_for_memory", SOON)?;
        let mut script = governed.gpus.script.clone();
        script.devices[0].used_bytes = 0;
        script.write(&governed.gpus.path())?;
        waiting.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        Ok(())
    })?;
    governed.assert_no_violation()
}

#[test]
fn memory_that_a_child_keeps_is_residual() -> Result<()> {
    let governed = Governed::standin(StandInKind::Localai, &["--manner", "child-survives"])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;
    let proof = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!(proof["residual_bytes"], 2 * GIB, "{proof}");
    // It stays in the metrics, for the alert.
    let residual = governed.sidecar()?.metric("hush_model_residual_bytes", &["model=\"tiny\""])?;
    assert_eq!(residual, Some((2 * GIB) as f64));
    Ok(())
}

#[test]
fn a_load_that_hangs_fails_in_time_and_is_tried_again_later() -> Result<()> {
    for kind in [StandInKind::Triton, StandInKind::LlamaServer] {
        let mut governed = Governed::standin(kind, &["--manner", "load-hangs"])?;
        governed.kill_sidecar()?;
        governed.start_sidecar(&["--load-timeout", "1s", "--unload-timeout", "1s"])?;
        governed.sidecar()?.wait_until_ready()?;

        let answer = governed.send(&governed.app.short_call())?;
        assert_eq!(answer.status, 503, "{kind:?}: {}", answer.text());
        assert!(answer.text().contains("has not loaded the model after 1 s"), "{kind:?}: {}", answer.text());
        assert!(answer.header("retry-after").is_some(), "{kind:?}");
        governed.sidecar()?.wait_for_state("failed", SOON)?;
        let restarts =
            governed.sidecar()?.metric("hush_runner_restarts_total", &["model=\"tiny\"", "cause=\"load_timeout\""])?;
        assert_eq!(restarts, Some(1.0), "{kind:?}");
    }
    Ok(())
}

/// The app's list says that the model is loaded, and the device shows nothing of it: the figures tell the truth.
#[test]
fn a_load_that_lies_shows_no_memory_and_does_no_harm() -> Result<()> {
    let governed = Governed::standin(StandInKind::Ollama, &["--manner", "load-lies"])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;

    let vram = governed.sidecar()?.metric("hush_model_vram_bytes", &["model=\"tiny\""])?;
    assert_eq!(vram, Some(0.0));
    let measured = governed.sidecar()?.metric("hush_model_vram_method_info", &["model=\"tiny\""])?;
    assert_eq!(measured, Some(1.0), "0 is what was measured");
    let told = governed.sidecar()?.log().iter().filter(|line| line.contains("the load took no device memory")).count();
    assert_eq!(told, 1);
    let proof = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!((&proof["reclaimed_bytes"], &proof["residual_bytes"]), (&0.into(), &0.into()), "{proof}");
    governed.assert_no_violation()
}

#[test]
fn a_body_without_a_model_is_work_of_the_first_model_and_so_is_an_unknown_route() -> Result<()> {
    let governed = Governed::standin(StandInKind::Ollama, &["--model", "second"])?;
    governed.sidecar()?.wait_until_ready()?;

    let before = governed.sidecar()?.generation()?;
    let nameless =
        AppCall::json("/api/chat", &json!({"messages": [{"role": "user", "content": "x"}], "stream": false}));
    governed.send(&nameless)?;
    assert_eq!(governed.sidecar()?.generation()?, before + 1, "it waited for the first model");

    governed.wait_until_idle()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.send(&AppCall::json("/api/from-the-future", &json!({"model": "tiny"})))?;
    assert_eq!(governed.sidecar()?.generation()?, before + 2, "deny by default: what is not known is work");
    Ok(())
}

#[test]
fn an_unload_that_hangs_is_given_up_and_requests_are_not_lost() -> Result<()> {
    let mut governed = Governed::standin(StandInKind::Ollama, &["--manner", "unload-hangs"])?;
    governed.kill_sidecar()?;
    governed.start_sidecar(&["--unload-timeout", "1s"])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;
    let answer = governed.sidecar()?.unload(&json!({"drain_seconds": 5}))?;
    assert!(answer.status >= 400, "the app has the model still: {}", answer.text());
    let unconfirmed = governed.sidecar()?.metric("hush_app_unloads_unconfirmed_total", &["model=\"tiny\""])?;
    assert!(unconfirmed >= Some(1.0), "{unconfirmed:?}");
    assert_eq!(governed.sidecar()?.state()?, "ready");
    governed.assert_no_violation_but(&[ViolationKind::UnloadTwice])
}

#[test]
fn the_context_of_a_process_that_stays_is_residual() -> Result<()> {
    const CONTEXT: u64 = 300 << 20;

    let governed = Governed::standin(StandInKind::Triton, &["--context-bytes", &CONTEXT.to_string()])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;
    governed
        .sidecar()?
        .wait_for_status("the memory is known", SOON, |status| status["vram_bytes"] == 2 * GIB + CONTEXT)?;
    governed.wait_until_idle()?;
    let proof = governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    assert_eq!((&proof["reclaimed_bytes"], &proof["residual_bytes"]), (&(2 * GIB).into(), &CONTEXT.into()), "{proof}");
    Ok(())
}

#[test]
fn a_second_sidecar_leaves_the_app_alone_and_says_why() -> Result<()> {
    let mut governed = Governed::standin(StandInKind::Ollama, &[])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;

    let second = RunningSidecar::start(governed.app.as_ref(), &SidecarOptions::default())?;
    wait_for("the second one says why", SOON, || {
        let readiness = second.readiness()?;
        Ok((readiness.status == 503 && readiness.text().contains("another hush-sidecar governs the app")).then_some(()))
    })?;
    assert_eq!(post(second.api, &governed.app.short_call(), &[])?.status, 503);
    assert_eq!(second.metric("hush_app_governed", &["reason=\"unsuitable\""])?, Some(0.0));
    governed.short()?;

    // It takes over when the first has ended.
    governed.kill_sidecar()?;
    second.wait_until_ready()?;
    let answer = post(second.api, &governed.app.short_call(), &[])?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}

#[test]
fn an_sglang_of_which_nothing_is_known_is_left_alone_until_it_starts_anew() -> Result<()> {
    let mut governed = Governed::standin(StandInKind::Sglang, &[])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.kill_sidecar()?;

    // The record is lost: the app is paused, so it may have released its memory.
    let elsewhere = tempfile::tempdir()?;
    let folder = elsewhere.path().to_string_lossy().into_owned();
    governed.start_sidecar(&["--state-dir", &folder])?;
    wait_for("the sidecar says why", SOON, || {
        let readiness = governed.sidecar()?.readiness()?;
        Ok((readiness.status == 503 && readiness.text().contains("Start it anew")).then_some(()))
    })?;
    assert_eq!(governed.send(&governed.app.short_call())?.status, 503);
    assert_eq!(governed.sidecar()?.state()?, "unloaded");
    governed.assert_no_violation()?;

    governed.app.kill()?;
    governed.app.start()?;
    governed.sidecar()?.wait_until_ready()?;
    governed.short()?;
    governed.assert_no_violation()
}
