//! The JSON body of a command: it is small, it is parsed strictly, and its errors name the field.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use hush_contract::admin::code;
use serde::de::DeserializeOwned;

use super::error::AdminError;

/// A command has a few hundred bytes.
const BODY_LIMIT_BYTES: usize = 16 << 10;
/// From the head of the request to the end of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads and checks a command. An empty body is the command without conditions.
pub async fn read<T: DeserializeOwned + Default>(headers: &HeaderMap, body: Body) -> Result<T, AdminError> {
    let late = |_| {
        let message = format!("the body did not come within {} s", READ_TIMEOUT.as_secs());
        AdminError::new(StatusCode::REQUEST_TIMEOUT, code::INVALID_REQUEST, message)
    };

    let bytes = tokio::time::timeout(READ_TIMEOUT, collect(body)).await.map_err(late)??;
    if bytes.is_empty() {
        return Ok(T::default());
    }

    let content_type = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or_default());
    if !content_type.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("application/json")) {
        let message = "the body must be JSON, with `Content-Type: application/json`";
        return Err(AdminError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code::UNSUPPORTED_MEDIA_TYPE, message));
    }

    parse(&bytes)
}

async fn collect(body: Body) -> Result<Vec<u8>, AdminError> {
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();

    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| AdminError::invalid(None, format!("the body broke off: {error}")))?;
        if bytes.len() + chunk.len() > BODY_LIMIT_BYTES {
            let message = format!("the body is larger than {BODY_LIMIT_BYTES} bytes");
            return Err(AdminError::new(StatusCode::PAYLOAD_TOO_LARGE, code::BODY_TOO_LARGE, message));
        }

        bytes.extend_from_slice(&chunk);
    }

    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AdminError> {
    // Serde would also take the fields as a list, and an empty one as a command without conditions.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(AdminError::invalid(None, "the body must be a JSON object"));
    }

    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        // In a body that is not JSON there is no field to name.
        let field = quoted_field(&message).or((path != "." && path != "?").then_some(path));
        AdminError::invalid(field, message)
    })?;

    json.end().map_err(|error| AdminError::invalid(None, error.to_string()))?;
    Ok(parsed)
}

/// The field that the type does not have, or that is given twice: serde names it only in its message.
fn quoted_field(message: &str) -> Option<String> {
    let rest = ["unknown field `", "duplicate field `"].iter().find_map(|start| message.strip_prefix(start))?;

    rest.split_once('`').map(|(field, _)| field.to_owned())
}

#[cfg(test)]
mod tests {
    use hush_contract::admin::UnloadRequest;
    use proptest::prelude::*;

    use super::*;

    fn field(body: &str) -> Option<String> {
        let error = parse::<UnloadRequest>(body.as_bytes()).expect_err(body);
        let debug = format!("{error:?}");
        let at = debug.find("field: ").unwrap();
        debug[at + 7..].strip_prefix("Some(\"").map(|rest| rest.split('"').next().unwrap().to_owned())
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(field(r#"{"if_idle_second": 1}"#).as_deref(), Some("if_idle_second"));
        assert_eq!(field(r#"{"if_generation": "7"}"#).as_deref(), Some("if_generation"));
        assert_eq!(field(r#"{"if_generation": -1}"#).as_deref(), Some("if_generation"));
        assert_eq!(field(r#"{"hold_seconds": 1e9}"#).as_deref(), Some("hold_seconds"));
        assert_eq!(field(r#"{"reason": "a b"}"#).as_deref(), Some("reason"));
        assert_eq!(field(r#"{"policy": "ns/a", "policy": "ns/b"}"#).as_deref(), Some("policy"));
        assert_eq!(field("[]"), None);
        assert_eq!(field("{} {}"), None);
        assert_eq!(field("{"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse::<UnloadRequest>(&bytes);
        }

        #[test]
        fn no_json_makes_it_panic(text in r#"\{("(if_generation|hold_seconds|reason|policy|x)":(-?[0-9]{1,30}(e[0-9]{1,4})?|null|"[^"\\]{0,9}"|\[\]|\{\}),?){0,4}\}"#) {
            let _ = parse::<UnloadRequest>(text.as_bytes());
        }
    }
}
