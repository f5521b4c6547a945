//! The controller's page and its JSON API. Reading is open to every client but pages of other origins; commands and plans
//! with other policies need the page token.

mod actions;
mod address;
mod browsers;
mod build_view;
mod error;
mod explain;
mod live;
mod log_level;
mod page;
mod token;
pub mod view;
mod what_if;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{mpsc, watch};

pub use actions::{DRAIN_MAX_SECONDS, WITHHELD};
pub use browsers::AllowedHosts;
pub use token::{PageToken, PageTokenError, TOKEN_HEADER};

use crate::control_loop::{LoopRequest, LoopSnapshot};
use crate::metrics::ControllerMetrics;
use view::StateView;

/// The state that all routes share; cheap to clone.
#[derive(Clone)]
pub struct WebState {
    snapshots: watch::Receiver<Arc<LoopSnapshot>>,
    requests: mpsc::Sender<LoopRequest>,
    metrics: Arc<ControllerMetrics>,
    /// `None`: commands and plans with other policies are refused.
    token: Option<Arc<PageToken>>,
    feed: live::StateFeed,
    what_ifs: what_if::WhatIfLimits,
    hosts: Arc<AllowedHosts>,
}

impl WebState {
    /// Must be called in a tokio runtime.
    pub fn new(
        snapshots: watch::Receiver<Arc<LoopSnapshot>>,
        requests: mpsc::Sender<LoopRequest>,
        metrics: Arc<ControllerMetrics>,
        token: Option<PageToken>,
        hosts: AllowedHosts,
    ) -> Self {
        let web = Self {
            snapshots,
            requests,
            metrics,
            token: token.map(Arc::new),
            feed: live::StateFeed::default(),
            what_ifs: what_if::WhatIfLimits::default(),
            hosts: Arc::new(hosts),
        };
        tokio::spawn(live::publish(web.clone()));
        web
    }

    fn view(&self, snapshot: &LoopSnapshot) -> StateView {
        StateView::new(snapshot, self.acting(), self.token.is_some())
    }

    /// Whether commands are sent.
    fn acting(&self) -> bool {
        self.metrics.acting.get() != 0
    }

    fn snapshot(&self) -> Arc<LoopSnapshot> {
        self.snapshots.borrow().clone()
    }
}

pub fn router(web: WebState) -> Router {
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
        // Also POST, because through the API server a PUT needs another right than all other actions do.
        .route("/api/v1/log-level", get(log_level::get).put(log_level::put).post(log_level::put))
        .layer(middleware::from_fn_with_state(web.clone(), browsers::guard))
        .with_state(web)
}

async fn state(State(web): State<WebState>) -> Response {
    axum::Json(web.view(&web.snapshot())).into_response()
}
