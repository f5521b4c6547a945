//! The admin API over a real socket, with models in real child processes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod scripted;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use futures_util::StreamExt;
use hush_access::{Authenticate, KeyFile};
use hush_contract::admin::{
    AdminErrorBody, AdminEvent, LoadOutcome, LoadResponse, ModelList, UnloadOutcome, UnloadResponse,
};
use hush_contract::{ModelState, UnloadRefusal};
use hush_server::admin::{self, AdminAccess, ServerAdminState};
use hush_server::metrics::ServerMetrics;
use hush_server::ops;
use hush_server::residency::{LifecycleSettings, ResidencyRule, SpeechJobs, SpeechModelSettings, SpeechModels};
use hush_server::serve::{ConnectionPeer, ServeOptions, serve};
use scripted::{audio, settings, spec, until, work};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn runner_child() {
    scripted::child_entry();
}

struct AdminServer {
    models: Arc<SpeechModels>,
    address: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

struct AdminResponse {
    status: u16,
    head: String,
    body: String,
}

impl AdminResponse {
    fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    #[track_caller]
    fn is_error(&self, status: u16, code: &str) -> AdminErrorBody {
        let error: AdminErrorBody = self.json();
        assert_eq!((self.status, error.code.as_str()), (status, code), "{}", self.body);
        assert!(!error.message.is_empty());
        error
    }
}

impl AdminServer {
    async fn new(script: &str, lifecycle: LifecycleSettings) -> Self {
        Self::with(script, lifecycle, |address| AdminAccess::new(Vec::new(), address.ip())).await
    }

