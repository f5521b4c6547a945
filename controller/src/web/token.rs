//! The page token, which commands and plans with other policies need. Its file is read for each check: tokens are rotated,
//! and checks are few.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use hush_contract::admin::code;
use subtle::ConstantTimeEq;

use super::error::ApiRefusal;

const TOKEN_MIN_BYTES: usize = 16;
/// The header for the token when a request comes through the API server, which keeps `Authorization` for itself.
pub const TOKEN_HEADER: &str = "x-hush-token";
const MISSING_TOKEN: &str = "send the token of --page-token-file, as `Authorization: Bearer TOKEN` or, through the API server, as `X-Hush-Token: TOKEN`";
const WRONG_TOKEN: &str = "this is not the token of --page-token-file";
const UNREADABLE_TOKEN: &str = "the controller cannot read its --page-token-file; its log says why";

#[derive(Clone, Debug)]
pub struct PageToken {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PageTokenError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{}: must hold one token of at least {TOKEN_MIN_BYTES} printable characters without spaces, as \
         `openssl rand -hex 16` makes them",
        path.display()
    )]
    Invalid { path: PathBuf },
}

impl PageToken {
    /// Refuses a file that holds no token, or one that is too short to be a secret.
    pub fn new(path: PathBuf) -> Result<Self, PageTokenError> {
        let token = Self { path };
        token.read().map(|_| token)
    }

    fn read(&self) -> Result<String, PageTokenError> {
        let path = || self.path.clone();
        let text =
            std::fs::read_to_string(&self.path).map_err(|source| PageTokenError::Read { path: path(), source })?;

        let token = text.trim();
        if token.len() < TOKEN_MIN_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(PageTokenError::Invalid { path: path() });
        }
        Ok(token.to_owned())
    }

    /// Blocking.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiRefusal> {
        let Some(presented) = presented_token(headers) else {
            return Err(ApiRefusal::new(StatusCode::UNAUTHORIZED, code::UNAUTHENTICATED, MISSING_TOKEN));
        };

        let token = self.read().map_err(|error| {
            tracing::error!("commands are refused, because the page token cannot be read: {error}");
            ApiRefusal::new(StatusCode::SERVICE_UNAVAILABLE, code::AUTHENTICATION_UNAVAILABLE, UNREADABLE_TOKEN)
        })?;
        if !bool::from(presented.as_bytes().ct_eq(token.as_bytes())) {
            return Err(ApiRefusal::new(StatusCode::UNAUTHORIZED, code::INVALID_TOKEN, WRONG_TOKEN));
        }
        Ok(())
    }
}

/// The token's own header takes precedence: behind a proxy, `Authorization` may hold the proxy's credential.
fn presented_token(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    text(TOKEN_HEADER).map(str::trim).or_else(|| text(header::AUTHORIZATION.as_str()).and_then(bearer_token))
}

fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    const GOOD: &str = "0123456789abcdef";

    fn authorization(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap())])
    }

    /// `in`, or the code of the refusal.
    fn result(token: &PageToken, headers: &HeaderMap) -> String {
        token.check(headers).map_or_else(|refusal| refusal.body.code.into_owned(), |()| "in".to_owned())
    }

    #[test]
    fn only_the_token_of_the_file_as_it_is_now_lets_in() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{GOOD}\n")).unwrap();
        let token = PageToken::new(file.path().to_owned()).unwrap();

        for (value, expected) in [
            (format!("Bearer {GOOD}"), "in"),
            (format!("bearer  {GOOD}"), "in"),
            (format!("Bearer {GOOD}0"), code::INVALID_TOKEN),
            ("Bearer 0123456789abcdeF".to_owned(), code::INVALID_TOKEN),
            ("Bearer ".to_owned(), code::INVALID_TOKEN),
            (format!("Basic {GOOD}"), code::UNAUTHENTICATED),
            (GOOD.to_owned(), code::UNAUTHENTICATED),
        ] {
            assert_eq!(result(&token, &authorization(&value)), expected, "{value}");
        }
        assert_eq!(result(&token, &HeaderMap::new()), code::UNAUTHENTICATED);

        let own_header = |value: &str| (HeaderName::from_static(TOKEN_HEADER), HeaderValue::try_from(value).unwrap());
        let mut through_a_proxy = authorization("Bearer of-the-proxy-itself");
        through_a_proxy.extend([own_header(GOOD)]);
        assert_eq!(result(&token, &through_a_proxy), "in");

        let mut wrong = authorization(&format!("Bearer {GOOD}"));
        wrong.extend([own_header("0123456789abcdeF")]);
        assert_eq!(result(&token, &wrong), code::INVALID_TOKEN, "the token's own header counts");

        std::fs::write(file.path(), "another-token-of-them").unwrap();
        assert_eq!(result(&token, &authorization(&format!("Bearer {GOOD}"))), code::INVALID_TOKEN);
        assert_eq!(result(&token, &authorization("Bearer another-token-of-them")), "in");

        std::fs::write(file.path(), "").unwrap();
        assert_eq!(result(&token, &authorization("Bearer ")), code::AUTHENTICATION_UNAVAILABLE);
    }

    #[test]
    fn a_file_that_is_no_secret_is_refused_at_the_start() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "\n", "short", "two words in one line"] {
            std::fs::write(file.path(), text).unwrap();
            let error = PageToken::new(file.path().to_owned()).unwrap_err();
            assert!(matches!(error, PageTokenError::Invalid { .. }), "{text:?}");
            assert!(error.to_string().contains("at least 16"), "{text:?}");
        }

        assert!(PageToken::new("/nonexistent".into()).unwrap_err().to_string().contains("/nonexistent"));
    }
}
