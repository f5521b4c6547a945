//! Traces of requests, as a collector of OpenTelemetry receives them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use hush_tests::{Server, ServerOptions, fixtures, http, wait::wait_for};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const SOON: Duration = Duration::from_secs(60);

/// Keeps what is sent to `/v1/traces`.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<ResourceSpans>>>,
    _runtime: Runtime,
}

impl Collector {
    fn start() -> Result<Self> {
        let runtime = Runtime::new()?;
        let received = Arc::<Mutex<Vec<ResourceSpans>>>::default();
        let kept = Arc::clone(&received);
        let take = async move |body: Bytes| match ExportTraceServiceRequest::decode(body) {
            Ok(request) => {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend(request.resource_spans);
                StatusCode::OK
            }
            Err(_) => StatusCode::BAD_REQUEST,
        };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let routes = Router::new().route("/v1/traces", post(take));
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Ok(Self { address, received, _runtime: runtime })
    }

    fn received(&self) -> Vec<ResourceSpans> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn spans(&self) -> Vec<Span> {
        self.received().into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
    }
}

fn start(endpoint: &str) -> Result<Server> {
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Server::start_with(ServerOptions { env, ..ServerOptions::default() })
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    span.attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.clone()
}

#[test]
fn a_request_is_a_span_below_its_clients_and_its_phases_are_below_it() -> Result<()> {
    let collector = Collector::start()?;
    let server = start(&format!("http://{}", collector.address))?;
    let upload = http::upload_bytes(server.api, "/asr?language=en", "en-1.wav", &fixtures::audio("en-1.wav")?);
    let head = b"POST /asr?language=en HTTP/1.1\r\n";
    ensure!(upload.starts_with(head), "another first line");
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let own = format!("traceparent: 00-{trace}-{parent}-01\r\nX-Request-Id: r-1\r\n");
    let request = [&head[..], own.as_bytes(), &upload[head.len()..]].concat();
    assert_eq!(http::exchange(server.api, &request)?.status, 200);

    let spans = wait_for("the spans", SOON, || {
        let spans = collector.spans();
        Ok(spans.iter().any(|span| span.name == "POST /asr").then_some(spans))
    })?;
    let whole = spans.iter().find(|span| span.name == "POST /asr").context("no span")?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&whole.trace_id), hex(&whole.parent_span_id)), (trace.to_owned(), parent.to_owned()));
    assert_eq!(attribute(whole, "http.response.status_code"), Some(Value::IntValue(200)));
    assert_eq!(attribute(whole, "hush.model"), Some(Value::StringValue(fixtures::MODEL.to_owned())));
    assert_eq!(attribute(whole, "hush.request_id"), Some(Value::StringValue("r-1".to_owned())));
    for phase in ["upload", "decode audio", "cold start", "first window", "decode"] {
        let span = spans.iter().find(|span| span.name == phase).with_context(|| format!("no {phase}"))?;
        assert_eq!((&span.trace_id, &span.parent_span_id), (&whole.trace_id, &whole.span_id), "{phase}");
        assert!(whole.start_time_unix_nano <= span.start_time_unix_nano, "{phase} begins too early");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{phase} ends before it begins");
        assert!(span.end_time_unix_nano <= whole.end_time_unix_nano, "{phase} ends too late");
    }
    let resource = collector.received().into_iter().next().and_then(|r| r.resource).context("no resource")?;
    let service = resource.attributes.iter().find(|pair| pair.key == "service.name").context("no name")?;
    let name = service.value.as_ref().and_then(|value| value.value.clone());
    assert_eq!(name, Some(Value::StringValue("hush-server".to_owned())));
    // Who reads the log finds the trace.
    let line = server.log().into_iter().rfind(|line| line.contains("\"answered\"") && line.contains("r-1"));
    assert!(line.context("no line")?.contains(trace));
    Ok(())
}

#[test]
fn without_its_collector_the_server_works_on_and_says_so() -> Result<()> {
    // A port without a listener.
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = start(&format!("http://{address}"))?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    wait_for("a word on the export", SOON, || {
        Ok(server.log().iter().any(|line| line.contains("opentelemetry") && line.contains("rror")).then_some(()))
    })?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    Ok(())
}

#[test]
fn what_is_left_is_sent_at_the_end() -> Result<()> {
    let collector = Collector::start()?;
    let env =
        vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT".to_owned(), format!("http://{}/v1/traces", collector.address))];
    let mut server = Server::start_with(ServerOptions { env, ..ServerOptions::default() })?;
    assert_eq!(http::get(server.api, "/status")?.status, 200);
    hush_tests::process::send(server.pid(), rustix::process::Signal::TERM)?;
    assert!(server.wait_for_exit(SOON)?.success());
    assert!(collector.spans().iter().any(|span| span.name == "GET /status"));
    Ok(())
}
