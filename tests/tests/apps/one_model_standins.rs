//! Stand-ins for apps whose process holds one model: vLLM, SGLang, ComfyUI, A1111.

use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{ClientSocket, StandInApp, TestedApp};
use hush_tests::gpus::{GIB, Gpus};
use hush_tests::http;
use hush_tests::wait::wait_for;
use serde_json::{Value, json};

use crate::support::{SOON, begin_long_call, command, in_background, joined, send, short, standin, violations};

fn get(app: &dyn TestedApp, path: &str) -> Result<Value> {
    http::get(app.address(), path)?.json()
}

fn wait_until_loaded(app: &StandInApp) -> Result<()> {
    wait_for("the model is loaded", SOON, || Ok((app.is_loaded()? == Some(true)).then_some(())))
}

fn loaded(kind: StandInKind, args: &[&str]) -> Result<StandInApp> {
    let app = standin(kind, args)?;
    wait_until_loaded(&app)?;
    Ok(app)
}

fn series(app: &dyn TestedApp, name: &str) -> Result<f64> {
    let text = http::get(app.address(), "/metrics")?.text();
    let line = text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in {text}"))?;
    Ok(line.rsplit(' ').next().context("no value")?.parse()?)
}

#[test]
fn a_sleeping_vllm_queues_requests_unseen_until_it_wakes() -> Result<()> {
    let app = loaded(StandInKind::Vllm, &[])?;
    assert_eq!(command(&app, "/sleep?level=1&mode=wait")?.json()?, json!({"status": "sleeping", "level": 1}));
    assert_eq!(get(&app, "/is_sleeping")?["is_sleeping"], true);
    let request = in_background(&app, app.short_call());
    wait_for("the request waits in the engine", SOON, || {
        Ok((series(&app, "vllm:num_requests_waiting")? == 1.0).then_some(()))
    })?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(!request.is_finished(), "health is {}", http::get(app.address(), "/health")?.status);
    assert_eq!(command(&app, "/wake_up")?.json()?["status"], "awake");
    assert_eq!(joined(request)?.status, 200);
    assert_eq!(violations(&app)?, [ViolationKind::RequestWhileAway]);
    Ok(())
}

#[test]
fn a_vllm_that_wakes_in_parts_sleeps_until_it_is_whole() -> Result<()> {
    let app = loaded(StandInKind::Vllm, &[])?;
    let _ = command(&app, "/sleep?level=2&mode=wait")?;
    let _ = command(&app, "/wake_up?tags=weights")?;
    assert_eq!(get(&app, "/is_sleeping")?["is_sleeping"], true);
    let _ = command(&app, "/wake_up?tags=kv_cache")?;
    assert!(short(&app)?.text().contains("garbage"), "level 2 threw the weights away");
    let _ = send(&app, "/collective_rpc", &json!({"method": "reload_weights"}))?;
    assert!(!short(&app)?.text().contains("garbage"));
    Ok(())
}

#[test]
fn a_vllm_that_sleeps_in_the_middle_aborts_unless_it_is_told_to_wait() -> Result<()> {
    let app = loaded(StandInKind::Vllm, &[])?;
    let stream = begin_long_call(&app)?;
    let _ = command(&app, "/sleep?level=1")?;
    let answer = stream.finish()?;
    assert!(answer.text().contains("\"abort\"") && !app.is_complete(&answer)?, "{}", answer.text());
    let _ = command(&app, "/wake_up")?;

    let stream = begin_long_call(&app)?;
    let _ = command(&app, "/sleep?level=1&mode=wait")?;
    let answer = stream.finish()?;
    assert!(app.is_complete(&answer)?, "{}", answer.text());
    assert_eq!(violations(&app)?, [ViolationKind::UnloadWhileBusy, ViolationKind::Cut, ViolationKind::UnloadWhileBusy]);
    Ok(())
}

#[test]
fn a_vllm_with_wrong_flags_has_no_routes_or_frees_nothing() -> Result<()> {
    let app = loaded(StandInKind::Vllm, &["--manner", "no-dev-mode"])?;
    assert_eq!(command(&app, "/sleep?level=1")?.status, 404);
    assert_eq!(http::get(app.address(), "/is_sleeping")?.status, 404);

    let app = loaded(StandInKind::Vllm, &["--manner", "no-sleep-mode"])?;
    assert_eq!(command(&app, "/sleep?level=1&mode=wait")?.status, 200);
    assert_eq!(app.is_loaded()?, Some(true));
    Ok(())
}

#[test]
fn an_older_vllm_dies_of_a_sleep_while_it_works() -> Result<()> {
    let mut app = loaded(StandInKind::Vllm, &["--manner", "dies-when-busy"])?;
    let stream = begin_long_call(&app)?;
    let _ = command(&app, "/sleep?level=1");
    wait_for("vLLM has ended", SOON, || Ok(app.has_ended()?.then_some(())))?;
    assert!(stream.finish().is_err(), "the connection broke off");
    assert!(violations(&app)?.contains(&ViolationKind::Died));
    Ok(())
}

#[test]
fn a_vllm_that_has_no_memory_to_wake_up_dies() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let mut app = StandInApp::new(StandInKind::Vllm, &[])?.on_gpus(gpus.path());
    app.start()?;
    wait_until_loaded(&app)?;
    let _ = command(&app, "/sleep?level=1&mode=wait")?;
    gpus.change(|gpu| gpu.used_bytes = 7 * GIB)?;
    let _ = command(&app, "/wake_up");
    wait_for("vLLM has ended", SOON, || Ok(app.has_ended()?.then_some(())))
}

