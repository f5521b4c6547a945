//! Waiting for a condition with a deadline: the only way a test here waits.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` every 10 ms until it gives a value; `what` is named when the deadline passes first.
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same where asking takes a future. An error of the condition ends the wait.
pub async fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
