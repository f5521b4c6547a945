//! A controller with the rights that are shipped, in a real API server's cluster: it finds servers by their pods and
//! policies by their kind, relieves a GPU with a token that the servers have looked at, and tells of it in status and
//! Events. The GPU is the double's; servers, models and commands are real.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_nvml::Guest;
use hush_tests::cluster::{ControlPlane, Namespace, PodAt, Rights};
use hush_tests::gpus::{GIB, Gpus};
use hush_tests::wait::{eventually, wait_for};
use hush_tests::{Controller, Server, http, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::definitions::with_definitions;

const SOON: Duration = Duration::from_secs(60);
const POD: &str = "whisper-0";

/// A namespace with one server, its pod and a policy.
struct App {
    namespace: Namespace,
    server: Server,
}

struct Stage<'a> {
    plane: &'a ControlPlane,
    gpus: Gpus,
    system: Namespace,
    folder: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    async fn new(plane: &'a ControlPlane) -> Result<Self> {
        let system = plane.namespace("hush", &[]).await?;
        plane.grant(&system, Rights::Server)?;
        plane.grant(&system, Rights::Controller)?;
        Ok(Self { plane, gpus: Gpus::one()?, system, folder: tempfile::tempdir()? })
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// A server on 127.0.0.`last` that holds so much of the GPU once it is loaded.
    async fn app(&mut self, name: &str, last: u8, gib: u64, priority: i32) -> Result<App> {
        let namespace = self.plane.namespace(name, &[("team", name)]).await?;
        let token = self.system.token("hush-server", None).await?;
        let token = self.file(&format!("token-{name}"), &token)?;
        let account = format!("{}:hush-controller", self.system.name);
        let (url, ca) = (self.plane.url(), self.plane.ca_file().to_string_lossy().into_owned());
        let listen = format!("127.0.0.{last}:0");
        let server = self.gpus.server(
            Guest { bytes: gib * GIB, ..Guest::default() },
            &[
                "--ops-listen",
                &listen,
                "--admin-token-review",
                "--admin-account",
                &account,
                "--kubernetes-api",
                &url,
                "--kubernetes-ca",
                &ca,
                "--kubernetes-token",
                &token,
            ],
        )?;
        let pod = PodAt {
            name: POD,
            node: "n1",
            account: "default",
            labels: &[("gpu.hush.dev/server", "true"), ("app", name)],
            annotations: &[],
            ports: &[("ops", server.ops.port())],
            ip: std::net::Ipv4Addr::new(127, 0, 0, last),
        };
        namespace.service_account("default").await?;
        namespace.pod(&pod).await?;
        let policy = json!({
            "apiVersion": "gpu.hush.dev/v1alpha1",
            "kind": "GpuModelPolicy",
            "metadata": {"name": "speech", "namespace": namespace.name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "residency": {"mode": "Resident"},
                "pressure": {"hard": {"availableBelow": "1Gi"}, "minReclaim": "512Mi"},
                "priority": priority,
            },
        });
        self.plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string())?;
        Ok(App { namespace, server })
    }

    async fn controller(&self, args: &[&str]) -> Result<Controller> {
        let token = self.system.token("hush-controller", None).await?;
        let ca = self.plane.ca_file().to_string_lossy().into_owned();
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": self.system.name}}],
            "clusters": [{"name": "test", "cluster": {"server": self.plane.url(), "certificate-authority": ca}}],
            "users": [{"name": "test", "user": {"token": token}}],
        });
        let servers = self.system.token("hush-controller", Some("hush-server")).await?;
        let servers = self.file("token-servers", &servers)?;
        let all = [&["--token-file", servers.as_str(), "--lease-duration", "5s"], args].concat();
        Controller::in_cluster(&kubeconfig.to_string(), &all)
    }
}

fn policy(plane: &ControlPlane, app: &App) -> Result<Value> {
    let name = &app.namespace.name;
    let text = plane.kubectl_text(&["get", "gmp", "speech", "--namespace", name, "--output", "json"], "")?;
    Ok(serde_json::from_str(&text)?)
}

fn events(plane: &ControlPlane, app: &App) -> Result<Vec<Value>> {
    let name = &app.namespace.name;
    let text = plane.kubectl_text(&["get", "events", "--namespace", name, "--output", "json"], "")?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn transcribe(app: &App) -> Result<()> {
    let answer = app.server.asr("?language=en", "en-1.wav")?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

fn condition<'a>(policy: &'a Value, kind: &str) -> Option<&'a Value> {
    policy["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[tokio::test]
async fn the_right_model_leaves_and_everybody_can_read_why() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = Stage::new(plane).await?;
    let dear = stage.app("dear", 21, 3, 10).await?;
    let cheap = stage.app("cheap", 22, 2, 0).await?;
    let mut controller = stage.controller(&["--scope", "cluster"]).await?;
    transcribe(&dear)?;
    transcribe(&cheap)?;
    let ready = eventually("it is ready", SOON, async || {
        let answer = http::get(controller.ops, "/readyz")?;
        Ok((answer.status == 200).then_some(answer))
    });
    ready.await?;
    let told = |app: &App, field: &str, value: i64| -> Result<Option<()>> {
        Ok((policy(plane, app)?["status"][field] == value).then_some(()))
    };
    for app in [&dear, &cheap] {
        wait_for("the policy matches its server", SOON, || told(app, "matched", 1))?;
        wait_for("its model is loaded", SOON, || told(app, "loaded", 1))?;
        let object = policy(plane, app)?;
        let ready = condition(&object, "Ready").context("no condition Ready")?;
        assert_eq!((&ready["status"], &ready["observedGeneration"]), (&json!("True"), &json!(1)), "{object}");
    }

    stage.gpus.change(|gpu| gpu.used_bytes = 2 * GIB + GIB / 2)?;
    cheap.server.wait_for_state("unloaded", SOON)?;
    wait_for("the policy says so", SOON, || told(&cheap, "loaded", 0))?;
    let server = format!("{}/{POD}", cheap.namespace.name);
    let record = wait_for("the audit says so", SOON, || Ok(controller.audit()?.into_iter().next()))?;
    assert_eq!((&record["server"], &record["reason"]), (&json!(server), &json!("HardPressure")), "{record}");
    wait_for("Events on policy and pod", SOON, || {
        let kinds: Vec<_> =
            events(plane, &cheap)?.iter().map(|event| event["involvedObject"]["kind"].clone()).collect();
        Ok((kinds.contains(&json!("Pod")) && kinds.contains(&json!("GpuModelPolicy"))).then_some(()))
    })?;
    assert!(events(plane, &dear)?.is_empty(), "nothing was done to it");
    dear.server.wait_for_state("ready", SOON)?;
    assert_eq!(controller.audit()?.len(), 1, "one command was enough");

    // A policy that is gone governs nobody.
    stage.plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &dear.namespace.name], "")?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"NotGoverned\"}", 1.0, SOON)?;

    process::send(controller.pid(), Signal::TERM)?;
    assert!(controller.wait_for_exit(SOON)?.success());
    let lease = ["get", "lease", "hush-controller", "--namespace", &stage.system.name, "--output", "json"];
    let lease: Value = serde_json::from_str(&stage.plane.kubectl_text(&lease, "")?)?;
    assert!(lease["spec"]["holderIdentity"].as_str().is_none_or(str::is_empty), "it was given back: {lease}");
    Ok(())
}
