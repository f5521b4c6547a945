//! The end of the server, and of its runners.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hush_server::job::JobError;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::scripted::{kill, process_state, until};
use crate::{ModelFixture, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_serves_what_has_arrived_then_stops() {
    let server = ModelFixture::new("sleep=100");
    let mut jobs = JoinSet::new();
    for _ in 0..3 {
        let model = server.model().clone();
        jobs.spawn(async move { ask(&model, "each=50").await });
    }

    until("all requests have arrived", || server.model().snapshot().queued == 3).await;

    let pid = {
        until("the runner starts", || server.model().snapshot().runner_pid.is_some()).await;
        server.pid()
    };
    server.models.shutdown(Duration::from_secs(10)).await;
    assert_eq!(process_state(pid), None);
    assert!(jobs.join_all().await.iter().all(Result::is_ok));
    assert!(matches!(server.ask("").await, Err(JobError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_no_request_after_its_deadline() {
    let server = ModelFixture::new("");
    let pid = server.ask("").await.unwrap();
    let model = server.model().clone();
    let job = tokio::spawn(async move { ask(&model, "each=60000").await });
    until("the request is at work", || server.model().snapshot().inflight == 1).await;

    let asked = Instant::now();
    server.models.shutdown(Duration::from_millis(300)).await;
    assert!(asked.elapsed() < Duration::from_millis(900), "{:?}", asked.elapsed());
    assert_eq!(process_state(pid), None);
    assert!(matches!(job.await.unwrap(), Err(JobError::ShuttingDown)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_leaves_signals_to_its_server() {
    let server = ModelFixture::new("");
    let pid = server.ask("").await.unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill(pid, signal);
    }
    assert_eq!(server.ask("").await.unwrap(), pid);

    let adjustment = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(adjustment.trim(), "500");
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim(), "hush-runner");

    let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(!environment.contains("CARGO"), "only what a runner needs: {environment}");
}

/// The server of the next test: prints the process of its runner and waits to be killed.
#[test]
fn server_process() {
    if std::env::var_os("HUSH_TEST_SERVER").is_none() {
        return;
    }

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = ModelFixture::new("");
        println!("\nrunner {}", server.ask("").await.unwrap());
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_killed_server_takes_its_runner_along() {
    for stop_runner in [false, true] {
        let mut server = Command::new("/proc/self/exe")
            .args(["--exact", "shutdown::server_process", "--nocapture", "--test-threads=1"])
            .env("HUSH_TEST_SERVER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("runner ")?.parse::<u32>().ok());
        let pid = pid.unwrap();
        if stop_runner {
            // A stopped runner cannot see its socket end: only the kernel can end it.
            kill(pid, Signal::STOP);
        }
        kill(server.id(), Signal::KILL);
        server.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        // The process that inherits the runner may be slow to reap it.
        while !matches!(process_state(pid), None | Some('Z' | 'X')) {
            assert!(Instant::now() < deadline, "the runner outlived its server");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
