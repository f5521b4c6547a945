//! Requests that the sidecar makes to an app that it started: the probe and the first request that warms it up.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::settings::{ReadinessProbe, WarmRequest};

/// Until the app is ready, and how long one probe may take.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Afterwards. A busy app may take longer for its answer.
const LONGEST_LIVENESS_INTERVAL: Duration = Duration::from_secs(5);

/// How much of the answer to a failed request is quoted.
const QUOTED_CHARS: usize = 300;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeOutcome {
    Ready,
    /// The app answers, and is not ready.
    Answered(StatusCode),
    Silent {
        why: String,
    },
}

/// A request to the app that has failed.
#[derive(Debug, thiserror::Error)]
enum AppCallError {
    #[error("port {port} does not accept connections: {source}")]
    Connect { port: u16, source: std::io::Error },
    #[error("the app breaks the connection: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("{status}: {text}")]
    Status { status: StatusCode, text: String },
}

/// Probes the app until it is ready, then goes on for as long as it is observed, and reports what each probe found. A text
/// in the log is not probed.
pub(super) async fn probe_forever(
    probe: ReadinessProbe,
    port: u16,
    hang_timeout: Option<Duration>,
    report: impl Fn(ProbeOutcome),
) {
    if matches!(probe, ReadinessProbe::LogLine { .. }) {
        return;
    }

    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = probe_once(&probe, port, PROBE_TIMEOUT).await;
        let is_ready = outcome == ProbeOutcome::Ready;
        report(outcome);
        if is_ready {
            break;
        }
    }

    let Some(hang_timeout) = hang_timeout else { return };
    let period = (hang_timeout / 4).clamp(Duration::from_millis(50), LONGEST_LIVENESS_INTERVAL);
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        report(probe_once(&probe, port, hang_timeout.min(LONGEST_LIVENESS_INTERVAL)).await);
    }
}

async fn probe_once(probe: &ReadinessProbe, port: u16, limit: Duration) -> ProbeOutcome {
    let asked = async {
        match probe {
            ReadinessProbe::Http { path } => get_status(port, path).await,
            ReadinessProbe::Tcp | ReadinessProbe::LogLine { .. } => connect(port).await.map(|_| StatusCode::OK),
        }
    };

    match timeout(limit, asked).await {
        Ok(Ok(StatusCode::OK)) => ProbeOutcome::Ready,
        Ok(Ok(status)) => ProbeOutcome::Answered(status),
        Ok(Err(error)) => ProbeOutcome::Silent { why: error.to_string() },
        Err(_) => ProbeOutcome::Silent { why: format!("no answer within {} s", limit.as_secs_f64()) },
    }
}

async fn get_status(port: u16, path: &str) -> Result<StatusCode, AppCallError> {
    let request = Request::get(path).body(Full::default())?;
    // The body is of no interest, and the connection ends with the answer.
    Ok(send(port, request).await?.status())
}

/// Sends the first request, and reads its answer to the end.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn warm_up(port: u16, warm: &WarmRequest) -> Result<(), String> {
    let name = format!("the warm-up request {} {}", warm.method, hush_log::printable(&warm.path, 200));
    send_warm_up(port, warm).await.map_err(|error| format!("{name} failed: {error}"))
}

async fn send_warm_up(port: u16, warm: &WarmRequest) -> Result<(), AppCallError> {
    let mut request = Request::builder().method(warm.method.clone()).uri(&warm.path);
    for (name, value) in &warm.headers {
        request = request.header(name, value);
    }
    let body = match &warm.body {
        Some(body) => {
            request = request.header(CONTENT_TYPE, "application/json");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };

    let answer = send(port, request.body(Full::new(body))?).await?;
    let status = answer.status();
    let mut start = Vec::new();
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && start.len() < QUOTED_CHARS
        {
            start.extend_from_slice(&data[..data.len().min(4 * QUOTED_CHARS)]);
        }
    }

    if status.is_success() {
        return Ok(());
    }
    let text = hush_log::printable(&String::from_utf8_lossy(&start), QUOTED_CHARS);
    Err(AppCallError::Status { status, text })
}

async fn connect(port: u16) -> Result<TcpStream, AppCallError> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect(address).await.map_err(|source| AppCallError::Connect { port, source })
}

/// The request on a connection of its own, which is closed after the answer.
async fn send(port: u16, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, AppCallError> {
    let host = format!("127.0.0.1:{port}");
    if let Ok(host) = host.parse() {
        request.headers_mut().insert(HOST, host);
    }
    request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("close"));

    let stream = TokioIo::new(connect(port).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Ends with the connection, at the latest when the answer is dropped.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
