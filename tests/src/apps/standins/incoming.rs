//! A request that reached a stand-in, read to its end.

use axum::body::{Body, Bytes};
use axum::extract::Request;
use futures_util::StreamExt;
use http::{HeaderMap, Method};
use hyper::upgrade::OnUpgrade;
use percent_encoding::percent_decode_str;
use ring::digest::{Context, SHA256};
use serde_json::Value;

use super::journal::{Journal, JournalEvent};

/// Only this much of a larger body is kept; all of it counts in the checksum.
const KEPT_BYTES: usize = 1 << 20;

/// Longer bodies are noted by their checksum alone.
const NOTED_BYTES: usize = 4096;

pub struct Incoming {
    pub method: Method,
    /// Decoded, without the query.
    pub path: String,
    query: String,
    pub headers: HeaderMap,
    /// Its first [`KEPT_BYTES`].
    pub body: Bytes,
    /// `Null`: the body is no JSON.
    pub json: Value,
    /// The request asks for a websocket.
    pub upgrade: Option<OnUpgrade>,
}

impl Incoming {
    /// Reads the whole request and writes it into the journal; `None`: the client left before its end.
    pub async fn read(mut request: Request, journal: &Journal) -> Option<Self> {
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (parts, body) = request.into_parts();
        let (kept, body_bytes, body_sha256) = read_body(body).await?;
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());

        journal.write(JournalEvent::Request {
            method: parts.method.to_string(),
            path: parts.uri.to_string(),
            body_bytes,
            body_sha256,
            body_text: (kept.len() <= NOTED_BYTES).then(|| String::from_utf8(kept.to_vec()).ok()).flatten(),
            marker: header("x-test-marker").map(str::to_owned),
        });
        let is_upgrade = header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
        Some(Self {
            method: parts.method,
            path: percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            json: serde_json::from_slice(&kept).unwrap_or(Value::Null),
            body: kept,
            upgrade: upgrade.filter(|_| is_upgrade),
        })
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        let value = pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)?;
        Some(percent_decode_str(value).decode_utf8_lossy().into_owned())
    }

    /// A top-level member of a JSON body.
    pub fn text(&self, member: &str) -> Option<&str> {
        self.json[member].as_str()
    }

    pub fn number(&self, member: &str) -> Option<u64> {
        self.json[member].as_u64()
    }

    pub fn flag(&self, member: &str) -> Option<bool> {
        self.json[member].as_bool()
    }

    /// A field of a multipart form, if it is text and lies in what is kept.
    pub fn form_field(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.body);
        let (_, rest) = text.split_once(&format!("name=\"{name}\"\r\n"))?;
        let (_, value) = rest.split_once("\r\n")?;
        value.split("\r\n").next().map(str::to_owned)
    }

    /// The model in JSON, form or query.
    pub fn model(&self) -> Option<String> {
        self.text("model").map(str::to_owned).or_else(|| self.form_field("model")).or_else(|| self.parameter("model"))
    }

    /// How many tokens the answer shall have.
    pub fn tokens(&self) -> usize {
        let options = &self.json["options"]["num_predict"];
        let asked = options.as_u64().or_else(|| self.number("max_tokens")).or_else(|| self.number("n_predict"));
        usize::try_from(asked.unwrap_or(4)).unwrap_or(usize::MAX)
    }
}

async fn read_body(body: Body) -> Option<(Bytes, u64, String)> {
    let mut stream = body.into_data_stream();
    let mut digest = Context::new(&SHA256);
    let mut kept = Vec::new();
    let mut total = 0;

    while let Some(chunk) = stream.next().await {
        let chunk = chunk.ok()?;
        digest.update(&chunk);
        total += chunk.len() as u64;
        let room = KEPT_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
    Some((kept.into(), total, hexadecimal(digest.finish().as_ref())))
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
