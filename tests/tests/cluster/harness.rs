//! The harness itself: what it starts it also ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::cluster::ControlPlane;
use hush_tests::process;
use hush_tests::wait::wait_for;

const MARK: &str = "control plane: ";

/// Run by the test below in a process of its own.
#[tokio::test]
#[ignore = "ends only when it is killed"]
async fn holds_a_control_plane_until_it_is_killed() -> Result<()> {
    if let Some(plane) = ControlPlane::start().await? {
        let pids: Vec<String> = plane.pids().iter().map(u32::to_string).collect();
        eprintln!("{MARK}{} {}", plane.folder().display(), pids.join(" "));
        std::future::pending::<()>().await;
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_a_killed_test() -> Result<()> {
    let mut test = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "--nocapture", "harness::holds_a_control_plane_until_it_is_killed"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(test.stderr.take().context("no stderr")?).lines();
    let line = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(MARK).map(str::to_owned));
    test.kill()?;
    test.wait()?;
    // Without the programs it has ended by itself.
    let Some(line) = line else { return Ok(()) };
    let mut words = line.split(' ');
    let folder = words.next().context("no folder")?.to_owned();
    let pids: Vec<u32> = words.map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(pids.len(), 2, "{line}");
    wait_for("nothing is left", Duration::from_secs(30), || {
        let ended = |pid: &u32| matches!(process::state(*pid), None | Some('Z'));
        Ok((pids.iter().all(ended) && !Path::new(&folder).exists()).then_some(()))
    })
}
