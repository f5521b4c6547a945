//! Servers that lie: pods with the label of a server in a tenant's namespace, which say that they obey and do not.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::cluster::{ControlPlane, Namespace, PodAt};
use hush_tests::fleet::{Fleet, Lie};
use hush_tests::gpus::GIB;
use serde_json::json;

use crate::stage::{SOON, Stage, own_plane, wait_until_acting, wait_until_ready};

const WATCHED: Duration = Duration::from_secs(12);
/// `limits::PER_SERVER`.
const BURST: usize = 32;

async fn pod(namespace: &Namespace, fleet: &Fleet, place: usize, name: &str) -> Result<()> {
    let IpAddr::V4(ip) = fleet.address(place).ip() else { anyhow::bail!("no IPv4") };
    let pod = PodAt {
        name,
        node: "n1",
        account: "default",
        labels: &[("gpu.hush.dev/server", "true")],
        annotations: &[],
        ports: &[("ops", fleet.address(place).port())],
        ip,
    };
    namespace.pod(&pod).await.map(drop)
}

fn on_demand(plane: &ControlPlane, namespace: &Namespace) -> Result<()> {
    let policy = json!({
        "apiVersion": "gpu.hush.dev/v1alpha1",
        "kind": "GpuModelPolicy",
        "metadata": {"name": "leaves", "namespace": namespace.name},
        "spec": {"selector": {"matchLabels": {"gpu.hush.dev/server": "true"}}, "residency": {"mode": "OnDemand"}},
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string()).map(drop)
}

/// One says "unloaded" and goes on as before, one says it and shows the model anew at once. Neither gets commands without
/// end, and none of them makes more memory come back than its card has. The server of another tenant is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_unloaded_and_changes_nothing_is_left_alone() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = Stage::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster", "--interval", "100ms"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;

    let fleet = Fleet::start(3, 3, 8 * GIB, 2 * GIB).await?;
    fleet.set_lie(0, Lie::Stays);
    fleet.set_lie(1, Lie::Returns);
    let (hostile, honest) = (plane.namespace("hostile", &[]).await?, plane.namespace("honest", &[]).await?);
    for namespace in [&hostile, &honest] {
        namespace.service_account("default").await?;
        on_demand(&plane, namespace)?;
    }
    pod(&hostile, &fleet, 0, "stays").await?;
    pod(&hostile, &fleet, 1, "returns").await?;
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 2.0, SOON)?;
    tokio::time::sleep(WATCHED).await;

    let received = fleet.take_received();
    let commands = |server: usize| received.iter().filter(|command| command.server == server).count();
    let seconds = usize::try_from(WATCHED.as_secs())?;
    // After 0, 1, 3 and 7 seconds.
    assert!((1..=6).contains(&commands(0)), "{} commands to a server that never obeys", commands(0));
    // What takes this long to come about may take longer on a slow machine.
    assert!((4..=BURST + 2 * seconds).contains(&commands(1)), "{} commands to one that always returns", commands(1));
    let metric = |series: &str| controller.metric(series)?.with_context(|| format!("no {series}"));
    assert!(metric("hush_controller_commands_without_effect_total")? >= 1.0);
    let reclaimed = metric("hush_controller_reclaimed_bytes_total{reason=\"OnDemand\"}")?;
    let sent = metric("hush_controller_commands_total{action=\"Unload\",outcome=\"unloaded\"}")?;
    assert!(reclaimed <= sent * (8 * GIB) as f64, "{reclaimed} bytes came back after {sent} commands");

    pod(&honest, &fleet, 2, "obeys").await?;
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 3.0, SOON)?;
    hush_tests::wait::wait_for("the honest server is told to unload", SOON, || {
        Ok(fleet.take_received().iter().any(|command| command.server == 2 && command.accepted).then_some(()))
    })?;
    Ok(())
}
