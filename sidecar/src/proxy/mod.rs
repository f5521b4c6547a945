//! The public listener of the sidecar: attributes requests to models, has them wait for their model, and streams them to
//! the app and back.
//!
//! ```text
//! listener -> connection -> core: routes (class) -> attribution (model) -> models (lease) -> upstream -> answer
//!                                                   intake (body)                         -> tunnel (websockets)
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `routes` | the class of a request, in whatever spelling its path is |
//! | `attribution` | pure scanners that find the model, and what is cut out, in a body that arrives in pieces |
//! | `intake` | the body: memory, spool, and what still comes |
//! | `models` | names, aliases and leases |
//! | `core` | the order of the steps for each class of request |
//! | `answer` | the body of an answer, with the lease |
//! | `idle_watch` | leases of work that goes on after its answer, or after its client |
//! | `client_stream` | the connection of a client, plain or over TLS |
//! | `client_stall` | the limit for a client that reads nothing |
//! | `tunnel`, `frames` | websockets |
//! | `earlier_requests` | ids of requests to which later ones refer |
//! | `app_scrape` | the app's own metrics, for the operations listener |
//! | `kept_answers` | lists for the time in which the app does not run |

mod answer;
mod app_scrape;
mod attribution;
mod client_stall;
mod client_stream;
mod connection;
mod core;
mod earlier_requests;
mod error;
mod frames;
mod headers;
mod idle_watch;
mod intake;
mod kept_answers;
mod listener;
mod metrics;
mod models;
mod record;
mod routes;
mod settings;
mod tunnel;

use std::sync::Arc;

use axum::response::Response;
use hush_residency::{Models, RunnerFactory};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::AppStatus;
use crate::upstream::Upstream;

pub use metrics::ProxyMetrics;
pub use routes::RequestRoutes;
pub use settings::ProxySettings;

use self::core::ProxyCore;
use earlier_requests::EarlierRequests;
use idle_watch::AppIdleWatch;
use intake::IntakeSettings;
use kept_answers::KeptAnswers;
use models::ModelNames;

/// The proxy in front of one app. Cheap to clone; clones are the same proxy.
#[derive(Clone)]
pub struct Proxy {
    core: Arc<ProxyCore>,
}

impl Proxy {
    /// `status` is what the watch over the app writes.
    pub fn new<F: RunnerFactory>(
        models: Arc<Models<F>>,
        routes: Arc<dyn RequestRoutes>,
        upstream: Upstream,
        status: watch::Receiver<AppStatus>,
        settings: ProxySettings,
        metrics: ProxyMetrics,
    ) -> Self {
        let names = ModelNames::new(models, settings.aliases.clone(), settings.default_model.clone());
        let intake = Arc::new(IntakeSettings {
            attribution_bytes: settings.attribution_bytes,
            spool: settings.spool.clone(),
            stall: settings.body_stall,
            files: settings.files.clone(),
        });
        let idle = Arc::new(AppIdleWatch::new(Arc::clone(&routes), upstream.clone(), status.clone()));
        let earlier = EarlierRequests::default();
        let (kept, shutdown) = (Arc::new(KeptAnswers::default()), CancellationToken::new());

        let core =
            ProxyCore { names, routes, upstream, status, settings, intake, kept, earlier, idle, metrics, shutdown };
        Self { core: Arc::new(core) }
    }

    /// Serves until [`Self::shut_down`]. Then no connection is accepted, requests may finish until the deadline of the
    /// settings, and the rest are cut off. Dropping the future cuts off all connections at once.
    pub async fn serve(&self, listener: TcpListener) {
        listener::serve(listener, Arc::clone(&self.core)).await;
    }

    /// The app's own metrics, for the operations listener. `query`: of the scrape.
    pub async fn scrape_app(&self, query: Option<&str>) -> Response {
        self.core.scrape_app(query).await
    }

    /// Begins the shutdown. Requests that wait for a model go on waiting: the end of the models refuses them.
    pub fn shut_down(&self) {
        self.core.shutdown.cancel();
    }
}
