//! Who somebody is: keys from a file, or tokens that Kubernetes vouches for. No credential is ever logged or kept; what
//! is kept is its SHA-256.

mod keys;
mod review;

use std::fmt;
use std::net::IpAddr;

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

pub use keys::{KeyFile, Keys};
pub use review::{Account, ApiServer, InvalidApiServer, ReviewSettings, TokenReview};

/// Who gave a command, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub String);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why somebody is not let in. The texts go to the caller and hold nothing of the credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The credential is none that is known here.
    #[error("{0}")]
    Invalid(String),
    /// A valid credential of somebody who may not.
    #[error("{0}")]
    Forbidden(String),
    /// Who could tell does not answer.
    #[error("{0}")]
    Unavailable(String),
}

/// Checks a bearer token.
pub trait Authenticate: Send + Sync + 'static {
    /// `peer`: the address that the request comes from, where it is known.
    fn authenticate<'a>(&'a self, token: &'a str, peer: Option<IpAddr>) -> BoxFuture<'a, Result<Caller, Denied>>;
}

/// What is kept of a credential.
type Digest = [u8; 32];

fn digest(credential: &str) -> Digest {
    Sha256::digest(credential.as_bytes()).into()
}
