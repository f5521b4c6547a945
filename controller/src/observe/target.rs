//! The servers that are watched.

use std::collections::BTreeMap;

use hush_contract::admin::ServerAudience;
use hush_core::{Labels, ServerName};
use hyper::Uri;
use rustls::pki_types::DnsName;

use crate::http::Endpoint;

/// What every server's pod carries, and every static target.
pub const SERVER_LABEL: &str = "gpu.hush.dev/server";

/// One server, as it is found from outside; nothing of it is taken from its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub url: BaseUrl,
    pub labels: Labels,
    /// Where its GPUs are.
    pub node: String,
    /// For whom tokens for it are made; `None`: it is no pod, the operator has named it.
    pub audience: Option<ServerAudience>,
}

pub type Targets = BTreeMap<ServerName, Target>;

/// `http://host:port` or `https://host:port` of a server's operations port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: &'static str,
    authority: String,
    /// The name that the certificate must have; `None`: the host.
    certificate_name: Option<DnsName<'static>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be the URL of a server's operations port, such as http://127.0.0.1:9001")]
pub struct InvalidUrl;

impl BaseUrl {
    pub fn http(authority: impl Into<String>) -> Self {
        Self { scheme: "http", authority: authority.into(), certificate_name: None }
    }

    /// The server shows a certificate with this name, whatever its address is.
    pub fn https_as(authority: impl Into<String>, name: DnsName<'static>) -> Self {
        Self { scheme: "https", authority: authority.into(), certificate_name: Some(name) }
    }

    /// `path` begins with a slash and is encoded.
    pub fn join(&self, path: &str) -> Result<Endpoint, hyper::http::uri::InvalidUri> {
        Ok(Endpoint { uri: format!("{self}{path}").parse()?, certificate_name: self.certificate_name.clone() })
    }

    /// The same port of this machine, or of this pod.
    #[must_use]
    pub fn on_loopback(&self) -> Self {
        let port = self.authority.rsplit(':').next().unwrap_or_default();
        Self { authority: format!("127.0.0.1:{port}"), ..self.clone() }
    }

    pub fn host(&self) -> &str {
        let end = self.authority.rfind(':').unwrap_or(self.authority.len());
        &self.authority[..end]
    }

    pub fn authority(&self) -> &str {
        &self.authority
    }
}

impl std::str::FromStr for BaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let uri: Uri = text.parse().map_err(|_| InvalidUrl)?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(InvalidUrl),
        };
        let authority = uri.authority().filter(|authority| authority.port_u16().is_some()).ok_or(InvalidUrl)?;
        let plain = matches!(uri.path(), "" | "/") && uri.query().is_none() && !authority.as_str().contains('@');
        let url = || Self { scheme, authority: authority.as_str().to_owned(), certificate_name: None };
        if plain { Ok(url()) } else { Err(InvalidUrl) }
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_operations_ports() {
        for good in ["http://127.0.0.1:9001", "https://gpu-1.example:9001", "http://[::1]:9001"] {
            assert_eq!(good.parse::<BaseUrl>().unwrap().to_string(), good);
        }
        assert_eq!("http://[::1]:9001/".parse::<BaseUrl>().unwrap().host(), "[::1]");
        for bad in ["", "127.0.0.1:9001", "ftp://a:1", "http://a", "http://a:1/metrics", "http://a:1?x", "http://u@a:1"]
        {
            assert!(bad.parse::<BaseUrl>().is_err(), "{bad}");
        }
    }
}
