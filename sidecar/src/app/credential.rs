//! How the sidecar's own requests carry the app's key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, header};

use super::description::{CredentialDescription, CredentialScheme};
use super::problem::FieldScope;

/// A key that cannot be sent. The message does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("the app's key must be one line of visible characters")]
    NotAHeader,
    #[error("the app's key must be written as `user:password`")]
    NotAPair,
    #[error("the app's key must be written as `Header-Name: value`")]
    NotALine,
}

/// The header that carries the key.
#[derive(Clone, Debug)]
pub(super) struct CredentialForm {
    scheme: CredentialScheme,
    header: HeaderName,
}

impl CredentialForm {
    pub(super) fn compile(source: &CredentialDescription, field: &FieldScope<'_>) -> Option<Self> {
        let field = field.member("header");
        let header = match (&source.header, source.scheme) {
            (Some(name), CredentialScheme::Header) => HeaderName::from_bytes(name.as_bytes()).ok(),
            (None, CredentialScheme::Header) => None,
            (Some(_), _) => {
                field.report("belongs to the scheme `header`");
                None
            }
            (None, _) => Some(header::AUTHORIZATION),
        };
        if header.is_none() && source.scheme == CredentialScheme::Header {
            field.report("must be the name of a header, such as `x-admin-key`");
        }
        Some(Self { scheme: source.scheme, header: header? })
    }

    /// The header for a key, marked as sensitive.
    pub(super) fn header(&self, key: &str) -> Result<(HeaderName, HeaderValue), CredentialError> {
        let key = key.trim();
        let (name, text) = match self.scheme {
            CredentialScheme::Bearer => (self.header.clone(), format!("Bearer {key}")),
            CredentialScheme::Header => (self.header.clone(), key.to_owned()),
            CredentialScheme::Basic => {
                let pair = key.contains(':').then(|| STANDARD.encode(key)).ok_or(CredentialError::NotAPair)?;
                (self.header.clone(), format!("Basic {pair}"))
            }
            CredentialScheme::Line => {
                let (name, value) = key.split_once(':').ok_or(CredentialError::NotALine)?;
                let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| CredentialError::NotALine)?;
                (name, value.trim().to_owned())
            }
        };

        let mut value = HeaderValue::from_str(&text).map_err(|_| CredentialError::NotAHeader)?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn header(scheme: CredentialScheme, name: Option<&str>, key: &str) -> Result<(String, String), CredentialError> {
        let problems = RefCell::default();
        let source = CredentialDescription { scheme, header: name.map(str::to_owned) };
        let form = CredentialForm::compile(&source, &FieldScope::root(&problems)).unwrap();

        let (name, value) = form.header(key)?;
        assert!(value.is_sensitive());
        Ok((name.to_string(), value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn each_scheme_has_its_header() {
        let text = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(header(CredentialScheme::Bearer, None, " k\n"), text("authorization", "Bearer k"));
        assert_eq!(header(CredentialScheme::Basic, None, "u:p"), text("authorization", "Basic dTpw"));
        assert_eq!(header(CredentialScheme::Header, Some("X-Admin-Key"), "k"), text("x-admin-key", "k"));
        assert_eq!(header(CredentialScheme::Line, None, "Admin-Key: v:w"), text("admin-key", "v:w"));

        assert_eq!(header(CredentialScheme::Basic, None, "up"), Err(CredentialError::NotAPair));
        assert_eq!(header(CredentialScheme::Line, None, "a b: c"), Err(CredentialError::NotALine));
        assert_eq!(header(CredentialScheme::Bearer, None, "a\nb"), Err(CredentialError::NotAHeader));
    }
}
