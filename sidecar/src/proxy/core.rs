//! What happens to one request, from its head to the head of its answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use hush_listener::open_files::FilePermit;
use hush_listener::{ConnectionLimit, ConnectionPeer, PROBE_PATHS, REQUEST_ID, RequestPhase, request_id, spool};
use hush_residency::AcquireError;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::answer::{AnswerTimers, BrokenOff, ForwardedBody, OwnBody};
use super::attribution::{BodyScanner, query_parameter, query_without};
use super::client_stall::ClientStallLimit;
use super::connection::PendingTunnel;
use super::earlier_requests::EarlierRequests;
use super::error::ProxyError;
use super::headers::{self, ClientFacts};
use super::idle_watch::{AppIdleWatch, ExchangeGuard, UntilIdle};
use super::intake::{BodyIntake, IntakeSettings, OutgoingBody};
use super::kept_answers::{AnswerCopy, KeptAnswers, KeptKey};
use super::metrics::ProxyMetrics;
use super::models::{HeldLease, LeasedModel, ModelNames};
use super::record::ProxyRequestRecord;
use super::routes::{RequestRoutes, classify};
use super::settings::ProxySettings;
use super::tunnel::{OpenSocket, SocketUse, SocketWork, Tunnel};
use crate::app::{BodyCommand, ModelNameSource, RouteClass, RouteMatch};
use crate::status::AppStatus;
use crate::upstream::{Upstream, UpstreamAnswer};

/// What all requests share.
pub struct ProxyCore {
    pub names: ModelNames,
    pub routes: Arc<dyn RequestRoutes>,
    pub upstream: Upstream,
    pub status: watch::Receiver<AppStatus>,
    pub settings: ProxySettings,
    pub intake: Arc<IntakeSettings>,
    pub kept: Arc<KeptAnswers>,
    pub earlier: EarlierRequests,
    pub idle: Arc<AppIdleWatch>,
    pub metrics: ProxyMetrics,
    /// Cancelled when the shutdown begins.
    pub shutdown: CancellationToken,
}

/// What the requests of one connection share.
#[derive(Clone)]
pub struct ConnectionContext {
    pub peer: ConnectionPeer,
    /// `http` or `https`.
    pub scheme: &'static str,
    pub limit: ConnectionLimit,
    pub phase: RequestPhase,
    pub broken_off: BrokenOff,
    pub stall: ClientStallLimit,
    pub tunnel: PendingTunnel,
}

/// A request that is being served.
struct Exchange {
    head: Parts,
    route: RouteMatch,
    is_upgrade: bool,
    id: HeaderValue,
    record: ProxyRequestRecord,
    /// The limit for the whole request, and when it ends.
    limit: Option<(Duration, Instant)>,
}

impl Exchange {
    /// Path and query as the app gets them.
    fn target(&self) -> String {
        let path = self.head.uri.path();

        let removed = &self.route.removed_parameters;
        let query = match self.head.uri.query() {
            Some(query) if !removed.is_empty() => query_without(query, removed),
            query => query.map(str::to_owned),
        };
        match query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }

    fn kept_key(&self) -> Option<KeptKey> {
        let is_list = self.route.class == RouteClass::NotWork && !self.is_upgrade;
        is_list.then(|| KeptKey::new(&self.head.method, &self.target(), &self.head.headers))?
    }
}

/// What a request is answered with.
enum ForwardOutcome {
    Forwarded {
        answer: UpstreamAnswer,
        guard: ExchangeGuard,
        copy: Option<AnswerCopy>,
    },
    Kept(Response),
    /// A socket whose handshake the app has accepted.
    Socket {
        answer: UpstreamAnswer,
        app: OnUpgrade,
        client: OnUpgrade,
        socket_use: SocketUse,
        /// That of the connection to the app.
        file: Option<FilePermit>,
    },
}

impl ProxyCore {
    /// Answers a request. Dropping the future, or the body of the answer, cancels the request in the app.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, connection: ConnectionContext) -> Response {
        let (head, body) = request.into_parts();
        let id = request_id(&head.headers);

        if let Some(probe) = PROBE_PATHS.into_iter().find(|probe| *probe == head.uri.path()) {
            let record = ProxyRequestRecord::new(self.metrics.clone(), &id, probe.to_owned(), head.method.clone());
            return own(self.probe(probe, &head.method).await, record, &id);
        }

