//! The controller's page and the JSON API below it. Reading is open to whom no page in a browser sends; acting and trying
//! out policies ask for a token.

mod actions;
mod address;
mod browsers;
mod error;
mod explain;
mod live;
mod log_level;
mod page;
mod portray;
mod token;
mod view;
mod what_if;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{mpsc, watch};

pub use actions::{DRAIN_MAX_SECONDS, WITHHELD};
pub use browsers::Hosts;
pub use token::{TOKEN_HEADER, Token};

use crate::control_loop::{LoopRequest as Request, LoopSnapshot as Snapshot};
use crate::metrics::Metrics;
use view::StateView;

/// What every route needs; cheap to clone.
#[derive(Clone)]
pub struct Web {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
    metrics: Arc<Metrics>,
    /// `None`: nobody may act.
    token: Option<Arc<Token>>,
    feed: live::Feed,
    what_ifs: what_if::Bounds,
    hosts: Arc<Hosts>,
}

impl Web {
    /// Must be called in a runtime.
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        requests: mpsc::Sender<Request>,
        metrics: Arc<Metrics>,
        token: Option<Token>,
        hosts: Hosts,
    ) -> Self {
        let feed = live::Feed::default();
        let (token, hosts) = (token.map(Arc::new), Arc::new(hosts));
        let web = Self { snapshots, requests, metrics, token, feed, what_ifs: what_if::Bounds::default(), hosts };
        tokio::spawn(live::publish(web.clone()));
        web
    }

    fn view(&self, snapshot: &Snapshot) -> StateView {
        StateView::new(snapshot, self.acting(), self.token.is_some())
    }

    /// Whether commands are sent.
    fn acting(&self) -> bool {
        self.metrics.acting.get() != 0
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }
}

pub fn router(web: Web) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/ui/{file}", get(page::file))
        .route("/api/v1/state", get(state))
        .route("/api/v1/events", get(live::events))
        .route("/api/v1/explain", get(explain::server))
        .route("/api/v1/policy", get(what_if::policy))
        .route("/api/v1/plan", post(what_if::plan))
        .route("/api/v1/unload", post(actions::unload))
        .route("/api/v1/load", post(actions::load))
        .route("/api/v1/pause", post(actions::pause))
        .route("/api/v1/resume", post(actions::resume))
        // POST too: through the API server a PUT asks for another right than all other actions do.
        .route("/api/v1/log-level", get(log_level::get).put(log_level::put).post(log_level::put))
        .layer(middleware::from_fn_with_state(web.clone(), browsers::guard))
        .with_state(web)
}

async fn state(State(web): State<Web>) -> Response {
    axum::Json(web.view(&web.snapshot())).into_response()
}
