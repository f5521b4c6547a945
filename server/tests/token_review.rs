//! Tokens that Kubernetes vouches for, asked of a real HTTPS server that speaks TokenReview: what it says, and what
//! happens when it does not answer, answers nonsense, or is another server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod https;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::join_all;
use https::HttpsListener;
use hush_access::{AccessDenied, Authenticate, Caller, ReviewSettings, TokenReview};
use serde_json::{Value, json};

const CONTROLLER: &str = "system:serviceaccount:hush:controller";
const OTHER_SERVER: &str = "hush-server/media/0000-2";
const POD_UID: &str = "0000-1";
const AUDIENCE: &str = "hush-server/media/0000-1";

/// A token that says it was made for this server. What it is worth, the API server says by its name.
fn token(name: &str) -> String {
    token_for(name, AUDIENCE)
}

fn token_for(name: &str, audience: &str) -> String {
    let claims = json!({"jti": name, "aud": [audience]}).to_string();
    [r#"{"alg":"RS256"}"#, claims.as_str(), "signature"].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

/// The name in a token.
fn name_of(token: &str) -> String {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    claims["jti"].as_str().unwrap().to_owned()
}

/// Addresses of different machines.
fn peer(n: u8) -> Option<IpAddr> {
    Some(IpAddr::from([10, 0, 0, n]))
}

const HOME: Option<IpAddr> = None;

/// What the API server answers, by token.
#[derive(Default)]
struct ReviewAnswers {
    answers: HashMap<&'static str, ReviewAnswer>,
    asked: AtomicUsize,
}

enum ReviewAnswer {
    Status(Value),
    Raw(StatusCode, &'static str),
    Never,
}

async fn review(State(cluster): State<Arc<ReviewAnswers>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    cluster.asked.fetch_add(1, Ordering::SeqCst);
    assert_eq!(
        (body["apiVersion"].as_str(), body["kind"].as_str()),
        (Some("authentication.k8s.io/v1"), Some("TokenReview"))
    );
    assert_eq!(body["spec"]["audiences"], json!([AUDIENCE, "hush-server"]));
    if headers["authorization"] != "Bearer server-token" {
        return StatusCode::FORBIDDEN.into_response();
    }
    match cluster.answers.get(name_of(body["spec"]["token"].as_str().unwrap()).as_str()) {
        Some(ReviewAnswer::Status(status)) => {
            (StatusCode::CREATED, Json(json!({"kind": "TokenReview", "status": status}))).into_response()
        }
        Some(ReviewAnswer::Raw(status, text)) => (*status, *text).into_response(),
        Some(ReviewAnswer::Never) => std::future::pending().await,
        None => Json(json!({"status": {"error": "invalid bearer token"}})).into_response(),
    }
}

fn authenticated(user: &str, audiences: &[&str]) -> ReviewAnswer {
    ReviewAnswer::Status(
        json!({"authenticated": true, "user": {"username": user, "groups": ["x"]}, "audiences": audiences}),
    )
}

struct ReviewFixture {
    cluster: Arc<ReviewAnswers>,
    server: HttpsListener,
    dir: tempfile::TempDir,
}

impl ReviewFixture {
    async fn new(answers: impl IntoIterator<Item = (&'static str, ReviewAnswer)>) -> Self {
        let cluster = Arc::new(ReviewAnswers { answers: answers.into_iter().collect(), asked: AtomicUsize::new(0) });
        let router = Router::new().route("/apis/authentication.k8s.io/v1/tokenreviews", post(review));
        let server = HttpsListener::start(router.with_state(Arc::clone(&cluster))).await;
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
            audience: AUDIENCE.to_owned(),
            pod_uid: Some(POD_UID.to_owned()),
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

fn message<T: std::fmt::Debug>(verdict: Result<T, AccessDenied>, expected: fn(String) -> AccessDenied) -> String {
    let denied = verdict.unwrap_err();
    let text = denied.to_string();
    assert_eq!(denied, expected(text.clone()));
    text
}

#[tokio::test]
async fn the_right_account_with_the_right_audience_gets_in() {
    let world = ReviewFixture::new([("good", authenticated(CONTROLLER, &[AUDIENCE]))]).await;
    let review = TokenReview::new(world.settings()).unwrap();
    assert_eq!(review.authenticate(&token("good"), HOME).await, Ok(Caller(CONTROLLER.to_owned())));
}

#[tokio::test]
async fn other_accounts_are_refused_with_the_reason() {
    let world = ReviewFixture::new([
        ("api-audience", authenticated(CONTROLLER, &["https://kubernetes.default.svc"])),
        ("no-audience", authenticated(CONTROLLER, &[])),
        ("other-server", authenticated(CONTROLLER, &[OTHER_SERVER])),
        ("other", authenticated("system:serviceaccount:hush:other", &[AUDIENCE])),
        ("prefix", authenticated("system:serviceaccount:hush:controller2", &[AUDIENCE])),
        ("human", authenticated("controller", &[AUDIENCE])),
        ("nameless", ReviewAnswer::Status(json!({"authenticated": true, "audiences": [AUDIENCE]}))),
        ("expired", ReviewAnswer::Status(json!({"authenticated": false, "error": "token has expired"}))),
        ("empty", ReviewAnswer::Status(json!({}))),
    ])
    .await;
    let review = TokenReview::new(world.settings()).unwrap();
    for name in ["api-audience", "no-audience", "other-server"] {
        assert!(
            message(review.authenticate(&token(name), HOME).await, AccessDenied::Invalid)
                .contains("audience `hush-server/media/0000-1`")
        );
    }
    for name in ["other", "prefix", "human", "nameless"] {
        assert!(
            message(review.authenticate(&token(name), HOME).await, AccessDenied::Forbidden).contains("--admin-account"),
            "{name}"
        );
    }
    assert!(
        message(review.authenticate(&token("expired"), HOME).await, AccessDenied::Invalid)
            .contains("token has expired")
    );
    assert!(
        message(review.authenticate(&token("unknown"), HOME).await, AccessDenied::Invalid)
            .contains("invalid bearer token")
    );
    message(review.authenticate(&token("empty"), HOME).await, AccessDenied::Invalid);
}

#[tokio::test]
async fn an_api_server_that_gives_no_clear_answer_lets_no_token_in() {
    let world = ReviewFixture::new([
        ("broken", ReviewAnswer::Raw(StatusCode::CREATED, "not JSON")),
        ("other-kind", ReviewAnswer::Raw(StatusCode::OK, r#"{"kind":"Status"}"#)),
        ("error", ReviewAnswer::Raw(StatusCode::INTERNAL_SERVER_ERROR, "etcd is away")),
        ("forbidden", ReviewAnswer::Raw(StatusCode::FORBIDDEN, "no")),
        ("redirect", ReviewAnswer::Raw(StatusCode::FOUND, "elsewhere")),
        ("slow", ReviewAnswer::Never),
        ("good", authenticated(CONTROLLER, &[AUDIENCE])),
    ])
    .await;
    let review = TokenReview::new(world.settings()).unwrap();
    for (name, says) in [
        ("broken", "not a TokenReview"),
        ("other-kind", "not a TokenReview"),
        ("error", "500"),
        ("forbidden", "it is called `NAMESPACE-NAME-server`"),
        ("redirect", "302"),
    ] {
        let text = message(review.authenticate(&token(name), HOME).await, AccessDenied::Unavailable);
        assert!(text.contains(says), "{name}: {text}");
    }
    let hasty = TokenReview::new(ReviewSettings { timeout: Duration::from_millis(300), ..world.settings() }).unwrap();
    let slow = token("slow");
    let crowd = join_all((0..9).map(|n| hasty.authenticate(&slow, peer(n)))).await;
    for verdict in crowd {
        assert!(message(verdict, AccessDenied::Unavailable).contains("within 0.3 s"));
    }
    assert_eq!(
        review.authenticate(&token("good"), HOME).await,
        Ok(Caller(CONTROLLER.to_owned())),
        "nothing of it is remembered"
    );
}

#[tokio::test]
async fn an_api_server_that_is_away_or_another_server_lets_no_token_in() {
    let world = ReviewFixture::new([("good", authenticated(CONTROLLER, &[AUDIENCE]))]).await;
    let stranger = ReviewFixture::new([("good", authenticated(CONTROLLER, &[AUDIENCE]))]).await;
    let misled = ReviewSettings { api: stranger.settings().api, ..world.settings() };
    let text =
        message(TokenReview::new(misled).unwrap().authenticate(&token("good"), HOME).await, AccessDenied::Unavailable);
    assert!(text.contains("TLS"), "{text}");
    assert_eq!(stranger.asked(), 0, "no token was given to a stranger");

    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let away = ReviewSettings { api: format!("https://{closed}").parse().unwrap(), ..world.settings() };
    let text =
        message(TokenReview::new(away).unwrap().authenticate(&token("good"), HOME).await, AccessDenied::Unavailable);
    assert!(text.contains("connecting"), "{text}");

    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = ReviewSettings {
        api: format!("https://{}", plain.local_addr().unwrap()).parse().unwrap(),
        timeout: Duration::from_millis(200),
        ..world.settings()
    };
    message(TokenReview::new(mute).unwrap().authenticate(&token("good"), HOME).await, AccessDenied::Unavailable);
}

#[tokio::test]
async fn verdicts_are_remembered_for_a_while() {
    let world = ReviewFixture::new([("good", authenticated(CONTROLLER, &[AUDIENCE]))]).await;
    let review = TokenReview::new(world.settings()).unwrap();
    for _ in 0..5 {
        review.authenticate(&token("good"), HOME).await.unwrap();
        review.authenticate(&token("bad"), HOME).await.unwrap_err();
    }
    assert_eq!(world.asked(), 2);
    let forgetful = ReviewSettings { remember: Duration::ZERO, remember_refusal: Duration::ZERO, ..world.settings() };
    let forgetful = TokenReview::new(forgetful).unwrap();
    for _ in 0..3 {
        forgetful.authenticate(&token("good"), HOME).await.unwrap();
    }
    assert_eq!(world.asked(), 5);
    // Strangers with ever new tokens.
    for n in 0..1100_u32 {
        let [.., high, low] = n.to_be_bytes();
        let peer = Some(IpAddr::from([10, 0, high, low]));
        review.authenticate(&token(&format!("stranger-{n}")), peer).await.unwrap_err();
    }
    assert_eq!(review.authenticate(&token("good"), HOME).await, Ok(Caller(CONTROLLER.to_owned())));
}

#[tokio::test]
async fn what_cannot_be_used_is_said_at_the_start() {
    let world = ReviewFixture::new([]).await;
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
    let world = ReviewFixture::new([("good", authenticated(CONTROLLER, &[AUDIENCE]))]).await;
    std::fs::write(world.dir.path().join("token"), "expired-token").unwrap();
    let settings = ReviewSettings { remember: Duration::ZERO, ..world.settings() };
    let review = TokenReview::new(settings).unwrap();
    message(review.authenticate(&token("good"), HOME).await, AccessDenied::Unavailable);
    std::fs::write(world.dir.path().join("token"), "server-token").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while review.authenticate(&token("good"), HOME).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the new token is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_error_beside_authenticated_is_a_no() {
    let doubtful =
        json!({"authenticated": true, "user": {"username": CONTROLLER}, "audiences": [AUDIENCE], "error": "x"});
    let world = ReviewFixture::new([("doubtful", ReviewAnswer::Status(doubtful))]).await;
    let review = TokenReview::new(world.settings()).unwrap();
    let text = message(review.authenticate(&token("doubtful"), HOME).await, AccessDenied::Invalid);
    assert!(text.contains("does not accept the token: x"), "{text}");
}

/// The controller beside a server has a token of its pod, for every server the same audience: it is bound to the pod.
#[tokio::test]
async fn a_token_without_the_servers_own_audience_must_be_bound_to_its_pod() {
    let bound = |extra: Value| {
        let user = json!({"username": CONTROLLER, "extra": extra});
        ReviewAnswer::Status(json!({"authenticated": true, "user": user, "audiences": ["hush-server"]}))
    };
    let uid = "authentication.kubernetes.io/pod-uid";
    let world = ReviewFixture::new([
        ("own-pod", bound(json!({uid: [POD_UID]}))),
        ("other-pod", bound(json!({uid: ["0000-2"]}))),
        ("two-pods", bound(json!({uid: [POD_UID, "0000-2"]}))),
        ("no-pod", bound(json!({}))),
        ("for-another", authenticated(CONTROLLER, &[OTHER_SERVER])),
    ])
    .await;
    let review = TokenReview::new(world.settings()).unwrap();
    let verdict = async |name: &str| review.authenticate(&token_for(name, "hush-server"), HOME).await;
    assert_eq!(verdict("own-pod").await, Ok(Caller(CONTROLLER.to_owned())));
    for name in ["other-pod", "two-pods", "no-pod"] {
        message(verdict(name).await, AccessDenied::Invalid);
    }

    let asked = world.asked();
    message(review.authenticate(&token_for("for-another", OTHER_SERVER), HOME).await, AccessDenied::Invalid);
    assert_eq!(world.asked(), asked, "what says that it is for another server is not reviewed");
}

mod hostile_reviews {
    use super::*;

    /// Far more than what is reviewed of it, from one machine and from many.
    const FLOOD: usize = 600;

    #[tokio::test]
    async fn what_is_no_jwt_is_refused_without_a_review() {
        let world = ReviewFixture::new([]).await;
        let review = TokenReview::new(world.settings()).unwrap();
        for n in 0..FLOOD {
            let text = message(review.authenticate(&format!("zz{n}"), peer(1)).await, AccessDenied::Invalid);
            assert!(text.contains("not a JSON Web Token"), "{text}");
        }
        assert_eq!(world.asked(), 0);
    }

    #[tokio::test]
    async fn one_peer_gets_a_bounded_number_of_reviews() {
        let world = ReviewFixture::new([]).await;
        let review = TokenReview::new(world.settings()).unwrap();
        let began = std::time::Instant::now();
        for n in 0..FLOOD {
            review.authenticate(&token(&format!("stranger-{n}")), peer(1)).await.unwrap_err();
        }
        // A burst of 20, and one more each second.
        let bound = 21 + usize::try_from(began.elapsed().as_secs()).unwrap();
        assert!((20..=bound).contains(&world.asked()), "{} reviews", world.asked());
    }

    /// Reviews that never end hold every slot that strangers have. The token of the controller, whose verdict no longer
    /// holds, is reviewed at once, from wherever it comes; so is a new one from the controller's address.
    #[tokio::test]
    async fn a_flood_of_bad_tokens_does_not_stop_the_controllers_token() {
        let slow = (0..FLOOD).map(|n| -> &'static str { format!("slow-{n}").leak() });
        let good = ["good", "new"].map(|name| (name, authenticated(CONTROLLER, &[AUDIENCE])));
        let world = ReviewFixture::new(slow.map(|name| (name, ReviewAnswer::Never)).chain(good)).await;
        let settings =
            ReviewSettings { remember: Duration::ZERO, timeout: Duration::from_secs(20), ..world.settings() };
        let review = Arc::new(TokenReview::new(settings).unwrap());
        let controller = peer(200);
        review.authenticate(&token("good"), controller).await.unwrap();

        let flood: Vec<_> = (0..FLOOD)
            .map(|n| {
                let review = Arc::clone(&review);
                let from = peer(u8::try_from(n % 100).unwrap());
                tokio::spawn(async move { review.authenticate(&token(&format!("slow-{n}")), from).await })
            })
            .collect();
        // All slots of strangers are taken.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        while world.asked() < 4 {
            assert!(tokio::time::Instant::now() < deadline, "{} reviews", world.asked());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        let began = std::time::Instant::now();
        for (name, from) in [("good", controller), ("good", peer(7)), ("new", controller)] {
            assert_eq!(review.authenticate(&token(name), from).await, Ok(Caller(CONTROLLER.to_owned())), "{name}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "it waited for {:?}", began.elapsed());
        assert!(world.asked() <= 4 + 3, "{} reviews", world.asked());
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
