//! The operations port over TLS: certificates and authorities that rotate while models come and go.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::cluster::{ControlPlane, Rights};
use hush_tests::https::{Authority, CertificatePair};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http};
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, SERVER, SOON, own_plane, wait_until_acting, wait_until_ready,
};

/// Longer than server and controller take to read a file again.
const READ_AGAIN: Duration = Duration::from_secs(6);
const HTTPS: (&str, &str) = ("gpu.hush.dev/ops-scheme", "https");

fn server_of(controller: &Controller, server: &str) -> Result<Value> {
    Ok(http::get(controller.ops, &format!("/api/v1/explain?server={server}"))?.json()?["server"].take())
}

fn wait_until_observed(controller: &Controller, server: &str) -> Result<()> {
    let mut last = Value::Null;
    let waited = wait_for(&format!("{server} answers"), SOON, || {
        last = server_of(controller, server)?;
        Ok((last["state"] == "answering").then_some(()))
    });
    waited.with_context(|| last.to_string())
}

/// Never seen half written.
fn replace(path: &Path, content: &str) -> Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, content)?;
    Ok(std::fs::rename(fresh, path)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_authorities_rotate_and_commands_go_on() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let (first, second) = (Authority::new("the first")?, Authority::new("the second")?);
    let ca_file = stage.path("ca.crt");
    replace(&ca_file, &first.certificate)?;
    let args = ["--scope", "cluster", "--ca-file", &ca_file.to_string_lossy()];
    let controller = stage.controller(&args).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;

    // At first the certificate is for another namespace: the right one comes by rotation.
    let folder = stage.path("tls");
    std::fs::create_dir(&folder)?;
    let (certificate, key) = first.sign_for("another")?.write(&folder)?;
    let (certificate, key) = (certificate.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
    let tls = ["--ops-tls-cert", certificate.as_str(), "--ops-tls-key", key.as_str()];
    let app = stage.server(AppSpec { args: &tls, annotations: &[HTTPS], ..AppSpec::new("app", 2, 0) }).await?;
    let on_demand = json!({"selector": {"matchLabels": {"app": "app"}}, "residency": {"mode": "OnDemand"}});
    app.apply(&plane, on_demand)?;
    let pod = app.pod();
    let why = app.wait_for_condition(&plane, "Ready", ("Unknown", "ServersNotObserved"))?;
    assert!(why.contains(&format!("`hush-server.{}.svc`", app.namespace.name)) && why.contains("another"), "{why}");

    let renew = |pair: &CertificatePair| pair.write(&folder).map(drop);
    renew(&first.sign_for(&app.namespace.name)?)?;
    wait_until_observed(&controller, &pod)?;
    app.wait_for_condition(&plane, "Ready", ("True", "InForce"))?;
    let leaves = |times: usize| -> Result<()> {
        app.transcribe()?;
        wait_for("the model is told to leave", SOON, || Ok((app.server.unloads_ordered().len() >= times).then_some(())))
            .with_context(|| controller.log().join("\n"))
    };
    leaves(1)?;
    let caller = stage.caller(CONTROLLER);
    assert!(app.server.unloads_ordered().iter().all(|by| *by == caller));

    // The next authority, as it should be done: both are trusted while certificates change.
    replace(&ca_file, &format!("{}{}", first.certificate, second.certificate))?;
    tokio::time::sleep(READ_AGAIN).await;
    renew(&second.sign_for(&app.namespace.name)?)?;
    tokio::time::sleep(READ_AGAIN).await;
    replace(&ca_file, &second.certificate)?;
    tokio::time::sleep(READ_AGAIN).await;
    leaves(2)?;
    assert_eq!(server_of(&controller, &pod)?["state"], "answering");

    // What is no authority is refused, and the one before stays.
    replace(&ca_file, "nothing")?;
    controller.wait_for_metric("hush_controller_source_valid{source=\"ca\"}", 0.0, SOON)?;
    leaves(3)?;

    // An authority that is taken away is trusted no more, also on open connections.
    replace(&ca_file, &first.certificate)?;
    controller.wait_for_metric("hush_controller_source_valid{source=\"ca\"}", 1.0, SOON)?;
    expect_distrust(&plane, &controller, &app)
}

/// Explain and the condition of the policy say that no authority signed the server's certificate.
fn expect_distrust(plane: &ControlPlane, controller: &Controller, app: &GovernedApp) -> Result<()> {
    let mut last = Value::Null;
    wait_for("the server is not trusted any more", SOON, || {
        last = server_of(controller, &app.pod())?;
        let failure = last["failure"].as_str().unwrap_or_default();
        Ok(failure.contains("not signed by an authority").then_some(()))
    })
    .with_context(|| last.to_string())?;

    let why = app.wait_for_condition(plane, "Ready", ("Unknown", "MetricsStale"))?;
    assert!(why.contains("not signed by an authority"), "{why}");
    Ok(())
}

/// Also where the operator has forgotten the file: the authorities of the system do not count.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_authority_the_reason_names_the_option() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let authority = Authority::new("hush servers")?;
    let folder = stage.path("tls");
    std::fs::create_dir(&folder)?;
    let (certificate, key) = authority.sign_for("any")?.write(&folder)?;
    let (certificate, key) = (certificate.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
    let tls = ["--ops-tls-cert", certificate.as_str(), "--ops-tls-key", key.as_str()];
    let app = stage.app(AppSpec { args: &tls, annotations: &[HTTPS], ..AppSpec::new("app", 2, 0) }).await?;
    authority.sign_for(&app.namespace.name)?.write(&folder)?;
    let _controller = stage.controller(&["--scope", "cluster"]).await?;
    let why = app.wait_for_condition(&plane, "Ready", ("Unknown", "ServersNotObserved"))?;
    assert!(why.contains("--ca-file"), "{why}");

    // A controller beside it reaches it over the loopback, by the same name.
    plane.grant(&stage.system, Rights::Sidecar)?;
    let ca_file = stage.path("ca.crt");
    std::fs::write(&ca_file, &authority.certificate)?;
    let sidecar_args =
        ["--scope", "pod", "--node", app.node.as_str(), "--pod", &app.pod(), "--ca-file", &ca_file.to_string_lossy()];
    let sidecar = stage.controller_of(SERVER, &plane.url(), &sidecar_args).await?;
    wait_until_observed(&sidecar, &app.pod())
}
