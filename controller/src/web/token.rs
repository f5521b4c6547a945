//! The token of those who may act. Its file is read for each action: tokens are rotated, and actions are few.

use std::path::PathBuf;

use axum::http::{HeaderMap, StatusCode, header};
use hush_contract::admin::code;
use subtle::ConstantTimeEq;

use super::error::Refusal;

const SHORTEST: usize = 16;
/// Where the token is when the request comes through the API server, which keeps `Authorization` for itself.
pub const TOKEN_HEADER: &str = "x-hush-token";
const MISSING: &str = "send the token of --page-token-file, as `Authorization: Bearer TOKEN` or, through the API server, as `X-Hush-Token: TOKEN`";

#[derive(Clone, Debug)]
pub struct Token {
    path: PathBuf,
}

impl Token {
    /// Refuses a file that could let nobody, or everybody, in.
    pub fn new(path: PathBuf) -> Result<Self, String> {
        let token = Self { path };
        token.read().map(|_| token)
    }

    fn read(&self) -> Result<String, String> {
        let path = self.path.display();
        let text = std::fs::read_to_string(&self.path).map_err(|error| format!("{path}: {error}"))?;
        let token = text.trim();
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{path}: must hold one token of at least {SHORTEST} printable characters without spaces, as \
                 `openssl rand -hex 16` makes them"
            ));
        }
        Ok(token.to_owned())
    }

    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(presented) = presented(headers) else {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, MISSING));
        };
        let token = self.read().map_err(|problem| {
            tracing::error!("nobody may act: {problem}");
            let message = "the controller cannot read its --page-token-file; its log says why";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code::AUTHENTICATION_UNAVAILABLE, message)
        })?;
        if bool::from(presented.as_bytes().ct_eq(token.as_bytes())) {
            Ok(())
        } else {
            Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                code::INVALID_TOKEN,
                "this is not the token of --page-token-file",
            ))
        }
    }
}

/// A header of its own goes first: on the way through a proxy the other may be that of the proxy.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    text(TOKEN_HEADER).map(str::trim).or_else(|| text(header::AUTHORIZATION.as_str()).and_then(bearer))
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const GOOD: &str = "0123456789abcdef";

    fn said(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap())])
    }

    fn verdict(token: &Token, headers: &HeaderMap) -> &'static str {
        token.check(headers).map_or_else(|refusal| refusal.body.code, |()| "in")
    }

    #[test]
    fn only_the_token_of_the_file_as_it_is_now_lets_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{GOOD}\n")).unwrap();
        let token = Token::new(file.path().to_owned()).unwrap();
        for (value, expected) in [
            (format!("Bearer {GOOD}"), "in"),
            (format!("bearer  {GOOD}"), "in"),
            (format!("Bearer {GOOD}0"), code::INVALID_TOKEN),
            ("Bearer 0123456789abcdeF".to_owned(), code::INVALID_TOKEN),
            ("Bearer ".to_owned(), code::INVALID_TOKEN),
            (format!("Basic {GOOD}"), code::UNAUTHENTICATED),
            (GOOD.to_owned(), code::UNAUTHENTICATED),
        ] {
            assert_eq!(verdict(&token, &said(&value)), expected, "{value}");
        }
        assert_eq!(verdict(&token, &HeaderMap::new()), code::UNAUTHENTICATED);
        let own =
            |value: &str| (axum::http::HeaderName::from_static(TOKEN_HEADER), HeaderValue::try_from(value).unwrap());
        let mut through_a_proxy = said("Bearer of-the-proxy-itself");
        through_a_proxy.extend([own(GOOD)]);
        assert_eq!(verdict(&token, &through_a_proxy), "in");
        let mut wrong = said(&format!("Bearer {GOOD}"));
        wrong.extend([own("0123456789abcdeF")]);
        assert_eq!(verdict(&token, &wrong), code::INVALID_TOKEN, "one that is shown counts");
        std::fs::write(file.path(), "another-token-of-them").unwrap();
        assert_eq!(verdict(&token, &said(&format!("Bearer {GOOD}"))), code::INVALID_TOKEN);
        assert_eq!(verdict(&token, &said("Bearer another-token-of-them")), "in");
        std::fs::write(file.path(), "").unwrap();
        assert_eq!(verdict(&token, &said("Bearer ")), code::AUTHENTICATION_UNAVAILABLE);
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_at_the_start() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "\n", "short", "two words in one line"] {
            std::fs::write(file.path(), text).unwrap();
            assert!(Token::new(file.path().to_owned()).unwrap_err().contains("at least 16"), "{text:?}");
        }
        assert!(Token::new("/nonexistent".into()).unwrap_err().contains("/nonexistent"));
    }
}
