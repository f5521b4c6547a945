//! Servers that lie: pods with the label of a server in a tenant's namespace, which say that they obey and do not.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_tests::cluster::{ControlPlane, Namespace, PodAt};
use hush_tests::fleet::{Lie, StandInFleet};
use hush_tests::gpus::GIB;
use hush_tests::wait::wait_for;
use serde_json::json;

use crate::fixture::{ClusterFixture, SOON, own_plane, wait_until_acting, wait_until_ready};

const WATCHED: Duration = Duration::from_secs(12);
/// `limits::PER_SERVER`.
const BURST: usize = 32;

async fn pod(namespace: &Namespace, fleet: &StandInFleet, place: usize, name: &str) -> Result<()> {
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
        "apiVersion": "gpu.hush.dev/v1beta1",
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
    let stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster", "--interval", "100ms"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;

    let fleet = StandInFleet::start(3, 3, 8 * GIB, 2 * GIB).await?;
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
    // After 0, 1, 3 and 7 seconds, and later where the machine is slow.
    let to_stays: Vec<Instant> =
        received.iter().filter(|command| command.server == 0).map(|command| command.at).collect();
    assert!(to_stays.len() > 1, "no second command to a server that never obeys");
    for (index, pair) in to_stays.windows(2).enumerate() {
        let pause = pair[1] - pair[0];
        assert!(pause >= Duration::from_secs(1 << index), "command {index} and the next: {pause:?} apart");
    }
    // What takes this long to come about may take longer on a slow machine.
    assert!((4..=BURST + 2 * seconds).contains(&commands(1)), "{} commands to one that always returns", commands(1));
    let metric = |series: &str| controller.metric(series)?.with_context(|| format!("no {series}"));
    assert!(metric("hush_controller_commands_without_effect_total")? >= 1.0);
    let reclaimed = metric("hush_controller_reclaimed_bytes_total{reason=\"OnDemand\"}")?;
    let sent = metric("hush_controller_commands_total{action=\"Unload\",outcome=\"unloaded\"}")?;
    assert!(reclaimed <= sent * (8 * GIB) as f64, "{reclaimed} bytes came back after {sent} commands");

    pod(&honest, &fleet, 2, "obeys").await?;
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 3.0, SOON)?;
    wait_for("the honest server is told to unload", SOON, || {
        Ok(fleet.take_received().iter().any(|command| command.server == 2 && command.accepted).then_some(()))
    })?;
    Ok(())
}

/// Three fake servers of one tenant report a card as full on which the model of another has all the room that it needs.
#[tokio::test(flavor = "multi_thread")]
async fn fake_servers_do_not_move_the_model_of_another_tenant() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let stage = ClusterFixture::new(&plane).await?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&controller)?;
    wait_until_acting(&controller, true)?;
    let (honest, fakes) =
        (StandInFleet::start(1, 1, 8 * GIB, 2 * GIB).await?, StandInFleet::start(3, 1, 8 * GIB, 2 * GIB).await?);
    fakes.set_foreign(0, 8 * GIB);
    let (victim, hostile) = (plane.namespace("victim", &[]).await?, plane.namespace("hostile", &[]).await?);
    for namespace in [&victim, &hostile] {
        namespace.service_account("default").await?;
    }
    let policy = json!({
        "apiVersion": "gpu.hush.dev/v1beta1",
        "kind": "GpuModelPolicy",
        "metadata": {"name": "room", "namespace": victim.name},
        "spec": {
            "selector": {"matchLabels": {"gpu.hush.dev/server": "true"}},
            "residency": {"mode": "Resident"},
            "pressure": {"hard": {"availableBelow": "1Gi"}, "transitionPeriod": "1s"},
        },
    });
    plane.kubectl_text(&["apply", "--filename", "-"], &policy.to_string())?;
    pod(&victim, &honest, 0, "speech").await?;
    controller.wait_for_metric("hush_controller_gpus{pressure=\"None\"}", 1.0, SOON)?;
    for place in 0..3 {
        pod(&hostile, &fakes, place, &format!("fake-{place}")).await?;
    }
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 4.0, SOON)?;

    // It lasts: the card is disputed, and the pods that do not agree are named.
    controller.wait_for_metric("hush_controller_gpus{pressure=\"Unknown\"}", 1.0, SOON)?;
    let events = |namespace: &Namespace| -> Result<bool> {
        let args = ["get", "events", "--namespace", &namespace.name, "--output", "json"];
        let list: serde_json::Value = serde_json::from_str(&plane.kubectl_text(&args, "")?)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().any(|event| event["reason"] == "ReportsDisagree" && event["involvedObject"]["kind"] == "Pod"))
    };
    wait_for("an Event on a fake pod", SOON, || Ok(events(&hostile)?.then_some(())))?;
    assert!(honest.take_received().is_empty(), "what others report moves no model");

    // The operator trusts the right one: fakes neither fill its card nor hide that it is full.
    plane.kubectl_text(&["label", "namespace", &victim.name, "gpu.hush.dev/trusted-reports=true"], "")?;
    controller.wait_for_metric("hush_controller_gpus{pressure=\"None\"}", 1.0, SOON)?;
    fakes.set_foreign(0, 0);
    honest.set_foreign(0, 6 * GIB);
    wait_for("its own shortage makes it leave", SOON, || {
        Ok(honest.take_received().iter().any(|command| command.accepted).then_some(()))
    })?;
    Ok(())
}
