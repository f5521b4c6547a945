//! When an app counts as loaded, and when its load has failed.

use std::time::{Duration, Instant};

use hush_residency::LossCause;
use hush_sidecar::process::{ReadinessProbe, WarmRequest};
use serde_json::json;

use crate::fixture::{CollectedLog, ObservedApp, PidFile, is_running, python, settings};

#[tokio::test]
async fn refused_404_and_503_are_not_yet() {
    let started_at = Instant::now();
    let mut app = ObservedApp::start(python(&["--statuses", "404,503,500,204"]));
    let timings = app.expect_loaded().await;
    // Four answers that are not 200, a quarter of a second apart.
    assert!(timings.total >= Duration::from_secs(1), "{timings:?}");
    assert!(timings.total <= started_at.elapsed());
    assert!(timings.spawn < timings.total && timings.sessions < timings.total);
    app.stop().await;
}

#[tokio::test]
async fn an_open_port_is_enough_for_the_tcp_probe() {
    let mut tcp = python(&["--never-ready"]);
    tcp.probe = ReadinessProbe::Tcp;
    ObservedApp::loaded(tcp).await.stop().await;
}

#[tokio::test]
async fn a_line_of_either_stream_is_enough_for_the_log_probe() {
    for stream in ["1", "2"] {
        let script = format!("echo starting; sleep 0.3; echo 'server is listening on {{port}}' >&{stream}; sleep 600");
        let mut settings = settings(&["sh", "-c", &script]);
        settings.probe = ReadinessProbe::LogLine { text: "is listening on".to_owned() };
        let mut app = ObservedApp::start(settings);
        assert!(app.expect_loaded().await.total >= Duration::from_millis(300));
        app.stop().await;
    }
}

#[tokio::test]
async fn the_warm_up_request_belongs_to_the_load() {
    let log = CollectedLog::default();
    let _subscribed = log.subscribe();
    let warm = WarmRequest {
        method: http::Method::POST,
        path: "/v1/completions?warm=1".to_owned(),
        headers: Vec::new(),
        body: Some(json!({"prompt": "x"})),
    };

    let mut settings = python(&[]);
    settings.warm = Some(warm.clone());
    let mut app = ObservedApp::loaded(settings).await;
    crate::fixture::eventually("the request in the log", || {
        log.text().contains(r#"POST /v1/completions?warm=1 {"prompt":"x"}"#)
    })
    .await;
    app.stop().await;

    let mut failing = python(&["--warm-status", "500"]);
    failing.warm = Some(warm);
    let mut app = ObservedApp::start(failing);
    let (cause, _) = app.expect_load_failed().await;
    assert!(cause.contains("the warm-up request POST /v1/completions?warm=1 failed: 500"), "{cause}");
    assert!(cause.contains("the body"), "{cause}");
    app.expect_exited().await;
}

#[tokio::test]
async fn an_app_that_is_not_ready_in_time_is_killed() {
    let pids = PidFile::new();
    let mut settings = python(&["--never-ready", "--ignore-term", "--daemon", "--pids", &pids.path()]);
    settings.load_timeout = Duration::from_secs(2);
    let mut app = ObservedApp::start(settings);

    let loss = app.expect_lost().await;
    assert_eq!(loss.cause, LossCause::LoadTimeout);
    assert!(loss.detail.contains("not ready within 2 s: the probe"), "{loss}");
    app.expect_exited().await;
    assert!(pids.all().into_iter().all(|pid| !is_running(pid)));
}

#[tokio::test]
async fn the_last_lines_tell_why_an_app_ended_early() {
    let mut says: Vec<String> = (0..30).map(|number| format!("line {number}")).collect();
    says.push("ValueError: the checkpoint is broken".to_owned());
    let mut options = vec!["--exit-at-once", "3"];
    for line in &says {
        options.extend(["--say", line.as_str()]);
    }

    let mut app = ObservedApp::start(python(&options));
    let (cause, out_of_memory) = app.expect_load_failed().await;
    assert!(cause.starts_with("the app ended with exit status 3 before it was ready; its last lines: line 11 | "));
    assert!(cause.ends_with("line 29 | ValueError: the checkpoint is broken"), "{cause}");
    assert!(!out_of_memory);
    app.expect_exited().await;
}

#[tokio::test]
async fn a_full_device_is_recognised() {
    let say = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.";
    let mut app = ObservedApp::start(python(&["--exit-at-once", "1", "--say", say]));
    let (cause, out_of_memory) = app.expect_load_failed().await;
    assert!(out_of_memory);
    assert!(cause.contains("Tried to allocate"), "{cause}");
    app.expect_exited().await;
}

#[tokio::test]
async fn an_app_that_goes_to_the_background_is_a_failed_load_and_leaves_nothing() {
    let pids = PidFile::new();
    let script = format!("(setsid sh -c 'echo daemon $$ >> {}; sleep 600' &) ; sleep 0.3", pids.path());
    let mut app = ObservedApp::start(settings(&["sh", "-c", &script]));
    let (cause, _) = app.expect_load_failed().await;
    assert!(cause.contains("must stay in the foreground"), "{cause}");
    app.expect_exited().await;
    assert_eq!(pids.pids("daemon").len(), 1);
    assert!(!is_running(pids.pids("daemon")[0]));
}

#[tokio::test]
async fn ten_megabytes_of_one_line_and_bytes_that_are_no_text_do_no_harm() {
    let log = CollectedLog::default();
    let _subscribed = log.subscribe();
    let mut app = ObservedApp::loaded(python(&["--bad-bytes", "--flood-mb", "10", "--say", "ready soon"])).await;
    crate::fixture::eventually("the end of the line", || log.text().contains("more bytes]")).await;
    app.stop().await;

    let text = log.text();
    assert!(text.len() < 20_000, "{} bytes of log", text.len());
    assert!(text.contains(&format!("[{} more bytes]", (10 << 20) - 4096)));
    assert!(text.contains("\u{fffd}\u{fffd}\u{fffd}]0;title\u{fffd} red"), "{text}");
    let line = text.lines().find(|line| line.contains("ready soon")).unwrap();
    assert!(line.contains("app=\"test-app\"") || line.contains("app=test-app"), "{line}");
}
