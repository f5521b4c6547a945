//! The servers that are scraped.

use std::collections::BTreeMap;

use hush_contract::admin::ServerAudience;
use hush_core::{Labels, ServerName};
use hyper::Uri;
use rustls::pki_types::DnsName;

use crate::http::Endpoint;

/// A label of every pod of a server, and of every static target.
pub const SERVER_LABEL: &str = "gpu.hush.dev/server";

/// One server as it was discovered. Nothing in it comes from the server itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrapeTarget {
    pub url: BaseUrl,
    pub labels: Labels,
    /// The node of its GPUs.
    pub node: String,
    /// The audience of its tokens; `None`: it is no pod, and the operator has named it.
    pub audience: Option<ServerAudience>,
}

pub type Targets = BTreeMap<ServerName, ScrapeTarget>;

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

    /// The URL of a server whose certificate has this name, whatever its address is.
    pub fn https_as(authority: impl Into<String>, name: DnsName<'static>) -> Self {
        Self { scheme: "https", authority: authority.into(), certificate_name: Some(name) }
    }

    /// `path` begins with a slash and is percent-encoded.
    pub fn join(&self, path: &str) -> Result<Endpoint, hyper::http::uri::InvalidUri> {
        Ok(Endpoint { uri: format!("{self}{path}").parse()?, certificate_name: self.certificate_name.clone() })
    }

    /// The same port on the loopback address of this machine, or of this pod.
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
        let has_path = !matches!(uri.path(), "" | "/") || uri.query().is_some();
        if has_path || authority.as_str().contains('@') {
            return Err(InvalidUrl);
        }
        Ok(Self { scheme, authority: authority.as_str().to_owned(), certificate_name: None })
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
