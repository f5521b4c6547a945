//! Many stand-ins for `hush-server` in one process: they speak the contract over HTTP, hold scripted memory on scripted
//! GPUs, obey conditional commands, and remember when each arrived. For figures of a controller over a large fleet; what
//! a server really does is tested with real ones.
//!
//! Each has an address of its own in 127.0.0.0/8 on one port, as pods have.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected, MockConnectInfo};
use axum::extract::{Json, Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use hush_contract::admin::{AdminErrorBody, UnloadOutcome, UnloadRequest, UnloadResponse};
use hush_contract::{ModelState, UnloadRefusal, metrics as names};
use tokio::net::TcpListener;

/// The model of every stand-in.
pub const MODEL: &str = "turbo";

/// A credential that was shown to a stand-in, with whatever request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownCredential {
    pub server: usize,
    /// The path of the request.
    pub path: String,
    /// The value of `Authorization`.
    pub authorization: String,
}

/// A command that a stand-in received.
#[derive(Clone, Debug)]
pub struct ReceivedCommand {
    pub at: Instant,
    pub server: usize,
    pub request: UnloadRequest,
    /// How long its model had been idle.
    pub idle: Duration,
    /// Whether it was carried out.
    pub accepted: bool,
}

#[derive(Clone, Debug)]
struct StandInState {
    gpu: usize,
    vram_bytes: u64,
    loaded: bool,
    generation: u64,
    idle_since: Instant,
    lie: Option<Lie>,
}

/// What a hostile stand-in does with a command: it says that it has unloaded the model and given back more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Nothing changes.
    Stays,
    /// The model is there again at once, as if it had been loaded anew.
    Returns,
}

#[derive(Clone, Debug)]
struct StandInGpu {
    total_bytes: u64,
    foreign_bytes: u64,
}

#[derive(Debug, Default)]
struct FleetState {
    members: Vec<StandInState>,
    cards: Vec<StandInGpu>,
    received: Vec<ReceivedCommand>,
    shown: Vec<ShownCredential>,
    /// Requests of any kind, by stand-in.
    requests: BTreeMap<usize, usize>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct StandInFleet {
    inner: Arc<Mutex<FleetState>>,
    port: u16,
}

/// The address that a client connected to says which stand-in it means.
#[derive(Clone, Copy, Debug)]
struct StandInIndex(usize);

impl Connected<IncomingStream<'_, TcpListener>> for StandInIndex {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let ip = stream.io().local_addr().map(|address| address.ip()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        match ip {
            IpAddr::V4(ip) => Self(index(ip)),
            IpAddr::V6(_) => Self(0),
        }
    }
}

/// 127.1.0.0 is the first.
fn address(index: usize) -> Ipv4Addr {
    let [_, high, middle, low] = u32::try_from(index).unwrap_or(0).to_be_bytes();
    Ipv4Addr::new(127, high + 1, middle, low)
}

fn index(ip: Ipv4Addr) -> usize {
    let [_, high, middle, low] = ip.octets();
    u32::from_be_bytes([0, high.saturating_sub(1), middle, low]) as usize
}

