//! One request to a controller, on either way, and what can go wrong on it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hush_log::printable;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::{Answer, Client, HttpError};
use crate::web::TOKEN_HEADER;

/// A state of thousands of models.
const ANSWER_LIMIT_BYTES: usize = 64 << 20;
/// The longest message that is shown.
const SAID_MAX_CHARS: usize = 500;
/// Every controller has it.
pub const STATE: &str = "/api/v1/state";
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A controller and the way to it; cheap to clone.
#[derive(Clone)]
pub struct Controller {
    /// For people: `NAMESPACE/POD`, or the address.
    pub name: String,
    pub way: Way,
    /// `NAMESPACE/NAME/KEY` of the Secret with the token of those who may act.
    pub token_secret: Option<String>,
}

#[derive(Clone)]
pub enum Way {
    Direct {
        client: Client,
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
pub enum Trouble {
    #[error("{controller} does not answer within {} s", patience.as_secs())]
    Late { controller: String, patience: Duration },
    #[error("{controller} cannot be reached: {source}")]
    Direct { controller: String, source: HttpError },
    #[error("the API server cannot be reached: {0}")]
    Cluster(#[source] Box<kube::Error>),
    #[error("{controller} cannot be asked through the API server: {message}\n{fix}")]
    ApiServer { controller: String, message: String, fix: String },
    #[error("{controller} refuses: {0}", controller = .0.controller)]
    Refused(Box<Refusal>),
    #[error("{0} is no controller, or its page is off (--web-ui)")]
    NoController(String),
    #[error("{controller} answers what is no answer of a controller ({status}): {text}")]
    Unintelligible { controller: String, status: StatusCode, text: String },
}

/// The controller's own no.
#[derive(Debug)]
pub struct Refusal {
    pub controller: String,
    pub code: String,
    pub message: String,
    pub problems: Vec<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
    #[serde(default)]
    problems: Vec<ProblemBody>,
}

#[derive(Deserialize)]
struct ProblemBody {
    line: Option<u64>,
    message: String,
}

/// How the API server says no.
#[derive(Deserialize)]
struct StatusBody {
    kind: String,
    #[serde(default)]
    message: String,
}

/// A request; `path` begins with `/api/v1/`.
pub struct Ask<'a> {
    pub method: Method,
    pub path: String,
    pub token: Option<&'a str>,
    pub body: String,
    pub patience: Duration,
}

impl Ask<'_> {
    pub fn get(path: String) -> Self {
        Self { method: Method::GET, path, token: None, body: String::new(), patience: PATIENCE }
    }

    fn request(&self, base: &str) -> Result<Request<Bytes>, hyper::http::Error> {
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

impl Controller {
    pub async fn ask<T: DeserializeOwned>(&self, ask: &Ask<'_>) -> Result<T, Trouble> {
        let late = |_| Trouble::Late { controller: self.name.clone(), patience: ask.patience };
        let answer = tokio::time::timeout(ask.patience, self.send(ask)).await.map_err(late)??;
        self.read(ask, &answer)
    }

    async fn send(&self, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        let failed = |source| Trouble::Direct { controller: self.name.clone(), source };
        match &self.way {
            Way::Direct { client, url } => {
                let request = ask.request(url).map_err(|error| failed(error.into()))?;
                client.send(request.map(Full::new), ANSWER_LIMIT_BYTES).await.map_err(failed)
            }
            Way::Proxied { client, namespace, pod, port } => {
                let base = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy");
                let request = ask.request(&base).map_err(|error| failed(error.into()))?;
                let cluster = |error| Trouble::Cluster(Box::new(error));
                let answer = client.send(request.map(kube::client::Body::from)).await.map_err(cluster)?;
                let (head, body) = answer.into_parts();
                let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect().await;
                let body = body.map_err(|source| failed(HttpError::Body { limit: ANSWER_LIMIT_BYTES, source }))?;
                Ok(Answer { status: head.status, body: body.to_bytes() })
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, ask: &Ask<'_>, answer: &Answer) -> Result<T, Trouble> {
        let controller = self.name.clone();
        if answer.status.is_success() {
            return serde_json::from_slice(&answer.body).map_err(|error| Trouble::Unintelligible {
                controller,
                status: answer.status,
                text: error.to_string(),
            });
        }
        // Those of old clusters answer in plain text.
        let status = serde_json::from_slice::<StatusBody>(&answer.body).ok().filter(|body| body.kind == "Status");
        if status.is_none() && answer.status == StatusCode::NOT_FOUND && ask.path == STATE {
            return Err(Trouble::NoController(controller));
        }
        if let Ok(ErrorBody { code, message, problems }) = serde_json::from_slice(&answer.body) {
            let problem = |ProblemBody { line, message }| match line {
                Some(line) => format!("line {line}: {message}"),
                None => message,
            };
            let problems = problems.into_iter().map(|body| said(&problem(body))).collect();
            let (code, message) = (said(&code), said(&message));
            return Err(Trouble::Refused(Box::new(Refusal { controller, code, message, problems })));
        }
        let text = said(String::from_utf8_lossy(&answer.body).trim());
        match &self.way {
            Way::Proxied { namespace, pod, port, .. } if status.is_some() || answer.status != StatusCode::NOT_FOUND => {
                let message = status.map_or(text, |status| said(&status.message));
                let fix = fix(answer.status, &ask.method, namespace, pod, *port);
                Err(Trouble::ApiServer { controller, message, fix })
            }
            _ => Err(Trouble::Unintelligible { controller, status: answer.status, text }),
        }
    }
}

/// What another program says, in one line.
fn said(text: &str) -> String {
    printable(text, SAID_MAX_CHARS)
}

fn fix(status: StatusCode, method: &Method, namespace: &str, pod: &str, port: u16) -> String {
    let around = format!(
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
        StatusCode::BAD_REQUEST => around,
        _ => {
            format!("a NetworkPolicy may keep the API server out (`networkPolicy.apiServer` of the chart); or {around}")
        }
    }
}

/// What the chart begins the names of its objects with, as far as the name of a pod tells.
pub fn name_in_chart(pod: &str) -> &str {
    pod.rsplit_once("-controller-").map_or("NAME", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> Controller {
        let way = Way::Direct { client: Client::new(None).unwrap(), url: "http://h".to_owned() };
        Controller { name: "h".to_owned(), way, token_secret: None }
    }

    fn complaint(status: u16, body: &str) -> String {
        let answer = Answer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::from(body.to_owned()) };
        controller().read::<Vec<u64>>(&Ask::get(STATE.to_owned()), &answer).unwrap_err().to_string()
    }

    #[test]
    fn what_is_wrong_is_said_by_whom() {
        assert_eq!(complaint(409, r#"{"code":"withheld","message":"a leads"}"#), "h refuses: a leads");
        let yaml =
            r#"{"code":"invalid_request","message":"mistakes","problems":[{"line":3,"message":"no"},{"message":"x"}]}"#;
        assert_eq!(complaint(400, yaml), "h refuses: mistakes\n  line 3: no\n  x");
        assert!(complaint(502, "<html>").contains("no answer of a controller (502 Bad Gateway): <html>"));
        assert_eq!(
            complaint(404, r#"{"code":"not_found","message":"no such route"}"#),
            "h is no controller, or its page is off (--web-ui)"
        );
        let hostile = r#"{"code":"busy","message":"\u001b[2J\nall is well\u202e"}"#;
        assert_eq!(complaint(409, hostile), "h refuses: �[2J�all is well�");
        assert!(complaint(502, "\u{9b}2J<html>").contains("): �2J<html>"));
        assert!(complaint(200, "{}").contains("no answer of a controller (200 OK): invalid type"));
    }

    #[test]
    fn what_to_do_is_said_too() {
        let of = |status, method| fix(status, &method, "hush", "c-0", 9002);
        let forbidden = |method, pod| fix(StatusCode::FORBIDDEN, &method, "media", pod, 9002);
        let looks = forbidden(Method::GET, "speech-hush-controller-7d9f-x2");
        assert!(looks.contains("the namespace `media` to let this user get its `pods/proxy`"), "{looks}");
        assert!(looks.contains("the Role `speech-hush-view`"), "{looks}");
        assert!(forbidden(Method::POST, "hush-controller-7d9f-x2").contains("the Role `hush-operate`"));
        assert!(forbidden(Method::GET, "speech-hush-0").contains("the Role `NAME-view`"), "one beside a server");
        let unreachable = of(StatusCode::SERVICE_UNAVAILABLE, Method::GET);
        assert!(unreachable.contains("networkPolicy.apiServer") && unreachable.contains("port-forward pod/c-0 9002"));
    }
}
