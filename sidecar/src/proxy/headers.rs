//! Which headers cross the proxy, and which are the connection's own.

use std::net::SocketAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use hush_listener::REQUEST_ID;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether the request asks for a websocket.
pub fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    let asks = connection_tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    asks && headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Whether the body is a stream of events, which may have no end.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with("text/event-stream"))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Removes the headers that concern one connection alone (RFC 9110, 7.6.1), with those that `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers).filter_map(|token| token.parse().ok()).collect();

    for name in named {
        // `Connection` cannot take away what the proxy itself decides on: the app would read another request.
        if !matches!(name, HOST | CONTENT_LENGTH | CONTENT_TYPE | CONTENT_ENCODING | AUTHORIZATION) {
            headers.remove(name);
        }
    }
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// What is told the app about the client.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts<'a> {
    pub peer: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    pub request_id: &'a HeaderValue,
    /// The host of a request whose target is a whole URL.
    pub target_host: Option<&'a str>,
}

/// Turns the headers of a client's request into those of the request to the app. The length of the body is for the caller
/// to set.
pub fn to_upstream(headers: &mut HeaderMap, host: &HeaderValue, client: ClientFacts<'_>, is_upgrade: bool) {
    let takes_trailers = headers.get_all(TE).iter().any(|value| {
        let coding =
            |text: &str| text.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("trailers"));
        value.to_str().is_ok_and(|text| text.split(',').any(coding))
    });

    remove_hop_by_hop(headers);
    for name in [PROXY_AUTHORIZATION, TRAILER, EXPECT, CONTENT_LENGTH] {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if is_upgrade {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }

    let target_host = client.target_host.and_then(|host| HeaderValue::try_from(host).ok());
    let client_host = headers.insert(HOST, host.clone());
    if let Some(client_host) = target_host.or(client_host)
        && !headers.contains_key(FORWARDED_HOST)
    {
        headers.insert(FORWARDED_HOST, client_host);
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(client.scheme));
    }
    add_forwarded_for(headers, client.peer);
    headers.insert(REQUEST_ID, client.request_id.clone());
}

fn add_forwarded_for(headers: &mut HeaderMap, peer: SocketAddr) {
    let before: Vec<&str> = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();

    let peer = peer.ip().to_canonical().to_string();
    let all = if before.is_empty() { peer } else { format!("{}, {peer}", before.join(", ")) };
    if let Ok(value) = HeaderValue::try_from(all) {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// Turns the headers of the app's answer into those of the answer to the client. `Trailer` stays: it is what allows the
/// trailers themselves to pass.
pub fn to_client(headers: &mut HeaderMap, request_id: &HeaderValue, is_upgrade: bool) {
    let upgrade = headers.get(UPGRADE).cloned().filter(|_| is_upgrade);

    remove_hop_by_hop(headers);
    headers.remove(PROXY_AUTHENTICATE);
    if let Some(upgrade) = upgrade {
        headers.insert(UPGRADE, upgrade);
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    if !headers.contains_key(REQUEST_ID) {
        headers.insert(REQUEST_ID, request_id.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    fn forwarded(headers: &[(&'static str, &'static str)], is_upgrade: bool) -> HeaderMap {
        let mut headers = map(headers);
        let id = HeaderValue::from_static("id-1");
        let peer = "[::ffff:10.0.0.7]:5".parse().unwrap();
        let client = ClientFacts { peer, scheme: "http", request_id: &id, target_host: None };
        to_upstream(&mut headers, &HeaderValue::from_static("127.0.0.1:1"), client, is_upgrade);
        headers
    }

    #[test]
    fn what_concerns_one_connection_does_not_cross() {
        let sent = forwarded(
            &[
                ("host", "gpu.example"),
                ("connection", "close, X-Private, host, content-length, Content-Encoding, authorization"),
                ("x-private", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "gzip, trailers;q=0.5"),
                ("trailer", "x"),
                ("transfer-encoding", "chunked"),
                ("content-length", "3"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("authorization", "Bearer client"),
                ("content-encoding", "gzip"),
                ("x-forwarded-for", "1.2.3.4"),
            ],
            false,
        );

        let expected = map(&[
            ("host", "127.0.0.1:1"),
            ("te", "trailers"),
            ("connection", "te"),
            ("authorization", "Bearer client"),
            ("content-encoding", "gzip"),
            ("x-forwarded-for", "1.2.3.4, 10.0.0.7"),
            ("x-forwarded-host", "gpu.example"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "id-1"),
        ]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn what_an_outer_proxy_said_stays() {
        let sent = forwarded(&[("host", "a"), ("x-forwarded-host", "b"), ("x-forwarded-proto", "https")], false);
        assert_eq!(
            (&sent["x-forwarded-host"], &sent["x-forwarded-proto"]),
            (&"b".parse().unwrap(), &"https".parse().unwrap())
        );
    }

    #[test]
    fn a_handshake_keeps_its_headers() {
        let asked = [
            ("host", "a"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "k"),
            ("origin", "o"),
        ];
        assert!(is_websocket_upgrade(&map(&asked)));
        let sent = forwarded(&asked, true);
        assert_eq!(
            (&sent["connection"], &sent["upgrade"]),
            (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        assert!(sent.contains_key("sec-websocket-key") && sent.contains_key("origin"));

        for none in [&[("upgrade", "websocket")][..], &[("connection", "upgrade"), ("upgrade", "h2c")]] {
            assert!(!is_websocket_upgrade(&map(none)));
        }
    }

    #[test]
    fn an_answer_keeps_its_own_headers() {
        let mut headers = map(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("trailer", "x-sum"),
            ("content-length", "3"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
        ]);
        to_client(&mut headers, &HeaderValue::from_static("id-1"), false);
        let expected = map(&[
            ("trailer", "x-sum"),
            ("content-length", "3"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("x-request-id", "id-1"),
        ]);
        assert_eq!(headers, expected);
    }
}