    async fn with(script: &str, lifecycle: LifecycleSettings, access: impl FnOnce(SocketAddr) -> AdminAccess) -> Self {
        let metrics = Arc::new(ServerMetrics::new().unwrap());
        let spec = spec(script);
        let model = SpeechModelSettings {
            name: "org/tiny".to_owned(),
            spec,
            precision: Some("int8".to_owned()),
            lifecycle,
            account: None,
        };
        let models = Arc::new(SpeechModels::start(vec![model], settings(), None, &metrics.residency).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let state = ServerAdminState::new(Arc::clone(&models), access(address), stop.clone());
        let router = ops::router(Arc::clone(&metrics), None).merge(admin::router(state, metrics));
        let options = ServeOptions { format_error: admin::error_body, ..ServeOptions::default() };
        let served = tokio::spawn(serve(listener, router, stop.clone(), options));
        Self { models, address, stop, served }
    }

    async fn send(&self, request: &str) -> AdminResponse {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        AdminResponse { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> AdminResponse {
        let (address, length) = (self.address, body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}");
        self.send(&format!("{head}\r\n{headers}\r\n{body}")).await
    }

    async fn get(&self, path: &str) -> AdminResponse {
        self.ask("GET", path, "", "").await
    }

    async fn command(&self, command: &str, body: &str) -> AdminResponse {
        let path = format!("/admin/v1/models/org%2Ftiny/{command}");
        self.ask("POST", &path, "Content-Type: application/json\r\n", body).await
    }

    fn state(&self) -> ModelState {
        self.models.default_model().snapshot().state
    }
}

fn never() -> LifecycleSettings {
    LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_readers_of_events_are_bounded() {
    let server = AdminServer::new("", LifecycleSettings::default()).await;
    let mut readers = Vec::new();
    for _ in 0..64 {
        let mut reader = TcpStream::connect(server.address).await.unwrap();
        reader.write_all(b"GET /admin/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        reader.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        readers.push(reader);
    }
    let refused = server.get("/admin/v1/events").await;
    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("retry-after: 30") && refused.body.contains("too_many_readers"), "{}", refused.body);
    assert_eq!(server.get("/admin/v1/models").await.status, 200);
    drop(readers);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let mut reader = TcpStream::connect(server.address).await.unwrap();
        reader.write_all(b"GET /admin/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        reader.read_exact(&mut head).await.unwrap();
        if &head == b"HTTP/1.1 200" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "places did not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_the_documented_error() {
    let server = AdminServer::new("", LifecycleSettings::default()).await;
    let address = server.address;
    let close = "Connection: close\r\n\r\n";
    for (request, status) in [
        (format!("GET /metrics HTTP/1.1\r\n{close}"), 400),
        (format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nHost: {address}\r\n{close}"), 400),
        (
            format!(
                "GET /admin/v1/models HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n{close}"
            ),
            400,
        ),
        (format!("POST /admin/v1/models/%ff/load HTTP/1.1\r\nHost: {address}\r\n{close}"), 400),
        (format!("POST /metrics HTTP/1.1\r\nHost: {address}\r\n{close}"), 405),
        (format!("BREW /admin/v1/models HTTP/1.1\r\nHost: {address}\r\n{close}"), 405),
        (format!("GET /nope HTTP/1.1\r\nHost: {address}\r\n{close}"), 404),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {address}\r\nX: {}\r\n\r\n", "a".repeat(200_000)), 431),
    ] {
        let answer = server.send(&request).await;
        let about = request.chars().take(80).collect::<String>();
        assert_eq!(answer.status, status, "{about}");
        assert!(answer.head.contains("content-type: application/json"), "{about}: {}", answer.head);
        let body: hush_contract::admin::AdminErrorBody = answer.json();
        assert!(!body.code.is_empty() && !body.message.is_empty(), "{about}: {body:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_listed_loaded_and_unloaded() {
    let server = AdminServer::new("", LifecycleSettings::default()).await;
    let list: ModelList = server.get("/admin/v1/models").await.json();
    let model = &list.models[0];
    assert_eq!((model.model.as_str(), model.state, model.generation), ("org/tiny", ModelState::Unloaded, 0));
    assert_eq!((model.device.as_str(), model.precision.as_deref()), ("cpu", Some("int8")));
    assert_eq!((model.idle_timeout_seconds, model.last_load_seconds), (Some(300.0), None));

    let loaded: LoadResponse = server.command("load", "").await.json();
    assert_eq!((loaded.outcome, loaded.state, loaded.generation), (LoadOutcome::Ready, ModelState::Ready, 1));
    let again: LoadResponse = server.command("load", r#"{"if_generation":1,"reason":"WarmWindow"}"#).await.json();
    assert_eq!((again.outcome, again.generation), (LoadOutcome::Ready, 1));
    server.command("load", r#"{"if_generation":0}"#).await.is_error(409, "generation_changed");

    let list: ModelList = server.get("/admin/v1/models").await.json();
    assert!(list.models[0].last_load_seconds.is_some_and(|seconds| seconds > 0.0));
    let body = r#"{"if_generation":1,"if_idle_seconds":0,"drain_seconds":1,"reason":"SoftPressure","policy":"a/b"}"#;
    let answer = server.command("unload", body).await;
    let gone: UnloadResponse = answer.json();
    assert_eq!((answer.status, gone.outcome, gone.generation), (200, UnloadOutcome::Unloaded, 1));
    assert!(!answer.body.contains("reclaimed_bytes"), "absent where the device's memory is not known");
    assert_eq!(server.state(), ModelState::Unloaded);

    server.command("unload", body).await.is_error(409, "not_loaded");
    let again: UnloadResponse = server.command("unload", "{}").await.json();
    assert_eq!((again.outcome, again.generation), (UnloadOutcome::AlreadyUnloaded, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_condition_that_does_not_hold_has_its_code_and_changes_nothing() {
    let server = AdminServer::new("", never()).await;
    server.models.default_model().load().await.unwrap();
    let refused = async |body: &str, refusal: UnloadRefusal| {
        let error = server.command("unload", body).await.is_error(409, refusal.as_str());
        assert_eq!(error.refusal(), Some(refusal));
        assert_eq!((server.state(), server.models.default_model().snapshot().generation), (ModelState::Ready, 1));
    };
    refused(r#"{"if_generation":2}"#, UnloadRefusal::GenerationChanged).await;
    refused(r#"{"if_idle_seconds":300}"#, UnloadRefusal::NotIdle).await;
    let model = server.models.default_model().clone();
    let job = tokio::spawn(async move { model.gather(audio(1), work("each=3600000"), None).await });
    until("it works", || server.models.default_model().snapshot().inflight == 1).await;
    refused(r#"{"if_idle_seconds":0}"#, UnloadRefusal::Busy).await;
    job.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_takes_long_is_accepted_and_goes_on() {
    let server = AdminServer::new("sleep=700", never()).await;
    let answer = server.command("load", r#"{"wait_seconds":0}"#).await;
    let pending: LoadResponse = answer.json();
    assert_eq!((answer.status, pending.outcome, pending.state), (202, LoadOutcome::Pending, ModelState::Loading));
    server.command("unload", "{}").await.is_error(409, "loading");
    until("it is loaded", || server.state() == ModelState::Ready).await;
    assert_eq!(server.models.default_model().snapshot().generation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_refuses_loads_until_it_ends() {
    let server = AdminServer::new("", never()).await;
    server.models.default_model().load().await.unwrap();
    server.command("unload", r#"{"hold_seconds":600,"reason":"HardPressure"}"#).await;
    let answer = server.command("load", "{}").await;
    answer.is_error(409, "held");
    assert!(answer.head.contains("retry-after: 600") || answer.head.contains("retry-after: 59"), "{}", answer.head);
    let list: ModelList = server.get("/admin/v1/models").await.json();
    assert!(list.models[0].hold_remaining_seconds.is_some_and(|left| left > 500.0 && left <= 600.0));
    // A request waits for the end of the hold; a shorter hold does not shorten it.
    server.command("unload", r#"{"hold_seconds":1}"#).await;
    let model = server.models.default_model().clone();
    let job = tokio::spawn(async move { model.gather(audio(1), work(""), None).await });
    until("it waits", || server.state() == ModelState::WaitingForMemory).await;
    let loaded: LoadResponse = server.command("load", r#"{"despite_hold":true}"#).await.json();
    assert_eq!(loaded.generation, 2);
    job.await.unwrap().unwrap();
    // A hold ends by itself.
    server.command("unload", r#"{"hold_seconds":0.2}"#).await;
    until("the hold is over", || server.models.default_model().snapshot().hold.is_none()).await;
    let loaded: LoadResponse = server.command("load", "{}").await.json();
    assert_eq!(loaded.generation, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fails_says_why_and_when_to_come_again() {
    let server = AdminServer::new("fail", never()).await;
    let answer = server.command("load", "{}").await;
    let error = answer.is_error(503, "load_failed");
    assert!(error.message.contains("weights.bin is truncated") && answer.head.contains("retry-after: 1"), "{error:?}");
    let list: ModelList = server.get("/admin/v1/models").await.json();
    assert_eq!(list.models[0].failure.as_ref().unwrap().message, "weights.bin is truncated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_what_is_wrong() {
    let server = AdminServer::new("", never()).await;
    let json = "Content-Type: application/json\r\n";
    let unload = "/admin/v1/models/org%2Ftiny/unload";
    let error = server.command("unload", r#"{"if_idle_second":1}"#).await.is_error(400, "invalid_request");
    assert_eq!(error.field.as_deref(), Some("if_idle_second"));
    let error = server.command("unload", r#"{"drain_seconds":"soon"}"#).await.is_error(400, "invalid_request");
    assert_eq!(error.field.as_deref(), Some("drain_seconds"));
    server.command("load", "{").await.is_error(400, "invalid_request");
    server.command("load", &" ".repeat(20_000)).await.is_error(413, "body_too_large");
    server.ask("POST", unload, "Content-Type: text/plain\r\n", "{}").await.is_error(415, "unsupported_media_type");
    server.ask("POST", unload, "", "{}").await.is_error(415, "unsupported_media_type");
    let error = server.ask("POST", "/admin/v1/models/none/unload", json, "{}").await.is_error(404, "unknown_model");
    assert!(error.message.contains("`org/tiny`"), "{}", error.message);
    server.get("/admin/v1/none").await.is_error(404, "not_found");
    for (method, path, allow) in [
        ("GET", unload, "allow: post"),
        ("PUT", unload, "allow: post"),
        ("DELETE", "/admin/v1/models", "allow: get,head"),
        ("POST", "/admin/v1/events", "allow: get,head"),
    ] {
        let answer = server.ask(method, path, "", "").await;
        answer.is_error(405, "method_not_allowed");
        assert!(answer.head.contains(allow), "{}", answer.head);
    }
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.models.default_model().snapshot().generation, 0, "nothing was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_is_accepted_without_a_credential() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    std::fs::write(&path, "controller 0123456789abcdef0123\n").unwrap();
    let tokens: Arc<dyn Authenticate> = Arc::new(KeyFile::open(path.clone()).unwrap());
    let server = AdminServer::with("", never(), |_| AdminAccess::Tokens(vec![tokens])).await;
    let routes = [
        ("GET", "/admin/v1/models"),
        ("GET", "/admin/v1/events"),
        ("POST", "/admin/v1/models/org%2Ftiny/load"),
        ("POST", "/admin/v1/models/org%2Ftiny/unload"),
    ];
    for (method, path) in routes {
        let answer = server.ask(method, path, "", "").await;
        answer.is_error(401, "unauthenticated");
        assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
        for wrong in ["Bearer 0123456789abcdef0124", "Bearer ", "Basic 0123456789abcdef0123", "0123456789abcdef0123"] {
            server.ask(method, path, &format!("Authorization: {wrong}\r\n"), "").await.is_error(401, "invalid_token");
        }
    }
    assert_eq!(server.models.default_model().snapshot().generation, 0);
    assert_eq!(server.get("/metrics").await.status, 200);
    let load = "/admin/v1/models/org%2Ftiny/load";
    let with = |token: &str| format!("Authorization: Bearer {token}\r\n");
    assert_eq!(server.ask("POST", load, &with("0123456789abcdef0123"), "").await.status, 200);
    // A new token, and the old one is worth nothing.
    std::fs::write(&path, "controller fedcba98765432100123\n").unwrap();
    let deadline = std::time::Instant::now() + DEADLINE;
    while server.ask("POST", load, &with("fedcba98765432100123"), "").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "the new token is not taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.ask("POST", load, &with("0123456789abcdef0123"), "").await.is_error(401, "invalid_token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_configured_only_this_machine_is_served_and_no_browser() {
    let open = AdminServer::with("", never(), |_| AdminAccess::new(Vec::new(), "0.0.0.0".parse().unwrap())).await;
    for path in ["/admin/v1/models", "/admin/v1/events"] {
        let error = open.get(path).await.is_error(403, "forbidden");
        assert!(error.message.contains("--admin-token-file"), "{}", error.message);
    }
    open.command("load", "{}").await.is_error(403, "forbidden");
    assert_eq!(open.models.default_model().snapshot().generation, 0);

    let local = AdminServer::new("", never()).await;
    let load = "/admin/v1/models/org%2Ftiny/load";
    local.ask("POST", load, "Origin: http://evil.example\r\n", "").await.is_error(403, "forbidden");
    let rebound =
        format!("POST {load} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    local.send(&rebound).await.is_error(403, "forbidden");
    // What only reads is read by no page either.
    for path in ["/admin/v1/models", "/admin/v1/events"] {
        let rebound = format!("GET {path} HTTP/1.1\r\nHost: evil.example:9001\r\nConnection: close\r\n\r\n");
        local.send(&rebound).await.is_error(403, "forbidden");
        for header in ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"] {
            local.ask("GET", path, &format!("{header}\r\n"), "").await.is_error(403, "forbidden");
        }
    }
    assert_eq!(
        local.ask("GET", "/admin/v1/models", "Sec-Fetch-Site: none\r\n", "").await.status,
        200,
        "typed by a person"
    );
    assert_eq!(local.models.default_model().snapshot().generation, 0);
}

/// Server-sent events as a browser reads them.
struct EventReader {
    lines: BufReader<TcpStream>,
}

impl EventReader {
    async fn open(server: &AdminServer) -> Self {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("GET /admin/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { lines: BufReader::new(stream) }
    }

    /// `None` at the end of the stream.
    async fn next(&mut self) -> Option<(u64, AdminEvent)> {
        let (mut id, mut name, mut retry) = (None, None, None);
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line);
            if tokio::time::timeout(DEADLINE, read).await.expect("no event").unwrap() == 0 {
                return None;
            }
            let line = line.trim_end();
            if let Some(value) = line.strip_prefix("id: ") {
                id = value.parse().ok();
            } else if let Some(value) = line.strip_prefix("event: ") {
                name = Some(value.to_owned());
            } else if let Some(value) = line.strip_prefix("retry: ") {
                retry = value.parse::<u64>().ok();
            } else if let Some(data) = line.strip_prefix("data: ") {
                let event: AdminEvent = serde_json::from_str(data).unwrap();
                assert_eq!(name.as_deref(), Some(event.name()));
                assert_eq!(retry.unwrap_or(2000), 2000);
                return Some((id.unwrap_or_default(), event));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_seen_in_order() {
    let server = AdminServer::new("", never()).await;
    let mut events = EventReader::open(&server).await;
    let Some((first, AdminEvent::Snapshot { models })) = events.next().await else { panic!("no snapshot first") };
    assert_eq!((models.len(), models[0].state), (1, ModelState::Unloaded));
    server.command("load", "{}").await;
    server.command("unload", r#"{"hold_seconds":60}"#).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&ModelState::Unloaded) {
        let Some((id, AdminEvent::Model { from, model })) = events.next().await else { panic!("no change") };
        assert_eq!(id, first + 1 + seen.len() as u64);
        assert_eq!(from, seen.last().copied().unwrap_or(ModelState::Unloaded));
        seen.push(model.state);
    }
    use ModelState::{Loading, Ready, Unloaded, Unloading};
    assert_eq!(seen, [Loading, Ready, Unloading, Unloaded]);
    // The end of the server ends the stream at once.
    server.stop.cancel();
    assert!(events.next().await.is_none());
    tokio::time::timeout(DEADLINE, server.served).await.unwrap().unwrap();
}

/// Without a socket, whose buffers would hold thousands of events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_told_what_it_lost_and_begins_again() {
    let server = AdminServer::new("", never()).await;
    let model = server.models.default_model();
    model.load().await.unwrap();
    let access = AdminAccess::new(Vec::new(), server.address.ip());
    let state = ServerAdminState::new(Arc::clone(&server.models), access, CancellationToken::new());
    let router = admin::router(state, Arc::new(ServerMetrics::new().unwrap()));
    let request = Request::get("/admin/v1/events").extension(ConnectionPeer { address: server.address });
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let mut next = async || {
        let frame = String::from_utf8(body.next().await.unwrap().unwrap().to_vec()).unwrap();
        let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        serde_json::from_str::<AdminEvent>(data).unwrap()
    };
    assert!(matches!(next().await, AdminEvent::Snapshot { .. }));
    let before = server.models.feed().last_id();
    // Each makes two changes: busy, idle.
    while server.models.feed().last_id() < before + 300 {
        model.gather(audio(1), work(""), None).await.unwrap();
    }
    until("the model is idle", || model.snapshot().inflight == 0).await;
    let AdminEvent::Lost { count } = next().await else { panic!("no word of the loss") };
    assert!(count >= 300 - 256, "{count}");
    let AdminEvent::Snapshot { models } = next().await else { panic!("no snapshot after the loss") };
    assert_eq!((models[0].state, models[0].inflight), (ModelState::Ready, 0));
    model.gather(audio(1), work(""), None).await.unwrap();
    assert!(matches!(next().await, AdminEvent::Model { model, .. } if model.inflight + model.queued == 1));
}