        let is_upgrade = head.method == Method::GET
            && head.version == Version::HTTP_11
            && headers::is_websocket_upgrade(&head.headers);
        let route = classify(&*self.routes, &head.method, head.uri.path(), head.uri.query(), is_upgrade);
        let mut record =
            ProxyRequestRecord::new(self.metrics.clone(), &id, route.template.clone(), head.method.clone());
        record.stall = Some(connection.stall.clone());
        let span = record.span().clone();
        let limit = self.settings.request_timeout.map(|limit| (limit, Instant::now() + limit));
        let mut exchange = Exchange { head, route, is_upgrade, id, record, limit };

        let outcome = self.outcome_in_time(&mut exchange, body, &connection).instrument(span).await;
        self.respond(outcome, exchange, &connection)
    }

    async fn outcome_in_time(
        &self,
        exchange: &mut Exchange,
        body: Incoming,
        connection: &ConnectionContext,
    ) -> Result<ForwardOutcome, ProxyError> {
        match exchange.limit {
            None => self.outcome(exchange, body, connection).await,
            Some((limit, until)) => timeout_at(until, self.outcome(exchange, body, connection))
                .await
                .unwrap_or(Err(ProxyError::RequestTimeout { seconds: limit.as_secs() })),
        }
    }

    async fn outcome(
        &self,
        exchange: &mut Exchange,
        body: Incoming,
        connection: &ConnectionContext,
    ) -> Result<ForwardOutcome, ProxyError> {
        let Exchange { head, route, .. } = &*exchange;
        // `TRACE` would show the credentials that other proxies added; `CONNECT` is for another kind of proxy.
        if matches!(head.method, Method::TRACE | Method::CONNECT) {
            return Err(ProxyError::Method(head.method.clone()));
        }
        if !head.uri.path().starts_with('/') {
            return Err(ProxyError::Target);
        }

        match route.class {
            RouteClass::Closed => Err(ProxyError::Closed),
            RouteClass::Work => self.work(exchange, body, connection).await,
            RouteClass::NotWork => self.not_work(exchange, body, connection, None).await,
            RouteClass::NotWorkLoadedOnly => {
                let visit = self.visit_model(exchange).await?;
                self.not_work(exchange, body, connection, visit).await
            }
            RouteClass::DisplaySocket | RouteClass::WorkSocket => self.socket(exchange, connection).await,
        }
    }

    /// A request that uses a model: the body is read while it waits, and goes on to the app from where it is.
    async fn work(
        &self,
        exchange: &mut Exchange,
        body: Incoming,
        connection: &ConnectionContext,
    ) -> Result<ForwardOutcome, ProxyError> {
        self.check_suitable()?;
        let scanner = BodyScanner::new(&exchange.route, &exchange.head.headers)?;
        scanner.check_encoding(&exchange.head.headers).map_err(ProxyError::Compressed)?;
        let mut intake = BodyIntake::new(body, &exchange.head.headers, scanner, Arc::clone(&self.intake))?;
        intake.read_until_decided().await?;
        // The other command, to load, waits for the model as work does.
        if intake.scanner().command() == Some(BodyCommand::Unload) {
            return Err(ProxyError::Closed);
        }

        let Some(model) = self.find_model(exchange, intake.scanner().model())? else {
            let mut guard = ExchangeGuard::new(None, None);
            let answer = self.forward(exchange, intake.into_outgoing().await?, &mut guard, connection).await?;
            return Ok(ForwardOutcome::Forwarded { answer, guard, copy: None });
        };
        let cold_hold = self.settings.cold_hold.filter(|_| !exchange.route.waits_forever);
        self.note_earlier(&exchange.head.headers, model.name());
        let lease = wait_for_lease(&*model, &mut intake, cold_hold).await?;
        exchange.record.note_lease(&lease);

        let until_idle = exchange.route.ends_when_app_is_idle.then(|| {
            let (watch, model) = (Arc::clone(&self.idle), model.name().to_owned());
            UntilIdle { watch, model }
        });
        let mut guard = ExchangeGuard::new(Some(lease), until_idle);
        let outgoing = intake.into_outgoing().await?;
        let answer = self.forward(exchange, outgoing, &mut guard, connection).await?;
        Ok(ForwardOutcome::Forwarded { answer, guard, copy: None })
    }

    /// The right to a request that would load a model that is not in memory: no unload begins before it is dropped.
    /// `None`: the model runs elsewhere.
    async fn visit_model(&self, exchange: &mut Exchange) -> Result<Option<HeldLease>, ProxyError> {
        let Some(model) = self.find_model(exchange, None)? else { return Ok(None) };

        match model.visit().await {
            Some(visit) => Ok(Some(visit)),
            None => Err(ProxyError::Away { model: model.name().to_owned(), retry_after: model.retry_after() }),
        }
    }

    /// A request that counts as nothing. `visit` ends with its answer.
    async fn not_work(
        &self,
        exchange: &mut Exchange,
        body: Incoming,
        connection: &ConnectionContext,
        visit: Option<HeldLease>,
    ) -> Result<ForwardOutcome, ProxyError> {
        let key = exchange.kept_key();
        let kept = |error| match key.as_ref().and_then(|key| self.kept.get(key)) {
            Some(response) => Ok(ForwardOutcome::Kept(response)),
            None => Err(error),
        };
        if let Err(error) = self.check_running() {
            return kept(error);
        }

        let outgoing = if exchange.route.removed_members.is_empty() {
            OutgoingBody::pass_through(body, &exchange.head.headers, self.settings.body_stall)
        } else {
            let scanner = BodyScanner::new(&exchange.route, &exchange.head.headers)?;
            scanner.check_encoding(&exchange.head.headers).map_err(ProxyError::Compressed)?;
            let mut intake = BodyIntake::new(body, &exchange.head.headers, scanner, Arc::clone(&self.intake))?;
            intake.read_to_end().await?;
            intake.into_outgoing().await?
        };

        let mut guard = ExchangeGuard::new(visit, None);
        match self.forward(exchange, outgoing, &mut guard, connection).await {
            Ok(answer) => {
                if headers::is_event_stream(&answer.head.headers) {
                    // It may last for ever, and whatever the request loads is loaded.
                    drop(guard.take_lease());
                }
                let copy = key.and_then(|key| self.kept.copy(key, &answer.head));
                Ok(ForwardOutcome::Forwarded { answer, guard, copy })
            }
            Err(error @ ProxyError::Upstream(_)) => kept(error),
            Err(error) => Err(error),
        }
    }

    async fn socket(
        &self,
        exchange: &mut Exchange,
        connection: &ConnectionContext,
    ) -> Result<ForwardOutcome, ProxyError> {
        let client = hyper::upgrade::on(Request::from_parts(exchange.head.clone(), ()));

        let model = match exchange.route.class {
            RouteClass::WorkSocket => self.find_model(exchange, None)?,
            _ => None,
        };
        let (work, mut guard) = if let Some(model) = model {
            self.check_suitable()?;
            let cold_hold = self.settings.cold_hold.filter(|_| !exchange.route.waits_forever);
            let lease = model.acquire(cold_hold).await.map_err(|cause| refused(&*model, cause))?;
            exchange.record.note_lease(&lease);
            (Some((model, cold_hold)), ExchangeGuard::new(Some(lease), None))
        } else {
            self.check_running()?;
            (None, ExchangeGuard::new(None, None))
        };

        let none = OutgoingBody { body: Body::empty(), len_bytes: None, failure: Default::default() };
        let mut answer = self.forward(exchange, none, &mut guard, connection).await?;
        if answer.head.status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(ForwardOutcome::Forwarded { answer, guard, copy: None });
        }

        let app = answer.head.extensions.remove::<OnUpgrade>().ok_or(ProxyError::UnaskedUpgrade)?;
        let socket_use = match work {
            None => SocketUse::Display,
            Some((model, cold_hold)) => {
                let (lease, socket_idle) = (guard.take_lease(), self.settings.socket_idle);
                SocketUse::Work(SocketWork { model, lease, cold_hold, socket_idle })
            }
        };
        Ok(ForwardOutcome::Socket { answer, app, client, socket_use, file: guard.take_file() })
    }

    /// Sends the request to the app and waits for the head of the answer.
    async fn forward(
        &self,
        exchange: &mut Exchange,
        outgoing: OutgoingBody,
        guard: &mut ExchangeGuard,
        connection: &ConnectionContext,
    ) -> Result<UpstreamAnswer, ProxyError> {
        guard.hold_file(self.settings.files.take(&connection.limit).await.ok_or(ProxyError::NoFile)?);

        let OutgoingBody { body, len_bytes, failure } = outgoing;
        let request = self.outgoing_request(exchange, body, len_bytes, connection)?;

        let forwarded = self.upstream.forward(request, guard.connection());
        let answered = match self.settings.first_byte_timeout {
            None => forwarded.await,
            Some(limit) => match timeout(limit, forwarded).await {
                Ok(answered) => answered,
                Err(_) => {
                    let error = ProxyError::FirstByte { seconds: limit.as_secs() };
                    exchange.record.note_upstream_failure("timed_out", error.to_string());
                    return Err(error);
                }
            },
        };

        match answered {
            Ok(answer) if answer.head.status == StatusCode::SWITCHING_PROTOCOLS && !exchange.is_upgrade => {
                Err(ProxyError::UnaskedUpgrade)
            }
            Ok(answer) => Ok(answer),
            Err(error) => match failure.take() {
                // The app is not at fault: what the client sent ended the request.
                Some(cause) => Err(ProxyError::Body(cause)),
                None => {
                    let label = error.label();
                    let error = ProxyError::Upstream(error);
                    exchange.record.note_upstream_failure(label, error.to_string());
                    Err(error)
                }
            },
        }
    }

    fn outgoing_request(
        &self,
        exchange: &Exchange,
        body: Body,
        len_bytes: Option<u64>,
        connection: &ConnectionContext,
    ) -> Result<Request<Body>, ProxyError> {
        let head = &exchange.head;
        let mut headers = head.headers.clone();
        let had_length = headers.contains_key(CONTENT_LENGTH);

        let target_host = head.uri.authority().map(http::uri::Authority::as_str);
        let (peer, scheme) = (connection.peer.address, connection.scheme);
        let client = ClientFacts { peer, scheme, request_id: &exchange.id, target_host };
        headers::to_upstream(&mut headers, self.upstream.host(), client, exchange.is_upgrade);
        if let Some(len) = len_bytes
            && (len > 0 || had_length)
        {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
        }

        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = exchange.target().parse::<Uri>().map_err(|_| ProxyError::Target)?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// The model of a request; `None`: it runs elsewhere. `in_body`: the name that its body gives.
    fn find_model(
        &self,
        exchange: &mut Exchange,
        in_body: Option<&str>,
    ) -> Result<Option<Arc<dyn LeasedModel>>, ProxyError> {
        let query = exchange.head.uri.query().unwrap_or_default();
        let in_query = |parameter: &str| query_parameter(query, parameter).map_err(ProxyError::Query);

        let name = match &exchange.route.model {
            ModelNameSource::None => None,
            ModelNameSource::Path { name } => Some(name.clone()),
            ModelNameSource::Query { parameter } => in_query(parameter)?,
            ModelNameSource::Earlier { parameter } => match in_query(parameter)?.and_then(|id| self.earlier.model(&id))
            {
                Some(model) => Some(model),
                None => in_query("model")?,
            },
            ModelNameSource::Body { member } => match in_body {
                Some(name) => Some(name.to_owned()),
                None => in_query(member)?,
            },
        };
        if name.as_deref().is_some_and(|name| !self.routes.governs(name)) {
            return Ok(None);
        }
        let model = self.names.find(name.as_deref(), &*self.routes).map_err(ProxyError::UnknownModel)?;
        exchange.record.model = Some(model.name().to_owned());
        Ok(Some(model))
    }

    /// Remembers the model of a request that a later one may refer to.
    fn note_earlier(&self, headers: &HeaderMap, model: &str) {
        let Some(header) = self.routes.earlier_header() else { return };

        if let Some(id) = headers.get(header).and_then(|id| id.to_str().ok()) {
            self.earlier.note(id, model);
        }
    }

    /// An app that cannot be governed gets no work, because nothing is known of its memory.
    fn check_suitable(&self) -> Result<(), ProxyError> {
        match &*self.status.borrow() {
            AppStatus::Unsuitable { cause } => Err(ProxyError::Unsuitable { cause: cause.clone() }),
            AppStatus::Running { .. } | AppStatus::Stopped | AppStatus::Unreachable { .. } => Ok(()),
        }
    }

    fn check_running(&self) -> Result<(), ProxyError> {
        let cause = match &*self.status.borrow() {
            AppStatus::Running { .. } | AppStatus::Unsuitable { .. } => return Ok(()),
            AppStatus::Stopped => "its model is not loaded; a request that uses the model starts it".to_owned(),
            AppStatus::Unreachable { cause } => cause.clone(),
        };
        Err(ProxyError::NotRunning { cause })
    }

    fn respond(
        &self,
        outcome: Result<ForwardOutcome, ProxyError>,
        exchange: Exchange,
        on: &ConnectionContext,
    ) -> Response {
        let Exchange { head, id, mut record, is_upgrade, limit, .. } = exchange;

        match outcome {
            Err(error) => {
                record.failure.get_or_insert_with(|| error.to_string());
                own(error.into_response(head.uri.path()), record, &id)
            }
            Ok(ForwardOutcome::Kept(response)) => {
                record.is_kept = true;
                own(response, record, &id)
            }
            Ok(ForwardOutcome::Forwarded { answer: UpstreamAnswer { head: mut answer, body }, guard, copy }) => {
                record.code = answer.status.as_u16();
                headers::to_client(&mut answer.headers, &id, false);
                let has_body = head.method != Method::HEAD && answer.status != StatusCode::NOT_MODIFIED;
                if has_body && hyper::body::Body::size_hint(&body).exact().is_none() {
                    // Without a length of its own, the body is sent in chunks.
                    answer.headers.remove(CONTENT_LENGTH);
                }

                answer.version = Version::HTTP_11;
                answer.extensions.clear();
                let timers = AnswerTimers::new(self.settings.between_bytes_timeout, limit);
                let broken_off = (head.version == Version::HTTP_10).then(|| on.broken_off.clone());
                let body = Some(body);
                let activity = self.settings.activity.clone();
                activity.record();
                let body = ForwardedBody { body, guard, record, timers, copy, activity, broken_off, failure: None };
                Response::from_parts(answer, body.into_body())
            }
            Ok(ForwardOutcome::Socket { answer, app, client, socket_use, file }) => {
                let UpstreamAnswer { head: mut answer, .. } = answer;
                record.code = answer.status.as_u16();
                headers::to_client(&mut answer.headers, &id, is_upgrade);
                let kind = if matches!(socket_use, SocketUse::Display) { "display" } else { "work" };
                let open = OpenSocket::new(self.metrics.open_websockets.with_label_values(&[kind]));
                let (in_request, shutdown) = (on.phase.begin(), self.shutdown.clone());
                let activity = self.settings.activity.clone();
                on.tunnel.set(Tunnel { client, app, socket_use, record, open, in_request, shutdown, activity, file });
                Response::from_parts(answer, Body::empty())
            }
        }
    }

    async fn probe(&self, path: &str, method: &Method) -> Response {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return ProxyError::Method(method.clone()).into_response(path);
        }
        if path == "/healthz" {
            return "ok".into_response();
        }

        let mut missing = Vec::new();
        match &*self.status.borrow() {
            AppStatus::Unreachable { cause } => missing.push(format!("the app does not run: {cause}")),
            AppStatus::Unsuitable { cause } => missing.push(format!("the app cannot be governed: {cause}")),
            AppStatus::Running { .. } | AppStatus::Stopped => {}
        }
        let dir = self.settings.spool.dir.clone();
        match tokio::task::spawn_blocking(move || spool::check_folder(dir.as_deref())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => missing.push(error.to_string()),
            Err(error) => missing.push(format!("the folder for bodies could not be looked at: {error}")),
        }

        if missing.is_empty() {
            return "ok".into_response();
        }
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")).into_response()
    }
}

