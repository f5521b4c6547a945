//! Candidates for one lease, each a process of its own with the shipped rights. The holder acts all the time, so that the
//! record of their actions shows whether there were ever two holders.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_controller::lease::BootInstant;
use hush_tests::cluster::{ControlPlane, Namespace, Rights};
use hush_tests::process;
use hush_tests::wait::wait_for;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::DeleteParams;
use rustix::process::Signal;
use tempfile::TempDir;

const LEASE: &str = "hush-controller";
const LEASE_SECONDS: u64 = 3;
const SOON: Duration = Duration::from_secs(60);

struct LeaseCandidates<'a> {
    plane: &'a ControlPlane,
    namespace: Namespace,
    token: String,
    lease_seconds: u64,
    folder: TempDir,
    candidates: Vec<Child>,
}

/// One act: when, in time since this machine was started, and whose.
type RecordedAction = (Duration, usize);

impl<'a> LeaseCandidates<'a> {
    async fn new(plane: &'a ControlPlane, lease_seconds: u64) -> Result<Self> {
        let namespace = plane.namespace("lease", &[]).await?;
        // An election of its own.
        plane.grant_with_leases_in(&namespace, Rights::Controller, &namespace.name)?;
        let token = namespace.token("hush-controller", None).await?;
        Ok(Self { plane, namespace, token, lease_seconds, folder: tempfile::tempdir()?, candidates: Vec::new() })
    }

    fn start(&mut self) -> Result<usize> {
        let place = self.candidates.len();
        let child = Command::new(env!("CARGO_BIN_EXE_hush-candidate"))
            .arg(self.plane.url())
            .arg(self.plane.ca_file())
            .args([&self.token, &self.namespace.name, LEASE, &self.lease_seconds.to_string(), &place.to_string()])
            .arg(self.file())
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(self.folder.path().join(format!("log-{place}")))?)
            .spawn()?;
        self.candidates.push(child);
        Ok(place)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("acts")
    }

    fn acts(&self) -> Result<Vec<RecordedAction>> {
        let text = std::fs::read_to_string(self.file()).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let act = |line: &str| -> Result<RecordedAction> {
            let (time, who) = line.split_once(' ').context("no name")?;
            Ok((Duration::from_micros(time.parse()?), who.parse()?))
        };
        let mut acts: Vec<RecordedAction> = whole.lines().map(act).collect::<Result<_>>()?;
        acts.sort();
        Ok(acts)
    }

    /// Who acts from now on.
    fn wait_for_leader(&self, but_for: Option<usize>) -> Result<RecordedAction> {
        let now = BootInstant::now().since_boot();
        wait_for("a candidate acts", SOON, || {
            let acts = self.acts()?;
            Ok(acts.iter().copied().find(|(at, who)| *at >= now && Some(*who) != but_for))
        })
    }

    fn send(&self, who: usize, signal: Signal) -> Result<()> {
        process::send(self.candidates[who].id(), signal)
    }

    /// Each candidate acts for one stretch of time, in which no other one acts.
    fn never_two(&self) -> Result<()> {
        let acts = self.acts()?;
        let mut reigns: Vec<usize> = acts.iter().map(|(_, who)| *who).collect();
        reigns.dedup();
        let mut different = reigns.clone();
        different.sort_unstable();
        different.dedup();
        ensure!(reigns.len() == different.len(), "two acted at the same time: {reigns:?}");
        Ok(())
    }

    fn ended(&mut self, who: usize) -> Result<String> {
        let child = &mut self.candidates[who];
        let status = wait_for("the candidate ends", SOON, || Ok(child.try_wait()?))?;
        let log = std::fs::read_to_string(self.folder.path().join(format!("log-{who}")))?;
        Ok(format!("{status}: {log}"))
    }
}

