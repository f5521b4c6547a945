//! A tenant's pod that only calls itself a server: what it sees of the controller's credentials, and what it can do with
//! them. The other tenant's server is a real one, and so is the API server that both ask.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hush_tests::cluster::{ControlPlane, Namespace, PodAt, Rights, SERVERS_LABEL};
use hush_tests::fleet::{Lie, ShownCredential, StandInFleet};
use hush_tests::gpus::GIB;
use hush_tests::wait::{eventually, wait_for};
use hush_tests::{fixtures, http};
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, SOON, own_plane, wait_until_acting, wait_until_missing,
    wait_until_ready,
};

/// The stand-in that records what it is shown.
const FAKE: &str = "fake";
const SCRAPES: usize = 10;

/// A tenant whose pod says that it is a server, with a policy by which its model leaves at once and that asks for the same of
/// every server.
struct HostileTenant {
    namespace: Namespace,
    fake: StandInFleet,
    pod_uid: String,
}

/// A pod that only calls itself a server: what answers is the stand-in. Gives the UID of the pod.
async fn run_pod(namespace: &Namespace, fake: &StandInFleet) -> Result<String> {
    let IpAddr::V4(ip) = fake.address(0).ip() else { anyhow::bail!("no IPv4") };
    let pod = PodAt {
        name: FAKE,
        node: "n1",
        account: "default",
        labels: &[("gpu.hush.dev/server", "true")],
        annotations: &[],
        ports: &[("ops", fake.address(0).port())],
        ip,
    };
    namespace.pod(&pod).await?.metadata.uid.context("no uid")
}

impl HostileTenant {
    async fn new(plane: &ControlPlane, labels: &[(&str, &str)]) -> Result<Self> {
        let namespace = plane.namespace("hostile", labels).await?;
        namespace.service_account("default").await?;
        let fake = StandInFleet::start(1, 1, 8 * GIB, 2 * GIB).await?;
        // It wants command after command.
        fake.set_lie(0, Lie::Returns);
        let policy = json!({
            "apiVersion": "gpu.hush.dev/v1beta1",
            "kind": "GpuModelPolicy",
            "metadata": {"name": "everything-leaves", "namespace": namespace.name},
            "spec": {"selector": {"matchLabels": {"gpu.hush.dev/server": "true"}}, "residency": {"mode": "OnDemand"}},
        });
        plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string())?;

        let pod_uid = run_pod(&namespace, &fake).await?;
        Ok(Self { namespace, fake, pod_uid })
    }

    /// Waits until it has received a command, and gives all that it was shown.
    async fn stolen(&self) -> Result<Vec<ShownCredential>> {
        let mut shown = Vec::new();
        eventually("the fake server receives a command with a token", SOON, async || {
            shown.extend(self.fake.take_shown());
            Ok(shown.iter().any(|shown| shown.path.ends_with("/unload")).then_some(()))
        })
        .await?;
        Ok(shown)
    }
}

fn claims(token: &str) -> Result<Value> {
    let claims = token.split('.').nth(1).context("no JWT")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?)
}

