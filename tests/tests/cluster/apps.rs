//! Whisper and a language model on one card under one policy: `hush-server` and `hush-sidecar` in front of a stand-in for
//! Ollama, whose memory is the scripted GPU's. The controllers treat both alike.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use hush_nvml::SCRIPT_VARIABLE;
use hush_tests::child::ChildProgram;
use hush_tests::cluster::{Namespace, Rights};
use hush_tests::gpus::{GIB, UUID};
use hush_tests::wait::{eventually, wait_for};
use hush_tests::{Controller, fixtures, http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::definitions::with_definitions;
use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, POD, SERVER, SOON, own_plane, policy, returning,
    wait_until_acting, wait_until_calm, wait_until_ready,
};

const MODEL: &str = "tiny";

/// An app, the sidecar in front of it, and their pod.
struct GovernedLlm {
    namespace: Namespace,
    sidecar: ChildProgram,
    proxy: SocketAddr,
    ops: SocketAddr,
    app: ChildProgram,
    app_address: SocketAddr,
    node: String,
}

/// The programs of the app and of its sidecar; `None`: they are not built, and the test is skipped.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let found = fixtures::program("hush-app-standin").and_then(|app| Ok((app, fixtures::program("hush-sidecar")?)));
    if let Err(error) = &found {
        eprintln!("skipped: {error:#}");
    }
    found.ok()
}

/// An app of this memory whose policy is that of [`policy`], and its sidecar.
async fn llm(stage: &ClusterFixture<'_>, spec: AppSpec<'_>) -> Result<Option<GovernedLlm>> {
    let Some((app_binary, sidecar_binary)) = programs() else { return Ok(None) };
    let bytes = spec.gib * GIB;
    let script = stage.gpus.path();

    let app_address = http::free_address()?;
    let mut command = Command::new(app_binary);
    command.args(["--app", "ollama", "--port", &app_address.port().to_string(), "--gpu", UUID]);
    command.args(["--model", &format!("{MODEL}={bytes}")]).env(SCRIPT_VARIABLE, &script);
    let app = ChildProgram::start("hush-app-standin", command, &["HUSH_STANDIN"])?;
    wait_for("the app listens", SOON, || Ok(http::get(app_address, "/api/version").ok().map(|_| ())))?;

    let pod = stage.pod(&spec).await?;
    let mut command = Command::new(sidecar_binary);
    command.args(["--app", "ollama", "--upstream", &format!("http://{app_address}"), "--model", MODEL]);
    command.args(["--listen", "127.0.0.1:0", "--log-format", "json", "--device", &format!("cuda:{UUID}")]);
    command.args(["--need-bytes", &bytes.to_string(), "--sample-interval", "100ms", "--poll-interval", "200ms"]);
    // Only a controller unloads.
    command.args(["--residency", "idle", "--idle-timeout", "0", "--nvml-lib"]).arg(hush_nvml::library()?);
    command.args(&pod.access_args).args(spec.args).env(SCRIPT_VARIABLE, &script);
    let mut sidecar = ChildProgram::start("hush-sidecar", command, &["HUSH_"])?;
    let [proxy, ops] = sidecar.wait_for_addresses(["proxy", "ops"])?;
    pod.run(ops.port()).await?;

    let ops = SocketAddr::from(([127, 0, 0, 1], ops.port()));
    Ok(Some(GovernedLlm {
        namespace: pod.namespace,
        sidecar,
        proxy,
        ops,
        app,
        app_address,
        node: spec.node.to_owned(),
    }))
}

impl GovernedLlm {
    fn pod(&self) -> String {
        format!("{}/{POD}", self.namespace.name)
    }

    /// A prompt, and its whole answer: it waits at the sidecar while the model is away.
    fn chat(&self) -> Result<()> {
        chat(self.proxy)
    }

    /// The same in a thread of its own.
    fn chat_meanwhile(&self) -> JoinHandle<Result<()>> {
        let proxy = self.proxy;
        thread::spawn(move || chat(proxy))
    }

    fn metric(&self, series: &str) -> Result<Option<f64>> {
        http::series(&http::get(self.ops, "/metrics")?.text(), series)
    }

    fn wait_for_metric(&self, series: &str, expected: f64) -> Result<()> {
        let mut last = None;
        let waited = wait_for(&format!("{series} {expected}"), SOON, || {
            last = self.metric(series)?;
            Ok(last.filter(|value| (value - expected).abs() < 1e-9).map(|_| ()))
        });
        waited.with_context(|| format!("it is {last:?}; log of the sidecar:\n{}", self.sidecar.log().join("\n")))
    }

    fn wait_for_state(&self, state: &str) -> Result<()> {
        self.wait_for_metric(&format!("hush_model_state{{model=\"{MODEL}\",state=\"{state}\"}}"), 1.0)
    }

    fn unloads(&self, reason: &str) -> Result<f64> {
        let series = format!("hush_model_unloads_total{{model=\"{MODEL}\",reason=\"{reason}\"}}");
        Ok(self.metric(&series)?.unwrap_or(0.0))
    }

