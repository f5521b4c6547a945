//! The credential that the sidecar's own requests to the app carry. It is a file, which is read again when it changes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use hush_access::{WatchError, WatchedFiles};

use crate::app::App;

/// A credential in a file, sent in the header that the app reads. Cheap to clone.
#[derive(Clone)]
pub struct UpstreamCredential {
    header: WatchedFiles<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for UpstreamCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamCredential")
    }
}

/// Why the content of a credential file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppKeyError {
    #[error("it is empty")]
    Empty,
    #[error("it is not UTF-8")]
    NotText,
}

impl UpstreamCredential {
    /// Reads the file, now and when it changes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the file cannot be read, or its content has not the form that the app needs.
    pub fn from_file(path: PathBuf, app: &Arc<App>) -> Result<Self, WatchError> {
        let app = Arc::clone(app);

        let header = WatchedFiles::start(vec![path], move |contents| {
            let key = read_key(contents.first().map_or(&[][..], Vec::as_slice))?;
            Ok::<_, hush_access::ContentError>(app.credential_header(key)?)
        })?;
        Ok(Self { header })
    }

    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        self.header.get().as_ref().clone()
    }
}

fn read_key(content: &[u8]) -> Result<&str, AppKeyError> {
    let key = std::str::from_utf8(content).map_err(|_| AppKeyError::NotText)?.trim();

    if key.is_empty() { Err(AppKeyError::Empty) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn the_app_says_how_its_key_is_sent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret\n").unwrap();

        let vllm = Arc::new(App::find("vllm").unwrap());
        let credential = UpstreamCredential::from_file(file.path().to_owned(), &vllm).unwrap();
        let (name, value) = credential.header();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("authorization", "Bearer secret"));
        assert!(value.is_sensitive());

        fs::write(file.path(), " \n").unwrap();
        let error = UpstreamCredential::from_file(file.path().to_owned(), &vllm).unwrap_err();
        assert!(error.to_string().contains("it is empty"), "{error}");
    }
}
