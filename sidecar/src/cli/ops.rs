//! The operations listener: metrics, health, and the admin API of the models.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hush_access::{Authenticate, KeyFile, ReviewOptions, Tls, TokenReview};
use hush_listener::{ConnectionPeer, ListenOptions};
use hush_log::exposed_secret;
use hush_residency::admin::{self, AdminAccess, AdminState};
use hush_residency::gpu::GpuSampler;
use hush_residency::{Models, scrape};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::args::SecurityArgs;
use crate::proxy::Proxy;
use crate::runner::SidecarRunners;
use crate::status::AppStatus;

/// Who may use the admin API. `listener`: the address of the operations listener. Must be called inside a tokio runtime.
///
/// # Errors
/// If a file cannot be read, or an option is missing.
pub fn access(security: &SecurityArgs, listener: IpAddr) -> anyhow::Result<AdminAccess> {
    let mut checks: Vec<Arc<dyn Authenticate>> = Vec::new();
    if let Some(path) = &security.admin_token_file {
        if let Some(problem) = exposed_secret("--admin-token-file", path) {
            tracing::warn!("{problem}");
        }
        checks.push(Arc::new(KeyFile::open(path.clone()).context("--admin-token-file")?));
    }

    if security.admin_token_review {
        let options = ReviewOptions {
            accounts: security.admin_accounts.clone(),
            audience: security.admin_audience.clone(),
            pod_namespace: security.pod_namespace.clone(),
            pod_uid: security.pod_uid.clone(),
            api: security.kubernetes_api.clone(),
            ca_file: security.kubernetes_ca.clone(),
            token_file: security.kubernetes_token.clone(),
        };
        let settings = options.resolve(|name| std::env::var_os(name).filter(|value| !value.is_empty()))?;
        checks.push(Arc::new(TokenReview::new(settings).context("--admin-token-review")?));
    }

    let access = AdminAccess::new(checks, listener);
    access.log();
    Ok(access)
}

/// Serves the operations listener until the future is dropped.
pub async fn serve(listener: TcpListener, router: Router, options: ListenOptions, tls: Option<Tls>) {
    let Some(tls) = tls else { return hush_listener::serve(listener, router, options).await };

    let handshake = move |stream| {
        let tls = tls.clone();
        async move { tls.accept(stream).await }
    };
    hush_listener::serve_after_handshake(listener, router, options, handshake).await;
}

/// The routes of the operations listener.
pub fn router(
    models: Arc<Models<SidecarRunners>>,
    access: AdminAccess,
    stop: CancellationToken,
    registry: Registry,
    gpus: GpuSampler,
    status: watch::Receiver<AppStatus>,
    proxy: Proxy,
) -> Router {
    let open = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok" }))
        .with_state((registry, gpus));
    let app = Router::new().route("/app/metrics", get(app_metrics_text)).with_state(proxy);
    let ready = Router::new().route("/readyz", get(readiness)).with_state(status);

    open.merge(app)
        .merge(ready)
        .merge(admin::router(AdminState::new(models, access, stop)))
        .layer(middleware::from_fn(note_peer))
}

/// Passes the address of the peer on in the form that the admin API reads.
async fn note_peer(mut request: Request, next: Next) -> Response {
    if let Some(ConnectInfo(address)) = request.extensions().get::<ConnectInfo<std::net::SocketAddr>>().copied() {
        request.extensions_mut().insert(ConnectionPeer { address });
    }

    next.run(request).await
}

/// Whether the sidecar can serve: it governs its app, whether a model is loaded or not.
async fn readiness(State(status): State<watch::Receiver<AppStatus>>) -> Response {
    match &*status.borrow() {
        AppStatus::Running { .. } | AppStatus::Stopped => "ready".into_response(),
        AppStatus::Unreachable { cause } | AppStatus::Unsuitable { cause } => {
            (StatusCode::SERVICE_UNAVAILABLE, cause.clone()).into_response()
        }
    }
}

/// The app's own metrics, so that its port can stay closed.
async fn app_metrics_text(State(proxy): State<Proxy>, RawQuery(query): RawQuery) -> Response {
    proxy.scrape_app(query.as_deref()).await
}

async fn metrics_text(State((registry, gpus)): State<(Registry, GpuSampler)>) -> Response {
    scrape(registry, Some(gpus)).await
}
