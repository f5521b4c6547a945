//! Controllers for a node and beside a server: several of them on one GPU do what one for the cluster would do, and a
//! controller with a narrower scope sends nothing while one with a wider scope acts.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_tests::cluster::Rights;
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http, process};
use rustix::process::Signal;
use serde_json::Value;

use crate::definitions::with_definitions;
use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, SERVER, SOON, own_plane, returning, told, wait_until_acting,
    wait_until_calm, wait_until_ready,
};

const LEASE: Duration = Duration::from_secs(6);

fn orders(apps: &[&GovernedApp]) -> Vec<usize> {
    apps.iter().map(|app| app.server.unloads_ordered().len()).collect()
}

/// One beside each, when all of them act and have seen all of the card.
async fn sidecars(stage: &ClusterFixture<'_>, apps: &[&GovernedApp]) -> Result<Vec<Controller>> {
    let mut sidecars = Vec::new();
    for app in apps {
        app.transcribe()?;
        sidecars.push(stage.sidecar(app).await?);
    }
    for sidecar in &sidecars {
        wait_until_ready(sidecar)?;
        // No controller leads: this one has waited for the length of a lease to be sure.
        wait_until_acting(sidecar, true)?;
        sidecar.wait_for_metric("hush_controller_targets{state=\"answering\"}", apps.len() as f64, SOON)?;
        wait_until_calm(sidecar)?;
    }
    Ok(sidecars)
}

#[tokio::test]
async fn three_sidecars_on_one_card_without_a_wider_scope() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(plane).await?;
    plane.grant(&stage.system, Rights::Sidecar)?;
    let node = "sidecars";
    let dear = stage.app(AppSpec::new("dear", 2, 10).on(node)).await?;
    let middle = stage.app(AppSpec::new("middle", 2, 5).on(node)).await?;
    let cheap = stage.app(AppSpec::new("cheap", 2, 0).on(node)).await?;
    let apps = [&dear, &middle, &cheap];
    let sidecars = sidecars(&stage, &apps).await?;
    // Each time one is enough, and all three of them have seen that it was.
    for (quarters, expected) in [(6, [0, 0, 1]), (14, [0, 1, 1]), (22, [1, 1, 1])] {
        stage.others_hold(quarters)?;
        let leaves = apps[expected.iter().position(|count| *count == 1).unwrap_or_default()];
        let left = leaves.server.wait_for_state("unloaded", SOON);
        left.with_context(|| sidecars.iter().map(told).collect::<Vec<_>>().join("\n"))?;
        for sidecar in &sidecars {
            wait_until_calm(sidecar)?;
        }
        assert_eq!(orders(&apps), expected, "others hold {quarters} quarters of a GiB");
    }
    for (app, sidecar) in apps.iter().zip(&sidecars) {
        assert_eq!(app.server.unloads_ordered(), [app.caller()]);
        assert_eq!(sidecar.sent()?.len(), 1, "each sends its own command alone");
        assert!(!app.events(plane)?.is_empty(), "and tells of it");
    }
    let asked = plane.requests_of(&stage.system.name, SERVER)?;
    let forbidden: Vec<_> = asked.iter().filter(|entry| entry["responseStatus"]["code"] == 403).collect();
    assert!(forbidden.is_empty(), "{forbidden:?}");
    Ok(())
}

/// Waits until a sidecar has seen that all models are there, and with these priorities.
fn wait_until_seen(sidecar: &Controller, apps: &[&GovernedApp], priorities: &[i32]) -> Result<()> {
    wait_for("the sidecar sees all models", SOON, || {
        let state = http::get(sidecar.ops, "/api/v1/state")?.json()?;
        let seen = |app: &GovernedApp, priority: i32| {
            let models = state["models"].as_array()?;
            let model = models.iter().find(|model| model["server"] == app.pod())?;
            (model["state"] == "Ready" && model["rules"]["priority"]["value"] == priority).then_some(())
        };
        Ok(apps.iter().zip(priorities).map(|(app, priority)| seen(app, *priority)).collect::<Option<()>>())
    })
}

/// Whose priority is lower leaves, once, and comes back for good when there is room; also when that changes.
#[tokio::test]
async fn two_sidecars_on_one_card_without_a_wider_scope() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(plane).await?;
    plane.grant(&stage.system, Rights::Sidecar)?;
    let one = stage.server(AppSpec::new("one", 2, 0).on("pair")).await?;
    let two = stage.server(AppSpec::new("two", 2, 0).on("pair")).await?;
    let apps = [&one, &two];
    let sidecars = sidecars(&stage, &apps).await?;
    let mut expected = [0, 0];
    for priorities in [[5, 0], [0, 5], [0, 5]] {
        for ((app, name), priority) in apps.iter().zip(["one", "two"]).zip(priorities) {
            app.apply(plane, returning(name, priority))?;
            app.transcribe()?;
        }
        for sidecar in &sidecars {
            wait_until_seen(sidecar, &apps, &priorities)?;
        }
        let leaves = usize::from(priorities[0] > priorities[1]);
        expected[leaves] += 1;
        stage.others_hold(14)?;
        apps[leaves].server.wait_for_state("unloaded", SOON)?;
        for sidecar in &sidecars {
            wait_until_calm(sidecar)?;
        }
        assert_eq!(orders(&apps), expected, "{priorities:?}");

        // Other programs free the memory: the model is loaded again, and no other one is unloaded for it.
        stage.others_hold(0)?;
        apps[leaves].transcribe()?;
        for sidecar in &sidecars {
            wait_until_seen(sidecar, &apps, &priorities)?;
            wait_until_calm(sidecar)?;
        }
        assert_eq!(orders(&apps), expected, "{priorities:?}, afterwards");
    }
    for (app, sidecar) in apps.iter().zip(&sidecars) {
        let own = |record: &Value| record["server"] == app.pod() && record["outcome"] == "Unloaded";
        let audit = sidecar.sent()?;
        assert!(audit.iter().all(own), "each sends its own commands alone, and each is carried out: {audit:?}");
        assert_eq!(audit.len(), app.server.unloads_ordered().len());
        assert!(app.server.unloads_ordered().iter().all(|caller| *caller == app.caller()));
    }
    Ok(())
}

