//! Requests to a controller, directly or through the API server, and what can go wrong with them.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hush_log::printable;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::{HttpClient, HttpError, HttpResponse};
use crate::web::TOKEN_HEADER;
use crate::web::view::{ErrorView, ProblemView};

/// Enough for the state of thousands of models.
const RESPONSE_LIMIT_BYTES: usize = 64 << 20;
/// How much of a message from a controller or the API server is shown.
const MESSAGE_MAX_CHARS: usize = 500;
/// A path that every controller serves when its page is on.
pub const STATE_PATH: &str = "/api/v1/state";
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A controller, and how requests reach it; cheap to clone.
#[derive(Clone)]
pub struct ControllerEndpoint {
    /// `NAMESPACE/POD`, or the URL.
    pub name: String,
    pub route: ControllerRoute,
    /// `NAMESPACE/NAME/KEY` of the Secret with the controller's page token.
    pub token_secret: Option<String>,
}

#[derive(Clone)]
pub enum ControllerRoute {
    Direct {
        client: HttpClient,
        url: String,
    },
    /// Through the API server to a port of a pod.
    Proxied {
        client: kube::Client,
        namespace: String,
        pod: String,
        port: u16,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ControllerRequestError {
    #[error("{controller} does not answer within {} s", timeout.as_secs())]
    Timeout { controller: String, timeout: Duration },
    #[error("{controller} cannot be reached: {source}")]
    Direct { controller: String, source: HttpError },
    #[error("the API server cannot be reached: {0}")]
    Cluster(#[source] Box<kube::Error>),
    #[error("{controller} cannot be asked through the API server: {message}\n{fix}")]
    ApiServer { controller: String, message: String, fix: String },
    #[error("{controller} refuses: {0}", controller = .0.controller)]
    Refused(Box<ControllerRefusal>),
    #[error("{0} is not a controller, or its page is off (--web-ui)")]
    NoController(String),
    #[error("the answer of {controller} is not that of a controller ({status}): {text}")]
    InvalidResponse { controller: String, status: StatusCode, text: String },
}

/// An error response that the controller itself wrote.
#[derive(Debug)]
pub struct ControllerRefusal {
    pub controller: String,
    pub code: String,
    pub message: String,
    pub problems: Vec<String>,
}

impl std::fmt::Display for ControllerRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// The body of an error response of the API server (`kind: Status`).
#[derive(Deserialize)]
struct ApiServerStatus {
    kind: String,
    #[serde(default)]
    message: String,
}

/// A request to a controller; `path` begins with `/api/v1/`.
pub struct ControllerRequest<'a> {
    pub method: Method,
    pub path: String,
    pub token: Option<&'a str>,
    pub body: String,
    pub timeout: Duration,
}

impl ControllerRequest<'_> {
    pub fn get(path: String) -> Self {
        Self { method: Method::GET, path, token: None, body: String::new(), timeout: REQUEST_TIMEOUT }
    }

    fn to_http(&self, base: &str) -> Result<Request<Bytes>, hyper::http::Error> {
        let request = Request::builder().method(self.method.clone()).uri(format!("{base}{}", self.path));
        let mut request = request.header(CONTENT_TYPE, "application/json").body(Bytes::from(self.body.clone()))?;

        if let Some(token) = self.token {
            let mut value = HeaderValue::try_from(token)?;
            value.set_sensitive(true);
            request.headers_mut().insert(TOKEN_HEADER, value);
        }
        Ok(request)
    }
}

impl ControllerEndpoint {
    /// Sends the request and reads the response as JSON.
    pub async fn send<T: DeserializeOwned>(
        &self,
        request: &ControllerRequest<'_>,
    ) -> Result<T, ControllerRequestError> {
        let timed_out = |_| ControllerRequestError::Timeout { controller: self.name.clone(), timeout: request.timeout };
        let response = tokio::time::timeout(request.timeout, self.exchange(request)).await.map_err(timed_out)??;

        self.parse(request, &response)
    }

    async fn exchange(&self, request: &ControllerRequest<'_>) -> Result<HttpResponse, ControllerRequestError> {
        let failed = |source| ControllerRequestError::Direct { controller: self.name.clone(), source };

        match &self.route {
            ControllerRoute::Direct { client, url } => {
                let request = request.to_http(url).map_err(|error| failed(error.into()))?;
                client.send(request.map(Full::new), RESPONSE_LIMIT_BYTES).await.map_err(failed)
            }
            ControllerRoute::Proxied { client, namespace, pod, port } => {
                let base = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy");
                let request = request.to_http(&base).map_err(|error| failed(error.into()))?;
                let unreachable = |error| ControllerRequestError::Cluster(Box::new(error));
                let response = client.send(request.map(kube::client::Body::from)).await.map_err(unreachable)?;

                let (head, body) = response.into_parts();
                let body = Limited::new(body, RESPONSE_LIMIT_BYTES).collect().await;
                let body = body.map_err(|source| failed(HttpError::Body { limit: RESPONSE_LIMIT_BYTES, source }))?;
                Ok(HttpResponse { status: head.status, body: body.to_bytes() })
            }
        }
    }

    fn parse<T: DeserializeOwned>(
        &self,
        request: &ControllerRequest<'_>,
        response: &HttpResponse,
    ) -> Result<T, ControllerRequestError> {
        if response.status.is_success() {
            return serde_json::from_slice(&response.body).map_err(|error| ControllerRequestError::InvalidResponse {
                controller: self.name.clone(),
                status: response.status,
                text: error.to_string(),
            });
        }
        Err(self.parse_error(request, response))
    }

