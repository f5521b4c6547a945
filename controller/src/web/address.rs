//! The server, model or policy that a request is about. It is in the query and not in the path: the API server and other
//! proxies on the way write `%2F` as a slash, and names of servers and policies have slashes.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use hush_core::{ModelKey, ServerName};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiRefusal;

/// `?server=NAMESPACE/POD&model=NAME`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelQuery {
    server: String,
    model: String,
}

/// `?server=NAMESPACE/POD`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerQuery {
    pub server: String,
}

/// `?policy=NAMESPACE/NAME`, or `?policy=/NAME` for a policy of the cluster kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyQuery {
    pub policy: String,
}

impl ModelQuery {
    pub fn key(self) -> ModelKey {
        ModelKey { server: ServerName(self.server), model: self.model }
    }
}

/// Extracts a query; the refusal of an invalid one names the parameter.
pub struct TargetQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for TargetQuery<T> {
    type Rejection = ApiRefusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiRefusal> {
        let query = Query::<T>::try_from_uri(&parts.uri);

        query.map(|Query(target)| Self(target)).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            ApiRefusal::invalid(format!("the query of the address is not what it must be: {cause}"))
        })
    }
}
