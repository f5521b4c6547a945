//! The credential that the sidecar's own requests to the app carry. It is a file, which is read again when it changes.

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use hush_access::{WatchError, WatchedFiles};

/// How an app wants its credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialForm {
    /// `Authorization: Bearer ...`
    Bearer,
    /// `Authorization: Basic ...`; the file contains `user:password`.
    Basic,
    /// A header with nothing but the credential, such as `x-admin-key`.
    Header(HeaderName),
}

/// A credential in a file. Cheap to clone.
#[derive(Clone)]
pub struct UpstreamCredential {
    name: HeaderName,
    value: WatchedFiles<HeaderValue>,
}

impl fmt::Debug for UpstreamCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamCredential").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why the content of a credential file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialFileError {
    #[error("it is empty")]
    Empty,
    #[error("it has characters that a header cannot have; it must be one line")]
    Characters,
}

impl UpstreamCredential {
    /// Reads the file, now and when it changes. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the file cannot be read, or is no credential.
    pub fn from_file(path: PathBuf, form: CredentialForm) -> Result<Self, WatchError> {
        let name = match &form {
            CredentialForm::Bearer | CredentialForm::Basic => AUTHORIZATION,
            CredentialForm::Header(name) => name.clone(),
        };

        let parse = move |contents: &[Vec<u8>]| value(contents.first().map_or(&[][..], Vec::as_slice), &form);
        Ok(Self { name, value: WatchedFiles::start(vec![path], parse)? })
    }

    pub(super) fn header(&self) -> (HeaderName, HeaderValue) {
        (self.name.clone(), HeaderValue::clone(&self.value.get()))
    }
}

fn value(content: &[u8], form: &CredentialForm) -> Result<HeaderValue, CredentialFileError> {
    let credential = content.trim_ascii();
    if credential.is_empty() {
        return Err(CredentialFileError::Empty);
    }

    let bytes = match form {
        CredentialForm::Bearer => [b"Bearer ", credential].concat(),
        CredentialForm::Basic => [b"Basic ", STANDARD.encode(credential).as_bytes()].concat(),
        CredentialForm::Header(_) => credential.to_vec(),
    };
    let mut value = HeaderValue::from_bytes(&bytes).map_err(|_| CredentialFileError::Characters)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_credential() {
        let text = |content: &[u8], form| value(content, &form).map(|value| value.to_str().unwrap().to_owned());

        assert_eq!(text(b"secret\n", CredentialForm::Bearer).unwrap(), "Bearer secret");
        assert_eq!(text(b"user:pass\n", CredentialForm::Basic).unwrap(), "Basic dXNlcjpwYXNz");
        let header = CredentialForm::Header(HeaderName::from_static("x-admin-key"));
        assert_eq!(text(b" secret ", header.clone()).unwrap(), "secret");
        assert_eq!(text(b" \n", header.clone()), Err(CredentialFileError::Empty));
        assert_eq!(text(b"two\nlines", header), Err(CredentialFileError::Characters));
    }
}
