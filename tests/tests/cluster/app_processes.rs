//! `residency.unload: Process`: an unload ends the process of an app that its sidecar has started, so that nothing stays on the
//! card. Where the sidecar did not start the app, the unload is that of the app, and the policy and an Event say so. The app
//! is a stand-in for vLLM, whose process holds a context beside its model.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hush_nvml::SCRIPT_VARIABLE;
use hush_tests::child::ChildProgram;
use hush_tests::cluster::{ControlPlane, Namespace};
use hush_tests::gpus::{GIB, UUID, of_gpu};
use hush_tests::wait::{eventually, wait_for};
use hush_tests::{fixtures, http};
use serde_json::{Value, json};

use crate::fixture::{AppSpec, ClusterFixture, POD, SOON, own_plane, wait_until_acting, wait_until_ready};

const MODEL: &str = "tiny";
const MODEL_BYTES: u64 = 2 * GIB;
const CONTEXT_BYTES: u64 = GIB;

/// An app and its sidecar in a pod. `_app`: it runs beside the sidecar, which has not started it.
struct GovernedVllm {
    namespace: Namespace,
    sidecar: ChildProgram,
    proxy: SocketAddr,
    ops: SocketAddr,
    app_address: SocketAddr,
    _app: Option<ChildProgram>,
}

impl GovernedVllm {
    /// `None`: the programs are not built, and the test is skipped.
    async fn start(stage: &ClusterFixture<'_>, is_started_by_sidecar: bool) -> Result<Option<Self>> {
        let programs =
            fixtures::program("hush-app-standin").and_then(|app| Ok((app, fixtures::program("hush-sidecar")?)));
        let (app_binary, sidecar_binary) = match programs {
            Ok(programs) => programs,
            Err(error) => {
                eprintln!("skipped: {error:#}");
                return Ok(None);
            }
        };

        let (script, app_address) = (stage.gpus.path(), http::free_address()?);
        let (port, model, context) =
            (app_address.port().to_string(), format!("{MODEL}={MODEL_BYTES}"), CONTEXT_BYTES.to_string());
        let app_args =
            ["--app", "vllm", "--port", &port, "--gpu", UUID, "--model", &model, "--context-bytes", &context];

        let spec = AppSpec::new("chat", 2, 0);
        let pod = stage.pod(&spec).await?;
        let mut command = Command::new(sidecar_binary);
        command.args(["--app", "vllm", "--upstream", &format!("http://{app_address}"), "--model", MODEL]);
        command.args(["--listen", "127.0.0.1:0", "--log-format", "json", "--device", &format!("cuda:{UUID}")]);
        command.args(["--sample-interval", "100ms", "--poll-interval", "200ms", "--idle-timeout", "0"]);
        command.arg("--nvml-lib").arg(hush_nvml::library()?).args(&pod.access_args).env(SCRIPT_VARIABLE, &script);

        let app = if is_started_by_sidecar {
            // An app inherits no variable of the sidecar.
            command.args(["--", "/usr/bin/env", &format!("{SCRIPT_VARIABLE}={}", script.display())]);
            command.arg(app_binary).args(app_args);
            None
        } else {
            let mut command = Command::new(app_binary);
            command.args(app_args).env(SCRIPT_VARIABLE, &script);
            Some(ChildProgram::start("hush-app-standin", command, &["HUSH_STANDIN"])?)
        };

        let mut sidecar = ChildProgram::start("hush-sidecar", command, &["HUSH_"])?;
        let [proxy, ops] = sidecar.wait_for_addresses(["proxy", "ops"])?;
        pod.run(ops.port()).await?;
        let ops = SocketAddr::from(([127, 0, 0, 1], ops.port()));
        wait_for("the sidecar governs its app", SOON, || {
            Ok(http::get(ops, "/readyz").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })?;
        Ok(Some(Self { namespace: pod.namespace, sidecar, proxy, ops, app_address, _app: app }))
    }

    fn apply(&self, plane: &ControlPlane) -> Result<()> {
        let policy = json!({
            "apiVersion": "gpu.hush.dev/v1beta1",
            "kind": "GpuModelPolicy",
            "metadata": {"name": "chat", "namespace": self.namespace.name},
            "spec": {
                "selector": {"matchLabels": {"app": "chat"}},
                "residency": {"mode": "Idle", "idleTimeout": "2s", "unload": "Process"},
            },
        });
        plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string()).map(drop)
    }