/// Whose turn it is has lost its sidecar: after a while the next one leaves for it.
#[tokio::test]
async fn a_sidecar_that_is_gone_does_not_leave_the_card_to_its_fate() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(plane).await?;
    plane.grant(&stage.system, Rights::Sidecar)?;
    let node = "orphan";
    let dear = stage.app(AppSpec::new("dear", 2, 10).on(node)).await?;
    let cheap = stage.app(AppSpec::new("cheap", 2, 0).on(node)).await?;
    dear.transcribe()?;
    cheap.transcribe()?;
    let sidecar = stage.sidecar(&dear).await?;
    wait_until_ready(&sidecar)?;
    wait_until_acting(&sidecar, true)?;
    stage.others_hold(14)?;
    dear.server.wait_for_state("unloaded", SOON)?;
    sidecar.wait_for_log(&["its own controller does not act", &cheap.pod()], SOON)?;
    wait_until_calm(&sidecar)?;
    assert_eq!(orders(&[&dear, &cheap]), [1, 0]);
    Ok(())
}

#[tokio::test]
async fn a_sidecar_steps_back_while_a_leader_for_more_governs() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    plane.grant(&stage.system, Rights::Sidecar)?;
    let dear = stage.app(AppSpec::new("dear", 2, 10)).await?;
    let cheap = stage.app(AppSpec::new("cheap", 2, 0)).await?;
    let mut sidecars = Vec::new();
    for app in [&dear, &cheap] {
        app.transcribe()?;
        sidecars.push(stage.sidecar(app).await?);
    }
    for sidecar in &sidecars {
        wait_until_ready(sidecar)?;
        wait_until_acting(sidecar, true)?;
    }
    let leader = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_ready(&leader)?;
    wait_until_acting(&leader, true)?;
    for sidecar in &sidecars {
        wait_until_acting(sidecar, false)?;
    }
    stage.others_hold(14)?;
    cheap.server.wait_for_state("unloaded", SOON)?;
    wait_until_calm(&leader)?;
    assert_eq!(cheap.server.unloads_ordered(), [stage.caller(CONTROLLER)]);

    process::send(leader.pid(), Signal::KILL)?;
    let killed = Instant::now();
    for sidecar in &sidecars {
        wait_until_acting(sidecar, true)?;
    }
    let took = killed.elapsed();
    eprintln!("sidecars take over {took:?} after the leader was killed; the lease lasts {LEASE:?}");
    assert!(took < LEASE + Duration::from_secs(2), "{took:?}");
    stage.others_hold(22)?;
    dear.server.wait_for_state("unloaded", SOON)?;
    for sidecar in &sidecars {
        wait_until_calm(sidecar)?;
    }
    assert_eq!(dear.server.unloads_ordered(), [dear.caller()]);
    assert_eq!(cheap.server.unloads_ordered().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_controller_for_a_node_acts_there_alone_and_before_a_sidecar() -> Result<()> {
    let Some(plane) = with_definitions().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(plane).await?;
    for rights in [Rights::Node, Rights::Sidecar] {
        plane.grant(&stage.system, rights)?;
    }
    let here = stage.app(AppSpec::new("here", 2, 10).on("here")).await?;
    // Lower priority, on the GPU that the other node reports as its own.
    let there = stage.app(AppSpec::new("there", 2, 0).on("there")).await?;
    here.transcribe()?;
    there.transcribe()?;
    let node = stage.controller(&["--scope", "node", "--node", "here"]).await?;
    wait_until_ready(&node)?;
    wait_until_acting(&node, true)?;
    let sidecar = stage.sidecar(&here).await?;
    wait_until_ready(&sidecar)?;
    for controller in [&node, &sidecar] {
        controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 1.0, SOON)?;
    }
    wait_until_acting(&sidecar, false)?;
    stage.others_hold(14)?;
    here.server.wait_for_state("unloaded", SOON)?;
    wait_until_calm(&node)?;
    assert_eq!(here.server.unloads_ordered(), [stage.caller(CONTROLLER)]);
    assert_eq!(orders(&[&here, &there]), [1, 0]);

    stage.others_hold(0)?;
    process::send(node.pid(), Signal::KILL)?;
    wait_until_acting(&sidecar, true)?;
    assert!(
        plane.kubectl_text(&["get", "lease", "hush-controller-here", "--namespace", &stage.system.name], "").is_ok()
    );
    Ok(())
}
