//! Servers, their pods and policies in namespaces of their own, and controllers over them, all with the rights that are
//! shipped. The GPU is the double's; servers, models, tokens and commands are real.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_nvml::ProcessMemory;
use hush_tests::cluster::{ControlPlane, Namespace, PodAt, Rights};
use hush_tests::gpus::{GIB, Gpus};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, Server, http};
use serde_json::{Value, json};

pub const SOON: Duration = Duration::from_secs(60);
/// From one look with kubectl to the next: each is a process that costs more than what it looks at.
const LOOK: Duration = Duration::from_millis(250);
pub const POD: &str = "whisper-0";
/// The service accounts: of a controller for the cluster or a node; and of the servers, which a sidecar shares.
pub const CONTROLLER: &str = "hush-controller";
pub const SERVER: &str = "hush-server";

/// A namespace with one server, its pod and a policy.
pub struct GovernedApp {
    pub namespace: Namespace,
    pub server: Server,
    pub node: String,
    pub pod_uid: String,
}

/// A pod whose server is to be started, and then to be found by its operations port.
pub struct ServerPod {
    pub namespace: Namespace,
    pub uid: String,
    ip: Ipv4Addr,
    /// Where its operations listener is, and who may command it: the same options of `hush-server` and `hush-sidecar`.
    pub access_args: Vec<String>,
}

impl ServerPod {
    pub async fn run(&self, ops_port: u16) -> Result<()> {
        self.namespace.annotate_pod(POD, "gpu.hush.dev/ops-port", &ops_port.to_string()).await?;
        self.namespace.run_pod(POD, self.ip).await?;
        Ok(())
    }
}

/// How a server holds memory and what its policy says of it.
#[derive(Clone, Copy, Debug)]
pub struct AppSpec<'a> {
    pub name: &'a str,
    pub node: &'a str,
    pub gib: u64,
    pub priority: i32,
    /// Arguments of `serve`.
    pub args: &'a [&'a str],
    /// Annotations of the pod.
    pub annotations: &'a [(&'a str, &'a str)],
}

impl<'a> AppSpec<'a> {
    pub const fn new(name: &'a str, gib: u64, priority: i32) -> Self {
        Self { name, node: "n1", gib, priority, args: &[], annotations: &[] }
    }

    pub const fn on(self, node: &'a str) -> Self {
        Self { node, ..self }
    }
}

/// Where a controller is started.
pub struct ControllerCommand {
    kubeconfig: String,
    args: Vec<String>,
}

