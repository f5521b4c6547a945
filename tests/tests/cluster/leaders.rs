//! Two controllers for one cluster, over real servers: whatever becomes of the leader, never two act, and no command is
//! repeated or lost. What the servers were ordered is the proof.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_tests::{Controller, process};
use rustix::process::Signal;

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, ControllerCommand, GovernedApp, SOON, own_plane, returning, told,
    wait_until_acting, wait_until_ready,
};

const LEASE: Duration = Duration::from_secs(6);

/// An app whose model comes back as soon as it is asked for.
async fn app(stage: &mut ClusterFixture<'_>, name: &str, priority: i32) -> Result<GovernedApp> {
    let app = stage.server(AppSpec::new(name, 2, priority)).await?;
    app.apply(stage.plane, returning(name, priority))?;
    app.transcribe()?;
    Ok(app)
}

/// Short of memory, so that the app's model leaves, and enough again with the model back.
fn pulse(stage: &mut ClusterFixture<'_>, app: &GovernedApp) -> Result<()> {
    stage.others_hold(14)?;
    app.server.wait_for_state("unloaded", SOON)?;
    stage.others_hold(0)?;
    app.transcribe()
}

fn begin(seat: &ControllerCommand) -> Result<Controller> {
    let controller = seat.start()?;
    wait_until_ready(&controller)?;
    Ok(controller)
}

/// The loss of the right to act ends the process.
fn wait_until_lost(controller: &mut Controller) -> Result<()> {
    let status = controller.wait_for_exit(SOON)?;
    assert!(!status.success(), "{status}");
    assert!(controller.log().join("\n").contains("lease"), "{:?}", controller.log().last());
    Ok(())
}

#[tokio::test]
async fn never_two_act_and_nothing_is_repeated_or_lost() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let links = [plane.link()?, plane.link()?];
    let scope = ["--scope", "cluster"];
    let seats = [
        stage.controller_command(CONTROLLER, &links[0].url(), &scope).await?,
        stage.controller_command(CONTROLLER, &links[1].url(), &scope).await?,
    ];
    let dear = app(&mut stage, "dear", 10).await?;
    let cheap = app(&mut stage, "cheap", 0).await?;
    let mut first = begin(&seats[0])?;
    wait_until_acting(&first, true)?;
    let mut second = begin(&seats[1])?;
    wait_until_acting(&second, false)?;
    pulse(&mut stage, &cheap)?;
    assert_eq!(cheap.server.unloads_ordered().len(), 1);

    // Frozen before memory became short, and let go again when another has acted.
    process::send(first.pid(), Signal::STOP)?;
    let frozen = Instant::now();
    stage.others_hold(14)?;
    cheap.server.wait_for_state("unloaded", SOON).with_context(|| told(&second))?;
    eprintln!("a model left {:?} after the leader was frozen; the lease lasts {LEASE:?}", frozen.elapsed());
    process::send(first.pid(), Signal::CONT)?;
    wait_until_lost(&mut first)?;
    stage.others_hold(0)?;
    cheap.transcribe()?;
    assert_eq!((first.sent()?.len(), second.sent()?.len()), (1, 1));
    assert_eq!(cheap.server.unloads_ordered().len(), 2, "once by each");

    // Cut off: it is no leader any more before another is.
    let third = begin(&seats[0])?;
    wait_until_acting(&third, false)?;
    links[1].cut(true);
    wait_until_lost(&mut second)?;
    wait_until_acting(&third, true)?;
    links[1].cut(false);
    pulse(&mut stage, &cheap)?;

    // Killed.
    let fourth = begin(&seats[1])?;
    process::send(third.pid(), Signal::KILL)?;
    let killed = Instant::now();
    wait_until_acting(&fourth, true)?;
    let took = killed.elapsed();
    eprintln!("another acts {took:?} after the leader was killed; the lease lasts {LEASE:?}");
    assert!(took < LEASE + Duration::from_secs(2), "{took:?}");
    pulse(&mut stage, &cheap)?;

    let audits = [&first, &second, &third, &fourth].map(Controller::sent);
    let records: Vec<_> = audits.into_iter().collect::<Result<Vec<_>>>()?.concat();
    let generations: Vec<_> = records.iter().map(|record| record["ifGeneration"].as_u64()).collect();
    assert_eq!(generations, [1, 2, 3, 4].map(Some), "each life ended once: {records:?}");
    assert!(records.iter().all(|record| record["outcome"] == "Unloaded"), "{records:?}");
    assert_eq!(cheap.server.unloads_ordered().len(), records.len());
    assert!(dear.server.unloads_ordered().is_empty());
    Ok(())
}
