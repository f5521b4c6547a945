//! Authentication: keys from a file, or tokens that the Kubernetes API server confirms. No credential is logged or
//! kept; only its SHA-256 is kept.

mod keys;
mod review;

use std::fmt;
use std::net::IpAddr;

use futures_util::future::BoxFuture;
use sha2::{Digest as _, Sha256};

pub use keys::{ApiKeys, InvalidKeys, KeyFile};
pub use review::{ApiServer, InvalidApiServer, InvalidServiceAccount, ReviewSettings, ServiceAccount, TokenReview};

// Former names, for code outside of this module.
pub use self::{AccessDenied as Denied, ServiceAccount as Account};

/// The authenticated caller of a command, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub String);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a caller is refused. The texts go to the caller and do not contain the credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessDenied {
    /// The credential is not known or not valid.
    #[error("{0}")]
    Invalid(String),
    /// The credential is valid, and its owner has no right to the command.
    #[error("{0}")]
    Forbidden(String),
    /// The credential cannot be checked now.
    #[error("{0}")]
    Unavailable(String),
}

/// Checks a bearer token.
pub trait Authenticate: Send + Sync + 'static {
    /// `peer`: the address of the client, where it is known.
    fn authenticate<'a>(&'a self, token: &'a str, peer: Option<IpAddr>) -> BoxFuture<'a, Result<Caller, AccessDenied>>;
}

/// SHA-256 of a credential.
type CredentialDigest = [u8; 32];

fn digest(credential: &str) -> CredentialDigest {
    Sha256::digest(credential.as_bytes()).into()
}
