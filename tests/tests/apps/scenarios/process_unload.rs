//! Unloads that end the process of an app which loads its models itself: `"unload": "process"`. The app is a stand-in that the
//! sidecar starts, whose process keeps a context on the GPU beside its models.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::apps::standins::{JournalEvent, StandInKind};
use hush_tests::apps::{AppCall, LiveAnswer, RunningSidecar, SidecarOptions, StandInApp, TestedApp, post, post_bytes};
use hush_tests::gpus::{GIB, Gpus, of_gpu};
use hush_tests::wait::wait_for;
use hush_tests::{http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::fixture::{LONG_DRAIN, SHORT_DRAIN};
use crate::support::SOON;

/// What the process holds beside its models.
const CONTEXT: &str = "1073741824";

struct StartedStandIn {
    app: StandInApp,
    sidecar: RunningSidecar,
    _gpus: Gpus,
}

impl StartedStandIn {
    fn start(kind: StandInKind, app_args: &[&str], sidecar_args: &[&str]) -> Result<Self> {
        let gpus = Gpus::one()?;
        let args = [&["--context-bytes", CONTEXT], app_args].concat();
        let app = StandInApp::new(kind, &args)?.on_gpus(gpus.path());
        let args = sidecar_args.iter().map(|arg| (*arg).to_owned()).collect();
        let options = SidecarOptions { args, gpus: Some(gpus.path()) };

        let sidecar = RunningSidecar::start_with(&app.model(), &app.sidecar_args_with_command()?, &options)?;
        sidecar.wait_until_ready()?;
        Ok(Self { app, sidecar, _gpus: gpus })
    }

    fn short(&self) -> Result<()> {
        let answer = post(self.sidecar.api, &self.app.short_call(), &[])?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    }

    fn begin_long(&self) -> Result<LiveAnswer> {
        let call = post_bytes(self.sidecar.api, &self.app.long_call().call, &[]);
        let stream = LiveAnswer::open(self.sidecar.api, &call)?;
        stream.wait_for_body(SOON)?;
        Ok(stream)
    }

    fn unload(&self, model: &str, method: &str) -> Result<Value> {
        let answer = self.sidecar.unload_model(model, &json!({"unload": method, "drain_seconds": LONG_DRAIN}))?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        answer.json()
    }

    fn used_bytes(&self) -> Result<u64> {
        let text = http::get(self.sidecar.ops, "/metrics")?.text();
        let used = http::series(&text, &of_gpu("hush_gpu_memory_used_bytes"))?.context("the GPU is not measured")?;
        Ok(used as u64)
    }

    fn wait_for_used(&self, bytes: u64) -> Result<()> {
        let mut last = 0;
        let waited = wait_for("the memory of the GPU", SOON, || {
            last = self.used_bytes()?;
            Ok((last == bytes).then_some(()))
        });
        waited.with_context(|| format!("{last} bytes are used, not {bytes}\n{}", self.sidecar.log().join("\n")))
    }

    /// How often the app was started.
    fn starts(&self) -> Result<usize> {
        let starts = |entry: &&_| matches!(entry, JournalEvent::Started { .. });
        Ok(self.app.entries()?.iter().map(|entry| &entry.event).filter(starts).count())
    }

    fn assert_no_violation(&self) -> Result<()> {
        let violations = self.app.violations()?;
        ensure!(violations.is_empty(), "{violations:?}");
        Ok(())
    }

    /// Sends a prompt for a model of an app with several.
    fn chat(&self, model: &str) -> Result<()> {
        let body = json!({"model": model, "prompt": "hello", "stream": false, "options": {"num_predict": 2}});
        let answer = post(self.sidecar.api, &AppCall::json("/api/generate", &body), &[])?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    }
}

/// The context stays after the app's own unload, and nothing after one that ends the process. The next request starts the app.
fn process_ends_with_its_model(kind: StandInKind) -> Result<()> {
    let started = StartedStandIn::start(kind, &[], &[])?;
    let model = started.app.model();
    started.short()?;
    started.wait_for_used(3 * GIB)?;

    let by_app = started.unload(&model, "app")?;
    assert_eq!((&by_app["outcome"], &by_app["process"]), (&json!("unloaded"), &json!("kept")), "{by_app}");
    started.wait_for_used(GIB)?;

    started.short()?;
    let generation = started.sidecar.generation()?;
    let ended = started.unload(&model, "process")?;
    assert_eq!((&ended["outcome"], &ended["process"]), (&json!("unloaded"), &json!("ended")), "{ended}");
    assert_eq!(ended["residual_bytes"], 0, "{ended}");
    started.wait_for_used(0)?;
    ensure!(http::get(started.app.address(), "/").is_err(), "something listens");

    // The sidecar answers as before, and holds what is not work.
    assert_eq!(started.sidecar.readiness()?.status, 200);
    assert_eq!(http::get(started.sidecar.ops, "/readyz")?.status, 200);
    assert_eq!(started.sidecar.metric("hush_app_up", &[])?, Some(1.0));
    assert_eq!(started.sidecar.metric("hush_app_process_unload", &[])?, Some(1.0));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((started.used_bytes()?, started.sidecar.readiness()?.status), (0, 200), "it is not started again");
    assert_eq!(started.sidecar.state()?, "unloaded");

    started.short()?;
    started.wait_for_used(3 * GIB)?;
    assert_eq!(started.sidecar.generation()?, generation + 1);
    assert_eq!(started.starts()?, 2);
    started.assert_no_violation()
}

#[test]
fn the_process_of_vllm_ends_with_its_model() -> Result<()> {
    process_ends_with_its_model(StandInKind::Vllm)
}

#[test]
fn the_process_of_sglang_ends_with_its_model() -> Result<()> {
    process_ends_with_its_model(StandInKind::Sglang)
}

#[test]
fn the_process_of_comfyui_ends_with_its_model() -> Result<()> {
    process_ends_with_its_model(StandInKind::Comfyui)
}

#[test]
fn the_process_of_triton_ends_with_its_only_model() -> Result<()> {
    process_ends_with_its_model(StandInKind::Triton)
}

#[test]
fn a_stream_keeps_the_process_and_is_not_cut() -> Result<()> {
    let started = StartedStandIn::start(StandInKind::Vllm, &[], &[])?;
    started.short()?;
    let stream = started.begin_long()?;

    for condition in [json!({"drain_seconds": SHORT_DRAIN}), json!({"if_idle_seconds": 0})] {
        let mut body = condition;
        body["unload"] = json!("process");
        let refused = started.sidecar.unload(&body)?;
        assert_eq!(refused.status, 409, "{}", refused.text());
    }
    let another = started.sidecar.unload(&json!({"unload": "process", "if_generation": 77}))?;
    assert_eq!(another.status, 409, "{}", another.text());

    let ended = started.unload(&started.app.model(), "process")?;
    assert_eq!(ended["process"], "ended", "{ended}");
    let answer = stream.finish()?;
    ensure!(started.app.is_complete(&answer)?, "{}", answer.text());
    started.wait_for_used(0)?;
    started.assert_no_violation()
}

#[test]
fn unloads_that_end_the_process_lose_no_request_of_eight_clients() -> Result<()> {
    let started = StartedStandIn::start(StandInKind::Vllm, &[], &[])?;
    started.short()?;

    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..12).try_for_each(|_| started.short()))).collect();
        let mut carried_out = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            let answer = started.sidecar.unload(&json!({"unload": "process", "drain_seconds": 5}))?;
            carried_out += usize::from(answer.status == 200);
            std::thread::sleep(Duration::from_millis(100));
        }
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        ensure!(carried_out > 0, "no unload was carried out");
        Ok(())
    })?;
    started.assert_no_violation()
}