impl Drop for LeaseCandidates<'_> {
    fn drop(&mut self) {
        for child in &mut self.candidates {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The last act of one and the first of the next.
fn gap(acts: &[RecordedAction], from: usize, to: usize) -> Result<Duration> {
    let last = acts.iter().filter(|(_, who)| *who == from).map(|(at, _)| *at).max().context("the first never acted")?;
    let first = acts.iter().filter(|(_, who)| *who == to).map(|(at, _)| *at).min().context("the next never acted")?;
    first.checked_sub(last).context("both acted at the same time")
}

#[tokio::test]
async fn who_is_killed_is_replaced_within_the_lease_and_two_seconds() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let mut election = LeaseCandidates::new(plane, LEASE_SECONDS).await?;
    let (first, second) = (election.start()?, election.start()?);
    let (_, leader) = election.wait_for_leader(None)?;
    election.send(leader, Signal::KILL)?;
    let killed = BootInstant::now().since_boot();
    let (at, next) = election.wait_for_leader(Some(leader))?;
    assert_eq!(next, first + second - leader);
    let took = at.saturating_sub(killed);
    assert!(took <= Duration::from_secs(LEASE_SECONDS + 2), "the take-over took {took:?}");
    eprintln!("take-over after a kill: {took:?} of a lease of {LEASE_SECONDS} s");
    election.never_two()
}

#[tokio::test]
async fn who_was_frozen_does_nothing_any_more() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let mut election = LeaseCandidates::new(plane, LEASE_SECONDS).await?;
    election.start()?;
    election.start()?;
    let (_, frozen) = election.wait_for_leader(None)?;
    election.send(frozen, Signal::STOP)?;
    let (_, next) = election.wait_for_leader(Some(frozen))?;
    election.send(frozen, Signal::CONT)?;
    let end = election.ended(frozen)?;
    assert!(end.contains("exit status: 1") && end.contains("the lease"), "{end}");
    // The next one goes on undisturbed.
    assert_eq!(election.wait_for_leader(None)?.1, next);
    election.never_two()
}

#[tokio::test]
async fn who_is_asked_to_end_gives_the_lease_back() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    // So long that only a lease that was given back is free in time.
    let mut election = LeaseCandidates::new(plane, 30).await?;
    election.start()?;
    let leases = election.namespace.api::<Lease>();
    let (_, leader) = election.wait_for_leader(None)?;
    let lease = leases.get(LEASE).await?.spec.context("no spec")?;
    assert_eq!((lease.lease_duration_seconds, lease.lease_transitions), (Some(30), Some(1)));
    let next = election.start()?;
    // It must have seen the lease as held before that is over.
    tokio::time::sleep(Duration::from_millis(500)).await;
    election.send(leader, Signal::TERM)?;
    let end = election.ended(leader)?;
    assert!(end.contains("exit status: 0"), "{end}");
    assert_eq!(election.wait_for_leader(None)?.1, next);
    let pause = gap(&election.acts()?, leader, next)?;
    assert!(pause < Duration::from_secs(10), "the lease stayed unused for {pause:?}");
    let lease = leases.get(LEASE).await?.spec.context("no spec")?;
    assert_eq!((lease.lease_duration_seconds, lease.lease_transitions), (Some(30), Some(2)));
    election.never_two()
}

#[tokio::test]
async fn a_lease_that_is_deleted_gives_no_candidate_a_second_claim() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let mut election = LeaseCandidates::new(plane, LEASE_SECONDS).await?;
    election.start()?;
    election.start()?;
    let (_, leader) = election.wait_for_leader(None)?;
    election.namespace.api::<Lease>().delete(LEASE, &DeleteParams::default()).await?;
    let (_, next) = election.wait_for_leader(Some(leader))?;
    let end = election.ended(leader)?;
    assert!(end.contains("exit status: 1"), "{end}");
    assert_ne!(next, leader);
    election.never_two()
}

#[tokio::test]
async fn without_the_api_server_no_candidate_acts_and_with_it_one_does_again() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    let mut election = LeaseCandidates::new(&plane, LEASE_SECONDS).await?;
    election.start()?;
    election.start()?;
    let (_, leader) = election.wait_for_leader(None)?;
    plane.stop_api_server()?;
    let stopped = BootInstant::now().since_boot();
    let end = election.ended(leader)?;
    assert!(end.contains("could not be renewed in time"), "{end}");
    let last = election.acts()?.last().context("no candidate acted")?.0;
    let after = last.saturating_sub(stopped);
    assert!(after < Duration::from_secs(LEASE_SECONDS), "it acted until {after:?} after the API server was gone");
    plane.start_api_server().await?;
    let (_, next) = election.wait_for_leader(None)?;
    assert_ne!(next, leader);
    election.never_two()
}
