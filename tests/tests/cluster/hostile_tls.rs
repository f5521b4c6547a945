//! Operations ports over TLS whose certificate is not right for their namespace, or which lead elsewhere: nothing is sent
//! to them, neither a command nor a credential, and explain, condition and metrics say why.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{StatusCode, header};
use hush_tests::cluster::{ControlPlane, Namespace, PodAt};
use hush_tests::fleet::StandInFleet;
use hush_tests::gpus::GIB;
use hush_tests::https::{Authority, CertificatePair, HttpsServer, Validity};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http};
use serde_json::{Value, json};

use crate::fixture::{ClusterFixture, POD, SOON, condition, own_plane, wait_until_acting, wait_until_ready};

/// Longer than it takes to send the honest server its command.
const WATCHED: Duration = Duration::from_secs(5);

/// The servers that [`start_refused_servers`] starts.
const REFUSED_SERVERS: usize = 5;
/// The one of them that redirects.
const REDIRECTS: &str = "redirects";

/// A namespace whose policy makes every model leave at once.
async fn tenant(plane: &ControlPlane, name: &str) -> Result<Namespace> {
    let namespace = plane.namespace(name, &[]).await?;
    namespace.service_account("default").await?;
    let policy = json!({
        "apiVersion": "gpu.hush.dev/v1beta1",
        "kind": "GpuModelPolicy",
        "metadata": {"name": "leaves", "namespace": namespace.name},
        "spec": {"selector": {"matchLabels": {"gpu.hush.dev/server": "true"}}, "residency": {"mode": "OnDemand"}},
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string())?;
    Ok(namespace)
}

async fn pod(namespace: &Namespace, name: &str, address: SocketAddr) -> Result<()> {
    let SocketAddr::V4(address) = address else { anyhow::bail!("no IPv4") };
    let pod = PodAt {
        name,
        node: "n1",
        account: "default",
        labels: &[("gpu.hush.dev/server", "true")],
        annotations: &[("gpu.hush.dev/ops-scheme", "https")],
        ports: &[("ops", address.port())],
        ip: *address.ip(),
    };
    namespace.pod(&pod).await.map(drop)
}

fn failure(controller: &Controller, namespace: &Namespace) -> Result<Option<String>> {
    let answer = http::get(controller.ops, &format!("/api/v1/explain?server={}/{POD}", namespace.name))?;
    if answer.status != 200 {
        return Ok(None);
    }
    Ok(answer.json()?["server"]["failure"].as_str().map(str::to_owned))
}

fn ready(plane: &ControlPlane, namespace: &Namespace) -> Result<Value> {
    let args = ["get", "gmp", "leaves", "--namespace", &namespace.name, "--output", "json"];
    let policy: Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
    Ok(condition(&policy, "Ready").cloned().unwrap_or_default())
}

/// Accepts connections and keeps the first bytes of each.
struct Listener {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Listener {
    fn start(ip: Ipv4Addr) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let (address, seen) = (listener.local_addr()?, Arc::<Mutex<Vec<Vec<u8>>>>::default());
        let kept = Arc::clone(&seen);
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).unwrap_or(0);
                bytes.truncate(count);
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
                // Plain HTTP to every client.
                let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Ok(Self { address, seen })
    }

    fn seen(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A server that must get nothing, and what the controller reports of it.
struct RefusedServer {
    namespace: Namespace,
    server: HttpsServer,
    reason: String,
}

/// Starts a server for each certificate that is not right for its namespace, and one that redirects.
async fn start_refused_servers(
    plane: &ControlPlane,
    authority: &Authority,
    honest: &Namespace,
    fleet: &StandInFleet,
    redirects: &Router,
) -> Result<BTreeMap<&'static str, RefusedServer>> {
    let stranger = Authority::new("a stranger")?;
    let right = |namespace: &Namespace| authority.sign_for(&namespace.name);
    let borrowed = |_: &Namespace| authority.sign_for(&honest.name);
    let of_stranger = |namespace: &Namespace| stranger.sign_for(&namespace.name);
    let expired =
        |namespace: &Namespace| authority.sign(&[&format!("hush-server.{}.svc", namespace.name)], Validity::Past);
    // Names of addresses, and wildcards over namespaces, are names of no namespace.
    let of_address =
        |_: &Namespace| authority.sign(&["127.0.2.4", "*.svc", "whisper-0.hush-server.a.svc"], Validity::Now);

    type Signs<'a> = &'a dyn Fn(&Namespace) -> Result<CertificatePair>;
    let cases: [(&'static str, Signs<'_>, &str); REFUSED_SERVERS] = [
        ("stranger", &of_stranger, "its certificate is not signed by an authority"),
        ("borrowed", &borrowed, &format!("hush-server.{}.svc", honest.name)),
        ("expired", &expired, "its certificate expired at 2021-01-01T00:00:00Z"),
        ("address", &of_address, "its certificate does not have the name `hush-server.address-"),
        (REDIRECTS, &right, "it answered 307 Temporary Redirect"),
    ];

    let mut servers = BTreeMap::new();
    for (place, (name, signs, reason)) in cases.into_iter().enumerate() {
        let namespace = tenant(plane, name).await?;
        let router = if name == REDIRECTS { redirects.clone() } else { fleet.router_of(place + 1) };
        let ip = Ipv4Addr::new(127, 0, 2, u8::try_from(place)? + 1);
        let server = HttpsServer::start(ip, router, &signs(&namespace)?).await?;
        pod(&namespace, POD, server.address).await?;
        servers.insert(name, RefusedServer { namespace, server, reason: reason.to_owned() });
    }
    Ok(servers)
}

/// Answers every request with a redirect to `address`.
fn redirects_to(address: SocketAddr) -> Router {
    let location = format!("http://{address}/metrics");
    Router::new().fallback(move || {
        let location = location.clone();
        async move { (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]) }
    })
}

