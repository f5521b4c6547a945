//! The id of a request, by which a client finds it in the log.

use std::collections::hash_map::RandomState;
use std::fmt::Write;
use std::hash::{BuildHasher, Hasher};

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_LIMIT_BYTES: usize = 128;

/// The id that the client gave its request, or a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    headers.get(REQUEST_ID).filter(|id| is_valid_id(id)).cloned().unwrap_or_else(new_id)
}

fn is_valid_id(id: &HeaderValue) -> bool {
    (1..=REQUEST_ID_LIMIT_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    let mut id = String::with_capacity(32);
    for _ in 0..2 {
        // Each `RandomState` has random keys of its own. Writing to a String cannot fail.
        let _ = write!(id, "{:016x}", RandomState::new().build_hasher().finish());
    }
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_valid() {
        let (one, other) = (new_id(), new_id());
        assert!(is_valid_id(&one) && one.len() == 32, "{one:?}");
        assert_ne!(one, other);
        assert!(!is_valid_id(&HeaderValue::from_static("")));
        assert!(!is_valid_id(&HeaderValue::from_static("a b")));
    }
}