impl StandInFleet {
    /// `servers` stand-ins with one loaded model each, spread evenly over `gpus` cards. Needs a runtime.
    pub async fn start(servers: usize, gpus: usize, total_bytes: u64, vram_bytes: u64) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0))).await?;
        let port = listener.local_addr()?.port();
        let now = Instant::now();
        let member =
            |n| StandInState { gpu: n % gpus, vram_bytes, loaded: true, generation: 1, idle_since: now, lie: None };
        let members = (0..servers).map(member).collect();
        let cards = vec![StandInGpu { total_bytes, foreign_bytes: 0 }; gpus];
        let inner = Arc::new(Mutex::new(FleetState { members, cards, ..FleetState::default() }));
        let fleet = Self { inner, port };
        let router = fleet.routes();
        tokio::spawn(async move {
            // It ends with the runtime.
            let _ = axum::serve(listener, router.into_make_service_with_connect_info::<StandInIndex>()).await;
        });
        Ok(fleet)
    }

    fn routes(&self) -> Router {
        Router::new()
            .route(names::PATH, get(scrape))
            .route("/admin/v1/models/{model}/unload", post(unload))
            .layer(middleware::from_fn_with_state(self.clone(), note))
            .with_state(self.clone())
    }

    /// One stand-in alone, for a listener of the test's own.
    pub fn router_of(&self, server: usize) -> Router {
        self.routes().layer(MockConnectInfo(StandInIndex(server)))
    }

    pub fn url(&self, server: usize) -> String {
        format!("http://{}", self.address(server))
    }

    pub fn address(&self, server: usize) -> SocketAddr {
        SocketAddr::from((address(server), self.port))
    }

    /// What others than the stand-ins hold on a card, from now on.
    pub fn set_foreign(&self, gpu: usize, bytes: u64) {
        self.with(|inner| inner.cards[gpu].foreign_bytes = bytes);
    }

    /// From now on this stand-in lies.
    pub fn set_lie(&self, server: usize, lie: Lie) {
        self.with(|inner| inner.members[server].lie = Some(lie));
    }

    /// Every model is back, and idle since now.
    pub fn load_all(&self) {
        self.with(|inner| {
            for member in inner.members.iter_mut().filter(|member| !member.loaded) {
                member.loaded = true;
                member.generation += 1;
                member.idle_since = Instant::now();
            }
        });
    }

    pub fn gpu_of(&self, server: usize) -> usize {
        self.with(|inner| inner.members[server].gpu)
    }

    /// Every command since the last call, in the order of arrival.
    pub fn take_received(&self) -> Vec<ReceivedCommand> {
        self.with(|inner| std::mem::take(&mut inner.received))
    }

    /// Every credential since the last call, in the order of arrival.
    pub fn take_shown(&self) -> Vec<ShownCredential> {
        self.with(|inner| std::mem::take(&mut inner.shown))
    }

    /// How many requests of any kind this stand-in received so far.
    pub fn requests(&self, server: usize) -> usize {
        self.with(|inner| inner.requests.get(&server).copied().unwrap_or(0))
    }

    fn with<T>(&self, work: impl FnOnce(&mut FleetState) -> T) -> T {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FleetState {
    fn text(&self, server: usize) -> String {
        let member = &self.members[server];
        let card = &self.cards[member.gpu];
        let held = |m: &StandInState| if m.loaded { m.vram_bytes } else { 0 };
        let ours: u64 = self.members.iter().filter(|m| m.gpu == member.gpu).map(held).sum();
        let used = card.total_bytes.min(ours + card.foreign_bytes);
        let state_now = if member.loaded { ModelState::Ready } else { ModelState::Unloaded };
        let idle = if member.loaded { member.idle_since.elapsed().as_secs_f64() } else { 0.0 };
        let uuid = format!("GPU-{:08}", member.gpu);
        let mut text = String::with_capacity(2048);
        let mut line = |name: &str, labels: &str, value: f64| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        };
        let of_model = format!("model=\"{MODEL}\"");
        for state in ModelState::ALL {
            let value = if state == state_now { 1.0 } else { 0.0 };
            line(names::MODEL_STATE, &format!("{of_model},state=\"{}\"", state.as_str()), value);
        }
        line(names::MODEL_IDLE_SECONDS, &of_model, idle);
        line(names::MODEL_LOADED_SECONDS, &of_model, idle);
        line(names::MODEL_INFLIGHT_REQUESTS, &of_model, 0.0);
        line(names::MODEL_QUEUED_REQUESTS, &of_model, 0.0);
        line(names::MODEL_GENERATION, &of_model, member.generation as f64);
        let of_both = format!("gpu_uuid=\"{uuid}\",{of_model}");
        line(names::MODEL_VRAM_BYTES, &of_both, held(member) as f64);
        line(names::MODEL_NEED_BYTES, &of_both, member.vram_bytes as f64);
        let of_gpu = format!("gpu_uuid=\"{uuid}\"");
        line(names::GPU_MEMORY_TOTAL_BYTES, &of_gpu, card.total_bytes as f64);
        line(names::GPU_MEMORY_USED_BYTES, &of_gpu, used as f64);
        line(names::GPU_SAMPLE_AGE_SECONDS, &of_gpu, 0.0);
        line(names::GPU_DEVICE_UP, &of_gpu, 1.0);
        text
    }

    fn unload(&mut self, server: usize, request: &UnloadRequest) -> Result<UnloadResponse, UnloadRefusal> {
        let member = &mut self.members[server];
        if !member.loaded {
            return Err(UnloadRefusal::NotLoaded);
        }
        if request.if_generation.is_some_and(|asked| asked != member.generation) {
            return Err(UnloadRefusal::GenerationChanged);
        }
        let idle = member.idle_since.elapsed().as_secs_f64();
        if request.if_idle_seconds.is_some_and(|asked| idle < asked.get()) {
            return Err(UnloadRefusal::NotIdle);
        }
        match member.lie {
            None => member.loaded = false,
            Some(Lie::Stays) => {}
            Some(Lie::Returns) => member.generation += 1,
        }
        let reclaimed_bytes = Some(if member.lie.is_some() { u64::MAX } else { member.vram_bytes });
        Ok(UnloadResponse {
            model: MODEL.to_owned(),
            outcome: UnloadOutcome::Unloaded,
            generation: request.if_generation.unwrap_or(member.generation),
            vram_before_bytes: Some(member.vram_bytes),
            reclaimed_bytes,
            residual_bytes: Some(0),
            process: None,
            drain_seconds: 0.0,
            exit_seconds: 0.0,
            verify_seconds: Some(0.0),
        })
    }
}

async fn note(
    State(fleet): State<StandInFleet>,
    ConnectInfo(place): ConnectInfo<StandInIndex>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    fleet.with(|inner| {
        *inner.requests.entry(place.0).or_default() += 1;
        inner.shown.extend(authorization.map(|authorization| ShownCredential { server: place.0, path, authorization }));
    });
    next.run(request).await
}

async fn scrape(State(fleet): State<StandInFleet>, ConnectInfo(place): ConnectInfo<StandInIndex>) -> String {
    fleet.with(|inner| inner.text(place.0))
}

async fn unload(
    State(fleet): State<StandInFleet>,
    ConnectInfo(place): ConnectInfo<StandInIndex>,
    Json(request): Json<UnloadRequest>,
) -> Response {
    let at = Instant::now();
    let answer = fleet.with(|inner| {
        let idle = inner.members[place.0].idle_since.elapsed();
        let answer = inner.unload(place.0, &request);
        inner.received.push(ReceivedCommand { at, server: place.0, request, idle, accepted: answer.is_ok() });
        answer
    });
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(refusal) => {
            let message = "the condition does not hold".to_owned();
            let body = AdminErrorBody { code: refusal.as_str().to_owned(), message, field: None };
            (StatusCode::CONFLICT, Json(body)).into_response()
        }
    }
}