impl ControllerCommand {
    pub fn start(&self) -> Result<Controller> {
        Controller::in_cluster(&self.kubeconfig, &self.args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// A control plane of the test's own, since a controller for the whole cluster looks at everything in it.
pub async fn own_plane() -> Result<Option<ControlPlane>> {
    own_plane_with(&[]).await
}

/// The same with further arguments of the API server.
pub async fn own_plane_with(args: &[&str]) -> Result<Option<ControlPlane>> {
    let Some(plane) = ControlPlane::start_with(args).await? else { return Ok(None) };
    plane.apply_definitions().await?;
    Ok(Some(plane))
}

pub struct ClusterFixture<'a> {
    pub plane: &'a ControlPlane,
    pub gpus: Gpus,
    pub system: Namespace,
    folder: tempfile::TempDir,
}

impl<'a> ClusterFixture<'a> {
    /// One GPU of 8 GiB.
    pub async fn new(plane: &'a ControlPlane) -> Result<Self> {
        let system = plane.namespace("hush", &[]).await?;
        for rights in [Rights::Server, Rights::Controller] {
            plane.grant(&system, rights)?;
        }
        Ok(Self { plane, gpus: Gpus::one()?, system, folder: tempfile::tempdir()? })
    }

    fn file(&self, name: &str, content: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, content)?;
        Ok(path.to_string_lossy().into_owned())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server that holds so much of the GPU once it is loaded, and a policy by which it never leaves unless memory is
    /// short.
    pub async fn app(&mut self, cast: AppSpec<'_>) -> Result<GovernedApp> {
        let app = self.server(cast).await?;
        app.apply(self.plane, policy(cast.name, cast.priority))?;
        Ok(app)
    }

    /// The same without a policy.
    pub async fn server(&mut self, cast: AppSpec<'_>) -> Result<GovernedApp> {
        let pod = self.pod(&cast).await?;
        let guest = ProcessMemory { bytes: cast.gib * GIB, ..ProcessMemory::default() };
        let access: Vec<&str> = pod.access_args.iter().map(String::as_str).collect();
        let server = self.gpus.server(guest, &[&access[..], cast.args].concat())?;
        pod.run(server.ops.port()).await?;
        Ok(GovernedApp { namespace: pod.namespace, server, node: cast.node.to_owned(), pod_uid: pod.uid })
    }

    /// A namespace with the pod of a server that is to be started.
    pub async fn pod(&self, cast: &AppSpec<'_>) -> Result<ServerPod> {
        // Pods have addresses of their own.
        static LAST: AtomicU8 = AtomicU8::new(20);
        let ip = Ipv4Addr::new(127, 0, 1, LAST.fetch_add(1, Ordering::Relaxed));
        let namespace = self.plane.namespace(cast.name, &[("team", cast.name)]).await?;
        let token = self.system.token(SERVER, None).await?;
        let token = self.file(&format!("token-{}", namespace.name), &token)?;
        namespace.service_account(SERVER).await?;
        let pod = PodAt {
            name: POD,
            node: cast.node,
            account: SERVER,
            labels: &[("gpu.hush.dev/server", "true"), ("app", cast.name)],
            annotations: cast.annotations,
            ports: &[],
            ip,
        };
        let uid = namespace.create_pod(&pod).await?;
        // The controller for more, and the one beside the server.
        let accounts = [(&self.system.name, CONTROLLER), (&namespace.name, SERVER)];
        let accounts = accounts.map(|(namespace, account)| format!("{namespace}:{account}"));
        let (url, ca) = (self.plane.url(), self.plane.ca_file().to_string_lossy().into_owned());
        let access_args = [
            // A sidecar connects over the loopback, every other client to the address of the pod.
            "--ops-listen",
            "0.0.0.0:0",
            "--admin-token-review",
            "--admin-account",
            &accounts[0],
            "--admin-account",
            &accounts[1],
            "--kubernetes-api",
            &url,
            "--kubernetes-ca",
            &ca,
            "--kubernetes-token",
            &token,
            "--pod-namespace",
            &namespace.name,
            "--pod-uid",
            &uid,
        ];
        let access_args = access_args.map(str::to_owned).to_vec();
        Ok(ServerPod { namespace, uid, ip, access_args })
    }

    /// As whom the account is, on the way to the API server that `url` is.
    pub async fn kubeconfig(&self, account: &str, url: &str) -> Result<String> {
        self.plane.kubeconfig(&self.system, account, url).await
    }

    pub async fn controller(&self, args: &[&str]) -> Result<Controller> {
        self.controller_of(CONTROLLER, &self.plane.url(), args).await
    }

    pub async fn controller_of(&self, account: &str, url: &str, args: &[&str]) -> Result<Controller> {
        self.controller_command(account, url, args).await?.start()
    }

    /// All that a controller needs to be started, also while the API server is away.
    pub async fn controller_command(&self, account: &str, url: &str, args: &[&str]) -> Result<ControllerCommand> {
        let own_account = format!("{}:{account}", self.system.name);
        self.controller_command_with(account, url, &[&["--service-account", &own_account], args].concat()).await
    }

    async fn controller_command_with(&self, account: &str, url: &str, args: &[&str]) -> Result<ControllerCommand> {
        let kubeconfig = self.kubeconfig(account, url).await?;
        let mut all = Vec::new();
        if !args.contains(&"--lease-duration") {
            // Short, but a machine that runs many tests at once must be able to renew it.
            all.extend(["--lease-duration", "6s"]);
        }
        all.extend(args);
        Ok(ControllerCommand { kubeconfig, args: all.into_iter().map(str::to_owned).collect() })
    }

    /// A controller beside the server of an app. It has a token of their pod, which only that server accepts.
    pub async fn sidecar(&self, app: &GovernedApp) -> Result<Controller> {
        self.controller_beside(&app.namespace, &app.node).await
    }

    /// A controller in the pod of this namespace.
    pub async fn controller_beside(&self, namespace: &Namespace, node: &str) -> Result<Controller> {
        let token = namespace.token_of_pod(SERVER, "hush-server", POD).await?;
        let token = self.file(&format!("token-sidecar-{}", namespace.name), &token)?;
        let pod = format!("{}/{POD}", namespace.name);
        let args = ["--scope", "pod", "--node", node, "--pod", &pod, "--token-file", &token];
        self.controller_command_with(SERVER, &self.plane.url(), &args).await?.start()
    }

    /// What others hold of the GPU, in quarters of a GiB.
    pub fn others_hold(&mut self, quarters: u64) -> Result<()> {
        self.gpus.change(|gpu| gpu.used_bytes = quarters * GIB / 4)
    }

    pub fn caller(&self, account: &str) -> String {
        format!("system:serviceaccount:{}:{account}", self.system.name)
    }
}

/// The app's model leaves for others, by one command, and may come back.
pub fn pulse(stage: &mut ClusterFixture<'_>, app: &GovernedApp) -> Result<()> {
    app.transcribe()?;
    let before = app.server.unloads_ordered().len();
    stage.others_hold(22)?;
    app.server.wait_for_state("unloaded", SOON)?;
    stage.others_hold(0)?;
    ensure!(app.server.unloads_ordered().len() == before + 1, "by one command");
    Ok(())
}

/// Never leaves unless memory is short; then in the order of priorities. Comes back as soon as it is asked for.
pub fn returning(app: &str, priority: i32) -> Value {
    let mut spec = policy(app, priority);
    spec["holdAfterEviction"] = json!("0s");
    spec
}

/// Never leaves unless memory is short; then in the order of priorities.
pub fn policy(app: &str, priority: i32) -> Value {
    json!({
        "selector": {"matchLabels": {"app": app}},
        "residency": {"mode": "Resident"},
        "pressure": {"hard": {"availableBelow": "1Gi"}, "minReclaim": "512Mi", "transitionPeriod": "1s"},
        "priority": priority,
    })
}

impl GovernedApp {
    /// As a controller calls it.
    pub fn pod(&self) -> String {
        format!("{}/{POD}", self.namespace.name)
    }

    /// For whom a token for its server is made.
    pub fn audience(&self) -> String {
        format!("hush-server/{}/{}", self.namespace.name, self.pod_uid)
    }

    /// The account of its pod, as its server calls who commands it.
    pub fn caller(&self) -> String {
        format!("system:serviceaccount:{}:{SERVER}", self.namespace.name)
    }

    /// The namespace's policy `speech`.
    pub fn apply(&self, plane: &ControlPlane, spec: Value) -> Result<()> {
        let policy = json!({
            "apiVersion": "gpu.hush.dev/v1beta1",
            "kind": "GpuModelPolicy",
            "metadata": {"name": "speech", "namespace": self.namespace.name},
            "spec": spec,
        });
        plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string()).map(drop)
    }

    pub fn policy(&self, plane: &ControlPlane) -> Result<Value> {
        let args = ["get", "gmp", "speech", "--namespace", &self.namespace.name, "--output", "json"];
        Ok(serde_json::from_str(&plane.kubectl_text(&args, "")?)?)
    }

    /// Waits until a field of the policy's status has this value.
    pub fn wait_for_status(&self, plane: &ControlPlane, field: &str, value: impl Into<Value>) -> Result<()> {
        let (value, mut last) = (value.into(), Value::Null);
        let waited = wait_for(&format!("{field} of {} is {value}", self.namespace.name), SOON, || {
            last = self.policy(plane)?["status"].take();
            Ok(or_later((last[field] == value).then_some(())))
        });
        waited.with_context(|| last.to_string())
    }

    /// Waits until a condition of the policy has this status and reason, and gives its message.
    pub fn wait_for_condition(&self, plane: &ControlPlane, kind: &str, is: (&str, &str)) -> Result<String> {
        let mut last = Value::Null;
        let waited = wait_for(&format!("{kind} of {} is {is:?}", self.namespace.name), SOON, || {
            last = self.policy(plane)?;
            let condition = condition(&last, kind);
            let found = condition
                .filter(|condition| (&condition["status"], &condition["reason"]) == (&json!(is.0), &json!(is.1)));
            Ok(or_later(found.map(|condition| condition["message"].as_str().unwrap_or_default().to_owned())))
        });
        waited.with_context(|| last.to_string())
    }

    pub fn events(&self, plane: &ControlPlane) -> Result<Vec<Value>> {
        let args = ["get", "events", "--namespace", &self.namespace.name, "--output", "json"];
        let list: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Loads the model, if it is not there.
    pub fn transcribe(&self) -> Result<()> {
        let answer = self.server.asr("?language=en", "en-1.wav")?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok(())
    }
}

fn or_later<T>(found: Option<T>) -> Option<T> {
    if found.is_none() {
        std::thread::sleep(LOOK);
    }
    found
}

pub fn condition<'a>(policy: &'a Value, kind: &str) -> Option<&'a Value> {
    policy["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

pub fn wait_until_ready(controller: &Controller) -> Result<()> {
    let mut said = String::new();
    let waited = wait_for("the controller is ready", SOON, || {
        let answer = http::get(controller.ops, "/readyz")?;
        said = answer.text();
        Ok((answer.status == 200).then_some(()))
    });
    waited.with_context(|| format!("{said}\n{}", controller.log().join("\n")))
}

/// Waits until `/readyz` says that it waits for this.
pub fn wait_until_missing(controller: &Controller, part: &str) -> Result<()> {
    let mut said = String::new();
    let waited = wait_for(&format!("`/readyz` says {part:?}"), SOON, || {
        let answer = http::get(controller.ops, "/readyz")?;
        said = answer.text();
        Ok((answer.status == 503 && said.contains(part)).then_some(()))
    });
    waited.with_context(|| format!("{said}\n{}", controller.log().join("\n")))
}

/// Waits until it may act, or may not.
pub fn wait_until_acting(controller: &Controller, acts: bool) -> Result<()> {
    controller.wait_for_metric("hush_controller_acting", f64::from(u8::from(acts)), SOON)
}

/// Waits until it has seen that its one card is short of nothing.
pub fn wait_until_calm(controller: &Controller) -> Result<()> {
    controller.wait_for_metric("hush_controller_gpus{pressure=\"None\"}", 1.0, SOON)
}

/// What a controller says of itself: its log, what it decides now, its figures.
pub fn told(controller: &Controller) -> String {
    let text = |path: &str| http::get(controller.ops, path).map(|answer| answer.text()).unwrap_or_default();
    let figures = text("/metrics");
    let figures: Vec<&str> = figures.lines().filter(|line| line.starts_with("hush_controller_")).collect();
    format!("{}\n{}\n{}", controller.log().join("\n"), text("/api/v1/state"), figures.join("\n"))
}
