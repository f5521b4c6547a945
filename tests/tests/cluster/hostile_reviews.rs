//! Tokens without end at a server whose credentials the API server reviews: neither is flooded, and the controller's own
//! token is let in all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hush_tests::cluster::ControlPlane;
use hush_tests::http;
use serde_json::json;

use crate::review::ReviewingServer;

/// Longer than a good verdict is remembered, so that the good token is reviewed again.
const FLOOD: Duration = Duration::from_secs(14);
const FLOODING_THREADS: usize = 4;
/// One address: at most 20 at once and one more each second, a few of which may be under way.
const REVIEWS_AT_ONCE: usize = 20;

/// As well formed as those that the API server makes, and for this very server.
fn forged(audience: &str, number: usize) -> String {
    let claims = json!({"aud": [audience], "sub": "system:serviceaccount:hush:hush-controller", "jti": number});
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    [part(r#"{"alg":"ES256","typ":"JWT"}"#), part(&claims.to_string()), part(&"s".repeat(64))].join(".")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forged_tokens_stops_neither_the_controller_nor_the_api_server() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    let good = guarded.good_token().await?;
    assert_eq!(guarded.command(Some(&good))?.0, 200);
    let reviews = || -> Result<usize> {
        let asked = plane.requests_of(&guarded.namespace.name, "hush-server")?;
        Ok(asked.iter().filter(|entry| entry["objectRef"]["resource"] == "tokenreviews").count())
    };
    let before = reviews()?;

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let flood: Vec<_> = (0..FLOODING_THREADS)
        .map(|_| {
            let (stop, sent, ops) = (Arc::clone(&stop), Arc::clone(&sent), guarded.server.ops);
            let audience = guarded.audience.clone();
            std::thread::spawn(move || -> Result<()> {
                while !stop.load(Ordering::Relaxed) {
                    let token = forged(&audience, sent.fetch_add(1, Ordering::Relaxed));
                    let request = format!(
                        "GET /admin/v1/models HTTP/1.1\r\nHost: {ops}\r\nAuthorization: Bearer {token}\r\nConnection: \
                         close\r\n\r\n"
                    );
                    let answer = http::exchange(ops, request.as_bytes())?;
                    anyhow::ensure!(matches!(answer.status, 401 | 503), "{}", answer.text());
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        })
        .collect();
    let (mut slowest, mut commands) = (Duration::ZERO, 0);
    while began.elapsed() < FLOOD {
        let asked = Instant::now();
        let answer = guarded.command(Some(&good))?;
        assert_eq!(answer, (200, String::new()), "after {:?}", began.elapsed());
        slowest = slowest.max(asked.elapsed());
        commands += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in flood {
        thread.join().ok().context("a thread panicked")??;
    }

    let (made, sent) = (reviews()? - before, sent.load(Ordering::Relaxed));
    eprintln!("{sent} forged tokens: {made} reviews; {commands} commands, the slowest took {slowest:?}");
    assert!(sent > 200, "{sent} tokens are no flood");
    let seconds = usize::try_from(began.elapsed().as_secs())?;
    // The good one's own reviews come every ten seconds.
    assert!(made <= REVIEWS_AT_ONCE + seconds + 4, "{made} reviews of {sent} tokens in {seconds} s");
    Ok(())
}

/// The same with what is no token at all: the API server hears nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_token_never_reaches_the_api_server() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    for number in 0..200 {
        assert_eq!(guarded.command(Some(&format!("zz{number}")))?, (401, "invalid_token".to_owned()));
    }
    let other = forged("hush-server/media/another", 1);
    assert_eq!(guarded.command(Some(&other))?, (401, "invalid_token".to_owned()));
    assert!(plane.requests_of(&guarded.namespace.name, "hush-server")?.is_empty());
    assert_eq!(guarded.command(Some(&guarded.good_token().await?))?.0, 200);
    Ok(())
}
