//! Stand-ins for LocalAI and speaches, and what holds of each stand-in: memory of the scripted GPU, faults.

use anyhow::{Context, Result};
use hush_nvml::ProcessList;
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{AppCall, StandInApp, TestedApp, post};
use hush_tests::gpus::{GIB, Gpus, UUID};
use hush_tests::wait::wait_for;
use hush_tests::{http, process};
use serde_json::{Value, json};

use crate::support::{SOON, begin_long_call, command, send, short, standin, violations};

fn get(app: &dyn TestedApp, path: &str) -> Result<Value> {
    http::get(app.address(), path)?.json()
}

#[test]
fn a_busy_localai_refuses_its_unload_after_a_while() -> Result<()> {
    let app = standin(StandInKind::Localai, &["--loaded"])?;
    let stream = begin_long_call(&app)?;
    let answer = send(&app, "/backend/shutdown", &json!({"model": "tiny"}))?;
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("still busy"), "{}", answer.text());
    assert_eq!(get(&app, "/system")?["loaded_models"][0]["id"], "tiny");
    let answer = stream.finish()?;
    assert!(app.is_complete(&answer)?);
    assert_eq!(send(&app, "/backend/shutdown", &json!({"model": "tiny"}))?.status, 200);
    assert_eq!(send(&app, "/backend/shutdown", &json!({"model": "tiny"}))?.status, 404, "not loaded");
    assert_eq!(violations(&app)?, [ViolationKind::UnloadWhileBusy]);
    Ok(())
}

#[test]
fn a_localai_takes_its_first_model_for_a_request_without_one() -> Result<()> {
    let app = standin(StandInKind::Localai, &["--model", "second"])?;
    let call = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]});
    assert_eq!(send(&app, "/v1/chat/completions", &call)?.json()?["model"], "tiny");
    Ok(())
}

#[test]
fn a_child_of_localai_may_outlive_its_stop() -> Result<()> {
    let app = standin(StandInKind::Localai, &["--loaded", "--manner", "child-survives"])?;
    assert_eq!(send(&app, "/backend/shutdown", &json!({"model": "tiny"}))?.status, 200);
    assert_eq!(get(&app, "/system")?["loaded_models"], json!([]));
    let runner = *app.runners()?.first().context("no runner")?;
    assert!(process::state(runner).is_some_and(|state| state != 'Z'), "it is in no list and holds its memory");
    Ok(())
}

#[test]
fn a_refused_unload_of_speaches_loses_the_model() -> Result<()> {
    let gpus = Gpus::one()?;
    let mut app = StandInApp::new(StandInKind::Speaches, &["--loaded"])?.on_gpus(gpus.path());
    app.start()?;
    let path = format!("/api/ps/{}", app.model());
    let delete = |app: &StandInApp| post(app.address(), &AppCall { method: "DELETE", ..AppCall::get(&path) }, &[]);
    assert_eq!(get(&app, "/api/ps")?["models"][0], app.model().as_str());
    assert_eq!(command(&app, &path)?.status, 409, "loaded already");

    let speech = begin_long_call(&app)?;
    assert_eq!(delete(&app)?.status, 409);
    assert_eq!(get(&app, "/api/ps")?["models"], json!([]), "dropped from the list, though it was refused");
    assert!(app.is_complete(&speech.finish()?)?);
    assert_eq!(delete(&app)?.status, 404, "never found again");
    assert_eq!(used_bytes(&gpus)?, 2 * GIB);
    assert_eq!(short(&app)?.status, 200);
    assert_eq!(used_bytes(&gpus)?, 4 * GIB, "a second copy");
    Ok(())
}

/// As the double of NVML counts them.
fn used_bytes(gpus: &Gpus) -> Result<u64> {
    let listed = hush_nvml::used_bytes(&gpus.path(), UUID)?;
    Ok(listed)
}

#[test]
fn each_standin_holds_memory_of_the_scripted_gpu_while_its_model_is_loaded() -> Result<()> {
    for kind in KINDS {
        let mut gpus = Gpus::one()?;
        gpus.change(|gpu| gpu.process_list = ProcessList::Pids)?;
        let mut app = StandInApp::new(kind, &["--context-bytes", "1000"])?.on_gpus(gpus.path());
        app.start()?;
        // Two of them start with their model.
        if matches!(kind, StandInKind::Vllm | StandInKind::Sglang) {
            wait_for("the model is loaded", SOON, || Ok((app.is_loaded()? == Some(true)).then_some(())))?;
        } else {
            assert_eq!(used_bytes(&gpus)?, 0, "{kind:?}");
            app.load_directly()?;
        }
        // Where a child holds the model, nothing is left; where the app does, its context stays.
        let context = if app.runners()?.is_empty() { 1000 } else { 0 };
        assert_eq!(used_bytes(&gpus)?, 2 * GIB + context, "{kind:?}");
        app.unload_directly()?;
        assert_eq!(used_bytes(&gpus)?, context, "{kind:?}");
        app.kill()?;
        assert_eq!(used_bytes(&gpus)?, 0, "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_standin_without_room_on_the_gpu_does_not_load() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.change(|gpu| gpu.used_bytes = 7 * GIB)?;
    for kind in [StandInKind::Ollama, StandInKind::Triton, StandInKind::Localai, StandInKind::Speaches] {
        let mut app = StandInApp::new(kind, &[])?.on_gpus(gpus.path());
        app.start()?;
        // Triton has no load with a request.
        let answer =
            if kind == StandInKind::Triton { command(&app, "/v2/repository/models/tiny/load")? } else { short(&app)? };
        assert!(answer.status >= 400, "{kind:?}: {}", answer.text());
        assert_eq!(used_bytes(&gpus)?, 7 * GIB, "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_runner_that_is_killed_takes_its_model_along() -> Result<()> {
    for kind in [StandInKind::Ollama, StandInKind::LlamaServer, StandInKind::Localai] {
        let app = standin(kind, &["--loaded"])?;
        let stream = begin_long_call(&app)?;
        let runner = *app.runners()?.first().context("no runner")?;
        process::send(runner, rustix::process::Signal::KILL)?;
        wait_for("the model is gone", SOON, || Ok((app.is_loaded()? == Some(false)).then_some(())))?;
        let is_complete = stream.finish().is_ok_and(|answer| app.is_complete(&answer).unwrap_or(false));
        assert!(!is_complete, "{kind:?}");
    }
    Ok(())
}

const KINDS: [StandInKind; 9] = [
    StandInKind::Ollama,
    StandInKind::LlamaServer,
    StandInKind::Vllm,
    StandInKind::Sglang,
    StandInKind::Triton,
    StandInKind::Comfyui,
    StandInKind::Localai,
    StandInKind::Speaches,
    StandInKind::A1111,
];