    fn chat(&self) -> Result<()> {
        let body =
            json!({"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}).to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: chat\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = http::exchange(self.proxy, format!("{head}{body}").as_bytes())?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        Ok(())
    }

    fn metric(&self, series: &str) -> Result<Option<f64>> {
        http::series(&http::get(self.ops, "/metrics")?.text(), series)
    }

    /// What all processes of the card hold together, as NVML says.
    fn wait_for_used(&self, bytes: u64) -> Result<()> {
        let mut last = None;
        let waited = wait_for(&format!("{bytes} bytes are used"), SOON, || {
            last = self.metric(&of_gpu("hush_gpu_memory_used_bytes"))?;
            Ok(last.filter(|used| *used as u64 == bytes).map(|_| ()))
        });
        waited.with_context(|| format!("it is {last:?}; log of the sidecar:\n{}", self.sidecar.log().join("\n")))
    }

    /// Waits until an Event of the namespace is what `is_it` looks for: its reason, the kind of its object and its message.
    async fn wait_for_event(&self, plane: &ControlPlane, is_it: impl Fn(&str, &str, &str) -> bool) -> Result<()> {
        let mut seen = Vec::new();
        let waited = eventually("an Event says so", SOON, async || {
            let args = ["get", "events", "--namespace", &self.namespace.name, "--output", "json"];
            let events: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let parts = |event: &Value| {
                (text(&event["reason"]), text(&event["involvedObject"]["kind"]), text(&event["message"]))
            };
            seen = events["items"].as_array().into_iter().flatten().map(parts).collect::<Vec<_>>();
            Ok(seen.iter().any(|(reason, kind, message)| is_it(reason, kind, message)).then_some(()))
        });
        waited.await.with_context(|| format!("{seen:?}"))
    }

    fn policy_status(&self, plane: &ControlPlane) -> Result<Value> {
        let args = ["get", "gmp", "chat", "--namespace", &self.namespace.name, "--output", "json"];
        let mut policy: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
        Ok(policy["status"].take())
    }

    fn wait_for_ready_reason(&self, plane: &ControlPlane, reason: &str) -> Result<String> {
        let mut last = Value::Null;
        let waited = wait_for(&format!("Ready is {reason}"), SOON, || {
            last = self.policy_status(plane)?;
            let conditions = last["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
            let message = ready.filter(|ready| ready["reason"] == reason).and_then(|ready| ready["message"].as_str());
            Ok(message.map(str::to_owned))
        });
        waited.with_context(|| last.to_string())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_asks_for_the_process_leaves_nothing_on_the_card() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let Some(vllm) = GovernedVllm::start(&stage, true).await? else { return Ok(()) };
    vllm.chat()?;
    vllm.wait_for_used(MODEL_BYTES + CONTEXT_BYTES)?;

    vllm.apply(&plane)?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    vllm.wait_for_used(0)?;
    ensure!(http::get(vllm.app_address, "/health").is_err(), "the app still listens");
    vllm.wait_for_event(&plane, |reason, _, message| {
        reason == "Unloaded" && message.contains("tiny (vllm) of") && message.ends_with(", with its process")
    })
    .await?;
    vllm.wait_for_ready_reason(&plane, "InForce")?;
    let unloaded =
        |action: &Value| action["outcome"].as_str().is_some_and(|outcome| outcome.contains("with its process"));
    wait_for("the policy lists the action", SOON, || {
        Ok(vllm.policy_status(&plane)?["lastActions"]
            .as_array()
            .is_some_and(|all| all.iter().any(unloaded))
            .then_some(()))
    })?;

    // The next request starts the app, and its end is not taken for a failure of the app.
    vllm.chat()?;
    vllm.wait_for_used(MODEL_BYTES + CONTEXT_BYTES)?;
    let restarts = "hush_runner_restarts_total{model=\"tiny\",cause=\"exited\"}";
    assert_eq!(vllm.metric(restarts)?.unwrap_or(0.0), 0.0);
    vllm.wait_for_used(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_its_sidecar_did_not_start_keeps_its_process_and_the_policy_says_so() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let Some(vllm) = GovernedVllm::start(&stage, false).await? else { return Ok(()) };
    vllm.chat()?;
    vllm.apply(&plane)?;

    // The problem is there before any controller leads, and is reported by the first that does.
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    vllm.wait_for_event(&plane, |reason, kind, _| reason == "ProcessUnloadUnavailable" && kind == "Pod").await?;
    let message = vllm.wait_for_ready_reason(&plane, "ProcessUnloadUnavailable")?;
    ensure!(message.contains(&format!("{}/{POD} (vllm)", vllm.namespace.name)), "{message}");

    vllm.wait_for_used(CONTEXT_BYTES)?;
    ensure!(http::get(vllm.app_address, "/health")?.status == 200, "the app has ended");
    vllm.chat()
}
