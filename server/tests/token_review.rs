//! Tokens that Kubernetes vouches for, asked of a real HTTPS server that speaks TokenReview: what it says, and what
//! happens when it says nothing, nonsense, or is somebody else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod https;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::join_all;
use https::Https;
use hush_server::auth::{Authenticate, Caller, Denied, ReviewSettings, TokenReview};
use serde_json::{Value, json};

const CONTROLLER: &str = "system:serviceaccount:hush:controller";

/// What the API server answers, by token.
#[derive(Default)]
struct Cluster {
    answers: HashMap<&'static str, Answer>,
    asked: AtomicUsize,
}

enum Answer {
    Status(Value),
    Raw(StatusCode, &'static str),
    Never,
}

async fn review(State(cluster): State<Arc<Cluster>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    cluster.asked.fetch_add(1, Ordering::SeqCst);
    assert_eq!(
        (body["apiVersion"].as_str(), body["kind"].as_str()),
        (Some("authentication.k8s.io/v1"), Some("TokenReview"))
    );
    assert_eq!(body["spec"]["audiences"], json!(["hush-server"]));
    if headers["authorization"] != "Bearer server-token" {
        return StatusCode::FORBIDDEN.into_response();
    }
    match cluster.answers.get(body["spec"]["token"].as_str().unwrap()) {
        Some(Answer::Status(status)) => {
            (StatusCode::CREATED, Json(json!({"kind": "TokenReview", "status": status}))).into_response()
        }
        Some(Answer::Raw(status, text)) => (*status, *text).into_response(),
        Some(Answer::Never) => std::future::pending().await,
        None => Json(json!({"status": {"error": "invalid bearer token"}})).into_response(),
    }
}

fn authenticated(user: &str, audiences: &[&str]) -> Answer {
    Answer::Status(json!({"authenticated": true, "user": {"username": user, "groups": ["x"]}, "audiences": audiences}))
}

struct World {
    cluster: Arc<Cluster>,
    server: Https,
    dir: tempfile::TempDir,
}

impl World {
    async fn new(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let cluster = Arc::new(Cluster { answers: answers.into_iter().collect(), asked: AtomicUsize::new(0) });
        let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
        let server = Https::start(router.with_state(Arc::clone(&cluster))).await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), server.certificate()).unwrap();
        std::fs::write(dir.path().join("token"), "server-token\n").unwrap();
        Self { cluster, server, dir }
    }

    fn settings(&self) -> ReviewSettings {
        ReviewSettings {
            api: format!("https://{}", self.server.address).parse().unwrap(),
            ca_file: self.dir.path().join("ca.crt"),
            token_file: self.dir.path().join("token"),
            audience: "hush-server".to_owned(),
            accounts: vec!["hush:controller".parse().unwrap()],
            timeout: Duration::from_secs(20),
            remember: Duration::from_secs(600),
            remember_refusal: Duration::from_secs(600),
        }
    }

    fn asked(&self) -> usize {
        self.cluster.asked.load(Ordering::SeqCst)
    }
}

fn message<T: std::fmt::Debug>(verdict: Result<T, Denied>, expected: fn(String) -> Denied) -> String {
    let denied = verdict.unwrap_err();
    let text = denied.to_string();
    assert_eq!(denied, expected(text.clone()));
    text
}

#[tokio::test]
async fn the_right_account_with_the_right_audience_gets_in() {
    let world = World::new([("good", authenticated(CONTROLLER, &["hush-server"]))]).await;
    let review = TokenReview::new(world.settings()).unwrap();
    assert_eq!(review.authenticate("good").await, Ok(Caller(CONTROLLER.to_owned())));
}

#[tokio::test]
async fn everybody_else_is_told_why_not() {
    let world = World::new([
        ("api-audience", authenticated(CONTROLLER, &["https://kubernetes.default.svc"])),
        ("no-audience", authenticated(CONTROLLER, &[])),
        ("other", authenticated("system:serviceaccount:hush:other", &["hush-server"])),
        ("prefix", authenticated("system:serviceaccount:hush:controller2", &["hush-server"])),
        ("human", authenticated("controller", &["hush-server"])),
        ("nobody", Answer::Status(json!({"authenticated": true, "audiences": ["hush-server"]}))),
        ("expired", Answer::Status(json!({"authenticated": false, "error": "token has expired"}))),
        ("empty", Answer::Status(json!({}))),
    ])
    .await;
    let review = TokenReview::new(world.settings()).unwrap();
    for token in ["api-audience", "no-audience"] {
        assert!(message(review.authenticate(token).await, Denied::Invalid).contains("audience `hush-server`"));
    }
    for token in ["other", "prefix", "human", "nobody"] {
        assert!(message(review.authenticate(token).await, Denied::Forbidden).contains("--admin-account"), "{token}");
    }
    assert!(message(review.authenticate("expired").await, Denied::Invalid).contains("token has expired"));
    assert!(message(review.authenticate("unknown").await, Denied::Invalid).contains("invalid bearer token"));
    message(review.authenticate("empty").await, Denied::Invalid);
}