    fn parse_error(&self, request: &ControllerRequest<'_>, response: &HttpResponse) -> ControllerRequestError {
        let controller = self.name.clone();

        // The API servers of old clusters respond in plain text.
        let status = serde_json::from_slice::<ApiServerStatus>(&response.body).ok();
        let status = status.filter(|body| body.kind == "Status");
        if status.is_none() && response.status == StatusCode::NOT_FOUND && request.path == STATE_PATH {
            return ControllerRequestError::NoController(controller);
        }

        if let Ok(ErrorView { code, message, problems }) = serde_json::from_slice(&response.body) {
            let problems = problems.iter().map(|problem| printable_message(&problem_text(problem))).collect();
            let (code, message) = (printable_message(&code), printable_message(&message));
            let refusal = ControllerRefusal { controller, code, message, problems };
            return ControllerRequestError::Refused(Box::new(refusal));
        }

        let text = printable_message(String::from_utf8_lossy(&response.body).trim());
        let from_api_server = status.is_some() || response.status != StatusCode::NOT_FOUND;
        match &self.route {
            ControllerRoute::Proxied { namespace, pod, port, .. } if from_api_server => {
                let message = status.map_or(text, |status| printable_message(&status.message));
                let fix = fix(response.status, &request.method, namespace, pod, *port);
                ControllerRequestError::ApiServer { controller, message, fix }
            }
            _ => ControllerRequestError::InvalidResponse { controller, status: response.status, text },
        }
    }
}

fn problem_text(problem: &ProblemView) -> String {
    match problem.line {
        Some(line) => format!("line {line}: {}", problem.message),
        None => problem.message.clone(),
    }
}

/// A message of another program, made safe for one line of a terminal.
fn printable_message(text: &str) -> String {
    printable(text, MESSAGE_MAX_CHARS)
}

/// What the user can do about an error response of the API server.
fn fix(status: StatusCode, method: &Method, namespace: &str, pod: &str, port: u16) -> String {
    let port_forward = format!(
        "go round it: kubectl --namespace {namespace} port-forward pod/{pod} {port}, and --controller http://127.0.0.1:{port}"
    );

    match status {
        StatusCode::UNAUTHORIZED => "it does not know you: look at the user of the context".to_owned(),
        StatusCode::FORBIDDEN => {
            let (verb, role) = if *method == Method::GET { ("get", "view") } else { ("create", "operate") };
            format!(
                "ask who administers the namespace `{namespace}` to let this user {verb} its `pods/proxy`: bind the Role \
                 `{}-{role}` (docs/kubectl.md, Who may)",
                name_in_chart(pod)
            )
        }
        StatusCode::NOT_FOUND => "the pod is gone; try again".to_owned(),
        StatusCode::BAD_REQUEST => port_forward,
        _ => format!(
            "a NetworkPolicy may keep the API server out (`networkPolicy.apiServer` of the chart); or {port_forward}"
        ),
    }
}

/// The prefix of the names of the chart's objects, as far as a pod's name shows it.
pub fn name_in_chart(pod: &str) -> &str {
    pod.rsplit_once("-controller-").map_or("NAME", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> ControllerEndpoint {
        let route = ControllerRoute::Direct { client: HttpClient::new(None).unwrap(), url: "http://h".to_owned() };
        ControllerEndpoint { name: "h".to_owned(), route, token_secret: None }
    }

    fn error_text(status: u16, body: &str) -> String {
        let response =
            HttpResponse { status: StatusCode::from_u16(status).unwrap(), body: Bytes::from(body.to_owned()) };
        let request = ControllerRequest::get(STATE_PATH.to_owned());
        controller().parse::<Vec<u64>>(&request, &response).unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_program_that_it_comes_from() {
        assert_eq!(error_text(409, r#"{"code":"withheld","message":"a leads"}"#), "h refuses: a leads");
        let yaml =
            r#"{"code":"invalid_request","message":"mistakes","problems":[{"line":3,"message":"no"},{"message":"x"}]}"#;
        assert_eq!(error_text(400, yaml), "h refuses: mistakes\n  line 3: no\n  x");

        assert!(
            error_text(502, "<html>").contains("the answer of h is not that of a controller (502 Bad Gateway): <html>")
        );
        assert_eq!(
            error_text(404, r#"{"code":"not_found","message":"no such route"}"#),
            "h is not a controller, or its page is off (--web-ui)"
        );

        let hostile = r#"{"code":"busy","message":"\u001b[2J\nall is well\u202e"}"#;
        assert_eq!(error_text(409, hostile), "h refuses: �[2J�all is well�");
        assert!(error_text(502, "\u{9b}2J<html>").contains("): �2J<html>"));
        assert!(error_text(200, "{}").contains("is not that of a controller (200 OK): invalid type"));
    }

    #[test]
    fn an_error_of_the_api_server_says_what_to_do() {
        let forbidden = |method, pod| fix(StatusCode::FORBIDDEN, &method, "media", pod, 9002);
        let get = forbidden(Method::GET, "speech-hush-controller-7d9f-x2");
        assert!(get.contains("the namespace `media` to let this user get its `pods/proxy`"), "{get}");
        assert!(get.contains("the Role `speech-hush-view`"), "{get}");

        assert!(forbidden(Method::POST, "hush-controller-7d9f-x2").contains("the Role `hush-operate`"));
        assert!(forbidden(Method::GET, "speech-hush-0").contains("the Role `NAME-view`"), "one beside a server");

        let unavailable = fix(StatusCode::SERVICE_UNAVAILABLE, &Method::GET, "hush", "c-0", 9002);
        assert!(unavailable.contains("networkPolicy.apiServer") && unavailable.contains("port-forward pod/c-0 9002"));
    }
}
