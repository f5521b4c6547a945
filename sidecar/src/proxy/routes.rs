//! Which class a request has, whatever spelling of its path the app understands.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::app::{App, AppAnswer, AppAnswerError, AppRequest, RouteClass, RouteMatch};

/// What the proxy asks of a kind of app.
pub trait RequestRoutes: Send + Sync + 'static {
    /// The route of a request. `path` is as it stands in the request. The template is one of a bounded number, because it
    /// becomes the value of a label.
    fn route(&self, method: &Method, path: &str, query: Option<&str>, is_upgrade: bool) -> RouteMatch;

    /// The name under which the app lists a model.
    fn canonical_name(&self, model: &str) -> String;

    /// Whether a model runs in this app. Requests to others are forwarded and count as nothing.
    fn governs(&self, model: &str) -> bool;

    /// The request whose answer says how much work the app has; `None`: the app does not say.
    fn busy(&self, model: &str) -> Option<AppRequest>;

    /// The number of pieces of work that the app has, running and waiting.
    ///
    /// # Errors
    /// If the answer cannot be read.
    fn read_busy(&self, model: &str, answer: &AppAnswer) -> Result<u64, AppAnswerError>;

    /// The port on which the app has its metrics; `None`: the one on which it serves requests.
    fn metrics_port(&self) -> Option<u16> {
        None
    }

    /// The header by whose value a later request may refer to a request ([`ModelNameSource::Earlier`]).
    ///
    /// [`ModelNameSource::Earlier`]: crate::app::ModelNameSource::Earlier
    fn earlier_header(&self) -> Option<&str> {
        None
    }
}

impl RequestRoutes for App {
    fn route(&self, method: &Method, path: &str, query: Option<&str>, is_upgrade: bool) -> RouteMatch {
        Self::route(self, method, path, query, is_upgrade)
    }

    fn canonical_name(&self, model: &str) -> String {
        Self::canonical_name(self, model)
    }

    fn governs(&self, model: &str) -> bool {
        Self::governs(self, model)
    }

    fn busy(&self, model: &str) -> Option<AppRequest> {
        Self::busy(self, model)
    }

    fn read_busy(&self, model: &str, answer: &AppAnswer) -> Result<u64, AppAnswerError> {
        Self::read_busy(self, model, answer)
    }

    fn metrics_port(&self) -> Option<u16> {
        let (port, request) = self.busy_on_port("")?;
        (request.path == "/metrics").then_some(port)
    }

    fn earlier_header(&self) -> Option<&str> {
        Self::earlier_header(self)
    }
}

/// The route of a request. Apps differ in which spellings of a path they understand: with percent-encoding, several
/// slashes, dot segments, a slash at the end, or another case. A request is closed if any of these leads to a closed
/// route; otherwise the spelling of the client counts.
pub fn classify(
    routes: &dyn RequestRoutes,
    method: &Method,
    path: &str,
    query: Option<&str>,
    is_upgrade: bool,
) -> RouteMatch {
    let mut matched = routes.route(method, path, query, is_upgrade);

    let plain = plain_path(&percent_decode_str(path).decode_utf8_lossy());
    let lower = plain.to_lowercase();
    for spelling in [&plain, &lower] {
        if matched.class == RouteClass::Closed {
            break;
        }
        if spelling != path {
            let other = routes.route(method, spelling, query, is_upgrade);
            if other.class == RouteClass::Closed {
                matched = other;
            }
        }
    }

    matched.class = effective_class(matched.class, method, is_upgrade);
    matched
}

/// `HEAD` and `OPTIONS` are never work. An upgrade on a route of ordinary requests is a socket of the same kind.
fn effective_class(class: RouteClass, method: &Method, is_upgrade: bool) -> RouteClass {
    match class {
        RouteClass::Work if matches!(*method, Method::HEAD | Method::OPTIONS) => RouteClass::NotWork,
        RouteClass::Work | RouteClass::NotWorkLoadedOnly if is_upgrade => RouteClass::WorkSocket,
        RouteClass::NotWork if is_upgrade => RouteClass::DisplaySocket,
        RouteClass::WorkSocket if !is_upgrade => RouteClass::Work,
        RouteClass::DisplaySocket if !is_upgrade => RouteClass::NotWork,
        class => class,
    }
}

/// The path without dot segments, without empty segments, and without a slash at the end.
fn plain_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();

    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::ModelNameSource;

    struct OneClosed;

    impl RequestRoutes for OneClosed {
        fn route(&self, _: &Method, path: &str, _: Option<&str>, _: bool) -> RouteMatch {
            let class = match path {
                "/models/unload" => RouteClass::Closed,
                _ => RouteClass::Work,
            };
            RouteMatch {
                class,
                template: path.to_owned(),
                model: ModelNameSource::None,
                removed_members: Vec::new(),
                removed_parameters: Vec::new(),
                ends_when_app_is_idle: false,
                waits_forever: false,
                command: None,
            }
        }

        fn canonical_name(&self, model: &str) -> String {
            model.to_owned()
        }

        fn governs(&self, _: &str) -> bool {
            true
        }

        fn busy(&self, _: &str) -> Option<AppRequest> {
            None
        }

        fn read_busy(&self, _: &str, _: &AppAnswer) -> Result<u64, AppAnswerError> {
            Ok(0)
        }
    }

    fn class(method: &Method, path: &str, is_upgrade: bool) -> RouteClass {
        classify(&OneClosed, method, path, None, is_upgrade).class
    }

    #[test]
    fn no_spelling_opens_a_closed_route() {
        for path in [
            "/models/unload",
            "/models/%75nload",
            "/models%2funload",
            "//models///unload",
            "/models/unload/",
            "/x/../models/./unload",
            "/models/x/%2e%2e/unload",
            "/Models/UnLoad",
            "/models\\unload",
        ] {
            assert_eq!(class(&Method::POST, path, false), RouteClass::Closed, "{path}");
        }
        assert_eq!(class(&Method::POST, "/models/unloads", false), RouteClass::Work);
    }

    #[test]
    fn classes_by_method_and_upgrade() {
        assert_eq!(class(&Method::OPTIONS, "/v1/x", false), RouteClass::NotWork);
        assert_eq!(class(&Method::HEAD, "/v1/x", false), RouteClass::NotWork);
        assert_eq!(class(&Method::GET, "/v1/x", true), RouteClass::WorkSocket);
    }
}