#[tokio::test]
async fn an_api_server_that_gives_no_clear_answer_lets_nobody_in() {
    let world = World::new([
        ("broken", Answer::Raw(StatusCode::CREATED, "not JSON")),
        ("other-kind", Answer::Raw(StatusCode::OK, r#"{"kind":"Status"}"#)),
        ("error", Answer::Raw(StatusCode::INTERNAL_SERVER_ERROR, "etcd is away")),
        ("forbidden", Answer::Raw(StatusCode::FORBIDDEN, "no")),
        ("redirect", Answer::Raw(StatusCode::FOUND, "elsewhere")),
        ("slow", Answer::Never),
        ("good", authenticated(CONTROLLER, &["hush-server"])),
    ])
    .await;
    let review = TokenReview::new(world.settings()).unwrap();
    for (token, says) in [
        ("broken", "no TokenReview"),
        ("other-kind", "no TokenReview"),
        ("error", "500"),
        ("forbidden", "it is called `NAMESPACE-NAME-server`"),
        ("redirect", "302"),
    ] {
        let text = message(review.authenticate(token).await, Denied::Unavailable);
        assert!(text.contains(says), "{token}: {text}");
    }
    let hasty = TokenReview::new(ReviewSettings { timeout: Duration::from_millis(300), ..world.settings() }).unwrap();
    let crowd = join_all((0..9).map(|_| hasty.authenticate("slow"))).await;
    for verdict in crowd {
        assert!(message(verdict, Denied::Unavailable).contains("within 0.3 s"));
    }
    assert_eq!(review.authenticate("good").await, Ok(Caller(CONTROLLER.to_owned())), "nothing of it is remembered");
}

#[tokio::test]
async fn an_api_server_that_is_away_or_somebody_else_lets_nobody_in() {
    let world = World::new([("good", authenticated(CONTROLLER, &["hush-server"]))]).await;
    let stranger = World::new([("good", authenticated(CONTROLLER, &["hush-server"]))]).await;
    let misled = ReviewSettings { api: stranger.settings().api, ..world.settings() };
    let text = message(TokenReview::new(misled).unwrap().authenticate("good").await, Denied::Unavailable);
    assert!(text.contains("TLS"), "{text}");
    assert_eq!(stranger.asked(), 0, "no token was given to a stranger");

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = ReviewSettings { api: format!("https://{closed}").parse().unwrap(), ..world.settings() };
    let text = message(TokenReview::new(away).unwrap().authenticate("good").await, Denied::Unavailable);
    assert!(text.contains("connecting"), "{text}");

    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = ReviewSettings {
        api: format!("https://{}", plain.local_addr().unwrap()).parse().unwrap(),
        timeout: Duration::from_millis(200),
        ..world.settings()
    };
    message(TokenReview::new(mute).unwrap().authenticate("good").await, Denied::Unavailable);
}

#[tokio::test]
async fn verdicts_are_remembered_for_a_while() {
    let world = World::new([("good", authenticated(CONTROLLER, &["hush-server"]))]).await;
    let review = TokenReview::new(world.settings()).unwrap();
    for _ in 0..5 {
        review.authenticate("good").await.unwrap();
        review.authenticate("bad").await.unwrap_err();
    }
    assert_eq!(world.asked(), 2);
    let forgetful = ReviewSettings { remember: Duration::ZERO, remember_refusal: Duration::ZERO, ..world.settings() };
    let forgetful = TokenReview::new(forgetful).unwrap();
    for _ in 0..3 {
        forgetful.authenticate("good").await.unwrap();
    }
    assert_eq!(world.asked(), 5);
    // Strangers with ever new tokens.
    for n in 0..1100 {
        review.authenticate(&format!("stranger-{n}")).await.unwrap_err();
    }
    assert_eq!(review.authenticate("good").await, Ok(Caller(CONTROLLER.to_owned())));
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_the_start() {
    let world = World::new([]).await;
    let missing = ReviewSettings { ca_file: world.dir.path().join("none"), ..world.settings() };
    assert!(TokenReview::new(missing).err().unwrap().to_string().contains("none"));
    let no_pem = ReviewSettings { ca_file: world.dir.path().join("token"), ..world.settings() };
    assert!(TokenReview::new(no_pem).err().unwrap().to_string().contains("no certificate"));
    std::fs::write(world.dir.path().join("token"), "").unwrap();
    assert!(TokenReview::new(world.settings()).err().unwrap().to_string().contains("no token"));
}

/// The server's own token is rotated: the next review carries the new one.
#[tokio::test]
async fn a_rotated_token_of_our_own_is_taken_up() {
    let world = World::new([("good", authenticated(CONTROLLER, &["hush-server"]))]).await;
    std::fs::write(world.dir.path().join("token"), "expired-token").unwrap();
    let settings = ReviewSettings { remember: Duration::ZERO, ..world.settings() };
    let review = TokenReview::new(settings).unwrap();
    message(review.authenticate("good").await, Denied::Unavailable);
    std::fs::write(world.dir.path().join("token"), "server-token").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while review.authenticate("good").await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new token is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
