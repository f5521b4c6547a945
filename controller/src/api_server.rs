//! The client of the API server: how this program identifies itself there, and the metrics of its requests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::{Method, Request, Response, StatusCode};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::{BoxError, Layer, Service};

use crate::metrics::ControllerMetrics;

/// The field manager of every field that this program writes.
pub const FIELD_MANAGER: &str = "hush-controller";

/// The user agent of every request, to the API server and to Hush's own programs, also from the kubectl plugin.
pub const USER_AGENT_VALUE: &str = concat!("hush-controller/", env!("CARGO_PKG_VERSION"));

/// A hint for the user when the API server refuses a request.
pub const ROLE_HINT: &str = "the ClusterRole of this controller lacks it or is not bound; where the chart made it, it is \
     called `NAMESPACE-NAME-controller` (docs/kubernetes.md, Roles)";

/// The same hint for requests for leases.
pub const LEASE_ROLE_HINT: &str = "the Role of this controller in that namespace lacks it or is not bound; where the chart \
     made it, it is called `NAMESPACE-NAME-controller-lease` (docs/kubernetes.md, Roles)";

/// A client that sends [`USER_AGENT_VALUE`] and, where there are `metrics`, counts its requests.
pub fn connect(mut config: Config, metrics: Option<&Arc<ControllerMetrics>>) -> Result<Client, kube::Error> {
    config.headers.retain(|(name, _)| name != USER_AGENT);
    config.headers.push((USER_AGENT, HeaderValue::from_static(USER_AGENT_VALUE)));
    let builder = ClientBuilder::try_from(config)?;

    Ok(match metrics {
        Some(metrics) => builder.with_layer(&CountRequests(Arc::clone(metrics))).build(),
        None => builder.build(),
    })
}

struct CountRequests(Arc<ControllerMetrics>);

impl<S> Layer<S> for CountRequests {
    type Service = CountingService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountingService { inner, metrics: Arc::clone(&self.0) }
    }
}

struct CountingService<S> {
    inner: S,
    metrics: Arc<ControllerMetrics>,
}

impl<S, B> Service<Request<Body>> for CountingService<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let operation =
            Operation::of(request.method(), request.uri().path(), request.uri().query().unwrap_or_default());
        let pending = PendingRequest { metrics: Arc::clone(&self.metrics), operation, result: NO_ANSWER };
        let answer = self.inner.call(request);

        Box::pin(async move {
            let mut pending = pending;
            let answer = answer.await.map_err(Into::into)?;
            pending.result = status_result(answer.status());
            Ok(answer)
        })
    }
}

/// Counts the request when it is dropped: when it has ended, or when the caller stops waiting for its answer.
struct PendingRequest {
    metrics: Arc<ControllerMetrics>,
    operation: Operation,
    result: &'static str,
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        let Operation { verb, resource } = self.operation;
        self.metrics.api_requests_total.with_label_values(&[verb, resource, self.result]).inc();
    }
}

pub const NO_ANSWER: &str = "no_answer";
pub const BUSY: &str = "busy";

/// The values of the label `result`.
pub const RESULTS: [&str; 11] = [
    "success",
    "unauthorized",
    "forbidden",
    "not_found",
    "conflict",
    "expired",
    "invalid",
    BUSY,
    "client_error",
    "server_error",
    NO_ANSWER,
];

/// The value of the label `result` for a request that failed.
pub fn failure_result(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => StatusCode::from_u16(status.code).map_or(NO_ANSWER, status_result),
        _ => NO_ANSWER,
    }
}

fn status_result(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        409 => "conflict",
        410 => "expired",
        422 => "invalid",
        429 => BUSY,
        400..=499 => "client_error",
        500.. => "server_error",
        _ => "success",
    }
}

/// The values of the label `resource`: every resource that this program asks for, and `other` for the rest, so that the
/// number of series is bounded.
pub const RESOURCES: [&str; 10] = [
    "pods",
    "namespaces",
    "gpumodelpolicies",
    "gpumodelpolicies/status",
    "clustergpumodelpolicies",
    "clustergpumodelpolicies/status",
    "leases",
    "events",
    "serviceaccounts/token",
    "other",
];

/// What a request asks for, in the terms of the API server's own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    verb: &'static str,
    resource: &'static str,
}

impl Operation {
    fn of(method: &Method, path: &str, query: &str) -> Self {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        // The path begins with `/api/VERSION` or `/apis/GROUP/VERSION`.
        let group_parts = if parts.next() == Some("apis") { 2 } else { 1 };
        let mut parts: Vec<&str> = parts.skip(group_parts).collect();
        // `namespaces/NAME` is a namespace itself, and `namespaces/NAME/RESOURCE` is a resource in it.
        if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts.drain(..2);
        }
        let has_name = parts.len() > 1;

        let matches_path = |known: &&&str| match known.split_once('/') {
            Some((resource, subresource)) => {
                parts.first() == Some(&resource) && parts.get(2) == Some(&subresource) && parts.len() == 3
            }
            None => parts.first() == Some(*known) && parts.len() <= 2,
        };
        let resource = RESOURCES.iter().find(matches_path).copied().unwrap_or("other");

        let watches = query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"));
        let verb = match *method {
            Method::GET if watches => "watch",
            Method::GET if has_name => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
        Self { verb, resource }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_by_verb_and_resource() {
        let policies = "/apis/gpu.hush.dev/v1beta1";
        for (method, path, query, verb, resource) in [
            (Method::GET, "/api/v1/pods", "&labelSelector=a", "list", "pods"),
            (Method::GET, "/api/v1/pods", "&watch=true&timeoutSeconds=290", "watch", "pods"),
            (Method::GET, "/api/v1/namespaces", "", "list", "namespaces"),
            (Method::GET, "/api/v1/namespaces/a", "", "get", "namespaces"),
            (Method::GET, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "", "get", "leases"),
            (Method::PUT, "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "", "update", "leases"),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/a/events", "", "create", "events"),
            (Method::POST, "/api/v1/namespaces/a/serviceaccounts/b/token", "", "create", "serviceaccounts/token"),
            (Method::POST, "/api/v1/namespaces/a/pods/b/token", "", "create", "other"),
            (Method::GET, "/version", "", "list", "other"),
            (Method::GET, "/", "", "list", "other"),
        ] {
            assert_eq!(Operation::of(&method, path, query), Operation { verb, resource }, "{method} {path}?{query}");
        }

        let status = format!("{policies}/namespaces/a/gpumodelpolicies/p/status");
        let expected = Operation { verb: "patch", resource: "gpumodelpolicies/status" };
        assert_eq!(Operation::of(&Method::PATCH, &status, ""), expected);
        let status = format!("{policies}/clustergpumodelpolicies/p/status");
        let expected = Operation { verb: "patch", resource: "clustergpumodelpolicies/status" };
        assert_eq!(Operation::of(&Method::PATCH, &status, ""), expected);
    }

    #[test]
    fn every_status_code_has_a_known_result() {
        for code in 100..600 {
            let result = status_result(StatusCode::from_u16(code).unwrap());
            assert!(RESULTS.contains(&result), "{code} {result}");
        }
        assert_eq!((status_result(StatusCode::FORBIDDEN), status_result(StatusCode::OK)), ("forbidden", "success"));
    }
}
