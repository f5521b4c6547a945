//! Checks of a request head before a router sees it. hyper checks the grammar; these are the checks that it leaves out.

use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Uri, Version};
use percent_encoding::percent_decode_str;

/// Headers that decide on authentication or on the target. Of several values a proxy and the server might use different ones.
const SINGLE: [&str; 4] = ["host", "authorization", "x-api-key", "x-hush-token"];

/// Why a head is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// Every request of HTTP/1.1 must have a `Host` (RFC 9112, 3.2).
    NoHost,
    Host,
    /// The header occurs more than once.
    Repeated(&'static str),
    Authorization,
    PercentEncoding,
}

impl HeadFault {
    /// The message for the client: what is wrong, and the fix.
    pub fn message(self) -> String {
        match self {
            Self::NoHost => "the header `Host` is missing; HTTP/1.1 needs one".to_owned(),
            Self::Host => "the header `Host` must be a host name or an address, with or without a port".to_owned(),
            Self::Repeated(name) => format!("the header `{name}` is there more than once; send one"),
            Self::Authorization => "the header `authorization` has characters that a credential cannot have".to_owned(),
            Self::PercentEncoding => {
                "the path has a `%` that is not followed by two hexadecimal digits, or bytes that are not UTF-8"
                    .to_owned()
            }
        }
    }
}

/// Checks what the router and its handlers rely on.
pub fn check_head(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), HeadFault> {
    for name in SINGLE {
        if headers.get_all(name).iter().nth(1).is_some() {
            return Err(HeadFault::Repeated(name));
        }
    }

    match headers.get(HOST) {
        None if version >= Version::HTTP_11 => return Err(HeadFault::NoHost),
        Some(host) if !is_host(host.as_bytes()) => return Err(HeadFault::Host),
        _ => {}
    }

    if headers.get(AUTHORIZATION).is_some_and(|value| value.to_str().is_err()) {
        return Err(HeadFault::Authorization);
    }
    if is_encoded(uri.path()) { Ok(()) } else { Err(HeadFault::PercentEncoding) }
}

/// `uri-host [ ":" port ]` of RFC 9110, 7.2, which may be empty.
fn is_host(host: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:[]%".contains(byte);
    host.iter().all(is_allowed)
}

fn is_encoded(path: &str) -> bool {
    let bytes = path.as_bytes();

    let is_whole = |(at, byte): (usize, &u8)| {
        let digits = || bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        *byte != b'%' || digits()
    };
    bytes.iter().enumerate().all(is_whole) && percent_decode_str(path).decode_utf8().is_ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn check(version: Version, path: &str, headers: &[(&'static str, &str)]) -> Result<(), HeadFault> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            map.append(HeaderName::from_static(name), value);
        }
        check_head(version, &path.parse().unwrap(), &map)
    }

    #[test]
    fn heads_that_are_refused() {
        let new = Version::HTTP_11;
        assert_eq!(check(new, "/", &[]), Err(HeadFault::NoHost));
        assert_eq!(check(new, "/", &[("host", "a"), ("host", "b")]), Err(HeadFault::Repeated("host")));
        let twice = [("host", "a"), ("authorization", "Bearer a"), ("authorization", "Bearer b")];
        assert_eq!(check(new, "/", &twice), Err(HeadFault::Repeated("authorization")));
        let twice = [("host", "a"), ("x-api-key", "a"), ("x-api-key", "a")];
        assert_eq!(check(new, "/", &twice), Err(HeadFault::Repeated("x-api-key")));
        for host in ["a b", "a/b", "http://a", "user@a", "é"] {
            assert_eq!(check(new, "/", &[("host", host)]), Err(HeadFault::Host), "{host}");
        }
        assert_eq!(check(new, "/", &[("host", "a"), ("authorization", "Bearer é")]), Err(HeadFault::Authorization));
        for path in ["/a%", "/a%2", "/a%zz", "/%ff", "/%c3%28"] {
            assert_eq!(check(new, path, &[("host", "a")]), Err(HeadFault::PercentEncoding), "{path}");
        }
    }

    #[test]
    fn heads_that_are_served() {
        assert_eq!(check(Version::HTTP_10, "/", &[]), Ok(()));
        for host in ["", "localhost", "localhost:9000", "[::1]:9000", "127.0.0.1", "under_score.example"] {
            assert_eq!(check(Version::HTTP_11, "/", &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(check(Version::HTTP_11, "/v1/models/openai%2Fwhisper-b%C3%A4se?x=%ff", &[("host", "a")]), Ok(()));
        let both = [("host", "a"), ("authorization", "Bearer a"), ("x-api-key", "a")];
        assert_eq!(check(Version::HTTP_11, "/", &both), Ok(()));
    }
}
