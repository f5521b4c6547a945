//! A file of API keys: one key per line, `KEY` or `NAME KEY`; a line that begins with `#` is a comment.

use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use subtle::ConstantTimeEq;

use super::{AccessDenied, Authenticate, Caller, CredentialDigest, digest};
use crate::watch::{WatchError, WatchedFiles};

/// Minimal length; shorter keys can be guessed. `openssl rand -hex 16` makes a key of 32 characters.
const KEY_MIN_CHARS: usize = 16;

/// Why a line of a file of keys is refused. The text names the line and never its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeys {
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("line {line}: expected a key, or a name of at most 64 characters and a key")]
    Fields { line: usize },
    #[error("line {line}: a key must be of printable ASCII characters")]
    Characters { line: usize },
    #[error("line {line}: a key must have at least 16 characters")]
    TooShort { line: usize },
}

/// The keys that a file holds at one moment.
pub struct ApiKeys {
    keys: Vec<ApiKey>,
}

struct ApiKey {
    name: String,
    digest: CredentialDigest,
}

impl ApiKeys {
    /// Parses the content of a file of keys.
    pub fn parse(content: &[u8]) -> Result<Self, InvalidKeys> {
        let text = std::str::from_utf8(content).map_err(|_| InvalidKeys::NotUtf8)?;
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }

            let (name, key) = match *text.split_whitespace().collect::<Vec<_>>() {
                [key] => (format!("key-{line}"), key),
                [name, key] if name.len() <= 64 => (name.to_owned(), key),
                _ => return Err(InvalidKeys::Fields { line }),
            };

            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(InvalidKeys::Characters { line });
            }

            if key.len() < KEY_MIN_CHARS {
                return Err(InvalidKeys::TooShort { line });
            }

            keys.push(ApiKey { name, digest: digest(key) });
        }
        Ok(Self { keys })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name of a key. The time does not depend on the key: its digest is compared with all digests, in constant
    /// time each.
    pub fn find(&self, presented: &str) -> Option<&str> {
        let presented = digest(presented);
        self.keys.iter().fold(None, |found, key| {
            if bool::from(key.digest.ct_eq(&presented)) { Some(key.name.as_str()) } else { found }
        })
    }
}

/// A file of keys, which is read again when it changes.
#[derive(Clone)]
pub struct KeyFile {
    keys: WatchedFiles<ApiKeys>,
}

impl KeyFile {
    /// Opens the file. A file without a key is an error here; when the file loses its keys later, no key is accepted.
    /// Must be called inside a tokio runtime.
    pub fn open(path: PathBuf) -> Result<Self, WatchError> {
        let keys = WatchedFiles::start(vec![path.clone()], |contents| {
            let keys = ApiKeys::parse(contents.first().map_or(&[], Vec::as_slice))?;
            if keys.is_empty() {
                tracing::warn!("a file of keys holds none: no key is accepted");
            }

            Ok::<_, InvalidKeys>(keys)
        })?;

        if keys.get().is_empty() {
            return Err(WatchError::Content { paths: vec![path], problem: "it holds no key".into() });
        }
        Ok(Self { keys })
    }

    /// The name of a key.
    pub fn find(&self, presented: &str) -> Option<String> {
        self.keys.get().find(presented).map(ToOwned::to_owned)
    }
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFile")
    }
}

impl Authenticate for KeyFile {
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<IpAddr>) -> BoxFuture<'a, Result<Caller, AccessDenied>> {
        let found = self.find(token).map(|name| Caller(format!("token:{name}")));
        future::ready(found.ok_or_else(|| AccessDenied::Invalid("this token is not known here".to_owned()))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_and_without_names() {
        let text = "\u{feff}# comment\n\n  0123456789abcdef \r\nbazarr fedcba9876543210\n";
        let keys = ApiKeys::parse(text.as_bytes()).unwrap();
        assert_eq!(keys.find("0123456789abcdef"), Some("key-3"));

        assert_eq!(keys.find("fedcba9876543210"), Some("bazarr"));
        for wrong in ["", "bazarr", "fedcba987654321", "fedcba98765432100", "# comment", "FEDCBA9876543210"] {
            assert_eq!(keys.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_and_its_content_is_not_shown() {
        for (text, says) in [
            ("good-0123456789abcdef\nsecret", "line 2: a key must have at least 16"),
            ("a b secret-0123456789abcdef", "line 1: expected a key"),
            ("secret-0123456789abcdé", "line 1: a key must be of printable"),
        ] {
            let error = ApiKeys::parse(text.as_bytes()).err().unwrap().to_string();
            assert!(error.starts_with(says) && !error.contains("secret"), "{error}");
        }

        assert_eq!(ApiKeys::parse(&[0xff]).err(), Some(InvalidKeys::NotUtf8));
        assert_eq!(InvalidKeys::NotUtf8.to_string(), "it is not UTF-8");
        assert!(ApiKeys::parse(b"# nothing\n").unwrap().is_empty());
    }
}