/// Explain and the condition of the policy say why no server of the namespace is observed.
fn expect_reason(plane: &ControlPlane, controller: &Controller, namespace: &Namespace, reason: &str) -> Result<()> {
    let mut last = None;
    wait_for(&format!("explain says that {reason:?}"), SOON, || {
        last = failure(controller, namespace)?;
        Ok(last.as_ref().is_some_and(|failure| failure.contains(reason)).then_some(()))
    })
    .with_context(|| format!("{} fails with {last:?}", namespace.name))?;

    let unobserved = wait_for_ready(plane, namespace, &format!("the condition says that {reason:?}"), |ready| {
        ready["reason"] == "ServersNotObserved" && contains(ready, reason)
    })?;
    assert_eq!(unobserved["status"], "Unknown");
    Ok(())
}

/// Waits until the condition `Ready` of the namespace's policy is as asked for; returns it.
fn wait_for_ready(
    plane: &ControlPlane,
    namespace: &Namespace,
    what: &str,
    is_expected: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    wait_for(what, SOON, || {
        std::thread::sleep(Duration::from_millis(250));
        last = ready(plane, namespace)?;
        Ok(is_expected(&last).then(|| last.clone()))
    })
    .with_context(|| format!("Ready of {} is {last}", namespace.name))
}

fn contains(condition: &Value, part: &str) -> bool {
    condition["message"].as_str().is_some_and(|message| message.contains(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_certificate_of_its_namespace_gets_nothing() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let authority = Authority::new("hush servers")?;
    std::fs::write(stage.path("ca.crt"), &authority.certificate)?;
    let ca_file = stage.path("ca.crt").to_string_lossy().into_owned();
    let controller = stage.controller(&["--scope", "cluster", "--ca-file", &ca_file]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;

    let honest = tenant(&plane, "honest").await?;
    let trap = Listener::start(Ipv4Addr::new(127, 0, 2, 100))?;
    let count = REFUSED_SERVERS + 2;
    let fleet = StandInFleet::start(count, count, 8 * GIB, 2 * GIB).await?;
    let refused = start_refused_servers(&plane, &authority, &honest, &fleet, &redirects_to(trap.address)).await?;

    // One that asks for https and speaks plain HTTP.
    let (plain, listener) = (tenant(&plane, "plain").await?, Listener::start(Ipv4Addr::new(127, 0, 2, 101))?);
    pod(&plain, POD, listener.address).await?;

    let certificate = authority.sign_for(&honest.name)?;
    let honest_server = HttpsServer::start(Ipv4Addr::new(127, 0, 2, 50), fleet.router_of(0), &certificate).await?;
    pod(&honest, POD, honest_server.address).await?;

    // Beside the honest server one whose certificate was not renewed.
    let late = authority.sign(&[&format!("hush-server.{}.svc", honest.name)], Validity::Past)?;
    let late = HttpsServer::start(Ipv4Addr::new(127, 0, 2, 51), fleet.router_of(count - 1), &late).await?;
    pod(&honest, "whisper-1", late.address).await?;

    let mut received = Vec::new();
    wait_for("the honest server is told to unload", SOON, || {
        received.extend(fleet.take_received());
        Ok(received.iter().any(|command| command.server == 0 && command.accepted).then_some(()))
    })?;
    for RefusedServer { namespace, reason, .. } in refused.values() {
        expect_reason(&plane, &controller, namespace, reason)?;
    }
    expect_reason(&plane, &controller, &plain, "it does not speak TLS on this port")?;
    wait_for_ready(&plane, &honest, "the policy in force names the late one", |ready| {
        let is_in_force = ready["status"] == "True" && ready["reason"] == "InForce";
        is_in_force && contains(ready, "whisper-1: its certificate expired")
    })?;
    controller.wait_for_metric("hush_controller_targets{state=\"failing\"}", 7.0, SOON)?;
    let failed = controller.metric("hush_controller_scrape_duration_seconds_count{result=\"tls\"}")?;
    assert!(failed.is_some_and(|count| count >= 5.0), "{failed:?}");

    tokio::time::sleep(WATCHED).await;
    received.extend(fleet.take_received());
    assert!(received.iter().all(|command| command.server == 0), "a command to the wrong server: {received:?}");
    expect_no_commands(&refused);
    assert!(late.requests().is_empty(), "the late one received {:?}", late.requests());
    assert!(trap.seen().is_empty(), "a redirect was followed: {:?}", trap.seen());

    // A record of a TLS handshake begins with 22.
    let seen = listener.seen();
    assert!(!seen.is_empty() && seen.iter().all(|bytes| bytes.first() == Some(&22)), "plain HTTP was tried: {seen:?}");
    Ok(())
}

/// Only the server that redirects, whose certificate is right, received a request at all.
fn expect_no_commands(refused: &BTreeMap<&str, RefusedServer>) {
    for (name, RefusedServer { server, .. }) in refused {
        let requests = server.requests();
        assert_eq!(requests.is_empty(), *name != REDIRECTS, "{name} received {requests:?}");
        assert!(requests.iter().all(|request| !request.starts_with("POST")), "{name} received {requests:?}");
    }
}