    /// Whether the app itself lists the model as loaded.
    fn app_has_model(&self) -> Result<bool> {
        let list = http::get(self.app_address, "/api/ps")?.json()?;
        Ok(list["models"].as_array().is_some_and(|models| !models.is_empty()))
    }

    /// The namespace's policy.
    fn apply(&self, stage: &ClusterFixture<'_>, spec: Value) -> Result<()> {
        let policy = json!({
            "apiVersion": "gpu.hush.dev/v1beta1",
            "kind": "GpuModelPolicy",
            "metadata": {"name": "chat", "namespace": self.namespace.name},
            "spec": spec,
        });
        stage.plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string()).map(drop)
    }
}

fn chat(proxy: SocketAddr) -> Result<()> {
    let body = json!({"model": MODEL, "prompt": "hello", "stream": false, "options": {"num_predict": 2}}).to_string();
    let head = format!(
        "POST /api/generate HTTP/1.1\r\nHost: chat\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = http::exchange(proxy, format!("{head}{body}").as_bytes())?;
    ensure!(answer.status == 200 && answer.text().contains("\"done\":true"), "{} {}", answer.status, answer.text());
    Ok(())
}

/// Waits until the controller sees both models under these priorities, and what serves them.
fn wait_until_seen(
    controller: &Controller,
    speech: &GovernedApp,
    llm: &GovernedLlm,
    priorities: [i32; 2],
) -> Result<()> {
    let expected = [(speech.pod(), "whisper", priorities[0]), (llm.pod(), "ollama", priorities[1])];
    let mut last = Value::Null;
    let waited = wait_for("the controller sees both", SOON, || {
        last = http::get(controller.ops, "/api/v1/state")?.json()?;
        let seen = |(pod, app, priority): &(String, &str, i32)| {
            let model = last["models"].as_array()?.iter().find(|model| model["server"] == *pod)?;
            (model["app"] == *app && model["rules"]["priority"]["value"] == *priority).then_some(())
        };
        Ok(expected.iter().map(seen).collect::<Option<()>>())
    });
    waited.with_context(|| last.to_string())
}

/// Each needs more than half of the card: whichever has the higher priority gets the room of the other.
#[tokio::test(flavor = "multi_thread")]
async fn speech_and_a_language_model_make_room_for_each_other() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let speech = stage.server(AppSpec::new("speech", 5, 0)).await?;
    let Some(llm) = llm(&stage, AppSpec::new("chat", 5, 0)).await? else { return Ok(()) };
    speech.apply(&plane, returning("speech", 0))?;
    llm.apply(&stage, returning("chat", 10))?;
    speech.transcribe()?;

    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    wait_until_seen(&controller, &speech, &llm, [0, 10])?;

    // The prompt waits at the sidecar, Whisper leaves, and the prompt is answered.
    llm.chat()?;
    assert_eq!(speech.server.unloads_ordered(), [stage.caller(CONTROLLER)]);
    speech.server.wait_for_state("unloaded", SOON)?;
    assert!(llm.app_has_model()?);

    // The other way round, now that speech comes first.
    speech.apply(&plane, returning("speech", 100))?;
    wait_until_seen(&controller, &speech, &llm, [100, 10])?;
    speech.transcribe()?;
    llm.wait_for_state("unloaded")?;
    assert!(!llm.app_has_model()?, "the app's own list agrees");
    assert_eq!(llm.unloads("MakeRoom")?, 1.0);
    let events = plane.kubectl_text(&["get", "events", "--namespace", &llm.namespace.name, "--output", "json"], "");
    let events: Value = serde_json::from_str(&events?)?;
    let notes: Vec<&str> =
        events["items"].as_array().into_iter().flatten().filter_map(|e| e["message"].as_str()).collect();
    assert!(notes.iter().any(|note| note.contains("tiny (ollama) of") && note.contains("MakeRoom")), "{notes:?}");

    // And back, with the prompt on its way before the priorities change.
    let waiting = llm.chat_meanwhile();
    llm.wait_for_state("waiting_for_memory")?;
    llm.apply(&stage, returning("chat", 200))?;
    waiting.join().map_err(|_| anyhow::anyhow!("the prompt's thread has panicked"))??;
    assert_eq!(speech.server.unloads_ordered().len(), 2);
    Ok(())
}

