//! What a request is about. It is in the query and not in the path: the API server and other proxies on the way write
//! `%2F` as a slash, and names of servers and policies have slashes.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use hush_core::{ModelKey, ServerName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::Refusal;

/// `?server=NAMESPACE/POD&model=NAME`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfModel {
    server: String,
    model: String,
}

/// `?server=NAMESPACE/POD`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfServer {
    pub server: String,
}

/// `?policy=NAMESPACE/NAME`, or `?policy=/NAME` of the cluster kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfPolicy {
    pub policy: String,
}

impl OfModel {
    pub fn key(self) -> ModelKey {
        ModelKey { server: ServerName(self.server), model: self.model }
    }
}

/// A query, or a refusal that names the parameter.
pub struct About<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for About<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(about)| Self(about)).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Refusal::invalid(format!("the query of the address is not what it must be: {cause}"))
        })
    }
}
