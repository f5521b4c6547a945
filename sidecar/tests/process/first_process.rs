//! The sidecar as the first process of a container.

use std::env;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::fixture::eventually;

const ROLE_VARIABLE: &str = "TEST_FIRST_PROCESS";

/// Not a test: the program that the tests below run as the first process of a process namespace.
#[test]
#[ignore = "runs as the first process of a namespace, for the other tests"]
fn be_the_first_process() {
    let Ok(role) = env::var(ROLE_VARIABLE) else { return };
    if let Some(code) = hush_sidecar::process::run_hidden_role() {
        // The code cannot be read out of its type; a test harness would lose it.
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS) * 9);
    }

    assert_ne!(std::process::id(), 1, "the sidecar itself is not the first process");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "orphans" => orphans_are_reaped().await,
            "signal" => wait_for_sigterm().await,
            other => panic!("no role {other}"),
        }
    });
    std::process::exit(0);
}

async fn orphans_are_reaped() {
    // Twenty orphans, whose parent ends before them.
    let started = Command::new("sh").args(["-c", "for i in $(seq 20); do sleep 0.2 & done"]).status().unwrap();
    assert!(started.success());
    eventually("no zombie and no orphan is left", || {
        let processes: Vec<_> = procfs::process::all_processes().unwrap().flatten().collect();
        processes.len() == 2
    })
    .await;
}

async fn wait_for_sigterm() {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    println!("waiting");
    terminate.recv().await;
    println!("asked to end");
}

/// Starts this test program in a process namespace of its own; `None`: that is not allowed here.
fn start(role: &str) -> Option<Child> {
    let is_allowed = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !is_allowed {
        eprintln!("skipped: no process namespace may be made here");
        return None;
    }

    let program = env::current_exe().unwrap();
    let child = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(program)
        .args(["--exact", "first_process::be_the_first_process", "--ignored", "--nocapture"])
        .env(ROLE_VARIABLE, role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Some(child)
}

fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn only_child(parent: u32) -> Option<u32> {
    let mut processes = procfs::process::all_processes().unwrap().flatten().filter_map(|process| process.stat().ok());
    processes.find(|stat| stat.ppid.cast_unsigned() == parent).map(|stat| stat.pid.cast_unsigned())
}

#[tokio::test]
async fn the_first_process_reaps_all_orphans() {
    let Some(child) = start("orphans") else { return };
    let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn the_first_process_passes_sigterm_on() {
    let Some(child) = start("signal") else { return };
    let unshare = child.id();
    eventually("the first process has a child", || only_child(unshare).and_then(only_child).is_some()).await;
    // The child has to install its handler.
    tokio::time::sleep(Duration::from_millis(500)).await;

    crate::fixture::kill(only_child(unshare).unwrap(), rustix::process::Signal::TERM);
    let output = tokio::task::spawn_blocking(|| finish(child)).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("asked to end"), "{output:?}");
    assert!(output.status.success(), "{output:?}");
}
