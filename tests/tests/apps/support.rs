//! What several of these tests do.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use hush_tests::apps::standins::{StandInKind, ViolationKind};
use hush_tests::apps::{AppCall, LiveAnswer, StandInApp, TestedApp, post, post_bytes};
use hush_tests::http::Response;
use serde_json::json;

pub const SOON: Duration = Duration::from_secs(60);

pub fn standin(kind: StandInKind, args: &[&str]) -> Result<StandInApp> {
    let mut app = StandInApp::new(kind, args)?;
    app.start()?;
    Ok(app)
}

/// The kinds of the violations so far.
pub fn violations(app: &StandInApp) -> Result<Vec<ViolationKind>> {
    Ok(app.violations()?.into_iter().map(|(kind, _)| kind).collect())
}

/// Starts the app's long work and waits until it is at work.
pub fn begin_long_call(app: &dyn TestedApp) -> Result<LiveAnswer> {
    let long = app.long_call();
    let answer = LiveAnswer::open(app.address(), &post_bytes(app.address(), &long.call, &[]))?;
    if long.streams {
        answer.wait_for_body(SOON)?;
    } else {
        // Nothing tells from outside that it has begun.
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(answer)
}

/// Sends a request from a thread of its own.
pub fn in_background(app: &dyn TestedApp, call: AppCall) -> JoinHandle<Result<Response>> {
    let address = app.address();
    std::thread::spawn(move || post(address, &call, &[]))
}

pub fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("the thread panicked"))?
}

pub fn send(app: &dyn TestedApp, path: &str, body: &serde_json::Value) -> Result<Response> {
    post(app.address(), &AppCall::json(path, body), &[])
}

/// A `POST` with an empty object.
pub fn command(app: &dyn TestedApp, path: &str) -> Result<Response> {
    send(app, path, &json!({}))
}

pub fn short(app: &dyn TestedApp) -> Result<Response> {
    post(app.address(), &app.short_call(), &[])
}
