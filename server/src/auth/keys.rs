//! A file of keys: one a line, `KEY` or `NAME KEY`; `#` begins a comment line.

use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use subtle::ConstantTimeEq;

use super::{Authenticate, Caller, Denied, Digest, digest};
use crate::watch::{WatchError, Watched};

/// Shorter ones can be guessed: `openssl rand -hex 16` gives 32.
const KEY_MIN_CHARS: usize = 16;

/// The keys of a file at one moment.
pub struct Keys {
    keys: Vec<Key>,
}

struct Key {
    name: String,
    digest: Digest,
}

impl Keys {
    /// The message names the line and never what is on it.
    pub fn parse(content: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(content).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut keys = Vec::new();
        for (n, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem: &str| format!("line {}: {problem}", n + 1);
            let (name, key) = match *line.split_whitespace().collect::<Vec<_>>() {
                [key] => (format!("key-{}", n + 1), key),
                [name, key] if name.len() <= 64 => (name.to_owned(), key),
                _ => return Err(wrong("expected a key, or a name of at most 64 characters and a key")),
            };
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("a key must be of printable ASCII characters"));
            }
            if key.len() < KEY_MIN_CHARS {
                return Err(wrong("a key must have at least 16 characters"));
            }
            keys.push(Key { name, digest: digest(key) });
        }
        Ok(Self { keys })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name of the key. Takes as long for any key: digests are compared, whole, and with each.
    pub fn find(&self, presented: &str) -> Option<&str> {
        let presented = digest(presented);
        self.keys.iter().fold(None, |found, key| {
            if bool::from(key.digest.ct_eq(&presented)) { Some(key.name.as_str()) } else { found }
        })
    }
}

/// Keys that are read again when the file changes.
#[derive(Clone)]
pub struct KeyFile {
    keys: Watched<Keys>,
}

impl KeyFile {
    /// A file without a key is an error now; later it lets nobody in. Must be called inside a tokio runtime.
    pub fn open(path: PathBuf) -> Result<Self, WatchError> {
        let keys = Watched::start(vec![path.clone()], |contents| {
            let keys = Keys::parse(contents.first().map_or(&[], Vec::as_slice))?;
            if keys.is_empty() {
                tracing::warn!("a file of keys holds none: nobody gets in");
            }
            Ok(keys)
        })?;
        if keys.get().is_empty() {
            return Err(WatchError::Content { paths: vec![path], problem: "it holds no key".to_owned() });
        }
        Ok(Self { keys })
    }

    /// The name of the key.
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
    fn authenticate<'a>(&'a self, token: &'a str, _: Option<IpAddr>) -> BoxFuture<'a, Result<Caller, Denied>> {
        let found = self.find(token).map(|name| Caller(format!("token:{name}")));
        future::ready(found.ok_or_else(|| Denied::Invalid("this token is not known here".to_owned()))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_and_without_names() {
        let text = "\u{feff}# comment\n\n  0123456789abcdef \r\nbazarr fedcba9876543210\n";
        let keys = Keys::parse(text.as_bytes()).unwrap();
        assert_eq!(keys.find("0123456789abcdef"), Some("key-3"));
        assert_eq!(keys.find("fedcba9876543210"), Some("bazarr"));
        for wrong in ["", "bazarr", "fedcba987654321", "fedcba98765432100", "# comment", "FEDCBA9876543210"] {
            assert_eq!(keys.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        for (text, says) in [
            ("good-0123456789abcdef\nsecret", "line 2: a key must have at least 16"),
            ("a b secret-0123456789abcdef", "line 1: expected a key"),
            ("secret-0123456789abcdé", "line 1: a key must be of printable"),
        ] {
            let error = Keys::parse(text.as_bytes()).err().unwrap();
            assert!(error.starts_with(says) && !error.contains("secret"), "{error}");
        }
        assert_eq!(Keys::parse(&[0xff]).err().as_deref(), Some("it is not UTF-8"));
        assert!(Keys::parse(b"# nothing\n").unwrap().is_empty());
    }
}