fn refused(model: &dyn LeasedModel, cause: AcquireError) -> ProxyError {
    ProxyError::Acquire { model: model.name().to_owned(), cause }
}

/// Waits for the model, and reads the body meanwhile. The wait counts from the end of the body.
async fn wait_for_lease(
    model: &dyn LeasedModel,
    intake: &mut BodyIntake,
    cold_hold: Option<Duration>,
) -> Result<HeldLease, ProxyError> {
    loop {
        let was_complete = intake.is_complete();
        let mut acquiring = model.acquire(cold_hold);

        let acquired = loop {
            tokio::select! {
                biased;
                acquired = &mut acquiring => break acquired,
                read = intake.read_piece(), if !intake.is_complete() => read?,
            }
        };
        match acquired {
            Ok(lease) => return Ok(lease),
            Err(AcquireError::ColdHold { .. }) if !was_complete => {
                drop(acquiring);
                intake.read_to_end().await?;
            }
            Err(cause) => return Err(refused(model, cause)),
        }
    }
}

/// An answer that the proxy gives itself.
fn own(response: Response, mut record: ProxyRequestRecord, id: &HeaderValue) -> Response {
    let (mut head, body) = response.into_parts();

    record.code = head.status.as_u16();
    head.headers.insert(REQUEST_ID, id.clone());
    Response::from_parts(head, OwnBody { body, record }.into_body())
}