/// The first of two models in one process leaves by the app's unload, and the process ends with the second, whatever its
/// command says.
#[test]
fn the_process_of_several_models_ends_with_the_last() -> Result<()> {
    let args = ["--model", "other=1073741824"];
    let started = StartedStandIn::start(StandInKind::Ollama, &args, &["--model", "other"])?;
    started.chat("tiny")?;
    started.chat("other")?;

    let first = started.unload("tiny", "process")?;
    assert_eq!(first["process"], "kept_for_others", "{first}");
    started.chat("other")?;
    assert_eq!(started.starts()?, 1);

    let last = started.unload("other", "app")?;
    assert_eq!(last["process"], "ended", "{last}");
    started.wait_for_used(0)?;

    // A model that is away has nothing to unload, and its process may be there for another reason.
    started.chat("other")?;
    assert_eq!(started.unload("other", "app")?["process"], "kept");
    assert_eq!(started.unload("other", "process")?["outcome"], "already_unloaded");
    wait_for("nothing listens", SOON, || Ok(http::get(started.app.address(), "/").is_err().then_some(())))?;
    started.chat("tiny")?;
    assert_eq!(started.starts()?, 3);
    started.assert_no_violation()
}

#[test]
fn own_unloads_of_the_sidecar_end_the_process_where_it_is_told_so() -> Result<()> {
    let options = ["--unload", "process", "--idle-timeout", "1s"];
    let started = StartedStandIn::start(StandInKind::Vllm, &[], &options)?;
    started.short()?;
    started.sidecar.wait_for_state("unloaded", SOON)?;
    started.wait_for_used(0)?;
    started.short()?;
    started.assert_no_violation()
}

/// A process that was ended and dies while it is started again is a load that has failed, and the next load tries it anew.
#[test]
fn an_app_that_dies_while_it_is_started_for_a_load_is_tried_again() -> Result<()> {
    let started = StartedStandIn::start(StandInKind::Vllm, &[], &[])?;
    started.short()?;
    started.unload(&started.app.model(), "process")?;
    started.short()?;

    // Killed in the middle of its work: the sidecar starts it again by itself, as before.
    let main = started.sidecar.metric("hush_app_up", &[])?;
    assert_eq!(main, Some(1.0));
    let pid = started.app.entries()?.iter().rev().find_map(|entry| match entry.event {
        JournalEvent::Started { pid, .. } => Some(pid),
        _ => None,
    });
    process::send(pid.context("it was never started")?, Signal::KILL)?;
    wait_for("requests are served again", SOON, || Ok(started.short().is_ok().then_some(())))?;
    let ended = started.unload(&started.app.model(), "process")?;
    assert_eq!(ended["process"], "ended", "{ended}");
    started.wait_for_used(0)
}

/// An app that the sidecar did not start is never ended: the unload is that of the app, and says so.
#[test]
fn an_app_of_another_owner_keeps_its_process() -> Result<()> {
    let gpus = Gpus::one()?;
    let mut app = StandInApp::new(StandInKind::Vllm, &["--context-bytes", CONTEXT])?.on_gpus(gpus.path());
    app.start()?;
    let options = SidecarOptions { args: Vec::new(), gpus: Some(gpus.path()) };
    let sidecar = RunningSidecar::start(&app, &options)?;
    sidecar.wait_until_ready()?;
    sidecar.wait_for_state("ready", SOON)?;

    assert_eq!(sidecar.metric("hush_app_process_unload", &[])?, Some(0.0));
    let answer = sidecar.unload(&json!({"unload": "process", "drain_seconds": LONG_DRAIN}))?;
    assert_eq!((answer.status, &answer.json()?["process"]), (200, &json!("cannot_end")), "{}", answer.text());
    assert!(!app.has_ended()?);
    Ok(())
}
