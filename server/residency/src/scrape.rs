//! The answer to `GET /metrics`.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder, Registry, TextEncoder};

use crate::gpu::GpuSampler;

/// Encodes all families of a registry. `gpus`: the source of device figures, which is refreshed before, so that decisions
/// use current figures.
pub async fn scrape(registry: Registry, gpus: Option<GpuSampler>) -> Response {
    if let Some(gpus) = gpus {
        gpus.refresh().await;
    }

    // Collectors read /proc and call drivers, so they do not run on a thread that serves connections.
    match tokio::task::spawn_blocking(move || encode_metrics(&registry)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(panicked) => failed(&panicked),
    }
}

/// Encodes all families in the text exposition format, version 0.0.4.
///
/// # Errors
/// If a family cannot be encoded.
pub fn encode_metrics(registry: &Registry) -> prometheus::Result<Vec<u8>> {
    let mut text = Vec::new();

    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error = hush_log::explain(error), "encoding the metrics failed");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}
