//! The last good answers of routes that only list, for the time in which the app does not run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, AGE, AUTHORIZATION, CACHE_CONTROL,
    CONTENT_ENCODING, CONTENT_TYPE, COOKIE, ORIGIN, SET_COOKIE,
};
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hush_listener::REQUEST_ID;

/// Marks an answer that is not the app's of this moment.
const KEPT: HeaderName = HeaderName::from_static("hush-kept-answer");

const ANSWER_LIMIT_BYTES: usize = 256 << 10;
const ANSWERS_MAX: usize = 32;

/// What the answer may depend on besides the target. Credentials are among it, so that no client gets the answer to
/// another one.
const VARIES_BY: [HeaderName; 9] = [
    AUTHORIZATION,
    COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("xi-api-key"),
    HeaderName::from_static("x-admin-key"),
    ORIGIN,
    ACCEPT,
    ACCESS_CONTROL_REQUEST_METHOD,
    ACCESS_CONTROL_REQUEST_HEADERS,
];

/// A request to which an answer can be kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeptKey {
    method: Method,
    target: String,
    headers: Vec<Option<HeaderValue>>,
}

impl KeptKey {
    /// `None`: no answer to the request is kept. `OPTIONS` is what browsers ask before the request that wakes a model.
    pub fn new(method: &Method, target: &str, headers: &HeaderMap) -> Option<Self> {
        matches!(*method, Method::GET | Method::OPTIONS).then(|| Self {
            method: method.clone(),
            target: target.to_owned(),
            headers: VARIES_BY.iter().map(|name| headers.get(name).cloned()).collect(),
        })
    }
}

struct KeptAnswer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    since: Instant,
}

/// A bounded number of answers of bounded size.
#[derive(Default)]
pub struct KeptAnswers {
    answers: Mutex<HashMap<KeptKey, KeptAnswer>>,
}

impl KeptAnswers {
    fn lock(&self) -> MutexGuard<'_, HashMap<KeptKey, KeptAnswer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kept answer to a request, with its age in seconds, and marked as such.
    pub fn get(&self, key: &KeptKey) -> Option<Response> {
        let answers = self.lock();
        let kept = answers.get(key)?;

        let mut response = Response::new(Body::from(kept.body.clone()));
        *response.status_mut() = kept.status;
        *response.headers_mut() = kept.headers.clone();
        response.headers_mut().insert(AGE, HeaderValue::from(kept.since.elapsed().as_secs()));
        response.headers_mut().insert(KEPT, HeaderValue::from_static("the app does not run"));
        Some(response)
    }

    fn put(&self, key: KeptKey, answer: KeptAnswer) {
        let mut answers = self.lock();

        answers.insert(key, answer);
        if answers.len() > ANSWERS_MAX {
            let oldest = answers.iter().min_by_key(|(_, kept)| kept.since).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| answers.remove(&oldest));
        }
    }

    /// The copy of an answer that is about to be streamed; `None`: it is not one to be kept.
    pub fn copy(self: &Arc<Self>, key: KeptKey, head: &Parts) -> Option<AnswerCopy> {
        let headers = &head.headers;
        let is_json = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let is_good = match key.method {
            Method::OPTIONS => head.status.is_success(),
            _ => head.status == StatusCode::OK && is_json,
        };
        let is_private = headers.contains_key(SET_COOKIE)
            || headers.contains_key(CONTENT_ENCODING)
            || headers
                .get(CACHE_CONTROL)
                .is_some_and(|value| value.to_str().is_ok_and(|text| text.contains("no-store")));

        (is_good && !is_private).then(|| {
            let mut headers = headers.clone();
            headers.remove(REQUEST_ID);
            headers.remove(http::header::TRAILER);
            AnswerCopy { store: Arc::clone(self), key, status: head.status, headers, body: BytesMut::new() }
        })
    }
}

/// A copy of an answer that is being streamed.
pub struct AnswerCopy {
    store: Arc<KeptAnswers>,
    key: KeptKey,
    status: StatusCode,
    headers: HeaderMap,
    body: BytesMut,
}

impl AnswerCopy {
    /// Returns whether the answer is still small enough.
    #[must_use]
    pub fn extend(&mut self, data: &[u8]) -> bool {
        let fits = self.body.len() + data.len() <= ANSWER_LIMIT_BYTES;
        if fits {
            self.body.extend_from_slice(data);
        }
        fits
    }

    /// The answer was complete.
    pub fn keep(self) {
        let Self { store, key, status, headers, body } = self;
        store.put(key, KeptAnswer { status, headers, body: body.freeze(), since: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(target: &str, credential: Option<&'static str>) -> KeptKey {
        let mut headers = HeaderMap::new();
        headers.extend(credential.map(|value| (AUTHORIZATION, HeaderValue::from_static(value))));
        KeptKey::new(&Method::GET, target, &headers).unwrap()
    }

    fn head(status: u16, content_type: &'static str) -> Parts {
        Response::builder().status(status).header(CONTENT_TYPE, content_type).body(()).unwrap().into_parts().0
    }

    #[test]
    fn good_answers_are_kept_for_the_same_client() {
        let store = Arc::new(KeptAnswers::default());
        let mut copy = store.copy(key("/v1/models", Some("a")), &head(200, "application/json")).unwrap();
        assert!(copy.extend(b"[1]"));
        copy.keep();

        let kept = store.get(&key("/v1/models", Some("a"))).unwrap();
        assert_eq!(
            (kept.status(), &kept.headers()[AGE], kept.headers().contains_key(KEPT)),
            (StatusCode::OK, &HeaderValue::from(0), true)
        );
        for other in [key("/v1/models", None), key("/v1/models", Some("b")), key("/v1/models?x", Some("a"))] {
            assert!(store.get(&other).is_none());
        }
    }

    #[test]
    fn other_answers_are_not_kept() {
        let store = Arc::new(KeptAnswers::default());
        for (status, content_type) in [(503, "application/json"), (200, "text/event-stream")] {
            assert!(store.copy(key("/a", None), &head(status, content_type)).is_none());
        }
        let mut copy = store.copy(key("/a", None), &head(200, "application/json")).unwrap();
        assert!(!copy.extend(&[0; ANSWER_LIMIT_BYTES + 1]));
        assert!(KeptKey::new(&Method::POST, "/a", &HeaderMap::new()).is_none());
    }

    #[test]
    fn the_oldest_answer_makes_room() {
        let store = Arc::new(KeptAnswers::default());
        for at in 0..=ANSWERS_MAX {
            store.copy(key(&format!("/{at}"), None), &head(200, "application/json")).unwrap().keep();
        }
        assert!(store.get(&key("/0", None)).is_none() && store.get(&key("/1", None)).is_some());
        assert_eq!(store.lock().len(), ANSWERS_MAX);
    }
}
