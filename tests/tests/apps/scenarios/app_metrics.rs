//! The app's own metrics on the operations port of a sidecar.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hush_tests::apps::standins::{JournalEvent, StandInKind};
use hush_tests::http::{self, Response};

use super::fixture::{Governed, Subject};
use crate::support::SOON;

fn governed(kind: StandInKind) -> Result<Governed> {
    Subject::StandIn(kind).govern()?.context("a stand-in is always here")
}

fn scrape(governed: &Governed, query: &str) -> Result<Response> {
    http::get(governed.sidecar()?.ops, &format!("/app/metrics{query}"))
}

/// How often the app was asked for its metrics.
fn asked(governed: &Governed) -> Result<usize> {
    let entries = governed.journal()?.into_iter();
    Ok(entries.filter(|entry| matches!(&entry.event, JournalEvent::Request { path, .. } if path == "/metrics")).count())
}

#[test]
fn an_apps_metrics_arrive_unchanged_while_its_model_is_loaded() -> Result<()> {
    for (kind, query) in [(StandInKind::Vllm, ""), (StandInKind::LlamaServer, "?model=tiny")] {
        let governed = governed(kind)?;
        governed.make_ready()?;

        let own = http::get(governed.app.address(), &format!("/metrics{query}"))?;
        let passed_on = scrape(&governed, query)?;
        assert_eq!((passed_on.status, passed_on.text()), (200, own.text()), "{kind:?}");
        ensure!(
            own.text().contains(":requests_processing 0") || own.text().contains("num_requests_running"),
            "{own:?}"
        );
        let kind = passed_on.header("content-type").context("no type")?;
        assert!(kind.starts_with("text/plain"), "{kind}");
        governed.assert_no_violation()?;
    }
    Ok(())
}

#[test]
fn a_scrape_of_an_app_whose_model_is_away_is_empty_and_does_not_reach_it() -> Result<()> {
    let governed = governed(StandInKind::LlamaServer)?;
    governed.make_away()?;

    let before = asked(&governed)?;
    for query in ["", "?model=tiny", "?model=tiny&autoload=true"] {
        let answer = scrape(&governed, query)?;
        let is_empty = answer.text().lines().all(|line| line.starts_with('#'));
        assert!(answer.status == 200 && is_empty, "{query}: {} {}", answer.status, answer.text());
    }
    assert_eq!(asked(&governed)?, before);
    assert_eq!(governed.sidecar()?.state()?, "unloaded");
    governed.assert_no_violation()
}

#[test]
fn scrapes_of_an_app_are_no_activity() -> Result<()> {
    let mut governed = governed(StandInKind::LlamaServer)?;
    governed.kill_sidecar()?;
    governed.start_sidecar(&["--idle-timeout", "2s"])?;
    governed.sidecar()?.wait_until_ready()?;
    governed.make_ready()?;

    let begun = Instant::now();
    let mut with_content = 0;
    while governed.sidecar()?.state()? != "unloaded" {
        ensure!(begun.elapsed() < SOON, "the scrapes keep the model in memory");
        with_content += usize::from(scrape(&governed, "?model=tiny")?.text().contains("requests_processing"));
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(with_content > 3, "only {with_content} scrapes reached the app");
    governed.assert_no_violation()
}

#[test]
fn an_app_that_has_gone_away_is_no_empty_scrape() -> Result<()> {
    let mut governed = governed(StandInKind::Vllm)?;
    governed.make_ready()?;
    governed.app.kill()?;

    // Until the sidecar has noticed it, there is no connection.
    let answer = scrape(&governed, "")?;
    assert!([502, 503].contains(&answer.status), "{} {}", answer.status, answer.text());
    Ok(())
}