/// Asks a real server with a token; gives the status and the code of the refusal.
fn replay(app: &GovernedApp, request: &str, authorization: &str) -> Result<(u16, String)> {
    let ops = app.server.ops;
    let text = format!(
        "{request} HTTP/1.1\r\nHost: {ops}\r\nContent-Type: application/json\r\nAuthorization: {authorization}\r\n\
         Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    let answer = http::exchange(ops, text.as_bytes())?;
    Ok((answer.status, answer.json()?["code"].as_str().unwrap_or_default().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_fake_server_receives_is_worth_nothing_at_another() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let victim = stage.app(AppSpec::new("victim", 2, 0)).await?;
    victim.transcribe()?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    let hostile = HostileTenant::new(&plane, &[]).await?;
    let shown = hostile.stolen().await?;
    ensure!(shown.iter().all(|shown| shown.path.starts_with("/admin/")), "a scrape shows no credential: {shown:?}");

    // Whatever it saw, for whichever request, is worth nothing at another server, nor at the API server.
    let unload = format!("POST /admin/v1/models/{}/unload", fixtures::MODEL);
    for stolen in &shown {
        for request in [unload.as_str(), "GET /admin/v1/models", "GET /admin/v1/events"] {
            let answer = replay(&victim, request, &stolen.authorization)?;
            assert_eq!(answer, (401, "invalid_token".to_owned()), "{request}");
        }
        let token = stolen.authorization.strip_prefix("Bearer ").context("no bearer token")?;
        let asked =
            plane.client(token)?.request_text(::http::Request::get("/api/v1/namespaces").body(Vec::new())?).await;
        assert!(matches!(&asked, Err(kube::Error::Api(status)) if status.code == 401), "the API server: {asked:?}");

        // It names this pod and nothing else, and does not last.
        let claims = claims(token)?;
        let own = format!("hush-server/{}/{}", hostile.namespace.name, hostile.pod_uid);
        assert_eq!(claims["aud"], json!([own]), "{claims}");
        let seconds = claims["exp"].as_i64().zip(claims["iat"].as_i64()).map(|(until, from)| until - from);
        assert!(seconds.is_some_and(|seconds| seconds <= 600), "{claims}");
    }

    let log = controller.log().join("\n");
    // The beginning of every JSON Web Token.
    assert!(!log.contains("eyJ"), "no token is logged: {log}");
    victim.server.wait_for_state("ready", SOON)?;
    assert!(victim.server.unloads_ordered().is_empty(), "neither the token nor the policy reaches the other tenant");

    // The controller itself commands the victim's server as before.
    stage.others_hold(22)?;
    victim.server.wait_for_state("unloaded", SOON)?;
    assert_eq!(victim.server.unloads_ordered(), [stage.caller(CONTROLLER)]);
    Ok(())
}

/// What the controller asks for is kept: neither a command each second nor a look each minute is a token each.
#[tokio::test(flavor = "multi_thread")]
async fn many_commands_to_one_server_take_one_token() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    let hostile = HostileTenant::new(&plane, &[]).await?;
    wait_for("some commands", SOON, || {
        let sent = controller.metric("hush_controller_commands_total{action=\"Unload\",outcome=\"unloaded\"}")?;
        Ok(sent.filter(|sent| *sent >= 3.0))
    })?;
    let made = controller.metric("hush_controller_server_token_requests_total{result=\"success\"}")?;
    // Its first command and its first look may ask at the same time.
    assert!(made.is_some_and(|made| made <= 2.0), "{made:?}");

    // A pod of the same name is another server, and gets another token.
    let first = claims(&hostile.stolen().await?[0].authorization)?["aud"].clone();
    hostile.namespace.delete_pod(FAKE).await?;
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 0.0, SOON)?;
    hostile.fake.take_shown();
    run_pod(&hostile.namespace, &hostile.fake).await?;
    let second = claims(&hostile.stolen().await?[0].authorization)?["aud"].clone();
    assert_ne!(first, second);
    Ok(())
}

/// Where servers may be is the operator's choice: elsewhere a pod is not even looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_where_no_server_may_be_is_neither_looked_at_nor_commanded() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    let hostile = HostileTenant::new(&plane, &[(SERVERS_LABEL, "no")]).await?;
    controller.wait_for_log(&["not observed", "may hold no servers", SERVERS_LABEL], SOON)?;
    // The controller looks five times a second.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(hostile.fake.requests(0), 0);

    let label = |value: &str| {
        let label = format!("{SERVERS_LABEL}={value}");
        plane.kubectl_text(&["label", "namespace", &hostile.namespace.name, &label, "--overwrite"], "")
    };
    label("true")?;
    hostile.stolen().await?;
    wait_for("it is looked at", SOON, || Ok((hostile.fake.requests(0) > SCRAPES).then_some(())))?;

    label("no")?;
    controller.wait_for_log(&["not observed", "may hold no servers"], SOON)?;
    wait_for("it is left alone", SOON, || {
        let before = hostile.fake.requests(0);
        std::thread::sleep(Duration::from_secs(2));
        Ok((hostile.fake.requests(0) == before).then_some(()))
    })?;
    Ok(())
}

/// Without a token for the one server there is no command, and no other token in its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_gets_no_token_sends_nothing_and_says_so_once() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let role = ["rolebinding", "hush-controller-token", "--namespace", &stage.system.name];
    plane.kubectl_text(&[&["delete"], &role[..]].concat(), "")?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    let hostile = HostileTenant::new(&plane, &[]).await?;
    wait_until_missing(&controller, "server tokens: there is no token for servers")?;
    let failed = "hush_controller_commands_total{action=\"Unload\",outcome=\"no_token\"}";
    wait_for("commands without a token", SOON, || Ok(controller.metric(failed)?.filter(|count| *count >= 3.0)))?;
    let forbidden = controller.metric("hush_controller_server_token_requests_total{result=\"forbidden\"}")?;
    assert!(forbidden.is_some_and(|count| count >= 1.0), "{forbidden:?}");
    controller.wait_for_metric("hush_controller_targets_refusing", 1.0, SOON)?;
    assert_eq!(hostile.fake.take_shown(), []);
    assert!(hostile.fake.take_received().is_empty());
    let logged = controller.log().iter().filter(|line| line.contains("no command is sent, there is no token")).count();
    assert_eq!(logged, 1, "{:?}", controller.log());
    wait_for("an Event says it", SOON, || {
        let args = ["get", "events", "--namespace", &hostile.namespace.name, "--output", "json"];
        let list: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
        let told = list.to_string();
        Ok((told.contains("CommandFailed") && told.contains("serviceaccounts/token")).then_some(()))
    })?;

    plane.grant(&stage.system, Rights::Controller)?;
    hostile.stolen().await?;
    wait_until_ready(&controller)
}

/// One token for all servers is for one box; a controller in a cluster does not start with it.
#[test]
fn a_controller_in_a_cluster_takes_no_token_for_all_servers() -> Result<()> {
    let complaint = |args: &[&str]| -> Result<String> {
        let output = Command::new(fixtures::controller()?).arg("run").args(args).env_remove("KUBECONFIG").output()?;
        ensure!(!output.status.success(), "{args:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    for scope in ["cluster", "node"] {
        let args = ["--scope", scope, "--node", "n1"];
        let said = complaint(&[&args[..], &["--token-file", "/token"]].concat())?;
        assert!(said.contains("--token-file") && said.contains("--service-account"), "{said}");
        let said = complaint(&args)?;
        assert!(said.contains("no credential for the servers") && said.contains("--dry-run"), "{said}");
    }
    let both = ["--scope", "pod", "--service-account", "a:b", "--token-file", "/token"];
    assert!(complaint(&both)?.contains("cannot be used with"));
    assert!(complaint(&["--service-account", "a:b", "--policy", "p", "--target", "http://h:1"])?.contains("--scope"));
    Ok(())
}
