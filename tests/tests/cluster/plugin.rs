//! `kubectl hush` through a real API server: it finds controllers by their pods, reaches them by the pods' proxy, and
//! takes their token from the Secret that they name, all with the roles that are shipped. The API server proxies to no
//! loopback address, so the controllers listen on another one of this machine; without one the tests say that they are
//! skipped.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::{ControlPlane, PodAt};
use hush_tests::{Controller, fixtures, http, plugin};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::fixture::{AppSpec, ClusterFixture, GovernedApp, SOON, own_plane, wait_until_acting};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The address from which this machine would leave; nothing is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_link_local() => Some(address),
        _ => {
            eprintln!("SKIPPED: this machine has the loopback address alone, to which no API server proxies");
            None
        }
    }
}

/// A controller in a pod, and a person who may do nothing yet.
struct PluginFixture<'a> {
    stage: ClusterFixture<'a>,
    address: Ipv4Addr,
    kubeconfig: String,
}

impl<'a> PluginFixture<'a> {
    async fn new(plane: &'a ControlPlane, address: Ipv4Addr) -> Result<Self> {
        let stage = ClusterFixture::new(plane).await?;
        let system = stage.system.name.clone();
        stage.system.service_account("anna").await?;
        let roles = std::fs::read_to_string(fixtures::workspace().join("controller/rbac/people.yaml"))?;
        plane.kubectl_text(
            &["apply", "--filename", "-"],
            &roles.replace("namespace: hush}", &format!("namespace: {system}}}")),
        )?;
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "hush-page"}, "stringData": {"token": TOKEN}}))?;
        stage.system.api::<Secret>().create(&PostParams::default(), &secret).await?;
        std::fs::write(stage.path("page-token"), TOKEN)?;
        let token = stage.system.token("anna", None).await?;
        let (url, ca) = (plane.url(), plane.ca_file().to_string_lossy().into_owned());
        let kubeconfig = stage.path("anna");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "elsewhere",
            "contexts": [
                {"name": "elsewhere", "context": {"cluster": "nowhere", "user": "anna"}},
                {"name": "test", "context": {"cluster": "test", "user": "anna", "namespace": system}},
            ],
            "clusters": [
                {"name": "test", "cluster": {"server": url, "certificate-authority": ca}},
                {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:9"}},
            ],
            "users": [{"name": "anna", "user": {"token": token}}],
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        Ok(Self { stage, address, kubeconfig: kubeconfig.to_string_lossy().into_owned() })
    }

    fn bind(&self, role: &str) -> Result<()> {
        let (system, user) = (&self.stage.system.name, format!("--serviceaccount={}:anna", self.stage.system.name));
        let (name, role) = (format!("anna-{role}"), format!("--role={role}"));
        self.stage
            .plane
            .kubectl_text(&["create", "rolebinding", &name, &role, &user, "--namespace", system], "")
            .map(drop)
    }

    /// For the whole cluster, in a pod that says so.
    async fn controller(&self, name: &str) -> Result<Controller> {
        let (listen, token) =
            (format!("{}:0", self.address), self.stage.path("page-token").to_string_lossy().into_owned());
        let controller =
            self.stage.controller(&["--scope", "cluster", "--listen", &listen, "--page-token-file", &token]).await?;
        self.pod(name, controller.ops.port(), self.address).await?;
        Ok(controller)
    }

    async fn pod(&self, name: &str, port: u16, ip: Ipv4Addr) -> Result<()> {
        let pod = PodAt {
            name,
            node: "n1",
            account: "hush-controller",
            labels: &[("gpu.hush.dev/controller", "true")],
            annotations: &[("gpu.hush.dev/page-token", "hush-page/token")],
            ports: &[("controller", port)],
            ip,
        };
        self.stage.system.pod(&pod).await.map(drop)
    }

    fn as_anna<'b>(&'b self, args: &[&'b str]) -> Vec<&'b str> {
        [args, &["--kubeconfig", &self.kubeconfig, "--context", "test"]].concat()
    }

    fn said(&self, args: &[&str]) -> Result<String> {
        plugin::said(&self.as_anna(args))
    }

    fn complaint(&self, args: &[&str]) -> Result<String> {
        plugin::complaint(&self.as_anna(args))
    }

    /// kubectl itself, with the plugin on its path.
    fn kubectl(&self, args: &[&str]) -> Result<Output> {
        let folder = self.stage.path("bin");
        std::fs::create_dir_all(&folder)?;
        let link = folder.join("kubectl-hush");
        if !link.exists() {
            std::os::unix::fs::symlink(fixtures::controller()?.canonicalize()?, link)?;
        }
        let mut command = Command::new(self.stage.plane.kubectl_program());
        command
            .args(args)
            .env("PATH", folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.stage.plane.folder());
        Ok(command.output()?)
    }

    /// The page of a controller as a browser reaches it through `kubectl proxy`.
    fn proxy(&self) -> Result<KubectlProxy> {
        let mut command = Command::new(self.stage.plane.kubectl_program());
        command.args(["proxy", "--port=0", "--context", "test"]).env("KUBECONFIG", &self.kubeconfig);
        let mut child = command.env("HOME", self.stage.plane.folder()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no output")?;
        let mut proxy = KubectlProxy { child, address: ([127, 0, 0, 1], 0).into() };
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().context("no address")?;
        proxy.address = address.parse().with_context(|| line.clone())?;
        Ok(proxy)
    }

    /// Waits until the controllers have seen the app's model in memory.
    async fn seen(&self, app: &GovernedApp) -> Result<Value> {
        hush_tests::wait::eventually("the model is seen", SOON, async || {
            let state: Value = serde_json::from_str(&self.said(&["top", "-o", "json"])?)?;
            let found = state["models"].as_array().into_iter().flatten();
            let found = found.filter(|model| model["server"] == app.pod() && model["state"] == "Ready").count();
            Ok((found == 1).then_some(state))
        })
        .await
    }
}

/// Until it is let go of.
struct KubectlProxy {
    child: Child,
    address: SocketAddr,
}

impl Drop for KubectlProxy {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_person_sees_and_acts_with_exactly_the_roles_for_it() -> Result<()> {
    let (Some(address), Some(plane)) = (own_address(), own_plane().await?) else { return Ok(()) };
    let mut scene = PluginFixture::new(&plane, address).await?;
    let app = scene.stage.app(AppSpec::new("media", 3, 0)).await?;
    let controller = scene.controller("hush-controller-0").await?;
    let system = scene.stage.system.name.clone();
    wait_until_acting(&controller, true)?;
    let namespace = app.namespace.name.clone();
    app.transcribe()?;

    is_told_of_the_missing_role(&scene)?;
    scene.bind("hush-view")?;
    sees_with_the_view_role(&scene, &app).await?;
    cannot_act_with_the_view_role(&scene, &app, &controller)?;

    scene.bind("hush-operate")?;
    acts_with_the_operate_role(&scene, &app, &controller).await?;
    let paused = scene.said(&["pause", "speech", "-n", &namespace, "--for", "30m"])?;
    assert!(paused.contains(&format!("{namespace}/speech only shows what it would do, for 30m")), "{paused}");

    // Who asked, as the API server knows them; the controller has no proof of it and says so.
    let why = app.wait_for_condition(&plane, "Ready", ("False", "Paused"))?;
    let by = format!("asked for by system:serviceaccount:{system}:anna as the request says");
    assert!(why.starts_with("paused until 20") && why.contains(&by), "{why}");
    Ok(())
}

fn is_told_of_the_missing_role(scene: &PluginFixture<'_>) -> Result<()> {
    let complaint = scene.complaint(&["top"])?;
    for part in ["ask for the Role `NAME-view` of the chart", "--controller-namespace", "docs/kubectl.md"] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    Ok(())
}

async fn sees_with_the_view_role(scene: &PluginFixture<'_>, app: &GovernedApp) -> Result<()> {
    let system = &scene.stage.system.name;
    let state = scene.seen(app).await?;
    assert_eq!(state["controllers"][0]["name"], format!("{system}/hush-controller-0"), "{state}");

    let top = scene.said(&["top"])?;
    assert!(top.contains(&app.pod()) && top.contains("1 controller, "), "{top}");

    let (namespace, pod) = app.pod().split_once('/').map(|(n, p)| (n.to_owned(), p.to_owned())).context("no pod")?;
    let told = scene.said(&["explain", &pod, "-n", &namespace, "--controller-namespace", system])?;
    assert!(
        told.contains(&format!("Selected by {namespace}/speech.")) && told.contains("stays: residency is Resident"),
        "{told}"
    );

    // kubectl finds the plugin by its name.
    let output = scene.kubectl(&["hush", "top", "--context", "test"])?;
    let (out, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(&app.pod()), "{out}{complaint}");

    let complaint = plugin::complaint(&["top", "--kubeconfig", &scene.kubeconfig])?;
    assert!(complaint.contains("looking for controllers"), "another context, without a controller: {complaint}");
    Ok(())
}

/// Who may look may not act: neither by the token nor by a POST.
fn cannot_act_with_the_view_role(scene: &PluginFixture<'_>, app: &GovernedApp, controller: &Controller) -> Result<()> {
    let system = &scene.stage.system.name;
    let complaint = scene.complaint(&["unload", &app.pod()])?;
    assert!(complaint.contains(&format!("{system}/hush-page: ask for the Role `NAME-operate`")), "{complaint}");

    let token = scene.stage.path("page-token").to_string_lossy().into_owned();
    let complaint = scene.complaint(&["unload", &app.pod(), "--token-file", &token])?;
    assert!(
        complaint.contains(&format!("the namespace `{system}` to let this user create its `pods/proxy`")),
        "{complaint}"
    );
    assert!(controller.audit()?.is_empty(), "nothing came through");

    assert!(scene.said(&["log-level"])?.ends_with("hush-controller-0 logs info\n"));
    let complaint = scene.complaint(&["log-level", "debug", "--token-file", &token])?;
    assert!(complaint.contains("to let this user create its `pods/proxy`"), "{complaint}");
    Ok(())
}

async fn acts_with_the_operate_role(
    scene: &PluginFixture<'_>,
    app: &GovernedApp,
    controller: &Controller,
) -> Result<()> {
    let done = hush_tests::wait::eventually("the role is known", SOON, async || {
        let output = plugin::run(&scene.as_anna(&["unload", &app.pod()]))?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    });
    assert!(done.await?.contains("unloaded, 3.00Gi came back"));
    app.server.wait_for_state("unloaded", SOON)?;

    let changed = scene.said(&["log-level", "debug", "--for", "10m"])?;
    assert!(changed.contains("hush-controller-0 logs debug until 2"), "{changed}");

    let audit = controller.wait_for_audit(1, SOON)?;
    assert_eq!(
        (audit.len(), &audit[0]["reason"], &audit[0]["outcome"]),
        (1, &json!("Manual"), &json!("Unloaded")),
        "{audit:?}"
    );
    Ok(())
}

#[tokio::test]
async fn of_several_controllers_the_one_that_acts_is_asked() -> Result<()> {
    let (Some(address), Some(plane)) = (own_address(), own_plane().await?) else { return Ok(()) };
    let mut scene = PluginFixture::new(&plane, address).await?;
    scene.bind("hush-view")?;
    scene.bind("hush-operate")?;
    let app = scene.stage.app(AppSpec::new("media", 3, 0)).await?;
    // By name the follower comes first.
    let leader = scene.controller("b-leads").await?;
    wait_until_acting(&leader, true)?;
    let follower = scene.controller("a-follows").await?;
    // A pod that is listed as running but has ended, and one whose address the API server refuses.
    scene.pod("c-is-gone", 9, address).await?;
    scene.pod("d-at-home", leader.ops.port(), Ipv4Addr::LOCALHOST).await?;
    app.transcribe()?;
    let state = scene.seen(&app).await?;
    let system = &scene.stage.system.name;
    let acting: Vec<_> =
        state["controllers"].as_array().context("none")?.iter().map(|c| (&c["name"], &c["acting"])).collect();
    let expected =
        [(json!(format!("{system}/a-follows")), json!(false)), (json!(format!("{system}/b-leads")), json!(true))];
    assert_eq!(acting, expected.iter().map(|(name, acting)| (name, acting)).collect::<Vec<_>>());
    let problems = state["problems"].to_string();
    for part in
        ["c-is-gone cannot be asked", "networkPolicy.apiServer", "d-at-home cannot be asked", "address not allowed"]
    {
        assert!(problems.contains(part), "{part}: {problems}");
    }
    // The page comes the same way, with all that it asks for.
    let proxy = scene.proxy()?;
    let page = format!("/api/v1/namespaces/{system}/pods/b-leads:{}/proxy", leader.ops.port());
    let html = http::get(proxy.address, &format!("{page}/"))?;
    assert!(html.status == 200 && html.text().contains("ui/app.js"), "{} {}", html.status, html.text());
    assert_eq!(http::get(proxy.address, &format!("{page}/ui/app.js"))?.status, 200);
    let mut events = http::connect(proxy.address)?;
    write!(events, "GET {page}/api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
    let lines = BufReader::new(events).lines().map_while(Result::ok);
    assert!(lines.into_iter().any(|line| line.contains(&app.pod())), "the stream of states");

    let done = scene.said(&["unload", &app.pod()])?;
    assert!(done.contains("unloaded, 3.00Gi came back"), "{done}");
    assert!(follower.audit()?.is_empty(), "{:?}", follower.audit()?);
    ensure!(leader.wait_for_audit(1, SOON)?.len() == 1, "{:?}", leader.audit()?);

    // A controller that is gone is no pod any more either.
    for name in ["a-follows", "b-leads", "c-is-gone", "d-at-home"] {
        scene
            .stage
            .system
            .api::<k8s_openapi::api::core::v1::Pod>()
            .delete(name, &DeleteParams::default().grace_period(0))
            .await?;
    }
    let complaint = scene.complaint(&["top"])?;
    for part in ["there is no controller in `", "gpu.hush.dev/controller=true", "--controller URL"] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    Ok(())
}
