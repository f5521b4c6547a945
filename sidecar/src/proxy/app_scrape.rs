//! The app's own metrics, for the operations listener: a scrape is no work, loads nothing and wakes nothing.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use hush_log::explain;

use super::attribution::{query_parameter, query_without};
use super::core::ProxyCore;
use super::routes::classify;
use crate::app::{AppRequest, ModelNameSource, RouteClass};
use crate::status::AppStatus;

/// Where apps have their metrics.
const METRICS_PATH: &str = "/metrics";
/// Prometheus gives up after 10 s by default.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(9);
/// How much of an app's error is passed on.
const SHOWN_CHARS: usize = 300;
/// Prometheus' text format, which apps speak when no other is asked for.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

impl ProxyCore {
    /// The app's metrics. While the app is away because its model is, there are none: the answer is empty and no error, so
    /// that the scrape does not count as failed. `query`: of the scrape, such as `model=a` for an app that has metrics for
    /// each model.
    pub async fn scrape_app(&self, query: Option<&str>) -> Response {
        let matched = classify(&*self.routes, &Method::GET, METRICS_PATH, query, false);
        match &*self.status.borrow() {
            AppStatus::Running { .. } | AppStatus::Unsuitable { .. } => {}
            AppStatus::Stopped => return empty("the app is not started, because its model is not loaded"),
            AppStatus::Unreachable { cause } => return failed(StatusCode::SERVICE_UNAVAILABLE, cause.clone()),
        }

        // No unload begins before the visit ends: the app would load the model again for the metrics.
        let _visit = match matched.class {
            RouteClass::NotWork => None,
            RouteClass::NotWorkLoadedOnly => {
                let name = match &matched.model {
                    ModelNameSource::Query { parameter } | ModelNameSource::Body { member: parameter } => {
                        match query_parameter(query.unwrap_or_default(), parameter) {
                            Ok(name) => name,
                            Err(error) => return failed(StatusCode::BAD_REQUEST, error.to_string()),
                        }
                    }
                    ModelNameSource::Path { name } => Some(name.clone()),
                    ModelNameSource::None | ModelNameSource::Earlier { .. } => None,
                };
                match self.names.find(name.as_deref(), &*self.routes) {
                    Ok(model) => match model.visit().await {
                        Some(visit) => Some(visit),
                        None => return empty(&format!("the model {} is not loaded", model.name())),
                    },
                    Err(unknown) => {
                        let known = unknown.known.join(", ");
                        let problem = format!("the model {} does not exist; there are: {known}", unknown.name);
                        return failed(StatusCode::NOT_FOUND, problem);
                    }
                }
            }
            RouteClass::Work | RouteClass::Closed | RouteClass::DisplaySocket | RouteClass::WorkSocket => {
                return failed(
                    StatusCode::NOT_FOUND,
                    "the app has no metrics that can be read without work".to_owned(),
                );
            }
        };

        let query = query.and_then(|query| query_without(query, &matched.removed_parameters));
        self.fetch_metrics(query.filter(|query| !query.is_empty())).await
    }

    async fn fetch_metrics(&self, query: Option<String>) -> Response {
        let path = query.map_or_else(|| METRICS_PATH.to_owned(), |query| format!("{METRICS_PATH}?{query}"));
        let request = AppRequest { method: Method::GET, path, body: None, timeout: SCRAPE_TIMEOUT };

        let port = self.routes.metrics_port().map(|port| self.upstream.settings().busy_port.unwrap_or(port));
        let upstream = port.map_or_else(|| self.upstream.clone(), |port| self.upstream.with_port(port));
        match upstream.call(&request).await {
            // An app without metrics is no failure of it.
            Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => {
                text(answer.status, Body::from(answer.body))
            }
            Ok(answer) => {
                let said = hush_log::printable(&String::from_utf8_lossy(&answer.body), SHOWN_CHARS);
                let cause = format!("the app answered the request for its metrics with {}: {said}", answer.status);
                failed(StatusCode::BAD_GATEWAY, cause)
            }
            Err(error) => failed(StatusCode::BAD_GATEWAY, explain(&error)),
        }
    }
}

fn empty(cause: &str) -> Response {
    text(StatusCode::OK, Body::from(format!("# No metrics of the app: {cause}.\n")))
}

fn failed(status: StatusCode, cause: String) -> Response {
    text(status, Body::from(format!("{cause}\n")))
}

fn text(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
    response
}