#[test]
fn a_work_socket_of_vllm_is_cut_by_a_sleep() -> Result<()> {
    let app = loaded(StandInKind::Vllm, &[])?;
    let mut socket = ClientSocket::open(app.address(), "/v1/realtime")?;
    socket.send("hello")?;
    assert_eq!(socket.receive(SOON)?.as_deref(), Some("hello"));
    let _ = command(&app, "/sleep?level=1")?;
    assert_eq!(socket.receive(SOON)?, None);
    assert!(violations(&app)?.contains(&ViolationKind::Cut));
    Ok(())
}

#[test]
fn an_sglang_that_is_not_idle_dies_of_a_release() -> Result<()> {
    let mut app = loaded(StandInKind::Sglang, &[])?;
    let stream = begin_long_call(&app)?;
    let _ = command(&app, "/release_memory_occupation");
    wait_for("SGLang has ended", SOON, || Ok(app.has_ended()?.then_some(())))?;
    assert!(stream.finish().is_err());
    assert!(violations(&app)?.contains(&ViolationKind::Died));
    Ok(())
}

#[test]
fn an_sglang_dies_of_a_second_release_and_of_a_second_resume() -> Result<()> {
    for (first, second) in [("release", "release"), ("resume", "resume")] {
        let mut app = loaded(StandInKind::Sglang, &[])?;
        let path = |action: &str| format!("/{action}_memory_occupation");
        if first == "release" {
            assert_eq!(command(&app, &path(first))?.text(), "null");
        }
        let _ = command(&app, &path(second));
        wait_for("SGLang has ended", SOON, || Ok(app.has_ended()?.then_some(())))?;
    }
    Ok(())
}

#[test]
fn an_sglang_with_wrong_flags_frees_nothing_or_comes_back_as_garbage() -> Result<()> {
    let app = loaded(StandInKind::Sglang, &["--manner", "no-memory-saver"])?;
    assert_eq!(command(&app, "/release_memory_occupation")?.status, 200);
    assert_eq!(app.is_loaded()?, Some(true));
    assert_eq!(get(&app, "/server_info")?["enable_memory_saver"], false);

    let app = loaded(StandInKind::Sglang, &["--manner", "no-weights-backup"])?;
    let _ = command(&app, "/release_memory_occupation")?;
    let _ = command(&app, "/resume_memory_occupation")?;
    assert!(short(&app)?.text().contains("garbage"));
    Ok(())
}

#[test]
fn a_get_releases_the_memory_of_sglang_and_its_health_uses_the_model() -> Result<()> {
    let app = loaded(StandInKind::Sglang, &[])?;
    assert_eq!(http::get(app.address(), "/health")?.status, 200);
    assert_eq!(http::get(app.address(), "/release_memory_occupation")?.status, 200);
    assert_eq!(app.is_loaded()?, Some(false));
    assert_eq!(violations(&app)?, [ViolationKind::ProbeGenerates]);
    Ok(())
}

#[test]
fn comfyui_works_on_after_its_short_answer_and_its_sockets_tell_of_it() -> Result<()> {
    let app = standin(StandInKind::Comfyui, &[])?;
    let mut socket = ClientSocket::open(app.address(), "/ws?clientId=1")?;
    let answer = begin_long_call(&app)?;
    let answer = answer.finish()?;
    assert_eq!(get(&app, "/prompt")?["exec_info"]["queue_remaining"], 1, "the answer came at once");
    assert!(app.is_complete(&answer)?);
    wait_for("the socket tells of the work", SOON, || {
        Ok(socket.receive(SOON)?.filter(|event| event.contains("executing")).map(|_| ()))
    })
}

#[test]
fn comfyui_frees_between_two_prompts_and_loads_again_for_the_next() -> Result<()> {
    let app = standin(StandInKind::Comfyui, &[])?;
    let first = begin_long_call(&app)?.finish()?;
    let second = begin_long_call(&app)?.finish()?;
    let held =
        |app: &StandInApp| Ok::<_, anyhow::Error>(get(app, "/system_stats")?["devices"][0]["torch_vram_total"] != 0);
    wait_for("the model is loaded", SOON, || Ok(held(&app)?.then_some(())))?;
    assert_eq!(send(&app, "/free", &json!({"unload_models": true, "free_memory": true}))?.status, 200);
    assert!(held(&app)?, "the answer came before the act");
    assert!(app.is_complete(&first)? && app.is_complete(&second)?);
    assert!(held(&app)?, "the second prompt has loaded it again");
    assert_eq!(violations(&app)?, [ViolationKind::UnloadWhileBusy]);
    app.unload_directly().map(|_| ())
}

#[test]
fn an_a1111_fails_the_next_image_until_its_checkpoint_is_reloaded() -> Result<()> {
    let app = standin(StandInKind::A1111, &[])?;
    assert_eq!(short(&app)?.status, 200);
    assert_eq!(command(&app, "/sdapi/v1/unload-checkpoint")?.status, 200);
    assert_eq!(short(&app)?.status, 500);
    assert_eq!(command(&app, "/sdapi/v1/reload-checkpoint")?.status, 200);
    assert_eq!(short(&app)?.status, 200);
    Ok(())
}

#[test]
fn an_unload_of_a1111_spoils_the_image_that_is_being_made() -> Result<()> {
    let app = standin(StandInKind::A1111, &["--loaded"])?;
    let image = begin_long_call(&app)?;
    assert_eq!(get(&app, "/sdapi/v1/progress")?["state"]["job_count"], 1);
    assert_eq!(command(&app, "/sdapi/v1/unload-checkpoint")?.status, 200);
    assert_eq!(image.finish()?.status, 500);
    assert_eq!(violations(&app)?, [ViolationKind::UnloadWhileBusy, ViolationKind::Cut]);
    Ok(())
}