/// Others need the memory: the model of lower priority leaves, whatever serves it. A controller that is killed leaves both in
/// peace, and the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn under_pressure_the_lower_priority_leaves_and_a_killed_controller_is_replaced() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let speech = stage.app(AppSpec::new("speech", 2, 10)).await?;
    let Some(llm) = llm(&stage, AppSpec::new("chat", 2, 0)).await? else { return Ok(()) };
    llm.apply(&stage, returning("chat", 0))?;
    speech.transcribe()?;
    llm.chat()?;

    let seat = stage.controller_command(CONTROLLER, &plane.url(), &["--scope", "cluster"]).await?;
    let mut first = seat.start()?;
    wait_until_ready(&first)?;
    wait_until_calm(&first)?;
    wait_until_seen(&first, &speech, &llm, [10, 0])?;
    stage.others_hold(14)?;
    llm.wait_for_state("unloaded")?;
    wait_until_calm(&first)?;
    assert_eq!((llm.unloads("HardPressure")?, llm.app_has_model()?), (1.0, false));
    assert!(speech.server.unloads_ordered().is_empty(), "one was enough");

    stage.others_hold(0)?;
    llm.chat()?;
    process::send(first.pid(), Signal::KILL)?;
    first.wait_for_exit(SOON)?;
    stage.others_hold(14)?;
    llm.chat()?;
    assert!(llm.app_has_model()? && speech.server.unloads_ordered().is_empty(), "no controller, no command");

    let next = seat.start()?;
    wait_until_acting(&next, true)?;
    llm.wait_for_state("unloaded")?;
    assert_eq!(llm.unloads("HardPressure")?, 2.0);
    wait_until_calm(&next)?;
    assert!(speech.server.unloads_ordered().is_empty());
    Ok(())
}

/// A controller beside each of the two, and none for more: each commands its own.
#[tokio::test(flavor = "multi_thread")]
async fn controllers_beside_a_server_and_beside_a_sidecar_agree() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(plane).await?;
    plane.grant(&stage.system, Rights::Sidecar)?;
    let node = "mixed";
    let speech = stage.app(AppSpec::new("speech", 2, 10).on(node)).await?;
    let Some(llm) = llm(&stage, AppSpec::new("chat", 2, 0).on(node)).await? else { return Ok(()) };
    llm.apply(&stage, policy("chat", 0))?;
    speech.transcribe()?;
    llm.chat()?;

    let beside_speech = stage.sidecar(&speech).await?;
    let beside_llm = stage.controller_beside(&llm.namespace, &llm.node).await?;
    for controller in [&beside_speech, &beside_llm] {
        wait_until_ready(controller)?;
        wait_until_acting(controller, true)?;
        wait_until_seen(controller, &speech, &llm, [10, 0])?;
        wait_until_calm(controller)?;
    }

    stage.others_hold(14)?;
    llm.wait_for_state("unloaded")?;
    for controller in [&beside_speech, &beside_llm] {
        wait_until_calm(controller)?;
    }
    assert_eq!((beside_llm.sent()?.len(), beside_speech.sent()?.len()), (1, 0));

    stage.others_hold(22)?;
    speech.server.wait_for_state("unloaded", SOON)?;
    assert_eq!(speech.server.unloads_ordered(), [format!("system:serviceaccount:{}:{SERVER}", speech.namespace.name)]);
    // The command ends a little after the server has unloaded.
    wait_for("the command of the controller beside the server", SOON, || {
        Ok((!beside_speech.sent()?.is_empty()).then_some(()))
    })?;
    assert_eq!((beside_llm.sent()?.len(), beside_speech.sent()?.len()), (1, 1));
    Ok(())
}

/// The app ends: its models are gone for the controller too, the pod has an Event, and the policy says so. The app comes back,
/// and so does everything else.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_is_reported_and_governed_again_when_it_is_back() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let Some(mut llm) = llm(&stage, AppSpec::new("chat", 2, 0)).await? else { return Ok(()) };
    llm.apply(&stage, policy("chat", 0))?;
    llm.chat()?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    // Only the controller that leads writes Events.
    wait_until_acting(&controller, true)?;
    llm.wait_for_metric("hush_app_up{app=\"ollama\"}", 1.0)?;

    process::send(llm.app.pid(), Signal::KILL)?;
    llm.app.wait_for_exit(SOON)?;
    llm.wait_for_metric("hush_app_up{app=\"ollama\"}", 0.0)?;
    eventually("an Event says so", SOON, async || {
        let args = ["get", "events", "--namespace", &llm.namespace.name, "--output", "json"];
        let events: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
        let said = |event: &Value| event["reason"] == "AppUnreachable" && event["involvedObject"]["kind"] == "Pod";
        Ok(events["items"].as_array().is_some_and(|items| items.iter().any(said)).then_some(()))
    })
    .await?;

    let (app_binary, _) = programs().context("the programs are gone")?;
    let mut command = Command::new(app_binary);
    command.args(["--app", "ollama", "--port", &llm.app_address.port().to_string(), "--gpu", UUID]);
    command.args(["--model", &format!("{MODEL}={}", 2 * GIB)]).env(SCRIPT_VARIABLE, stage.gpus.path());
    llm.app = ChildProgram::start("hush-app-standin", command, &["HUSH_STANDIN"])?;
    llm.wait_for_metric("hush_app_up{app=\"ollama\"}", 1.0)?;
    llm.chat()?;
    Ok(())
}
